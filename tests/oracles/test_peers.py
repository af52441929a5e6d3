"""The NumPy references that have no other peer, compared with PyTorch's and SciPy's own functions.

Fusions are put together here a second time, from ``MultiheadAttention``, ``scaled_dot_product_attention`` and the like;
low-rank products from the outer product and the tensor that they factorize.
"""

import functools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax
from scipy.stats import norm as norm_law

from tests.oracles import adversarial, fusion, gan, multimodal

torch = pytest.importorskip("torch")
F = torch.nn.functional
RNG = np.random.default_rng(0)
B, WIDTH, HEADS, DEPTH = 4, 6, 3, 2
LENGTHS, WIDTHS = {"text": 5, "image": 4, "audio": 3}, {"text": 7, "image": 5, "audio": 6}
PRESENT = {
    "text": np.array([True, True, False, True]),
    "image": np.array([True, False, True, True]),
    "audio": np.array([True, True, True, False]),
}
MASKS = {
    name: None if name == "image" else np.arange(n)[None] < np.array([n, 2, 1, n - 1])[:, None]
    for name, n in LENGTHS.items()
}
TOKENS = {name: RNG.normal(size=(B, n, WIDTHS[name])) for name, n in LENGTHS.items()}


def tensor(x):
    return torch.as_tensor(np.asarray(x))


# -- parameters, with the names of the modules ----------------------------------------------------------


def array(*shape):
    return 0.4 * RNG.normal(size=shape)


def dense(inputs, outputs):
    return {"kernel": array(inputs, outputs), "bias": array(outputs)}


def norm():
    return {"scale": 1 + array(WIDTH), "bias": array(WIDTH)}


