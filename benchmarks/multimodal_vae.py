"""Multimodal VAEs against each other and against multivae's, on image modalities made of one labelled data set.

    python -m benchmarks.multimodal_vae --data poly:npz:PATH
    python -m benchmarks.multimodal_vae --data poly:tfds:mnist --models mopoe MoPoE --settings complete

All models have the same networks, data, steps, optimizer and judges. A model is trained on complete data, on data with
half of the modalities missing, and on the complete examples among these. Names in capitals are multivae's (``pip
install -r requirements-bench.txt``). Finished rows are kept in OUT.jsonl and not run again; OUT.md is the table. The
models are not timed in turn, so compare the times of a step by ``benchmarks.cpu`` instead.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.cases import multivae_peer
from benchmarks.cases.peers import import_torchvision
from benchmarks.rows import markdown_table, mean_cells, read_rows, write_rows
from xmodal_jax.core import parts, runtime
from xmodal_jax.data.open import DataOptions, open_source
from xmodal_jax.data.pipeline import Loader, numeric_fields
from xmodal_jax.data.splits import prepare_source
from xmodal_jax.evaluation.codes import encode_source, freeze_trained
from xmodal_jax.evaluation.latent import LatentEvaluator, take_evenly
from xmodal_jax.evaluation.latent_density import fit_gaussian_mixture
from xmodal_jax.evaluation.matching_density import fit_flow_matching
from xmodal_jax.metrics.coherence import cross_coherence, joint_coherence, subsets
from xmodal_jax.metrics.generative import frechet_distance, moments
from xmodal_jax.models.flow.multimodal import MultimodalFlowConfig, make_multimodal_flow
from xmodal_jax.models.vae.judges import make_judges
from xmodal_jax.models.vae.modalities import ImageConfig, sizes_of
from xmodal_jax.models.vae.multimodal import make_multimodal_vae
from xmodal_jax.models.vae.multimodal_models import MultimodalVAEConfig, MultimodalVAEModel
from xmodal_jax.nets.decoders import ConvDecoderConfig
from xmodal_jax.nets.encoders import DCGANEncoderConfig
from xmodal_jax.train.feed import RESIDENT_LIMIT
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.step import make_training

OURS: dict[str, dict[str, Any]] = {
    "jmvae": {}, "mvae": {}, "mmvae": dict(posterior="laplace", posterior_scale="softmax", learn_prior=True),
    "mopoe": {}, "mmjsd": {}, "mvtcae": {}, "dmvae": {}, "mmvae_plus": {}, "cmvae": {}, "crmvae": {},
    "mmvm": {}, "code_vae": {},
}  # fmt: skip
"""Our models, and the options that are not their defaults."""
FLOW = "flow"
"""The flow over the codes of aligned autoencoders (`models.flow.multimodal`); its row "prior" is the joint sample."""
PEERS: dict[str, dict[str, Any]] = {
    "MoPoE": {}, "MVTCAE": dict(alpha=5 / 6),
    "MMVAEPlus": dict(K=1, prior_and_posterior_dist="normal", learn_shared_prior=False, loss="iwae_looser"),
}  # fmt: skip
"""multivae's models, and the options that are not their defaults."""
MISSING = {"complete": {}, "kept": dict(missing=0.5), "discarded": dict(missing=0.5, incomplete="discard")}
COLUMNS = (
    "coherence@1",
    "coherence@2",
    "coherence@3",
    "coherence@4",
    "prior",
    "mixture",
    "flow_matching",
    "log_p",
    "judge_frechet_distance",
    "ms",
    "train_s",
)
"""Columns of the table. "prior", "mixture" and "flow_matching" are the agreement of all modalities in joint samples, of
the prior and of densities that are fitted to latents (`evaluation.latent_density`, `evaluation.matching_density`);
"ms" is the median time of a training step, "train_s" that of all training steps of a model together, in seconds."""
DIGITS = {"log_p": 0, "ms": 0, "train_s": 0, "judge_frechet_distance": 1}
"""Decimal places of a column; 3 of the others."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compared."""

    data: str
    """Data set of several image modalities: ``poly:SPEC``."""
    out: pathlib.Path = pathlib.Path("docs/benchmarks/multimodal_vae")
    """Path of the results without suffix."""
    models: tuple[str, ...] = (FLOW, *OURS, *PEERS)
    """Models: "flow", and names of ``OURS`` and ``PEERS``."""
    settings: tuple[str, ...] = tuple(MISSING)
    """Data that the models are trained on: names of ``MISSING``."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the parameters and of the order of the data."""
    train_size: int = 10_000
    """Training examples."""
    steps: int = 500
    """Training steps."""
    batch_size: int = 64
    """Examples per step."""
    learning_rate: float = 1e-3
    """Learning rate of Adam, constant."""
    width: int = 16
    """Channels at the smallest resolution of encoder and decoder."""
    latent: int = 64
    """Dimensions of the shared latent."""
    private: int = 32
    """Dimensions of each private latent, in models that have them."""
    autoencoder_steps: int = 600
    """Training steps of the autoencoders of the flow."""
    autoencoder_batch_size: int = 64
    """Examples per step of the autoencoders of the flow."""
    flow_steps: int = 800
    """Training steps of the flow, of 256 examples."""
    judge_steps: int = 600
    """Training steps of the judges."""
    examples: int = 500
    """Number of test examples, and of draws."""
    likelihood_examples: int = 100
    """Test examples whose likelihood is estimated."""
    likelihood_samples: int = 50
    """Importance samples of each estimate."""

    def __post_init__(self):
        unknown = [m for m in self.models if m not in (FLOW, *OURS, *PEERS)]
        unknown += [s for s in self.settings if s not in MISSING]
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is none of {', '.join((FLOW, *OURS, *PEERS))}, or of {', '.join(MISSING)}"
            )


