"""Cross-modal learning in JAX: align, fuse, translate and generate over text, image, audio and video."""

__version__ = "0.1.0"