def projection(*parts):
    size = (*parts, HEADS, WIDTH // HEADS)
    return {"kernel": array(WIDTH, *size), "bias": array(*size)}


def attention(own=True):
    out = {"kernel": array(HEADS, WIDTH // HEADS, WIDTH), "bias": array(WIDTH)}
    queries = {"qkv": projection(3)} if own else {"query": projection(), "key_value": projection(2)}
    return {"out": out, **queries}


def mlp():
    return {"up": dense(WIDTH, 11), "down": dense(11, WIDTH)}


def block(cross=False):
    more = {"cross_attention": attention(own=False), "cross_norm": norm()} if cross else {}
    return {"attention": attention(), "attention_norm": norm(), "mlp": mlp(), "mlp_norm": norm(), **more}


def layers(name, make, names=()):
    keys = [f"{m}_{k}" for m in names for k in range(DEPTH)] if names else range(DEPTH)
    return {f"{name}_{key}": make() for key in keys}


def gate():
    return array()


PARAMS = {
    "co_attention": lambda: layers("layers", functools.partial(block, cross=True), LENGTHS),
    "merged": lambda: layers("layers", block),
    "bottleneck": lambda: {"bottleneck": array(2, WIDTH), **layers("layers", block, LENGTHS)},
    "gated": lambda: {
        "class_token": array(WIDTH), **layers("cross_attention", lambda: attention(own=False)),
        **layers("cross_norm", norm), **layers("attention_gate", gate), **layers("cross_mlp", mlp),
        **layers("cross_mlp_norm", norm), **layers("mlp_gate", gate), **layers("layers", block),
    },
    "perceiver": lambda: {
        "query": array(2, WIDTH), **layers("query_norm", norm), **layers("token_norm", norm),
        **layers("attention", lambda: attention(own=False)), **layers("mlp", mlp), **layers("mlp_norm", norm),
    },
    "concat": lambda: {
        "hidden_0": dense(3 * WIDTH, 9), "hidden_1": dense(9, 9), "out": dense(9, WIDTH),
    },
    "additive": lambda: {"score": dense(9, 1), "hidden": dense(WIDTH, 9), "mlp": mlp(), "mlp_norm": norm()},
    "bilinear": lambda: {
        **{f"factor_{m}": {"kernel": array(WIDTH, 5, WIDTH), "bias": array(5, WIDTH)} for m in LENGTHS},
        "mlp": mlp(), "mlp_norm": norm(),
    },
    "film": lambda: {
        "class_token": array(WIDTH), **layers("film", lambda: dense(2 * WIDTH, 2 * WIDTH)),
        **layers("layers", block),
    },
}  # fmt: skip


def parameters(kind):
    own = PARAMS[kind]()
    shared = {f"project_{m}": dense(WIDTHS[m], WIDTH) for m in LENGTHS}
    shared |= {f"norm_{m}": norm() for m in LENGTHS} | {f"modality_{m}": array(WIDTH) for m in LENGTHS}
    return {**shared, "norm": norm(), **own}


# -- the same in PyTorch --------------------------------------------------------------------------------


def linear(p, x):
    return F.linear(x, tensor(p["kernel"]).T, tensor(p["bias"]))


def layer_norm(p, x):
    return F.layer_norm(x, (WIDTH,), tensor(p["scale"]), tensor(p["bias"]), eps=1e-6)


def feed_forward(p, x):
    return linear(p["down"], F.gelu(linear(p["up"], x), approximate="tanh"))


def multihead(p, x, kv, mask):
    """``torch.nn.MultiheadAttention`` with these weights. Where no key is allowed, which gives NaN there, the output is
    that of a value of zero."""
    module = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    flat = lambda part, name: part.reshape(WIDTH, WIDTH).T if name == "kernel" else part.reshape(WIDTH)
    weights = {}
    for name in ("kernel", "bias"):
        if "qkv" in p:
            parts = [p["qkv"][name][..., k, :, :] for k in range(3)]
        else:
            parts = [p["query"][name], *(p["key_value"][name][..., k, :, :] for k in range(2))]
        weights[name] = np.concatenate([flat(part, name) for part in parts])
    with torch.no_grad():
        module.in_proj_weight.copy_(tensor(weights["kernel"]))
        module.in_proj_bias.copy_(tensor(weights["bias"]))
        module.out_proj.weight.copy_(tensor(p["out"]["kernel"].reshape(WIDTH, WIDTH).T))
        module.out_proj.bias.copy_(tensor(p["out"]["bias"]))
        out, _ = module(x, kv, kv, key_padding_mask=~mask)
    return torch.where(mask.any(1)[:, None, None], out, tensor(p["out"]["bias"]))


def transformer(p, x, mask, kv=None, kv_mask=None):
    y = layer_norm(p["attention_norm"], x)
    x = x + multihead(p["attention"], y, y, mask)
    if kv is not None:
        x = x + multihead(p["cross_attention"], layer_norm(p["cross_norm"], x), kv, kv_mask)
    return x + feed_forward(p["mlp"], layer_norm(p["mlp_norm"], x))


def masked_mean(x, mask):
    weights = mask.double()
    return (x * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)


def joined(parts):
    values, masks = zip(*parts, strict=True)
    return torch.cat(values, 1), torch.cat(masks, 1)


def always(table):
    return tensor(table).expand(B, -1, -1), torch.ones(B, len(table), dtype=torch.bool)


def final(p, x, mask):
    return masked_mean(layer_norm(p["norm"], x), mask)


def by_co_attention(p, s):
    for k in range(DEPTH):
        others = {m: joined([s[o] for o in s if o != m]) for m in s}
        s = {m: (transformer(p[f"layers_{m}_{k}"], *s[m], *others[m]), s[m][1]) for m in s}
    return final(p, *joined(s.values()))


def by_merged(p, s):
    x, mask = joined(s.values())
    for k in range(DEPTH):
        x = transformer(p[f"layers_{k}"], x, mask)
    return final(p, x, mask)


def by_bottleneck(p, s):
    """Nagrani et al. 2021, eq. 8 and 9: the mean over the modalities that are there."""
    shared, ones = always(p["bottleneck"])
    for k in range(DEPTH):
        total, count = torch.zeros_like(shared), torch.zeros(B, dtype=torch.float64)
        for m, (x, mask) in s.items():
            out = transformer(p[f"layers_{m}_{k}"], *joined([(x, mask), (shared, ones)]))
            s = {**s, m: (out[:, : x.shape[1]], mask)}
            there = mask.any(1).double()
            total, count = total + there[:, None, None] * out[:, x.shape[1] :], count + there
        shared = total / count[:, None, None]
    return final(p, *joined([(shared, ones), *s.values()]))


def by_gated(p, s):
    first, *others = s.values()
    kv, kv_mask = joined(others)
    x, mask = joined([always(p["class_token"][None]), first])
    for k in range(DEPTH):
        y = multihead(p[f"cross_attention_{k}"], layer_norm(p[f"cross_norm_{k}"], x), kv, kv_mask)
        y = y * kv_mask.any(1)[:, None, None]
        x = x + np.tanh(p[f"attention_gate_{k}"]) * y
        x = x + np.tanh(p[f"mlp_gate_{k}"]) * feed_forward(
            p[f"cross_mlp_{k}"], layer_norm(p[f"cross_mlp_norm_{k}"], x)
        )
        x = transformer(p[f"layers_{k}"], x, mask)
    return final(p, x, mask)


def by_perceiver(p, s):
    tokens, mask = joined(s.values())
    x, ones = always(p["query"])
    for k in range(DEPTH):
        y = layer_norm(p[f"query_norm_{k}"], x)
        kv, kv_mask = joined([(layer_norm(p[f"token_norm_{k}"], tokens), mask), (y, ones)])
        x = x + multihead(p[f"attention_{k}"], y, kv, kv_mask)
        x = x + feed_forward(p[f"mlp_{k}"], layer_norm(p[f"mlp_norm_{k}"], x))
    return final(p, x, ones)


def by_concat(p, s):
    x = torch.cat([masked_mean(*part) for part in s.values()], -1)
    for k in range(DEPTH):
        x = F.gelu(linear(p[f"hidden_{k}"], x), approximate="tanh")
    return linear(p["out"], x)


def by_additive(p, s):
    """Softmax over the tokens that are there; ``softmax`` of nothing but minus infinity is NaN: all zeros here."""
    x, mask = joined(s.values())
    scores = linear(p["score"], torch.tanh(linear(p["hidden"], x)))[..., 0].masked_fill(~mask, -torch.inf)
    x = torch.bmm(scores.softmax(-1).nan_to_num()[:, None], x)[:, 0]
    return x + feed_forward(p["mlp"], layer_norm(p["mlp_norm"], x))


def by_bilinear(p, s):
    """The full tensor of three modalities, from its factors, and the outer product of their vectors with a 1 each."""
    factors = [np.concatenate([p[f"factor_{m}"]["kernel"], p[f"factor_{m}"]["bias"][None]]) for m in s]
    weights = torch.einsum("irw,jrw,krw->ijkw", *map(tensor, factors)) / factors[0].shape[1]
    vectors = [torch.cat([masked_mean(*part), torch.ones(B, 1)], -1) for part in s.values()]
    x = torch.einsum("bijk,ijkw->bw", torch.einsum("bi,bj,bk->bijk", *vectors), weights)
    x = layer_norm(p["mlp_norm"], x)
    return x + feed_forward(p["mlp"], x)


def by_film(p, s):
    first, *others = s.values()
    condition = torch.cat([masked_mean(*part) for part in others], -1)
    x, mask = joined([always(p["class_token"][None]), first])
    for k in range(DEPTH):
        gamma, beta = linear(p[f"film_{k}"], condition)[:, None].chunk(2, -1)
        x = transformer(p[f"layers_{k}"], torch.addcmul(beta, 1 + gamma, x), mask)
    return final(p, x, mask)


PEERS = {name.removeprefix("by_"): peer for name, peer in globals().items() if name.startswith("by_")}


def test_every_fusion_has_a_peer():
    assert set(PEERS) == set(PARAMS) == set(fusion.ORACLES)


@pytest.mark.parametrize("kind", PEERS)
def test_fusions(kind):
    p = parameters(kind)
    streams = {}
    for m, x in TOKENS.items():
        mask = tensor(np.ones(x.shape[:2], bool) if MASKS[m] is None else MASKS[m])
        mask = mask & tensor(PRESENT[m])[:, None]
        x = linear(p[f"project_{m}"], tensor(x) * mask[..., None])
        streams[m] = layer_norm(p[f"norm_{m}"], x) + tensor(p[f"modality_{m}"]), mask
    tokens = {m: (x, MASKS[m]) for m, x in TOKENS.items()}
    _, pooled = fusion.fuse(kind, p, tokens, PRESENT, DEPTH)
    np.testing.assert_allclose(pooled, PEERS[kind](p, streams), rtol=1e-9, atol=1e-10)


# -- GANs -----------------------------------------------------------------------------------------------

X, VECTOR = RNG.normal(size=(B, 3, 5, 7)), RNG.normal(size=(B, 4))


@pytest.mark.parametrize("kind", ["fusion", "rms", "batch_norm"])
@pytest.mark.parametrize("own", [True, False], ids=["own statistics", "given statistics"])
def test_modulation(kind, own):
    count = 2 if kind == "fusion" else 1
    p = {f"hidden_{k}": dense(4, 4) for k in range(count)} | {
        f"affine_{k}": dense(4, 14) for k in range(count)
    }
    mean, var = (None, None) if own else (array(7), np.exp(array(7)))
    x = tensor(X).permute(0, 3, 1, 2)
    if kind == "batch_norm":
        x = F.batch_norm(x, *(None if own else tensor(s) for s in (mean, var)), training=own, eps=1e-5)
    if kind == "rms":
        x = F.rms_norm(x.permute(0, 2, 3, 1), (7,), eps=1e-6).permute(0, 3, 1, 2)
    for k in range(count):
        hidden = F.relu(linear(p[f"hidden_{k}"], tensor(VECTOR))) if kind == "fusion" else tensor(VECTOR)
        gamma, beta = linear(p[f"affine_{k}"], hidden)[:, :, None, None].chunk(2, 1)
        x = F.leaky_relu(torch.addcmul(beta, 1 + gamma, x), 0.2)
    found = gan.modulate(kind, p, X, VECTOR, mean, var)
    np.testing.assert_allclose(found, x.permute(0, 2, 3, 1), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", ["projection", "concat", "none"])
def test_critics(kind):
    """The projection is the bilinear form of features and condition, ``torch.nn.functional.bilinear``."""
    tokens, hidden = RNG.normal(size=(B, 5, 6)), 8
    if kind == "projection":
        p = {"hidden": dense(6, hidden), "condition": {"kernel": array(4, hidden)}, "out": dense(hidden, 1)}
        h = F.leaky_relu(linear(p["hidden"], tensor(tokens).mean(1)), 0.2)
        match = F.bilinear(tensor(VECTOR), h, tensor(p["condition"]["kernel"])[None]) / hidden**0.5
        expected = linear(p["out"], h) + match
    else:
        beside = 0 if kind == "none" else 4
        p = {"hidden": dense(6 + beside, hidden), "out": dense(5 * hidden, 2)}
        rows = [tensor(tokens)] + ([] if kind == "none" else [tensor(VECTOR)[:, None].expand(-1, 5, -1)])
        h = F.leaky_relu(linear(p["hidden"], torch.cat(rows, -1)), 0.2)
        expected = linear(p["out"], h.flatten(1))
    np.testing.assert_allclose(gan.critic(kind, p, tokens, VECTOR), expected, rtol=1e-9, atol=1e-10)


def test_spectral_norm_and_its_gradient():
    """``torch.nn.utils.spectral_norm`` from the same vector, whose gradient holds the vectors fixed as well."""
    weight, u, given = RNG.normal(size=(2, 3, 5)), RNG.normal(size=5), RNG.normal(size=(2, 3, 5))
    layer = torch.nn.Linear(6, 5, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(tensor(weight.reshape(6, 5).T))
    layer = torch.nn.utils.spectral_norm(layer, eps=0.0)
    layer.weight_u.copy_(tensor(u))
    layer(torch.zeros(1, 6, dtype=torch.float64))  # one iteration, as the module is in training
    sigma, v, after = gan.power_iteration(weight, u)
    normalized = layer.weight
    their_sigma = tensor(weight.reshape(6, 5).T)[0, 0] / normalized[0, 0]
    (normalized * tensor(given.reshape(6, 5).T)).sum().backward()
    their_u, their_v = (x.numpy() for x in (layer.weight_u, layer.weight_v))
    np.testing.assert_allclose(np.abs(their_u @ after), 1.0, rtol=1e-12)
    np.testing.assert_allclose(their_u @ weight.reshape(6, 5).T @ their_v, their_sigma.item(), rtol=1e-12)
    gradient = gan.spectral_gradient(weight, their_sigma.item(), their_v, their_u, given)
    np.testing.assert_allclose(gradient.reshape(6, 5).T, layer.weight_orig.grad, rtol=1e-9, atol=1e-12)
    top = np.linalg.svd(weight.reshape(6, 5))[1][0]
    for _ in range(500):
        sigma, v, u = gan.power_iteration(weight, u)
    np.testing.assert_allclose(sigma, top, rtol=1e-9)


# -- the Jensen-Shannon divergence ----------------------------------------------------------------------


def test_the_jensen_shannon_objective_reaches_scipys_divergence_at_the_density_ratio():
    """f-GAN's bound, an expectation under P and Q, is twice the divergence (of base e) where v = log p / q, and less
    elsewhere."""
    p, q = np.exp(log_softmax(RNG.normal(size=(2, 9)), axis=1))
    expected = 2 * jensenshannon(p, q) ** 2

    def bound(v):
        # ``_jsd`` of two logits adds a term of each: the one at 0 is added and taken away again.
        at = lambda r, f: adversarial._jsd(r, f)
        return sum(a * at(r, 0.0) + b * at(0.0, r) for a, b, r in zip(p, q, v, strict=True)) - at(0.0, 0.0)

    np.testing.assert_allclose(bound(np.log(p / q)), expected, rtol=1e-12)
    for _ in range(20):
        assert bound(np.log(p / q) + 0.1 * RNG.normal(size=9)) < expected


def test_the_divergence_of_mmjsd_is_its_definition_by_quadrature():
    """The mean divergence of normal distributions and N(0, 1) from their normalised geometric mean."""
    experts = [(np.array([0.7]), np.array([0.6])), (np.array([-1.1]), np.array([1.7]))]
    laws = [norm_law(mean.item(), scale.item()) for mean, scale in [*experts, (np.zeros(1), np.ones(1))]]
    geometric = lambda x: np.exp(np.mean([law.logpdf(x) for law in laws]))
    integral = lambda f: quad(f, -12, 12, limit=200, epsabs=1e-11)[0]
    total = integral(geometric)
    terms = [integral(lambda x, q=q: q.pdf(x) * (q.logpdf(x) - np.log(geometric(x) / total))) for q in laws]
    np.testing.assert_allclose(multimodal.jensen_shannon(experts), np.mean(terms), rtol=1e-6)
