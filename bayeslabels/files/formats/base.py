"""What a file format is, and a table of it that is read in order, a batch of rows at a time."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from astropy.table import Column, QTable, Table, vstack
from astropy.utils.masked import Masked

from ...data.columns import column
from ...errors import BadInput, bad_input


class Stream(ABC):
    """A table of `n_row` rows and the columns `names` in the files `paths`."""

    n_row: int
    names: tuple[str, ...]
    paths: tuple[Path, ...]
    meta: dict[str, Any]
    """What the file says of the whole table."""

    @abstractmethod
    def batches(self, start: int, size: int, columns: Sequence[str]) -> Iterator[Table]:
        """Tables of `size` rows, the last one of what is left, from row `start` on; with units and masks."""

    def read(self, start: int, size: int, columns: Sequence[str]) -> Iterator[Table]:
        """`batches`, with the table's meta; a damaged file is bad input."""
        tables = self.batches(start, size, columns)
        while True:
            with whole_file(self.paths[0]):
                table = next(tables, None)
            if table is None:
                return
            table.meta.update(self.meta)
            yield table

    def whole(self) -> Table:
        """All rows and columns."""
        tables = list(self.read(0, max(self.n_row, 1), self.names))
        return joined(tables) if tables else self.empty()

    def empty(self) -> Table:
        return Table({name: np.zeros(0) for name in self.names}, meta=self.meta)

    def pieces(self) -> list[tuple[int, int]]:
        """Ranges of rows, of all together, that are read from their beginning; [] where any row is found at once."""
        return []

    def identity(self) -> list[list[Any]]:
        """Name, size and time of every file, by which a resumed run knows its source."""
        return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in self.paths]


class WholeStream(Stream):
    """A table that is read as a whole, at once."""

    def __init__(self, path: Path, read: Callable[[], Table]):
        self.table = read()
        if not self.table.colnames:
            raise bad_input(f"{path} without columns", "their names, and the numbers of each star")
        self.paths, self.n_row, self.names = (path,), len(self.table), tuple(self.table.colnames)
        self.meta = dict(self.table.meta)

    def batches(self, start: int, size: int, columns: Sequence[str]) -> Iterator[Table]:
        for first in range(start, self.n_row, size):
            yield self.table[list(columns)][first : first + size]

    def empty(self) -> Table:
        return self.table


class Format(ABC):
    """A kind of files that hold a table: how they are read, written, and made of the parts of a catalogue."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """Ends of file names, in lower case; the first one is shown in messages."""
    ascii_only: ClassVar[bool] = False
    vectors: ClassVar[bool] = True
    """Whether a row can hold several numbers in one column."""
    hdus: ClassVar[bool] = False
    """Whether a file holds several tables and images, by number or name."""

    @abstractmethod
    def open(self, path: Path, hdu: int | str | None) -> Stream:
        """The table in a file that exists, unread as yet."""

    @abstractmethod
    def write(self, table: Table, path: Path) -> None:
        """Write a table of plain columns (`plain_table`)."""

    def join(self, parts: list[Path], whole: Path, n_row: int) -> None:
        """Write one file of the rows of all parts, which are Parquet files."""
        tables = [plain_table(QTable.read(part, format="parquet")) for part in parts]
        self.write(vstack(tables, metadata_conflicts="silent"), whole)

    def refuse(
        self, path: Path, names: Sequence[str] = (), ids: Sequence[str] = (), vectors: Sequence[str] = ()
    ) -> None:
        """Refuse what such a file cannot hold: texts that are not ASCII, columns of vectors."""
        for what, texts in (("columns", names), ("ids", ids)):
            odd = [x for x in texts if not x.isascii() or (what == "columns" and not x.isprintable())]
            if self.ascii_only and odd:
                raise bad_input(
                    f"{len(odd)} {what} for {path} that are not plain ASCII, such as {odd[0]!r}",
                    f"ASCII, which is all that {self.name} has", fix="a destination in .parquet or .ecsv, or a folder",
                )  # fmt: skip
        if vectors and not self.vectors:
            raise bad_input(
                f"{', '.join(list(vectors)[:3])} for {path}, which are vectors",
                f"columns of one number per star, which is all that {self.name} has",
                fix="a file in .fits, .ecsv or .parquet",
            )  # fmt: skip


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes its reader stumble over is bad input."""
    try:
        yield
    except BadInput:
        raise
    except Exception as problem:
        text = " ".join(str(problem).split())[:160] or type(problem).__name__
        raise bad_input(
            f"{path}, which cannot be read ({text})", "a whole file of the kind that its name says",
            "it is cut short, or a file of another kind",
        ) from problem  # fmt: skip


def refuse_twice(names: Sequence[str], path: Path) -> None:
    """Refuse names of columns of which astropy would give the second another name."""
    if twice := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise bad_input(f"{path} with {names.count(twice[0])} columns {twice[0]!r}", "each name once")


def joined(tables: list[Table]) -> Table:
    """One table after the other."""
    return tables[0] if len(tables) == 1 else vstack(tables, join_type="exact", metadata_conflicts="silent")


def vectors(rows: Sequence[Any], name: str) -> np.ndarray:
    """(n, length) of rows that are lists; those that are None or empty are NaN, and length is 0 where all are."""
    lengths = sorted({len(x) for x in rows if x is not None} - {0})
    if len(lengths) > 1:
        raise bad_input(f"column {name!r} with lists of length {lengths[:5]}", "spectra of one length")
    out = np.full((len(rows), *lengths), np.nan) if lengths else np.full((len(rows), 0), np.nan)
    for i, row in enumerate(rows):
        if row is not None and len(row):
            out[i] = row
    return out


def plain_table(table: Table) -> Table:
    """The table with columns alone: Quantities as columns with units, and NaN where floats are masked."""
    out = Table(meta=table.meta)
    for name in table.colnames:
        data, mask, unit = table[name], None, getattr(table[name], "unit", None)
        if not hasattr(data, "dtype") or (data.dtype.names and not isinstance(data, Column)):
            raise bad_input(
                f"a column {name!r} of {type(data).__name__}", "columns of numbers or texts",
                fix=f"table[{name!r}] = table[{name!r}].mjd, or columns of .ra and .dec",
            )  # fmt: skip
        if isinstance(data, Masked):
            mask, data = np.asarray(data.mask), data.unmasked
        elif isinstance(data, np.ma.MaskedArray):
            mask = np.ma.getmaskarray(data)
            data = np.ma.getdata(data)
        values = np.asarray(getattr(data, "value", data))
        if mask is not None and values.dtype.kind == "f":
            values, mask = np.where(mask, np.nan, values), None
        out[name] = column(values, mask, unit)
    return out
