"""What the test step of models of spectra integrates over."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...numerics.mixture import Mixture
from ...numerics.population import gaussian


class Moments(NamedTuple):
    """Means and covariances of the trained parameters of a linear model: what the test step integrates over.

    coefficients (L, K), coefficient_covariance (L, K, K), scatter (L,), the root of the mean of s_l^2, in flux units,
    NaN for pixels that could not be trained; label_scatter (M,) in label units; population_mean (P,),
    population_covariance (P, P), of the latents; component_weight (C,), component_mean (C, P), component_covariance (C,
    P, P): of the mixture that these are mean and covariance of, None: a Gaussian;
    label_coefficients (M, K) and label_system_covariance (M, K, M, K): mean and covariance of C, the uncertainty of the
    label system that all stars share, where the true scaled labels are C phi(u), or if the labels are the latents
    u + C phi(u) with C of mean 0, or u + C psi(u) if they are a curve (`label_features`); training_u (N, P): the
    training stars' latents; label_resistance (M, K, M, K), of the training step alone and in no file: the precision
    with which the spectra of the training stars resist a bend of the labels, if they do. fit_quality (4,): what is
    usual of the training stars' reduced chi^2 (`stars.fit_quality`), None: not known.
    flux_error_factor (1,): f of the survey, None: 1.
    """

    coefficients: np.ndarray
    coefficient_covariance: np.ndarray
    scatter: np.ndarray
    label_scatter: np.ndarray
    population_mean: np.ndarray
    population_covariance: np.ndarray
    label_coefficients: np.ndarray
    label_system_covariance: np.ndarray
    training_u: np.ndarray
    label_resistance: np.ndarray | None = None
    fit_quality: np.ndarray | None = None
    flux_error_factor: np.ndarray | None = None
    component_weight: np.ndarray | None = None
    component_mean: np.ndarray | None = None
    component_covariance: np.ndarray | None = None

    @property
    def population(self) -> Mixture:
        """Of the latents."""
        weight, mean, covariance = self.component_weight, self.component_mean, self.component_covariance
        if weight is None or mean is None or covariance is None:
            return gaussian(self.population_mean, self.population_covariance)
        return Mixture(weight, mean, covariance)


def components_of(population: Mixture) -> dict[str, np.ndarray]:
    """The fields of `Moments` in which the components stand."""
    if len(population.weight) == 1:
        return {}
    return {f"component_{name}": x for name, x in population._asdict().items()}
