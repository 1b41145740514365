"""Spectra whose errors are correlated between pixels: compressed as others are, and all pixels solved for together.

With W_n = (C_n + diag(s^2))^-1, C_n (L, L) the covariance of star n's errors, its rows and columns of missing pixels
left out, a spectrum is still a quartic in the labels (`compress`):

    G_n = theta' W_n theta,   b_n = theta' W_n y_n,   c_n = 1/2 [y_n' W_n y_n - ln |W_n| + L_n ln 2 pi]

and the coefficients of all pixels, which the stars couple, are Gaussian together: theta (L, K) has the precision
sum_n W_n (x) phi_n phi_n' and the information sum_n (W_n y_n) phi_n'. Matrices (L, L) of every star are at work: this
is for some hundred numbers a star, as in low-resolution spectra or in coefficients of a basis.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .compress import STARS, Statistics
from .linalg import Array, cholesky, pack, pairs, unpack
from .nuisance import NuisanceSums


class CorrelatedSpectra(NamedTuple):
    """Spectra of N stars: value (N, L), 0 where missing; covariance (N, L, L); observed (N, L)."""

    value: np.ndarray
    covariance: np.ndarray
    observed: np.ndarray

    @classmethod
    def of(cls, value: Array, error: Array, covariance: Array) -> CorrelatedSpectra:
        """Of spectra of which a pixel is missing where its value or error (N, L) is not finite."""
        observed = np.isfinite(value) & np.isfinite(error)
        both = observed[:, :, None] & observed[:, None, :]
        return cls(
            np.where(observed, value, 0.0).astype(float), np.where(both, covariance, 0.0).astype(float), observed
        )

    def rows(self, at: slice) -> CorrelatedSpectra:
        return CorrelatedSpectra(self.value[at], self.covariance[at], self.observed[at])


class Weights(NamedTuple):
    """W (N, L, L), zero in the rows and columns of what is missing, and ln |W| (N,)."""

    w: np.ndarray
    log_det: np.ndarray


def weights(spectra: CorrelatedSpectra, extra: Array, use: np.ndarray, templates: np.ndarray | None = None) -> Weights:
    """W of spectra whose pixels have a variance `extra`, (L,) or (N, L), beside C_n; of the pixels `use` (L,).

    templates (N, Q, L): of nuisances, v ~ N(0, I), that are to be integrated out: C_n + T_n' T_n.
    """
    observed = spectra.observed & use
    extra = np.broadcast_to(np.where(use, extra, 0.0), observed.shape)
    w, log_det, eye = np.empty(spectra.covariance.shape), np.empty(len(observed)), np.eye(len(use))
    for rows in _parts(len(observed)):
        total = spectra.covariance[rows] + extra[rows][:, :, None] * eye
        if templates is not None:
            total += np.swapaxes(templates[rows], 1, 2) @ templates[rows]
        both = observed[rows][:, :, None] & observed[rows][:, None, :]
        inverse, log_det[rows] = inverted(np.where(both, total, eye))
        w[rows] = np.where(both, inverse, 0.0)
    return Weights(w, log_det)


def inverted(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inverses of positive definite matrices (..., L, L), and minus the logarithm of their determinants (...); NaN of
    others."""
    scale = 1 / np.sqrt(np.diagonal(a, axis1=-2, axis2=-1))
    scaled = a * scale[..., :, None] * scale[..., None, :]
    diagonal = np.diagonal(cholesky(scaled), axis1=-2, axis2=-1)
    good = np.isfinite(diagonal).all(-1)[..., None, None]
    inverse = np.linalg.inv(np.where(good, scaled, np.eye(a.shape[-1])))
    inverse = np.where(good, 0.5 * (inverse + np.swapaxes(inverse, -1, -2)), np.nan)
    log_det = 2 * (np.log(scale) - np.log(diagonal)).sum(-1)
    return inverse * scale[..., :, None] * scale[..., None, :], log_det


def statistics_of(
    spectra: CorrelatedSpectra, weighing: Weights, theta: np.ndarray, spread: np.ndarray | None = None
) -> Statistics:
    """Compressed spectra; theta (L, K), 0 of pixels without use. spread (L, K, L, K): covariance of theta, integrated
    out of the expected log likelihood."""
    value, (w, log_det) = spectra.value, weighing
    n, (n_pixel, k) = len(value), theta.shape
    weighted = (w @ value[:, :, None])[..., 0]
    gram = np.swapaxes(w @ theta, 1, 2) @ theta
    if spread is not None:
        gram += (w.reshape(n, -1) @ np.swapaxes(spread, 1, 2).reshape(n_pixel**2, k * k)).reshape(n, k, k)
        gram = 0.5 * (gram + np.swapaxes(gram, 1, 2))
    n_known = (np.diagonal(w, axis1=1, axis2=2) > 0).sum(1)
    square = (value * weighted).sum(1)
    return Statistics(gram, weighted @ theta, 0.5 * (square - log_det + n_known * np.log(2 * np.pi)), square, n_known)


