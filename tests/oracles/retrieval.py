"""Ranks by sorting, in float64, and the protocol of COCO and Flickr30k."""

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


def coco_protocol(images, captions, per_image=5):
    """Recall at 1, 5 and 10 as papers on COCO and Flickr30k report it (Faghri et al. 2018, VSE++).

    Images [P, d]; captions [P * per_image, d], those of image i from i * per_image on. An image's rank is that of the
    best of its own captions among all captions; a caption's rank is that of its image among the P images.
    """
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    similarity = unit(np.float64(images)) @ unit(np.float64(captions)).T
    of_images = np.zeros(len(images), int)
    for i, row in enumerate(similarity):
        order = np.argsort(-row).tolist()
        of_images[i] = min(order.index(c) for c in range(i * per_image, (i + 1) * per_image))
    of_captions = np.zeros(len(captions), int)
    for c, column in enumerate(similarity.T):
        of_captions[c] = np.argsort(-column).tolist().index(c // per_image)
    recall = lambda positions: {f"recall@{k}": float(np.mean(positions < k)) for k in (1, 5, 10)}
    return {"image_to_text": recall(of_images), "text_to_image": recall(of_captions)}


def mixed(vectors, modalities, ids, k):
    """``(recall, other)`` at k, one query at a time: every other vector is in its gallery."""
    unit = np.float64(vectors) / np.linalg.norm(np.float64(vectors), axis=1, keepdims=True)
    recalls, others = [], []
    for i, query in enumerate(unit):
        gallery = [j for j in range(len(unit)) if j != i]
        nearest = sorted(gallery, key=lambda j: -float(query @ unit[j]))[:k]
        others += [modalities[j] != modalities[i] for j in nearest]
        if any(ids[j] == ids[i] for j in gallery):
            recalls.append(any(ids[j] == ids[i] for j in nearest))
    return np.mean(recalls), np.mean(others)
