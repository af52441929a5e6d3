"""Starting from trained encoders: of Hugging Face checkpoints (``--image-encoder hf:PATH`` and its like), or of other
runs (``--image-encoder run:RUN`` for one encoder, ``--init-from RUN`` for all).

An experiment uses them in three steps::

    config, pretrained = resolve_pretrained(config)              # their configuration becomes part of the model's
    method = pretrained.attach(method, tokenizer)                # training starts from their parameters
    optimizer = pretrained.set_learning_rates(optimizer, method)

Where they belong among the parameters is declared by the method (`types.EncoderSlot`).
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from xmodal_jax.core import trees
from xmodal_jax.core.nesting import nested, value_at
from xmodal_jax.core.parts import parts_of
from xmodal_jax.data.media import DEFAULT_RESIZE
from xmodal_jax.data.text import Tokenizer, tokenizer_from_files
from xmodal_jax.models.lora import LoRA, with_lora
from xmodal_jax.models.towers import (
    AudioFeatures,
    make_encoder,
    max_audio_seconds,
    pretrained_audio_features,
    read_pretrained_config,
)
from xmodal_jax.nets.custom import import_object
from xmodal_jax.nets.encoders import (
    ENCODERS,
    CustomEncoderConfig,
    ModuleConfig,
    PretrainedEncoderConfig,
    TextDecoderConfig,
    TransformerConfig,
    build_decoder,
)
from xmodal_jax.pretrained.architectures import architecture
from xmodal_jax.pretrained.clip import read_loss_parameters
from xmodal_jax.pretrained.files import Checkpoint, find_folder, open_checkpoint
from xmodal_jax.pretrained.images import largest_image_side, resize_settings
from xmodal_jax.pretrained.load import parse_config, read_parameters
from xmodal_jax.train.checkpoint import restore_run
from xmodal_jax.train.config import PretrainedConfig, RunConfig
from xmodal_jax.train.optim import Optimizer
from xmodal_jax.train.run import from_json
from xmodal_jax.types import GAN, MODALITIES, Batch, EncoderSlot, Method, Params

Config = TypeVar("Config", bound=PretrainedConfig)
Run = TypeVar("Run", bound=RunConfig)
Trained = TypeVar("Trained", Method, GAN)

AFTER_LAYERS = "transformer/norm|pooler|dense|last_norm|fc_norm|projector"
"""Regular expression: the modules that a pretrained encoder has after its transformer layers."""


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
    text_length: int | None = None
    """The most tokens of a text that it was trained on; None: it has no texts."""
    text_cleanup: str = "none"
    """Preprocessing of its texts (``--text-cleanup``)."""
    image_sizes: Mapping[str, int] = MappingProxyType({})
    """Side in pixels of the images that it was trained on, by modality ("image", "video"); those that are square."""


def load_trained_run(run: pathlib.Path, *, seed: int | None = None) -> TrainedRun:
    """The encoders in a run's newest checkpoint, and its decoder of text and CTC head.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the run has several seeds and ``seed`` is none of them, or it has no encoder.
    """
    restored = restore_run(run, seed=seed)
    model = restored.metadata["config"].get("model", {})
    slots = [slot for slot in read_slots(restored.metadata) if not slot.stacked]
    # Where several slots have one name, such as the encoders of "image" and "image_sketch", the first one counts: the
    # reversed order lets it overwrite the others.
    params = {slot.name: value_at(restored.params, slot.path) for slot in reversed(slots)}
    if not params:
        raise ValueError(f"{run} has no encoder of {', '.join(MODALITIES)}: give a run of another experiment")
    config_types = {**ENCODERS, "decoder": TextDecoderConfig}
    configs = {name: from_json(config_types[name], model[name]) for name in params if name in model}
    features = from_json(AudioFeatures, model["features"]) if "features" in model else AudioFeatures()
    files = restored.metadata.get("tokenizer")
    return TrainedRun(
        params,
        configs,
        features,
        tokenizer_from_files(files) if files else None,
        str(run),
        text_length=restored.metadata.get("max_length"),
        text_cleanup=restored.metadata["config"].get("text_cleanup", "none"),
        image_sizes=_image_sizes(restored.metadata.get("shapes", {})),
    )


def _image_sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """`TrainedRun.image_sizes` of the shapes of a run's examples: ``[height, width, channels]`` for images, with frames
    before for videos."""
    sides = {name: tuple(shapes[name][-3:-1]) for name in ("image", "video") if name in shapes}
    return {name: height for name, (height, width) in sides.items() if height == width}


def read_slots(metadata: Mapping[str, Any]) -> list[EncoderSlot]:
    """The encoders of a trained method, from the metadata of its checkpoint."""
    return [EncoderSlot(**{**slot, "fields": tuple(slot["fields"])}) for slot in metadata.get("encoders", [])]


@dataclasses.dataclass(frozen=True)
class PretrainedEncoders:
    """The trained encoders that a configuration asks for, and how they are trained further. There may be none."""

    folders: Mapping[str, pathlib.Path]
    """Folders of Hugging Face checkpoints by the name of their `EncoderSlot`."""
    configs: Mapping[str, Any]
    """Configurations of all encoders, by the name of their `EncoderSlot`."""
    runs: Mapping[str, TrainedRun] = dataclasses.field(default_factory=dict)
    """The other runs that encoders (and the decoder) come from, by the name of their `EncoderSlot`; a checkpoint of the
    same name takes precedence."""
    lr_multiplier: float = 1.0
    """Learning rate of the encoders, as a multiple of that of the other parameters; 0 freezes them."""
    layer_decay: float = 1.0
    """Learning rate of each layer of the encoders, as a multiple of that of the layer above; 1: all layers learn
    equally fast."""
    lora: LoRA = LoRA()
    """Low-rank adapters in the encoders, whose other parameters are then frozen; rank 0: no adapters."""

    def attach(self, method: Trained, tokenizer: Tokenizer | None = None) -> Trained:
        """``method``, whose training starts from these encoders, with adapters in them where ``lora`` has a rank.

        The method declares places for pretrained encoders (`EncoderSlot`). They are read from checkpoint folders
        (``self.folders``), or copied from other runs (``self.runs``).

        From another run, parameters of the vocabulary (such as token embeddings) are copied token by token; a token
        that the other run did not know keeps its random initialisation. Learned position embeddings are copied up to
        the shorter of the two lengths.

        ``tokenizer``: of the method's texts; None: it has none.

        Raises:
          ValueError: a pretrained encoder of text reads other tokens than ``tokenizer`` makes.
        """
        self._check_tokenizer(tokenizer)
        slots = self._slots(method)
        if not slots:
            return method

        def load_pretrained(params: Params, batch: Batch) -> Params:
            """``params`` with the encoders' parameters from the checkpoints or the other run.

            ``batch``: of the method's data, for the shapes of the encoders' inputs.
            """
            for slot in slots:
                initial = value_at(params, slot.path)
                if slot.name in self.folders:
                    checkpoint = open_checkpoint(self.folders[slot.name])
                    loaded = _read(checkpoint, slot, self.configs[slot.name], initial, batch)
                    # The encoder's output is the checkpoint's own projection to its embedding space: the temperature
                    # belongs to that space and is read too.
                    if slot.head == "project":
                        loss_params = {**params["loss"], **_temperature(checkpoint, params["loss"])}
                        params = {**params, "loss": loss_params}
                else:
                    loaded = copy_from_run(self.runs[slot.name], slot, initial, tokenizer)
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
                continue  # the decoder of another run, which has the learning rate of the other parameters
            # The optimizer of a GAN's generator has paths that begin within the generator.
            path = slot.path.partition("/")[2] if isinstance(method, GAN) else slot.path
            prefix = f"^{re.escape(path)}/"
            if slot.new_parts:  # modules that the checkpoint lacks learn like the other parameters
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
        """The method's encoders (and decoder) for which there are trained parameters."""
        return [slot for slot in method.encoders if slot.name in (*self.folders, *self.runs)]

    def _check_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """Raises ValueError if the text encoder of another run is a pretrained one (BERT or the like), but
        ``tokenizer`` has another vocabulary than it was pretrained with."""
        config, run = self.configs.get("text"), self.runs.get("text")
        if not is_pretrained(config) or tokenizer is None or run is None or run.tokenizer is None:
            return
        if "text" not in self.folders and tokenizer.vocabulary() != run.tokenizer.vocabulary():
            raise ValueError(
                f"the text encoder of {run.source} reads the tokens that it was pretrained with: give --tokenizer "
                f"{run.source}/tokenizer"
            )


