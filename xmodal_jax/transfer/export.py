"""Export of a run's networks as folders that Hugging Face transformers loads."""

from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any

import numpy as np

from xmodal_jax.core import trees
from xmodal_jax.core.nesting import nested, value_at
from xmodal_jax.data.media import Resize
from xmodal_jax.data.text import tokenizer_from_files
from xmodal_jax.models.towers import make_encoder
from xmodal_jax.models.vae.modalities import pretrained_encoder
from xmodal_jax.models.vae.networks import make_groups, pretrained_path
from xmodal_jax.nets.decoders import Size
from xmodal_jax.nets.encoders import PretrainedEncoderConfig, TextDecoderConfig, build_decoder
from xmodal_jax.pretrained import export
from xmodal_jax.pretrained.clip import ClipImage, ClipText
from xmodal_jax.pretrained.export import TokenizerFiles, TrainedEncoder
from xmodal_jax.train.checkpoint import RestoredCheckpoint, restore_run
from xmodal_jax.train.run import from_json
from xmodal_jax.transfer.exported import FILE, PARAMETERS, write_exported
from xmodal_jax.transfer.pretrained import read_slots
from xmodal_jax.transfer.weights import DTYPES
from xmodal_jax.types import Params

CLIP = "clip"
CAPTIONER = "captioner"


def export_run(
    run: str | os.PathLike, folder: str | os.PathLike, *, best: bool = False, seed: int | None = None
) -> dict[str, str]:
    """Writes the networks that a run trained to folders within ``folder``; returns a description of each, by the name
    of its folder.

    The folder ``parameters`` gets all parameters by their paths, as plain safetensors, and ``run.json`` the metadata,
    with which `inference.load` uses the folder like a run; ``image``, ``text``, … each
    pretrained encoder, as its own architecture; ``clip`` both towers of CLIP with their projections and temperature;
    ``captioner`` a pretrained image encoder and the text decoder, as ``transformers.VisionEncoderDecoderModel``.

    Raises:
      FileNotFoundError: the run has no checkpoint.
      FileExistsError: ``folder`` is not empty.
      ValueError: the run has several seeds and ``seed`` is none of them.
    """
    restored = restore_run(run, best=best, seed=seed)
    folder = pathlib.Path(folder)
    export.check_is_new(folder)
    return write_networks(restored, folder, run) | write_parameters(restored, folder, run)


def write_parameters(
    restored: RestoredCheckpoint, folder: pathlib.Path, run: str | os.PathLike, dtype: str = "float32"
) -> dict[str, str]:
    """Writes all parameters and the metadata, from which `inference.load` makes the model again; returns descriptions.

    ``run``: its directory, whose metrics go into the model card. ``dtype``: how the parameters are stored, a key of
    `weights.DTYPES`.
    """
    write = _Writer(restored, folder, pathlib.Path(run))
    write.parameters(dtype)
    write_exported(folder, restored, dtype)
    return write.written | {FILE: "the run's metadata: `inference.load` takes this folder like a run"}


def write_networks(
    restored: RestoredCheckpoint, folder: pathlib.Path, run: str | os.PathLike
) -> dict[str, str]:
    """Writes the networks that transformers loads, each to its own folder; returns descriptions."""
    write = _Writer(restored, folder, pathlib.Path(run))
    encoders = write.encoders()
    write.clip(encoders)
    write.captioner(encoders)
    return write.written


