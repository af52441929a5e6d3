"""The same values and gradients as PyTorch's and open_clip's losses; see requirements-parity.txt."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.losses import coral, info_nce, sigmoid_loss, triplet_loss

torch = pytest.importorskip("torch")
TEMPERATURE, BIAS = 0.2, -2.3


@pytest.fixture(scope="module")
def open_clip():
    """open_clip's loss.py alone: the package imports torchvision, which these losses do not need."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("needs open_clip_torch")
    path = pathlib.Path(spec.origin).with_name("loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_loss", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make():
    a, b = np.random.default_rng(0).normal(size=(2, 13, 7)).astype(np.float32)
    b = a + b
    return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]


def ours(loss, *scalars):
    values = [jnp.asarray(x) for x in (*make(), *map(np.float32, scalars))]
    value, grads = jax.jit(jax.value_and_grad(loss, tuple(range(len(values)))))(*values)
    return [value, *grads]


def theirs(loss, *scalars):
    values = [torch.tensor(x, requires_grad=True) for x in (*make(), *map(np.float32, scalars))]
    value = loss(*values)
    value.backward()
    return [value.detach().numpy(), *(x.grad.numpy() for x in values)]


def assert_same(got, want):
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5 * np.abs(w).max())


def clip_in_torch(a, b, temperature):
    entropy, labels = torch.nn.functional.cross_entropy, torch.arange(13)
    s = a @ b.T / temperature
    return (entropy(s, labels) + entropy(s.T, labels)) / 2


@pytest.mark.parametrize("implementation", ["global", "tiled"])
def test_info_nce_is_the_cross_entropy_of_torch(implementation):
    got = ours(
        lambda a, b, t: info_nce(a, b, temperature=t, implementation=implementation, tile=5).mean(),
        TEMPERATURE,
    )
    assert_same(got, theirs(clip_in_torch, TEMPERATURE))


@pytest.mark.parametrize("implementation", ["global", "tiled"])
def test_info_nce_is_clip_loss(implementation, open_clip):
    got = ours(
        lambda a, b, t: info_nce(a, b, temperature=t, implementation=implementation, tile=5).mean(),
        TEMPERATURE,
    )
    clip = open_clip.ClipLoss()
    assert_same(got, theirs(lambda a, b, t: clip(a, b, 1 / t), TEMPERATURE))


@pytest.mark.parametrize("implementation", ["global", "tiled"])
def test_sigmoid_loss_is_siglip_loss(implementation, open_clip):
    got = ours(
        lambda a, b, t, c: sigmoid_loss(
            a, b, temperature=t, bias=c, implementation=implementation, tile=5
        ).mean(),
        TEMPERATURE,
        BIAS,
    )
    siglip = open_clip.SigLipLoss()
    assert_same(got, theirs(lambda a, b, t, c: siglip(a, b, 1 / t, c), TEMPERATURE, BIAS))


@pytest.mark.parametrize("hardest", [True, False])
def test_triplet_loss_in_torch(hardest):
    def vse(a, b):
        s = a @ b.T
        pair = s.diag()
        off = ~torch.eye(13, dtype=torch.bool)
        total = 0.0
        for cost in (
            (0.2 + s - pair[:, None]).clamp(min=0) * off,
            (0.2 + s - pair[None, :]).clamp(min=0).T * off,
        ):
            total = total + (cost.max(1).values.sum() if hardest else cost.sum())
        return total

    assert_same(ours(lambda a, b: triplet_loss(a, b, hardest=hardest).sum()), theirs(vse))


def test_coral_in_torch():
    assert_same(ours(coral), theirs(lambda a, b: (torch.cov(a.T) - torch.cov(b.T)).square().sum() / (4 * 49)))
