"""Writing trained models as Hugging Face folders: ``config.json``, safetensors, tokenizer, processor and model card.

A folder is first written under a temporary name and then renamed, so that it is never incomplete.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from xmodal_jax.core import trees
from xmodal_jax.nets.text import TextDecoder
from xmodal_jax.pretrained import gpt2
from xmodal_jax.pretrained.architectures import architecture
from xmodal_jax.pretrained.clip import ClipImage, ClipText
from xmodal_jax.pretrained.files import POOL_NAMES, POOLING_FLAGS
from xmodal_jax.pretrained.images import RESAMPLING
from xmodal_jax.pretrained.load import parse_config
from xmodal_jax.pretrained.rules import to_checkpoint
from xmodal_jax.pretrained.safetensors_files import write_safetensors
from xmodal_jax.types import Params

Arrays = Iterable[tuple[str, np.ndarray]]
"""The arrays of a checkpoint, with their names."""
IMAGE_PROCESSORS = {
    "clip": "CLIPImageProcessor",
    "clip_vision_model": "CLIPImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "videomae": "VideoMAEImageProcessor",
    "vit": "ViTImageProcessor",
}
"""The class of ``transformers`` that preprocesses images for a ``model_type``."""
MODELS = {
    "bert": "BertModel",
    "clip_text_model": "CLIPTextModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "hubert": "HubertModel",
    "resnet": "ResNetModel",
    "roberta": "RobertaModel",
    "siglip2_text_model": "Siglip2TextModel",
    "siglip2_vision_model": "Siglip2VisionModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip_vision_model": "SiglipVisionModel",
    "videomae": "VideoMAEModel",
    "vit": "ViTModel",
    "wav2vec2": "Wav2Vec2Model",
    "xlm-roberta": "XLMRobertaModel",
}
"""The class of ``transformers`` that loads an encoder of a ``model_type``."""


class TrainedEncoder(NamedTuple):
    """An encoder after training: a pretrained architecture with its trained parameters."""

    modality: str
    module: nn.Module
    params: Params
    config: str
    """Its configuration in JSON, from `pretrained.load.complete_config`."""
    fit: str = "crop"
    """How images became squares for its training: "crop", "stretch" or "pad" (see `data.media.Resize`)."""
    resample: str = "bicubic"
    """The filter by which they were resized, one of `images.RESAMPLING`."""
    centre: float = 1.0
    """The fraction of the resized side that was kept."""

    @property
    def settings(self) -> SimpleNamespace:
        """Its configuration as a namespace."""
        return parse_config(self.config)

    @property
    def tower_field(self) -> str | None:
        """The field of ``config.json`` that describes this encoder, if the model has two towers (CLIP, SigLIP); else
        None."""
        field = {"text": "text_config", "image": "vision_config"}.get(self.modality, "")
        return field if hasattr(self.settings, field) else None

    def arrays(self) -> Arrays:
        """The encoder's parameters as the arrays of a checkpoint, ``(name, array)``."""
        # The rules by which the architecture's checkpoints are read, applied the other way round.
        rules = architecture(self.modality, self.settings.model_type).rules(self.module)
        params = trees.flat(jax.device_get(self.params))
        arrays = to_checkpoint([rule for rule in rules if rule.path in params], params)
        if "siglip" not in self.settings.model_type:
            return arrays
        # A SigLIP encoder that is saved without the other tower has names without the tower's prefix.
        return ((name.removeprefix("text_model.").removeprefix("vision_model."), x) for name, x in arrays)

    def make_config(self) -> dict[str, Any]:
        """The encoder's ``config.json``, with the image size that it was trained with. If the model has two towers, it
        describes this one only."""
        config = json.loads(self.config)
        if self.tower_field is not None:
            tower = self.tower_field.removesuffix("_config")
            model_type = f"{config['model_type']}_{tower}_model"  # such as clip_vision_model
            shared = {"projection_dim": config["projection_dim"]} if "projection_dim" in config else {}
            config = {**config[self.tower_field], **shared, "model_type": model_type}
        for added in ("processor", "sentence", "has_pooler"):  # by `pretrained.load.complete_config`
            config.pop(added, None)
        size = image_size(self.module)
        if size is not None:
            config["image_size"] = size if size[0] != size[1] else size[0]
        return config

    def sentence_files(self) -> dict[str, Any]:
        """The files by which sentence-transformers pools like this encoder: contents by path. Empty unless the encoder
        is one of theirs and was trained with its own pool."""
        pools, options = getattr(self.module, "sentence_pools", ()), self.module.sizes.options
        if not pools or options.head == "none":
            return {}
        names = [("Transformer", ""), ("Pooling", "1_Pooling")]
        names += [("Normalize", "2_Normalize")] if self.module.normalize else []
        modules = [
            {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{name}"}
            for k, (name, path) in enumerate(names)
        ]
        their_names = {ours: theirs for theirs, ours in POOL_NAMES.items()}
        chosen = {their_names.get(pool, pool) for pool in pools}
        pooling = {"word_embedding_dimension": self.module.sizes.width}
        pooling |= {flag: name in chosen for name, flag in POOLING_FLAGS.items()}
        limits = {
            "max_seq_length": self.settings.sentence.max_tokens,
            "do_lower_case": self.settings.sentence.lower,
        }
        return {
            "modules.json": modules,
            "1_Pooling/config.json": pooling,
            "sentence_bert_config.json": limits,
        }


class TokenizerFiles(NamedTuple):
    """A tokenizer, as its files."""

    files: Mapping[str, str]
    """``tokenizer.json`` and ``special_tokens.json``, from `data.text.Tokenizer.files`."""
    length: int
    """Largest number of tokens in a text."""

    def for_transformers(self) -> dict[str, str]:
        """The contents of ``tokenizer.json`` and ``tokenizer_config.json``, which ``transformers`` reads."""
        special = json.loads(self.files["special_tokens.json"])
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.length,
            **({"truncation_side": special.pop("truncation_side")} if "truncation_side" in special else {}),
            **{f"{name}_token": token for name, token in special.items() if token},
        }
        return {
            "tokenizer.json": self.files["tokenizer.json"],
            "tokenizer_config.json": json.dumps(config, indent=2),
        }


