"""Training steps of log-linear models: the sparse mode, the Gaussian posterior, and moments from draws.

MAP: theta at the mode under an L1 (or ridge) penalty, exact zeros included; the penalty and s by the density of held-
out parallaxes, with warm starts along the penalties; the zero point at the mode of its profile. Laplace: the Gaussian
posterior of theta and zero point together (`numerics.shrinkage`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy.linalg import LinAlgError
from scipy.optimize import minimize_scalar

from ...core.own_priors import OwnPrior
from ...core.priors import Horseshoe, Laplace, Normal
from ...data.stars import Stars
from ...errors import CannotDo, bad_input
from ...inference.base import Trained
from ...numerics import shrinkage
from ...numerics.linalg import in_float64
from ...numerics.lognormal import derivatives, fit_log_linear, log_likelihood
from ...numerics.sparse import Optimum
from ...numerics.surroundings import Surroundings
from .model import LogLinearModel, ScaledFeatures

FOLDS = 3
"""Folds of the training set that choose the penalty and the scatter."""
STEP = 10**-0.25
"""Ratio of one penalty to the one before."""


LARGE, CHOOSING = 20_000_000, 2000
"""Numbers in the features from which a random part of so many stars chooses penalty and scatter; the noise against
which an L1 penalty has to hold, and so the penalty, goes as the square root of the number of stars."""


class LogLinearMoments(NamedTuple):
    """What the test step of a log-linear model integrates over; features scaled as in the model's frame.

    coefficients (D,), with covariance F F' + diag(v): coefficient_factor F (D, R), coefficient_variance v (D,);
    zero_point and zero_point_error, in the unit of the parallax; scatter s; outlier_fraction: scalars, all four.

    near_*: where the training stars are, `Surroundings` in `loglinear_predict.coordinates`; growth: sd of ln parallax
    per unit of the distance beyond what is usual there. Nothing usual, and no growth, where it is not known.
    """

    coefficients: np.ndarray
    coefficient_factor: np.ndarray
    coefficient_variance: np.ndarray
    zero_point: np.ndarray
    zero_point_error: np.ndarray
    scatter: np.ndarray
    outlier_fraction: np.ndarray
    near_points: np.ndarray = np.zeros((1, 1))
    near_centre: np.ndarray = np.zeros(1)
    near_scale: np.ndarray = np.ones(1)
    near_usual: np.ndarray = np.array(np.inf)
    near_farthest: np.ndarray = np.array(np.inf)
    growth: np.ndarray = np.array(0.0)

    @property
    def surroundings(self) -> Surroundings:
        return Surroundings(*(getattr(self, f"near_{name}") for name in Surroundings._fields))


class ParallaxData(NamedTuple):
    """Training stars with a parallax: features, parallax and error (N,)."""

    features: ScaledFeatures
    y: np.ndarray
    sigma: np.ndarray

    def rows(self, keep: np.ndarray) -> ParallaxData:
        if keep.all():
            return self
        part = jax.tree.map(lambda x: x[keep] if len(x) == len(keep) else x, self.features)
        return ParallaxData(part, self.y[keep], self.sigma[keep])


def data_of(model: LogLinearModel, stars: Stars) -> ParallaxData:
    y, sigma, seen = model.target(stars)
    return ParallaxData(model.design(stars), y, sigma).rows(seen)


@in_float64
def fit_mode(model: LogLinearModel, data: ParallaxData, seed: int, tolerance: float = 1e-5) -> Trained:
    """The mode under the Laplace or Normal prior."""
    path, strength, s, scores = _chosen_path(model, data, seed)
    zero, optimum = path.with_zero(strength, s, tolerance)
    return mode_trained(
        model, optimum.theta, zero, s, penalty=strength, scores=scores, objective=optimum.objective,
        violation=optimum.violation, iterations=optimum.iterations, converged=optimum.converged,
    )  # fmt: skip


def chosen_penalty(
    model: LogLinearModel, data: ParallaxData, seed: int, times: float
) -> tuple[float, float, list[Any], np.ndarray, float]:
    """Penalty for so many times as many stars, s, the scores of the choice, and theta and zero point of these stars."""
    path, strength, s, scores = _chosen_path(model, data, seed)
    zero, optimum = path.with_zero(strength, s, 1e-2)
    prior = model.at_mode
    if isinstance(prior, Laplace) and prior.scale is None:
        strength *= np.sqrt(times)
    return strength, s, scores, optimum.theta, zero


def _chosen_path(model: LogLinearModel, data: ParallaxData, seed: int) -> tuple[_Path, float, float, list[Any]]:
    prior, frame = model.at_mode, model.require_frame()
    if isinstance(prior, Horseshoe | OwnPrior):
        raise CannotDo("MAP needs a prior with a mode: Parallax(coefficient_prior=priors.Laplace()), or use Laplace()")
    penalised = frame.penalised
    path = _Path(data, penalised, model.wide_precision, isinstance(prior, Laplace), model.zero_prior)
    s, strength = model.fixed_scatter, None
    scores: list[Any] = []
    if prior.scale is not None or not penalised.any():
        strength = _strength(prior) if prior.scale is not None else 0.0
    if s is None or strength is None:
        strength, s, scores = _chosen(path, s, strength, seed)
    return path, strength, s, scores


def mode_trained(
    model: LogLinearModel, theta: np.ndarray, zero: float, s: float, *, penalty: float, scores: list[Any],
    objective: float, violation: float, iterations: int, converged: bool,
) -> Trained:  # fmt: skip
    """The result of training by the mode."""
    penalised, d = model.require_frame().penalised, len(theta)
    moments = LogLinearMoments(
        theta, np.zeros((d, 1)), np.zeros(d), np.array(zero), np.array(0.0), np.array(float(s)), np.array(0.0)
    )
    stats = {
        "converged": bool(converged),
        "iterations": int(iterations),
        "objective": float(objective),
        "violation": float(violation),
        "penalty": float(penalty),
        "n_zero": int((theta[penalised] == 0).sum()),
        "n_penalised": int(penalised.sum()),
        "penalties": [{"penalty": row[0], "log_density": row[1], "scatter": row[2]} for row in scores],
    }
    return Trained(point(model, moments), moments, stats)


def _strength(prior: Any) -> float:
    scale = float(prior.scale)
    return 1 / scale if isinstance(prior, Laplace) else scale**-2


class _Path:
    """Optima of the same stars under changing penalties, each started from the one before."""

    def __init__(
        self, data: ParallaxData, penalised: np.ndarray, wide: np.ndarray, l1: bool, zero_prior: tuple[float, float]
    ):
        self.data, self.penalised, self.wide, self.l1, self.zero_prior = data, penalised, wide, l1, zero_prior
        self.theta: np.ndarray | None = None
        self.zero = zero_prior[0]

    def fresh(self, rows: np.ndarray) -> _Path:
        return _Path(self.data.rows(rows), self.penalised, self.wide, self.l1, self.zero_prior)

    def scatter(self, s: float) -> np.ndarray:
        """s_n at the last optimum's coefficients."""
        if self.theta is None or s == 0:
            return np.full(len(self.data.y), s)
        return np.sqrt(s**2 + self.data.features.noise(self.theta))

    def at(self, strength: float, s: float, tolerance: float) -> Optimum:
        x, penalty = self.data.features.value, np.where(self.penalised, strength, 0.0)
        l1, ridge = (penalty, np.zeros(len(penalty))) if self.l1 else (0 * penalty, penalty)
        out = fit_log_linear(
            x, self.data.y - self.zero, self.data.sigma, l1=l1, ridge=ridge + np.where(self.penalised, 0.0, self.wide),
            s=self.scatter(s), start=self.theta, tolerance=tolerance,
        )  # fmt: skip
        self.theta = out.theta
        return out

    def pull(self, s: float) -> float:
        """Derivative in the zero point of the log density at the last optimum."""
        assert self.theta is not None
        eta = self.data.features.value @ self.theta
        slope = np.asarray(derivatives(self.data.y - self.zero, self.data.sigma, eta, self.scatter(s)).zero).sum()
        return float(slope - (self.zero - self.zero_prior[0]) / self.zero_prior[1] ** 2)

    def with_zero(self, strength: float, s: float, tolerance: float) -> tuple[float, Optimum]:
        """The optimum in theta and zero point: the root of the profile's derivative."""
        if s > 0:
            self.at(strength, s, 1e-2)  # s_n depends on the coefficients
        if self.zero_prior[1] > 0:

            def profile(zero: float) -> float:
                self.zero = zero
                self.at(strength, s, 1e-2)
                return self.pull(s)

            here, width = self.zero, 0.1 * self.zero_prior[1]
            value = profile(here)
            for _ in range(12):
                edge = here + np.sign(value) * width
                beyond = profile(edge)
                if beyond * value <= 0:
                    for _ in range(8):  # of the secant: warm starts make the profile depend on where it came from
                        if abs(edge - here) < 1e-5 or beyond == value:
                            break
                        middle = here + (edge - here) * np.clip(value / (value - beyond), 0.1, 0.9)
                        new = profile(middle)
                        if new * value > 0:
                            here, value = middle, new
                        else:
                            edge, beyond = middle, new
                    break
                here, value, width = edge, beyond, 2 * width
        return self.zero, self.at(strength, s, tolerance)

    def largest(self, s: float) -> float:
        """A penalty above which every coefficient is zero, or about that."""
        self.at(1e12, s, 1e-2)
        assert self.theta is not None
        eta = self.data.features.value @ self.theta
        slope = np.asarray(derivatives(self.data.y - self.zero, self.data.sigma, eta, self.scatter(s)).eta)
        steepest = np.abs((slope @ self.data.features.value)[self.penalised]).max()
        return float(steepest) if self.l1 else 1e3 * float(steepest)


