"""Training by expectation-maximisation where the errors of a star's pixels are correlated (`numerics.correlated`).

    flux_n ~ N(theta phi(u_n) + T_n v_n, C_n + diag(s^2)),   v_n ~ N(0, I) of nuisances

The steps are those of `training.EM`, but all pixels are solved for together: no pixel is independent of another given
the labels. A learned prior of the coefficients takes from every pixel what its posterior has beyond the prior.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...core.priors import Laplace, Learned
from ...data.stars import Stars
from ...errors import CannotDo
from ...numerics.compress import power_of_two
from ...numerics.correlated import CorrelatedSpectra, Weights, scatter_move, solve_coefficients, statistics_of, weights
from ...numerics.features import feature_moments
from ...numerics.linalg import cholesky, inverse_psd, unpack
from ...numerics.regression import SMALLEST_LOG_VARIANCE
from ...numerics.threads import threads_for
from .model import LinearModel
from .nuisances import shapes_of
from .training import EM

MOST = 6000
"""Coefficients of all pixels that are solved for together, at most: their matrix takes 0.3 GB."""
ALTERNATIONS, SETTLED = 100, 1e-5
"""Of coefficients and scatter where nothing else is to be found, at most, and the change of ln s^2 that ends them."""


class CorrelatedEM(EM):
    """`EM` of stars whose flux has covariances."""

    def __init__(self, model: LinearModel, stars: Stars):
        if model.flux_error_factor is not None:
            raise CannotDo("flux_error_factor scales errors of single pixels, not covariances: flux_error_factor=None")
        super().__init__(model, stars)
        if isinstance(model.prior, Laplace) or self.penalised:
            raise CannotDo(
                "flux with covariances has coefficients with a Normal, Learned or Flat prior and without bounds: "
                "coefficient_prior=priors.Learned()"
            )
        if (n := self.theta.size) > MOST:
            raise CannotDo(
                f"flux with covariances couples the coefficients of all pixels: {n} are too many to solve for together "
                f"(at most {MOST}): fewer pixels, {model.smaller}, or errors without covariances"
            )
        self.joint: np.ndarray | None = None
        self.weighing: Weights | None = None

    def read(self, model: LinearModel, stars: Stars) -> Any:
        value, error = model.marginal(stars)
        self.spectra = CorrelatedSpectra.of(value, error, stars["flux"].error)
        return value, error

    @property
    def knows_objective(self) -> bool:
        return False

    def train(self, start: bool = False) -> float:
        with threads_for(self.theta.size**2):
            return self._trained(start)

    def _trained(self, start: bool) -> float:
        k, learned = self.features.size, isinstance(self.model.prior, Learned)
        phi, second = (np.asarray(x) for x in feature_moments(self.features, self.u, self.u_covariance))
        before = self.scatter2.copy()
        if self.weighing is None or self.model.nuisances:
            self.weighing = self.weigh(phi)
        integrate = self.model.integrates_labels or learned
        for _ in range(ALTERNATIONS if not self.iterates else 10 if start else 1):
            self.solve(phi, second)
            if not self.learn_scatter:
                break
            spread = self.joint if integrate else None
            last = self.scatter2
            move, self.scatter_told = scatter_move(
                self.spectra, self.weighing.w, self.scatter2, phi, second, self.theta * self.allowed, spread,
                self.scatter_scale,
            )  # fmt: skip
            small, large = np.exp(SMALLEST_LOG_VARIANCE) * self.flux_scale**2, np.exp(40.0) * self.flux_scale**2
            self.scatter2 = np.where(self.trained, np.clip(last * np.exp(-move), small, large), last)
            self.weighing = self.weigh(phi)
            if self.change(last) < SETTLED:
                break
        if learned:
            precision = np.asarray(self.prior.precision)
            own = inverse_psd(self.covariance)
            linear = (own @ self.theta[..., None])[..., 0] - precision @ np.asarray(self.prior.mean)
            unit = power_of_two(self.flux_scale)
            theta, covariance = self.theta, self.covariance
            self.learn_prior((own - precision) / unit**2, linear / unit, unit)
            self.theta, self.covariance = theta, covariance  # of the prior before; the next solution has the new one
        if self.has_latents:
            self.statistics = statistics_of(self.spectra, self.weighing, self.theta * self.allowed, self.joint)
            self.labels.learn_coefficients(phi, unpack(second, k))
        return self.change(before)

    def change(self, before: np.ndarray) -> float:
        """Root mean square change of ln noise."""
        floor = self.typical_variance + 1e-12 * self.flux_scale**2
        ratio = np.log((self.scatter2 + floor) / (before + floor))[self.trained]
        return float(np.sqrt(np.mean(ratio**2))) if len(ratio) else 0.0

    def weigh(self, phi: np.ndarray) -> Weights:
        """W of all stars at the present scatter, nuisances about their own spectra integrated out."""
        templates = None
        if self.model.nuisances and self.theta.any():
            theta = np.where(self.trained[:, None], self.theta * self.allowed, np.nan)
            shapes = np.nan_to_num(shapes_of(self.model.nuisances, self.model.require_frame(), theta))
            templates = np.einsum("nk,qlk->nql", phi, shapes)
        return weights(self.spectra, self.scatter2, self.trained, templates)

    def solve(self, phi: np.ndarray, second: np.ndarray) -> None:
        """Coefficients and their covariance, of all pixels together."""
        assert self.weighing is not None
        prior = np.asarray(self.prior.precision), np.asarray(self.prior.mean)
        found = solve_coefficients(self.spectra, self.weighing.w, phi, second, *prior, self.allowed)
        self.theta, self.evidence = found.mean, found.evidence
        self.joint = found.covariance * self.allowed[:, :, None, None] * self.allowed
        self.covariance = np.ascontiguousarray(np.einsum("ljlk->ljk", found.covariance))

    def flux_evidence(self) -> float:
        phi, second = (np.asarray(x) for x in feature_moments(self.features, self.u, self.u_covariance))
        self.weighing = self.weigh(phi)
        self.solve(phi, second)
        precision, mean = np.asarray(self.prior.precision), np.asarray(self.prior.mean)
        own = 0.5 * len(self.theta) * float(np.linalg.slogdet(precision)[1] - mean @ precision @ mean)
        return self.evidence + own - float(statistics_of(self.spectra, self.weighing, 0 * self.theta).constant.sum())

    def standardised(self) -> np.ndarray:
        assert self.weighing is not None
        phi = np.asarray(self.features(self.u))
        residual = self.spectra.value - phi @ (self.theta * self.allowed).T
        residual = np.where(self.spectra.observed & self.trained, residual, 0.0)
        w = self.weighing.w
        idle = np.eye(w.shape[1]) * (np.diagonal(w, axis1=1, axis2=2) == 0)[:, None]
        return (np.swapaxes(cholesky(w + idle), 1, 2) @ residual[..., None])[..., 0]
