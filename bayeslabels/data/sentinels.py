"""Numbers that stand for "missing" in other people's tables, and would be learned from as if they were measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import bad_input
from .columns import MAX_NAMED
from .stars import Stars

NINES = [float("9" * n + ("." + "9" * m if m else "")) for n in range(1, 8) for m in range(5) if n + m > 2 or n > 1]
FILLS = np.unique([*NINES, 32767, 32768, 65535, 2147483647, 2147483648, 1e10, 1e20, 1e30, 9.969209968386869e36])
"""Of either sign: nines, the ends of integers, and round numbers that no star has."""
FAR = 15.0
"""Spreads of the other values from their median, beyond which such a number is no measurement."""


def refuse_sentinels(stars: Stars, blocks: Sequence[str]) -> None:
    """Refuse training stars with sentinels in the columns of these blocks; of spectra nothing is looked at."""
    for name in blocks:
        if name not in stars or stars[name].n_dim > MAX_NAMED:
            continue
        block = stars[name]
        for i, column in enumerate(np.where(block.observed, block.value, np.nan).T):
            fills = np.isin(np.abs(column), FILLS.astype(column.dtype))
            others = column[np.isfinite(column) & ~fills]
            if not fills.any() or len(others) < 2:
                continue
            low, centre, high = np.percentile(others, [2.5, 50, 97.5])
            wrong = fills & (np.abs(column - centre) > FAR * max((high - low) / 4, 1e-12 * abs(centre)))
            if wrong.any():
                value, what = column[wrong][0], block.names[i] if block.names else f"column {i} of {name}"
                raise bad_input(
                    f"{int((column == value).sum())} stars with {what} = {value:g}, where the others have {low:.4g} to "
                    f"{high:.4g}", "NaN where it was not measured", "a sentinel for what is missing",
                    f"table[{what!r}] = np.where(np.isclose(table[{what!r}], {value:g}), np.nan, table[{what!r}])",
                )  # fmt: skip
