"""Numbers that stand for "missing" in other people's tables, and would be learned from as if they were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DoubtfulErrors, bad_input, warn
from .columns import MAX_NAMED
from .stars import Block, Stars

NINES = [float("9" * n + ("." + "9" * m if m else "")) for n in range(1, 8) for m in range(5) if n + m > 2 or n > 1]
FILLS = np.unique([*NINES, 32767, 32768, 65535, 2147483647, 2147483648])
"""Numbers, of either sign, that stand for what is missing: nines, and the ends of integers."""
SMALL, LARGE = 1e-20, 1e10
"""Numbers below (0, most of all) and above them may stand for what is missing, too."""
SPECTRA = "flux"
ENOUGH, RARE = 20, 0.05
"""Stars from which the usual range of a label is known, and the share of them, at most, that is called unusual."""
FAR = 15.0
"""Spreads of the other values from their median, beyond which such a number is no measurement."""


PERCENTILES = (2.5, 50, 97.5)
TINY = 1e-6
"""Of the median error: an error below it is no error of measurement."""


def refuse_sentinels(stars: Stars, blocks: Sequence[str]) -> None:
    """Refuse training stars with sentinels in the columns of these blocks; long spectra are not looked at."""
    for name, block in _narrow(stars, blocks):
        for i, column in enumerate(np.where(block.observed, block.value, np.nan).T):
            fills = _is_fill(column, name)
            others = column[np.isfinite(column) & ~fills]
            if not fills.any() or len(others) < 2:
                continue
            low, centre, high = np.percentile(others, PERCENTILES)
            wrong = fills & (np.abs(column - centre) > _far(low, centre, high))
            if wrong.any():
                value, what = column[wrong][0], block.names[i] if block.names else f"column {i} of {name}"
                raise bad_input(
                    f"{int((column == value).sum())} stars with {what} = {value:g}, where the others have {low:.4g} to "
                    f"{high:.4g}", "NaN where it was not measured", "a sentinel for what is missing",
                    f"table[{what!r}] = np.where(np.isclose(table[{what!r}], {value:g}), np.nan, table[{what!r}])",
                )  # fmt: skip


def refuse_tiny_errors(stars: Stars, blocks: Sequence[str]) -> None:
    """Refuse training stars of which one number would count for more than those of a million others."""
    for name, block in _narrow(stars, [x for x in blocks if x != SPECTRA]):
        if block.error is None:
            continue
        spread = np.sqrt(np.diagonal(block.error, axis1=1, axis2=2)) if block.has_covariance else block.error
        for i, column in enumerate(np.where(block.observed, spread, np.nan).T):
            known = column[np.isfinite(column)]
            tiny = known[known < TINY * np.median(known)] if len(known) else known
            if len(tiny):
                what = block.names[i] if block.names else f"column {i} of {name}"
                raise bad_input(
                    f"{len(tiny)} stars whose error of {what} is {tiny[0]:g}, where most have {np.median(known):.4g}",
                    "errors of a measurement, or NaN where it was not measured", "a number that stands for missing",
                    f"{name}_error=np.where(error > {TINY:g} * np.nanmedian(error), error, np.nan)",
                )  # fmt: skip


def warn_of_far_labels(stars: Stars, blocks: Sequence[str]) -> None:
    """Warn of exact training labels that are far from all others: they bend the model of all stars."""
    for name, block in _narrow(stars, blocks):
        if block.error is not None:
            continue
        for i, column in enumerate(np.where(block.observed, block.value, np.nan).T):
            known = column[np.isfinite(column)]
            if len(known) < ENOUGH:
                continue
            low, centre, high = np.percentile(known, [16, 50, 84])  # which few that are far off do not move
            far = np.flatnonzero(np.abs(column - centre) > FAR * max((high - low) / 2, 1e-12 * abs(centre)))
            if 0 < len(far) <= RARE * len(known):
                what = block.names[i] if block.names else f"column {i} of {name}"
                ids = "" if stars.id is None else f" (id {stars.id[far[0]]})"
                warn(
                    f"{len(far)} training stars with an exact {what} such as {column[far[0]]:g}{ids}, where most have "
                    f"{low:.4g} to {high:.4g}. An exact label that is wrong, or in another unit, bends the model of "
                    f"all stars: leave the star out, set the label to NaN, or give {name}_error.",
                    DoubtfulErrors,
                )  # fmt: skip


def ranges_of(stars: Stars, blocks: Sequence[str]) -> dict[str, list[list[float] | None]]:
    """Where the training stars' values are, [centre, how far from it a sentinel is], of each column of these blocks."""
    out: dict[str, list[list[float] | None]] = {}
    for name, block in _narrow(stars, [x for x in blocks if x != SPECTRA]):
        out[name] = []
        for column in np.where(block.observed, block.value, np.nan).T:
            there = column[np.isfinite(column)].astype(float)
            low, centre, high = np.percentile(there, PERCENTILES) if len(there) > 1 else (0.0, 0.0, 0.0)
            out[name].append([float(centre), float(_far(low, centre, high))] if len(there) > 1 else None)
    return out


