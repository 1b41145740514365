"""What the helpers of this folder are given: numbers in a stated unit, Quantities, columns, masked or not."""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy import units as u
from astropy.utils.masked import Masked

from ..errors import bad_input


def plain(data: Any, unit: Any, what: str) -> np.ndarray:
    """Numbers in float64, NaN where masked, in this unit.

    Args:
        data: what has a unit is converted; what has none is taken to be in `unit`.
        unit: None for numbers without a unit.

    Raises:
        BadInput: of a unit that does not convert.
    """
    if isinstance(data, list | tuple) and any(hasattr(x, "unit") for x in data):
        try:
            data = u.Quantity(data)
        except (TypeError, u.UnitConversionError) as problem:
            raise bad_input(f"{what} with several units", "one unit, or none") from problem
    own, mask = unit_held(data), None
    if isinstance(data, Masked):
        mask, data = np.asarray(data.mask), data.unmasked
    elif isinstance(data, np.ma.MaskedArray):
        mask, data = np.ma.getmaskarray(data), np.ma.getdata(data)
    try:
        array = np.array(getattr(data, "value", data) if isinstance(data, u.Quantity) else data, np.float64)
    except (TypeError, ValueError) as problem:
        raise bad_input(f"{what} that is not numeric ({problem})", "real numbers, NaN where missing") from problem
    if own is not None and own is not unit:
        try:
            array = np.array(u.Unit(own).to(u.Unit(unit or ""), array), np.float64)
        except (u.UnitConversionError, ValueError, TypeError) as problem:
            expected = f"{what} in a unit like {unit}" if unit else f"{what} without a unit"
            raise bad_input(f"{what} in {own}", expected) from problem
    if mask is not None:
        array[mask] = np.nan
    return array


def unit_held(data: Any) -> Any:
    """The unit that numbers bring along: of a Quantity or a column, or the attribute "units" of an xarray."""
    unit = getattr(data, "unit", None)
    if unit is None and hasattr(data, "dims"):
        unit = getattr(data, "attrs", {}).get("units")
    return unit


def alike(**arrays: np.ndarray) -> list[np.ndarray]:
    """The arrays, by their names, at one shape."""
    try:
        return [*np.broadcast_arrays(*arrays.values())]
    except ValueError as problem:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise bad_input(f"arrays of shape {shapes}", "one number, or one per star, in each") from problem


def single(data: Any, unit: Any, what: str) -> float:
    """As `positive`, one number."""
    array = positive(data, unit, what)
    if array.size != 1:
        raise bad_input(f"{what} of shape {array.shape}", "one number")
    return float(array.reshape(()))


def positive(data: Any, unit: Any, what: str, zero: bool = False) -> np.ndarray:
    """As `plain`; refuses numbers below 0, and 0 unless `zero`."""
    array = plain(data, unit, what)
    wrong = array < 0 if zero else array <= 0
    if wrong.any():
        least = "0 or more" if zero else "above 0"
        got = f"{what} of which {int(wrong.sum())} of {array.size} are not {least}"
        raise bad_input(
            got, f"numbers {least}, NaN where missing",
            "a sentinel for what is missing", f"np.where({what} > 0, {what}, np.nan)",
        )  # fmt: skip
    return array
