"""The test step of linear models: every star's label posterior from its compressed spectrum.

The coefficients are integrated out: their covariance enters each pixel's variance, sigma_nl^2 + s_l^2 +
phi_n' Cov(theta_l) phi_n, at a first estimate of the labels. The uncertainty of the label system, common to all
stars, is added to the draws afterwards (`fit.infer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...data.stars import Stars
from ...errors import CannotDo
from ...inference.starwise import StarProblem
from ...numerics.compress import Statistics, compress
from ...numerics.correlated import CorrelatedSpectra, compress_correlated
from ...numerics.error_factor import error_factors, expected_residual2
from ...numerics.features import Features, feature_moments
from ...numerics.linalg import Array, in_float64, inverse_observed, outer_pairs
from ...numerics.modes import Energy, Modes
from ...numerics.nuisance import NuisanceSums, compress_nuisances, marginalise
from ...numerics.population import LogRatio, log_ratio, modes_given
from ...numerics.quartics import TOLERANCE, choose_starts, find_quartic_modes
from .label_map import label_map
from .labels import PINNED
from .model import LinearModel
from .moments import Moments
from .nuisances import disturbance, shapes_of

DRAFT_PIXELS = 1000
"""Pixels that are enough for a first estimate of the labels, at which the coefficients are integrated out."""


class Compressed(NamedTuple):
    """What the label posteriors of N stars depend on: statistics, precision (N, M, M) and information (N, M); and what
    the spectra say of nuisances, which are integrated out of the statistics."""

    statistics: Statistics
    precision: Array
    information: Array
    nuisances: NuisanceSums | None = None
    error_factor: tuple[np.ndarray, np.ndarray] | None = None
    """ln f (N,) of the stars' own, and its sd."""


@dataclass(frozen=True)
class Quartic(Energy):
    """-ln p(u | data) = 1/2 phi(u)' G phi(u) - b' phi(u) + 1/2 u' P u - h' u - ln r(u),

    P and h those of a Gaussian population, r its ratio to that of the stars where that is a mixture."""

    features: Features

    def __call__(self, u: Array, shared: LogRatio | None, own: Compressed) -> Array:
        phi, statistics = self.features(u), own.statistics
        quadratic = ((phi @ statistics.gram) * phi).sum(-1) + ((u @ own.precision) * u).sum(-1)
        energy = 0.5 * quadratic - (phi @ statistics.linear[..., None] + u @ own.information[..., None])[..., 0]
        return energy if shared is None else energy - shared(u)


@in_float64
def prepare(model: LinearModel, moments: Moments, stars: Stars, seed: int, starts: int = 4) -> StarProblem:
    """Compress the stars, find the modes of their posteriors, and integrate over the coefficients there.

    Of a population that is a mixture they are sought under the Gaussian of its mean and covariance; each is then the
    mean and covariance that the mixture gives it.
    """
    features = model.features
    precision, information = label_terms(model, moments, stars)
    integrate = rough = False
    sums = None
    if "flux" in stars:
        spectra = (_CorrelatedTestSpectra if model.has_covariance(stars) else _TestSpectra)(model, moments, stars)
        integrate = bool(np.nanmax(moments.coefficient_covariance, initial=0.0) > 0)
        rough = integrate or spectra.shapes is not None or spectra.own_factor
        # a first estimate does not need every pixel of a long spectrum
        typical = features(moments.population_mean)
        statistics, sums = spectra.draft(np.broadcast_to(typical, (len(stars), features.size)), integrate)
    else:
        k = features.size
        zero = np.zeros(len(stars))
        statistics = Statistics(np.zeros((len(stars), k, k)), np.zeros((len(stars), k)), zero, zero, zero)
    first: Array = np.zeros((1, *information.shape))
    if not features.linear:
        first = choose_starts(_candidates(moments, seed, starts), statistics, precision, information, features, starts)
        measured = model.of_latents(model.catalogue(stars))
        first = np.where(measured.observed, measured.value, first)
    tolerance = 1e-2 if rough else TOLERANCE
    modes = find_quartic_modes(statistics, precision, information, features, first, tolerance=tolerance)
    if not model.labels_are_latent and model.catalogue(stars).observed.any():
        precision, information = label_terms(model, moments, stars, features(modes.location[0]))
        modes = find_quartic_modes(statistics, precision, information, features, _found(modes), tolerance=tolerance)
    factor = None
    if rough:
        if spectra.own_factor:
            factor = spectra.learn_factor(features, modes, sums)
        statistics, sums = spectra.compressed(features(modes.location[0]), integrate)
        modes = find_quartic_modes(statistics, precision, information, features, _found(modes))
    own = Compressed(statistics, precision, information, sums, factor)
    return StarProblem(Quartic(features), log_ratio(moments.population), own, modes_given(moments.population, modes))


