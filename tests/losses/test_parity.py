"""The same values and gradients as PyTorch's and open_clip's losses; see requirements-parity.txt."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.losses import adversarial, coral, info_nce, sigmoid_loss, triplet_loss

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


IDS = np.array([0, 1, 2, 0, -1, 3, 1, -1, 4, 0, 5, 2, 6])
HERE = np.array([1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1], bool)


@pytest.mark.parametrize("duplicates", ["positive", "exclude"])
def test_info_nce_with_duplicates_is_the_cross_entropy_with_soft_targets(duplicates):
    """Over those present alone: equal captions are all targets, or their logits are minus infinity."""
    same = torch.tensor((IDS[:, None] == IDS[None]) & (IDS >= 0)[:, None])[HERE][:, HERE]
    pair = torch.eye(HERE.sum(), dtype=torch.bool)
    targets = ((same | pair) if duplicates == "positive" else pair).double()
    targets = targets / targets.sum(dim=1, keepdim=True)

    def soft(a, b, temperature):
        logits = (a @ b.T / temperature)[HERE][:, HERE].double()
        if duplicates == "exclude":
            logits = logits.masked_fill(same & ~pair, -1e9)
        entropy = torch.nn.functional.cross_entropy
        return ((entropy(logits, targets) + entropy(logits.T, targets)) / 2).float()

    options = dict(present=jnp.asarray(HERE), match=jnp.asarray(IDS), duplicates=duplicates)
    got = ours(lambda a, b, t: info_nce(a, b, temperature=t, **options).sum() / HERE.sum(), TEMPERATURE)
    assert_same(got, theirs(soft, TEMPERATURE))


def logits_of_images():
    return [x.sum(axis=1) for x in make()]


CE = torch.nn.functional.binary_cross_entropy_with_logits
MSE = torch.nn.functional.mse_loss
ONE, ZERO = torch.ones(13), torch.zeros(13)
GAMES = {
    "minimax": (lambda r, f: CE(r, ONE) + CE(f, ZERO), lambda f, r: -CE(f, ZERO)),
    "non_saturating": (lambda r, f: CE(r, ONE) + CE(f, ZERO), lambda f, r: CE(f, ONE)),
    "lsgan": (lambda r, f: (MSE(r, ONE) + MSE(f, ZERO)) / 2, lambda f, r: MSE(f, ONE) / 2),
    "hinge": (lambda r, f: (1 - r).relu().mean() + (1 + f).relu().mean(), lambda f, r: -f.mean()),
    "relativistic": (lambda r, f: CE(r - f, ONE), lambda f, r: CE(f - r, ONE)),
    "relativistic_average": (
        lambda r, f: CE(r - f.mean(), ONE) + CE(f - r.mean(), ZERO),
        lambda f, r: CE(f - r.mean(), ONE) + CE(r - f.mean(), ZERO),
    ),
}


@pytest.mark.parametrize("name", GAMES)
def test_adversarial_losses_are_those_of_torch(name):
    real, fake = logits_of_images()
    for player, want, args in zip(
        adversarial.OBJECTIVES[name], GAMES[name], ((real, fake), (fake, real)), strict=True
    ):
        value, grads = jax.jit(jax.value_and_grad(lambda a, b, p=player: p(a, b).mean(), (0, 1)))(*args)
        tensors = [torch.tensor(x, requires_grad=True) for x in args]
        loss = want(*tensors)
        loss.backward()
        of = [0.0 * x if t.grad is None else t.grad.numpy() for x, t in zip(args, tensors, strict=True)]
        assert_same([value, *grads], [loss.detach().numpy(), *of])