def _chosen(path: _Path, s: float | None, strength: float | None, seed: int) -> tuple[float, float, list[Any]]:
    """Penalty and s of the best density of held-out parallaxes, and the rows of `_choose`."""
    guess, n = 0.1 if s is None else s, len(path.data.y)
    fold = np.empty(n, int)  # of a star by its parallax: the same in whatever order they stand
    fold[np.lexsort((path.data.sigma, path.data.y))] = np.random.default_rng([seed, 2718]).permutation(n)
    some = fold < (CHOOSING if path.data.features.value.size > LARGE else n)
    fold = np.where(some, fold % FOLDS, -1)
    for _ in range(3):
        scores = _choose(path, fold, guess, s, strength)
        best = max(scores, key=lambda row: row[1])
        moved, guess = abs(np.log(best[2] / guess)), best[2]
        if moved < 0.1:
            break
    if some.all():
        return best[0], best[2], scores
    part = path.fresh(some)  # its zero point and coefficients are a good start for all
    path.zero, path.theta = part.with_zero(best[0], best[2], 1e-2)[0], part.theta
    times = np.sqrt(n / some.sum()) if path.l1 and strength is None else 1.0
    return best[0] * times, best[2], scores


def _choose(path: _Path, fold: np.ndarray, guess: float, s: float | None, strength: float | None) -> list[Any]:
    """[penalty, mean log density of held-out parallaxes, s] along falling penalties, until the density falls.

    fold: of each star, -1 for those that take no part.
    """
    start = path.fresh(fold >= 0).largest(guess) if strength is None else strength
    parts = [path.fresh((fold >= 0) & (fold != f)) for f in range(FOLDS)]
    rows: list[Any] = []
    for k in range(1 if strength is not None else 24):
        penalty = start * STEP**k
        seen = []
        for f, part in enumerate(parts):
            out = path.data.rows(fold == f)  # again each time: copies kept would be most of the memory
            if k == 0:
                part.zero, _ = part.with_zero(penalty, guess, 1e-2)
            elif k % 4 == 0:
                part.with_zero(penalty, guess, 1e-2)
            theta = part.at(penalty, guess, 1e-2).theta
            eta, variance = out.features.value @ theta, out.features.noise(theta)
            seen.append((out.y - part.zero, out.sigma, eta, variance))
        y, sigma, eta, variance = (np.concatenate(x) for x in zip(*seen, strict=True))

        def density(
            ln_s: float,
            y: np.ndarray = y,
            sigma: np.ndarray = sigma,
            eta: np.ndarray = eta,
            variance: np.ndarray = variance,
        ) -> float:
            return float(np.asarray(log_likelihood(y, sigma, eta, np.sqrt(np.exp(2 * ln_s) + variance))).mean())

        if s is None:
            best = minimize_scalar(
                lambda t: -density(t), bounds=(-7.0, 0.5), method="bounded", options={"xatol": 1e-2}
            ).x
        else:
            best = np.log(max(s, 1e-9))
        rows.append((penalty, density(best), float(np.exp(best))))
        if k > 3 and rows[-1][1] < rows[-2][1] < rows[-3][1]:
            break
    return rows


