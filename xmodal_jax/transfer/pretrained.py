"""Starting from trained encoders: of Hugging Face checkpoints (``--image-encoder hf:PATH`` and its like), or of another
run (``--init-from RUN``).

An experiment does three things with them::

    config, pretrained = resolve_pretrained(config)              # their configuration becomes part of the model's
    method = pretrained.attach(method, tokenizer)                # training starts from their parameters
    optimizer = pretrained.set_learning_rates(optimizer, method)

Where they belong among the parameters is declared by the method (`types.EncoderSlot`).
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from xmodal_jax.core import trees
from xmodal_jax.data.text import Tokenizer, tokenizer_from_files
from xmodal_jax.models.lora import LoRA, with_lora
from xmodal_jax.models.towers import (
    AudioFeatures,
    make_encoder,
    pretrained_audio_features,
    read_pretrained_config,
)
from xmodal_jax.nets.encoders import (
    ENCODERS,
    ModuleConfig,
    PretrainedEncoderConfig,
    TextDecoderConfig,
    TransformerConfig,
    build_decoder,
)
from xmodal_jax.pretrained.clip import read_loss_parameters
from xmodal_jax.pretrained.files import Checkpoint, find_folder, open_checkpoint
from xmodal_jax.pretrained.load import read_parameters
from xmodal_jax.train.checkpoint import restore_run
from xmodal_jax.train.config import PretrainedConfig, RunConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import from_json
from xmodal_jax.types import GAN, MODALITIES, Batch, EncoderSlot, Method, Params

Config = TypeVar("Config", bound=PretrainedConfig)
Trained = TypeVar("Trained", Method, GAN)

AFTER_LAYERS = "transformer/norm|pooler|dense|last_norm|fc_norm|projector"
"""What pretrained encoders have after their layers: a regular expression of the names of these modules."""


class TrainedRun(NamedTuple):
    """The encoders (and the decoder) of another run."""

    params: Mapping[str, Params]
    """Parameters by the name of their `EncoderSlot`."""
    configs: Mapping[str, Any]
    """Configurations of encoders and decoder, by the same names."""
    features: AudioFeatures
    """The audio features that the encoder of audio takes."""
    tokenizer: Tokenizer | None
    """The tokenizer of the text encoder or decoder; None: there is neither."""
    source: str
    """The run's directory, for messages."""


def load_trained_run(run: pathlib.Path, *, seed: int | None = None) -> TrainedRun:
    """The encoders in a run's newest checkpoint, and its decoder of text and CTC head.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run has several seeds and ``seed`` is none of them, or it has no encoder.
    """
    restored = restore_run(run, seed=seed)
    model = restored.metadata["config"].get("model", {})
    slots = [slot for slot in read_slots(restored.metadata) if not slot.stacked]
    # Of several encoders of one kind the first one counts, such as that of "image" before that of "image_sketch".
    params = {slot.name: subtree(restored.params, slot.path) for slot in reversed(slots)}
    if not params:
        raise ValueError(f"{run} has no encoder of {', '.join(MODALITIES)}: give a run of another experiment")
    tables = {**ENCODERS, "decoder": TextDecoderConfig}
    configs = {name: from_json(tables[name], model[name]) for name in params if name in model}
    features = from_json(AudioFeatures, model["features"]) if "features" in model else AudioFeatures()
    files = restored.metadata.get("tokenizer")
    return TrainedRun(params, configs, features, tokenizer_from_files(files) if files else None, str(run))


def read_slots(metadata: Mapping[str, Any]) -> list[EncoderSlot]:
    """The encoders of a trained method, from the metadata of its checkpoint."""
    return [EncoderSlot(**{**slot, "fields": tuple(slot["fields"])}) for slot in metadata.get("encoders", [])]


NO_RUN = TrainedRun({}, {}, AudioFeatures(), None, "")


