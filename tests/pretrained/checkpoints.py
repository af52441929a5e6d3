"""Folders of pretrained encoders and decoders at laptop size, without PyTorch: random parameters, written by the tables
that the loaders read by.

    python -m tests.pretrained.checkpoints FOLDER

writes one of each, which read the captions of the embedded data set.
"""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import numpy as np

from xmodal_jax.core import trees
from xmodal_jax.data.text import Tokenizer, train_tokenizer
from xmodal_jax.pretrained.architectures import architecture
from xmodal_jax.pretrained.encoder import EncoderOptions
from xmodal_jax.pretrained.export import TokenizerFiles
from xmodal_jax.pretrained.load import complete_config, make_module, parameter_shapes
from xmodal_jax.pretrained.rules import to_checkpoint
from xmodal_jax.pretrained.safetensors_files import write_safetensors

LAYERS = dict(hidden_size=12, num_hidden_layers=2, num_attention_heads=3, intermediate_size=17)
BERT = dict(model_type="bert", max_position_embeddings=40, **LAYERS)
VIT = dict(model_type="vit", image_size=16, patch_size=8, **LAYERS)
WAV2VEC2 = dict(
    model_type="wav2vec2",
    conv_dim=[8, 8],
    conv_kernel=[10, 4],
    conv_stride=[40, 8],
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=5,
    num_conv_pos_embedding_groups=3,
    **LAYERS,
)
GPT2 = dict(model_type="gpt2", n_embd=12, n_layer=2, n_head=3, n_inner=17, n_positions=60)
CLIP = dict(
    model_type="clip",
    projection_dim=7,
    text_config=dict(max_position_embeddings=40, **LAYERS),
    vision_config=dict(image_size=16, patch_size=8, **LAYERS),
)
LOG_SCALE = 2.3


def write_folder(
    folder: pathlib.Path, config: dict, heads: dict[str, str], tokenizer: Tokenizer | None = None
) -> pathlib.Path:
    """The folder of a model with the modalities (and how much of their heads) of ``heads``."""
    rng = np.random.default_rng(3)
    arrays = {}
    for modality, head in heads.items():
        module = make_module(modality, complete_config(config), EncoderOptions(head=head))
        draw = lambda leaf: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32)
        params = jax.tree.map(draw, parameter_shapes(module))
        rules = [
            rule
            for rule in architecture(modality, config["model_type"]).rules(module)
            if rule.path in trees.flat(params)
        ]
        arrays |= dict(to_checkpoint(rules, trees.flat(params)))
    if config["model_type"] == "clip":
        arrays["logit_scale"] = np.asarray(LOG_SCALE, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", arrays.items())
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        for name, content in TokenizerFiles(tokenizer.files(), 40).for_transformers().items():
            (folder / name).write_text(content)
    return folder


def write_all(root: pathlib.Path) -> None:
    """``bert``, ``vit``, ``wav2vec2``, ``clip`` and ``gpt2``, with a tokenizer that reads any text."""
    tokenizer = train_tokenizer(["a red square above two blue circles"], "bpe", 260)
    words, length = dict(vocab_size=tokenizer.vocab_size), dict(max_position_embeddings=200)
    write_folder(root / "bert", {**BERT, **words, **length}, {"text": "pool"}, tokenizer)
    write_folder(root / "vit", VIT, {"image": "pool"})
    write_folder(root / "wav2vec2", WAV2VEC2, {"audio": "none"})
    write_folder(root / "gpt2", {**GPT2, **words, "n_positions": 200}, {"decoder": "none"}, tokenizer)
    text = {**CLIP["text_config"], **words, **length, "eos_token_id": tokenizer.eos_id}
    write_folder(
        root / "clip", {**CLIP, "text_config": text}, {"text": "project", "image": "project"}, tokenizer
    )


if __name__ == "__main__":
    write_all(pathlib.Path(sys.argv[1]))