def refuse_beyond(extremes: Mapping[str, np.ndarray], sample: Stars) -> None:
    """Refuse training stars beyond the sample in memory with sentinels; extremes: of all stars, `fills_of`."""
    for name, columns in ranges_of(sample, list(extremes)).items():
        for i, (known, fills) in enumerate(zip(columns, extremes[name], strict=True)):
            for value in fills[np.isfinite(fills)]:
                if known is not None and abs(value - known[0]) > known[1]:
                    names = sample[name].names
                    raise bad_input(
                        f"stars with {names[i] if names else f'column {i} of {name}'} = {value:g}, where most have "
                        f"about {known[0]:.4g}", "NaN where it was not measured", "a sentinel for what is missing",
                    )  # fmt: skip


def fills_of(stars: Stars, blocks: Sequence[str]) -> dict[str, np.ndarray]:
    """The least and the largest number (2,) that may be a sentinel, of each column (n_dim, 2) of these blocks."""
    out = {}
    for name, block in _narrow(stars, [x for x in blocks if x != SPECTRA]):
        x = np.where(_is_fill(block.value, name) & block.observed, block.value, np.nan)
        out[name] = np.stack([np.fmin.reduce(x, 0), np.fmax.reduce(x, 0)], 1)
    return out


def without_sentinels(stars: Stars, ranges: Mapping[str, Any]) -> tuple[Stars, np.ndarray]:
    """Stars of whom sentinels are missing, as what they stand for is; and (N,) those who had some.

    ranges: of the training stars, `ranges_of`.
    """
    odd, changed = np.zeros(len(stars), bool), {}
    for name, block in _narrow(stars, list(ranges)):
        if len(ranges[name]) != block.n_dim:
            continue
        fills = _is_fill(block.value, name) & block.observed
        for i in np.flatnonzero(fills.any(0)):
            known = ranges[name][i]
            fills[:, i] &= known is not None and np.abs(block.value[:, i] - known[0]) > known[1]
        if fills.any():
            odd |= fills.any(1)
            value = np.where(fills, np.nan, block.value)
            changed[name] = Block(value, block.error, names=block.names, unit=block.unit, coords=block.coords)
    return stars.with_block(**changed), odd


def _narrow(stars: Stars, blocks: Sequence[str]) -> list[tuple[str, Block]]:
    """The blocks that are no long spectra, and no names."""
    found = [(name, stars[name]) for name in blocks if name in stars]
    return [(name, block) for name, block in found if block.n_dim <= MAX_NAMED and not block.has_names]


def _is_fill(values: np.ndarray, name: str) -> np.ndarray:
    size = np.abs(values)
    fills = np.isin(size, FILLS.astype(values.dtype)) | (size >= LARGE)
    return fills if name == SPECTRA else fills | (size < SMALL) | (size == 1)


def _far(low: float, centre: float, high: float) -> float:
    return FAR * max((high - low) / 4, 1e-12 * abs(centre))