def image_size(module: nn.Module) -> tuple[int, int] | None:
    """The height and width in pixels of the images that an encoder was made for; None: images of any size."""
    if not hasattr(module, "grid") or not hasattr(module, "patch"):
        return None
    rows, columns = tuple(module.grid)[-2:]  # of patches
    return rows * module.patch, columns * module.patch


def make_processor_config(trained: TrainedEncoder) -> dict[str, Any] | None:
    """The ``preprocessor_config.json`` of an encoder of images or video; None for other encoders."""
    processor_type = IMAGE_PROCESSORS.get(trained.settings.model_type)
    if processor_type is None or trained.modality not in ("image", "video"):
        return None
    mean, std = trained.module.scale
    config = {
        "image_processor_type": processor_type,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "resample": {name: number for number, name in RESAMPLING.items()}[trained.resample],
    }
    size, cropped = image_size(trained.module), trained.centre < 1 and trained.fit != "pad"
    if size is None:  # images of any size, as for a ResNet, whose processor crops without a flag
        return config | ({"crop_pct": trained.centre} if trained.fit == "crop" else {})
    shape = {"height": size[0], "width": size[1]}
    larger = {name: int(side / trained.centre + 1e-6) for name, side in shape.items()}
    if trained.fit == "crop" and size[0] == size[1]:
        return config | {
            "do_resize": True, "size": {"shortest_edge": larger["height"]}, "do_center_crop": True, "crop_size": shape,
        }  # fmt: skip
    if cropped and size[0] == size[1]:
        return config | {"do_resize": True, "size": larger, "do_center_crop": True, "crop_size": shape}
    # The processors of ``transformers`` have no padding to a square: users have to pad images themselves.
    return config | {"do_resize": trained.fit != "pad", "size": shape, "do_center_crop": False}


