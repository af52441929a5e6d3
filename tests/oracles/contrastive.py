"""Contrastive losses one pair at a time, in float64."""

import math

import numpy as np


def _roles(i, j, ids, duplicates):
    """Whether j is a positive of i, and whether it counts at all."""
    same = i == j
    if ids is not None:  # one id of each example, or several kinds
        same |= any(x == y != -1 for x, y in zip(np.ravel(ids[i]), np.ravel(ids[j]), strict=True))
    if i == j or duplicates == "ignore":
        return i == j, True
    if duplicates == "exclude":
        return False, not same
    return same, True


def _cross_entropy(scores, i, ids, present, duplicates):
    positives, total = [], 0.0
    for j, score in enumerate(scores):
        positive, counts = _roles(i, j, ids, duplicates)
        if not present[j] or not counts:
            continue
        total += math.exp(score)
        if positive:
            positives.append(score)
    return math.log(total) - sum(positives) / len(positives)


def info_nce(a, b, temperature, present=None, ids=None, duplicates="ignore"):
    a, b = np.float64(a), np.float64(b)
    scores = a @ b.T / temperature
    present = np.ones(len(a), bool) if present is None else present
    out = np.zeros(len(a))
    for i in np.flatnonzero(present):
        row = _cross_entropy(scores[i], i, ids, present, duplicates)
        col = _cross_entropy(scores[:, i], i, ids, present, duplicates)
        out[i] = (row + col) / 2
    return out


def sigmoid_loss(a, b, temperature, bias, present=None, ids=None, duplicates="ignore"):
    a, b = np.float64(a), np.float64(b)
    present = np.ones(len(a), bool) if present is None else present
    out = np.zeros(len(a))
    for i in np.flatnonzero(present):
        for j in np.flatnonzero(present):
            positive, counts = _roles(i, j, ids, duplicates)
            if counts:
                z = a[i] @ b[j] / temperature + bias
                out[i] += math.log1p(math.exp(-z if positive else z))
    return out


def triplet_loss(a, b, margin, hardest, present=None, ids=None, duplicates="exclude"):
    a, b = np.float64(a), np.float64(b)
    scores = a @ b.T
    present = np.ones(len(a), bool) if present is None else present
    out = np.zeros(len(a))
    for i in np.flatnonzero(present):
        for s in (scores[i], scores[:, i]):
            hinges = [0.0]
            for j in np.flatnonzero(present):
                positive, counts = _roles(i, j, ids, duplicates)
                if counts and not positive:
                    hinges.append(max(0.0, margin + s[j] - scores[i, i]))
            out[i] += max(hinges) if hardest else sum(hinges)
    return out
