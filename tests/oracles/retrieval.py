"""Ranks by sorting, in float64."""

import numpy as np


def ranks(queries, gallery, correct):
    """``correct``: bool [Q, G]. Wrong items come first among equals."""
    out = []
    for q, right in zip(np.float64(queries), correct, strict=True):
        scores = [float(q @ g) / np.linalg.norm(q) / np.linalg.norm(g) for g in np.float64(gallery)]
        order = sorted(range(len(scores)), key=lambda j: (-scores[j], right[j]))
        best = next(j for j in order if right[j])
        out.append(1 + sum(1 for j in order[: order.index(best)] if not right[j]))
    return np.array(out)
