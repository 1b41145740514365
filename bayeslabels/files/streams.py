"""Tables larger than memory, read in order, a batch of rows at a time: Parquet files and folders, FITS, HDF5."""

from __future__ import annotations

import contextlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.io import fits
from astropy.table import Column, MaskedColumn, Table, vstack

from ..data.columns import fits_nulls
from ..errors import BadInput, bad_input
from .tables import Written, first_table, open_fits, parquet_module, read_table, table_of_arrow

HDF5 = (".h5", ".hdf5", ".hdf")
FITS = (".fits", ".fit")


class Stream(ABC):
    """A table of `n_row` rows and the columns `names` in the files `paths`."""

    n_row: int
    names: tuple[str, ...]
    paths: tuple[Path, ...]

    @abstractmethod
    def read(self, start: int, size: int, columns: Sequence[str]) -> Iterator[Table]:
        """Tables of `size` rows, the last one of what is left, from row `start` on; with units."""

    def pieces(self) -> list[tuple[int, int]]:
        """Ranges of rows, of all together, that are read from their beginning; [] where any row is found at once."""
        return []

    def identity(self) -> list[list[Any]]:
        """Name, size and time of every file, by which a resumed run knows its source."""
        return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in self.paths]


def open_stream(path: str | os.PathLike[str], hdu: int | str | None = None) -> Stream:
    """The table in a Parquet file or folder, a FITS file or an HDF5 file (a dataset per column), unread as yet."""
    path = Path(path)
    suffix = path.suffix.lower()
    if not path.exists():
        raise bad_input(f"no file or folder {path}", "a Parquet, FITS or HDF5 table")
    if path.is_dir() or suffix in (".parquet", ".pq"):
        return ParquetStream(path)
    if suffix in FITS or (suffix == ".gz" and Path(path.stem).suffix.lower() in FITS):
        return FitsStream(path, hdu)
    if suffix in HDF5:
        return Hdf5Stream(path, hdu)
    if suffix == ".ecsv":
        return TextStream(path)
    raise bad_input(
        f"the file name {str(path)!r}",
        f"a folder, or one that ends in {', '.join(FITS + HDF5)}, .fits.gz, .ecsv or .parquet",
    )


class ParquetStream(Stream):
    """One file, or all Parquet files below a folder in the order of their names."""

    def __init__(self, path: Path):
        parquet = parquet_module()
        found = [path]
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.suffix in (".parquet", ".pq")]
            found = [p for p in inside if not any(part[0] in "._" for part in p.relative_to(path).parts)]
            if not found:
                raise bad_input(f"the folder {path} without Parquet files", "some")
        self.rows, self.groups, names = [], [], []
        self.written: list[Written] = []
        self.widths: dict[str, int] = {}
        for file in found:
            try:
                head = parquet.read_metadata(file)
            except (OSError, ValueError) as problem:
                text = " ".join(str(problem).split())[:160]
                what = f"{file}, which cannot be read as Parquet ({text})"
                raise bad_input(what, "a whole file", "it is cut short") from problem
            self.rows.append(head.num_rows)
            self.groups += [head.row_group(i).num_rows for i in range(head.num_row_groups)]
            schema = head.schema.to_arrow_schema()
            self.written.append(Written.of(schema))
            names.append(tuple(x for x in schema.names if x not in self.written[-1].masks.values()))
        for file, own in zip(found, names, strict=True):
            if set(own) != set(names[0]):
                odd = sorted(set(own) ^ set(names[0]))
                raise bad_input(f"{file}, which differs from {found[0]} in the columns {odd}", "the same in all files")
        self.paths, self.names, self.n_row = tuple(found), names[0], sum(self.rows)

    def pieces(self) -> list[tuple[int, int]]:
        ends = np.cumsum(self.groups).tolist()
        return [(stop - rows, stop) for rows, stop in zip(self.groups, ends, strict=True) if rows]

    def read(self, start: int, size: int, columns: Sequence[str]) -> Iterator[Table]:
        parquet, held, n_held = parquet_module(), [], 0
        for path, rows, written in zip(self.paths, self.rows, self.written, strict=True):
            stored = [*columns, *(mask for name, mask in written.masks.items() if name in columns)]
            if start >= rows:
                start -= rows
                continue
            with parquet.ParquetFile(path) as file:  # not mapped, group by group: or all that was read stays in memory
                for group in range(file.metadata.num_row_groups):
                    inside = file.metadata.row_group(group).num_rows
                    if start >= inside:
                        start -= inside
                        continue
                    for batch in file.iter_batches(batch_size=size, row_groups=[group], columns=stored):
                        skipped, start = min(start, batch.num_rows), max(start - batch.num_rows, 0)
                        batch = batch.slice(skipped)
                        while batch.num_rows:
                            piece = batch.slice(0, size - n_held)
                            batch = batch.slice(piece.num_rows)
                            held.append(self._widened(written.applied(table_of_arrow(piece))))
                            n_held += piece.num_rows
                            if n_held == size:
                                yield joined(held)
                                held, n_held = [], 0
        if held:
            yield joined(held)

    def _widened(self, table: Table) -> Table:
        """With lists that are null in all of these rows as long as they are elsewhere in the files."""
        for name in table.colnames:
            if table[name].shape[1:] == (0,) and (width := self._width(name)):
                table[name] = Column(np.full((len(table), width), np.nan), unit=table[name].unit)
        return table

    def _width(self, name: str) -> int:
        """Numbers in each list of a column; 0 where all are null."""
        if name not in self.widths:
            batches = (batch for path in self.paths for batch in parquet_module().ParquetFile(path).iter_batches(
                4096, columns=[name]))  # fmt: skip
            found = (table_of_arrow(batch)[name].shape[1] for batch in batches)
            self.widths[name] = next((width for width in found if width), 0)
        return self.widths[name]


