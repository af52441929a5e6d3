"""Starting from what was trained before: another run's encoders (and decoder, where both have one) by ``--init-from
RUN``, pretrained encoders by ``--image-encoder hf:PATH`` and its like."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.core import trees
from xmodal_jax.data.pipeline import numeric_fields
from xmodal_jax.data.source import RawBatch
from xmodal_jax.data.text import Tokenizer, tokenizer_from_files
from xmodal_jax.models.contrastive import ContrastiveConfig
from xmodal_jax.models.lora import LoRA, with_lora
from xmodal_jax.models.towers import (
    AudioFeatures,
    features_field,
    head_within,
    make_encoder,
    prepare,
    pretrained_config,
    pretrained_features,
)
from xmodal_jax.nets.encoders import (
    ENCODERS,
    EncoderConfig,
    ModuleConfig,
    PretrainedEncoderConfig,
    TextDecoderConfig,
    TransformerConfig,
    build_decoder,
)
from xmodal_jax.pretrained.clip import read_loss_parameters
from xmodal_jax.pretrained.files import Checkpoint, find_folder, open_checkpoint
from xmodal_jax.pretrained.load import parameter_shapes, read_parameters
from xmodal_jax.train.checkpoint import restore_run
from xmodal_jax.train.config import PretrainedConfig, StartConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import from_json
from xmodal_jax.types import MODALITIES, Batch, Method, Params

Model = TypeVar("Model")
Config = TypeVar("Config", bound=StartConfig)

NO_LORA = LoRA()

CHUNK = 64
"""Examples whose features are computed at once."""

PARTS = (*MODALITIES, "decoder", "ctc")
"""What is carried over, by its name in the parameters."""

_WORDS = {"embed/embedding": 0, "logits/kernel": 1, "logits/bias": 0}
"""Parameters with an entry for each token of the vocabulary, and along which axis."""


AFTER = "transformer/norm|pooler|dense|last_norm|fc_norm|projector"
"""Names of what follows the layers of an encoder: regular expressions."""


class Encoders(NamedTuple):
    """The trained encoders of a run, and what else it has of `PARTS`."""

    params: Mapping[str, Params]
    """By the names of `PARTS`."""
    configs: Mapping[str, EncoderConfig | TextDecoderConfig]
    """Of those that have one."""
    features: AudioFeatures
    tokenizer: Tokenizer | None
    source: str
    folders: Mapping[str, pathlib.Path] = {}
    """Of pretrained encoders the checkpoint, by modality."""

    def configure(self, model: Model) -> Model:
        """A model's configuration with these encoders in place of its own (and their spectrogram, if they hear)."""
        own = {field.name for field in dataclasses.fields(model)}
        # What makes speech, and hears none, has a spectrogram of its own.
        hears = "audio" in self.configs and "audio" in own
        features: dict[str, Any] = {"features": self.features} if hears else {}
        if hears and self.features.kind == "waveform":  # SpecAugment is for spectrograms
            features["augment"] = dataclasses.replace(model.augment, time_masks=0, frequency_masks=0)
        if unread := sorted(set(self.folders) - own):
            _no_encoder(unread[0])
        configs = {name: config for name, config in self.configs.items() if name in own}
        for name in self.folders:
            configs[name] = as_pretrained(getattr(model, name), configs[name])
        return dataclasses.replace(model, **configs, **features)

    def optimize(self, optimizer: Optimizer, modalities: tuple[str, ...], config: StartConfig) -> Optimizer:
        """An optimizer with the learning rates that ``config`` asks for these encoders: multiplied by
        ``encoder_lr_multiplier`` (0 freezes them), lower with every layer towards the inputs, or none but that of
        adapters."""
        names = [m for m in modalities if m in self.folders or (m in self.params and m in MODALITIES)]
        if not names:
            return optimizer
        rate = 0.0 if config.lora.rank else config.encoder_lr_multiplier
        rules = []
        for name in names:
            # What a tower adds to its encoder is new.
            own = f"^{name}/" if name not in self.folders else f"^{name}/(?!(norm|hidden|project)/)"
            if name == "decoder":
                own += r"(?!.*/cross_)"
            if config.layer_decay != 1.0 and name in self.configs:
                rules += self._decayed(name, own, rate, config.layer_decay)
            else:
                rules.append((own, rate))
        if rate == 0.0:
            return dataclasses.replace(optimizer, freeze=(*optimizer.freeze, *(own for own, _ in rules)))
        if all(value == 1.0 for _, value in rules):
            return optimizer
        return dataclasses.replace(optimizer, lr_multipliers=(*rules, *optimizer.lr_multipliers))

    def _decayed(self, name: str, own: str, rate: float, decay: float) -> list[tuple[str, float]]:
        config = self.configs[name]
        has_layers = isinstance(config, (TransformerConfig, PretrainedEncoderConfig)) and config.depth
        if not has_layers or config.scan_layers:
            raise ValueError(
                f"--layer-decay needs layers of its own for each block of a transformer: the {name} encoder has none, "
                "or scans them"
            )
        last = config.depth - 1
        layers = [(rf"{own}(.*/)?transformer/layers_{k}/", rate * decay ** (last - k)) for k in range(last)]
        # In one rule, as not every encoder has something behind its layers.
        end = (rf"{own}(.*/)?(transformer/layers_{last}|{AFTER})/", rate)
        return [end, *layers, (own, rate * decay**config.depth)]

    def start(self, method: Method, tokenizer: Tokenizer | None, lora: LoRA = NO_LORA) -> Method:
        """``method``, initialised with these encoders under ``params[modality]``, and with adapters in them.

        What belongs to a word is carried over by the word: one that the other run did not know keeps its random
        start. Learned positions are carried over as far as both reach.
        """

        self._check_tokenizer(tokenizer)

        def init(key, batch):
            params = dict(method.init(key, batch))
            for name in self.params:
                if name in params:
                    params[name] = self._carry(name, params[name], tokenizer)
            return params

        started = method._replace(init=init, load_pretrained=self._read if self.folders else None)
        return with_lora(started, lora, (*self.params, *self.folders))

    def precompute(
        self, model: ContrastiveConfig, tokenize: Callable[[RawBatch], RawBatch], rate: float
    ) -> Callable[[RawBatch], RawBatch]:
        """A change of raw batches that adds what the frozen pretrained towers of a contrastive run make of them (see
        `models.towers.features_field`), so that it is computed once.

        Raises:
          ValueError: no pretrained encoder is frozen.
        """
        if not self.folders or rate != 0.0:
            raise ValueError(
                "--cache-features keeps what frozen pretrained encoders make of the data: give --image-encoder (or "
                "another) and --encoder-lr-multiplier 0"
            )
        others = [m for m in self.folders if self.configs[m].pool != "own"]
        if others:
            raise ValueError(
                f"--cache-features needs the encoders' own pools: leave --model.{others[0]}.pool out"
            )
        far = "project" if model.head == "own" else "pool"

        @functools.cache
        def programs(shapes: tuple) -> dict[str, tuple[Callable, Params]]:
            found = {}
            for name, folder in self.folders.items():
                example = {m: np.zeros((1, *shape), np.uint8) for m, shape in shapes}
                module = make_encoder(name, self.configs[name], example, vocab_size=0, far=far)
                params, _ = read_parameters(open_checkpoint(folder), name, module, parameter_shapes(module))

                def embed(params, batch, name=name, module=module):
                    inputs, mask = prepare(name, batch, model.features)
                    return module.apply({"params": params}, inputs, mask, method="embed").astype(jnp.float32)

                found[name] = jax.jit(embed), params
            return found

        def change(batch: RawBatch) -> RawBatch:
            read = numeric_fields(tokenize(batch))
            shapes = tuple((m, np.shape(read[m])[1:]) for m in ("image", "video") if m in read)
            added = {}
            for name, (embed, params) in programs(shapes).items():
                if name in read:
                    own = {field: read[field] for field in (name, f"{name}_mask") if field in read}
                    parts = [
                        np.asarray(embed(params, {k: v[i : i + CHUNK] for k, v in own.items()}))
                        for i in range(0, len(read[name]), CHUNK)
                    ]
                    added[features_field(name)] = np.concatenate(parts)
            return {**batch, **added}

        return change

    def _read(self, params: Params, batch: Batch) -> Params:
        """``params`` with what the checkpoints of pretrained encoders hold."""
        params = dict(params)
        for name, folder in self.folders.items():
            if name not in params:
                continue
            checkpoint, whole = open_checkpoint(folder), params[name]
            if name == "decoder":
                params[name] = _read_decoder(checkpoint, self.configs[name], whole)
                continue
            far = head_within(whole)
            module = make_encoder(name, self.configs[name], batch, vocab_size=0, far=far)
            read = _read_like(checkpoint, name, module, whole.get("encoder", whole))
            params[name] = {**whole, "encoder": read} if "encoder" in whole else read
            if far == "project":  # trained at a temperature of its own
                params["loss"] = {**params["loss"], **_temperature(checkpoint, params["loss"])}
        return params

    def _check_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """A pretrained encoder of text understands its own tokens alone."""
        config = self.configs.get("text")
        if not isinstance(config, PretrainedEncoderConfig) or tokenizer is None:
            return
        if "text" in self.params and self.tokenizer is not None:
            if tokenizer.vocabulary() != self.tokenizer.vocabulary():
                raise ValueError(
                    f"the text encoder of {self.source} reads the tokens that it was pretrained with: give --tokenizer "
                    f"{self.source}/tokenizer"
                )

    def _carry(self, modality: str, new: Params, tokenizer: Tokenizer | None) -> Params:
        old = trees.flat(self.params[modality])
        config = self.configs.get(modality)
        names = set(trees.leaf_names(new))
        # Of a pretrained encoder another model may need less: not what pools its tokens.
        missing = names - set(old) if isinstance(config, PretrainedEncoderConfig) else names ^ set(old)
        if missing:
            raise ValueError(
                f"{self.source}: its {modality} part and this one's differ in {sorted(missing)[0]!r}: they need the "
                "same configuration"
            )

        def one(name, x):
            value = jnp.asarray(old[name], x.dtype)
            if modality in ("text", "decoder", "ctc") and name in _WORDS:
                axis = _WORDS[name]
                words = self._words(jnp.moveaxis(value, axis, 0), jnp.moveaxis(x, axis, 0), tokenizer)
                return jnp.moveaxis(words, 0, axis)
            if name.startswith("positions") and value.shape[1:] == x.shape[1:]:
                both = min(len(value), len(x))
                return x.at[:both].set(value[:both])
            if value.shape != x.shape:
                raise ValueError(
                    f"{self.source}: {modality}/{name} has shape {value.shape}, here it is {x.shape}: the data differ "
                    "in size (such as --image-size), or the runs in their configuration"
                )
            return value

        return trees.map_with_name(one, new)

    def _words(self, old: jax.Array, new: jax.Array, tokenizer: Tokenizer | None) -> jax.Array:
        if self.tokenizer is None or tokenizer is None:
            raise ValueError(f"{self.source}: no tokenizer is kept beside what reads or writes text in it")
        theirs, ours = self.tokenizer.vocabulary(), tokenizer.vocabulary()
        shared = [word for word in ours if word in theirs]
        if not shared:
            raise ValueError(f"{self.source}: its tokenizer and this one have no token in common")
        rows = jnp.array([ours[w] for w in shared]), jnp.array([theirs[w] for w in shared])
        return new.at[rows[0]].set(old[rows[1]])