@dataclasses.dataclass(frozen=True)
class PretrainedEncoders:
    """The trained encoders that a configuration asks for, and how they are trained further. There may be none."""

    folders: Mapping[str, pathlib.Path]
    """Folders of Hugging Face checkpoints by the name of their `EncoderSlot`."""
    configs: Mapping[str, Any]
    """Configurations of all encoders, by the name of their `EncoderSlot`."""
    run: TrainedRun = NO_RUN
    """The encoders of another run; a checkpoint of the same name takes precedence."""
    lr_multiplier: float = 1.0
    """Learning rate of the encoders, as a multiple of that of the other parameters; 0 freezes them."""
    layer_decay: float = 1.0
    """Learning rate of each layer of the encoders, as a multiple of that of the layer above; 1: all layers learn
    equally fast."""
    lora: LoRA = LoRA()
    """Low-rank adapters in the encoders, whose other parameters are then frozen; rank 0: no adapters."""

    def attach(self, method: Trained, tokenizer: Tokenizer | None = None) -> Trained:
        """``method``, whose training starts from these encoders, with adapters in them where ``lora`` has a rank.

        Parameters that belong to a token of the vocabulary are copied token by token: one that the other run did not
        know keeps its random initialisation. Learned positions are copied as far as both encoders have them.

        ``tokenizer``: that of the method's texts.

        Raises:
          ValueError: a pretrained encoder of text reads other tokens than ``tokenizer`` makes.
        """
        self._check_tokenizer(tokenizer)
        slots = self._slots(method)
        if not slots:
            return method

        def load_pretrained(params: Params, batch: Batch) -> Params:
            """``params`` with the encoders' parameters from the checkpoints or the other run."""
            for slot in slots:
                initial = subtree(params, slot.path)
                if slot.name in self.folders:
                    checkpoint = open_checkpoint(self.folders[slot.name])
                    loaded = _read(checkpoint, slot, self.configs[slot.name], initial, batch)
                    if slot.head == "project":  # the checkpoint has the temperature that it was trained with
                        params = {
                            **params,
                            "loss": {**params["loss"], **_temperature(checkpoint, params["loss"])},
                        }
                else:
                    loaded = _copy(self.run, slot, initial, tokenizer)
                params = with_subtree(params, slot.path, loaded)
            return params

        return with_lora(method._replace(load_pretrained=load_pretrained), self.lora, [s.path for s in slots])

    def set_learning_rates(self, optimizer: Optimizer, method: Method | GAN) -> Optimizer:
        """``optimizer`` with the learning rates of these encoders in ``method``.

        They are ``lr_multiplier`` times that of the rest, and lower by ``layer_decay`` with each layer towards the
        inputs. With adapters (``lora``) the encoders are frozen, and the adapters learn like the rest.
        """
        multiplier = 0.0 if self.lora.rank else self.lr_multiplier
        rules = []
        for slot in self._slots(method):
            if slot.name not in (*self.folders, *MODALITIES):
                continue  # a decoder of another run goes on to learn like the rest
            # The optimizer of a GAN's generator sees the parameters of the generator alone.
            path = slot.path.partition("/")[2] if isinstance(method, GAN) else slot.path
            prefix = f"^{re.escape(path)}/"
            if slot.new_parts:
                prefix += f"(?!.*{slot.new_parts})"
            if self.layer_decay != 1.0 and slot.name in self.configs:
                depth = _layers(slot.name, self.configs[slot.name])
                rules += _decayed(prefix, multiplier, self.layer_decay, depth)
            else:
                rules.append((prefix, multiplier))
        if multiplier == 0.0:
            return dataclasses.replace(
                optimizer, freeze=(*optimizer.freeze, *(prefix for prefix, _ in rules))
            )
        if all(value == 1.0 for _, value in rules):
            return optimizer
        return dataclasses.replace(optimizer, lr_multipliers=(*rules, *optimizer.lr_multipliers))

    def _slots(self, method: Method | GAN) -> list[EncoderSlot]:
        return [slot for slot in method.encoders if slot.name in (*self.folders, *self.run.params)]

    def _check_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """Raises ValueError if another run's text encoder was pretrained with other tokens than ``tokenizer``'s."""
        config = self.configs.get("text")
        if not is_pretrained(config) or tokenizer is None or self.run.tokenizer is None:
            return
        if "text" not in self.folders and tokenizer.vocabulary() != self.run.tokenizer.vocabulary():
            raise ValueError(
                f"the text encoder of {self.run.source} reads the tokens that it was pretrained with: give --tokenizer "
                f"{self.run.source}/tokenizer"
            )


