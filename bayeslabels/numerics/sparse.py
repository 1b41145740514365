"""Sparse regression through any smooth likelihood of one linear predictor per star, to the exact optimum.

    minimise  H(theta) = sum_n l_n(eta_n) + sum_j [l1_j |theta_j| + 1/2 ridge_j theta_j^2],   eta = X theta

Proximal Newton on a growing working set of features: each step expands l_n to second order and solves the quadratic
problem with its L1 term exactly, by an active-set method (`solve_quadratic`). Zeros are exact zeros. It stops by the
subgradient condition: every component of the smooth gradient g obeys g_j = -l1_j sign(theta_j), or |g_j| <= l1_j where
theta_j = 0. Features that stay zero cost one product X'g per round and no curvature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from .linalg import Array
from .threads import threads_for

Likelihood = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""eta (N,) -> minus log likelihood, its derivative and a non-negative curvature, (N,) each."""


class Optimum(NamedTuple):
    """theta (D,), the objective H, the largest violation of the subgradient condition, iterations, convergence."""

    theta: np.ndarray
    objective: float
    violation: float
    iterations: int
    converged: bool


def subgradient(gradient: np.ndarray, theta: np.ndarray, l1: np.ndarray) -> np.ndarray:
    """The smallest subgradient of (smooth part + l1 |theta|), given the smooth part's gradient: zero at an optimum."""
    at_zero = np.sign(gradient) * np.maximum(np.abs(gradient) - l1, 0.0)
    return np.where(theta != 0, gradient + l1 * np.sign(theta), at_zero)


def minimise(
    x: Array,
    likelihood: Likelihood,
    l1: np.ndarray,
    ridge: np.ndarray,
    start: np.ndarray,
    *,
    tolerance: float = 1e-5,
    max_iterations: int = 200,
) -> Optimum:
    """The optimum of H reached from `start`; features x (N, D) of any scale, N and D of any size.

    tolerance: of the subgradient, in units of the square root of each feature's curvature (the change of theta in
    posterior standard deviations), so that it does not depend on the features' scales.
    """
    with threads_for(x.size):
        return _minimise(x, likelihood, l1, ridge, np.array(start, float), tolerance, max_iterations)


def _minimise(
    x: np.ndarray,
    likelihood: Likelihood,
    l1: Array,
    ridge: Array,
    theta: np.ndarray,
    tolerance: float,
    max_iterations: int,
) -> Optimum:
    eta = x[:, np.flatnonzero(theta)] @ theta[theta != 0]
    value, slope, curvature = likelihood(eta)
    pull = slope @ x
    scale = np.sqrt(_diagonal(x, curvature) + ridge + 1e-300)
    objective = value.sum() + _penalty(theta, l1, ridge)
    iterations, violation = 0, np.inf
    for _ in range(max_iterations):
        v = subgradient(pull + ridge * theta, theta, l1)
        violation = float(np.max(np.abs(v) / scale))
        if violation <= tolerance or iterations >= max_iterations:
            break
        chosen = _working_set(theta, np.abs(v) / scale, l1)
        target = max(0.1 * violation, 0.3 * tolerance)
        moved = False
        for _ in range(5):
            part = theta[chosen]
            gradient = pull[chosen] + ridge[chosen] * part
            if np.max(np.abs(subgradient(gradient, part, l1[chosen])) / scale[chosen]) <= target:
                break
            gram = _gram(x, curvature, chosen)
            gram[np.diag_indices_from(gram)] += ridge[chosen]
            with threads_for(gram.size):
                new = solve_quadratic(gram, gram @ part - gradient, l1[chosen], part, 0.1 * target)
            step = new - part
            whole = np.zeros_like(theta)
            whole[chosen] = step
            along = x @ whole
            expected = gradient @ step + (l1[chosen] * (np.abs(new) - np.abs(part))).sum()
            length = min(1.0, LARGEST_STEP / max(np.max(np.abs(along)), 1e-300))
            iterations += 1
            for _ in range(40):
                trial = theta.copy()
                trial[chosen] = new if length == 1 else part + length * step
                result = likelihood(eta + length * along)
                better = result[0].sum() + _penalty(trial, l1, ridge)
                if better <= objective + 1e-4 * length * expected + 1e-12 * abs(objective):
                    moved = moved or better < objective
                    theta, eta, objective = trial, eta + length * along, better
                    value, slope, curvature = result
                    pull = slope @ x
                    break
                length *= 0.5
            else:
                break
        if not moved:  # the objective cannot be told to fall any more in float64
            violation = float(np.max(np.abs(subgradient(pull + ridge * theta, theta, l1)) / scale))
            break
    return Optimum(theta, float(objective), violation, iterations, violation <= tolerance)


LARGEST_STEP = 3.0
"""Largest change of a star's eta in a step: exp(eta) is expanded to second order, no farther than it can be trusted."""


