"""Stars from a table in a file: which columns are which block, as named now or as remembered from the training step.

Columns are named as in `Stars.from_table`: {"flux": "FLUX", "flux_ivar": "IVAR", "magnitudes": ["G", "BP"], "id": ...},
with "hdu" and "wavelength", which say where in the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.table import Table

from ..core.model import Model
from ..data.columns import has_suffix
from ..data.stars import Stars
from ..errors import BadInput, index_of, warn
from .streams import Stream, open_stream
from .tables import read_table, read_wavelength

Columns = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """A table in files, read a batch at a time, and its columns."""

    stream: Stream
    columns: Columns
    coords: Mapping[str, Any]

    @classmethod
    def of(cls, path: Any, hdu: Any, columns_of: Callable[[Sequence[str]], Columns]) -> Source:
        """columns_of: the columns, by block, of a table that has these names."""
        path = os.fspath(path)
        stream = open_stream(path, int(hdu) if isinstance(hdu, str) and hdu.isdecimal() else hdu)
        columns = columns_of(stream.names)
        for name in columns_needed(columns):
            index_of(name, stream.names, f"column of {path}")
        coords = {}
        if columns.get("wavelength"):
            coords = {"flux_coords": {"pixel": read_wavelength(path, columns["wavelength"])}}
        return cls(stream, columns, coords)

    def tables(self, start: int, size: int) -> Iterator[Table]:
        """Tables of `size` rows from `start` on, with the columns that are needed."""
        needed = columns_needed(self.columns)
        return self.stream.read(start, size, [name for name in self.stream.names if name in needed])

    def stars(self, table: Table) -> Stars:
        return stars_of(table, self.columns, self.coords)


def stars_of(table: Table, columns: Mapping[str, Any], coords: Mapping[str, Any]) -> Stars:
    return Stars.from_table(table, id=columns.get("id"), **_parts(columns), **coords)


def open_table(path: str, columns: Mapping[str, Any]) -> Table:
    hdu = columns.get("hdu")
    return read_table(path, int(hdu) if isinstance(hdu, str) and hdu.isdecimal() else hdu)


def read_stars(path: str | os.PathLike[str], columns: Mapping[str, Any] | None = None) -> Stars:
    """The stars of a table in a file of any format, or in a folder of Parquet files.

    Args:
        path: of the file or folder.
        columns: names of columns as in `Stars.from_table`, `fit` and `infer_catalog`: ``{"flux": "FLUX", "flux_ivar":
            "IVAR", "id": "NAME"}``. "hdu" is the number or name of the table in a FITS file; "wavelength" is where the
            file has the wavelengths, ``"HDU:COLUMN"``. None: of a table that `Stars.to_table` made.

    Raises:
        BadInput: files that are damaged; columns that are not there, with those that are near.

    Example:
        >>> import pathlib, tempfile
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> path = bl.tables.write_table(train.to_table(), pathlib.Path(tempfile.mkdtemp()) / "train.fits")
        >>> columns = {"labels": ("TEFF", "LOGG"), "labels_error": ("TEFF_error", "LOGG_error"), "id": "id"}
        >>> bl.read_stars(path, columns).labels.names
        ('TEFF', 'LOGG')
    """
    columns, path = columns or {}, os.fspath(path)
    named = _parts(columns)
    if columns.get("wavelength"):
        named["flux_coords"] = {"pixel": read_wavelength(path, columns["wavelength"])}
    return Stars.from_table(open_table(path, columns), id=columns.get("id"), **named)


def columns_for_training(given: Mapping[str, Any], model: Model, present: Iterable[str]) -> Columns:
    """Columns for the training step: as given; of blocks that are not, those named like a block, its error or ivar."""
    said = {block for block, parts in by_block(given).items() if block in parts}
    like_blocks = {
        name: name for name in present if set(by_block({name: name})) & (set(model.blocks) - said)
    }  # fmt: skip
    return {**like_blocks, **given}


def columns_as_in_training(path: str, given: Mapping[str, Any], posterior: Any, present: Iterable[str]) -> Columns:
    """Columns for the test step: as given, else those of the training step of which the table has the columns.

    What the test step is asked for (labels) is read only if it is given. A posterior that was not trained on a table
    knows no columns: there those are taken that are named like a block of the model, or like its error or ivar.
    """
    present, columns = set(present), dict(given)
    like_blocks = {name: name for name in present if set(by_block({name: name})) & set(posterior.model.blocks)}
    trained: Columns = posterior.info.get("columns") or {**like_blocks, "id": "id"}
    asked = posterior.asked
    for block, parts in by_block(trained).items():
        named = by_block(given).get(block, {})
        if set(named) - {block}:
            parts = {name: value for name, value in parts.items() if name == block}
        elif not named and (block in asked or block not in parts or present.isdisjoint(_names(parts[block]))):
            continue
        columns = {**parts, **columns}
    if "id" not in columns and trained.get("id") in present:
        columns["id"] = trained["id"]
    if "wavelength" not in columns and trained.get("wavelength"):
        try:
            read_wavelength(path, trained["wavelength"])
        except BadInput:
            warn(
                f"{path} has no wavelengths at {trained['wavelength']}, where the training table had them: its "
                "spectra are taken to be on the same grid"
            )
        else:
            columns["wavelength"] = trained["wavelength"]
    return columns


def by_block(columns: Mapping[str, Any]) -> dict[str, Columns]:
    """What is said of each block: {"flux": {"flux": ..., "flux_error": ...}, ...}."""
    out: dict[str, Columns] = {}
    for name, value in columns.items():
        if name not in ("hdu", "wavelength", "id"):
            out.setdefault(name.rpartition("_")[0] if has_suffix(name) else name, {})[name] = value
    return out


def _parts(columns: Mapping[str, Any]) -> Columns:
    return {name: value for parts in by_block(columns).values() for name, value in parts.items()}


def columns_needed(columns: Mapping[str, Any]) -> list[str]:
    """The columns of the table that are named, not names, units or numbers that are given."""
    given = {"names", "unit", "coords"}
    named = [value for name, value in _parts(columns).items() if name.rpartition("_")[2] not in given]
    return [*flat([columns["id"]] if columns.get("id") else []), *flat(named)]


def flat(names: Iterable[Any]) -> list[str]:
    """Names, alone or several together, one after the other."""
    several = ([value] if isinstance(value, str) else np.ravel(value) for value in names)
    return [str(x) for some in several for x in some if isinstance(x, str)]


def _names(columns: Any) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)
