"""Generators, their parts and spectral normalisation; all arrays are NumPy's float64, parameters have Flax's names."""

import numpy as np

from tests.oracles.nets import attention, group_norm, layer_norm


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def dense(p, x):
    """The last axis through ``kernel [in, out]`` and, if there is one, ``bias``."""
    return x @ p["kernel"] + p.get("bias", 0.0)


def conv(p, x, stride=1):
    """SAME: ``ceil(side / stride)`` pixels, the padding's odd one at the end. ``[B, H, W, C]``."""
    kernel = p["kernel"]
    sides = [-(-n // stride) for n in x.shape[1:3]]
    pads = [
        max((m - 1) * stride + k - n, 0) for m, k, n in zip(sides, kernel.shape, x.shape[1:3], strict=False)
    ]
    x = np.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)])
    out = np.zeros((len(x), *sides, kernel.shape[-1]))
    for i in range(sides[0]):
        for j in range(sides[1]):
            window = x[
                :, i * stride : i * stride + kernel.shape[0], j * stride : j * stride + kernel.shape[1]
            ]
            out[:, i, j] = np.einsum("bhwc,hwco->bo", window, kernel)
    return out + p.get("bias", 0.0)


def upsample(p, x):
    """A transposed 4x4 convolution of stride 2, SAME: zeros between the pixels and two around, then every window."""
    kernel = p["kernel"]
    batch, height, width, channels = x.shape
    spread = np.zeros((batch, 2 * height + 3, 2 * width + 3, channels))
    spread[:, 2 : 2 + 2 * height : 2, 2 : 2 + 2 * width : 2] = x
    out = np.zeros((batch, 2 * height, 2 * width, kernel.shape[-1]))
    for i in range(2 * height):
        for j in range(2 * width):
            out[:, i, j] = np.einsum("bhwc,hwco->bo", spread[:, i : i + 4, j : j + 4], kernel)
    return out + p.get("bias", 0.0)


def batch_norm(x, mean, var):
    return (x - mean) / np.sqrt(var + 1e-5)


def modulate(kind, p, x, vector, mean=None, var=None):
    """``mean``, ``var``: the statistics of "batch_norm"; None takes the batch's own."""
    if kind == "batch_norm":
        own = mean is None
        x = batch_norm(x, x.mean((0, 1, 2)) if own else mean, x.var((0, 1, 2)) if own else var)
    if kind == "rms":
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    for k in range(2 if kind == "fusion" else 1):
        hidden = np.maximum(dense(p[f"hidden_{k}"], vector), 0) if kind == "fusion" else vector
        both = dense(p[f"affine_{k}"], hidden)
        features = x.shape[-1]
        x = np.stack([leaky(a * (1 + c[:features]) + c[features:]) for a, c in zip(x, both, strict=True)])
    return x


def places(height, width):
    """Row and column of every pixel, from -1 to 1, ``[H, W, 2]``."""
    at = lambda k, n: -1 + 2 * k / (n - 1)
    return np.array([[[at(i, height), at(j, width)] for j in range(width)] for i in range(height)])


def attend(p, name, x, words, mask):
    """What every place of ``x [B, H, W, D]`` sees of the words ``[B, L, E]``."""
    batch, height, width, features = x.shape
    own, out = p[name], np.zeros_like(x)
    for b in range(batch):
        query = dense(p[f"{name}_query"], np.concatenate([x[b], places(height, width)], -1))
        query = query.reshape(height * width, features) + p[f"{name}_places"]
        query = layer_norm(query, **p[f"{name}_norm"])
        q = np.einsum("nd,dhk->nhk", query, own["query"]["kernel"]) + own["query"]["bias"]
        kv = np.einsum("nd,dchk->cnhk", words[b], own["key_value"]["kernel"])
        k, v = kv + own["key_value"]["bias"][:, None]
        heads = attention(q, k, v, np.broadcast_to(mask[b], (len(q), len(k))))
        seen = np.einsum("nhk,hkd->nd", heads, own["out"]["kernel"]) + own["out"]["bias"]
        out[b] = seen.reshape(height, width, features)
    return out


def residual_generator(p, noise, vector, words, mask, **sizes):
    """Pixels ``[B, H, W, C]``; see `residual_pixels`."""
    return np.tanh(residual_pixels(p, np.concatenate([noise, vector], -1), words, mask, **sizes))


def residual_pixels(p, code, words=None, mask=None, *, sizes, width, kind, attended=()):
    """Without an activation; ``sizes``: height and width of every block, the smallest first."""
    style = leaky(dense(p["style"], code))
    x = dense(p["start"], style).reshape(len(code), *sizes[0], width)
    for k, size in enumerate(sizes):
        if k:
            x = x.repeat(2, axis=1).repeat(2, axis=2)
        assert x.shape[1:3] == size
        if f"shortcut_{k}" in p:
            x = dense(p[f"shortcut_{k}"], x)
        if size[0] in attended:
            x = x + attend(p, f"attention_{k}", x, words, mask)
        branch = x
        for layer in range(2):
            branch = modulate(kind, p[f"modulation_{k}_{layer}"], branch, style)
            branch = conv(p[f"conv_{k}_{layer}"], branch)
        x = x + branch
    return upsample(p["pixels"], modulate(kind, p["modulation_out"], x, style))