class _Writer:
    """Writes the networks of one run, each to its own folder within ``folder``."""

    def __init__(self, restored: RestoredCheckpoint, folder: pathlib.Path, run: pathlib.Path):
        """``run``: the run's directory, whose metrics go into the model cards."""
        self.restored, self.folder, self.run = restored, folder, run
        self.model: dict[str, Any] = restored.metadata["config"].get("model", {})
        """The configuration of the run's model, as plain values."""
        files = restored.metadata.get("tokenizer")
        self.tokenizer = tokenizer_from_files(files) if files else None
        # Contrastive runs call it max_length, the others length.
        length = restored.metadata.get("max_length", restored.metadata.get("length"))
        self.tokenizer_files = TokenizerFiles(files, int(length)) if files and length else None
        data = restored.metadata["config"].get("input", {})
        self.resize = Resize.from_options(data)
        """How images became squares for the run's training."""
        self.slots = read_slots(restored.metadata)
        """The encoders that the run's method declares."""
        self.written: dict[str, str] = {}
        """Descriptions of the folders that have been written, by name."""

    def parameters(self, dtype: str) -> None:
        """Writes all parameters as plain safetensors."""
        stored = DTYPES[dtype].compress(trees.flat(self.restored.params))
        export.save_model(self.folder / PARAMETERS, list(stored.items()), card=self.card(PARAMETERS))
        self.written[PARAMETERS] = f"{len(stored)} arrays by their paths, plain safetensors"

    def encoders(self) -> dict[str, TrainedEncoder]:
        """Writes each pretrained encoder as its own architecture; returns the towers (see `towers`)."""
        towers = self.towers()
        for name, encoder in {**towers, **self.autoencoder_encoders()}.items():
            if encoder.settings.model_type not in export.MODELS and encoder.tower_field is None:
                continue  # a part of a model (Whisper's encoder) that transformers does not load alone
            files = self.tokenizer_files if encoder.modality == "text" else None
            export.save_encoder(self.folder / name, encoder, card=self.card(name), tokenizer=files)
            self.written[name] = f"{encoder.settings.model_type}, for transformers"
        return towers

    def towers(self) -> dict[str, TrainedEncoder]:
        """The pretrained encoders that the model uses as a whole, one for each modality; by modality."""
        towers = {}
        for slot in self.slots:
            config = self.model.get(slot.name)
            # Only a pretrained encoder has an architecture. Stacked encoders are those of an autoencoder.
            if slot.stacked or not isinstance(config, dict) or not config.get("architecture"):
                continue
            config = from_json(PretrainedEncoderConfig, config)
            example = self.example(slot.name)
            # vocab_size=0: there is no tokenizer here whose size has to fit the encoder.
            module = make_encoder(slot.name, config, example, vocab_size=0, head=slot.head)
            params = value_at(self.restored.params, slot.path)
            towers[slot.name] = TrainedEncoder(slot.name, module, params, config.architecture, *self.resize)
        return towers

    def autoencoder_encoders(self) -> dict[str, TrainedEncoder]:
        """The pretrained encoders within an autoencoder, by the names of their modalities; empty for other methods."""
        metadata, flat = self.restored.metadata, trees.flat(self.restored.params)
        # The shape and the number of values of each modality: a multimodal VAE stores "sizes", a VAE of one modality
        # "modality" and "size", other methods neither.
        sizes = metadata.get("sizes") or (
            {metadata["modality"]: metadata["size"]} if "size" in metadata else {}
        )
        sizes = {name: Size(tuple(shape), values) for name, (*shape, values) in sizes.items()}
        encoders = {}
        for group in make_groups(sizes):
            encoder_config = self.model[group.kind].get("encoder")
            if not encoder_config or not encoder_config.get("architecture"):
                continue  # not a pretrained encoder
            config = from_json(PretrainedEncoderConfig, encoder_config)
            module = pretrained_encoder(group.kind, config, group.size)
            prefix = re.compile(pretrained_path(group.name, "experts"))
            stacked = {}  # the encoder's parameters, whose first axis is that of the group's modalities
            for path, leaf in flat.items():
                if match := prefix.search(path):
                    stacked[path[match.end() :]] = leaf
            for k, name in enumerate(group.names):
                params = nested({path: leaf[k] for path, leaf in stacked.items()})
                encoders[name] = TrainedEncoder(group.kind, module, params, config.architecture, *self.resize)
        return encoders

    def clip(self, encoders: dict[str, TrainedEncoder]) -> None:
        """Writes both encoders and the temperature as one CLIP model, if both encoders are CLIP's.

        ``encoders``: the run's pretrained encoders, by modality.
        """
        text, image = encoders.get("text"), encoders.get("image")
        if text is None or image is None:
            return
        if not (isinstance(text.module, ClipText) and isinstance(image.module, ClipImage)):
            return
        if any(slot.head != "project" for slot in self.slots):
            return  # the run has trained other projections in place of CLIP's, for which CLIP's format has no place
        scale = float(self.restored.params["loss"]["log_scale"])
        export.save_clip(
            self.folder / CLIP, text, image, scale, card=self.card(CLIP), tokenizer=self.tokenizer_files
        )
        self.written[CLIP] = "both towers, for transformers.CLIPModel"

    def captioner(self, encoders: dict[str, TrainedEncoder]) -> None:
        """Writes a captioner, if the run trained a pretrained image encoder and a text decoder.

        ``encoders``: the run's pretrained encoders, by modality.
        """
        decoder = self.model.get("decoder")
        if "decoder" not in self.restored.params or "image" not in encoders or self.tokenizer is None:
            return
        module = build_decoder(
            from_json(TextDecoderConfig, decoder),
            vocab_size=self.tokenizer.vocab_size,
            max_length=int(self.restored.metadata["length"]),
        )
        export.save_captioner(
            self.folder / CAPTIONER,
            encoders["image"],
            module,
            self.restored.params["decoder"],
            begin=self.tokenizer.bos_id,
            end=self.tokenizer.eos_id,
            card=self.card(CAPTIONER),
            tokenizer=self.tokenizer_files,
        )
        self.written[CAPTIONER] = "image to text, for transformers.VisionEncoderDecoderModel"

    def example(self, modality: str) -> Params:
        """A batch of one example of zeros, with the shapes of the run's data; the length of text and audio does not
        matter for an encoder's parameters."""
        if modality in ("image", "video"):
            return {modality: np.zeros((1, *self.restored.metadata["shapes"][modality]), np.uint8)}
        return {modality: np.zeros((1, 1), np.int32)}

    def card(self, what: str) -> str:
        """A model card in Markdown, with the run's data, number of steps and metrics. ``what``: name of the network."""
        config = self.restored.metadata["config"]
        lines = [
            "---",
            "library_name: transformers" if what != PARAMETERS else "library_name: xmodal_jax",
            "tags: [xmodal_jax]",
            "---",
            "",
            f"# {what} of {self.run.name}",
            "",
            f"Trained with xmodal_jax on `{config.get('data')}` for {self.restored.step} steps"
            f" (batches of {config.get('batch_size')}, seed {config.get('seed')}).",
            "",
        ]
        result = self.run / "result.json"
        if result.is_file():
            metrics = json.loads(result.read_text(encoding="utf-8")).get("metrics", {})
            rows = [
                f"| {name} | {value:.4g} |" for name, value in metrics.items() if isinstance(value, float)
            ]
            lines += ["| metric | value |", "|---|---:|", *rows, ""]
        return "\n".join(lines)
