"""Mean and covariance of coefficients across pixels: theta_l ~ N(m, Sigma), by a direct ascent on their evidence.

ln p(y | m, Sigma) = sum_l [-1/2 ln |I + Sigma A_l| + 1/2 r_l' (Sigma^-1 + A_l)^-1 r_l + b_l' m - 1/2 m' A_l m],
r_l = b_l - A_l m

A_l = sum_n w_nl phi_n phi_n', b_l = sum_n w_nl y_nl phi_n: all that the stars say of pixel l. Expectation-maximisation
moves a variance that is below the noise by a small fraction of itself at a time, hundreds of times. Fisher scoring
takes some ten steps: in coordinates t = W^-1 (theta - m), W W' = Sigma, in which the pixels' mean A_l is diagonal, the
information about element ij of Sigma is nearly the mean over pixels of g_li g_lj, g_l the share of t_l that the data of
pixel l determine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.linalg.lapack import dtrtri

BLOCK = 128
"""Pixels at a time: matrices of so many stay near the cache."""
SMALLEST, LARGEST = 0.1, 10.0
"""Factors, at most, by which a variance falls or grows in a step."""
FURTHEST = 32.0
"""Times the step of Fisher scoring, at most."""
SINGULAR = 1e-13
"""Eigenvalue of a matrix of correlations that rounding may have made."""
HALVINGS = 12
"""Halvings of a step that lowers the density, before the search is given up."""


class Hyperprior(NamedTuple):
    """m ~ N(0, width^2), Sigma ~ InverseWishart(freedom, matrix)."""

    width: float
    freedom: float
    matrix: np.ndarray

    def log_density(self, mean: np.ndarray, covariance: np.ndarray) -> float:
        """ln p(m, Sigma), up to a constant."""
        k = len(mean)
        of_covariance = (self.freedom + k + 1) * np.linalg.slogdet(covariance)[1]
        of_covariance += np.trace(np.linalg.solve(covariance, self.matrix))
        return -0.5 * float(of_covariance + (mean**2).sum() / self.width**2)


class HierarchyMode(NamedTuple):
    """m (K,), Sigma (K, K), the log density of both, that without the hyperprior (the evidence), whether no step adds
    to it, and the steps taken."""

    mean: np.ndarray
    covariance: np.ndarray
    log_density: float
    evidence: float
    converged: bool
    steps: int


class _Sums(NamedTuple):
    """Over pixels, in coordinates t: of E[t], E[t] E[t]', the determined share I - Cov(t), the products g_i g_j of its
    diagonal, and the log evidence."""

    first: np.ndarray
    second: np.ndarray
    share: np.ndarray
    products: np.ndarray
    evidence: float


def learn(
    gram: np.ndarray,
    linear: np.ndarray,
    mean: np.ndarray,
    covariance: np.ndarray,
    hyperprior: Hyperprior,
    *,
    steps: int = 100,
    tolerance: float | None = None,
) -> HierarchyMode:
    """The mode of (m, Sigma), from a start.

    Args:
        gram: A_l (L, K, K). linear: b_l (L, K). All pixels count.
        mean, covariance: where to start. A variance that is too small is found out, one that is 0 is not.
        steps: at most. tolerance: log density, in nats, that the next step would add; None: 1e-4 a pixel, 0.3 at most.
    """
    n, k = linear.shape
    tolerance = min(0.3, 1e-4 * n) if tolerance is None else tolerance
    average = gram.mean(0)

    def visit(mean: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, _Sums, float]:
        root = np.linalg.cholesky(covariance)
        root = root @ np.linalg.eigh(root.T @ average @ root)[1]
        sums = _sums(gram, linear, root, mean)
        return root, sums, sums.evidence + hyperprior.log_density(mean, covariance)

    covariance = _definite(covariance)
    root, sums, density = visit(mean, covariance)
    pull, reach = hyperprior.freedom + k + 1, 1.0
    for count in range(steps):
        inverse = np.linalg.inv(root)
        slope = (sums.second - sums.share + inverse @ hyperprior.matrix @ inverse.T - pull * np.eye(k)) / n
        stretch = slope / (sums.products / n + pull / n)
        stretch = 0.5 * (stretch + stretch.T)
        values, vectors = np.linalg.eigh(stretch)
        values = np.clip(reach * values, SMALLEST - 1, LARGEST - 1)
        rate = root.T @ root / hyperprior.width**2
        shift = np.linalg.solve(sums.share + rate, sums.first - root.T @ mean / hyperprior.width**2)
        towards = (vectors * values) @ vectors.T
        gain = 0.5 * n * float((slope * towards).sum()) + float(shift @ (sums.share + rate) @ shift)
        if gain < tolerance:
            return HierarchyMode(mean, covariance, density, sums.evidence, True, count)
        for halving in range(HALVINGS):
            part = 0.5**halving
            grown = np.linalg.eigh(np.eye(k) + part * towards)
            half = root @ (grown[1] * np.sqrt(grown[0]))
            moved = mean + part * root @ shift, half @ half.T
            try:
                trial = visit(*moved)
            except np.linalg.LinAlgError:  # a covariance that rounding has made singular
                continue
            if trial[2] >= density - 1e-13 * abs(density):
                break
        else:
            return HierarchyMode(mean, covariance, density, sums.evidence, False, count)
        # a step that brings all that its slope promised was far too short, as where pixels differ in their noise
        reach = 1.0 if halving else min(2 * reach, FURTHEST) if trial[2] - density > 0.7 * gain else max(1.0, reach / 2)
        (mean, covariance), (root, sums, density) = moved, trial
    return HierarchyMode(mean, covariance, density, sums.evidence, False, steps)


def _definite(covariance: np.ndarray) -> np.ndarray:
    """A covariance (K, K), or the nearest of the same variances that is one where rounding has undone it."""
    sd = np.sqrt(np.diagonal(covariance))
    values, vectors = np.linalg.eigh(covariance / (sd[:, None] * sd))
    if values[0] > SINGULAR:
        return covariance
    return (vectors * np.maximum(values, SINGULAR)) @ vectors.T * (sd[:, None] * sd)


def _sums(gram: np.ndarray, linear: np.ndarray, root: np.ndarray, mean: np.ndarray) -> _Sums:
    k = len(mean)
    total = _Sums(np.zeros(k), np.zeros((k, k)), np.zeros((k, k)), np.zeros((k, k)), 0.0)
    for a, b in _blocks(gram, linear):
        t, half, right, log_spread = _whitened(a, b, root, mean)
        flat = half.reshape(-1, k)
        g = 1.0 - (half**2).sum(1)
        fit = (b @ mean).sum() - 0.5 * mean @ a.sum(0) @ mean + 0.5 * (t * right).sum()
        evidence = fit + 0.5 * log_spread
        new = _Sums(t.sum(0), t.T @ t, len(b) * np.eye(k) - flat.T @ flat, g.T @ g, float(evidence))
        total = _Sums(
            total.first + new.first, total.second + new.second, total.share + new.share,
            total.products + new.products, total.evidence + new.evidence,
        )  # fmt: skip
    return total


def coefficients_given(
    gram: np.ndarray, linear: np.ndarray, mean: np.ndarray, covariance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means (L, K) and covariances (L, K, K) of the coefficients."""
    root = np.linalg.cholesky(covariance)
    theta, spread = np.empty(linear.shape), np.empty(gram.shape)
    for i, (a, b) in enumerate(_blocks(gram, linear)):
        rows = slice(i * BLOCK, i * BLOCK + len(b))
        t, half, *_ = _whitened(a, b, root, mean)
        half = _times(half, root.T)
        theta[rows], spread[rows] = mean + t @ root.T, np.swapaxes(half, 1, 2) @ half
    return theta, spread


def _blocks(gram: np.ndarray, linear: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for first in range(0, len(linear), BLOCK):
        rows = slice(first, first + BLOCK)
        yield gram[rows], linear[rows]


def _whitened(
    gram: np.ndarray, linear: np.ndarray, root: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """E[t] (B, K) of pixels, H (B, K, K) of H'H = Cov(t), W' (b - A m) (B, K), and the sum of ln |Cov(t)|."""
    right = (linear - gram @ mean) @ root
    information = _times(np.swapaxes(_times(gram, root), 1, 2), root)
    information[:, np.arange(len(mean)), np.arange(len(mean))] += 1.0
    half = np.linalg.cholesky(information)
    log_spread = -2.0 * float(np.log(np.diagonal(half, axis1=1, axis2=2)).sum())
    for factor in half:  # in place; NumPy has no inverse of triangles
        dtrtri(factor.T, lower=0, overwrite_c=1)
    t = (right[:, None] @ np.swapaxes(half, 1, 2)) @ half
    return t[:, 0], half, right, log_spread


def _times(many: np.ndarray, one: np.ndarray) -> np.ndarray:
    """Matrices (B, K, K) times one (K, K), as one product."""
    return (many.reshape(-1, many.shape[2]) @ one).reshape(many.shape)
