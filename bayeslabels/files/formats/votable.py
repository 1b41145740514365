"""VOTable files, as the Gaia archive and other services of the Virtual Observatory send them; read as a whole."""

from __future__ import annotations

import gzip
import io
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np
from astropy.io import votable
from astropy.io.votable.exceptions import W46, W51, VOWarning
from astropy.io.votable.tree import Info, TableElement, VOTableFile
from astropy.table import Table
from astropy.units import UnrecognizedUnit

from ...data.columns import column, unit_in
from ...errors import bad_input
from .base import Format, WholeStream, refuse_twice, vectors, whole_file

META = "bayeslabels_meta"
"""Name of the INFO with the meta of a table, in JSON."""
WIDER = {"i1": np.int16, "u2": np.int32, "u4": np.int64, "f2": np.float32}
"""Types of numbers that VOTable lacks, and those that hold them."""
DEEPEST = 64
"""Elements inside of one another, at most."""
LARGEST = 2**28
"""Bytes of the arrays that a small file may ask for; a file of more may ask for 256 times its size."""


class VOTable(Format):
    name = "VOTable"
    suffixes = (".vot", ".vot.gz", ".xml", ".xml.gz", ".votable")

    def open(self, path: Path, hdu: int | str | None) -> WholeStream:
        return WholeStream(path, lambda: _read(path, hdu))

    def write(self, table: Table, path: Path) -> None:
        plain = Table({name: _storable(table[name]) for name in table.colnames})
        text = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VOWarning)  # that [Fe/H] is a name, but no ID
            whole = VOTableFile.from_table(plain)
            whole.set_all_tables_format("binary2")  # in which every type has a mask
            (made,) = whole.iter_tables()
            for field, name in zip(made.fields, table.colnames, strict=True):
                if (unit := table[name].unit) is not None:
                    field._unit = UnrecognizedUnit(
                        unit.to_string()
                    )  # word for word: VOUnit has neither dex nor mag(AB)
            meta = {k: v for k, v in table.meta.items() if isinstance(v, str | int | float | bool | dict | list)}
            if meta:
                whole.resources[0].infos.append(Info(name=META, value=json.dumps(meta, default=str)))
            whole.to_xml(text)
        path.write_bytes(gzip.compress(text.getvalue()) if path.suffix.lower() == ".gz" else text.getvalue())


def _storable(values: Any) -> Any:
    """A column, without its unit, of a type that VOTable has."""
    data = values if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
    if (wider := WIDER.get(data.dtype.str[1:])) is not None:
        data = data.astype(wider)
    elif data.dtype.kind == "u" and data.dtype.itemsize == 8:
        data = data.astype(np.int64 if np.max(data, initial=0) < 2**63 else str)
    return data


def _read(path: Path, number: int | str | None) -> Table:
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":  # also where the name does not say so
        with whole_file(path):
            content = gzip.decompress(content)
    with whole_file(path), warnings.catch_warnings():
        _refuse_hostile(content, path)
        warnings.simplefilter("ignore", VOWarning)
        for loss in (W46, W51):  # texts cut short, integers that are not what was written
            warnings.simplefilter("error", loss)
        whole = votable.parse(io.BytesIO(content), verify="warn")
        found = _table(whole, number, path)
        if found.nrows is not None and len(found.array) != int(found.nrows):
            raise bad_input(f"{path} of {len(found.array)} rows", f"{found.nrows}, as it says", "it is cut short")
        refuse_twice([field.name for field in found.fields], path)
        table = found.to_table(use_names_over_ids=True)
    out = Table()
    for name in table.colnames:
        out[name] = _column(table[name], name)
    out.meta.update({info.name: info.value for info in whole.iter_info() if info.name != META})
    for info in whole.iter_info():
        if info.name == META:
            out.meta.update(json.loads(info.value))
    return out


def _table(whole: VOTableFile, number: int | str | None, path: Path) -> TableElement:
    """The table of that number, ID or name; None: the first table that has rows."""
    found = list(whole.iter_tables())
    if not found:
        said = [f"{info.value}: {' '.join((info.content or '').split())[:160]}" for info in whole.iter_info()]
        raise bad_input(f"{path} without a table", "a TABLE in one of its resources", f"the archive says {said}")
    if number is None:
        return next((x for x in found if len(x.array)), found[0])
    keys = [(i, x.ID, x.name) for i, x in enumerate(found)]
    for x, key in zip(found, keys, strict=True):
        if number in key:
            return x
    raise bad_input(f"table {number!r} of {path}", f"one of {[name or ID or i for i, ID, name in keys]}")


def _column(values: Any, name: str) -> Any:
    """A column with texts, or vectors of one length, where astropy has objects."""
    data, mask = np.ma.getdata(values), np.ma.getmaskarray(values)
    unit = values.unit if values.unit is None else unit_in(str(values.unit))
    if data.dtype.kind == "O":
        rows = data.tolist()
        if all(isinstance(x, str | bytes) or x is None for x in rows):
            data = np.array([x.decode() if isinstance(x, bytes) else x or "" for x in rows], str)
        else:
            data = vectors([None if x is None else np.ma.filled(x.astype(float), np.nan) for x in rows], name)
            mask = np.zeros(len(data), bool)
    elif mask.ndim > 1 and data.dtype.kind == "f":
        data, mask = np.where(mask, np.nan, data), np.zeros(len(data), bool)
    return column(data, mask, unit)


def _refuse_hostile(content: bytes, path: Path) -> None:
    """Refuse XML that would read other files or fill the memory, before astropy follows it."""
    depth, width, asked = 0, 0, 0
    parser = expat.ParserCreate()

    def refuse(got: str, expected: str) -> None:
        raise bad_input(f"{path} with {got}", expected, "a file that was made to do harm, or a service's short cut")

    def entity(name: str, *_: Any) -> None:
        refuse(f"the entity {name!r}", "XML without entities of its own")

    def start(tag: str, attributes: Mapping[str, str]) -> None:
        nonlocal depth, width, asked
        depth, tag = depth + 1, tag.rpartition(":")[2]
        if depth > DEEPEST:
            refuse(f"more than {DEEPEST} elements inside of one another", "a table")
        if tag == "STREAM" and attributes.get("href"):
            refuse(f"its data in {attributes['href']!r}", "the data in the file itself")
        if tag in ("FITS", "PARQUET"):
            refuse(f"its data as {tag}", "the data as TABLEDATA, BINARY or BINARY2")
        if tag == "TABLE":
            width, rows = 0, _whole(attributes.get("nrows"))
            asked = max(rows, 1)
        if tag == "FIELD":
            sizes = attributes.get("arraysize", "").rstrip("*").split("x")
            width += 16 * math.prod(max(_whole(x), 1) for x in sizes)
            if width * asked > max(LARGEST, 256 * len(content)):
                refuse(f"{asked} rows of {width} bytes, in {len(content)} bytes", "rows that are in the file")

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.EntityDeclHandler, parser.SkippedEntityHandler = entity, entity
    parser.Parse(content, True)


def _whole(text: str | None) -> int:
    """A whole number; 0 of what is none."""
    return int(text[:20]) if text and text.isdecimal() else 0
