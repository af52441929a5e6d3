"""Plain NumPy references for the networks, in float64 and loops; nothing of xmodal_jax is imported."""

import numpy as np


def attention(q, k, v, allowed):
    """``[N, H, D]``, ``[M, H, D]`` twice and bool ``[N, M]``; rows without an allowed key give zeros."""
    out = np.zeros_like(q)
    for h in range(q.shape[1]):
        for i in range(q.shape[0]):
            use = np.flatnonzero(allowed[i])
            if len(use):
                logits = np.array([q[i, h] @ k[j, h] for j in use]) / np.sqrt(q.shape[-1])
                weights = np.exp(logits - logits.max())
                weights /= weights.sum()
                out[i, h] = sum(w * v[j, h] for w, j in zip(weights, use, strict=True))
    return out


def layer_norm(x, scale, bias):
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * scale + bias


def gelu_tanh(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def transformer_block(params, x, allowed):
    """One example ``[N, D]`` through a pre-norm block, from its parameters (Flax names)."""
    y = layer_norm(x, **params["attention_norm"])
    weights = params["attention"]
    q, k, v = np.einsum("nd,dchk->cnhk", y, weights["qkv"]["kernel"]) + weights["qkv"]["bias"][:, None]
    heads = attention(q, k, v, allowed)
    x = x + np.einsum("nhk,hkd->nd", heads, weights["out"]["kernel"]) + weights["out"]["bias"]
    y = layer_norm(x, **params["mlp_norm"])
    hidden = gelu_tanh(y @ params["mlp"]["up"]["kernel"] + params["mlp"]["up"]["bias"])
    return x + hidden @ params["mlp"]["down"]["kernel"] + params["mlp"]["down"]["bias"]


def group_norm(x, groups, eps=1e-6):
    """``[H, W, C]`` of one example, without scale and bias."""
    height, width, channels = x.shape
    grouped = x.reshape(height * width, groups, channels // groups)
    mean = grouped.mean((0, 2), keepdims=True)
    return ((grouped - mean) / np.sqrt(grouped.var((0, 2), keepdims=True) + eps)).reshape(x.shape)