Images = dict[str, np.ndarray]
"""uint8 images ``[N, H, W, C]`` by modality."""


class Bench:
    """Data, judges and what all models share."""

    def __init__(self, config: Config):
        self.config = config
        options = DataOptions(train_size=config.train_size)
        load = lambda source: prepare_source(source, None, limit=RESIDENT_LIMIT)[0]
        self.train = {
            name: load(open_source(config.data, "train", dataclasses.replace(options, **changes)))
            for name, changes in MISSING.items()
            if name in (*config.settings, "complete")
        }
        self.test = take_evenly(load(open_source(config.data, "test", options)), config.examples)
        self.names = tuple(self.test.modalities)
        self.subsets = subsets(len(self.names), tuple(range(1, len(self.names))))
        example = numeric_fields(Loader(self.test, batch_size=1, seed=0).example())
        self.sizes = sizes_of(example, self.names, self.model("mopoe"))
        self.labels = self.test.class_labels()
        self.judges = make_judges(self.model("mopoe"), self.sizes, int(self.labels.max()) + 1)
        optimizer = Optimizer("muon", learning_rate=5e-3)
        self.judge_params, _ = self.fit(self.judges.method, optimizer, "complete", 0, config.judge_steps)
        self.predict = jax.jit(self.judges.method.predict)
        classes, self.real_features = self.judge(self.test.batch(np.arange(len(self.test))))
        self.judge_accuracy = (classes == self.labels).mean(axis=1)

    def model(self, name: str) -> MultimodalVAEConfig:
        """The configuration of one of our models."""
        c, model = self.config, parts.choose(MultimodalVAEModel, name)
        image = ImageConfig(
            DCGANEncoderConfig(width=c.width, norm="none"), ConvDecoderConfig(width=c.width), "laplace",
            scale=multivae_peer.SCALE,
        )  # fmt: skip
        private = dict(private=c.private) if "private" in parts.options_of(model) else {}
        return model(latent=c.latent, image=image, **private, **OURS[name])

    def fit(self, method, optimizer: Optimizer, setting: str, seed: int, steps: int, **options):
        """Trained parameters, and the median milliseconds of a step. ``options``: ``source`` and ``batch_size`` in
        place of the setting's."""
        training = make_training(method, optimizer, steps)
        options = dict(source=self.train[setting], batch_size=self.config.batch_size) | options
        loader = Loader(**options, seed=seed)
        state = jax.jit(training.init)(jax.random.key(seed), numeric_fields(loader.example()))
        if training.load_pretrained is not None:
            state = state._replace(params=training.load_pretrained(state.params, None))
            state = state._replace(ema=None if state.ema is None else jax.tree.map(jnp.copy, state.params))
        step = jax.jit(training.make_step(None))
        initial_step = training.make_initial_step and jax.jit(training.make_initial_step(None))
        seconds = []
        for k in range(steps):
            batch = numeric_fields(next(loader))
            start = time.perf_counter()
            state, _ = (initial_step if k < training.initial_steps else step)(state, batch)
            jax.block_until_ready(state)
            seconds.append(time.perf_counter() - start)
        loader.close()
        return training.eval_params(state), _median_ms(seconds)

    def judge(self, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """The judges' classes ``[M, N]`` and features ``[N, M, H]`` of images."""
        outputs = []
        for indices in _chunks(len(images[self.names[0]])):
            batch = {m: images[m][indices] for m in self.names} | {"index": indices.astype(np.int32)}
            outputs.append(jax.tree.map(np.asarray, self.predict(self.judge_params, batch)))
        logits, features = (np.concatenate(x) for x in zip(*outputs, strict=True))
        return logits.argmax(axis=-1).T, features

    def metrics(
        self,
        translations: list[Images],
        draws: Mapping[str, Images],
        log_p: float | None,
        ms: float,
        train_s: float | None = None,
    ) -> dict[str, float | None]:
        """A row of the table, from the images generated from each subset of the modalities and from draws.

        ``draws``: images of joint samples, by column of the table. ``train_s``: seconds of all training steps; None:
        those of ``config.steps`` steps of ``ms`` milliseconds.
        """
        classes, distances = [], []
        for members, images in zip(self.subsets, translations, strict=True):
            subset_classes, features = self.judge(images)
            classes.append(subset_classes)
            if members.sum() == 1:
                distances += [
                    frechet_distance(moments(self.real_features[:, m]), moments(features[:, m]))
                    for m in range(len(self.names)) if not members[m]
                ]  # fmt: skip
        metrics: dict[str, Any] = cross_coherence(np.stack(classes), self.labels, self.subsets)
        metrics |= {name: joint_coherence(self.judge(images)[0]) for name, images in draws.items()}
        train_s = self.config.steps * ms / 1e3 if train_s is None else train_s
        metrics |= {"judge_frechet_distance": float(np.mean(distances)), "log_p": log_p}
        metrics |= {"ms": ms, "train_s": train_s}
        return {k: None if metrics.get(k) is None else float(metrics[k]) for k in COLUMNS}


def run_flow(bench: Bench, setting: str, seed: int) -> dict[str, float | None]:
    """A row of the flow: autoencoders first, then the flow over their codes."""
    c, key, muon = bench.config, jax.random.key(seed), Optimizer("muon", learning_rate=1e-2)
    image = ImageConfig(
        DCGANEncoderConfig(width=2 * c.width, norm="none"), ConvDecoderConfig(width=2 * c.width), "laplace", 0.75
    )  # fmt: skip
    config = MultimodalFlowConfig(image=image, tokens=1, dims=48, align_weight=0.1)
    flow = make_multimodal_flow(config, bench.sizes)
    codes, source = flow.codes, bench.train[setting]
    autoencoders, code_ms = bench.fit(
        codes.method, muon, setting, seed, c.autoencoder_steps, batch_size=c.autoencoder_batch_size
    )
    encoded = encode_source(codes, autoencoders, source, None)
    method = flow.method(autoencoders, encoded.statistics)
    optimizer = freeze_trained(dataclasses.replace(muon, ema=0.999))
    options = dict(source=encoded.source, batch_size=256)
    params, ms = bench.fit(method, optimizer, setting, seed, c.flow_steps, **options)
    vae, infer, decode = flow.as_vae(), jax.jit(flow.infer), jax.jit(flow.decode)

    def generate(z) -> Images:
        data = decode(params, z, None)
        return {m: np.asarray(jnp.round(255 * x[0]).astype(jnp.uint8)) for m, x in data.items()}

    def translate(observed: np.ndarray) -> Images:
        images = []
        for indices in _chunks(len(bench.test)):
            batch = {m: x for m, x in bench.test.batch(indices).items() if m in bench.names}
            batch["index"] = indices.astype(np.int32)
            images.append(generate(infer(params, batch, observed, key).z))
        return _concatenate(images)

    translations = [translate(observed) for observed in bench.subsets]
    draws = jax.jit(vae.sample_prior, static_argnums=2)(params, key, c.examples)
    joint = [generate(vae.decoder_latents(params, draws[i], None)) for i in _chunks(c.examples)]
    train_s = (c.autoencoder_steps * code_ms + c.flow_steps * ms) / 1e3
    return bench.metrics(translations, {"prior": _concatenate(joint)}, None, ms, train_s)


def run_ours(bench: Bench, name: str, setting: str, seed: int) -> dict[str, float | None]:
    """A row of one of our models."""
    c, config, key = bench.config, bench.model(name), jax.random.key(seed)
    vae = make_multimodal_vae(config, bench.sizes)
    adam = Optimizer("adam", learning_rate=c.learning_rate, schedule="constant", clip_norm=None, warmup=0.0)
    params, ms = bench.fit(vae.method, adam, setting, seed, c.steps)
    evaluator = LatentEvaluator(vae, config, bench.judges, seed=seed)
    infer, decode = jax.jit(vae.infer), jax.jit(vae.decode)
    decode_shared = jax.jit(lambda p, z, k: vae.decode(p, vae.decoder_latents(p, z, k), None))

    def as_images(generated) -> Images:
        return {m: np.asarray(jnp.round(255 * x[0]).astype(jnp.uint8)) for m, x in generated.items()}

    def translate(observed: np.ndarray) -> Images:
        images = []
        for indices in _chunks(len(bench.test)):
            batch = {m: x for m, x in bench.test.batch(indices).items() if m in bench.names}
            batch["index"] = indices.astype(np.int32)
            images.append(as_images(decode(params, infer(params, batch, observed, key).z, None)))
        return _concatenate(images)

    def generate(shared: np.ndarray) -> Images:
        fold_in = lambda indices: jax.random.fold_in(key, indices[0])
        parts = _chunks(len(shared))
        return _concatenate([as_images(decode_shared(params, shared[i], fold_in(i))) for i in parts])

    translations = [translate(observed) for observed in bench.subsets]
    samples = evaluator.encode(params, take_evenly(bench.train["complete"], 4000)).samples
    draws, log_p = {name: generate(shared) for name, shared in sample_fitted(samples, c.examples, seed)}, None
    if config.has_prior:
        draws["prior"] = generate(evaluator.sample_prior(params, c.examples))
        everything, few = (True,) * len(bench.names), take_evenly(bench.test, c.likelihood_examples)
        log_p = float(
            evaluator.log_likelihood(params, few, everything, everything, c.likelihood_samples).mean()
        )
    return bench.metrics(translations, draws, log_p, ms)


def train_theirs(bench: Bench, name: str, setting: str, seed: int):
    """One of multivae's models, trained, and the median milliseconds of a step."""
    import torch

    c, names = bench.config, list(bench.names)
    torch.manual_seed(seed)
    shape = bench.sizes[names[0]].shape
    sizes = dict(latent=c.latent, private=c.private, width=c.width)
    model = multivae_peer.make(name, len(names), (shape[2], *shape[:2]), **sizes, **PEERS[name])
    adam = torch.optim.Adam(model.parameters(), lr=c.learning_rate, fused=True)
    source = bench.train[setting]
    has_missing = "present" in source.batch(np.arange(1))
    # The loss of these models is a sum over the batch.
    examples = c.batch_size if name in ("MMVAEPlus", "CMVAE", "MMVAE", "CRMVAE") else 1
    loader, seconds = Loader(source, batch_size=c.batch_size, seed=seed), []
    model.train()
    for step in range(c.steps):
        batch = next(loader)
        images = multivae_peer.tensors(batch, names)
        masks = {m: torch.from_numpy(batch["present"][m]) for m in names} if has_missing else None
        start = time.perf_counter()
        adam.zero_grad()
        loss = model(multivae_peer.batch_of(images, masks), epoch=2, batch_ratio=0)["loss"]
        (loss / examples).backward()
        adam.step()
        seconds.append(time.perf_counter() - start)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: the loss of step {step} is not finite")
    loader.close()
    model.eval()
    return model, _median_ms(seconds)


def run_theirs(bench: Bench, name: str, setting: str, seed: int) -> dict[str, float | None]:
    """A row of one of multivae's models, trained and drawn from by its own functions."""
    import_torchvision()
    import torch
    from pythae.models.base.base_utils import ModelOutput

    c, names = bench.config, list(bench.names)
    model, ms = train_theirs(bench, name, setting, seed)

    def as_images(outputs) -> Images:
        to_uint8 = lambda x: np.moveaxis((x.clamp(0, 1) * 255).round().byte().numpy(), 1, -1)
        return {m: to_uint8(outputs[m]) for m in names}

    def encode(source, indices: np.ndarray, observed: list[str]):
        images = multivae_peer.tensors(source.batch(indices), names)
        return model.encode(multivae_peer.batch_of(images), cond_mod=observed)

    def translate(members: np.ndarray) -> Images:
        observed = [m for m, is_member in zip(names, members, strict=True) if is_member]
        parts = _chunks(len(bench.test))
        return _concatenate([as_images(model.decode(encode(bench.test, i, observed))) for i in parts])

    def generate(shared: np.ndarray) -> Images:
        images = []
        for indices in _chunks(len(shared)):
            output = ModelOutput(
                z=torch.from_numpy(shared[indices].astype(np.float32)), one_latent_space=True
            )
            if name in multivae_peer.PRIVATE:
                output["one_latent_space"] = False
                output["modalities_z"] = {m: torch.randn(len(indices), c.private) for m in names}
            images.append(as_images(model.decode(output)))
        return _concatenate(images)

    with torch.no_grad():
        translations = [translate(members) for members in bench.subsets]
        complete = take_evenly(bench.train["complete"], 4000)
        samples = [encode(complete, indices, names).z.numpy() for indices in _chunks(len(complete))]
        shared = dict(sample_fitted(np.concatenate(samples), c.examples, seed))
        shared["prior"] = np.random.default_rng(seed).standard_normal((c.examples, c.latent))
        draws = {name: generate(latents) for name, latents in shared.items()}
        return bench.metrics(translations, draws, None, ms)


def sample_fitted(latents: np.ndarray, count: int, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """``count`` samples of each density that is fitted to ``latents [N, D]``, with its name."""
    for density in (
        fit_gaussian_mixture(latents, components=10, seed=seed),
        fit_flow_matching(latents, seed=seed),
    ):
        yield density.name, density.sample(count, seed)


def _median_ms(seconds: list[float]) -> float:
    """The median of the second half, in milliseconds."""
    return 1e3 * float(np.median(seconds[len(seconds) // 2 :]))


def _chunks(count: int) -> list[np.ndarray]:
    """The indices of ``count`` examples, in chunks of at most 250."""
    return np.array_split(np.arange(count), -(-count // 250))


def _concatenate(images: list[Images]) -> Images:
    return {m: np.concatenate([part[m] for part in images]) for m in images[0]}


def table(rows: list[dict[str, Any]]) -> str:
    """The table: means over seeds, with the standard deviation if there are several."""
    cells = []
    for name, setting in dict.fromkeys((r["model"], r["setting"]) for r in rows):
        scores = [r["scores"] for r in rows if (r["model"], r["setting"]) == (name, setting)]
        cells.append([name, setting, str(len(scores)), *mean_cells(scores, COLUMNS, DIGITS)])
    return markdown_table(["model", "trained on", "seeds", *COLUMNS], cells)


def main(config: Config) -> None:
    runtime.configure()
    settings = {
        k: v for k, v in dataclasses.asdict(config).items() if k not in ("out", "models", "settings", "seeds")
    }
    rows = read_rows(config.out, settings)
    done = {(r["model"], r["setting"], r["seed"]) for r in rows}
    bench = Bench(config)
    print("accuracy of the judges on real data:", bench.judge_accuracy.round(3).tolist(), flush=True)
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
                if name == FLOW:
                    metrics = run_flow(bench, setting, seed)
                else:
                    metrics = (run_ours if name in OURS else run_theirs)(bench, name, setting, seed)
                rows.append(dict(model=name, setting=setting, seed=seed, scores=metrics, config=settings))
                write_rows(config.out, rows, table(rows))
                jax.clear_caches()
                print(
                    name,
                    setting,
                    seed,
                    {k: None if v is None else round(v, 3) for k, v in metrics.items()},
                    flush=True,
                )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
