"""Every fusion's arithmetic in NumPy and float64, from the papers' equations, over the modules' parameters."""

import numpy as np
from scipy.special import softmax

from tests.oracles import nets
from tests.oracles.nets import gelu_tanh as gelu


def dense(p, x):
    return np.tensordot(x, p["kernel"], 1) + p.get("bias", 0.0)


def layer_norm(p, x):
    return nets.layer_norm(x, p["scale"], p["bias"])


def mlp(p, x):
    return dense(p["down"], gelu(dense(p["up"], x)))


def attention(p, x, kv=None, mask=None):
    """``[B, N, D]`` and the map ``[B, H, N, M]``; a row without any key is zero before the output's projection."""
    if kv is None:
        q, k, v = np.moveaxis(dense(p["qkv"], x), 2, 0)
        kv = x
    else:
        q = dense(p["query"], x)
        k, v = np.moveaxis(dense(p["key_value"], kv), 2, 0)
    mask = np.ones(kv.shape[:2], bool) if mask is None else mask
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    weights = np.zeros_like(logits)
    for i, content in enumerate(mask):
        if content.any():
            weights[i][:, :, content] = softmax(logits[i][:, :, content], axis=-1)
    out = np.einsum("bhqk,bkhd->bqhd", weights, v)
    return np.einsum("bqhd,hde->bqe", out, p["out"]["kernel"]) + p["out"]["bias"], weights


def block(p, x, mask, kv=None, kv_mask=None):
    x = x + attention(p["attention"], layer_norm(p["attention_norm"], x), mask=mask)[0]
    if kv is not None:
        x = x + attention(p["cross_attention"], layer_norm(p["cross_norm"], x), kv, kv_mask)[0]
    return x + mlp(p["mlp"], layer_norm(p["mlp_norm"], x))


def streams(p, tokens, present):
    out = {}
    for name, (values, mask) in tokens.items():
        mask = np.ones(values.shape[:2], bool) if mask is None else mask
        mask = mask & present[name][:, None]
        values = layer_norm(
            p[f"norm_{name}"], dense(p[f"project_{name}"], np.where(mask[:, :, None], values, 0.0))
        )
        out[name] = values + p[f"modality_{name}"], mask
    return out


def join(parts):
    parts = list(parts)
    return tuple(np.concatenate([part[i] for part in parts], axis=1) for i in range(2))


def mean_token(values, mask):
    return np.stack(
        [v[m].mean(0) if m.any() else np.zeros(v.shape[-1]) for v, m in zip(values, mask, strict=True)]
    )


def finish(p, values, mask):
    values = layer_norm(p["norm"], values)
    return values, mean_token(values, mask)


def repeat(table, batch):
    return np.broadcast_to(table[None], (batch, *table.shape)), np.ones((batch, len(table)), bool)


def co_attention(p, s, depth):
    for layer in range(depth):
        new = {}
        for name, (values, mask) in s.items():
            others = join(part for other, part in s.items() if other != name)
            new[name] = block(p[f"layers_{name}_{layer}"], values, mask, *others), mask
        s = new
    return finish(p, *join(s.values()))


def merged(p, s, depth):
    values, mask = join(s.values())
    for layer in range(depth):
        values = block(p[f"layers_{layer}"], values, mask)
    return finish(p, values, mask)


def bottleneck(p, s, depth):
    batch = len(next(iter(s.values()))[0])
    shared, always = repeat(p["bottleneck"], batch)
    for layer in range(depth):
        new, parts = {}, []
        for name, (values, mask) in s.items():
            out = block(p[f"layers_{name}_{layer}"], *join([(values, mask), (shared, always)]))
            new[name] = out[:, : values.shape[1]], mask
            parts.append((out[:, values.shape[1] :], mask.any(axis=1)))
        s = new
        rows = []
        for i in range(batch):
            heard = [part[i] for part, there in parts if there[i]]
            rows.append(np.mean(heard, axis=0) if heard else shared[i])
        shared = np.stack(rows)
    return finish(p, *join([(shared, always), *s.values()]))


def gated(p, s, depth):
    (values, mask), *others = s.values()
    others, other_mask = join(others)
    values, mask = join([repeat(p["class_token"][None], len(values)), (values, mask)])
    for layer in range(depth):
        y, _ = attention(
            p[f"cross_attention_{layer}"], layer_norm(p[f"cross_norm_{layer}"], values), others, other_mask
        )
        y = np.where(other_mask.any(axis=1)[:, None, None], y, 0.0)
        values = values + np.tanh(p[f"attention_gate_{layer}"]) * y
        y = mlp(p[f"cross_mlp_{layer}"], layer_norm(p[f"cross_mlp_norm_{layer}"], values))
        values = values + np.tanh(p[f"mlp_gate_{layer}"]) * y
        values = block(p[f"layers_{layer}"], values, mask)
    return finish(p, values, mask)


def perceiver(p, s, depth):
    values, mask = join(s.values())
    x, always = repeat(p["query"], len(values))
    for layer in range(depth):
        y = layer_norm(p[f"query_norm_{layer}"], x)
        seen = join([(layer_norm(p[f"token_norm_{layer}"], values), mask), (y, always)])
        x = x + attention(p[f"attention_{layer}"], y, *seen)[0]
        x = x + mlp(p[f"mlp_{layer}"], layer_norm(p[f"mlp_norm_{layer}"], x))
    return finish(p, x, always)


def concat(p, s, depth):
    x = np.concatenate([mean_token(*part) for part in s.values()], axis=-1)
    for layer in range(depth):
        x = gelu(dense(p[f"hidden_{layer}"], x))
    x = dense(p["out"], x)
    return x[:, None], x


def additive(p, s, depth):
    values, mask = join(s.values())
    scores = dense(p["score"], np.tanh(dense(p["hidden"], values)))[:, :, 0]
    x = np.zeros((len(values), values.shape[-1]))
    for i, content in enumerate(mask):
        if content.any():
            x[i] = softmax(scores[i, content]) @ values[i, content]
    x = x + mlp(p["mlp"], layer_norm(p["mlp_norm"], x))
    return x[:, None], x


def bilinear(p, s, depth):
    """Equation 7 with its sum over the rank taken as a mean, each product of factors written out."""
    factors = {name: p[f"factor_{name}"] for name in s}
    rank = next(iter(factors.values()))["bias"].shape[0]
    total = 0.0
    for r in range(rank):
        product = 1.0
        for name, part in s.items():
            product = product * (mean_token(*part) @ factors[name]["kernel"][:, r] + factors[name]["bias"][r])
        total = total + product / rank
    x = layer_norm(p["mlp_norm"], total)
    x = x + mlp(p["mlp"], x)
    return x[:, None], x


def film(p, s, depth):
    (values, mask), *others = s.values()
    condition = np.concatenate([mean_token(*part) for part in others], axis=-1)
    values, mask = join([repeat(p["class_token"][None], len(values)), (values, mask)])
    for layer in range(depth):
        gamma, beta = np.split(dense(p[f"film_{layer}"], condition)[:, None], 2, axis=-1)
        values = block(p[f"layers_{layer}"], values * (1 + gamma) + beta, mask)
    return finish(p, values, mask)


ORACLES = {
    "co_attention": co_attention,
    "merged": merged,
    "bottleneck": bottleneck,
    "gated": gated,
    "perceiver": perceiver,
    "concat": concat,
    "additive": additive,
    "bilinear": bilinear,
    "film": film,
}


def fuse(kind, params, tokens, present, depth):
    """``(values [B, N, D], pooled [B, D])`` of the fusion ``kind``."""
    return ORACLES[kind](params, streams(params, tokens, present), depth)