# -- configuration --------------------------------------------------------------------------------------


def resolve_pretrained(config: Config) -> tuple[Config, PretrainedEncoders]:
    """Finds the trained encoders that the flags name: --image-encoder etc. and --init-from. The flag of one encoder
    counts where both name one.

    Returns:
      The configuration with the configurations of these encoders in its model, and the encoders. Options that a
      checkpoint does not decide, such as dropout, stay as they are.

    Raises:
      FileNotFoundError: there is no such checkpoint or run.
      ValueError: the flag of an encoder names neither a checkpoint (``hf:``) nor a run (``run:``), or the model or that
        run has no encoder of its modality; or an option needs a trained encoder and there is none.
    """
    fields = encoder_fields(config.model)
    folders = find_folders(config, fields, takes_runs=True)
    runs = _load_runs(config)
    config = with_own_encoders(config, fields)
    options = _training_options(config)
    if not folders and not runs:
        if options["lora"].rank or options["layer_decay"] != 1.0:
            raise ValueError(
                "--lora.rank and --layer-decay are for what was trained before: give --image-encoder (or another), or "
                "--init-from"
            )
        return config, PretrainedEncoders({}, {}, **options)
    config = _with_inputs_of_runs(config, runs)
    configs = {name: run.configs[name] for name, run in runs.items() if name in run.configs}
    for name, folder in folders.items():  # a checkpoint takes precedence over the other run
        configs[name] = as_pretrained(
            get_field(config.model, fields[name]), read_pretrained_config(name, folder)
        )
    model = config.model
    for name, encoder_config in configs.items():
        if name in fields:  # the other run may have encoders that this model has no place for
            model = replace_field(model, fields[name], encoder_config)
    config = with_image_settings(config, {name: configs[name] for name in folders})
    if "audio" in configs and "audio" in fields:
        # A checkpoint's audio encoder determines by its architecture what features it takes; another run has stored the
        # features that its encoder was trained on.
        from_checkpoint = configs["audio"] if "audio" in folders else None
        model = _with_audio_features(config, model, pretrained=from_checkpoint, run=runs.get("audio"))
    return dataclasses.replace(config, model=model), PretrainedEncoders(folders, configs, runs, **options)