def compress_correlated(
    spectra: CorrelatedSpectra, theta: Array, scatter: Array, *, theta_covariance: Array | None = None,
    phi: Array | None = None, templates: Array | None = None,
) -> tuple[Statistics, NuisanceSums | None]:  # fmt: skip
    """`compress` and `compress_nuisances` of spectra whose errors are correlated, some stars at a time.

    Args:
        theta: (L, K). scatter: (L,); a pixel of NaN scatter is left out.
        theta_covariance: (L, K, K), integrated out at features phi (N, K) of a first estimate: pixel l has the variance
            phi_n' Cov(theta_l) phi_n beside s_l^2.
        templates: (Q, L, K), of nuisances, taken at phi.
    """
    use = np.isfinite(scatter)
    theta = np.where(use[:, None], theta, 0.0)
    found = []
    for rows in _parts(len(spectra.value)):
        part, extra = spectra.rows(rows), np.where(use, scatter, 0.0) ** 2
        if theta_covariance is not None and phi is not None:
            k = theta.shape[1]
            both = (phi[rows][:, :, None] * phi[rows][:, None, :]).reshape(-1, k * k)
            extra = extra + both @ np.where(use[:, None, None], theta_covariance, 0.0).reshape(-1, k * k).T
        weighing = weights(part, extra, use)
        sums = None
        if templates is not None and phi is not None:
            shape = np.einsum("nk,qlk->nql", phi[rows], np.where(use[:, None], templates, 0.0))
            along = shape @ weighing.w
            linear = (along @ part.value[..., None])[..., 0]
            sums = NuisanceSums(along @ np.swapaxes(shape, 1, 2), along @ theta, linear)
        found.append((statistics_of(part, weighing, theta), sums))
    statistics, sums_of = zip(*found, strict=True)
    whole = Statistics(*(np.concatenate(x) for x in zip(*statistics, strict=True)))
    if templates is None or phi is None:
        return whole, None
    return whole, NuisanceSums(*(np.concatenate(x) for x in zip(*sums_of, strict=True)))


class Coefficients(NamedTuple):
    """Of all pixels together: mean (L, K), covariance (L, K, L, K), and the log of the integral of likelihood and prior
    over them, up to what does not depend on the stars and the prior's own constant."""

    mean: np.ndarray
    covariance: np.ndarray
    evidence: float


def solve_coefficients(
    spectra: CorrelatedSpectra, w: np.ndarray, phi: np.ndarray, second: np.ndarray, precision: np.ndarray,
    prior_mean: np.ndarray, allowed: np.ndarray,
) -> Coefficients:  # fmt: skip
    """theta given W (N, L, L), E[phi] (N, K) and packed E[phi phi'], with the prior N(prior_mean, precision^-1) of
    every pixel; allowed (L, K): which coefficients are not zero."""
    n, n_pixel = spectra.value.shape
    k = phi.shape[1]
    gram = unpack(w.reshape(n, -1).T @ second, k).reshape(n_pixel, n_pixel, k, k)
    matrix = np.swapaxes(gram, 1, 2).reshape(n_pixel * k, n_pixel * k).copy()
    free = np.asarray(allowed, bool).ravel()
    matrix *= free[:, None] & free
    right = ((w @ spectra.value[:, :, None])[..., 0].T @ phi) * allowed + precision @ prior_mean
    at = np.arange(n_pixel * k).reshape(n_pixel, k)
    matrix[at[:, :, None], at[:, None, :]] += precision
    blank = np.diagonal(matrix) == 0  # without a prior, and nothing is known
    matrix[blank, blank] = 1.0
    covariance, log_det = inverted(matrix)
    covariance[blank] = covariance[:, blank] = 0.0
    mean = covariance @ right.ravel()
    evidence = 0.5 * float(right.ravel() @ mean) + 0.5 * log_det
    return Coefficients(mean.reshape(n_pixel, k), covariance.reshape(n_pixel, k, n_pixel, k), float(evidence))


def scatter_move(
    spectra: CorrelatedSpectra, w: np.ndarray, scatter2: np.ndarray, phi: np.ndarray, second: np.ndarray,
    theta: np.ndarray, spread: np.ndarray | None, width: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """A step of Fisher scoring in ln s^2 (L,), for all pixels together; and `regression.Pixels.told`.

    d ln p / d s_l^2 = -1/2 sum_n [W_n - W_n E(r_n r_n') W_n]_ll with the residuals' second moments over features and,
    where `spread` (L, K, L, K) is given, coefficients; half-normal prior of this width.
    """
    n, n_pixel = spectra.value.shape
    k = phi.shape[1]
    known, explained, fisher = np.zeros(n_pixel), np.zeros(n_pixel), np.zeros((n_pixel, n_pixel))
    across = None
    if spread is not None:
        blocks = np.swapaxes(spread, 1, 2)
        across = pack(blocks) + pack(np.swapaxes(blocks, 2, 3))
    for rows in _parts(n):
        part, moments = w[rows], second[rows]
        residual = np.where(spectra.observed[rows], spectra.value[rows] - phi[rows] @ theta.T, 0.0)
        known += np.diagonal(part, axis1=1, axis2=2).sum(0)
        explained += ((part @ residual[..., None])[..., 0] ** 2).sum(0)
        of_phi = unpack(moments, k) - phi[rows][:, :, None] * phi[rows][:, None, :]
        if np.any(of_phi):
            along = part @ theta
            explained += ((along @ of_phi) * along).sum((0, 2))
        if across is not None:
            size = len(moments)
            h = (moments * (0.5 * pairs(k)[2])) @ across.reshape(n_pixel**2, -1).T
            explained += ((part @ h.reshape(size, n_pixel, n_pixel)) * part).sum((0, 2))
        fisher += (part**2).sum(0)
    prior = scatter2 / width**2
    gradient = 0.5 * scatter2 * (known - explained) + 0.5 * prior
    information = 0.5 * scatter2[:, None] * fisher * scatter2 + np.diag(0.5 * prior + 1e-300)
    scale = 1 / np.sqrt(np.diagonal(information))
    move = scale * np.linalg.solve(information * scale * scale[:, None], scale * gradient)
    told = np.stack([0.5 * (known - explained) + 0.5 / width**2, known, np.diagonal(fisher)], 1)
    return np.clip(move, -2.0, 2.0), told


def _parts(n: int) -> Iterator[slice]:
    for first in range(0, n, STARS):
        yield slice(first, first + STARS)
