"""Pretrained models: Hugging Face checkpoints as Flax modules with parameters, and trained models as such folders."""

from xmodal_jax.pretrained.encoder import DEFAULT_OPTIONS, EncoderOptions, PretrainedEncoder, hidden_states
from xmodal_jax.pretrained.export import (
    TokenizerFiles,
    TrainedEncoder,
    save_captioner,
    save_clip,
    save_encoder,
    save_model,
)
from xmodal_jax.pretrained.files import Checkpoint, find_folder, open_checkpoint
from xmodal_jax.pretrained.load import (
    LoadedEncoder,
    complete_config,
    load_encoder,
    make_module,
    parameter_shapes,
    read_parameters,
)
from xmodal_jax.pretrained.safetensors_files import write_safetensors

__all__ = [
    "DEFAULT_OPTIONS",
    "Checkpoint",
    "EncoderOptions",
    "LoadedEncoder",
    "PretrainedEncoder",
    "TokenizerFiles",
    "TrainedEncoder",
    "complete_config",
    "find_folder",
    "hidden_states",
    "load_encoder",
    "make_module",
    "open_checkpoint",
    "parameter_shapes",
    "read_parameters",
    "save_captioner",
    "save_clip",
    "save_encoder",
    "save_model",
    "write_safetensors",
]
