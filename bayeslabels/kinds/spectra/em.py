"""The training step by expectation-maximisation, of stars whose pixels are independent or correlated."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...data.stars import Stars
from ...inference.base import Trained
from ...inference.map import MAP
from ...numerics.linalg import in_float64
from ...progress import bar
from .correlated import CorrelatedEM
from .model import LinearModel
from .training import EM

SHORT = MAP(max_iterations=30, tolerance=0.1)
"""Settings of a training that is only a starting point."""


def em_of(model: LinearModel, stars: Stars) -> EM:
    """What trains on these stars: pixels one by one, or together where the flux has covariances."""
    return (CorrelatedEM if model.has_covariance(stars) else EM)(model, stars)


@in_float64
def by_em(
    model: LinearModel, stars: Stars, inference: MAP, seed: int, progress: bool | None, what: str = "training step"
) -> Trained:
    inference.refuse_batches(model)
    state = em_of(model, stars)
    with bar(inference.max_iterations if state.iterates else None, what, progress) as shown:
        changes, converged = state.run(inference.max_iterations, inference.tolerance, shown)
    stats: dict[str, Any] = {
        "converged": bool(converged and state.pixel_converged.all()),
        "iterations": len(changes),
        "n_star": len(stars),
        "n_pixel_trained": int(state.trained.sum()),
        "n_pixel_dropped": int((~state.trained).sum()),
        "n_pixel_not_converged": int((~state.pixel_converged).sum()),
    }
    if not converged:
        stats["advice"] = f"MAP(max_iterations={4 * inference.max_iterations})"
    traces = {"change": np.array(changes), "objective": np.array(state.objectives)}
    moments = state.moments()
    return Trained(state.point(moments), moments, stats, traces)


def settled(model: LinearModel, stars: Stars, max_iterations: int, tolerance: float) -> EM:
    """A training of these stars that is a means to something else, without a bar of progress."""
    em = em_of(model.bind(stars), stars)
    with bar(None, "", False) as hidden:
        em.run(max_iterations, tolerance, hidden)
    return em
