"""Log-linear models trained from sums over stars: the steps of `numerics.shrinkage` and `numerics.sparse`, by passes.

Newton steps on the likelihood need of the stars their gradient and information in theta and zero point, and slopes in
the scatter and in the errors of the features; what a star has for itself, the mean and sd of its ln parallax, follows
from the present posterior. Where steps must not be too long for any star, those of the sample stand for all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_solve
from scipy.special import expit, logit

from ...core.priors import Laplace
from ...data.stars import Stars
from ...inference.base import Trained
from ...inference.passes import BySums
from ...numerics import shrinkage
from ...numerics.compiling import jit
from ...numerics.linalg import Array
from ...numerics.lognormal import derivatives, log_likelihood
from ...numerics.sparse import LARGEST_STEP, solve_quadratic, subgradient
from .model import LogLinearModel, Regression, ScaledFeatures, outlier_density
from .outliers import doubted, first_rows, settled
from .training import (
    chosen_penalty,
    data_of,
    fit_mode,
    fit_q,
    gaussian_trained,
    mode_trained,
    prior_as_ridge,
    refused_in_words,
)

CLOSEST = 1e-3
"""Change of s, zero point and ridges, relative, below which the Gaussian posterior has settled."""


class ParallaxParameters(NamedTuple):
    """The Gaussian posterior, as in `shrinkage.fit_posterior`: mean (D + 1,), covariance (D + 1, D + 1), ln s;
    ridge (D,); noise, `Entries.expected` of them, and pull of the noise (V,); the fraction of outliers.
    """

    mean: Array
    covariance: Array
    log_s: Array
    ridge: Array
    noise: Array
    pull: Array
    fraction: Array


class ParallaxSums(NamedTuple):
    """Over stars: information and gradient in theta and zero point, (D + 1, D + 1) and (D + 1,); slope and curvature in
    ln s; slope in the errors of the features (V,); outliers, stars, density.
    """

    information: Array
    gradient: Array
    slope: Array
    curvature: Array
    noise: Array
    wrong: Array
    n: Array
    log_density: Array


class GaussianBySums(BySums):
    """The Gaussian posterior of coefficients and zero point."""

    def __init__(self, model: LogLinearModel, sample: Stars, draws: int, seed: int, tolerance: float = CLOSEST):
        self.model, self.draws, self.seed, self.tolerance = model, draws, seed, tolerance
        self.data = data_of(model, sample)
        self.penalised = model.require_frame().penalised
        self.prior = prior_as_ridge(model.sparse_prior) if self.penalised.any() else None

    def start(self) -> ParallaxParameters:
        rows = first_rows(self.model, self.data)
        q = fit_q(self.model, self.data.rows(rows))
        entries = self.data.features.entries
        noise = entries.expected(q.mean, q.covariance, self.penalised)
        at = 0.01 if self.model.has_outliers else 0.0
        return ParallaxParameters(q.mean, q.covariance, np.array(np.log(q.s)), q.ridge, noise, 0 * noise, np.array(at))

    def sums(self, g: ParallaxParameters, data: Regression, counts: np.ndarray) -> ParallaxSums:
        counts = jnp.asarray(counts) * data.seen
        eta, spread, tilt = _predicted(data.features.value, g.mean, g.covariance)
        kept, wrong = judged(
            self.model, data, counts, g.mean[:-1], g.mean[-1], jnp.exp(2 * g.log_s) + spread**2, g.fraction
        )
        extra = data.features.variance @ g.noise
        return _sums(data, kept, wrong, counts, eta, spread, tilt, extra, g.mean[-1], g.log_s)

    def log_density(self, g: ParallaxParameters, data: Regression, counts: np.ndarray) -> float:
        return float(self.sums(g, data, counts).log_density)

    def update(self, g: ParallaxParameters, sums: ParallaxSums) -> tuple[ParallaxParameters, float, float]:
        d = len(self.penalised)
        ridge = np.array(g.ridge)
        mean, covariance, step, a = self._solved(g, sums, ridge)
        if self.prior is not None:  # once: a ridge that is settled while the likelihood's expansion is kept overshoots
            squares = mean[:d] ** 2 + np.diag(covariance)[:d]
            ridge[self.penalised] = self.prior(squares[self.penalised])
        noise = self.data.features.entries.expected(mean, covariance, self.penalised)
        s2 = np.exp(2 * g.log_s)
        slope, curvature = sums.slope - s2 + 1.0, sums.curvature + 2 * s2
        move = slope / curvature if curvature > 0 else np.sign(slope)
        log_s = max(g.log_s + float(np.clip(move, -0.5, 0.5)), -9.0)
        fraction = sums.wrong / (sums.n + 19) if self.model.has_outliers else 0.0
        after = ParallaxParameters(
            mean, covariance, np.array(log_s), ridge, noise, -2 * np.asarray(sums.noise), np.asarray(fraction, float)
        )
        return after, self._change(g, after, step, a), float("nan")

    def _solved(
        self, g: ParallaxParameters, sums: ParallaxSums, ridge: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Mean and covariance after a Newton step; the step, and the information, None where it is not definite."""
        d, (centre, width) = len(ridge), self.model.zero_prior
        a, gradient = np.array(sums.information), np.array(sums.gradient)
        entries = self.data.features.entries
        a[range(d), range(d)] += ridge
        entries.add_positive(a, g.pull)
        gradient[:d] -= ridge * g.mean[:d] + entries.applied(g.pull, g.mean[:d])
        if width > 0:
            a[d, d] += width**-2
            gradient[d] -= (g.mean[d] - centre) / width**2
        else:
            a[d, :d] = a[:d, d] = gradient[d] = 0.0
            a[d, d] = 1.0
        with refused_in_words():
            factor, used = shrinkage.factorised(a, lambda: _inverse(g.covariance))
            covariance = cho_solve(factor, np.eye(d + 1))
        step = covariance @ gradient
        step *= min(1.0, 1.0 / max(np.abs(self.data.features.value @ step[:d]).max(), 1e-300))
        if width == 0:
            covariance[d, d] = 0.0
        return g.mean + step, covariance, step, a if used is a else None

    def _change(
        self, g: ParallaxParameters, after: ParallaxParameters, step: np.ndarray, a: np.ndarray | None
    ) -> float:
        if a is None:
            return np.inf
        smallest = self.data.sigma.min()

        def told(x: ParallaxParameters) -> np.ndarray:
            squares = x.mean[:-1] ** 2 + np.diag(x.covariance)[:-1]
            return np.r_[x.log_s, x.mean[-1] / smallest, np.sqrt((squares * x.ridge).sum() / len(squares)), x.fraction]

        return float(max(np.abs(told(after) - told(g)).max(), np.sqrt(max(step @ a @ step, 0.0) / len(step))))

    def trained(self, g: ParallaxParameters, n: int) -> Trained:
        q = shrinkage.GaussianPosterior(g.mean, g.covariance, float(np.exp(g.log_s)), g.ridge, 0, True)
        trained = gaussian_trained(self.model, q, self.draws, self.seed)
        trained.moments = trained.moments._replace(outlier_fraction=np.array(float(g.fraction)))
        trained.stats |= doubted(self.model, self.data)
        return trained


