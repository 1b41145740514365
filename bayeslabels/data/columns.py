"""Columns: numbers with units and gaps out of table columns and arrays, and blocks as the columns of an astropy table.

Files are the business of `tables`; blocks are made, and their numbers checked, in `stars`.
"""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from astropy import units as u
from astropy.io.fits import FITS_rec
from astropy.table import Column, MaskedColumn, QTable
from astropy.utils.masked import Masked

from ..astro.quantities import unit_held
from ..errors import bad_input, index_of

Numbers: TypeAlias = tuple[np.ndarray, list[Any]]  # with units: one for all columns, or one each

MAX_NAMED = 64  # wider blocks are spectra: their columns have coords, not names
META = "BLBLOCKS"  # at most eight characters, so that a FITS header holds it
LOG_UNIT = re.compile(r"log(?:10)?\((.+)\)")
WORD = re.compile(r"[A-Za-z]+")
EXPONENT = re.compile(r"(?<=\d)E(?=[-+]?\d)")
WORDS = {
    "ang": "Angstrom", "angstroms": "Angstrom", "counts": "ct", "mags": "mag", "magnitude": "mag", "magnitudes": "mag",
    "nanomaggies": "nmgy", "nanomaggy": "nmgy", "adu": "adu", "degk": "K", "days": "day", "years": "yr",
}  # fmt: skip
"""Units as surveys write them, in lower case, and as astropy knows them."""
NO_UNIT = ("-", "--", "---", "[-]", "none", "null", "unitless", "dimensionless", "n/a")
SUFFIXES = ("error", "ivar", "unit", "names", "coords")
NAME_BLOCKS = ("survey", "parallax_system")
"""Blocks that hold names, of which a table has a column of texts."""
INDICATOR = "indicator"
"""Key of the coords of a block of names: its columns say which of them each star has."""
NAMELESS = "(none)"
"""The one column of a block of names where no star has one."""


def numbers(data: Any, what: str) -> Numbers:
    """Native floats, NaN where masked, and their unit."""
    unit, mask = unit_held(data), None
    if isinstance(data, Masked):
        mask, data = np.asarray(data.mask), data.unmasked
    elif isinstance(data, np.ma.MaskedArray):
        mask, data = np.ma.getmaskarray(data), np.ma.getdata(data)
    array = np.asarray(data)
    try:
        if array.dtype == object:
            vectors = array.size and np.ndim(array.flat[0])
            nullable = hasattr(data, "to_numpy") and not vectors
            if nullable:
                array = data.to_numpy(float, na_value=np.nan)
            elif vectors:
                array = np.array(array.tolist(), float)
            else:
                plain = [np.nan if x is np.ma.masked else x for x in array.ravel().tolist()]
                array = np.array(plain, float).reshape(array.shape)
        if array.dtype.kind not in "fiub":
            odd = next((x for x in array.ravel().tolist() if not _is_number(x)), None)
            raise TypeError(array.dtype if odd is None else f"such as {odd!r:.40}")
    except (TypeError, ValueError, OverflowError) as why:
        raise bad_input(f"{what} that is not numeric ({why})", "real numbers, NaN where missing") from None
    single = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    array = np.array(array, np.float32 if single else np.float64)
    if mask is not None:
        array[mask] = np.nan
    return array, [unit]


def _is_number(text: Any) -> bool:
    try:
        float(text)
    except (TypeError, ValueError):
        return False
    return True


def texts(data: Any) -> np.ndarray | None:
    """Texts (N,) without blanks around them, "" where there is none or it is masked; None: numbers, or vectors."""
    masked, array = np.ma.getmaskarray(data), np.asarray(np.ma.getdata(data))
    if array.ndim != 1 or array.dtype.kind not in "OSUTf":
        return None
    every = [x.decode(errors="replace") if isinstance(x, bytes) else x for x in array.tolist()]
    found = ["" if gone or x is None or x != x else x for x, gone in zip(every, masked, strict=True)]
    return np.array([x.strip() for x in found], str) if all(isinstance(x, str) for x in found) else None