def _load_runs(config: PretrainedConfig) -> dict[str, TrainedRun]:
    """The runs that ``--init-from`` and flags such as ``--image-encoder run:RUN`` name, by the names of the
    `EncoderSlot` that they fill.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: a run has no encoder of the modality that it is named for.
    """
    runs: dict[str, TrainedRun] = {}
    if getattr(config, "init_from", None) is not None:
        run = load_trained_run(config.init_from)
        runs = dict.fromkeys(run.params, run)
    for name, folder in config.encoder_runs.items():
        run = load_trained_run(folder)
        if name not in run.params:
            raise ValueError(
                f"--{_flag(name)} run:{folder}: that run has no encoder of {name}, but of {', '.join(run.params)}"
            )
        runs[name] = run
    return runs


def _with_inputs_of_runs(config: Config, runs: Mapping[str, TrainedRun]) -> Config:
    """``config`` with the inputs that the encoders of flags such as ``--text-encoder run:RUN`` were trained on, unless
    it says otherwise: images of the same size, and texts of the same length.

    Raises:
      ValueError: that run has read its texts in another form.
    """
    sizes = [runs[name].image_sizes.get(name) for name in config.encoder_runs]
    size = next((size for size in sizes if size is not None), None)
    if config.input.image_size is None and size is not None:
        config = dataclasses.replace(config, input=dataclasses.replace(config.input, image_size=size))
    if "text" not in config.encoder_runs:
        return config
    run = runs["text"]
    if run.text_cleanup != config.text_cleanup:
        raise ValueError(
            f"--text-encoder run:{run.source} was trained with --text-cleanup {run.text_cleanup}: give it here too"
        )
    return config if config.text_length else dataclasses.replace(config, text_length=run.text_length)