# -- configuration --------------------------------------------------------------------------------------


def resolve_pretrained(config: Config) -> tuple[Config, PretrainedEncoders]:
    """The configuration with its encoders replaced by the trained ones that its flags name, and these encoders.

    The flags are --image-encoder etc. and --init-from. Options that do not follow from a checkpoint, such as dropout,
    stay as they are.

    Raises:
      FileNotFoundError: there is no such checkpoint or run.
      ValueError: the flag of an encoder is not ``hf:`` and a folder or a hub's name, or the model has no encoder of
        its modality; or an option needs a trained encoder and there is none.
    """
    run = NO_RUN if getattr(config, "init_from", None) is None else load_trained_run(config.init_from)
    fields = encoder_fields(config.model)
    folders = find_folders(config, fields)
    options = _training_options(config)
    if not folders and run is NO_RUN:
        if options["lora"].rank or options["layer_decay"] != 1.0:
            raise ValueError(
                "--lora.rank and --layer-decay are for what was trained before: give --image-encoder (or another), or "
                "--init-from"
            )
        return config, PretrainedEncoders({}, {}, **options)
    configs = dict(run.configs)
    for name, folder in folders.items():
        configs[name] = as_pretrained(
            get_field(config.model, fields[name]), read_pretrained_config(name, folder)
        )
    model = config.model
    for name, part in configs.items():
        if name in fields:
            model = replace_field(model, fields[name], part)
    if "audio" in configs and "audio" in fields:
        model = _with_audio_features(config, model, configs["audio"] if "audio" in folders else None, run)
    return dataclasses.replace(config, model=model), PretrainedEncoders(folders, configs, run, **options)


def is_pretrained(config: Any) -> bool:
    """Whether a configuration is that of a pretrained encoder."""
    return isinstance(config, PretrainedEncoderConfig)


def as_pretrained(config: ModuleConfig, pretrained: ModuleConfig) -> Any:
    """``pretrained``, as it is found in a checkpoint, with the options of ``config`` that do not follow from a
    checkpoint, such as dropout."""
    if is_pretrained(pretrained):
        config = PretrainedEncoderConfig.in_place_of(config)
        sizes = ("architecture", "width", "depth", "heads", "frames_per_token")
    else:
        sizes = ("width", "depth", "heads", "mlp_ratio", "epsilon", "positions")
    return dataclasses.replace(config, **{name: getattr(pretrained, name) for name in sizes})


def _training_options(config: PretrainedConfig) -> dict[str, Any]:
    """The options of how the encoders are trained further; their defaults where the experiment lacks them."""
    return dict(
        lr_multiplier=getattr(config, "encoder_lr_multiplier", 1.0),
        layer_decay=getattr(config, "layer_decay", 1.0),
        lora=getattr(config, "lora", LoRA()),
    )


def find_folders(config: PretrainedConfig, allowed: Collection[str] | None = None) -> dict[str, pathlib.Path]:
    """The folders of the pretrained encoders that the flags ask for, by the name of their `EncoderSlot`.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a flag is not ``hf:`` and a folder or a hub's name, or it names none of the ``allowed`` encoders.
    """
    folders = {}
    for name, encoder in config.pretrained.items():
        if allowed is not None and name not in allowed:
            raise ValueError(f"this experiment takes no encoder of {name}: leave --{_flag(name)} out")
        if encoder.partition(":")[0] != "hf" or not encoder[3:]:
            raise ValueError(
                f"--{_flag(name)} is hf: and a folder or a hub's name, such as hf:google-bert/bert-base-uncased; "
                f"got {encoder!r}"
            )
        folders[name] = find_folder(encoder[3:])
    return folders


def _flag(name: str) -> str:
    return "text-decoder" if name == "decoder" else f"{name}-encoder"