def _inverse(covariance: np.ndarray) -> np.ndarray:
    """Precision of theta and the zero point, 1 of one that is fixed."""
    fixed = np.diag(covariance) == 0
    return np.linalg.inv(covariance + np.diag(fixed.astype(float)))


def judged(
    model: LogLinearModel, data: Regression, counts: Array, theta: Array, zero: Array, spread2: Array, fraction: Array
) -> tuple[Array, Array]:
    """Which of the stars that count have a right parallax, and the probability of the others; spread2: variance (N,) of
    ln parallax but for the errors of the features."""
    counts = counts * data.seen
    if not model.has_outliers:
        return counts, 0 * counts
    sd = jnp.sqrt(spread2 + model.feature_variance(jnp.asarray(theta), data.features))
    good = log_likelihood(data.y - zero, data.sigma, data.features.value @ theta, sd)
    bad = outlier_density(data.y, data.sigma, model.require_frame().outlier)
    wrong = expit(np.asarray(bad - good) + logit(float(fraction)))
    return counts * (wrong < 0.5), counts * wrong


@jit
def _predicted(x: ScaledFeatures, mean: Array, covariance: Array) -> tuple[Array, Array, Array]:
    """Mean and sd (N,) of eta, and its covariance with the zero point over the sd."""
    spread = jnp.sqrt(jnp.maximum(((x @ covariance[:-1, :-1]) * x).sum(1), 0.0))
    return x @ mean[:-1], spread, x @ covariance[:-1, -1] / jnp.maximum(spread, 1e-300)