def with_own_encoders(config: Config, fields: Mapping[str, str]) -> Config:
    """The configuration whose model has the encoders that the flags name by ``module:PACKAGE.MODULE:NAME``.

    ``fields``: the path of each encoder within the model's configuration, by modality (see `encoder_fields`).

    Raises:
      ValueError: the model has no encoder of the modality, or there is no such module.
    """
    for name in config.own_encoders:
        if name not in fields:
            raise ValueError(f"this experiment takes no encoder of {name}: leave --{_flag(name)} out")
    if not config.own_encoders:
        return config
    model = config.model
    for name, spec in config.own_encoders.items():
        import_object(spec)
        encoder = CustomEncoderConfig.in_place_of(get_field(model, fields[name]))
        model = replace_field(model, fields[name], dataclasses.replace(encoder, module=spec))
    return dataclasses.replace(config, model=model)


def pretrained_remarks(config: Any, flag: str = "-") -> list[str]:
    """Sentences on unexpected behaviour of the pretrained encoders within a configuration, which their checkpoints
    decide, such as another pool.

    ``config``: a dataclass, whose fields are searched as well, or any other value. ``flag``: its flag on the command
    line, such as ``--model`` or ``--model.text``; "-" for the whole configuration, whose field ``model`` has the flag
    ``--model``.
    """
    if is_pretrained(config):
        return [f"{flag} hf: {remark}" for remark in _remarks(config, flag)] if config.architecture else []
    if not dataclasses.is_dataclass(config):
        return []
    separator = "-" if flag == "-" else "."
    names = [
        (field.name, f"{flag}{separator}{field.name.replace('_', '-')}")
        for field in dataclasses.fields(config)
    ]
    return [remark for name, path in names for remark in pretrained_remarks(getattr(config, name), path)]


def _remarks(config: PretrainedEncoderConfig, flag: str) -> list[str]:
    """The remarks on one encoder, without its name. ``flag``: that of its configuration, such as ``--model.text``."""
    parsed, remarks = parse_config(config.architecture), []
    sentence = getattr(parsed, "sentence", None)
    has_head = getattr(getattr(parsed, "vision_config", parsed), "vision_use_head", True)
    other = f"{flag}.pool chooses another pool"
    reads_text = config.max_tokens is not None  # a model of images and texts has one processor for both
    if config.pool == "own" and sentence is not None and sentence.pooling:
        length = ", scaled to length 1" if sentence.normalize else ""
        source = getattr(sentence, "assumed", "as its sentence-transformers files say")
        remarks.append(f"pools by {' and '.join(sentence.pooling)}{length}, {source}; {other}")
    elif config.pool == "own" and not getattr(parsed, "has_pooler", True):
        remarks.append(
            f"has no layers for its pool in the checkpoint, so that it is the first token; {other}"
        )
    elif config.pool == "own" and not has_head:
        remarks.append(
            f"has no layers for its pool in the checkpoint, so that it is the mean of the tokens; {other}"
        )
    elif config.pool == "own" and reads_text and architecture("text", parsed.model_type).pooler is not None:
        remarks.append(
            "pools by the checkpoint's dense layer on the first token, as no files of sentence-transformers say "
            f"otherwise; {other} (a sentence encoder's is usually the mean)"
        )
    fit, resample, centre = resize_settings(parsed)
    if not reads_text and (fit or "crop", resample or "bicubic", centre or 1.0) != DEFAULT_RESIZE:
        cropped = None if centre in (None, 1.0) else f"keeping {centre:.4g} of the resized side"
        steps = " and ".join(filter(None, (fit, resample, cropped)))
        remarks.append(
            f"has a processor that resizes images by {steps}: so are files resized, unless --image-fit, "
            "--resample and --image-centre say otherwise"
        )
    if sentence is not None and sentence.lower:
        remarks.append("was trained on texts in lower case: --text-cleanup lower makes them so")
    if sentence is not None and sentence.prompt:
        remarks.append(
            f"was trained with {sentence.prompt!r} before each text, which is not added to captions"
        )
    return remarks


def with_image_settings(config: Run, encoders: Mapping[str, Any]) -> Run:
    """``config``, whose images are resized as a pretrained encoder's processor does, unless its options say otherwise.

    ``encoders``: configurations of pretrained encoders by modality; that of images counts, or else that of videos.

    Raises:
      ValueError: the images have one channel, or the processor's settings make no sense.
    """
    encoder = encoders.get("image", encoders.get("video"))
    if encoder is None:
        return config
    if config.input.channels != 3:
        raise ValueError(
            f"pretrained encoders of images take 3 colour channels: leave --channels {config.input.channels} out"
        )
    parsed = parse_config(encoder.architecture)
    fit, resample, centre = resize_settings(parsed)
    side = largest_image_side(parsed)
    data = config.input
    data = dataclasses.replace(
        data,
        image_fit=fit if data.image_fit is None else data.image_fit,
        resample=resample if data.resample is None else data.resample,
        image_centre=centre if data.image_centre is None else data.image_centre,
        largest_side=side if data.largest_side is None else data.largest_side,
    )
    return dataclasses.replace(config, input=data)