@in_float64
def flux_given_labels(model: LinearModel, moments: Moments, stars: Stars, phi: np.ndarray) -> np.ndarray:
    """ln p(flux_n | labels_n) (N,) of a model whose labels are outputs of the latents, which are integrated out.

    Given the labels z ~ N(P^-1 h, P^-1), and ln p(flux | z) = b' phi - 1/2 phi' G phi - c with phi = phi_0 + J z:

        -c + b' phi_0 - 1/2 phi_0' G phi_0 + 1/2 k' (P + F)^-1 k - 1/2 h' P^-1 h + 1/2 ln |P| - 1/2 ln |P + F|,

    F = J' G J, k = h + J' (b - G phi_0). phi (N, K): features at which the coefficients are integrated out.
    """
    spectra = (_CorrelatedTestSpectra if model.has_covariance(stars) else _TestSpectra)(
        model.replace(nuisances=()), moments, stars
    )
    gram, linear, constant, *_ = spectra.compressed(phi, True, constant=True)[0]
    precision, information = label_terms(model, moments, stars.drop("flux"), phi)
    origin = np.zeros(model.features.n_label)
    at_zero, jacobian = model.features(origin), model.features.jacobian(origin)
    total = precision + jacobian.T @ gram @ jacobian
    own = information + (linear - gram @ at_zero) @ jacobian
    solved, known = (np.linalg.solve(a, b[..., None])[..., 0] for a, b in ((total, own), (precision, information)))
    logs = np.linalg.slogdet(precision)[1] - np.linalg.slogdet(total)[1]
    fixed = linear @ at_zero - 0.5 * gram @ at_zero @ at_zero - constant
    return fixed + 0.5 * ((own * solved).sum(1) - (information * known).sum(1) + logs)


