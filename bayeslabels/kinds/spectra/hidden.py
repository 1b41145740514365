"""Hidden labels: what varies between stars beside the catalogue's labels, learned from residuals of training spectra.

    flux_nl = theta_l . phi(u_n, v_n) + noise,   v_n a label that no catalogue states

An abundance that is left out, or an instrument that drifts, moves many pixels together. If the model has no place for
it the spectra's labels give way, and their errors do not say so. One hidden label is added at a time, as long as the
residuals, each in units of its noise, have a direction of more variance than noise alone would have in any (Marchenko &
Pastur 1967); their component along it is where v starts from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse.linalg import svds

from ...data.stars import Block, Stars
from ...numerics.linalg import in_float64
from ...progress import bar
from .em import settled
from .model import LinearModel

MOST = 4
"""Hidden labels, where the number is open."""
ABOVE = 1.05
"""Times the largest variance of pure noise: what is taken for more than noise."""
ITERATIONS, TOLERANCE = 60, 0.01
"""Settings of the training before each look at the residuals."""
ORDER = 2
"""Order of the polynomial, where it is still open."""
UNKNOWN = 3.0
"""Error of a hidden label's starting value, in units of its own spread: it says next to nothing."""
BLOCK = "hidden"


@in_float64
def with_hidden(model: LinearModel, stars: Stars, progress: bool | None) -> tuple[Any, Stars, list[dict[str, Any]]]:
    """The model with its hidden labels numbered, the stars with a block of starting values for them, and by how much
    each direction had more variance than the largest of noise."""
    asked = model.asks_hidden
    most = MOST if asked == "auto" else asked
    found: list[np.ndarray] = []
    scores: list[dict[str, Any]] = []
    with bar(most, "hidden labels", progress) as shown:
        while len(found) < most:
            trial, extended = _extended(model, stars, found)
            trial = trial.of_order(ORDER) if trial.orders else trial
            score, excess = leading_residual(trial.sampled(), extended)
            scores.append({"hidden": len(found) + 1, "excess": excess})
            shown.update()
            if asked == "auto" and excess < ABOVE:
                break
            found.append(score)
    return *_extended(model, stars, found), scores


def _extended(model: LinearModel, stars: Stars, found: list[np.ndarray]) -> tuple[Any, Stars]:
    names = tuple(f"{BLOCK}_{q}" for q in range(len(found)))
    if found:
        value = np.stack(found, 1)
        stars = stars.with_block(**{BLOCK: Block(value, np.full(value.shape, UNKNOWN), names=names)})
    return model.with_hidden(names), stars


def leading_residual(model: LinearModel, stars: Stars) -> tuple[np.ndarray, float]:
    """Main direction of the training stars' residuals: each star's component (N,) along the direction of largest
    variance, mean square 1, and that variance over the largest of noise alone, (sqrt(N) + sqrt(L))^2."""
    em = settled(model, stars, ITERATIONS, TOLERANCE)
    residual = em.standardised()
    n, n_pixel = len(residual), int(em.trained.sum())
    if min(residual.shape) < 3:
        return np.zeros(n), 0.0
    component, size, _ = svds(residual, k=1, random_state=0)
    return component[:, 0] * np.sqrt(n), float(size[0] ** 2 / (np.sqrt(n) + np.sqrt(n_pixel)) ** 2)