def is_pretrained(config: Any) -> bool:
    """Whether a configuration is that of a pretrained encoder."""
    return isinstance(config, PretrainedEncoderConfig)


def as_pretrained(config: ModuleConfig, pretrained: ModuleConfig) -> Any:
    """``config`` with the sizes of a checkpoint's encoder; its other options, such as dropout, stay.

    ``pretrained``: the configuration that was read from the checkpoint.
    """
    if is_pretrained(pretrained):
        config = PretrainedEncoderConfig.in_place_of(config)
        sizes = ("architecture", "width", "depth", "heads", "frames_per_token", "max_tokens")
    else:
        sizes = ("width", "depth", "heads", "mlp_ratio", "epsilon", "positions", "max_tokens")
    return dataclasses.replace(config, **{name: getattr(pretrained, name) for name in sizes})


def _training_options(config: PretrainedConfig) -> dict[str, Any]:
    """How the encoders are trained further, as keyword arguments of `PretrainedEncoders`; the defaults where the
    experiment does not have the option."""
    return dict(
        lr_multiplier=getattr(config, "encoder_lr_multiplier", 1.0),
        layer_decay=getattr(config, "layer_decay", 1.0),
        lora=getattr(config, "lora", LoRA()),
    )


def find_folders(
    config: PretrainedConfig, allowed: Collection[str] | None = None, *, takes_runs: bool = False
) -> dict[str, pathlib.Path]:
    """The folders of the pretrained encoders that the flags ask for, by the name of their `EncoderSlot`; an encoder of
    the hub is downloaded.

    ``allowed``: modalities (and "decoder") whose encoders the experiment can use; None: all. ``takes_runs``: whether it
    can also use the encoders of runs (``run:RUN``), which are then left out here.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a flag is not ``hf:`` and a folder or a hub's name, or it names none of the ``allowed`` encoders.
    """
    folders = {}
    for name, encoder in config.pretrained.items():
        is_run = takes_runs and name in config.encoder_runs
        if (
            not is_run
            and name in MODALITIES
            and PretrainedEncoderConfig.name not in parts_of(ENCODERS.get(name))
        ):
            raise ValueError(
                f"there are no pretrained encoders of {name}: leave --{_flag(name)} out, or name one of your own by "
                "module:PACKAGE.MODULE:NAME"
            )
        if allowed is not None and name not in allowed:
            raise ValueError(f"this experiment takes no encoder of {name}: leave --{_flag(name)} out")
        if is_run:
            continue
        if encoder.partition(":")[0] != "hf" or not encoder[3:]:
            of_run = "run: and the directory of a run, or " if takes_runs and name in MODALITIES else ""
            raise ValueError(
                f"--{_flag(name)} is hf: and a folder or a hub's name, such as hf:google-bert/bert-base-uncased, or "
                f"{of_run}module:PACKAGE.MODULE:NAME; got {encoder!r}"
            )
        folders[name] = find_folder(encoder[3:])
    return folders


def _flag(name: str) -> str:
    return "text-decoder" if name == "decoder" else f"{name}-encoder"