@jit
def _sums(
    data: Regression,
    kept: Array,
    wrong: Array,
    counts: Array,
    eta: Array,
    spread: Array,
    tilt: Array,
    extra: Array,
    zero: Array,
    log_s: Array,
) -> ParallaxSums:
    x, variance, y, sigma = data.features.value, data.features.variance, data.y, data.sigma
    out = shrinkage.averaged(zero, eta, jnp.sqrt(jnp.exp(2 * log_s) + extra), y, sigma, spread, tilt)
    h = kept * out.eta_eta
    cross, whole = (kept * out.eta_zero) @ x, (h[:, None] * x).T @ x
    information = jnp.block([[whole, cross[:, None]], [cross[None], (kept * out.zero_zero).sum()[None, None]]])
    gradient = jnp.append((kept * out.eta) @ x, (kept * out.zero).sum())

    def expected(log_s: Array, extra: Array) -> Array:
        return kept @ shrinkage.expected_of_stars(extra, log_s, zero, eta, y, sigma, spread, tilt)

    density, (slope, by_extra) = jax.value_and_grad(expected, (0, 1))(log_s, extra)
    curvature = -jax.grad(jax.grad(expected))(log_s, extra)
    return ParallaxSums(
        information, gradient, slope, curvature, by_extra @ variance, wrong.sum(), counts.sum(), density
    )


class Mode(NamedTuple):
    """theta and zero point (D + 1,) at which the sums are taken; the best so far, the step from there and how much of
    it is tried; penalty, s; coefficients at which s_n is taken (D,); the objective at the best, the largest violation
    of the subgradient condition there, and iterations; where parallaxes may be wrong, theta and zero point (D + 1,) of
    the sample, by which all are judged, and the fraction of wrong ones.
    """

    at: Array
    best: Array
    step: Array
    length: Array
    penalty: Array
    s: Array
    noise: Array
    objective: Array
    violation: Array
    iterations: Array
    judge: Array
    fraction: Array


class ModeSums(NamedTuple):
    """Over stars: minus log likelihood, its gradient (D + 1,) and curvature (D + 1, D + 1)."""

    value: Array
    gradient: Array
    curvature: Array