def as_pretrained(asked: ModuleConfig, found: ModuleConfig) -> Any:
    """The configuration that was ``found`` in a checkpoint, with the options that do not follow from it, such as
    dropout, as ``asked``."""
    if isinstance(found, PretrainedEncoderConfig):
        asked = PretrainedEncoderConfig.in_place_of(asked)
        sizes = ("architecture", "width", "depth", "heads", "frames_per_token")
    else:
        sizes = ("width", "depth", "heads", "mlp_ratio", "epsilon", "positions")
    return dataclasses.replace(asked, **{name: getattr(found, name) for name in sizes})


def _flag(modality: str) -> str:
    return "text-decoder" if modality == "decoder" else f"{modality}-encoder"


def _read_like(checkpoint: Checkpoint, modality: str, module: Any, drawn: Params) -> Params:
    """A checkpoint's parameters in place of those drawn, laid out as they are."""
    places = trees.flat(drawn)
    read, _ = read_parameters(
        checkpoint, modality, module, drawn, sharding=lambda path, _: places[path].sharding
    )
    return read


def _read_decoder(checkpoint: Checkpoint, config: TextDecoderConfig, drawn: Params) -> Params:
    """A language model's parameters; cross-attention that it has not keeps those drawn."""
    sizes = dict(vocab_size=len(drawn["embed"]["embedding"]), max_length=len(drawn["positions"]["embedding"]))
    cross = any("crossattention" in name for name in checkpoint.arrays)
    module = build_decoder(config, cross=cross, **sizes)
    if cross:
        return _read_like(checkpoint, "decoder", module, drawn)
    old = {name: part for name, part in trees.flat(drawn).items() if "/cross_" not in name}
    read = _read_like(checkpoint, "decoder", module, trees.nested(old))
    return trees.nested({**trees.flat(drawn), **trees.flat(read)})


