"""One bad star among many: what is wrong of it is left out and flagged, and the others are as if it were not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from astropy.table import Column, Table

from ..data.stars import Block, Stars
from ..errors import BadInput
from .sources import Columns, flat, stars_of

T = TypeVar("T")


def drop_bad_errors(table: Table, columns: Columns) -> np.ndarray:
    """Errors that are zero or negative, inverse variances that are negative or infinite, become missing.

    Returns:
        (N,): the stars that have some.
    """
    bad = np.zeros(len(table), bool)
    for name, value in columns.items():
        kind = name.rpartition("_")[2]
        if kind not in ("error", "ivar"):
            continue
        for column in flat([value]):
            numbers = _floats(table[column])
            if numbers.ndim > 2:
                continue
            wrong = numbers <= 0 if kind == "error" else (numbers < 0) | np.isposinf(numbers)
            if wrong.any():
                bad |= wrong.reshape(len(table), -1).any(1)
                table[column] = Column(np.where(wrong, np.nan, numbers), unit=table[column].unit)
    return bad


def widened(table: Table, columns: Columns, widths: Mapping[str, int]) -> Table:
    """The table with vector columns that hold nothing as wide as they were in training; widths: of the blocks."""
    for name, value in columns.items():
        width = widths.get(name.removesuffix("_error").removesuffix("_ivar"))
        if not isinstance(value, str) or value not in table.colnames or not width or width == 1:
            continue
        numbers = table[value]
        if numbers.shape[1:] in ((), (0,)) and (numbers.size == 0 or (_is_number(numbers) and _empty(numbers))):
            table[value] = Column(np.full((len(table), width), np.nan), unit=numbers.unit)
    return table


def readable(table: Table, columns: Columns, coords: Mapping[str, Any]) -> tuple[Stars, np.ndarray]:
    """The stars of a table, and (N,) those of which nothing is taken, since they cannot be: not a covariance, say.

    What is wrong however the stars' numbers are (units, names, ids) is refused, as ever.
    """

    def read(rows: np.ndarray) -> Stars:
        return stars_of(table[rows], columns, coords)

    def without(odd: np.ndarray) -> Stars:
        blank = table.copy()
        for name in flat(value for name, value in columns.items() if name != "id"):
            if name in blank.colnames and _is_number(blank[name]):
                numbers = _floats(blank[name])
                numbers[odd] = np.nan
                blank[name] = Column(numbers, unit=blank[name].unit)
        return stars_of(blank, columns, coords)

    every = np.arange(len(table))
    try:
        return read(every), np.zeros(len(table), bool)
    except BadInput:
        without(every)
        odd = culprits(read, every, BadInput)
    return without(odd), np.isin(every, odd)


def without_failures(infer: Callable[[Stars], T], stars: Stars) -> tuple[T, np.ndarray]:
    """`infer` of stars; and (N,) those without which alone the linear algebra has an answer, taken as without data."""
    every = np.arange(len(stars))
    try:
        return infer(stars), np.zeros(len(stars), bool)
    except np.linalg.LinAlgError:
        odd = culprits(lambda rows: infer(_blank(stars, np.setdiff1d(every, rows))), every, np.linalg.LinAlgError)
    return infer(_blank(stars, odd)), np.isin(every, odd)


def culprits(function: Callable[[np.ndarray], Any], rows: np.ndarray, problem: type[Exception]) -> np.ndarray:
    """The rows of which each alone raises the problem; found by halving."""
    try:
        function(rows)
    except problem:
        if len(rows) == 1:
            return rows
        halves = np.array_split(rows, 2)
        return np.concatenate([culprits(function, half, problem) for half in halves])
    return rows[:0]


def _blank(stars: Stars, rows: np.ndarray) -> Stars:
    """Stars of which some have no data."""
    blocks = {}
    for name, block in stars.blocks.items():
        value = np.array(block.value)
        value[rows] = np.nan
        blocks[name] = Block(value, block.error, names=block.names, unit=block.unit, coords=block.coords)
    return stars.with_block(**blocks)


def _is_number(column: Any) -> bool:
    return column.dtype.kind in "fiub"


def _empty(column: Any) -> bool:
    return bool(np.isnan(_floats(column)).all())


def _floats(column: Any) -> np.ndarray:
    """A copy in float64, NaN where masked."""
    if isinstance(column, np.ma.MaskedArray):
        return np.ma.filled(column.astype(float), np.nan)
    return np.array(column, float)