def encoder_fields(model: Any) -> dict[str, str]:
    """Where a model's configuration has the encoders (and the decoder) that can be pretrained, by name.

    A configuration whose fields have other names, or lie deeper (``image.encoder``), says so in its class variable
    ``pretrained_fields``.
    """
    declared = getattr(model, "pretrained_fields", None)
    if declared is not None:
        return dict(declared)
    names = {field.name for field in dataclasses.fields(model)}
    return {name: name for name in (*MODALITIES, "decoder") if name in names}


def get_field(config: Any, path: str) -> Any:
    """The value of a field of nested dataclasses, such as ``image.encoder``."""
    for name in path.split("."):
        config = getattr(config, name)
    return config


def replace_field(config: Any, path: str, value: Any) -> Any:
    """Nested dataclasses with another value of a field, such as ``image.encoder``."""
    name, _, rest = path.partition(".")
    return dataclasses.replace(
        config, **{name: replace_field(getattr(config, name), rest, value) if rest else value}
    )


def _with_audio_features(config: RunConfig, model: Any, pretrained: Any, run: TrainedRun) -> Any:
    """``model`` with the audio features that its trained encoder takes.

    ``pretrained``: the encoder's configuration where it is of a checkpoint; None: it is of ``run``.
    """
    features = run.features
    if pretrained is not None:
        features = pretrained_audio_features(pretrained)
        if config.input.sample_rate != features.sample_rate:
            raise ValueError(
                f"--audio-encoder is pretrained on audio of {features.sample_rate} Hz: give --sample-rate "
                f"{features.sample_rate}, not {config.input.sample_rate}"
            )
    model = dataclasses.replace(model, features=features)
    if features.kind != "waveform":
        return model
    augment = dataclasses.replace(
        model.augment, time_masks=0, frequency_masks=0
    )  # SpecAugment is for spectrograms
    return dataclasses.replace(model, augment=augment)


# -- parameters -----------------------------------------------------------------------------------------


def subtree(params: Params, path: str) -> Params:
    """The parameters at a path, such as ``image/encoder``."""
    for name in path.split("/"):
        params = params[name]
    return params


def with_subtree(params: Params, path: str, part: Params) -> Params:
    """``params`` with ``part`` in place of the parameters at a path."""
    name, _, rest = path.partition("/")
    return {**params, name: with_subtree(params[name], rest, part) if rest else part}


def _read(checkpoint: Checkpoint, slot: EncoderSlot, config: Any, initial: Params, batch: Batch) -> Params:
    """A checkpoint's parameters in place of the ``initial`` ones, laid out on the devices like them."""
    if slot.name == "decoder":
        return _read_decoder(checkpoint, slot, config, initial)
    example = {slot.name: batch[slot.fields[0]]}
    module = make_encoder(slot.name, config, example, vocab_size=0, head=slot.head)
    if not slot.stacked:
        return _read_like(checkpoint, slot.name, module, initial)
    one = _read_like(checkpoint, slot.name, module, jax.tree.map(lambda x: x[0], initial))
    return jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), one, initial)


def _read_like(checkpoint: Checkpoint, name: str, module: Any, initial: Params) -> Params:
    """A checkpoint's parameters, laid out on the devices like those that they replace."""
    placed = trees.flat(initial)
    sharding = lambda path, _: placed[path].sharding
    return read_parameters(checkpoint, name, module, initial, sharding=sharding)[0]


def _read_decoder(checkpoint: Checkpoint, slot: EncoderSlot, config: Any, initial: Params) -> Params:
    """A language model's parameters; cross-attention that it does not have keeps its ``initial`` ones."""
    sizes = dict(
        vocab_size=len(initial["embed"]["embedding"]), max_length=len(initial["positions"]["embedding"])
    )
    cross = any("crossattention" in name for name in checkpoint.arrays)
    module = build_decoder(config, cross=cross, **sizes)
    if cross:
        return _read_like(checkpoint, "decoder", module, initial)
    flat = trees.flat(initial)
    known = trees.nested({path: leaf for path, leaf in flat.items() if not re.search(slot.new_parts, path)})
    return trees.nested({**flat, **trees.flat(_read_like(checkpoint, "decoder", module, known))})


