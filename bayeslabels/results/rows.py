"""The one builder of what a test step returns of a batch of stars: draws of named quantities, summaries, flags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..data.stars import Stars
from ..inference.diagnostics import RHAT_LIMIT
from ..inference.importance import KHAT_LIMIT
from ..kind import Column
from .star_posterior import LEVELS, ONE_SIGMA, Flags

SECOND = 0.01
"""Probability of all modes but the best above which a star has a second solution."""


def star_rows(
    stars: Stars,
    names: Sequence[str],
    draws: np.ndarray,
    summaries: Mapping[str, np.ndarray],
    covariance: np.ndarray,
    per_star: Mapping[str, np.ndarray],
    columns: Mapping[str, Column],
    *,
    further: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
) -> dict[str, xr.Dataset]:
    """`posterior` and `stars` of N stars, M labels: whatever is inferred of them.

    Args:
        draws: (chain, draw, N, M).
        summaries: (N, M) each: `mean`, and what else is told of every label, in the order of a table's columns.
            covariance: (N, M, M).
        per_star: (N,) each, in the order of a table's columns, `flags` among them. columns: what they are, and the
            parts of the labels' errors.
        further: xarray variables of the stars, whose other coordinates are in `coords`.
    """
    ids = stars.id if stars.id is not None else np.arange(len(stars))
    about = {name: {"long_name": columns[name].meaning} for name in summaries if name in columns}
    table: dict[str, Any] = {name: (("star", "labels"), x, about.get(name, {})) for name, x in summaries.items()}
    table["covariance"] = (("star", "labels", "labels_bis"), covariance)
    for name, x in per_star.items():
        meaning, unit = columns[name]
        table[name] = (("star",), x, {"long_name": meaning} | ({"unit": unit} if unit else {}))
    of_stars = {"star": ids, "labels": list(names), "labels_bis": list(names), **(coords or {})}
    of_draws = {
        "star": ids,
        "labels": list(names),
        "chain": np.arange(draws.shape[0]),
        "draw": np.arange(draws.shape[1]),
    }
    return {
        "posterior": xr.Dataset({"true_labels": (("chain", "draw", "star", "labels"), draws)}, coords=of_draws),
        "stars": xr.Dataset(table | dict(further or {}), coords=of_stars),
    }


def of_draws(draws: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Mean and percentiles (N, Q), and covariance (N, Q, Q), of draws (chain, draw, N, Q)."""
    flat = draws.reshape(-1, *draws.shape[2:])
    mean = flat.mean(0)
    off = flat - mean
    covariance = np.einsum("snq,snr->nqr", off, off, optimize=True) / max(len(flat) - 1, 1)
    by_star = np.ascontiguousarray(np.moveaxis(flat, 0, -1))  # sorted where they lie, several times faster
    percentiles = np.percentile(by_star, [100 * LEVELS[x] for x in ONE_SIGMA], axis=-1, overwrite_input=True)
    return {"mean": mean, **dict(zip(ONE_SIGMA, percentiles, strict=True))}, covariance


def flags_of_solution(out: Any, weight: np.ndarray, blank: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What the solution of a `StarProblem` says of how far to trust it: flags (N,), and diagnostics for the table.

    weight: of the modes, (J, N). blank: (N,), stars of which nothing was measured.
    """
    second = weight[1:].sum(0)
    flags = Flags.NOT_CONVERGED * (out.failed & ~blank) | Flags.NO_DATA * blank
    flags |= Flags.MULTIMODAL * (second > SECOND)
    told = {name: x for name, x in out.star_stats.items() if name != "rescued"}
    if "khat" in told:
        rescued = out.star_stats.get("rescued", np.zeros(len(blank), bool))
        flags |= Flags.KHAT_HIGH * ((told["khat"] > KHAT_LIMIT) & ~rescued)
    if "rhat" in told:
        flags |= Flags.RHAT_HIGH * (told["rhat"] > RHAT_LIMIT)
    return np.asarray(flags, int), {"second_mode": second, **told}
