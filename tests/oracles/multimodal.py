"""Multimodal VAEs in NumPy, float64, one example at a time: what is missing is simply not in the lists given here.

A distribution is a pair (mean, scale) of vectors. ``rec`` is a list of functions ``z -> -log p(x_m | z)``,
``experts`` a list of distributions; both hold the modalities that the example has. Noise is what turns a distribution
into a sample.
"""

import itertools

import numpy as np
from scipy.special import logsumexp

from tests.oracles.vae import linear_evidence, normal_log_prob  # noqa: F401


def laplace_log_prob(x, mean, scale):
    return -np.abs(x - mean) / scale - np.log(2 * scale)


def normal_kl(q, p):
    """Of vectors of independent elements."""
    return np.sum(np.log(p[1] / q[1]) + (q[1] ** 2 + (q[0] - p[0]) ** 2) / (2 * p[1] ** 2) - 0.5)


def laplace_kl(q, p):
    far = np.abs(q[0] - p[0])
    return np.sum(np.log(p[1] / q[1]) + far / p[1] + q[1] / p[1] * np.exp(-far / q[1]) - 1)


def at(q, noise):
    return q[0] + q[1] * noise


def standard(q):
    return np.zeros_like(q[0]), np.ones_like(q[0])


def to_prior(q):
    return normal_kl(q, standard(q))


def subsets(members, smallest=1, largest=None):
    """Tuples of members, by size and then in their order."""
    sizes = range(smallest, (len(members) if largest is None else largest) + 1)
    return [s for size in sizes for s in itertools.combinations(members, size)]


def product(factors, weights=None, prior=0.0):
    """Of distributions to the power of their weights, and of N(0, 1) to that of ``prior``."""
    weights = np.ones(len(factors)) if weights is None else weights
    precision = prior + sum(w / q[1] ** 2 for w, q in zip(weights, factors, strict=True))
    located = sum(w * q[0] / q[1] ** 2 for w, q in zip(weights, factors, strict=True))
    return located / precision, np.sqrt(1 / precision)


def mixture_log_prob(z, experts, log_prob=normal_log_prob):
    return logsumexp([log_prob(z, *q).sum() for q in experts]) - np.log(len(experts))


def clusters_log_prob(z, components, logits, log_prob=normal_log_prob):
    """``components``: a list of distributions."""
    log_p = logits - logsumexp(logits)
    return logsumexp([w + log_prob(z, *c).sum() for w, c in zip(log_p, components, strict=True)])


def total(rec, z):
    return sum(r(z) for r in rec)


def joint_elbo(rec, joint, noise, beta):
    return total(rec, at(joint, noise)) + beta * to_prior(joint)


def jmvae(rec, joint, experts, noise, beta, alpha):
    near = sum(normal_kl(joint, q) for q in experts)
    return total(rec, at(joint, noise)) + beta * (to_prior(joint) + alpha * near)


def unimodal_elbos(rec, experts, noise, beta, kl=normal_kl):
    each = zip(rec, experts, noise, strict=True)
    return sum(r(at(q, e)) + beta * kl(q, standard(q)) for r, q, e in each)


def mvae(rec, experts, chosen, noise, beta):
    """``chosen``: lists of places in the other lists; ``noise``: for each of them."""
    loss = 0.0
    for members, e in zip(chosen, noise, strict=True):
        q = product([experts[i] for i in members], prior=1.0)
        loss += sum(rec[i](at(q, e)) for i in members) + beta * to_prior(q)
    return loss


def mopoe(rec, experts, powerset, chosen, noise, beta, has_prior):
    """``has_prior(members)``: whether the prior is one of a subset's experts; ``chosen``: which z is of."""
    of = lambda members: product([experts[i] for i in members], prior=float(has_prior(members)))
    divergence = np.mean([to_prior(of(members)) for members in powerset])
    return total(rec, at(of(chosen), noise)) + beta * divergence


def jensen_shannon(experts):
    """Of the experts and N(0, 1), against their geometric mean, all of equal weight."""
    all_of_them = [*experts, standard(experts[0])]
    share = 1 / len(all_of_them)
    mean = product(all_of_them, weights=[share] * len(all_of_them))
    return sum(share * normal_kl(q, mean) for q in all_of_them)