class _TestSpectra:
    """Spectra of N stars and the trained parameters that they are compressed with; shapes (Q, L, K): of nuisances."""

    def __init__(self, model: LinearModel, moments: Moments, stars: Stars):
        self.moments = moments
        self.value, self.error = _, error = self.read(model, stars)
        self.own_factor = model.flux_error_factor == "star" and error is not None
        if moments.flux_error_factor is not None and error is not None and not self.own_factor:
            self.error = error * moments.flux_error_factor
        self.shapes = None
        if model.nuisances:
            self.shapes = shapes_of(model.nuisances, model.require_frame(), moments.coefficients)

    def read(self, model: LinearModel, stars: Stars) -> tuple[np.ndarray, np.ndarray | None]:
        """Flux and errors (N, L)."""
        return model.output(stars)

    def draft(self, typical: Array, integrate: bool) -> tuple[Statistics, NuisanceSums | None]:
        """Statistics for a first estimate; nuisances about the spectrum of features `typical` (N, K)."""
        rough = integrate or self.shapes is not None
        some = slice(None, None, max(1, self.value.shape[1] // DRAFT_PIXELS) if rough else 1)
        theta, scatter = self.moments.coefficients[some], self.moments.scatter[some]
        shown = self.value[:, some], None if self.error is None else self.error[:, some]
        statistics = compress(*shown, theta, scatter)
        if self.shapes is None:
            return statistics, None
        sums = compress_nuisances(*shown, theta, scatter, self.shapes[:, some], typical)
        return marginalise(statistics, sums), sums

    def learn_factor(self, features: Features, modes: Modes, sums: NuisanceSums | None) -> Any:
        """ln f (N,) of the stars and its sd, from their spectra about those of the modes; the errors go with it."""
        phi, second = feature_moments(features, modes.location[0], modes.covariance[0])
        value, use = self.value, np.isfinite(self.moments.scatter)
        theta, covariance = self.moments.coefficients[use], self.moments.coefficient_covariance[use]
        if self.shapes is not None and sums is not None:
            value = value - disturbance(sums.given(phi)[0], phi, self.shapes)
        residual2 = expected_residual2(value[:, use], phi, second, theta, covariance)
        assert self.error is not None
        found = error_factors(residual2, self.error[:, use] ** 2, self.moments.scatter[use] ** 2)
        self.error = self.error * np.exp(found[0])[:, None]
        return found

    def compressed(self, phi: Array, integrate: bool, constant: bool = False) -> tuple[Statistics, NuisanceSums | None]:
        """Statistics with all pixels, the coefficients integrated out, and nuisances about each star's own spectrum, at
        features phi (N, K)."""
        spectra = self.value, self.error, self.moments.coefficients, self.moments.scatter
        spread: dict[str, Array] = {}
        if integrate:
            spread = {"theta_covariance": self.moments.coefficient_covariance, "feature_pairs": outer_pairs(phi)}
        statistics = compress(*spectra, constant=constant, **spread)
        if self.shapes is None:
            return statistics, None
        sums = compress_nuisances(*spectra, self.shapes, phi, **spread)
        return marginalise(statistics, sums), sums


class _CorrelatedTestSpectra(_TestSpectra):
    """Spectra whose errors are correlated between pixels."""

    def read(self, model: LinearModel, stars: Stars) -> tuple[np.ndarray, np.ndarray | None]:
        if model.flux_error_factor == "star":
            raise CannotDo(
                'flux_error_factor="star" scales errors of single pixels, not covariances: flux_error_factor=None'
            )
        value, error = model.marginal(stars)
        self.spectra = CorrelatedSpectra.of(value, error, stars["flux"].error)
        return value, error

    def draft(self, typical: Array, integrate: bool) -> tuple[Statistics, NuisanceSums | None]:
        return self.compressed(typical, False)

    def compressed(self, phi: Array, integrate: bool, constant: bool = False) -> tuple[Statistics, NuisanceSums | None]:
        moments, spectra = self.moments, self.spectra
        if moments.flux_error_factor is not None:
            spectra = spectra._replace(covariance=spectra.covariance * moments.flux_error_factor**2)
        spread = moments.coefficient_covariance if integrate else None
        statistics, sums = compress_correlated(
            spectra, moments.coefficients, moments.scatter, theta_covariance=spread, phi=np.asarray(phi),
            templates=self.shapes,
        )  # fmt: skip
        return (statistics, None) if sums is None else (marginalise(statistics, sums), sums)


def _found(modes: Modes) -> np.ndarray:
    """Starting points (J, N, M) from the modes that any star has."""
    return np.asarray(modes.location)[np.isfinite(np.asarray(modes.objective)).any(1)]


def label_terms(
    model: LinearModel, moments: Moments, stars: Stars, phi: np.ndarray | None = None
) -> tuple[Array, Array]:
    """Precision (N, P, P) and information (N, P) of the latents from population and catalogue labels together.

    Labels that are outputs carry the uncertainty of C, phi_n' Cov(C) phi_n, at features phi (N, K) of a first estimate.
    """
    catalogue = model.catalogue(stars)
    observed, value = catalogue.observed, catalogue.value
    tau2 = (moments.label_scatter / model.require_frame().scale) ** 2
    eye = np.eye(observed.shape[1])
    noise = catalogue.covariance + eye * tau2 + 1e-12 * eye
    if phi is not None:
        noise = noise + np.einsum("nk,mkjl,nl->nmj", phi, moments.label_system_covariance, phi, optimize=True)
    seen = PINNED * eye * observed[:, :, None] if model.exact_labels else inverse_observed(noise, observed)
    typical = moments.population_mean
    precision, information = label_map(model, moments).information(value, observed, seen, typical)
    population = np.linalg.inv(moments.population_covariance)
    return precision + population, information + population @ typical


def _candidates(moments: Moments, seed: int, groups: int) -> np.ndarray:
    """Labels of training stars (S, M) in order of their first principal component: candidates for starting points."""
    train = moments.training_u
    rng = np.random.default_rng([seed, 7919])
    size = max(groups, min(64 * groups, len(train)))
    chosen = train[rng.permutation(np.resize(np.arange(len(train)), size))]
    axis = np.linalg.eigh(np.cov(train.T).reshape(train.shape[1], -1))[1][:, -1]
    return chosen[np.argsort(chosen @ axis, kind="stable")]
