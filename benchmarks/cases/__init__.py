"""The cases of ``benchmarks.cpu`` and ``benchmarks.gpu``: one module each, both sides of which do the same work.

A module has ``ROWS`` (what the table says), ``jax_side()`` and ``torch_side()``. PyTorch and its libraries are imported
inside ``torch_side`` only, so that the JAX side runs without them.
"""

CASES = (
    "dcgan",
    "wgan_gp",
    "resnet18",
    "clip",
    "vae",
    "mopoe",
    "polymnist",
    "mlp",
    "attention",
    "elementwise",
    "data",
    "containers",
    "pretrained",
    "startup",
)