class ModeBySums(BySums):
    """The sparse mode: proximal Newton steps with penalty and scatter that held-out stars of the sample choose."""

    tolerance = 1e-5

    def __init__(self, model: LogLinearModel, sample: Stars, n: int, seed: int):
        self.model, self.n, self.seed, self.data = model, n, seed, data_of(model, sample)
        self.penalised, self.is_l1 = model.require_frame().penalised, isinstance(model.at_mode, Laplace)
        self.scores: list[Any] = []

    def start(self) -> Mode:
        times = self.n / len(self.data.y)
        right, fraction, judge = self.data, 0.0, np.zeros(self.data.features.value.shape[1] + 1)
        if self.model.has_outliers:  # judged once: what is minimised must not change on the way
            trained, kept, fraction = settled(self.model, self.data, lambda x: fit_mode(self.model, x, self.seed))
            right, judge = self.data.rows(kept), np.r_[trained.moments.coefficients, trained.moments.zero_point]
        penalty, s, self.scores, theta, zero = chosen_penalty(self.model, right, self.seed, times)
        at = np.r_[theta, zero]
        numbers = {
            "length": 1.0, "penalty": penalty, "s": s, "objective": np.inf, "violation": np.inf, "iterations": 0.0,
            "fraction": fraction,
        }  # fmt: skip
        scalars = {name: np.array(float(x)) for name, x in numbers.items()}
        return Mode(at=at, best=at, step=0 * at, noise=theta, judge=judge, **scalars)

    def sums(self, g: Mode, data: Regression, counts: np.ndarray) -> ModeSums:
        kept, _ = judged(self.model, data, jnp.asarray(counts), g.judge[:-1], g.judge[-1], g.s**2, g.fraction)
        return _mode_sums(data, kept, g.at, g.s, g.noise)

    def log_density(self, g: Mode, data: Regression, counts: np.ndarray) -> float:
        return -float(self.sums(g, data, counts).value)

    def update(self, g: Mode, sums: ModeSums) -> tuple[Mode, float, float]:
        d, (centre, width) = len(self.penalised), self.model.zero_prior
        part = np.where(self.penalised, float(g.penalty), 0.0)
        l1 = np.r_[part if self.is_l1 else 0 * part, 0.0]
        ridge = np.r_[np.where(self.penalised, 0 * part if self.is_l1 else part, self.model.wide_precision), 0.0]
        ridge[d] = width**-2 if width > 0 else 0.0
        origin = np.r_[np.zeros(d), centre]
        objective = float(sums.value + (l1 * np.abs(g.at) + 0.5 * ridge * (g.at - origin) ** 2).sum())
        if objective > g.objective + 1e-12 * abs(objective) and g.length > 1e-6:
            length = 0.5 * g.length
            return g._replace(at=g.best + length * g.step, length=length), np.inf, float("nan")
        gradient, curvature = np.array(sums.gradient) + ridge * (g.at - origin), np.array(sums.curvature)
        curvature[range(d + 1), range(d + 1)] += ridge
        if width == 0:
            gradient[d] = curvature[d, :d] = curvature[:d, d] = 0.0
            curvature[d, d] = 1.0
        scale = np.sqrt(np.diag(curvature))
        violation = float(np.abs(subgradient(gradient, g.at, l1) / scale).max())
        g = g._replace(best=g.at, objective=np.array(objective), violation=np.array(violation))
        settled = violation <= self.tolerance
        if settled and np.abs(g.noise**2 - g.at[:d] ** 2).sum() > 1e-4 * (g.at[:d] ** 2).sum():
            return g._replace(noise=g.at[:d], objective=np.array(np.inf)), np.inf, float("nan")
        linear = curvature @ g.at - gradient
        new = solve_quadratic(curvature, linear, l1, g.at, 0.03 * self.tolerance)
        step = new - g.at
        length = min(1.0, LARGEST_STEP / max(np.abs(self.data.features.value @ step[:d]).max(), 1e-300))
        at = new if length == 1 else g.at + length * step
        if settled:
            at = g.at
        after = g._replace(at=at, step=step, length=np.array(length), iterations=g.iterations + 1)
        return after, violation, float("nan")

    def trained(self, g: Mode, n: int) -> Trained:
        centre, width = self.model.zero_prior
        of_zero = 0.5 * float((g.best[-1] - centre) / width) ** 2 if width > 0 else 0.0
        trained = mode_trained(
            self.model, g.best[:-1], g.best[-1], float(g.s), penalty=float(g.penalty), scores=self.scores,
            objective=float(g.objective) - of_zero, violation=float(g.violation), iterations=int(g.iterations),
            converged=True,
        )  # fmt: skip
        trained.moments = trained.moments._replace(outlier_fraction=np.array(float(g.fraction)))
        trained.stats |= doubted(self.model, self.data)
        return trained


@jit
def _mode_sums(data: Regression, counts: Array, at: Array, s: Array, noise: Array) -> ModeSums:
    x, theta, zero = data.features.value, at[:-1], at[-1]
    out = derivatives(data.y - zero, data.sigma, x @ theta, jnp.sqrt(s**2 + data.features.noise(noise)))
    h = counts * jnp.maximum(out.eta_eta, 0.1 * out.fisher)
    of_zero = counts * jnp.maximum(out.zero_zero, 0.0)
    most = jnp.sqrt(h * of_zero)  # of every star a matrix that is not negative
    cross, whole = jnp.clip(counts * out.eta_zero, -most, most) @ x, (h[:, None] * x).T @ x
    zero_zero = of_zero.sum()[None, None]
    curvature = jnp.block([[whole, cross[:, None]], [cross[None], zero_zero]])
    gradient = -jnp.append((counts * out.eta) @ x, (counts * out.zero).sum())
    return ModeSums(-(counts * out.value).sum(), gradient, curvature)