def encoder_fields(model: Any) -> dict[str, str]:
    """The fields of a model's configuration that hold an encoder (or decoder) which can be pretrained: paths by
    modality (the decoder's by "decoder").

    They are the fields named after the modalities, unless the configuration has the class variable
    ``pretrained_fields``, such as ``{"image": "image.encoder"}``.
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
    """A copy of nested dataclasses with another value of the field at ``path``, such as ``image.encoder``."""
    name, _, path_below = path.partition(".")
    if path_below:
        value = replace_field(getattr(config, name), path_below, value)
    return dataclasses.replace(config, **{name: value})


def _with_audio_features(config: RunConfig, model: Any, *, pretrained: Any, run: TrainedRun | None) -> Any:
    """``model`` with the audio features (spectrogram or waveform) that its trained encoder takes.

    ``pretrained``: the audio encoder's configuration if it comes from a Hugging Face checkpoint; None: the encoder
    comes from ``run``, with ``run.features``.
    """
    if pretrained is None:
        features = run.features
    else:
        features = pretrained_audio_features(pretrained)
        if config.input.sample_rate != features.sample_rate:
            raise ValueError(
                f"--audio-encoder is pretrained on audio of {features.sample_rate} Hz: give --sample-rate "
                f"{features.sample_rate}, not {config.input.sample_rate}"
            )
        limit = max_audio_seconds(pretrained)
        if limit is not None and config.input.max_seconds > limit:
            raise ValueError(
                f"--audio-encoder has positions for {limit:g} seconds: give --max-seconds {limit:g} or less, not "
                f"{config.input.max_seconds:g}"
            )
    model = dataclasses.replace(model, features=features)
    if features.kind != "waveform":
        return model
    # No SpecAugment, which masks parts of a spectrogram.
    augment = dataclasses.replace(model.augment, time_masks=0, frequency_masks=0)
    return dataclasses.replace(model, augment=augment)


# -- parameters -----------------------------------------------------------------------------------------


def with_subtree(params: Params, path: str, replacement: Params) -> Params:
    """``params`` with other parameters at ``path``, such as ``image/encoder``."""
    name, _, path_below = path.partition("/")
    if path_below:
        replacement = with_subtree(params[name], path_below, replacement)
    return {**params, name: replacement}


def _read(checkpoint: Checkpoint, slot: EncoderSlot, config: Any, initial: Params, batch: Batch) -> Params:
    """The parameters of a slot from a Hugging Face checkpoint, laid out on the devices like the ``initial`` ones.

    ``slot``: the place of the encoder in the method's parameters. ``config``: the encoder's configuration. ``batch``:
    of the method's data, for the shapes of the inputs.
    """
    if slot.name == "decoder":
        return _read_decoder(checkpoint, slot, config, initial)
    example = {slot.name: batch[slot.fields[0]]}
    # vocab_size=0: there is no tokenizer here whose size has to fit the encoder.
    module = make_encoder(slot.name, config, example, vocab_size=0, head=slot.head)
    if not slot.stacked:
        return _read_like(checkpoint, slot.name, module, initial)
    # Several encoders of one kind, stacked along the first axis: all start from the same parameters.
    params = _read_like(checkpoint, slot.name, module, jax.tree.map(lambda x: x[0], initial))
    return jax.tree.map(lambda x, stacked: jnp.broadcast_to(x, stacked.shape), params, initial)


def _read_like(checkpoint: Checkpoint, name: str, module: Any, initial: Params) -> Params:
    """A checkpoint's parameters for ``module``, laid out on the devices like the ``initial`` ones.

    ``name``: the encoder's modality, or "decoder".
    """
    initial_by_path = trees.flat(initial)
    # From a parameter's path and shape to its sharding.
    sharding = lambda path, _: initial_by_path[path].sharding
    params, _ = read_parameters(checkpoint, name, module, initial, sharding=sharding)
    return params


def _read_decoder(checkpoint: Checkpoint, slot: EncoderSlot, config: Any, initial: Params) -> Params:
    """A decoder's parameters from the checkpoint of a language model. Such a model may have no cross-attention, which
    then keeps its ``initial`` parameters.

    ``slot``: the decoder's place in the method's parameters; its ``new_parts`` is a regular expression for what the
    checkpoint may lack, the cross-attention. ``config``: the decoder's configuration.
    """
    sizes = dict(
        vocab_size=len(initial["embed"]["embedding"]), max_length=len(initial["positions"]["embedding"])
    )
    has_cross_attention = any("crossattention" in name for name in checkpoint.arrays)
    module = build_decoder(config, cross=has_cross_attention, **sizes)
    if has_cross_attention:
        return _read_like(checkpoint, "decoder", module, initial)
    flat = trees.flat(initial)
    in_checkpoint = {path: leaf for path, leaf in flat.items() if not re.search(slot.new_parts, path)}
    loaded = _read_like(checkpoint, "decoder", module, nested(in_checkpoint))
    return nested({**flat, **trees.flat(loaded)})


def _temperature(checkpoint: Checkpoint, loss: Params) -> Params:
    """The inverse temperature and the bias of the logits in a CLIP or SigLIP checkpoint, by the names of the parameters
    of ``loss``; one that ``loss`` does not have is left out."""
    names_here = {"logit_scale": "log_scale", "logit_bias": "bias"}  # by their names in the checkpoint
    values = {
        names_here[name]: jnp.float32(value) for name, value in read_loss_parameters(checkpoint).items()
    }
    return {name: value for name, value in values.items() if name in loss}


VOCABULARY_AXES = {"embed/embedding": 0, "logits/kernel": 1, "logits/bias": 0}
"""Parameters with an entry for each token of the vocabulary, and the axis of the tokens."""


def copy_from_run(run: TrainedRun, slot: EncoderSlot, initial: Params, tokenizer: Tokenizer | None) -> Params:
    """The parameters of a slot from another run, in place of the ``initial`` ones.

    ``slot``: the place of an encoder or decoder in the method's parameters. ``tokenizer``: of this run; None: it has
    none.

    Raises:
      ValueError: the other run's part has other parameters, or other shapes.
    """
    trained, names = trees.flat(run.params[slot.name]), set(trees.leaf_names(initial))
    if is_pretrained(run.configs.get(slot.name)):
        # This model may use less of a pretrained encoder than the other run's, such as its tokens without the pool.
        different = names - set(trained)
    else:
        different = names ^ set(trained)  # those that only one of the two has
    if different:
        raise ValueError(
            f"{run.source}: its {slot.name} part and this one's differ in {sorted(different)[0]!r}: they need the same "
            "configuration"
        )

    def copy(name: str, x: jax.Array) -> jax.Array:
        """The other run's value of the parameter ``name``, fitted to the vocabulary and the number of positions of this
        run. ``x``: its initial value here."""
        value = jnp.asarray(trained[name], x.dtype)
        if name in VOCABULARY_AXES:
            axis = VOCABULARY_AXES[name]
            # With the axis of the vocabulary first.
            by_token = _copy_tokens(run, jnp.moveaxis(value, axis, 0), jnp.moveaxis(x, axis, 0), tokenizer)
            return jnp.moveaxis(by_token, 0, axis)
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
    """``initial [V, ...]``, an entry for each token of ``tokenizer``, with the entries of ``trained [V', ...]`` for
    those tokens that the other run has as well."""
    if run.tokenizer is None or tokenizer is None:
        raise ValueError(f"{run.source}: it has no tokenizer for the part that reads or writes text")
    other_ids, own_ids = run.tokenizer.vocabulary(), tokenizer.vocabulary()  # the id of each token
    shared = [token for token in own_ids if token in other_ids]
    if not shared:
        raise ValueError(f"{run.source}: its tokenizer and this one have no token in common")
    target_ids = jnp.array([own_ids[token] for token in shared])
    source_ids = jnp.array([other_ids[token] for token in shared])
    return initial.at[target_ids].set(trained[source_ids])


# -- learning rates -------------------------------------------------------------------------------------


def _layers(name: str, config: Any) -> int:
    """The number of transformer layers of an encoder. ``name``: its modality, for the message.

    Raises:
      ValueError: it is no transformer, or scans its layers, whose parameters are then one array.
    """
    has_layers = isinstance(config, TransformerConfig | PretrainedEncoderConfig) and config.depth
    if not has_layers or config.scan_layers:
        raise ValueError(
            f"--layer-decay needs separate parameters for each block of a transformer: the {name} encoder has none, or "
            "scans them"
        )
    return config.depth


def _decayed(prefix: str, multiplier: float, decay: float, depth: int) -> list[tuple[str, float]]:
    """Rules ``(regular expression, learning-rate multiplier)`` of layer-wise decay for an encoder of ``depth`` layers.

    The last layer and the modules after it have ``multiplier``; each layer below has ``decay`` times that of the layer
    above it; the embeddings, below the first layer, come last. The first rule that matches decides. ``prefix``: matches
    the paths of the encoder's parameters.
    """
    last = depth - 1
    # One rule for the last layer and the modules after it: every rule must match a parameter, and not every encoder
    # has such modules.
    top = (rf"{prefix}(.*/)?(transformer/layers_{last}|{AFTER_LAYERS})/", multiplier)
    layers = [
        (rf"{prefix}(.*/)?transformer/layers_{k}/", multiplier * decay ** (last - k)) for k in range(last)
    ]
    return [top, *layers, (prefix, multiplier * decay**depth)]