def dcgan_generator(p, statistics, noise, vector, *, size, stages):
    """In evaluation; ``size``: height and width at the start."""
    x = dense(p["start"], np.concatenate([noise, vector], -1)).reshape(len(noise), *size, -1)
    for k in range(stages):
        norm, kept = p[f"norm_{k}"], statistics[f"norm_{k}"]
        x = batch_norm(x, kept["mean"], kept["var"]) * norm["scale"] + norm["bias"]
        x = upsample(p[f"up_{k}"], np.maximum(x, 0))
    return np.tanh(x)


def _spread(x, axis):
    """Zeros after each element: ``2 n`` of them."""
    out = np.zeros([2 * n if a == axis else n for a, n in enumerate(x.shape)])
    out[(slice(None),) * axis + (slice(0, None, 2),)] = x
    return out


def _filter_121(x, axis):
    """``[1, 2, 1]`` at each place, with zeros outside; the window begins at the place before."""
    rolled = np.pad(x, [(1, 1) if a == axis else (0, 0) for a in range(x.ndim)])
    at = lambda k: rolled[(slice(None),) * axis + (slice(k, k + x.shape[axis]),)]
    return at(0) + 2 * at(1) + at(2)


def upsample_smooth(x):
    """Zeros before the pixels' own places, then the filter of gain 2 along each axis."""
    for axis in (1, 2):
        spread = np.roll(_spread(x, axis), 1, axis)  # the pixels at odd places
        x = _filter_121(spread, axis) / 2
    return x


def downsample_smooth(x):
    for axis in (1, 2):
        x = (_filter_121(x, axis) / 4)[(slice(None),) * axis + (slice(0, None, 2),)]
    return x


def r3gan_block(p, x, group_size):
    """Each group's convolution on its own."""
    y = leaky(dense(p["expand"], x) + p["activation_0"]["bias"])
    kernel, groups = p["conv"]["kernel"], y.shape[-1] // group_size
    parts = [slice(g * group_size, (g + 1) * group_size) for g in range(groups)]
    y = np.concatenate([conv({"kernel": kernel[..., part]}, y[..., part]) for part in parts], -1)
    return x + dense(p["reduce"], leaky(y + p["activation_1"]["bias"]))


def _r3gan_stage(p, x, stage, group_size):
    for name in sorted(name for name in p if name.startswith(f"block_{stage}_")):
        x = r3gan_block(p[name], x, group_size)
    return x


def r3gan_generator(p, noise, vector, *, stages, group_size):
    """Pixels before they are clipped. The channels change after the resampling here, as in the paper."""
    x = p["basis"] * dense(p["start"], np.concatenate([noise, vector], -1))[:, None, None]
    for stage in range(stages):
        x = upsample_smooth(x) if stage else x
        x = dense(p[f"channels_{stage}"], x) if f"channels_{stage}" in p else x
        x = _r3gan_stage(p, x, stage, group_size)
    return dense(p["pixels"], x)


def r3gan_encoder(p, x, *, stages, group_size):
    """One vector ``[B, D]`` per image."""
    x = dense(p["pixels"], x)
    for stage in reversed(range(stages)):
        x = dense(p[f"channels_{stage}"], x) if f"channels_{stage}" in p else x
        x = _r3gan_stage(p, x, stage, group_size)
        x = downsample_smooth(x) if stage else x
    return (x * p["basis"]).sum((1, 2))


def plain_convnet(p, x):
    """Tokens ``[B, N, D]`` of the discriminator of DCGAN."""
    for k in range(sum(name.startswith("conv") for name in p)):
        x = conv(p[f"conv_{k}"], x, 2)
        if f"norm_{k}" in p:
            norm = p[f"norm_{k}"]
            x = np.stack([group_norm(one, np.gcd(8, one.shape[-1])) for one in x])
            x = x * norm["scale"] + norm["bias"]
        x = leaky(x)
    return x.reshape(len(x), -1, x.shape[-1])


def critic(kind, p, tokens, vector):
    """``[B, outputs]``, one example and one token after the other."""
    out = []
    for b, rows in enumerate(tokens):
        if kind == "projection":
            h = leaky(dense(p["hidden"], rows.mean(0)))
            match = dense(p["condition"], vector[b]) @ h
            out.append(dense(p["out"], h) + match / np.sqrt(len(h)))
        elif kind == "linear":
            h = dense(p["out"], rows.mean(0))
            out.append(h if vector is None else [dense(p["condition"], vector[b]) @ h / np.sqrt(len(h))])
        else:
            beside = [] if kind == "none" else [vector[b]]
            h = [leaky(dense(p["hidden"], np.concatenate([row, *beside]))) for row in rows]
            out.append(dense(p["out"], np.concatenate(h)))
    return np.stack(out)


def power_iteration(weight, u):
    """The singular value of ``weight [..., outputs]`` as one iteration from u has it, and both vectors (v, u)."""
    w = weight.reshape(-1, weight.shape[-1])
    v = w @ u
    u = w.T @ (v / np.linalg.norm(v))
    u = u / np.linalg.norm(u)
    v = w @ u
    v = v / np.linalg.norm(v)
    return v @ w @ u, v, u


def spectral_gradient(weight, sigma, v, u, given):
    """Of ``sum(given * W / sigma(W))`` with ``sigma = v^T W u``, the vectors held fixed."""
    return given / sigma - (given * weight).sum() / sigma**2 * np.outer(v, u).reshape(weight.shape)
