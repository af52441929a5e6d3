"""Importing the libraries compared with; without JAX, whose import would count in their start."""

from __future__ import annotations

import sys


def import_torchvision() -> None:
    """Imports torchvision also where its compiled operators do not fit PyTorch.

    The registry's torchvision for Linux needs CUDA's libraries; beside the CPU build of PyTorch its import stops at the
    first operators that are missing, which are declared here. No case uses any of them.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        _KEPT.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _KEPT[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


_KEPT: list = []
"""A declaration of operators lasts as long as its object."""