class FitsStream(Stream):
    """A binary table, memory-mapped."""

    def __init__(self, path: Path, hdu: int | str | None):
        self.paths, self.hdu = (path,), hdu
        with self._opened(path) as hdus:
            table = first_table(hdus, hdu, path)
            self.number, self.n_row = hdus.index(table), int(table.header["NAXIS2"])
            self.names = tuple(table.columns.names)
            needed = table._data_offset + int(table.header["NAXIS1"]) * self.n_row
        if path.suffix.lower() != ".gz" and path.stat().st_size < needed:
            raise bad_input(f"{path} of {path.stat().st_size} bytes", f"at least {needed}", "it is cut short")

    @staticmethod
    @contextlib.contextmanager
    def _opened(path: Path) -> Iterator[Any]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a file cut short, which is refused
                with open_fits(path) as hdus:
                    yield hdus
        except BadInput:
            raise
        except (OSError, ValueError, TypeError, KeyError) as problem:
            got = f"{path}, which cannot be read as FITS ({' '.join(str(problem).split())[:160]})"
            raise bad_input(got, "a table", "a truncated download or another kind of file") from problem

    def read(self, start: int, size: int, columns: Sequence[str]) -> Iterator[Table]:
        with fits.open(self.paths[0], memmap=True) as hdus:
            table = hdus[self.number]
            for first in range(start, self.n_row, size):
                part, out = table.data[first : first + size], Table()
                for name in columns:
                    values, null = np.array(part[name]), fits_nulls(part, name)
                    native = values.astype(values.dtype.newbyteorder("="))
                    column = Column(native, unit=table.columns[name].unit or None)
                    out[name] = column if null is None else MaskedColumn(column, mask=null)
                yield out


class TextStream(Stream):
    """An ECSV table, read as a whole."""

    def __init__(self, path: Path):
        self.table = read_table(path)
        self.paths, self.n_row, self.names = (path,), len(self.table), tuple(self.table.colnames)

    def read(self, start: int, size: int, columns: Sequence[str]) -> Iterator[Table]:
        for first in range(start, self.n_row, size):
            yield self.table[list(columns)][first : first + size]


class Hdf5Stream(Stream):
    """Datasets of equal length in a file or in one of its groups, units in their attribute `unit`."""

    def __init__(self, path: Path, group: int | str | None):
        self.paths, self.group = (path,), str(group or "/")
        try:
            with h5py.File(path) as file:
                if self.group not in file:
                    raise bad_input(f"the group {self.group!r} of {path}", f"one of {list(file)}")
                sets = {k: x for k, x in file[self.group].items() if isinstance(x, h5py.Dataset) and x.shape}
                lengths = {name: len(x) for name, x in sets.items()}
        except OSError as problem:
            raise bad_input(f"{path}, which cannot be read as HDF5 ({problem})", "a whole file") from problem
        if len(set(lengths.values())) != 1:
            raise bad_input(
                f"{path} with columns of length {lengths or 'none'}", "a dataset per column, of equal length"
            )
        self.names, self.n_row = tuple(sets), next(iter(lengths.values()))

    def read(self, start: int, size: int, columns: Sequence[str]) -> Iterator[Table]:
        with h5py.File(self.paths[0]) as file:
            group = file[self.group]
            for first in range(start, self.n_row, size):
                out = Table()
                for name in columns:
                    values, unit = group[name][first : first + size], group[name].attrs.get("unit")
                    if values.dtype.kind == "O":
                        values = np.array([x.decode() if isinstance(x, bytes) else str(x) for x in values])
                    out[name] = Column(values, unit=unit.decode() if isinstance(unit, bytes) else unit)
                yield out


def joined(tables: list[Table]) -> Table:
    """One table after the other."""
    return tables[0] if len(tables) == 1 else vstack(tables, join_type="exact", metadata_conflicts="silent")
