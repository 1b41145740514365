"""Linear models trained from sums over stars: the expectation-maximisation of `inference.map`, a block at a time.

The E step gives the stars of a block their latents, Gaussian, from what all stars share: coefficients, scatter, tau and
population. The M step of all pixels needs no more of them than

    sum_n w_nl^p E[phi_n phi_n'],   sum_n w_nl^p y_nl E[phi_n],   p = 1, 2,   w_nl = 1 / (sigma_nl^2 + s_l^2)

(`numerics.regression.PixelSums`), and so do labels and population (`labels`). An affine move of the latents
is one of the sums. Where the labels are exact the fixed point is the joint mode that `train_block` finds.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core.priors import Learned
from ...data.stars import Stars
from ...inference.base import Trained
from ...inference.passes import BySums
from ...numerics.compiling import jit
from ...numerics.compress import STARS, Statistics, known, power_of_two
from ...numerics.features import feature_moments
from ...numerics.linalg import Array, unpack
from ...numerics.mixture import Given, Mixture
from ...numerics.population import PopulationSums, conditioned, gaussian, learned, moved, sums_of, total
from ...numerics.regression import CoefficientPrior, PixelSums, pixel_sums, pixels_from_sums
from ...progress import bar
from .labels import CatalogueLabels, LabelSums, Moving, moved_features
from .model import LinearModel, MeasuredLabels, Spectra
from .training import EM, LATENT_STEPS, PRIOR_STEPS, evidence, expected_statistics, latents_given, learn_prior

WATCHED = 2000
"""Stars of the sample whose labels tell how much a pass over all stars has changed: of more, up to twice as many."""
STEPS = 60
"""To the mode of a star's latents, at most: every time from its catalogue labels."""
AT_START = 40
"""Iterations of the training on the sample alone, at most."""
EXACT = 1e-6
"""Change of the total variance, relative, at which pixels with exact labels are done."""


class SpectraParameters(NamedTuple):
    """What all stars share, as in `EM`; slope (P, P), offset (P,): the last move of the latents, which ends an E step
    and is not the identity at the fixed point; labels (W, M): of the stars watched, as `watch` has last seen them.
    """

    theta: Array
    covariance: Array
    scatter2: Array
    scatter_told: Array
    trained: Array
    converged: Array
    precision: Array
    prior_mean: Array
    hyper_mean: Array
    hyper_covariance: Array
    population: Mixture
    tau2: Array
    coefficients: Array
    slope: Array
    offset: Array
    labels: Array


class SpectraSums(NamedTuple):
    pixels: PixelSums
    moving: Moving
    population: PopulationSums
    labels: LabelSums
    log_density: Array


class ExpectedSpectra(NamedTuple):
    """What a block of stars contributes: latents u (N, P), covariance (N, P, P), the components given each, E[phi],
    packed E[phi phi'], ln p(data_n | g) (N,); value and error (L, N) as `pixel_sums` takes them; labels of these stars.
    """

    u: Array
    covariance: Array
    given: Given
    phi: Array
    second: Array
    log_density: Array
    value: Array
    error: Array
    labels: CatalogueLabels


