"""Multimodal VAEs against each other and against multivae's, on image modalities made of one labelled data set.

    python -m benchmarks.multimodal_vae --data poly:npz:PATH
    python -m benchmarks.multimodal_vae --data poly:tfds:mnist --models mopoe MoPoE --settings complete

All have the same networks, data, steps and optimizer, and the same judges. A model is trained on complete data, on data
half of whose modalities are missing, and on what is complete of these. Names in capitals are multivae's (``pip install
-r requirements-bench.txt``). Every finished row is kept in OUT.jsonl and not run again; OUT.md is the table. Times of a
step are those of this run alone and not taken in turn: benchmarks.cpu compares those.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.cases import multivae_peer
from benchmarks.cases.peers import import_torchvision
from xmodal_jax.core import runtime
from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.data.splits import prepare_source
from xmodal_jax.evaluation import latent as scores
from xmodal_jax.evaluation.samplers import fit_gaussian_mixture
from xmodal_jax.metrics.coherence import cross_coherence, joint_coherence
from xmodal_jax.metrics.generative import frechet_distance, moments
from xmodal_jax.models.vae.judges import make_judges
from xmodal_jax.models.vae.modalities import ImageConfig, sizes_of
from xmodal_jax.models.vae.multimodal import MultimodalVAEConfig, make_multimodal_vae
from xmodal_jax.nets.decoders import DecoderConfig
from xmodal_jax.nets.encoders import DCGANEncoderConfig
from xmodal_jax.train.feed import RESIDENT_LIMIT
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import write_atomic
from xmodal_jax.train.step import make_training

OURS: dict[str, dict[str, Any]] = {
    "jmvae": {}, "mvae": {}, "mmvae": dict(posterior="laplace", scale="softmax", learn_prior=True),
    "mopoe": {}, "mmjsd": {}, "mvtcae": {}, "dmvae": {}, "mmvae_plus": {}, "cmvae": {}, "crmvae": {},
}  # fmt: skip
"""Our models, and what they change of the configuration."""
PEERS: dict[str, dict[str, Any]] = {
    "MoPoE": {}, "MVTCAE": dict(alpha=5 / 6),
    "MMVAEPlus": dict(K=1, prior_and_posterior_dist="normal", learn_shared_prior=False, loss="iwae_looser"),
}  # fmt: skip
"""multivae's, and what they change of its configuration."""
MISSING = {"complete": {}, "kept": dict(missing=0.5), "discarded": dict(missing=0.5, incomplete="discard")}
COLUMNS = (
    "coherence@1",
    "coherence@2",
    "coherence@3",
    "coherence@4",
    "prior",
    "mixture",
    "log_p",
    "fid",
    "ms",
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared."""

    data: str
    """A data set of image modalities: ``poly:SPEC``."""
    out: pathlib.Path = pathlib.Path("docs/benchmarks/multimodal_vae")
    """Path of the results without suffix."""
    models: tuple[str, ...] = (*OURS, *PEERS)
    """Which: names of ``OURS`` and ``PEERS``."""
    settings: tuple[str, ...] = tuple(MISSING)
    """Which data they are trained on."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of initialisation and order; the data are the same."""
    train_size: int = 10_000
    """Training examples."""
    steps: int = 500
    """Steps of Adam, the same in all settings."""
    batch_size: int = 64
    """Examples of each."""
    rate: float = 1e-3
    """Its learning rate, the same throughout."""
    width: int = 16
    """Channels of the smallest pictures in encoder and decoder."""
    latent: int = 64
    """Shared dimensions."""
    private: int = 32
    """Private dimensions of the models that have them."""
    judge_steps: int = 600
    """Steps of the judges' training."""
    examples: int = 500
    """Test examples, and draws."""
    likelihood_examples: int = 100
    """Test examples of the likelihood."""
    likelihood_samples: int = 50
    """Importance samples of each."""

    def __post_init__(self):
        unknown = [m for m in self.models if m not in OURS and m not in PEERS]
        unknown += [s for s in self.settings if s not in MISSING]
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is none of {', '.join((*OURS, *PEERS))}, or of {', '.join(MISSING)}"
            )