def _temperature(checkpoint: Checkpoint, loss: Params) -> Params:
    """A checkpoint's inverse temperature and bias, of those that ``loss`` has."""
    names = {"logit_scale": "log_scale", "logit_bias": "bias"}
    found = {names[name]: jnp.float32(value) for name, value in read_loss_parameters(checkpoint).items()}
    return {name: value for name, value in found.items() if name in loss}


def starting_point(config: Config) -> tuple[Config, Encoders]:
    """A run's configuration with a model that has the encoders of ``--init-from`` and pretrained ones, and these
    encoders, which may be none.

    Raises:
      ValueError: an encoder's flag is not ``hf:`` and a folder or a hub's name, or no encoder of its modality.
    """
    found = _encoders(config)
    if found is NOTHING and (config.lora.rank or config.layer_decay != 1.0):
        raise ValueError(
            "--lora.rank and --layer-decay are for what was trained before: give --image-encoder (or another), or "
            "--init-from"
        )
    model = found.configure(config.model)
    chosen = {name: getattr(model, name) for name in found.folders}
    return dataclasses.replace(config, model=model), found._replace(configs={**found.configs, **chosen})


def _encoders(config: StartConfig) -> Encoders:
    run = NOTHING if config.init_from is None else load_encoders(config.init_from)
    folders = find_folders(config)
    if not folders:
        return run
    configs = {m: pretrained_config(m, folder) for m, folder in folders.items()}
    features = pretrained_features(configs["audio"]) if "audio" in folders else None
    if features is not None and config.input.sample_rate != features.sample_rate:
        raise ValueError(
            f"--audio-encoder is pretrained on audio of {features.sample_rate} Hz: give --sample-rate "
            f"{features.sample_rate}, not {config.input.sample_rate}"
        )
    params = {name: part for name, part in run.params.items() if name not in folders}
    return run._replace(
        params=params, configs={**run.configs, **configs}, features=features or run.features, folders=folders
    )


