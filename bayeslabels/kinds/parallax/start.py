"""Where samplers and guides of a log-linear model's program begin: the Gaussian posterior, or one about its mode."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_solve
from scipy.linalg.lapack import dtrtri

from ...core.priors import Laplace
from ...data.stars import Stars
from ...inference.whitened import Start
from ...numerics.linalg import in_float64
from ...numerics.lognormal import derivatives
from .model import LogLinearModel
from .outliers import first_rows
from .training import LogLinearMoments, ParallaxData, data_of, fit_mode, fit_q

DENSE = 2500
"""Coefficients up to which the Gaussian posterior itself is worth its cost as a start."""


@in_float64
def start_of(model: LogLinearModel, stars: Stars) -> Start:
    """Where samplers of the program begin, and the scales: the Gaussian posterior, or of many coefficients one about
    the sparse mode."""
    if model.fixed_scatter is not None:
        return Start(dict(model.starting_point(stars)))
    frame, data = model.require_frame(), data_of(model, stars)
    data = data.rows(first_rows(model, data))
    wide, sparse = np.flatnonzero(~frame.penalised), np.flatnonzero(frame.penalised)
    order, names = np.r_[wide, sparse], ["wide", "sparse"] if len(sparse) else ["wide"]
    if model.zero_prior[1] > 0:
        order, names = np.r_[order, len(frame.names)], [*names, "zero_point"]
    if len(frame.names) <= DENSE:
        q = fit_q(model, data)
        theta, zero, s, variance = q.mean[:-1], q.mean[-1], q.s, np.diag(q.covariance)
        factor = np.linalg.cholesky((q.covariance + 1e-12 * np.diag(variance))[np.ix_(order, order)])
    else:
        mode = fit_mode(model.replace(coefficient_prior=Laplace()), data, 0, tolerance=1e-2).moments
        theta, zero, s, whole = _gaussian_about(model, data, mode)
        variance, factor = (whole**2).sum(1), whole[np.ix_(order, order)]
    sites = {"wide": theta[wide], "zero_point": np.array(zero), "scatter": np.array(s)}
    sites |= {"outlier_fraction": np.array(0.01)} if model.has_outliers else {}
    if len(sparse):
        root_mean = np.mean(np.sqrt((theta**2 + variance[:-1])[sparse]))
        sites |= {"sparse": theta[sparse], "global_scale": root_mean}
    return Start(sites, tuple(names), factor)


def _gaussian_about(
    model: LogLinearModel, data: ParallaxData, mode: LogLinearMoments
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """theta, zero point, s and a factor F (D + 1, D + 1) of their Gaussian posterior, the zero point last.

    Under a ridge whose scale is learned, with the likelihood's curvature left as it is at the mode: one normal matrix,
    where `shrinkage.fit_posterior` makes one per iteration.
    """
    penalised, x = model.require_frame().penalised, data.features.value
    theta, zero, s, d = mode.coefficients, mode.zero_point, float(mode.scatter), x.shape[1]
    noise = np.sqrt(s**2 + data.features.noise(theta))
    at = derivatives(data.y - zero, data.sigma, x @ theta, noise)
    fisher, cross = np.asarray(at.fisher), np.asarray(at.eta_zero) @ x
    a = np.zeros((d + 1, d + 1))
    for first in range(0, len(x), 1024):  # without a weighted copy of all features
        rows = slice(first, first + 1024)
        half = x[rows] * np.sqrt(fisher[rows])[:, None]
        a[:d, :d] += half.T @ half
    width = model.zero_prior[1]
    a[d, :d] = a[:d, d] = cross * (width > 0)
    a[d, d] = max(float(np.sum(at.zero_zero)), 0.0) + width**-2 if width > 0 else 1.0
    second = np.mean(theta[penalised] ** 2)
    for _ in range(4):
        ridge = np.r_[np.where(penalised, 1 / second, model.wide_precision), 0.0]
        root = np.linalg.cholesky(a + np.diag(ridge))
        at = derivatives(data.y - zero, data.sigma, x @ theta, noise)
        pull = float(np.sum(at.zero)) - (zero - model.zero_prior[0]) / width**2 if width > 0 else 0.0
        step = cho_solve((root, True), np.r_[np.asarray(at.eta) @ x - ridge[:d] * theta, pull])
        step *= min(1.0, 1.0 / np.abs(x @ step[:d]).max())
        theta, zero = theta + step[:d], zero + step[d]
        factor = dtrtri(root, lower=True, overwrite_c=True)[0].T
        second = np.mean((theta**2 + (factor[:d] ** 2).sum(1))[penalised])
    return theta, zero, s, factor