@in_float64
def fit_gaussian(model: LogLinearModel, data: ParallaxData, draws: int, seed: int) -> Trained:
    """The Gaussian posterior of coefficients and zero point."""
    return gaussian_trained(model, fit_q(model, data), draws, seed)


def gaussian_trained(model: LogLinearModel, q: shrinkage.GaussianPosterior, draws: int, seed: int) -> Trained:
    """The result of training by the Gaussian posterior q."""
    frame = model.require_frame()
    covariance = q.covariance[:-1, :-1]
    factor = np.linalg.cholesky(covariance + 1e-14 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)))
    moments = LogLinearMoments(
        q.mean[:-1], factor, np.zeros(len(factor)), np.array(q.mean[-1]), np.array(np.sqrt(q.covariance[-1, -1])),
        np.array(q.s), np.array(0.0),
    )  # fmt: skip
    rng = np.random.default_rng([seed, 15485863])
    joint = q.covariance + 1e-14 * np.trace(covariance) / len(factor) * np.eye(len(q.mean))
    sample = q.mean + rng.standard_normal((draws, len(q.mean))) @ np.linalg.cholesky(joint).T
    sites = {
        "coefficients": (sample[:, :-1] / frame.scale)[None],
        "zero_point": sample[None, :, -1],
        "scatter": np.full((1, draws), q.s),
    }
    stats = {"converged": bool(q.converged), "iterations": int(q.iterations)}
    return Trained(sites, moments, stats)


