"""Latent spaces on new data: trained autoencoders of one modality, and multimodal VAEs."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.data.source import RawBatch, Source
from xmodal_jax.data.sources.arrays import ArraySource
from xmodal_jax.evaluation.matching_density import load_density
from xmodal_jax.inference.inputs import (
    InputSource,
    broadcast_inputs,
    check_count,
    collect_inputs,
    positions_of,
    warn_unknown_words,
)
from xmodal_jax.inference.model import BATCH_SIZE, RestoredRun, TrainedModel
from xmodal_jax.inference.outputs import OutputFormat
from xmodal_jax.models.flow.multimodal import MultimodalFlowConfig, make_multimodal_flow
from xmodal_jax.models.speech import log_mel_transform
from xmodal_jax.models.towers import compute_log_mel
from xmodal_jax.models.vae.adapter import as_multimodal
from xmodal_jax.models.vae.inference import LatentSamples
from xmodal_jax.models.vae.modalities import ModalityConfigs, as_batch
from xmodal_jax.models.vae.multimodal import MultimodalVAE, make_multimodal_vae
from xmodal_jax.models.vae.multimodal_models import MultimodalVAEModel
from xmodal_jax.models.vae.single import make_vae
from xmodal_jax.models.vae.single_models import AutoencoderModel
from xmodal_jax.nets.decoders import Size
from xmodal_jax.train.run import from_json
from xmodal_jax.types import kind_of

Outputs = dict[str, list[Any]]
"""Generated data by modality, one object for each example: see `outputs.OutputFormat.to_outputs`."""


class _ModelFunctions(NamedTuple):
    """The functions in which autoencoders of one and of several modalities differ."""

    config: ModalityConfigs
    vae: MultimodalVAE
    dim: int
    """Number of dimensions of the shared latents."""
    sample_prior: Callable[..., Any] | None
    """``sample_prior(params, key, count, labels) -> shared [count, D]``; None: the latents have no prior."""
    decoder_latents: Callable[..., Any]
    """``decoder_latents(params, shared [N, D], key, labels) -> z [M, 1, N, D']``, see `MultimodalVAE`."""
    conditional: bool = False
    """Whether encoder and decoder get the class, ``labels [N]``."""


class LatentModel(TrainedModel):
    """A trained latent space: the base of autoencoders of one and of several modalities.

    Outputs are dicts by modality: Pillow images, strings, pairs (waveform, samples per second), numbers in the unit of
    the data. They are the modes of the likelihood given the latents; its noise is not added.
    """

    actions = ("encode", "decode", "reconstruct", "sample", "interpolate", "traverse")

    def __init__(self, run: RestoredRun, sizes: Mapping[str, Any]):
        """``sizes``: of an example of each modality of the model: its shape, and the number of values of a token."""
        super().__init__(run, tuple(sizes))
        self.sizes = {m: Size(tuple(shape), values) for m, (*shape, values) in sizes.items()}
        self._functions = self._build()
        self.config, self._vae = self._functions.config, self._functions.vae
        names = tuple(map(str, self.metadata.get("class_names") or ()))
        self._outputs = OutputFormat(self.config, self.format.transform, names)
        numbers = map(str, range(self.metadata["classes"]))
        self.class_names: tuple[str, ...] = (names or tuple(numbers)) if self._functions.conditional else ()
        """The classes that a conditional model is conditioned on; empty: it is not conditional."""
        # The density of a conditional model's latents does not know the class.
        self._density = None if self._functions.conditional else load_density(run.path, self.params)
        if self._functions.sample_prior is None and self._density is None:
            self.actions = tuple(name for name in self.actions if name != "sample")
        self._to_frames, self._programs = None, {}
        sounds = [m for m in sizes if kind_of(m) == "audio"]
        if sounds:  # cut to the length of those of training, as all frames belong to an example
            audio, frames = self.config.audio, max(self.sizes[m].shape[0] for m in sounds)
            self._to_frames = log_mel_transform(audio.spectrogram, audio.floor)
            self.format = self.format.limit_audio(frames * audio.spectrogram.hop / audio.sample_rate)

    @abc.abstractmethod
    def _build(self) -> _ModelFunctions:
        """Builds the functions of the checkpoint's model."""

    @property
    def dim(self) -> int:
        """Number of dimensions of the latents."""
        return self._functions.dim

    @property
    def sample_rate(self) -> int:
        """Samples per second of generated sounds."""
        return self.config.audio.sample_rate

    def describe(self) -> str:
        """What the run is, what it takes and what it gives, as text."""
        classes = f"\nclasses: {', '.join(self.class_names)}" if self.class_names else ""
        return f"{super().describe()}\nlatent dimensions: {self.dim}{classes}"

    def prepare(self, batch: RawBatch) -> RawBatch:
        """Turns a batch of inputs into one of the model. As in training, a sound becomes a fixed number of log-mel
        frames."""
        batch = super().prepare(batch)
        if self._to_frames is not None:
            batch = self._to_frames(batch)
        for modality in self.format.modalities:
            if kind_of(modality) == "audio" and modality in batch:
                count = self.sizes[modality].shape[0]
                batch |= {field: _cut_or_pad(batch[field], count) for field in (modality, f"{modality}_mask")}
        return batch

    def trace_frames(self, batch: RawBatch) -> RawBatch:
        """Replaces waveforms by the log-mel frames of `prepare`, within a function that is traced."""
        audio, replaced = self.config.audio, {}
        for modality in self.format.modalities:
            if kind_of(modality) == "audio" and modality in batch:
                waveforms, mask = batch[modality], batch[f"{modality}_mask"]
                frames, frame_mask = compute_log_mel(waveforms, mask, audio.spectrogram, floor=audio.floor)
                count = self.sizes[modality].shape[0]
                replaced[modality] = _cut_or_pad(frames, count)
                replaced[f"{modality}_mask"] = _cut_or_pad(frame_mask, count)
        return {**batch, **replaced}

    def encode(
        self, *, samples: int | None = None, seed: int = 0, classes: Any = None, **inputs: Any
    ) -> np.ndarray:
        """Encodes examples, given any of their modalities, as the mean of the posterior: float32 ``[N, D]``.

        Args:
          samples: number of samples of the posterior to return instead, ``[samples, N, D]``; None: the mean.
          seed: seed of the samples.
          classes: of a conditional model, the name of the class of each example, or one for all.
          inputs: inputs by modality: ``image=…``, ``text=…``. Modalities that are left out, or None, are missing.

        Raises:
          ValueError: there are no inputs, their numbers differ, one cannot be used, a class is missing or not known, or
            ``samples`` is below 1.
        """
        check_count("samples", samples, least=1)
        source = self._read(inputs, classes)
        latents = np.zeros((0, samples or 1, self.dim), np.float32)
        if source is not None:
            latents = self._run(self.encode_batch, source, samples, seed)
        return latents[:, 0] if samples is None else np.moveaxis(latents, 1, 0)

    def decode(self, latents: np.ndarray, *, classes: Any = None, seed: int | None = None) -> Outputs:
        """Decodes latents ``[N, D]`` to every modality.

        Args:
          latents: such as those of `encode`.
          classes: of a conditional model, the name of the class of each example, or one for all.
          seed: seed of the latents that are not shared (those of single modalities, or of further levels), which are
            then sampled from their prior; None: they are the prior's mean.

        Raises:
          ValueError: the latents have another shape or are not finite, or a class is missing or not known.
        """
        latents = np.asarray(latents, np.float32)
        if latents.ndim != 2 or latents.shape[1] != self.dim:
            raise ValueError(f"latents have the shape [N, {self.dim}], got {latents.shape}")
        if not np.isfinite(latents).all():
            raise ValueError("the latents hold NaN or infinity")
        labels = self._labels(classes, len(latents))
        if not len(latents):
            return {m: [] for m in self.format.modalities}
        source = ArraySource({"shared": latents, **labels})
        return self._to_outputs(
            self._run(self.decode_batch, source, None if seed is None else 1, seed or 0), None
        )

    def reconstruct(self, *, classes: Any = None, **inputs: Any) -> Outputs:
        """Encodes examples, given any of their modalities, and decodes the mean of the posterior to every modality.

        The arguments are those of `encode`.
        """
        return self._generate(self._read(inputs, classes), self.format.modalities, None, 0)

    def sample(
        self,
        count: int | None = None,
        *,
        density: str | None = None,
        classes: Any = None,
        seed: int = 0,
    ) -> Outputs:
        """Samples the prior and decodes to every modality; the modalities of one sample belong together.

        Args:
          count: number of samples; None: one, or one for each of ``classes``.
          density: what the latents are drawn from: "prior", or "flow_matching", the density that the run fitted to the
            latents of its training data (``--evaluation.densities``). None: the prior if there is one, else that
            density.
          classes: of a conditional model, the name of the class of each sample, or one for all.
          seed: seed of the samples. A larger ``count`` begins with the same samples.

        Raises:
          ValueError: the model has no such density, a class is missing or not known, or ``count`` is negative.
        """
        check_count("count", count, least=0)
        density = self._choose_density(density)
        if count is None:
            count = 1 if classes is None or isinstance(classes, str) else len(classes)
        labels = self._labels(classes, count)
        if not count:
            return {m: [] for m in self.format.modalities}
        padded = 1 << (count - 1).bit_length()  # few programs for many numbers
        labels = {name: np.resize(values, padded) for name, values in labels.items()}
        if density == "prior":
            prior = self._program("prior", lambda: jax.jit(self._functions.sample_prior, static_argnums=2))
            shared = prior(self.params, jax.random.key(seed), padded, labels.get("label"))
        else:
            shared = self._density.sample(padded, seed)
        return self.decode(np.asarray(shared)[:count], classes=classes, seed=seed)

    def _choose_density(self, name: str | None) -> str:
        """The density ``name``, or the default one for None. Raises ValueError: the model does not have it."""
        if name not in (None, "prior", "flow_matching"):
            raise ValueError(f"density must be prior or flow_matching, got {name!r}")
        if name == "flow_matching" and self._density is None:
            raise ValueError(
                f"{self.path} keeps no density of its latents: it is fitted at the end of a training with "
                "--evaluation.densities flow_matching, and not for conditional models; sample from the prior"
            )
        if self._functions.sample_prior is not None or name == "flow_matching":
            return name or "prior"
        if name == "prior" or self._density is None:
            raise ValueError(
                f"{self.path} has no prior to sample from: nothing in the training of {self.config.name!r} ties the "
                "latents to a distribution that can be sampled. A training with --evaluation.densities flow_matching "
                "keeps a density of the latents, which can be"
            )
        return "flow_matching"

    def interpolate(self, start: Any, end: Any, steps: int = 8, *, classes: Any = None) -> Outputs:
        """Decodes every modality at ``steps`` points of the straight line between two points of the latent space, both
        ends included.

        Args:
          start, end: latents ``[D]``, or an example by modality, such as ``{"image": "a.png"}``.
          steps: number of points, at least 2.
          classes: of a conditional model, the name of the class.
        """
        check_count("steps", steps, least=2)  # for both ends
        start, end = self._point(start, classes), self._point(end, classes)
        fraction = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
        return self.decode((1 - fraction) * start + fraction * end, classes=classes)

    def traverse(
        self, start: Any, dims: Any, values: Any, *, classes: Any = None
    ) -> dict[str, list[list[Any]]]:
        """Decodes every modality while one dimension of the latents varies and the others stay (a latent traversal).

        Args:
          start: latents ``[D]`` whose other dimensions stay, or an example by modality.
          dims: the dimensions to vary, one after the other, in 0..D-1.
          values: the values that each of them takes, such as ``(-2, -1, 0, 1, 2)``; most priors have mean 0 and
            standard deviation 1.
          classes: of a conditional model, the name of the class.

        Returns:
          By modality a list for each of ``dims``, with an output for each of ``values``.
        """
        if unknown := [dim for dim in dims if not 0 <= dim < self.dim]:
            raise ValueError(
                f"there is no dimension {unknown[0]}: they are numbered from 0 to {self.dim - 1}"
            )
        varied = np.tile(self._point(start, classes), (len(dims), len(values), 1))
        for k, dim in enumerate(dims):
            varied[k, :, dim] = values
        outputs = self.decode(varied.reshape(-1, self.dim), classes=classes)
        return {m: _chunks(x, len(values)) for m, x in outputs.items()}

    # Inputs

    def _read(self, inputs: Mapping[str, Any], classes: Any) -> InputSource | None:
        """The inputs as a data set that has all modalities, some of them missing everywhere; None: there are none."""
        by_modality = broadcast_inputs(collect_inputs(self.format, inputs))
        if not by_modality:
            raise ValueError(f"give inputs of at least one modality: {', '.join(self.format.modalities)}")
        count = len(next(iter(by_modality.values())))
        labels = self._labels(classes, count)
        if not any(len(values) for values in by_modality.values()):
            return None
        missing = {m: [None] * count for m in self.format.modalities if m not in by_modality}
        return InputSource({**by_modality, **missing}, self.format, labels)

    def _labels(self, classes: Any, count: int) -> dict[str, np.ndarray]:
        """The field of a batch with the classes of ``count`` examples; empty without a condition."""
        if not self.class_names:
            if classes is not None:
                raise ValueError(f"{self.path} is not conditional: it takes no classes")
            return {}
        known = ", ".join(self.class_names)
        if classes is None:
            raise ValueError(f"{self.path} is conditional: give the classes, of {known}")
        names = [classes] * count if isinstance(classes, str) else list(classes)
        labels = positions_of(names, self.class_names, "class", "classes")
        if len(names) != count:
            raise ValueError(f"there are {count} examples and {len(names)} classes")
        return {"label": labels}

    def _point(self, value: Any, classes: Any) -> np.ndarray:
        """Latents ``[D]``: ``value`` itself, or those of the example that it holds by modality."""
        if isinstance(value, Mapping):
            latents = self.encode(**value, classes=classes)
            if len(latents) != 1:
                raise ValueError(f"one example is needed, got {len(latents)}")
            return latents[0]
        latents = np.asarray(value)
        if latents.shape != (self.dim,) or latents.dtype.kind not in "iuf":
            raise ValueError(
                f"a point is latents of the shape ({self.dim},) or an example by modality, such as "
                f"{{'{self.format.modalities[0]}': …}}, got "
                + (type(value).__name__ if latents.dtype == object else f"the shape {latents.shape}")
            )
        return latents.astype(np.float32)

    # Functions of a batch. ``params``: {"model": parameters, "key": random key}; ``samples``: number; None: the mean.

    def _infer(self, params: Any, batch: RawBatch, samples: int | None) -> LatentSamples:
        """The latents given all modalities that are present."""
        observed = np.ones(len(self.format.modalities), bool)
        key = None if samples is None else params["key"]
        return self._vae.infer(params["model"], batch, observed, key, samples or 1)

    def encode_batch(self, params: Any, batch: RawBatch, samples: int | None) -> jax.Array:
        """The shared latents ``[B, samples, D]``."""
        return jnp.moveaxis(self._infer(params, batch, samples).shared, 0, 1)

    def _generate_batch(
        self, params: Any, batch: RawBatch, samples: int | None, targets: Sequence[str]
    ) -> RawBatch:
        """The modalities ``targets`` generated from the others, as fields ``[B, samples, ...]``."""
        return self._decode_latents(params["model"], self._infer(params, batch, samples).z, targets)

    def decode_batch(self, params: Any, batch: RawBatch, samples: int | None) -> RawBatch:
        """Every modality of the latents ``batch["shared"]``, as fields ``[B, 1, ...]``; those that are not shared are
        drawn with ``samples``."""
        # The noise is numbered from 0 in each batch: the key depends on the first example's index.
        key = None if samples is None else jax.random.fold_in(params["key"], batch["index"][0])
        z = self._functions.decoder_latents(params["model"], batch["shared"], key, batch.get("label"))
        return self._decode_latents(params["model"], z, self.format.modalities)

    def _decode_latents(self, params: Any, z: jax.Array, targets: Sequence[str]) -> RawBatch:
        """The modalities ``targets`` decoded from ``z [M, R, B, D']``, as fields ``[B, R, ...]`` of a batch."""
        samples, count = z.shape[1:3]
        generated = self._vae.decode(params, z, key=None)
        flat = {m: jnp.moveaxis(generated[m], 0, 1).reshape(-1, *generated[m].shape[2:]) for m in targets}
        tokenizer = self.format.transform.tokenizer
        ids = {} if tokenizer is None else {"end_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
        fields = as_batch(self.config, flat, **ids)
        return {
            name: x.reshape(count, samples, *x.shape[1:]) for name, x in fields.items() if name != "index"
        }

    # Compilation and conversion of outputs

    def _program(self, name: Any, make: Callable[[], Callable]) -> Callable:
        """The program of this name: ``make()`` at the first call and the same object later, so that it is compiled
        once."""
        if name not in self._programs:
            self._programs[name] = make()
        return self._programs[name]

    def _run(self, compute: Callable, source: Source, samples: int | None, seed: int, **options: Any) -> Any:
        """``compute(params, batch, samples=samples, **options)`` for all examples of ``source``."""
        name = (compute.__name__, samples, *options.values())
        program = self._program(name, lambda: functools.partial(compute, samples=samples, **options))
        params = {"model": self.params, "key": jax.random.key(seed)}
        batch_size = max(1, BATCH_SIZE // (samples or 1))
        return self.predict(program, source, params=params, batch_size=batch_size)

    def _generate(
        self, source: InputSource | None, targets: tuple[str, ...], samples: int | None, seed: int
    ) -> Outputs:
        """Generates the modalities ``targets`` of each example: a list of ``samples`` outputs; with None a single
        one."""
        if source is None:
            return {m: [] for m in targets}
        return self._to_outputs(
            self._run(self._generate_batch, source, samples, seed, targets=targets), samples
        )

    def _to_outputs(self, fields: RawBatch, samples: int | None) -> Outputs:
        """Converts generated fields ``[N, R, ...]`` to outputs: for each example a list of R; with ``samples`` None the
        only one."""
        flat = {name: x.reshape(-1, *x.shape[2:]) for name, x in fields.items()}
        outputs = {m: self._outputs.to_outputs(m, flat) for m in self.format.modalities if m in flat}
        return outputs if samples is None else {m: _chunks(x, samples) for m, x in outputs.items()}


def _chunks(values: list[Any], length: int) -> list[list[Any]]:
    """Cuts a list into lists of ``length`` values."""
    return [values[k : k + length] for k in range(0, len(values), length)] if length else []


def _cut_or_pad(x: Any, count: int) -> Any:
    """Cuts an array ``x [B, F, ...]`` to ``count`` frames, or pads it with zeros (False in a mask):
    ``[B, count, ...]``."""
    missing, library = max(0, count - x.shape[1]), jnp if isinstance(x, jax.Array) else np
    return library.pad(x[:, :count], ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2)))


class Autoencoder(LatentModel):
    """A trained autoencoder of one modality.

    ::

        model = load("runs/vae")
        model.encode(image=["a.png", "b.png"])  # [2, D]
        model.sample(4, seed=1)["image"][0].save("new.png")
    """

    kind = "vae"

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        metadata = run.checkpoint.metadata
        super().__init__(run, {metadata["modality"]: metadata["size"]})

    def _build(self) -> _ModelFunctions:
        config = from_json(AutoencoderModel, self.metadata["config"]["model"])
        ((modality, size),) = self.sizes.items()
        classes = self.metadata["classes"]
        vae = make_vae(config, modality, size, classes=classes)
        adapted = as_multimodal(vae, config, modality, classes)

        def decoder_latents(params, shared, key, labels):
            """``[1 modality, 1 sample, N, D']``; in a conditional model the class follows the latents."""
            if not config.conditional:
                return adapted.decoder_latents(params, shared, key)
            return jnp.concatenate([shared, labels.astype(jnp.float32)[:, None]], axis=-1)[None, None]

        return _ModelFunctions(
            config, adapted, config.latent, vae.sample_prior if config.has_prior else None, decoder_latents,
            config.conditional,
        )  # fmt: skip


class MultimodalAutoencoder(LatentModel):
    """A trained multimodal VAE: any modality from any others.

    ::

        model = load("runs/multimodal_vae")
        model.translate("text", image=["a.png", "b.png"])  # ["a red star", "a blue ring"]
        model.translate("image", text="a red star", count=4)[0][3].save("star.png")
    """

    kind = "multimodal_vae"
    actions = (*LatentModel.actions, "translate")

    def __init__(self, run: RestoredRun):
        """See `inference.load`."""
        metadata = run.checkpoint.metadata
        super().__init__(run, {m: metadata["sizes"][m] for m in metadata["modalities"]})

    def _build(self) -> _ModelFunctions:
        config = from_json(MultimodalVAEModel, self.metadata["config"]["model"])
        vae = make_multimodal_vae(config, self.sizes)
        sample_prior = lambda params, key, count, labels: vae.sample_prior(params, key, count)
        return _ModelFunctions(
            config, vae, config.shared_dim, sample_prior if config.has_prior else None,
            decoder_latents=lambda params, shared, key, labels: vae.decoder_latents(params, shared, key),
        )  # fmt: skip

    def translate(self, target: str, *, count: int | None = None, seed: int = 0, **sources: Any) -> list[Any]:
        """The modality ``target`` of each example from any others: ``translate("text", image="a.png")``.

        Args:
          target: name of the modality to generate.
          count: number of translations of each example, which then has a list of them, decoded from samples of the
            posterior; None: one translation, decoded from its mean.
          seed: of the samples.
          sources: as the inputs of `encode`.

        Raises:
          ValueError: there is no modality ``target``; or as in `encode`.
        """
        if target not in self.format.modalities:
            raise ValueError(
                f"this run has no modality {target!r} to translate into; it has {', '.join(self.format.modalities)}"
            )
        check_count("count", count, least=1)
        inputs = self._read(sources, None)
        for modality in self.format.modalities:
            if inputs is not None and kind_of(modality) == "text":
                warn_unknown_words(inputs.inputs[modality], self.format.transform.tokenize)
        return self._generate(inputs, (target,), count, seed)[target]


class MultimodalFlowModel(MultimodalAutoencoder):
    """A trained flow over the codes of several modalities: any modality from any others, as `MultimodalAutoencoder`.

    ::

        model = load("runs/multimodal_flow")
        model.translate("text", image=["a.png", "b.png"])  # ["a red star", "a blue ring"]
        model.sample(4)["image"]  # with captions, sketches and speech that belong to them

    The latents are the codes of all modalities; those of modalities that are missing are generated from the others. A
    translation is a sample: with ``count`` as many different ones, else one that is the same in every call.
    """

    kind = "multimodal_flow"

    def _build(self) -> _ModelFunctions:
        config = from_json(MultimodalFlowConfig, self.metadata["config"]["model"])
        flow = make_multimodal_flow(config, self.sizes)
        vae = flow.as_vae()
        return _ModelFunctions(
            config, vae, flow.dim,
            sample_prior=lambda params, key, count, labels: vae.sample_prior(params, key, count),
            decoder_latents=lambda params, shared, key, labels: vae.decoder_latents(params, shared, key),
        )  # fmt: skip

    def encode(
        self, *, samples: int | None = None, seed: int = 0, classes: Any = None, **inputs: Any
    ) -> np.ndarray:
        """Encodes examples, given any of their modalities, as the codes of all modalities: float32 ``[N, D]``. Those of
        missing modalities are generated.

        Args:
          samples: number of samples of the generated codes, ``[samples, N, D]``; None: one, the same in every call.
          seed: seed of the samples.
          classes: None; the model takes none.
          inputs: inputs by modality: ``image=…``, ``text=…``. Modalities that are left out, or None, are missing.

        Raises:
          ValueError: as in `LatentModel.encode`.
        """
        return super().encode(samples=samples, seed=seed, classes=classes, **inputs)

    def reconstruct(self, *, classes: Any = None, **inputs: Any) -> Outputs:
        """Encodes examples, given any of their modalities, and decodes the codes of all modalities: missing ones are
        generated.

        The arguments are those of `encode`.
        """
        return super().reconstruct(classes=classes, **inputs)

    def sample(
        self,
        count: int | None = None,
        *,
        density: str | None = None,
        classes: Any = None,
        seed: int = 0,
    ) -> Outputs:
        """Generates the codes of all modalities from noise and decodes them; the modalities of one sample belong
        together.

        The arguments are those of `LatentModel.sample`; the density "prior" is the flow's.
        """
        return super().sample(count, density=density, classes=classes, seed=seed)

    def translate(self, target: str, *, count: int | None = None, seed: int = 0, **sources: Any) -> list[Any]:
        """The modality ``target`` of each example from any others: ``translate("text", image="a.png")``.

        Args:
          target: name of the modality to generate.
          count: number of translations of each example, which then has a list of them; None: one translation, the same
            in every call.
          seed: of the samples.
          sources: as the inputs of `encode`.

        Raises:
          ValueError: there is no modality ``target``; or as in `encode`.
        """
        return super().translate(target, count=count, seed=seed, **sources)
