"""HDF5 files: a dataset per column, as this package writes them, or one compound dataset, as astropy does."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from astropy.table import QTable, Table

from ...data.columns import column, unit_in
from ...data.serialized import MASK, Written
from ...errors import bad_input
from .base import Format, Stream, plain_table, vectors, whole_file

META = "__meta__"
"""Dataset with the meta of the table."""
SLASH = "\u2215"
"""In the name of a dataset, for the slash in that of a column, [Fe/H]: HDF5 has it for folders."""
HEADER = "__table_column_meta__"
"""End of the name of the dataset in which astropy describes its table."""


class Hdf5(Format):
    name = "HDF5"
    suffixes = (".h5", ".hdf5", ".hdf")

    def open(self, path: Path, hdu: int | str | None) -> Hdf5Stream:
        return Hdf5Stream(path, hdu)

    def write(self, table: Table, path: Path) -> None:
        with h5py.File(path, "w", track_order=True) as file:
            _put(file, table, 0, len(table))

    def join(self, parts: list[Path], whole: Path, n_row: int) -> None:
        with h5py.File(whole, "w", track_order=True) as file:
            first = 0
            for part in parts:
                table = plain_table(QTable.read(part, format="parquet"))
                _put(file, table, first, n_row)
                first += len(table)


def _put(file: h5py.File, table: Table, first: int, n_row: int) -> None:
    """The rows of a table, from row `first` on of `n_row` in all."""
    columns = {}
    for name in table.colnames:
        columns[name] = np.ma.getdata(table[name])
        if np.ma.is_masked(table[name]):
            columns[name + MASK] = np.ma.getmaskarray(table[name])
    for column_name, values in columns.items():
        name, values = column_name.replace("/", SLASH), np.asarray(values)
        text = values.dtype.kind in "US"
        kind = h5py.string_dtype() if text else values.dtype
        if name not in file:
            file.create_dataset(name, (n_row, *values.shape[1:]), kind)
            if column_name in table.colnames and (unit := table[column_name].unit) is not None:
                file[name].attrs["unit"] = unit.to_string()
        file[name][first : first + len(values)] = values.astype(object) if text else values
    if META not in file:
        meta = {k: v for k, v in table.meta.items() if isinstance(v, str | int | float | bool | dict | list)}
        file[META] = json.dumps(meta, default=str)


class Hdf5Stream(Stream):
    """Datasets of equal length in a file or in one of its groups, units in their attribute `unit`."""

    def __init__(self, path: Path, group: int | str | None):
        self.paths = (path,)
        with whole_file(path), h5py.File(path) as file:
            self.place = self._place(file, group)
            found = file[self.place]
            self.compound = isinstance(found, h5py.Dataset)
            if self.compound:
                names, lengths = list(found.dtype.names), {self.place: len(found)}
                header = file.get(f"{self.place}.{HEADER}")
                text = None if header is None else b"\n".join(header[()].tolist())
                self.written = Written.of(text, names)
                self.meta = self.written.meta
            else:
                sets = {k.replace(SLASH, "/"): x for k, x in found.items() if isinstance(x, h5py.Dataset) and x.shape}
                self.stored = {name: x.name for name, x in sets.items()}
                lengths, names = {name: len(x) for name, x in sets.items()}, list(sets)
                masks = {name.removesuffix(MASK): name for name in names if name.endswith(MASK)}
                self.written = Written({}, {}, {k: v for k, v in masks.items() if k in names}, {})
                self.meta = json.loads(found[META][()]) if META in found else {}
        if len(set(lengths.values())) != 1:
            raise bad_input(
                f"{path} with columns of length {lengths or 'none'}", "a dataset per column, of equal length"
            )
        self.names = tuple(x for x in names if x not in self.written.masks.values())
        self.n_row = next(iter(lengths.values()))

    def _place(self, file: h5py.File, group: int | str | None) -> str:
        """The group or compound dataset of that name; None: the first compound dataset, or group with datasets."""
        if group is not None:
            if str(group) not in file:
                raise bad_input(f"the group {str(group)!r} of {self.paths[0]}", f"one of {list(file)}")
            return str(group)
        place = file["/"]
        while True:
            sets = [x for x in place.values() if isinstance(x, h5py.Dataset) and x.shape]
            groups = [x for x in place.values() if isinstance(x, h5py.Group)]
            if sets or len(groups) != 1:
                return str(next((x.name for x in sets if x.dtype.names), place.name))
            place = groups[0]

    def batches(self, start: int, size: int, columns: Sequence[str]) -> Iterator[Table]:
        masks = [mask for name, mask in self.written.masks.items() if name in columns]
        with h5py.File(self.paths[0]) as file:
            found = file[self.place]
            for first in range(start, self.n_row, size):
                rows, out = slice(first, min(first + size, self.n_row)), Table()
                part = found[rows] if self.compound else {}
                for name in (*columns, *masks):
                    if self.compound:
                        out[name] = column(_native(part[name], name))
                        continue
                    stored = file[self.stored[name]]
                    out[name] = _described(_native(stored[rows], name), stored.attrs)
                yield self.written.applied(out)


def _described(values: np.ndarray, attributes: Any) -> Any:
    """A column with the unit and the numbers for what is missing that stand beside it, also as netCDF has them."""
    unit = next((text for name in ("unit", "units") if (text := _text(attributes.get(name)))), None)
    mask = np.zeros(values.shape, bool)
    for name in ("_FillValue", "missing_value"):
        fill = np.asarray(attributes.get(name, []))
        if values.dtype.kind in "fiu" and fill.dtype.kind in "fiu":
            mask |= np.isin(values, fill.astype(values.dtype))
    if values.dtype.kind == "f":
        values, mask = np.where(mask, np.nan, values), np.zeros(values.shape, bool)
    return column(values, mask, unit_in(unit))


def _text(attribute: Any) -> str | None:
    """An attribute that is a text, alone or the only one of an array."""
    if isinstance(attribute, np.ndarray) and attribute.size == 1:
        attribute = attribute.reshape(())[()]
    attribute = attribute.decode(errors="replace") if isinstance(attribute, bytes) else attribute
    return attribute if isinstance(attribute, str) else None


def _native(values: np.ndarray, name: str) -> np.ndarray:
    if values.dtype.kind == "O" and len(values) and isinstance(values.flat[0], np.ndarray):
        return vectors(list(values), name)
    if values.dtype.kind in "OS":
        texts = [x if isinstance(x, bytes) else str(x).encode() for x in values.tolist()]
        with contextlib.suppress(UnicodeDecodeError):  # of another encoding: bytes, which ids cannot be
            return np.array([x.decode() for x in texts], str)
        return np.array(texts)
    return np.asarray(values.astype(values.dtype.newbyteorder("=")))
