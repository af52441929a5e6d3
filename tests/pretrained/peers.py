"""PyTorch models of ``transformers``, made at random and saved: what the loaders are compared with."""

from __future__ import annotations

import copy
import importlib
import json
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.core import trees
from xmodal_jax.pretrained.encoder import EncoderOptions, hidden_states
from xmodal_jax.pretrained.load import architecture, load_encoder
from xmodal_jax.pretrained.rules import to_checkpoint

TOLERANCE = 1e-4


def import_transformers():
    """``(torch, transformers)``; skips the test where PyTorch is missing.

    torchvision, which some builds bring in a form that does not fit PyTorch, is not looked for: no model here needs it.
    """
    torch = pytest.importorskip("torch")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers.utils import import_utils

    utils = importlib.import_module("transformers.utils")
    for module in (import_utils, utils):
        module.is_torchvision_available = lambda: False
        module.is_torchvision_v2_available = lambda: False
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    return torch, transformers


def save(model, folder, **options):
    """The folder of a model in evaluation, with every parameter moved from its start: norms of 1 and biases of 0 would
    hide what is mistaken for another."""
    torch, _ = import_transformers()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.3 * torch.randn(buffer.shape, generator=generator)
            if name.endswith("running_var"):
                buffer *= 0.5 + torch.rand(buffer.shape, generator=generator)
    model.eval().save_pretrained(folder, **options)
    return folder


def to_torch(x):
    torch, _ = import_transformers()
    return torch.from_numpy(np.array(x))


def load(folder, modality, head="none", *, scan=False, **sizes):
    return load_encoder(
        folder, modality, EncoderOptions(head=head, scan_layers=scan), progress=False, **sizes
    )


def assert_close(ours, theirs, what, *, rows=None):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
    if rows is not None:
        ours, theirs = ours[rows], theirs[rows]
    # The largest value sets the scale: float32 sums of terms of that size.
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE, err_msg=what)
    assert np.abs(theirs).max() > 0.05, f"{what}: values too small to tell them apart"


def compiled_hidden_states(found, inputs, mask=None):
    """`hidden_states` in one program: op by op it compiles many."""
    return jax.jit(lambda params, *inputs: hidden_states(found.module, params, *inputs))(
        found.params, inputs, mask
    )


def assert_same_hidden_states(found, inputs, mask, theirs, *, rows=None):
    """``theirs``: PyTorch's hidden states, the embedded input first; the last may have gone through the final norm."""
    ours = compiled_hidden_states(found, inputs, mask)
    assert len(ours) == len(theirs)
    for k, (a, b) in enumerate(zip(ours[:-1], theirs[:-1], strict=True)):
        assert_close(a, b, f"hidden state {k}", rows=rows)


def gradients(found, modality, loss):
    """``{their name: gradient}`` of ``loss(params)`` by every parameter of the checkpoint."""
    by_leaf = jax.jit(jax.grad(loss))(found.params)
    flat = dict(zip(trees.leaf_names(by_leaf), map(np.asarray, jax.tree.leaves(by_leaf)), strict=True))
    model_type = json.loads(found.config)["model_type"]
    rules = [r for r in architecture(modality, model_type).rules(found.module) if r.path in flat]
    return dict(to_checkpoint(rules, flat))


def assert_same_gradients(found, modality, loss, model, *, prefix=""):
    """After ``theirs.backward()``: the gradient of every parameter."""
    ours = gradients(found, modality, loss)
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    compared = 0
    for name, gradient in ours.items():
        other = theirs.get(prefix + name)
        if other is None:
            assert not np.abs(gradient).any(), f"{name} has a gradient here and none there"
            continue
        scale = max(float(other.abs().max()), 1e-3)
        np.testing.assert_allclose(gradient / scale, other.numpy() / scale, atol=2e-4, err_msg=name)
        compared += 1
    assert compared > 10
    return compared


def with_names_of_checkpoint(model, folder):
    """What has the gradients of a model by the names that its checkpoint has, where its modules have others."""
    from safetensors.torch import load_file  # needs PyTorch

    holder = copy.deepcopy(model)
    for to, of in zip(holder.parameters(), model.parameters(), strict=True):
        to.data = of.detach() * 0 if of.grad is None else of.grad
    holder.save_pretrained(folder)
    arrays = load_file(folder / "model.safetensors")
    return SimpleNamespace(
        named_parameters=lambda: [(name, SimpleNamespace(grad=array)) for name, array in arrays.items()]
    )


def random_ids(length, batch, vocabulary, *, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(5, vocabulary, (batch, length)), jnp.int32)


def prefix_mask(lengths, length):
    return jnp.asarray(np.arange(length)[None] < np.asarray(lengths)[:, None])
