"""SSIM by convolution in two dimensions, coherence by counting, information by histograms, in float64; SAP and DCI as
disentanglement_lib has them."""

import numpy as np
from scipy.signal import convolve2d
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.svm import LinearSVC


def gaussian(window, sigma):
    x = np.arange(window) - (window - 1) / 2
    w = np.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * sigma**2))
    return w / w.sum()


def ssim(a, b, window=11, sigma=1.5, data_range=1.0):
    """Of one image [H, W, C]."""
    w, out = gaussian(window, sigma), []
    mean = lambda x: convolve2d(x, w, mode="valid")
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    for x, y in zip(np.moveaxis(np.float64(a), -1, 0), np.moveaxis(np.float64(b), -1, 0), strict=True):
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        out.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(out)


def ssim_from_patches(a, b, window, sigma):
    """Of one image [H, W, C], by differences from each window's mean (Wang et al. 2004, eq. 14 to 16)."""
    w, out = gaussian(window, sigma), []
    a, b = np.float64(a), np.float64(b)
    for c in range(a.shape[2]):
        for i in range(a.shape[0] - window + 1):
            for j in range(a.shape[1] - window + 1):
                x, y = (z[i : i + window, j : j + window, c] for z in (a, b))
                mx, my = (w * x).sum(), (w * y).sum()
                vx, vy = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum()
                cov = (w * (x - mx) * (y - my)).sum()
                out.append(
                    (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
                )
    return np.mean(out)


def macro_accuracy(predictions, labels, here):
    """NaN where no example counts."""
    per_class = []
    for c in sorted({int(k) for k, h in zip(labels, here, strict=True) if k >= 0 and h}):
        right = [int(p) == c for p, k, h in zip(predictions, labels, here, strict=True) if k == c and h]
        per_class.append(sum(right) / len(right))
    return sum(per_class) / len(per_class) if per_class else float("nan")


def mutual_information_gap(codes, factors, bins):
    gaps = []
    for v in factors.T:
        values = np.unique(v)
        p_v = np.array([(v == k).mean() for k in values])
        entropy = -sum(p * np.log2(p) for p in p_v)
        information = []
        for z in codes.T:
            edges = np.histogram_bin_edges(z, bins)
            joint = np.stack([np.histogram(z[v == k], edges)[0] for k in values]) / len(v)
            total = 0.0
            for k in range(len(values)):
                for q, p_z in zip(joint[k], joint.sum(axis=0), strict=True):
                    total += q * np.log2(q / (p_v[k] * p_z)) if q > 0 else 0.0
            information.append(total)
        best = max(range(len(information)), key=information.__getitem__)
        others = [x for j, x in enumerate(information) if j != best]
        gaps.append((information[best] - max(others)) / entropy)
    return np.mean(gaps)


def sap(codes, factors, test_codes, test_factors):
    """As disentanglement_lib computes it for discrete factors, by the dual problem."""
    score = np.zeros((codes.shape[1], factors.shape[1]))
    for i in range(codes.shape[1]):
        for j in range(factors.shape[1]):
            classifier = LinearSVC(
                C=0.01, class_weight="balanced", dual=True, random_state=0, max_iter=100_000
            )
            classifier.fit(codes[:, [i]], factors[:, j])
            score[i, j] = np.mean(classifier.predict(test_codes[:, [i]]) == test_factors[:, j])
    ordered = np.sort(score, axis=0)
    return np.mean(ordered[-1] - ordered[-2])


def dci(codes, factors, test_codes, test_factors, trees):
    """As disentanglement_lib computes it: disentanglement, completeness and accuracy on the test examples."""
    importance, accuracy = [], []
    for j in range(factors.shape[1]):
        model = GradientBoostingClassifier(n_estimators=trees, random_state=0).fit(codes, factors[:, j])
        importance.append(np.abs(model.feature_importances_))
        accuracy.append(model.score(test_codes, test_factors[:, j]))
    weights = np.stack(importance, axis=1)
    of_code = 1 - entropy(weights.T + 1e-11, base=weights.shape[1])
    of_factor = 1 - entropy(weights + 1e-11, base=weights.shape[0])
    disentanglement = np.sum(of_code * weights.sum(axis=1)) / weights.sum()
    return disentanglement, np.sum(of_factor * weights.sum(axis=0)) / weights.sum(), np.mean(accuracy)