def solve_quadratic(
    gram: np.ndarray, linear: np.ndarray, l1: np.ndarray, start: np.ndarray, tolerance: float
) -> np.ndarray:
    """argmin 1/2 t' gram t - linear' t + l1 |t|, exactly; coefficients with l1 = 0 are eliminated first.

    Coordinate descent finds which coefficients are zero; a Newton step on the others, with their signs held and
    projected where they would change, makes the convergence finite however correlated the features are.
    """
    free, bound = np.flatnonzero(l1 == 0), np.flatnonzero(l1 > 0)
    out = np.array(start, float)
    if not len(bound):
        out[free] = _solve(gram, linear)
        return out
    a, b = gram[np.ix_(bound, bound)], linear[bound]
    if len(free):
        across = gram[np.ix_(free, bound)]
        solved = _solve(gram[np.ix_(free, free)], np.column_stack([across, linear[free]]))
        a, b = a - across.T @ solved[:, :-1], b - across.T @ solved[:, -1]
    out[bound] = t = _lasso(a, b, l1[bound], out[bound], tolerance)
    if len(free):
        out[free] = solved[:, -1] - solved[:, :-1] @ t
    return out


def _lasso(a: np.ndarray, b: np.ndarray, l1: np.ndarray, t: np.ndarray, tolerance: float) -> np.ndarray:
    diagonal = np.maximum(np.diag(a), 1e-300)
    root = np.sqrt(diagonal)
    rest = b - a @ t
    for _ in range(500):
        violation = np.abs(subgradient(-rest, t, l1)) / root
        if violation.max() <= tolerance:
            break
        for j in np.flatnonzero((violation > 0.1 * tolerance) | (t != 0)):
            target = rest[j] + diagonal[j] * t[j]
            new = np.sign(target) * max(abs(target) - l1[j], 0.0) / diagonal[j]
            if new != t[j]:
                rest -= a[j] * (new - t[j])
                t[j] = new
        t = _newton_on_support(a, b, l1, t)
        rest = b - a @ t
    return t


def _newton_on_support(a: np.ndarray, b: np.ndarray, l1: np.ndarray, t: np.ndarray) -> np.ndarray:
    """t, or better: toward the minimum over the non-zero coefficients with their signs held, projected onto them."""
    for _ in range(20):
        on = np.flatnonzero(t)
        if not len(on):
            return t
        sign, part, block = np.sign(t[on]), t[on], a[np.ix_(on, on)]
        linear = b[on] - l1[on] * sign
        aim = _solve(block, linear)

        def height(s: np.ndarray, block: np.ndarray = block, linear: np.ndarray = linear) -> float:
            return float(s @ (0.5 * (block @ s) - linear))

        best, lowest, kept = part, height(part), False
        for length in (1.0, 0.5, 0.25, 0.1):
            trial = part + length * (aim - part)
            kept = bool((trial * sign >= 0).all())
            trial = np.where(trial * sign > 0, trial, 0.0)
            if (now := height(trial)) < lowest:
                best, lowest = trial, now
                break
        else:
            return t
        t = np.zeros_like(t)
        t[on] = best
        if kept:
            return t
    return t


def _working_set(theta: np.ndarray, violation: np.ndarray, l1: np.ndarray) -> np.ndarray:
    """Features that are not zero, those without L1 term, and the worst violators, at most as many again."""
    chosen = (theta != 0) | (l1 == 0)
    others = np.flatnonzero(~chosen & (violation > 0))
    worst = others[np.argsort(-violation[others], kind="stable")][: max(200, int(chosen.sum()))]
    chosen[worst] = True
    return np.flatnonzero(chosen)


def _penalty(theta: np.ndarray, l1: np.ndarray, ridge: np.ndarray) -> float:
    return float((l1 * np.abs(theta) + 0.5 * ridge * theta**2).sum())


def _diagonal(x: Array, weight: np.ndarray) -> np.ndarray:
    """sum_n weight_n x_nj^2 (D,), by blocks of stars: no second copy of x."""
    out = np.zeros(x.shape[1])
    for start in range(0, len(x), 256):
        out += weight[start : start + 256] @ np.square(x[start : start + 256])
    return out


def _gram(x: Array, weight: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """sum_n weight_n x_nj x_nk of the chosen features (J, J), by blocks of stars: no copy of their columns."""
    out = np.zeros((len(chosen), len(chosen)))
    for start in range(0, len(x), 2048):
        half = x[start : start + 2048][:, chosen] * np.sqrt(weight[start : start + 2048, None])
        out += half.T @ half
    return out


def _solve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a^-1 b for symmetric a, positive definite up to rounding: where it is not, a small ridge makes it so."""
    scale = 1 / np.sqrt(np.maximum(np.diag(a), 1e-300))
    scaled = a * scale[:, None] * scale
    shape = (-1,) + (1,) * (b.ndim - 1)
    for jitter in (0.0, 1e-12, 1e-9, 1e-6):
        try:
            factor = cho_factor(scaled + jitter * np.eye(len(a)) if jitter else scaled, lower=True)
        except LinAlgError:
            continue
        return scale.reshape(shape) * cho_solve(factor, scale.reshape(shape) * b)
    return np.linalg.lstsq(a, b, rcond=None)[0]