def find_folders(config: PretrainedConfig, allowed: tuple[str, ...] | None = None) -> dict[str, pathlib.Path]:
    """The folders of the pretrained encoders that are asked for, by modality.

    Raises:
      ValueError: a flag is not ``hf:`` and a folder or a hub's name, or its modality is none of those ``allowed``.
    """
    folders = {}
    for modality, given in config.pretrained.items():
        if given.partition(":")[0] != "hf" or not given[3:]:
            raise ValueError(
                f"--{_flag(modality)} is hf: and a folder or a hub's name, such as hf:google-bert/bert-base-uncased; "
                f"got {given!r}"
            )
        if allowed is not None and modality not in allowed:
            _no_encoder(modality)
        folders[modality] = find_folder(given[3:])
    return folders


def _no_encoder(modality: str) -> NoReturn:
    raise ValueError(f"this experiment takes no encoder of {modality}: leave --{_flag(modality)} out")


NOTHING = Encoders({}, {}, AudioFeatures(), None, "")
"""No encoders: a random start."""


def load_encoders(run: pathlib.Path, *, seed: int | None = None) -> Encoders:
    """The encoders in a run's newest checkpoint (its contrastive towers', or those of a fusion run).

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run has several seeds and ``seed`` is none of them, or it has no encoder.
    """
    restored = restore_run(run, seed=seed)
    model = restored.metadata["config"].get("model", {})
    params: dict[str, Any] = {}
    for name in PARTS:
        if name in restored.params and (name in model or name == "ctc"):
            params[name] = restored.params[name].get("encoder", restored.params[name])
    if not params:
        raise ValueError(f"{run} has no encoder of {', '.join(MODALITIES)}: give a run of another experiment")
    tables = {**ENCODERS, "decoder": TextDecoderConfig}
    configs = {name: from_json(tables[name], model[name]) for name in params if name in model}
    features = from_json(AudioFeatures, model["features"]) if "features" in model else AudioFeatures()
    files = restored.metadata.get("tokenizer")
    return Encoders(params, configs, features, tokenizer_from_files(files) if files else None, str(run))