@contextmanager
def refused_in_words() -> Iterator[None]:
    """Where no step can be solved for, say what may be the cause."""
    try:
        yield
    except LinAlgError as error:
        raise bad_input(
            f"stars from which the coefficients have no Gaussian posterior ({error})",
            "parallaxes that their features can explain",
            "gross outliers, another unit, or features that repeat one another under a flat prior (wide=inf)",
            "Parallax(outliers=True), or Parallax(wide=10.0)",
        ) from error


def fit_q(model: LogLinearModel, data: ParallaxData) -> shrinkage.GaussianPosterior:
    """q(theta, zero point)."""
    if model.fixed_scatter is not None:
        raise CannotDo("Laplace learns the scatter: Parallax(scatter=None), or use MAP() or NUTS()")
    penalised, prior = model.require_frame().penalised, model.sparse_prior
    ridge = np.where(penalised, 100.0, model.wide_precision)
    with refused_in_words():
        return shrinkage.fit_posterior(
        data.features.value, data.y, data.sigma, ridge=ridge, sparse=penalised,
        prior=prior_as_ridge(prior) if penalised.any() else None,
        variance=data.features.variance if data.features.variance.any() else None, entries=data.features.entries,
        zero_prior=model.zero_prior,
    )  # fmt: skip


def prior_as_ridge(prior: Any) -> shrinkage.Ridge:
    """The prior as a ridge, its scale fixed or learned."""
    if isinstance(prior, Horseshoe):
        if prior.scale is not None:
            raise CannotDo("Laplace learns the horseshoe's scale: priors.Horseshoe(), or use NUTS()")
        return functools.partial(shrinkage.horseshoe, slab=prior.slab)
    t = prior.scale
    if isinstance(prior, Normal):
        return shrinkage.normal if t is None else (lambda second: np.full(len(second), t**-2))
    return shrinkage.laplace if t is None else lambda second: 1 / (t * np.sqrt(second))


def point(model: LogLinearModel, moments: LogLinearMoments) -> dict[str, np.ndarray]:
    """The point estimate, as one chain of one draw."""
    sites = {
        "coefficients": moments.coefficients / model.require_frame().scale,
        "zero_point": moments.zero_point,
        "scatter": moments.scatter,
    }
    return {name: np.asarray(x)[None, None] for name, x in sites.items()}


def with_coefficients(model: LogLinearModel, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Draws of the program's sites, with the coefficients per unit of the features among them."""
    return {**draws, "coefficients": _theta(model, draws) / model.require_frame().scale}


def _theta(model: LogLinearModel, draws: dict[str, np.ndarray]) -> np.ndarray:
    penalised = model.require_frame().penalised
    theta = np.zeros((*draws["wide"].shape[:2], len(penalised)))
    theta[..., ~penalised] = draws["wide"]
    if penalised.any():
        theta[..., penalised] = draws["sparse"]
    return theta


def moments_of(model: LogLinearModel, draws: dict[str, np.ndarray]) -> LogLinearMoments:
    """From draws of the program's sites {site: (chain, draw, ...)}; the coefficients' covariance is the draws'."""
    theta = _theta(model, draws)
    theta = theta.reshape(-1, theta.shape[-1])
    mean, d, n = theta.mean(0), theta.shape[1], len(theta)
    factor, variance = (theta - mean).T / np.sqrt(max(n - 1, 1)), np.zeros(d)
    if n > d:
        spread = factor @ factor.T
        factor = np.linalg.cholesky(spread + 1e-14 * np.trace(spread) * np.eye(d))
    zero = np.asarray(draws.get("zero_point", model.zero_prior[0]))
    s = np.asarray(draws.get("scatter", model.fixed_scatter))
    fraction = np.asarray(draws.get("outlier_fraction", 0.0))
    return LogLinearMoments(mean, factor, variance, zero.mean(), zero.std(), np.sqrt((s**2).mean()), fraction.mean())