def check_is_new(folder: pathlib.Path) -> None:
    """Raises a `FileExistsError` if the path exists and is not an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: name another folder, or remove it")


@contextlib.contextmanager
def create_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A context with a temporary folder to write to, which is renamed to ``folder`` at the end.

    Raises:
      FileExistsError: ``folder`` exists and is not empty.
    """
    folder = pathlib.Path(folder).absolute()
    check_is_new(folder)
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if folder.is_dir():
            folder.rmdir()
        unfinished.replace(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def save_model(
    folder: str | os.PathLike,
    arrays: Arrays,
    *,
    card: str,
    config: Mapping[str, Any] | None = None,
    processor: Mapping[str, Any] | None = None,
    tokenizer: TokenizerFiles | None = None,
    sentence: Mapping[str, Any] | None = None,
) -> None:
    """Writes the folder of a model: its arrays, its model card, and those of the other files that are not None.

    ``sentence``: further JSON files by their paths within the folder, see `TrainedEncoder.sentence_files`.

    Raises:
      FileExistsError: ``folder`` exists and is not empty.
    """
    with create_folder(folder) as unfinished:
        write_safetensors(unfinished / "model.safetensors", arrays)
        files = {"README.md": card}
        if config is not None:
            files["config.json"] = json.dumps(config, indent=2, sort_keys=True) + "\n"
        if processor is not None:
            files["preprocessor_config.json"] = json.dumps(processor, indent=2) + "\n"
        files |= {name: json.dumps(content, indent=2) + "\n" for name, content in (sentence or {}).items()}
        for name, content in {**files, **(tokenizer.for_transformers() if tokenizer else {})}.items():
            (unfinished / name).parent.mkdir(exist_ok=True)
            (unfinished / name).write_text(content, encoding="utf-8")


def save_encoder(
    folder: str | os.PathLike, trained: TrainedEncoder, *, card: str, tokenizer: TokenizerFiles | None = None
) -> None:
    """Writes a trained encoder as a Hugging Face folder, which ``transformers.AutoModel`` loads.

    Raises:
      FileExistsError: ``folder`` exists and is not empty.
      ValueError: the architecture's configuration has no field for the shape of its images.
    """
    config = trained.make_config()
    model_type, size = config["model_type"], image_size(trained.module)
    if model_type.startswith("dinov2") and size and size[0] != size[1]:
        raise ValueError(
            f"transformers' DINOv2 resamples its positions from a square: images of {size[0]} x {size[1]} cannot be "
            "what it was trained with"
        )
    # A VideoMAE encoder with the classifier's norm (fc_norm) keeps the architecture of its checkpoint, the classifier:
    # VideoMAEModel has no such norm.
    if model_type in MODELS and "fc_norm" not in trained.params:
        config["architectures"] = [MODELS[model_type]]
    save_model(
        folder,
        trained.arrays(),
        card=card,
        config=config,
        processor=make_processor_config(trained),
        tokenizer=tokenizer,
        sentence=trained.sentence_files(),
    )


def save_clip(
    folder: str | os.PathLike,
    text: TrainedEncoder,
    image: TrainedEncoder,
    log_scale: float,
    *,
    card: str,
    tokenizer: TokenizerFiles | None = None,
) -> None:
    """Writes both towers of CLIP with their projections and temperature, which ``transformers.CLIPModel`` loads.

    Args:
      folder: a new or empty folder.
      text, image: the towers.
      log_scale: logarithm of the inverse temperature.
      card: text of the model card.
      tokenizer: of the text tower.
    Raises:
      FileExistsError: ``folder`` exists and is not empty.
      ValueError: these are not towers of CLIP with their projections, or the images are not square.
    """
    _check_clip(text, image)
    config = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "text_config": text.make_config(),
        "vision_config": image.make_config(),
        "projection_dim": image.module.projection,
        "logit_scale_init_value": float(log_scale),
    }
    arrays = [*text.arrays(), *image.arrays(), ("logit_scale", np.asarray(log_scale, np.float32))]
    save_model(
        folder, arrays, card=card, config=config, processor=make_processor_config(image), tokenizer=tokenizer
    )


