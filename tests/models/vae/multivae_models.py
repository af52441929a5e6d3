"""multivae's models over small torch modules, with the parameters and the noise that they are told to use."""

import importlib.machinery
import sys
import types
import warnings
from types import SimpleNamespace

import numpy as np
import torch


class _Torchvision:
    """Stands in for torchvision, which multivae's data sets import and its models do not use; not every build of it
    fits every build of torch."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: type(name, (), {})
        return module

    def exec_module(self, module):
        pass


def load():
    """The classes that the tests need, by name."""
    finder = _Torchvision()
    there = {name for name in sys.modules if name.startswith("torchvision")}
    sys.meta_path.insert(0, finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from multivae import models
            from multivae.data.datasets.base import IncompleteDataset, MultimodalBaseDataset
            from multivae.models.nn.base_architectures import BaseJointEncoder, BaseMultilatentEncoder
            from pythae.models.base.base_utils import ModelOutput
            from pythae.models.nn.base_architectures import BaseDecoder, BaseEncoder
            from pythae.models.normalizing_flows.base import BaseNF, BaseNFConfig
    finally:
        sys.meta_path.remove(finder)
        for name in [n for n in sys.modules if n.startswith("torchvision") and n not in there]:
            del sys.modules[name]
    return SimpleNamespace(
        models=models, data=MultimodalBaseDataset, incomplete=IncompleteDataset, joint=BaseJointEncoder,
        several=BaseMultilatentEncoder, output=ModelOutput, decoder=BaseDecoder, encoder=BaseEncoder,
        flow=BaseNF, flow_config=BaseNFConfig,
    )  # fmt: skip


class Weights:
    """Arrays by name, each one torch parameter wherever it is used."""

    def __init__(self, arrays):
        self.parameters = {k: torch.nn.Parameter(torch.tensor(np.float32(v))) for k, v in arrays.items()}

    def __getitem__(self, name):
        return self.parameters[name]

    def affine(self, name, x):
        """``x w + b``."""
        return x @ self[f"{name}/w"] + self[f"{name}/b"]

    def gradients(self):
        zero = lambda p: np.zeros(p.shape, np.float32)
        return {k: zero(p) if p.grad is None else p.grad.numpy() for k, p in self.parameters.items()}


def encoder(multivae, say, kind="encoder", latent=2, style=0):
    """An encoder from a function of the input to ``(mean, log-variance[, of the private code as well])``."""

    class Encoder(getattr(multivae, kind)):
        def __init__(self):
            super().__init__()
            self.latent_dim, self.style_dim = latent, style

        def forward(self, x):
            mean, log_var, *private = say(x)
            found = dict(embedding=mean, log_covariance=log_var)
            if private:
                found |= dict(style_embedding=private[0], style_log_covariance=private[1])
            return multivae.output(**found)

    return Encoder()


def decoder(multivae, say):
    class Decoder(multivae.decoder):
        def forward(self, z):
            return multivae.output(reconstruction=say(z))

    return Decoder()


def flow(multivae, say, latent=2):
    """From a function of z to ``(base, log |det|)``."""

    class Flow(multivae.flow):
        def __init__(self):
            super().__init__(multivae.flow_config(input_dim=(latent,)))
            self.input_dim = (latent,)

        def forward(self, x, **kwargs):
            base, log_det = say(x)
            return multivae.output(out=base, log_abs_det_jac=log_det)

    return Flow()


def draw_from(monkeypatch, noise):
    """Samples of torch's distributions are made of ``noise``, one array after the other, which must all be used."""
    queue = [torch.tensor(np.array(x, np.float32)) for x in noise]

    def rsample(self, sample_shape=()):
        drawn = queue.pop(0)
        assert drawn.shape == (*sample_shape, *self.loc.shape)
        return self.loc + self.scale * drawn

    for family in (torch.distributions.Normal, torch.distributions.Laplace):
        monkeypatch.setattr(family, "rsample", rsample)
    return queue


def dense(of, x, member=None):
    """Flax's layer from its parameters as tensors; of stacked ones those of a member."""
    w, b = (of[k] if member is None else of[k][member] for k in ("kernel", "bias"))
    return x @ w + b


def mlp(of, x, *member):
    return dense(of["out"], torch.relu(dense(of["hidden"], x, *member)), *member)


def moments(of, x, *member):
    if "hidden" in of:
        x = torch.relu(dense(of["hidden"], x, *member))
    return dense(of["mean"], x, *member), dense(of["raw"], x, *member)


class Block(torch.nn.Module):
    """A function as a module."""

    def __init__(self, say):
        super().__init__()
        self.say = say

    def forward(self, x):
        return self.say(x)
