"""Tables from and to files, for the command line: FITS, ECSV and Parquet, written in one piece or not at all."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table
from astropy.table.meta import get_header_from_yaml
from astropy.units import Unit, UnitsWarning, UnrecognizedUnit

from ..data.columns import fits_nulls, unit_of
from ..errors import bad_input
from .whole import in_one_piece

MASK = ".mask"
"""End of the name of a column that astropy writes beside a masked one."""
FORMATS = {
    ".fits": "fits", ".fit": "fits", ".fz": "fits", ".gz": "fits",
    ".ecsv": "ascii.ecsv", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
"""Format by the end of a file's name."""


def format_of(path: str | os.PathLike[str]) -> str:
    """The format that the end of a file's name stands for."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise bad_input(f"the file name {str(path)!r}", "one that ends in .fits, .ecsv or .parquet")
    return FORMATS[suffix]


def read_table(path: str | os.PathLike[str], hdu: int | str | None = None) -> Table:
    """An astropy table with units; list columns of Parquet become vector columns.

    Args:
        hdu: of a FITS file, number or name; None: the first table that has rows.
    """
    kind, path = format_of(path), Path(path)
    if not path.is_file():
        raise bad_input(f"no file {path}", "a FITS, ECSV or Parquet table")
    if kind == "parquet":
        return _read_parquet(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnitsWarning)
        try:
            if kind == "ascii.ecsv":
                return Table.read(path, format=kind)
            with open_fits(path) as hdus:
                found = first_table(hdus, hdu, path)
                if not isinstance(found, fits.BinTableHDU | fits.TableHDU):
                    raise bad_input(f"HDU {hdu} of {path}, which is no table", f"one of {_tables(hdus)}")
                number = hdus.index(found)
                nulls = {name: x for name in found.columns.names if (x := fits_nulls(found.data, name)) is not None}
            table = Table.read(path, format="fits", hdu=number, mask_invalid=False, unit_parse_strict="silent")
            for name, null in nulls.items():
                table[name] = MaskedColumn(np.ma.getdata(table[name]), mask=null, unit=table[name].unit)
            for column in table.itercols():
                if isinstance(column.unit, UnrecognizedUnit):
                    with contextlib.suppress(ValueError):
                        column.unit = unit_of(str(column.unit))
            return table
        except (OSError, ValueError, TypeError, KeyError) as problem:
            if "expected" in str(problem) and "got" in str(problem):
                raise
            raise bad_input(
                f"{path}, which cannot be read as {kind} ({_one_line(problem)})", "a table",
                "a truncated download or another kind of file",
            ) from problem  # fmt: skip


def read_wavelength(path: str | os.PathLike[str], where: str) -> np.ndarray:
    """Wavelengths (L,), in the unit of the file, of a table that lies beside the spectra.

    Args:
        path: of the table of spectra.
        where: ``HDU`` or ``HDU:COLUMN`` of the same FITS file (an image, or a table of one row per pixel), or
            ``FILE:COLUMN``, another file.
    """
    first, _, column = where.rpartition(":") if ":" in where else (where, "", "")
    if Path(first).suffix.lower() in FORMATS:
        table = read_table(first)
    elif format_of(path) != "fits":
        raise bad_input(f"wavelength {where!r} for {path}", "FILE:COLUMN, as only FITS files have HDUs")
    else:
        with open_fits(path) as hdus:
            found = first_table(hdus, int(first) if first.isdecimal() else first, Path(path))
            image = None if isinstance(found, fits.BinTableHDU | fits.TableHDU) else found.data
            if image is not None:
                return _grid(image, where)
            if found.data is None or not len(found.columns):
                raise bad_input(f"HDU {first} of {path}, which is empty", "wavelengths")
        table = read_table(path, int(first) if first.isdecimal() else first)
    if not column and len(table.colnames) > 1:
        raise bad_input(f"wavelength {where!r}", f"{where}:COLUMN, with one of {', '.join(table.colnames)}")
    column = column or table.colnames[0]
    if column not in table.colnames:
        raise bad_input(f"wavelength {where!r}", f"a column among {', '.join(table.colnames)}")
    return _grid(table[column], where)


def write_table(table: Table, path: str | os.PathLike[str]) -> Path:
    """Write an astropy table with its units; an existing file is replaced."""
    kind, path = format_of(path), Path(path)
    if kind == "parquet":
        parquet_module()
    with in_one_piece(path) as part:
        if kind == "fits":
            _fits_hdu(table).writeto(part)
        else:
            table.write(part, format=kind)
    return path


def refuse_non_ascii(names: Sequence[str], what: str, path: str | os.PathLike[str]) -> None:
    """Refuse texts that a FITS file cannot hold."""
    if odd := [name for name in names if not name.isascii()]:
        raise bad_input(
            f"{len(odd)} {what} for {path} that are not ASCII, such as {odd[0]!r}", "ASCII, which is all that FITS has",
            fix="a destination in .parquet or .ecsv, or a folder",
        )  # fmt: skip


def _fits_hdu(table: Table) -> fits.BinTableHDU:
    """Units as the table has them (dex, too, which the FITS standard lacks), and of the meta what a header holds."""
    plain = Table({name: getattr(table[name], "value", table[name]) for name in table.colnames})
    hdu = fits.table_to_hdu(plain)
    for name in table.colnames:
        unit = table[name].unit
        if unit is not None:
            try:
                hdu.columns[name].unit = unit.to_string("fits")
            except ValueError:
                hdu.columns[name].unit = unit.to_string()
    for key, value in table.meta.items():
        if isinstance(value, str | int | float):
            plain = " ".join(f"{key} = {value}".split())
            hdu.header["COMMENT"] = plain.encode("ascii", "replace").decode()
        elif isinstance(value, dict):
            for name, bit in value.items():
                hdu.header["COMMENT"] = f"{key}: {bit} = {name}"
    return hdu


def _one_line(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:160] or type(problem).__name__


@contextlib.contextmanager
def open_fits(path: str | os.PathLike[str]) -> Iterator[Any]:
    """The HDUs of a FITS file, memory-mapped, once their headers are seen to lead from one to the next.

    Of a header with a negative size astropy would come to the same one for ever.
    """
    with fits.open(path, memmap=True) as hdus:
        number = 0
        while True:
            try:
                header = hdus[number].header
            except IndexError:
                break
            sizes = [f"NAXIS{i + 1}" for i in range(int(header.get("NAXIS", 0)))] + ["PCOUNT", "GCOUNT"]
            if odd := [f"{key} = {header[key]}" for key in sizes if key in header and int(header[key]) < 0]:
                raise bad_input(f"{path} with {', '.join(odd)} in HDU {number}", "sizes of 0 or more", "a damaged file")
            number += 1
        yield hdus


def first_table(hdus: Any, hdu: int | str | None, path: Path) -> Any:
    if hdu is None:
        found = [x for x in hdus if isinstance(x, fits.BinTableHDU | fits.TableHDU)]
        if not found:
            raise bad_input(f"{path} without a table", "a FITS table in one of its HDUs")
        return next((x for x in found if x.header["NAXIS2"]), found[0])  # some surveys begin with an empty one
    try:
        return hdus[hdu]
    except (KeyError, IndexError):
        raise bad_input(f"HDU {hdu} of {path}", f"one of {_tables(hdus)}") from None


def _tables(hdus: Any) -> str:
    return ", ".join(f"{i} ({x.name})" if x.name else str(i) for i, x in enumerate(hdus))


def _grid(values: Any, where: str) -> np.ndarray:
    grid = np.asarray(values, float)
    if grid.ndim == 2 and (len(grid) == 1 or (grid == grid[0]).all()):
        grid = grid[0]
    if grid.ndim != 1 or not np.isfinite(grid).all():
        raise bad_input(f"wavelength {where!r} of shape {grid.shape}", "one finite number per pixel")
    return grid


def parquet_module() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise bad_input(
            "a Parquet file without pyarrow installed", "pyarrow", fix="pip install 'bayeslabels[catalogs]'"
        ) from None
    return pyarrow.parquet


def _read_parquet(path: Path) -> Table:
    parquet = parquet_module()
    try:
        data = parquet.read_table(path)
    except (OSError, ValueError) as problem:  # pyarrow's own errors are ValueErrors
        raise bad_input(f"{path}, which cannot be read as Parquet ({_one_line(problem)})", "a table") from problem
    if b"table_meta_yaml" in (data.schema.metadata or {}):
        return Table.read(path, format="parquet")
    return table_of_arrow(data)


def table_of_arrow(data: Any) -> Table:
    """An astropy table of a pyarrow table or batch; list columns become vector columns, NaN where they are null."""
    out = Table()
    for name in data.schema.names:
        column, field = data.column(name), data.schema.field(name)
        kind = str(field.type)
        if hasattr(column, "combine_chunks"):
            column = column.combine_chunks()
        if kind == "null":
            out[name] = np.full(len(column), np.nan)
        elif "list" in kind:
            out[name] = _vectors(name, column)
        elif "string" in kind:
            texts = column.to_pylist()
            out[name] = _but_for(np.array([x or "" for x in texts], str), np.array([x is None for x in texts], bool))
        elif "int" in kind and column.null_count:  # Arrow makes floats of them, as which long ids are equal
            null = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
            out[name] = _but_for(column.fill_null(0).to_numpy(zero_copy_only=False), null)
        else:
            out[name] = column.to_numpy(zero_copy_only=False)
        unit = (field.metadata or {}).get(b"unit")
        if unit:
            out[name].unit = unit.decode()
    return out


def _but_for(values: np.ndarray, missing: np.ndarray) -> Column:
    return MaskedColumn(values, mask=missing) if missing.any() else Column(values)


class Written(NamedTuple):
    """What astropy wrote beside the columns of a Parquet file: units, and columns that are masks of others."""

    units: dict[str, str]
    masks: dict[str, str]

    @classmethod
    def of(cls, schema: Any) -> Written:
        """Of the schema of a file; nothing, if it is not astropy's."""
        text = (schema.metadata or {}).get(b"table_meta_yaml")
        if text is None:
            return cls({}, {})
        header = get_header_from_yaml(text.decode().splitlines())
        units = {x["name"]: str(x["unit"]) for x in header["datatype"] if x.get("unit")}
        masks = {name.removesuffix(MASK): name for name in schema.names if name.endswith(MASK)}
        masks = {name: mask for name, mask in masks.items() if name in schema.names}
        for name in masks:  # of a masked Quantity the unit stands with the class
            own = header.get("meta", {}).get("__serialized_columns__", {}).get(name, {})
            if "unit" in own:
                units[name] = str(own["unit"])
        return cls(units, masks)

    def applied(self, table: Table) -> Table:
        """The table with masks and units, without the columns that were masks."""
        for name, mask in self.masks.items():
            if name in table.colnames and mask in table.colnames:
                hidden = np.asarray(table[mask], bool)
                if hidden.any():
                    table[name] = MaskedColumn(table[name], mask=hidden)
                table.remove_column(mask)
        for name, unit in self.units.items():
            if name in table.colnames:
                table[name].unit = Unit(unit, parse_strict="silent")
        return table


def _vectors(name: str, column: Any) -> np.ndarray:
    """(n, length) of a pyarrow list array; rows that are null or empty are NaN, and length is 0 where all are."""
    from pyarrow.compute import list_value_length

    lengths = set(list_value_length(column).unique().to_pylist()) - {None, 0}
    if not lengths:
        return np.full((len(column), 0), np.nan)
    if len(lengths) != 1:
        raise bad_input(f"column {name!r} with lists of length {sorted(lengths)[:5]}", "spectra of one length")
    (length,) = lengths
    present = np.asarray(list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)) > 0
    values = column.flatten().to_numpy(zero_copy_only=False)  # of the rows that are present, alone
    n = int(present.sum())
    if n == len(present):
        return np.asarray(values.reshape(n, length))
    out = np.full((len(present), length), np.nan, values.dtype if values.dtype.kind == "f" else float)
    out[present] = values.reshape(n, length)
    return out