class SpectraBySums(BySums):
    """A linear model, bound to the sample; at_start: iterations of the training on that alone, at most."""

    def __init__(self, model: LinearModel, sample: Stars, tolerance: float, at_start: int = AT_START):
        self.model, self.sample, self.at_start = model, sample, at_start
        self.em = em = EM(model, sample)
        self.latent, self.features = model.integrates_labels, em.features
        learned = isinstance(model.prior, Learned)
        self.tolerance = tolerance if self.latent or learned else EXACT
        self.unit = power_of_two(em.flux_scale)
        self.options = {
            "learn_scatter": em.learn_scatter, "integrate": self.latent or learned, "penalised": em.penalised,
        }  # fmt: skip
        self.needed = 1 if learned else em.allowed.sum(1)
        some = np.arange(0, len(sample), max(1, len(sample) // WATCHED))
        filled = np.pad(some, (0, -len(some) % STARS), mode="edge")
        self.watched, self.watching = model.arrays(sample[filled]), (np.arange(len(filled)) < len(some)).astype(float)

    def start(self) -> SpectraParameters:
        em = self.em
        with bar(None, "", False) as hidden:
            em.run(self.at_start, 0.03, hidden)
        k, p = self.features.size, self.features.n_label
        name = self.model.sites["coefficients"]
        hyper_mean = em.learned.get(f"{name}_mean", np.zeros(k))
        hyper_covariance = em.learned.get(f"{name}_covariance", np.zeros((k, k)))
        g = SpectraParameters(
            em.theta, em.covariance, em.scatter2, em.scatter_told, em.trained, em.pixel_converged, em.prior.precision,
            em.prior.mean, hyper_mean, hyper_covariance, em.components, em.labels.tau2,
            em.labels.coefficients, np.eye(p), np.zeros(p), np.zeros(0),
        )  # fmt: skip
        g = jax.tree.map(lambda x: np.asarray(x, bool if x.dtype == bool else float), g)
        return g._replace(labels=self.expect(g, self.watched, self.watching)[1])

    def labels_of(self, g: SpectraParameters, catalogue: MeasuredLabels) -> CatalogueLabels:
        labels = self.em.labels.of_stars(catalogue)
        labels.tau2, labels.coefficients = g.tau2, g.coefficients
        return labels

    def expect(self, g: SpectraParameters, data: Spectra, counts: np.ndarray) -> tuple[ExpectedSpectra, np.ndarray]:
        """E step, and the true labels (N, M) at its end."""
        counted = np.asarray(counts) > 0
        catalogue = data.labels._replace(observed=data.labels.observed & counted[:, None])
        labels, allowed = self.labels_of(g, catalogue), self.em.allowed
        y, e = _transposed(data.value), _transposed(np.where(counted[:, None], data.error, np.nan))
        n, m = len(counted), self.features.n_label
        effective = g.theta * allowed
        if not self.latent and (catalogue.observed | ~counted[:, None]).all():
            u, covariance = np.asarray(catalogue.value), np.zeros((n, m, m))
            given = conditioned(gaussian(*total(g.population)), u, covariance)
            phi, second = feature_moments(self.features, u, covariance)
            density = _residual_density(y, e, phi, effective, g.scatter2, g.trained)
        else:
            centre, spread = total(g.population)
            prior = np.linalg.inv(spread)
            spectra = y, e, effective, g.covariance, allowed, g.scatter2, g.trained.astype(float)
            gram, linear, constant = expected_statistics(*spectra)
            blank, (gram, linear, constant) = np.zeros(n), map(np.asarray, (gram, linear, constant))
            statistics = Statistics(unpack(gram, self.features.size), linear, constant, blank, blank)
            first = catalogue.value if self.model.labels_are_latent else np.zeros((n, m))
            u, covariance = latents_given(statistics, labels, centre, prior, first, STEPS)
            at_best = self.features(u)
            density = evidence(statistics.gram, linear, constant, at_best, u - centre, covariance, prior)
            given = conditioned(g.population, u, covariance)
            density += labels.log_density(u) + given.log_density
            u, covariance = given.moments()
            phi, second = feature_moments(self.features, u, covariance)
        found = ExpectedSpectra(u, covariance, given, phi, second, density, y, e, labels)
        return found, labels.of(labels.seen(u, covariance, g.slope, g.offset)[0])

    def sums(self, g: SpectraParameters, data: Spectra, counts: np.ndarray) -> SpectraSums:
        x, _ = self.expect(g, data, counts)
        weight = np.asarray(counts)
        places, which = self.features.products
        second, seen = unpack(x.second, self.features.size), x.labels.seen(x.u, x.covariance, g.slope, g.offset)
        return SpectraSums(
            pixel_sums(
                x.value, x.error, x.phi, x.second[:, places], which, g.theta * self.em.allowed, g.scatter2, self.unit
            ),
            x.labels.moving(x.u, x.covariance, weight), sums_of(x.given, weight), x.labels.sums(*seen, x.phi, second),
            np.where(weight > 0, x.log_density, 0.0).sum(),
        )  # fmt: skip

    def log_density(self, g: SpectraParameters, data: Spectra, counts: np.ndarray) -> float:
        x, _ = self.expect(g, data, counts)
        return float(np.where(np.asarray(counts) > 0, x.log_density, 0.0).sum())

    def update(self, g: SpectraParameters, sums: SpectraSums) -> tuple[SpectraParameters, float, float]:
        em, m, before = self.em, self.features.n_label, g.scatter2
        objective = self._objective(g, sums)
        labels, prior = self.labels_of(g, em.labels.catalogue), self._prior(g)
        pixels, moving, of_labels = sums.pixels, sums.moving, sums.labels
        fixed = self.model.fixed_population is not None
        population = g.population if fixed else learned(sums.population)
        slope, offset = np.eye(m), np.zeros(m)
        if (move := labels.move(moving)) is not None:
            slope, offset = move
            forth = moved_features(self.features, slope, offset)
            prior, pixels, of_labels = labels.carry(forth, prior), pixels.moved(forth), of_labels.moved(forth)
            population = population if fixed else moved(population, slope, offset)
        labels.learn_from(of_labels)
        trained = np.asarray(pixels.known) > self.needed
        found, step = pixels_from_sums(
            pixels, em.allowed, prior, g.theta, before, em.scatter_scale, self.unit, **self.options
        )
        theta, covariance, scatter2, converged, gram, linear, told = (np.asarray(x) for x in found)
        hyper_mean, hyper_covariance, prior_settled = g.hyper_mean, g.hyper_covariance, True
        if isinstance(self.model.prior, Learned):
            stars = gram, linear, trained, em.flux_scale, self.unit
            shrunk = learn_prior(self.model.prior, prior, *stars, LATENT_STEPS if self.latent else PRIOR_STEPS)
            prior, hyper_mean, hyper_covariance, prior_settled = *shrunk[:3], shrunk.converged
            if not em.penalised:
                theta, covariance = shrunk.theta, shrunk.covariance
        after = SpectraParameters(
            theta, covariance, scatter2, told, trained, converged, np.asarray(prior.precision), np.asarray(prior.mean),
            hyper_mean, hyper_covariance, population, np.asarray(labels.tau2),
            labels.coefficients, slope, offset, g.labels,
        )  # fmt: skip
        change = float(np.asarray(step)[trained].max(initial=0.0)) if prior_settled else np.inf
        if self.options["integrate"]:
            floor = em.typical_variance + 1e-12 * em.flux_scale**2
            ratio = np.log((scatter2 + floor) / (before + floor))[trained]
            change = max(0.0 if prior_settled else np.inf, float(np.sqrt(np.mean(ratio**2))) if len(ratio) else 0.0)
        return jax.tree.map(np.asarray, after), change, objective

    def watch(self, before: SpectraParameters, g: SpectraParameters) -> tuple[SpectraParameters, float]:
        found, labels = self.expect(g, self.watched, self.watching)
        spread = np.einsum("nmm->nm", found.labels.spread(found.covariance))
        moved = ((labels - before.labels) / np.sqrt(np.maximum(spread, 1e-8)))[self.watching > 0]
        return g._replace(labels=np.asarray(labels)), float(np.sqrt(np.mean(moved**2, axis=0)).max())

    def _prior(self, g: SpectraParameters) -> CoefficientPrior:
        return self.em.prior._replace(precision=g.precision, mean=g.prior_mean)

    def _objective(self, g: SpectraParameters, sums: SpectraSums) -> float:
        if not self.em.knows_objective:
            return float("nan")
        return float(sums.log_density) + self._restored(g).log_prior()

    def _restored(self, g: SpectraParameters) -> EM:
        """The state of training in memory with these values."""
        em = self.em
        em.theta, em.covariance, em.scatter2, em.trained = g.theta, g.covariance, g.scatter2, g.trained
        em.scatter_told = g.scatter_told
        em.prior, em.components = self._prior(g), g.population
        em.labels.tau2, em.labels.coefficients = g.tau2, g.coefficients
        return em

    def trained(self, g: SpectraParameters, n: int) -> Trained:
        em = self._restored(g)
        em.stands_for = n
        if isinstance(self.model.prior, Learned):
            name = self.model.sites["coefficients"]
            em.learned = {f"{name}_mean": g.hyper_mean, f"{name}_covariance": g.hyper_covariance}
        size, data, found = 1024, self.model.arrays(self.sample), []
        for first in range(0, em.n_star, size):
            rows = np.minimum(np.arange(first, first + size), em.n_star - 1)
            found.append(self.expect(g, jax.tree.map(lambda x, rows=rows: x[rows], data), np.ones(size))[0])
        em.u = np.concatenate([np.asarray(x.u) for x in found])[: em.n_star] @ g.slope.T + g.offset
        if em.has_latents:
            parts = [_statistics(x, em) for x in found]
            gram, linear = (np.concatenate(x)[: em.n_star] for x in zip(*parts, strict=True))
            blank = np.zeros(em.n_star)
            em.statistics = Statistics(gram, linear, blank, blank, blank)
        names = {self.model.sites["latents"], "true_labels", "labels_missing"}
        moments = em.moments()
        draws = {name: x for name, x in em.point(moments).items() if name not in names}
        converged = g.converged | ~g.trained | self.options["integrate"]
        stats = {
            "converged": bool(converged.all()), "n_pixel_trained": int(g.trained.sum()),
            "n_pixel_dropped": int((~g.trained).sum()), "n_pixel_not_converged": int((~converged).sum()),
        }  # fmt: skip
        return Trained(draws, moments, stats)


def _statistics(x: ExpectedSpectra, em: EM) -> tuple[np.ndarray, np.ndarray]:
    keep = em.trained.astype(float)
    gram, linear, _ = expected_statistics(
        x.value, x.error, em.theta * em.allowed, em.covariance, em.allowed, em.scatter2, keep
    )
    return np.asarray(unpack(gram, em.features.size)), np.asarray(linear)


@jit
def _residual_density(y: Array, e: Array, phi: Array, theta: Array, scatter2: Array, trained: Array) -> Array:
    """ln p (N,) of spectra (L, N) of which the features are known."""
    value, variance, ok = known(y, e)
    total = variance + scatter2[:, None]
    terms = (value - theta @ phi.T) ** 2 / total + jnp.log(2 * jnp.pi * total)
    return -0.5 * jnp.where(ok & trained[:, None], terms, 0.0).sum(0)


_transposed = jit(lambda x: jnp.asarray(x, float).T)
