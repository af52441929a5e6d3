"""Cross-modal learning in JAX: align, fuse, translate and generate over text, image, audio and video."""

from xmodal_jax.core import interrupts

__version__ = "0.1.0"

interrupts.exit_when_interrupted()  # here, because the imports that follow in a script take seconds