def _temperature(checkpoint: Checkpoint, loss: Params) -> Params:
    """A checkpoint's inverse temperature and bias, as far as the ``loss`` has them."""
    names = {"logit_scale": "log_scale", "logit_bias": "bias"}
    values = {names[name]: jnp.float32(value) for name, value in read_loss_parameters(checkpoint).items()}
    return {name: value for name, value in values.items() if name in loss}


VOCABULARY_AXES = {"embed/embedding": 0, "logits/kernel": 1, "logits/bias": 0}
"""Parameters with an entry for each token of the vocabulary, and the axis of the tokens."""


def _copy(run: TrainedRun, slot: EncoderSlot, initial: Params, tokenizer: Tokenizer | None) -> Params:
    """The parameters of another run in place of the ``initial`` ones."""
    trained, names = trees.flat(run.params[slot.name]), set(trees.leaf_names(initial))
    # Another model may need less of a pretrained encoder, such as not what pools its tokens.
    pretrained = is_pretrained(run.configs.get(slot.name))
    if different := names - set(trained) if pretrained else names ^ set(trained):
        raise ValueError(
            f"{run.source}: its {slot.name} part and this one's differ in {sorted(different)[0]!r}: they need the same "
            "configuration"
        )

    def copy(name: str, x: jax.Array) -> jax.Array:
        """The other run's value of a parameter ``x``, fitted to the vocabulary and the number of positions here."""
        value = jnp.asarray(trained[name], x.dtype)
        if name in VOCABULARY_AXES:
            axis = VOCABULARY_AXES[name]
            rows = _copy_tokens(run, jnp.moveaxis(value, axis, 0), jnp.moveaxis(x, axis, 0), tokenizer)
            return jnp.moveaxis(rows, 0, axis)
        if name.startswith("positions") and value.shape[1:] == x.shape[1:]:
            length = min(len(value), len(x))
            return x.at[:length].set(value[:length])
        if value.shape != x.shape:
            raise ValueError(
                f"{run.source}: {slot.name}/{name} has shape {value.shape}, here it is {x.shape}: the data differ in "
                "size (such as --image-size), or the runs in their configuration"
            )
        return value

    return trees.map_with_name(copy, initial)


def _copy_tokens(
    run: TrainedRun, trained: jax.Array, initial: jax.Array, tokenizer: Tokenizer | None
) -> jax.Array:
    """``initial [V, ...]`` with the entries of the tokens that the other run knows as well."""
    if run.tokenizer is None or tokenizer is None:
        raise ValueError(f"{run.source}: it has no tokenizer for the part that reads or writes text")
    theirs, ours = run.tokenizer.vocabulary(), tokenizer.vocabulary()
    shared = [token for token in ours if token in theirs]
    if not shared:
        raise ValueError(f"{run.source}: its tokenizer and this one have no token in common")
    to, source = jnp.array([ours[token] for token in shared]), jnp.array([theirs[token] for token in shared])
    return initial.at[to].set(trained[source])


# -- learning rates -------------------------------------------------------------------------------------


def _layers(name: str, config: Any) -> int:
    """The number of layers of an encoder whose layers have separate parameters.

    Raises:
      ValueError: it has no layers, or scans them.
    """
    has_layers = isinstance(config, TransformerConfig | PretrainedEncoderConfig) and config.depth
    if not has_layers or config.scan_layers:
        raise ValueError(
            f"--layer-decay needs separate parameters for each block of a transformer: the {name} encoder has none, or "
            "scans them"
        )
    return config.depth


def _decayed(prefix: str, multiplier: float, decay: float, depth: int) -> list[tuple[str, float]]:
    """Learning-rate multipliers that are lower by ``decay`` with each layer below the last one."""
    last = depth - 1
    # One rule for the last layer and what follows it, because not every encoder has something there.
    top = (rf"{prefix}(.*/)?(transformer/layers_{last}|{AFTER_LAYERS})/", multiplier)
    layers = [
        (rf"{prefix}(.*/)?transformer/layers_{k}/", multiplier * decay ** (last - k)) for k in range(last)
    ]
    return [top, *layers, (prefix, multiplier * decay**depth)]
