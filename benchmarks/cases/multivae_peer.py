"""multivae's models with the networks of this library's defaults, for comparisons of speed and of quality."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cases.peers import import_torchvision

SCALE = 0.75
"""Of the Laplace likelihood."""


def networks(kind: str, shape: tuple[int, int, int], latent: int, private: int, width: int, hidden: int):
    """``(encoder, decoder)`` classes without arguments, for images ``[C, H, W]`` in [0, 1].

    "conv": `nets.image.PlainConvNet` of two convolutions and `nets.decoders.ConvDecoder`; "mlp": two hidden layers of
    ``width`` each. Both: one hidden layer of ``hidden`` before the moments, which have no activation.
    """
    from multivae.models.nn.base_architectures import BaseMultilatentEncoder
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder
    from torch import nn

    channels, height, side = shape
    small = (height // 4) * (side // 4)
    pixels = channels * height * side

    class Encoder(BaseMultilatentEncoder):
        def __init__(self):
            super().__init__()
            self.latent_dim, self.style_dim = latent, private
            if kind == "conv":
                self.trunk = nn.Sequential(
                    nn.Conv2d(channels, width // 2, 4, 2, 1), nn.LeakyReLU(0.2),
                    nn.Conv2d(width // 2, width, 4, 2, 1), nn.LeakyReLU(0.2),
                    nn.Flatten(), nn.Linear(small * width, hidden), nn.ReLU(),
                )  # fmt: skip
            else:
                self.trunk = nn.Sequential(
                    nn.Flatten(), nn.Linear(pixels, width), nn.LeakyReLU(0.2), nn.Linear(width, width),
                    nn.LeakyReLU(0.2), nn.Linear(width, hidden), nn.ReLU(),
                )  # fmt: skip
            names = ["embedding", "log_covariance"] + ["style_embedding", "style_log_covariance"] * bool(
                private
            )
            sizes = [latent, latent, private, private]
            self.heads = nn.ModuleDict({n: nn.Linear(hidden, s) for n, s in zip(names, sizes, strict=False)})

        def forward(self, x):
            h = self.trunk(2.0 * x - 1.0)
            return ModelOutput(**{name: head(h) for name, head in self.heads.items()})

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            if kind == "conv":
                self.net = nn.Sequential(
                    nn.Linear(latent + private, small * width), nn.Unflatten(1, (width, height // 4, side // 4)),
                    nn.ReLU(), nn.ConvTranspose2d(width, width // 2, 4, 2, 1), nn.ReLU(),
                    nn.ConvTranspose2d(width // 2, channels, 4, 2, 1),
                )  # fmt: skip
            else:
                self.net = nn.Sequential(
                    nn.Linear(latent + private, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
                    nn.Linear(width, pixels), nn.Unflatten(1, shape),
                )  # fmt: skip

        def forward(self, z):
            return ModelOutput(reconstruction=self.net(z.reshape(-1, z.shape[-1])))

    return Encoder, Decoder


PRIVATE = ("DMVAE", "MMVAEPlus", "CMVAE")
"""Models of multivae with private variables."""


def make(
    model: str,
    count: int,
    shape: tuple[int, int, int],
    *,
    kind: str = "conv",
    latent: int = 64,
    private: int = 32,
    width: int = 64,
    hidden: int = 256,
    **options: Any,
):
    """multivae's ``model`` (a name such as "MoPoE") over ``count`` image modalities "image_0", … ."""
    import_torchvision()
    import multivae.models as library

    own = private if model in PRIVATE else 0
    Encoder, Decoder = networks(kind, shape, latent, own, width, hidden)
    names = [f"image_{m}" for m in range(count)]
    if own:
        dims = {name: own for name in names} if model == "DMVAE" else own
        options = {"modalities_specific_dim": dims} | options
    config = getattr(library, f"{model}Config")(
        n_modalities=count, latent_dim=latent, input_dims={name: shape for name in names},
        decoders_dist={name: "laplace" for name in names},
        decoder_dist_params={name: {"scale": SCALE} for name in names}, **options,
    )  # fmt: skip
    parts = lambda cls: {name: cls() for name in names}
    return getattr(library, model)(config, encoders=parts(Encoder), decoders=parts(Decoder))


def batch_of(images: dict[str, Any], present: dict[str, Any] | None = None):
    """multivae's batch of tensors ``[B, C, H, W]``, with masks where some are missing."""
    from multivae.data.datasets.base import IncompleteDataset, MultimodalBaseDataset

    if present is None:
        return MultimodalBaseDataset(images)
    return IncompleteDataset(images, masks=present)


def tensors(batch: dict[str, np.ndarray], names: list[str]):
    """uint8 ``[B, H, W, C]`` by name as multivae takes them, floats in [0, 1] ``[B, C, H, W]``."""
    import torch

    to = lambda x: torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))).float() / 255.0
    return {name: to(batch[name]) for name in names}