class Bench:
    """Data, judges and what both sides share."""

    def __init__(self, config: Config):
        self.config = config
        size = DataOptions(train_size=config.train_size)
        load = lambda source: prepare_source(source, None, limit=RESIDENT_LIMIT)[0]
        self.train = {
            name: load(open_source(config.data, "train", dataclasses.replace(size, **how)))
            for name, how in MISSING.items()
            if name in (*config.settings, "complete")
        }
        self.test = scores.first(load(open_source(config.data, "test", size)), config.examples)
        self.names = tuple(self.test.modalities)
        example = numeric_fields(Loader(self.test, batch_size=1, seed=0).example())
        self.example = example
        self.sizes = sizes_of(example, self.names, self.model("mopoe"))
        self.labels = self.test.class_labels()
        self.judges = make_judges(self.model("mopoe"), self.sizes, int(self.labels.max()) + 1)
        optimizer = Optimizer("muon", learning_rate=5e-3)
        self.judged, _ = self.fit(self.judges.method, optimizer, "complete", 0, config.judge_steps)
        self.judge = jax.jit(self.judges.method.predict)
        classes, self.real = self.verdict(self.test.batch(np.arange(len(self.test))))
        self.right = (classes == self.labels).mean(axis=1)
        """How often each judge is right on real data."""

    def model(self, name: str) -> MultimodalVAEConfig:
        """Our configuration."""
        c = self.config
        encoder, decoder = (
            DCGANEncoderConfig(width=c.width, norm="none"),
            DecoderConfig("conv", width=c.width),
        )
        image = ImageConfig(encoder, decoder, "laplace", scale=multivae_peer.SCALE)
        how = dict(model=name, latent=c.latent, private=c.private, image=image) | OURS[name]
        return MultimodalVAEConfig(**how)

    def fit(self, method, optimizer: Optimizer, setting: str, seed: int, steps: int):
        """Trained parameters, and the median milliseconds of a step."""
        training = make_training(method, optimizer, steps)
        loader = Loader(self.train[setting], batch_size=self.config.batch_size, seed=seed)
        state = jax.jit(training.init)(jax.random.key(seed), numeric_fields(loader.example()))
        step = jax.jit(training.make_step(None))
        first = None if training.make_initial_step is None else jax.jit(training.make_initial_step(None))
        seconds = []
        for k in range(steps):
            batch = numeric_fields(next(loader))
            start = time.perf_counter()
            state, _ = (first if k < training.initial_steps else step)(state, batch)
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - start)
        loader.close()
        return state.params, 1e3 * float(np.median(seconds[len(seconds) // 2 :]))

    def verdict(self, images: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Classes ``[M, N]`` and features ``[N, M, H]`` that the judges see in uint8 images ``[N, H, W, C]``."""
        found, count = [], len(images[self.names[0]])
        for rows in np.array_split(np.arange(count), -(-count // 250)):
            batch = {m: images[m][rows] for m in self.names} | {"index": rows.astype(np.int32)}
            found.append(jax.tree.map(np.asarray, self.judge(self.judged, batch)))
        logits, features = (np.concatenate(x) for x in zip(*found, strict=True))
        return logits.argmax(axis=-1).T, features

    def row(self, made, prior, mixture, log_p: float | None, ms: float) -> dict[str, float]:
        """The scores of what was ``made`` of each subset of modalities, and drawn jointly."""
        explorer = scores.subsets(len(self.names), tuple(range(1, len(self.names))))
        classes, fids = [], []
        for given, images in zip(explorer, made, strict=True):
            seen, features = self.verdict(images)
            classes.append(seen)
            if given.sum() == 1:
                fids += [
                    frechet_distance(moments(self.real[:, m]), moments(features[:, m]))
                    for m in range(len(self.names)) if not given[m]
                ]  # fmt: skip
        found = cross_coherence(np.stack(classes), self.labels, explorer)
        found |= {
            "prior": joint_coherence(self.verdict(prior)[0]),
            "mixture": joint_coherence(self.verdict(mixture)[0]),
        }
        found |= {"fid": float(np.mean(fids)), "ms": ms, "log_p": log_p}
        return {k: None if found.get(k) is None else float(found[k]) for k in COLUMNS}


def ours(bench: Bench, name: str, setting: str, seed: int) -> dict[str, float]:
    """A row of one of our models."""
    c, config = bench.config, bench.model(name)
    vae = make_multimodal_vae(config, bench.sizes)
    adam = Optimizer("adam", learning_rate=c.rate, schedule="constant", clip_norm=None, warmup=0.0)
    params, ms = bench.fit(vae.method, adam, setting, seed, c.steps)
    explorer = scores.Explorer(vae, config, bench.judges, seed=seed)
    key = jax.random.key(seed)

    def paint(z):
        return {
            m: np.asarray(x)
            for m, x in jax.tree.map(lambda x: jnp.round(255 * x[0]).astype(jnp.uint8), z).items()
        }

    infer, decode = jax.jit(vae.infer), jax.jit(vae.decode)
    batches = [bench.test.batch(rows) | {"index": rows.astype(np.int32)} for rows in _parts(len(bench.test))]
    made = [
        _joined(
            [paint(decode(params, infer(params, _only(b, bench.names), given, key).z, None)) for b in batches]
        )
        for given in explorer.subsets
    ]
    codes = scores.first(bench.train["complete"], 4000)
    drawn = explorer.codes(params, bench.judged, codes)["drawn"]
    unfold = jax.jit(lambda p, z, k: vae.decode(p, vae.unfold(p, z, k), None))
    dream = lambda shared: _joined(
        [
            paint(unfold(params, shared[rows], jax.random.fold_in(key, rows[0])))
            for rows in _parts(len(shared))
        ]
    )
    mixture = fit_gaussian_mixture(drawn, components=10, seed=seed).sample(c.examples, seed)
    few = scores.first(bench.test, c.likelihood_examples)
    all_of_them = (True,) * len(bench.names)
    log_p = explorer.likelihood(params, few, all_of_them, all_of_them, c.likelihood_samples).mean()
    return bench.row(made, dream(explorer.prior(params, c.examples)), dream(mixture), float(log_p), ms)


def theirs(bench: Bench, name: str, setting: str, seed: int) -> dict[str, float]:
    """A row of one of multivae's models, trained and drawn from by its own functions."""
    import_torchvision()
    import torch
    from pythae.models.base.base_utils import ModelOutput

    c, names = bench.config, list(bench.names)
    torch.manual_seed(seed)
    shape = bench.sizes[names[0]].shape
    model = multivae_peer.make(
        name,
        len(names),
        (shape[2], *shape[:2]),
        latent=c.latent,
        private=c.private,
        width=c.width,
        **PEERS[name],
    )
    adam = torch.optim.Adam(model.parameters(), lr=c.rate, fused=True)
    source = bench.train[setting]
    missing = "present" in source.batch(np.arange(1))
    loader, seconds = Loader(source, batch_size=c.batch_size, seed=seed), []
    model.train()
    for step in range(c.steps):
        batch = next(loader)
        images = multivae_peer.tensors(batch, names)
        masks = {m: torch.from_numpy(batch["present"][m]) for m in names} if missing else None
        start = time.perf_counter()
        adam.zero_grad()
        loss = model(multivae_peer.batch_of(images, masks), epoch=2, batch_ratio=0)["loss"]
        # Some of its losses are sums over the batch.
        (loss / (c.batch_size if name in ("MMVAEPlus", "CMVAE", "MMVAE", "CRMVAE") else 1)).backward()
        adam.step()
        seconds.append(time.perf_counter() - start)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss of step {step} is not finite")
    loader.close()
    model.eval()

    def paint(outputs):
        to = lambda x: np.moveaxis((x.clamp(0, 1) * 255).round().byte().numpy(), 1, -1)
        return {m: to(outputs[m]) for m in names}

    def encode(rows, cond, of=bench.test):
        images = multivae_peer.tensors(of.batch(rows), names)
        return model.encode(multivae_peer.batch_of(images), cond_mod=cond)

    made, drawn = [], []
    with torch.no_grad():
        for given in scores.subsets(len(names), tuple(range(1, len(names)))):
            cond = [m for m, there in zip(names, given, strict=True) if there]
            made.append(
                _joined([paint(model.decode(encode(rows, cond))) for rows in _parts(len(bench.test))])
            )
        codes = scores.first(bench.train["complete"], 4000)
        for rows in _parts(len(codes)):
            drawn.append(encode(rows, names, codes).z.numpy())

        def dream(shared):
            found = []
            for rows in _parts(len(shared)):
                z = torch.from_numpy(shared[rows].astype(np.float32))
                if name in multivae_peer.PRIVATE:
                    own = {m: torch.randn(len(rows), c.private) for m in names}
                    output = ModelOutput(z=z, one_latent_space=False, modalities_z=own)
                else:
                    output = ModelOutput(z=z, one_latent_space=True)
                found.append(paint(model.decode(output)))
            return _joined(found)

        mixture = fit_gaussian_mixture(np.concatenate(drawn), components=10, seed=seed).sample(
            c.examples, seed
        )
        prior = np.random.default_rng(seed).standard_normal((c.examples, c.latent))
        return bench.row(
            made, dream(prior), dream(mixture), None, 1e3 * float(np.median(seconds[len(seconds) // 2 :]))
        )


def _parts(count: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), -(-count // 250))


def _only(batch: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {k: v for k, v in batch.items() if k in names or k == "index"}


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {m: np.concatenate([part[m] for part in parts]) for m in parts[0]}


def table(rows: list[dict[str, Any]]) -> str:
    """Mean over seeds, with their standard deviation where there are several."""
    head = ["model", "trained on", "seeds", *COLUMNS]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, setting in dict.fromkeys((r["model"], r["setting"]) for r in rows):
        own = [r["scores"] for r in rows if (r["model"], r["setting"]) == (name, setting)]
        cells = []
        for column in COLUMNS:
            values = [s[column] for s in own if s.get(column) is not None]
            digits = 0 if column in ("log_p", "ms") else 1 if column == "fid" else 3
            spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}" if values else "")
        lines.append(f"| {name} | {setting} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    runtime.configure()
    kept = config.out.with_suffix(".jsonl")
    settings = {
        k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "models", "settings", "seeds")
    }
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    other = [row for row in rows if row["config"] != settings]
    if other:
        raise ValueError(
            f"{kept} holds rows of another configuration, {other[0]['config']}: choose another --out"
        )
    done = {(r["model"], r["setting"], r["seed"]) for r in rows}
    bench = Bench(config)
    print("judges right on real data:", bench.right.round(3).tolist(), flush=True)
    for setting in config.settings:
        complete = bench.train[setting].presence()
        print(
            setting,
            len(bench.train[setting]),
            {m: float(v.mean().round(3)) for m, v in complete.items()},
            flush=True,
        )
        for name in config.models:
            for seed in config.seeds:
                if (name, setting, seed) in done:
                    continue
                found = (ours if name in OURS else theirs)(bench, name, setting, seed)
                rows.append(dict(model=name, setting=setting, seed=seed, scores=found, config=settings))
                write_atomic(kept, "".join(json.dumps(row) + "\n" for row in rows))
                write_atomic(config.out.with_suffix(".md"), table(rows))
                jax.clear_caches()
                print(
                    name,
                    setting,
                    seed,
                    {k: None if v is None else round(v, 3) for k, v in found.items()},
                    flush=True,
                )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