def names_of(value: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """The names (N,) behind `of_names`."""
    return np.where(np.isnan(value[:, 0]), "", np.array(known)[np.nan_to_num(value).argmax(1)])


def identifiers(id: Any) -> np.ndarray:
    """Ids (N,) as texts or integers, each once."""
    masked = isinstance(id, np.ma.MaskedArray) and np.ma.getmaskarray(id).any()
    array = np.asarray(id)
    if array.shape == (0,) and array.dtype.kind not in "iu":
        array = array.astype(str)  # of no stars: of no kind
    if array.dtype.kind in "OST":
        try:
            every = [x.decode() if isinstance(x, bytes) else x for x in array.tolist()]
        except UnicodeDecodeError as problem:
            fix = 'table[...] = np.char.decode(table[...], "latin-1"), or omit id'
            raise bad_input(f"ids such as {problem.object!r}", "texts in UTF-8", "another encoding", fix) from None
        if n := sum(not isinstance(x, str | int) for x in every):
            raise bad_input(
                f"{n} ids that are missing", "one string or integer per star", "None or NaN in the column",
                "table = table[table[...].notna()], or omit id",
            )  # fmt: skip
        array = np.array(every)
    if masked or array.ndim != 1 or array.dtype.kind not in "iuU":
        lost = "floating-point numbers, which lose the last digits of long ids" if array.dtype.kind == "f" else None
        raise bad_input(f"id {'masked' if masked else array.dtype}", "one string or integer per star", lost)
    unique, counts = np.unique(array, return_counts=True)
    if len(some := unique[counts > 1].tolist()):
        got = f"{len(some)} duplicated ids ({', '.join(map(str, some[:3]))}{', ...' if some[3:] else ''})"
        fix = "table = astropy.table.unique(table, keys=...), or omit id"
        raise bad_input(got, "one row per star", "several visits of one star", fix)
    array = array.astype(array.dtype.newbyteorder("="))
    array.flags.writeable = False
    return array


def unit_of(text: str) -> Any:
    """The unit of a text, also as the Gaia archive writes it: 'dex' in quotes, log(cm.s**-2) for dex(cm / s2).

    Raises:
        ValueError: if it is none that astropy knows.
    """
    plain = text.strip().strip("'\"")
    if not plain or plain.lower() in NO_UNIT:
        return u.dimensionless_unscaled if plain or not text.strip() else u.Unit(text)
    plain = EXPONENT.sub("e", plain)
    plain = WORD.sub(lambda word: WORDS.get(word[0].lower(), word[0]), plain)
    try:
        if plain.count("/") < 2:
            return u.Unit(plain)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*multiple slashes", u.UnitsWarning)
            return u.Unit(plain)
    except ValueError:
        if inside := LOG_UNIT.fullmatch(plain):
            return u.dex(u.Unit(inside[1].replace(".", " ")))
        if plain[0] == "[":  # of the CDS: a logarithm
            return u.Unit(plain, format="cds")
        raise


def unit_in(text: Any, format: str | None = None) -> Any:
    """The unit of a text in a file, as archives write it, too; an unrecognized one where it is none."""
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    if text is None or not str(text).strip():
        return None
    found = u.Unit(str(text), format=format, parse_strict="silent")
    if isinstance(found, u.UnrecognizedUnit):
        with contextlib.suppress(ValueError, TypeError):
            return unit_of(str(text))
    return found


def unit_strings(unit: Any, n_dim: int, what: str) -> Any:
    """Units as strings, which can be compared and hashed; one string where all columns agree."""
    units = [unit] if unit is None or isinstance(unit, str) or hasattr(unit, "to_string") else list(unit)
    if len(units) not in (1, n_dim):
        raise bad_input(f"{len(units)} units for {n_dim} columns of {what}", "one, or one per column")
    strings = []
    for x in units:
        try:
            known = isinstance(x, u.UnitBase | u.FunctionUnitBase) and not isinstance(x, u.UnrecognizedUnit)
            strings.append("" if x is None else (x if known else unit_of(str(x))).to_string())
        except (ValueError, TypeError):
            fix = f'unit="K" (from_table: {what}_unit="K"), or unit="" for none'
            raise bad_input(f"unit {str(x)!r} of {what}", "one that astropy knows", fix=fix) from None
    if all(x is None for x in units):
        return None
    return strings[0] if len(set(strings)) == 1 else tuple(strings)


def spread_unit(unit: Any) -> Any:
    """The unit of an error: mag for mag(AB), dex for dex(cm / s2), else the unit itself."""
    return getattr(u.Unit(unit), "function_unit", u.Unit(unit))


def same_unit(a: str, b: str) -> bool:
    return u.Unit(a) == u.Unit(b)


def is_angle(unit: str) -> bool:
    return bool(u.Unit(unit).is_equivalent(u.rad))


def convert(data: Numbers, unit: Any, what: str, spread: bool = False) -> np.ndarray:
    """The numbers in the units of their block; numbers without a unit are taken to be in it."""
    array, own = data
    of = spread_unit if spread else u.Unit
    n_dim = array.shape[-1]
    to = unit if isinstance(unit, tuple) else (unit,) * n_dim
    pairs = list(zip(own * n_dim if len(own) == 1 else own, to, strict=True))
    for pair in set(pairs):
        if pair[0] is None or isinstance(pair[0], u.UnrecognizedUnit):
            continue
        at = [i for i, other in enumerate(pairs) if other == pair]
        if spread_unit(pair[0]) == u.Unit(pair[1] or ""):
            continue  # mag(AB) as plain magnitudes, dex(cm / s2) as plain dex, if that is asked for
        try:
            array[..., at] = of(pair[0]).to(of(pair[1] or ""), array[..., at])
        except u.UnitConversionError:
            fix = f'unit="{pair[0]}" (in from_table <block>_unit=), if that is meant'
            raise bad_input(
                f"{what} in {str(pair[0])!r}", f"what converts to {pair[1] or 'no unit'!r}", fix=fix
            ) from None
    return array


def error_from_ivar(ivar: Numbers, what: str) -> Numbers:
    array, units = ivar
    if array.ndim == 3:
        raise bad_input("inverse covariances", "inverse variances", fix="error=np.linalg.inv(ivar)")
    if (wrong := (array < 0) | np.isposinf(array)).any():
        raise bad_input(f"{what} {where_wrong(wrong, 'negative or infinite')}", "0 or NaN where missing", "a sentinel")
    units = [None if x is None or isinstance(x, u.UnrecognizedUnit) else u.Unit(x) ** -0.5 for x in units]
    return np.where(array > 0, array, np.nan) ** -0.5, units


def where_wrong(wrong: np.ndarray, how: str, names: Sequence[str] | None = None) -> str:
    """How many entries of a mask are wrong, and the first of them."""
    star, *column = np.argwhere(np.atleast_1d(wrong))[0].tolist()
    at = f"star {star}" + "".join(f", column {names[i] if names else i}" for i in column)
    return f"{how} in {wrong.sum()} of {wrong.size}, first at {at}"


def default_names(n_dim: int) -> tuple[str, ...] | None:
    return tuple(map(str, range(n_dim))) if n_dim <= MAX_NAMED else None


def has_suffix(name: str) -> bool:
    return "_" in name and name.rpartition("_")[2] in SUFFIXES


def layout_of(table: Any, id: str | None, columns: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    """The columns of every block, as given or else as `table_of` left them in the table, and the column of the ids."""
    layout = dict(columns)
    if not layout and META in getattr(table, "meta", {}):
        layout = json.loads(table.meta[META])
        kept = layout.pop("id", None)
        id = id or kept
    names = [key for key in layout if not has_suffix(key)]
    for key, spec in layout.items():
        block, _, suffix = key.rpartition("_")
        if suffix in SUFFIXES and block not in names:
            raise bad_input(f"{key} without {block}", "both")
        if suffix in ("err", "sigma", "cov") and block in names:
            raise bad_input(key, "the whole word", fix=f"{block}_error={spec!r}")
    return layout, id


def read_blocks(table: Any, layout: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name, and value, error, names, unit and coords, of every block of a table."""
    return ((name, _read(table, name, layout)) for name in layout if not has_suffix(name))


def table_of(id: np.ndarray | None, blocks: Mapping[str, Any]) -> QTable:
    """The astropy table of these blocks, which says in its header how to read it back."""
    out: dict[str, Any] = {} if id is None else {"id": Column(id)}
    layout: dict[str, Any] = {} if id is None else {"id": "id"}

    def put(column: str, block: str, data: np.ndarray, unit: str | None) -> str:
        column = column if column not in out else f"{block}_{column}"
        if column in out:
            raise bad_input(f"two columns {column!r}", "one", "blocks that share names", "rename one of them")
        out[column] = Column(np.asarray(data), unit=unit or None)
        return column

    for name, block in blocks.items():
        value, error, units = block.value, block.error, block.units
        single = isinstance(block.unit, str) or block.n_dim == 1
        coords = {key: array.tolist() for key, array in block.coords.items()}
        if INDICATOR in coords and name in NAME_BLOCKS:
            layout[name] = put(name, name, names_of(value, block.names), None)
            continue
        layout |= {f"{name}_unit": block.unit, f"{name}_names": block.names, f"{name}_coords": coords}
        if block.names is None or block.names == default_names(block.n_dim) or block.n_dim > MAX_NAMED:
            layout[name] = put(name, name, value, units[0] if single else None)
            if error is not None:
                unit = spread_unit(units[0]).to_string() if single and not block.has_covariance else None
                layout[f"{name}_error"] = put(f"{name}_error", name, error, unit)
            continue
        layout[name] = [put(x, name, value[:, i], units[i]) for i, x in enumerate(block.names)]
        if block.has_covariance:
            layout[f"{name}_error"] = put(f"{name}_error", name, error, None)
        elif error is not None:
            spread = [(f"{x}_error", i, spread_unit(units[i]).to_string()) for i, x in enumerate(layout[name])]
            layout[f"{name}_error"] = [put(x, name, error[:, i], unit) for x, i, unit in spread]
    return QTable(out, meta={META: json.dumps(layout)})


def require_same_grid(name: str, coords: Mapping[str, np.ndarray], trained: Sequence[str]) -> None:
    """Refuse a block on another grid than in training; passes where either has none.

    trained: the coordinate of each column then, as text; 0, 1, ... where there was none.
    """
    along = next(iter(coords.values()), None)
    if along is None or along.dtype.kind not in "iuf":
        return
    try:
        grid = np.array(trained, float)
    except ValueError:  # columns with names of their own
        return
    if np.array_equal(grid, np.arange(len(grid))) or np.allclose(along, grid, rtol=1e-6, atol=0, equal_nan=True):
        return
    worst = int(np.argmax(np.abs(along - grid)))
    raise bad_input(
        f"{name} with column {worst} at {along[worst]:.6g}", f"{grid[worst]:.6g}, as in training",
        "another wavelength grid", "bayeslabels.astro.spectra.resample(wavelength, flux, ivar, grid)",
    )  # fmt: skip


def column_of(table: Any, column: str) -> Any:
    """One column of whatever `Stars.from_table` takes for a table."""
    if not (isinstance(table, Mapping) or hasattr(table, "columns") or getattr(table, "dtype", None)):
        fix = "Stars.from_table(Table.read(path), ...)"
        got = f"a {type(table).__module__}.{type(table).__name__}"
        raise bad_input(got, "a table of astropy, pandas or Arrow", fix=fix)
    names = getattr(getattr(table, "dtype", None), "names", None)
    index_of(column, getattr(table, "colnames", table) if names is None else names, "column")
    return table[column]


def column(values: Any, mask: Any = None, unit: Any = None) -> Column:
    """A table column, masked only where something is."""
    hidden = mask is not None and np.any(mask)
    return MaskedColumn(values, mask=mask, unit=unit) if hidden else Column(values, unit=unit)


def fits_nulls(rows: Any, name: str) -> np.ndarray | None:
    """Where a column of a FITS table has its null: a number or text as stored, before any scaling; 0 of words of truth.

    None: it has no null, or none of these rows has it. Lists of several lengths hold theirs inside (`formats.fits`).
    """
    of, stored = rows.columns[name], rows.view(np.ndarray)[name]
    form = str(of.format).lstrip("0123456789")[:1]
    if form == "L" and stored.dtype.kind in "iu":
        found = stored == 0
    elif of.null in (None, "") or form in "PQ":
        return None
    elif stored.dtype.kind == "S":  # of a table of text, in which it is the field as it stands
        found = np.strings.strip(stored) == str(of.null).strip().encode()
    elif stored.dtype.kind in "iu":
        found = stored == int(of.null)
    else:
        return None
    return found if found.any() else None


def _stack(table: Any, columns: Any) -> Numbers:
    """The numbers of one column, or of several side by side, all of them scalar or all vectors."""
    if not isinstance(columns, str):
        parts = [_stack(table, column) for column in columns]
        if len({array.ndim for array, _ in parts}) > 1 or parts[0][0].ndim > 2:
            raise bad_input(f"a vector column among {columns}", "scalar columns, or vector columns")
        wide = [array if array.ndim == 2 else array[:, None] for array, _ in parts]
        units = [units[0] for array, (_, units) in zip(wide, parts, strict=True) for _ in range(array.shape[1])]
        return np.concatenate(wide, 1), units
    array, units = numbers(column_of(table, columns), columns)
    if isinstance(table, FITS_rec):
        header = table.columns[columns]
        units = [header.unit and u.Unit(header.unit, format="fits", parse_strict="silent")]
        if (null := fits_nulls(table, columns)) is not None:
            array[null] = np.nan
    return array, units


def of_names(names: np.ndarray) -> dict[str, Any]:
    """Value, error, names, unit and coords of a block that says which of S names each of N stars has: 1 where it has
    the name and 0 where it has another, NaN where it has none, ""."""
    known = tuple(str(x) for x in np.unique(names[names != ""])) or (NAMELESS,)
    value = (names[:, None] == np.array(known)).astype(float)
    value[names == ""] = np.nan
    parts = {"value": (value, [None]), "error": None, "names": known, "unit": None}
    return parts | {"coords": {INDICATOR: np.array(known)}}


def _named(columns: Any) -> bool:
    some = [columns] if isinstance(columns, str) else columns if isinstance(columns, list | tuple) else []
    return len(some) > 0 and all(isinstance(x, str) for x in some)


def _read(table: Any, name: str, columns: Mapping[str, Any]) -> dict[str, Any]:
    spec = columns[name]
    error, ivar, unit, names, coords = (columns.get(f"{name}_{key}") for key in SUFFIXES)
    if not _named(spec):
        raise bad_input(f"{name}={spec!r}", "the name of a column, or several", fix=f'{name}="COLUMN"')
    if error is not None and ivar is not None:
        raise bad_input(f"both {name}_error and {name}_ivar", "one of them")
    if name in NAME_BLOCKS:
        if not isinstance(spec, str) or (said := texts(column_of(table, spec))) is None:
            raise bad_input(f"{name}={spec!r}, which holds no texts", "the name of one column of texts")
        return of_names(said)
    value = _stack(table, spec)
    width = 1 if value[0].ndim == 1 else value[0].shape[1]
    if names is None and width == (1 if isinstance(spec, str) else len(spec)):
        names = spec
    if error is not None:
        error = _stack(table, error) if _named(error) else numbers(error, f"{name}_error")
    if ivar is not None:
        error = error_from_ivar(_stack(table, ivar), f"{name}_ivar")
    return {"value": value, "error": error, "names": names, "unit": unit, "coords": coords}