def jensen_shannon_on_a_grid(experts):
    """The same by its definition, one dimension at a time."""
    x, found = np.linspace(-30, 30, 40001), 0.0
    for j in range(len(experts[0][0])):
        logs = [normal_log_prob(x, q[0][j], q[1][j]) for q in experts] + [normal_log_prob(x, 0.0, 1.0)]
        geometric = np.mean(logs, axis=0)
        geometric = geometric - np.log(np.trapezoid(np.exp(geometric), x))
        found += np.mean([np.trapezoid(np.exp(log) * (log - geometric), x) for log in logs])
    return found


def mmjsd(rec, experts, chosen, noise, beta):
    return total(rec, at(experts[chosen], noise)) + beta * jensen_shannon(experts)


def mvtcae(rec, experts, noise, beta, alpha):
    count, q = len(experts), product(experts)
    correlation = (1 - alpha) * to_prior(q) + alpha / count * sum(normal_kl(q, e) for e in experts)
    return (count - alpha) / count * total(rec, at(q, noise)) + beta * correlation


def crmvae(rec, experts, of_product, of_experts, beta):
    q = product(experts)
    told = total(rec, at(q, of_product))
    told += sum(r(at(e, noise)) for r, e, noise in zip(rec, experts, of_experts, strict=True))
    return (told + beta * (to_prior(q) + sum(normal_kl(q, e) for e in experts))) / (len(experts) + 1)


def dmvae(rec, experts, private, shared, own, beta, private_beta):
    """``shared``: noise of the product and then of each expert; ``own[t][row]``: that of the private ones."""
    loss = 0.0
    for row, q in enumerate([product(experts, prior=1.0), *experts]):
        z = at(q, shared[row])
        for r, w, noise in zip(rec, private, own, strict=True):
            loss += r(np.concatenate([z, at(w, noise[row])])) + private_beta * to_prior(w)
        loss += beta * to_prior(q)
    return loss


def mmvae_log_weights(rec, experts, noise, log_prior, beta, *, log_prob=normal_log_prob, plus=None):
    """``[M, K]`` for ``noise [K, M, D]``. ``plus``: (private distributions, their noise [K, M, P], their prior,
    auxiliary distributions, noise of these [M, K, M, P]: of target, sample, source)."""
    weights = np.zeros((len(experts), len(noise)))
    for m, k in np.ndindex(*weights.shape):
        z = at(experts[m], noise[k][m])
        ratio = log_prior(z) - mixture_log_prob(z, experts, log_prob)
        codes = [z] * len(rec)
        if plus is not None:
            private, own, prior, auxiliary, other = plus
            w = at(private[m], own[k][m])
            ratio += log_prob(w, *prior).sum() - log_prob(w, *private[m]).sum()
            tell = [w if t == m else at(q, other[t][k][m]) for t, q in enumerate(auxiliary)]
            codes = [np.concatenate([z, one]) for one in tell]
        weights[m, k] = -sum(r(c) for r, c in zip(rec, codes, strict=True)) + beta * ratio
    return weights


def mmvae(*args, **how):
    log_weights = mmvae_log_weights(*args, **how)
    return -np.mean(logsumexp(log_weights, axis=1) - np.log(log_weights.shape[1]))


def dreg_of_mmvae(score, experts, noise, log_weights, beta):
    """By each expert's mean and log-scale, of a standard-normal prior: ``-1/M sum_k w_k (1 - beta + beta w_k) (d log
    w_k / d z) (d z / d phi)``, the density's own parameters held. ``score(z)``: the gradient of the log-likelihood of
    all.

    This is the estimator, which the loss must equal; that its mean is the gradient of the value, for one modality, is
    tested by Monte-Carlo."""
    grads = []
    for m, (mean, scale) in enumerate(experts):
        share = np.exp(log_weights[m] - logsumexp(log_weights[m]))
        by_mean, by_log_scale = np.zeros_like(mean), np.zeros_like(mean)
        for k, w in enumerate(share):
            z = at(experts[m], noise[k][m])
            logs = np.array([normal_log_prob(z, *q).sum() for q in experts])
            belongs = np.exp(logs - logsumexp(logs))
            of_mixture = sum(r * (q[0] - z) / q[1] ** 2 for r, q in zip(belongs, experts, strict=True))
            by_z = score(z) + beta * (-z - of_mixture)
            by_mean -= w * (1 - beta + beta * w) * by_z / len(experts)
            by_log_scale -= w * (1 - beta + beta * w) * by_z * scale * noise[k][m] / len(experts)
        grads.append((by_mean, by_log_scale))
    return grads