def _check_clip(text: TrainedEncoder, image: TrainedEncoder) -> None:
    """Raises ValueError if these are not CLIP's encoders with their projections, for square images."""
    for trained, module_class in ((text, ClipText), (image, ClipImage)):
        if not isinstance(trained.module, module_class) or trained.module.sizes.options.head != "project":
            raise ValueError(
                "a CLIP folder needs towers of CLIP with their own projections (--model.head own); the "
                f"{trained.modality} tower is another"
            )
    height, width = image_size(image.module)
    if height != width:
        raise ValueError(f"CLIP's configuration knows square images only, here they are {height} x {width}")


def save_captioner(
    folder: str | os.PathLike,
    encoder: TrainedEncoder,
    decoder: TextDecoder,
    params: Params,
    begin: int,
    end: int,
    *,
    card: str,
    tokenizer: TokenizerFiles | None = None,
) -> None:
    """Writes an image encoder and the library's text decoder, which ``transformers.VisionEncoderDecoderModel`` loads.

    The decoder is written as GPT-2 with cross-attention.

    Args:
      folder: a new or empty folder.
      encoder: the image encoder.
      decoder, params: the text decoder and its parameters.
      begin, end: ids of the first and the last token of a text.
      card: text of the model card.
      tokenizer: of the texts.
    Raises:
      FileExistsError: ``folder`` exists and is not empty.
      ValueError: the decoder's positions are not learned, or the two differ in width.
    """
    if decoder.positions != "learned":
        raise ValueError("GPT-2 learns its positions: --model.decoder.positions must be learned")
    if encoder.module.sizes.width != decoder.width:
        raise ValueError(
            f"transformers' GPT-2 attends to an encoder of its own width alone: the encoder has "
            f"{encoder.module.sizes.width}, the decoder {decoder.width}"
        )
    flat = trees.flat(jax.device_get(params))  # the decoder's parameters by path
    config = {
        "model_type": "vision-encoder-decoder",
        "architectures": ["VisionEncoderDecoderModel"],
        "encoder": encoder.make_config(),
        "decoder": _gpt2_config(decoder, begin, end),
        "decoder_start_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": end,
        "tie_word_embeddings": False,
    }
    arrays = [(f"encoder.{name}", array) for name, array in encoder.arrays()]
    arrays += [
        (f"decoder.transformer.{name}", array) for name, array in to_checkpoint(gpt2.rules(decoder), flat)
    ]
    # The library's decoder computes its logits from the embedding of tokens.
    arrays.append(("decoder.lm_head.weight", flat["embed/embedding"]))
    save_model(
        folder,
        arrays,
        card=card,
        config=config,
        processor=make_processor_config(encoder),
        tokenizer=tokenizer,
    )


def _gpt2_config(decoder: TextDecoder, begin: int, end: int) -> dict[str, Any]:
    """The ``config.json`` of GPT-2 with cross-attention for the library's text decoder."""
    return {
        "model_type": "gpt2",
        "vocab_size": decoder.vocab_size,
        "n_positions": decoder.max_length,
        "n_embd": decoder.width,
        "n_layer": decoder.depth,
        "n_head": decoder.heads,
        "n_inner": round(decoder.mlp_ratio * decoder.width),
        "layer_norm_epsilon": decoder.style.epsilon,
        "activation_function": "gelu_new",
        "add_cross_attention": True,
        "is_decoder": True,
        "bos_token_id": begin,
        "eos_token_id": end,
    }
