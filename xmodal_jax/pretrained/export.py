"""Trained models as Hugging Face folders: ``config.json``, safetensors, tokenizer, processor and a model card.

A folder is written beside its place and then moved there: it is whole or not there.
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
from xmodal_jax.pretrained.files import write_safetensors
from xmodal_jax.pretrained.load import settings
from xmodal_jax.pretrained.rules import write
from xmodal_jax.types import Params

Arrays = Iterable[tuple[str, np.ndarray]]
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
"""What ``transformers`` reads their images with."""
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
"""What ``transformers`` loads an encoder of a ``model_type`` with."""


class Trained(NamedTuple):
    """A pretrained encoder as training left it."""

    modality: str
    module: nn.Module
    params: Params
    config: str
    """See `pretrained.load.full_config`."""

    @property
    def settings(self) -> SimpleNamespace:
        """Its configuration."""
        return settings(self.config)

    @property
    def pair(self) -> str | None:
        """Where it is one of two towers of a model: the field of ``config.json`` that describes it."""
        field = {"text": "text_config", "image": "vision_config"}.get(self.modality, "")
        return field if hasattr(self.settings, field) else None

    def arrays(self) -> Arrays:
        """Its arrays by their names in a checkpoint."""
        rules = architecture(self.modality, self.settings.model_type).rules(self.module)
        own = trees.flat(jax.device_get(self.params))
        found = write([rule for rule in rules if rule.ours in own], own)
        if "siglip" not in self.settings.model_type:
            return found
        # Names that it has beside the other tower; alone it has them without.
        return ((name.removeprefix("text_model.").removeprefix("vision_model."), x) for name, x in found)

    def described(self) -> dict[str, Any]:
        """Its ``config.json``, of the image size that it was trained with here; of a pair of towers its own alone."""
        config = json.loads(self.config)
        if self.pair is not None:
            kind = f"{config['model_type']}_{self.pair.removesuffix('_config')}_model"
            shared = {"projection_dim": config["projection_dim"]} if "projection_dim" in config else {}
            config = {**config[self.pair], **shared, "model_type": kind}
        config.pop("processor", None)
        size = image_size(self.module)
        if size is not None:
            config["image_size"] = size if size[0] != size[1] else size[0]
        return config


class Words(NamedTuple):
    """A tokenizer."""

    files: Mapping[str, str]
    """``tokenizer.json`` and ``special_tokens.json``, as `data.text.Tokenizer.files` has them."""
    length: int
    """Tokens that a text has, at most."""

    def described(self) -> dict[str, str]:
        """What ``transformers`` needs, by file name."""
        special = json.loads(self.files["special_tokens.json"])
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.length,
            **{f"{name}_token": token for name, token in special.items() if token},
        }
        return {
            "tokenizer.json": self.files["tokenizer.json"],
            "tokenizer_config.json": json.dumps(config, indent=2),
        }


def image_size(module: nn.Module) -> tuple[int, int] | None:
    """Height and width of the images that an encoder was made for; None: any."""
    if not hasattr(module, "grid") or not hasattr(module, "patch"):
        return None
    return tuple(module.grid)[-2] * module.patch, tuple(module.grid)[-1] * module.patch


def processor_of(trained: Trained) -> dict[str, Any] | None:
    """``preprocessor_config.json`` of an encoder of images; None: of something else."""
    kind = IMAGE_PROCESSORS.get(trained.settings.model_type)
    if kind is None or trained.modality not in ("image", "video"):
        return None
    mean, std = trained.module.scale
    found = {
        "image_processor_type": kind,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "resample": 3,
    }
    size = image_size(trained.module)
    if size is not None:
        whole = {"height": size[0], "width": size[1]}
        found |= {"do_resize": True, "size": whole, "do_center_crop": False}
    return found


def check_free(folder: pathlib.Path) -> None:
    """Raises a `FileExistsError` if there is anything but an empty folder at that place."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already: name another folder, or remove it")


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder to write to, which takes its place when all is written.

    Raises:
      FileExistsError: there is something at that place.
    """
    folder = pathlib.Path(folder).absolute()
    check_free(folder)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if folder.is_dir():
            folder.rmdir()
        part.replace(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def save(
    folder: str | os.PathLike,
    arrays: Arrays,
    *,
    card: str,
    config: Mapping[str, Any] | None = None,
    processor: Mapping[str, Any] | None = None,
    words: Words | None = None,
) -> None:
    """Writes a folder: arrays and a model card, and what else a model has."""
    with new_folder(folder) as part:
        write_safetensors(part / "model.safetensors", arrays)
        files = {"README.md": card}
        if config is not None:
            files["config.json"] = json.dumps(config, indent=2, sort_keys=True) + "\n"
        if processor is not None:
            files["preprocessor_config.json"] = json.dumps(processor, indent=2) + "\n"
        for name, content in {**files, **(words.described() if words else {})}.items():
            (part / name).write_text(content, encoding="utf-8")


def save_encoder(
    folder: str | os.PathLike, trained: Trained, *, card: str, words: Words | None = None
) -> None:
    """An encoder as the folder of its own architecture, which ``transformers.AutoModel`` loads.

    Raises:
      ValueError: its images have a shape that the architecture cannot say.
    """
    config = trained.described()
    model_type, size = config["model_type"], image_size(trained.module)
    if model_type.startswith("dinov2") and size and size[0] != size[1]:
        raise ValueError(
            f"transformers' DINOv2 resamples its positions from a square: images of {size[0]} x {size[1]} cannot be "
            "what it was trained with"
        )
    # A classifier of video has a norm of its own, which the architecture's name tells apart.
    if model_type in MODELS and "fc_norm" not in trained.params:
        config["architectures"] = [MODELS[model_type]]
    save(folder, trained.arrays(), card=card, config=config, processor=processor_of(trained), words=words)


def save_clip(
    folder: str | os.PathLike,
    text: Trained,
    image: Trained,
    log_scale: float,
    *,
    card: str,
    words: Words | None = None,
) -> None:
    """Both towers of CLIP with their projections and temperature, which ``transformers.CLIPModel`` loads.

    Raises:
      ValueError: they are no towers of CLIP, do not end in their projections, or images are not square.
    """
    _check_clip(text, image)
    config = {
        "model_type": "clip",
        "architectures": ["CLIPModel"],
        "text_config": text.described(),
        "vision_config": image.described(),
        "projection_dim": image.module.projection,
        "logit_scale_init_value": float(log_scale),
    }
    arrays = [*text.arrays(), *image.arrays(), ("logit_scale", np.asarray(log_scale, np.float32))]
    save(folder, arrays, card=card, config=config, processor=processor_of(image), words=words)


def _check_clip(text: Trained, image: Trained) -> None:
    for trained, kind in ((text, ClipText), (image, ClipImage)):
        if not isinstance(trained.module, kind) or trained.module.sizes.options.head != "project":
            raise ValueError(
                "a CLIP folder needs towers of CLIP with their own projections (--model.head own); the "
                f"{trained.modality} tower is another"
            )
    height, width = image_size(image.module)
    if height != width:
        raise ValueError(f"CLIP's configuration knows square images only, here they are {height} x {width}")


def save_captioner(
    folder: str | os.PathLike,
    encoder: Trained,
    decoder: TextDecoder,
    params: Params,
    begin: int,
    end: int,
    *,
    card: str,
    words: Words | None = None,
) -> None:
    """An image encoder and the library's text decoder, as GPT-2 with cross-attention, which
    ``transformers.VisionEncoderDecoderModel`` loads.

    Raises:
      ValueError: positions are not learned, or the two differ in width.
    """
    if decoder.positions != "learned":
        raise ValueError("GPT-2 learns its positions: --model.decoder.positions must be learned")
    if encoder.module.sizes.width != decoder.width:
        raise ValueError(
            f"transformers' GPT-2 attends to an encoder of its own width alone: the encoder has "
            f"{encoder.module.sizes.width}, the decoder {decoder.width}"
        )
    own = trees.flat(jax.device_get(params))
    language = {
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
    config = {
        "model_type": "vision-encoder-decoder",
        "architectures": ["VisionEncoderDecoderModel"],
        "encoder": encoder.described(),
        "decoder": language,
        "decoder_start_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": end,
        "tie_word_embeddings": False,
    }
    arrays = [(f"encoder.{name}", array) for name, array in encoder.arrays()]
    arrays += [(f"decoder.transformer.{name}", array) for name, array in write(gpt2.rules(decoder), own)]
    arrays.append(("decoder.lm_head.weight", own["embed/embedding"]))
    save(folder, arrays, card=card, config=config, processor=processor_of(encoder), words=words)