def consensus(experts, correlation):
    """By the covariance of the experts' errors in each dimension, inverted (Winkler 1981)."""
    mean, scale = [], []
    for m, s in zip(*(np.stack(x, axis=-1) for x in zip(*experts, strict=True)), strict=True):
        covariance = correlation * np.outer(s, s)
        np.fill_diagonal(covariance, s**2)
        weights = np.linalg.inv(covariance).sum(axis=0)
        mean.append(weights @ m / weights.sum())
        scale.append(weights.sum() ** -0.5)
    return np.array(mean), np.array(scale)


def code_vae(rec, experts, logits, noise, beta, correlation, entropy_weight, drawn=None, share=1.0):
    """``logits`` goes over all subsets; ``drawn``: the places of those that are decoded, whose reconstructions stand
    for ``share`` times as many; ``noise``: of these."""
    ways = subsets(range(len(experts)))
    weights = np.exp(logits - logsumexp(logits))
    q = [consensus([experts[i] for i in members], correlation) for members in ways]
    divergence = sum(w * to_prior(one) for w, one in zip(weights, q, strict=True))
    drawn = range(len(ways)) if drawn is None else drawn
    told = sum(share * weights[k] * total(rec, at(q[k], e)) for k, e in zip(drawn, noise, strict=True))
    return told + beta * divergence + entropy_weight * np.sum(weights * np.log(weights))


def mmvm_bound(experts, alpha):
    """Of each expert's divergence from the mixture of all and N(0, 1), by Jensen's inequality."""
    count = len(experts)
    pairs = sum(normal_kl(q, p) for q in experts for p in experts)
    return (1 - alpha) / count * pairs + alpha * sum(to_prior(q) for q in experts)


def mmvm_by_samples(experts, noise, alpha):
    """Of the same divergences an estimate from ``noise [K, M, D]``."""
    found = 0.0
    for draw in noise:
        for q, e in zip(experts, draw, strict=True):
            z = at(q, e)
            parts = [np.log1p(-alpha) + mixture_log_prob(z, experts)]
            if alpha:
                parts.append(np.log(alpha) + normal_log_prob(z, 0.0, 1.0).sum())
            found += (normal_log_prob(z, *q).sum() - logsumexp(parts)) / len(noise)
    return found


def mmvm(rec, experts, noise, divergence, beta):
    each = zip(rec, experts, noise, strict=True)
    return sum(r(at(q, e)) for r, q, e in each) + beta * divergence


def flow_match(joint, experts, flows, noise):
    """``flows``: functions ``z -> (where it goes, log |det|)``."""
    loss, z = 0.0, at(joint, noise)
    for q, flow in zip(experts, flows, strict=True):
        base, log_det = flow(z)
        loss -= normal_log_prob(base, *q).sum() + log_det
    return loss


def nexus(rec, experts, nets, perceived, own, top, beta, top_beta, gamma, held=None):
    """``nets``: (messages, gather, tells), the first and the last a list of functions; ``perceived``: places in the
    lists; ``held``: the codes that the level above sees, where they are not those of the experts given."""
    messages, gather, tells = nets
    codes = [at(q, e) for q, e in zip(experts, own, strict=True)]
    loss = sum(r(z) + beta * to_prior(q) for r, z, q in zip(rec, codes, experts, strict=True))
    codes = codes if held is None else held
    q = gather(np.mean([messages[i](codes[i]) for i in perceived], axis=0))
    above = at(q, top)
    told = -sum(normal_log_prob(z, tell(above), 1.0).sum() for z, tell in zip(codes, tells, strict=True))
    return loss + gamma * told + beta * top_beta * to_prior(q)


def mhvae(rec, descents, beta):
    """``descents``: of each subset the code for the decoders, and the divergence of each level."""
    return np.mean([total(rec, z) + beta * sum(divergences) for z, divergences in descents])
