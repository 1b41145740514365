"""ECSV and CSV files, gzipped ones, too; read as a whole."""

from __future__ import annotations

import csv
import gzip
import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import ascii
from astropy.table import Column, MaskedColumn, Table
from astropy.table.meta import get_header_from_yaml

from ...data.columns import column, unit_in
from ...errors import bad_input
from .base import Format, WholeStream, refuse_twice, whole_file

MISSING = [("", "0"), ("null", "0"), ("NULL", "0")]
"""Texts that stand for nothing: the Gaia archive writes null."""
NOTHING = ["--", "-", "...", "na", "n/a", "#n/a", "<na>", "nan", "none", "null", "nil", "masked", "*"]
"""Words for what is missing, in lower case, among numbers."""
LEADING_ZERO = re.compile(r"[+-]?0\d")


class Ecsv(Format):
    name = "ECSV"
    suffixes = (".ecsv", ".ecsv.gz")

    def open(self, path: Path, hdu: int | str | None) -> WholeStream:
        return WholeStream(path, lambda: _read(path))

    def write(self, table: Table, path: Path) -> None:
        made = io.StringIO()
        table.write(made, format="ascii.ecsv")
        with _opened(path, "wt") as file:
            file.write(_without_comments(made.getvalue()))


class Csv(Format):
    """No units, and numbers alone: texts that are whole numbers come back as numbers."""

    name = "CSV"
    suffixes = (".csv", ".csv.gz")
    vectors = False

    def open(self, path: Path, hdu: int | str | None) -> WholeStream:
        return WholeStream(path, lambda: _read(path))

    def write(self, table: Table, path: Path) -> None:
        with _opened(path, "wt") as file:
            table.write(file, format="ascii.csv")


def _read(path: Path) -> Table:
    with whole_file(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _opened(path, "rt") as file:
            text = file.read()
        return _ecsv(text, path) if text.startswith("# %ECSV") else _csv(text, path)


def _opened(path: Path, mode: str) -> Any:
    encoding = "utf-8-sig" if mode == "rt" else "utf-8"
    return (gzip.open if path.suffix.lower() == ".gz" else open)(path, mode, encoding=encoding, newline="")


def _without_comments(text: str) -> str:
    """ECSV with quotes around what a row begins with, if that is #: its star would be read as a comment."""
    lines = text.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0) + 1
    for i, line in enumerate(lines[first:], first):
        if line.startswith("#"):
            field, space, rest = line.rstrip("\r\n").partition(" ")
            lines[i] = f'"{field}"{space}{rest}\n'
    return "".join(lines)


def _ecsv(text: str, path: Path) -> Table:
    head = [line.removeprefix("# ") for line in text.splitlines() if line.startswith("# ")]
    names = [x["name"] for x in get_header_from_yaml(head)["datatype"]]
    refuse_twice(names, path)
    if sum(bool(line.strip()) and not line.startswith("#") for line in text.splitlines()) < 2:
        return Table({name: np.zeros(0) for name in names})  # astropy reads no vectors of no row
    table = ascii.read(text.splitlines(), format="ecsv", guess=False, fill_values=MISSING)
    for name in table.colnames:
        if isinstance(table[name], Column) and table[name].unit is not None:
            table[name].unit = unit_in(str(table[name].unit))
    return table


def _csv(text: str, path: Path) -> Table:
    if "\0" in text:
        raise bad_input(f"{path} with bytes that are no text", "a table in CSV")
    table = ascii.read(text + "\n", format="csv", guess=False, fill_values=MISSING)
    refuse_twice([x.strip() for x in next(csv.reader(text.splitlines()), [])], path)
    zeros = LEADING_ZERO.search(text) is not None
    whole = [name for name in table.colnames if table[name].dtype.kind == "i"] if zeros else []
    whole += (rounded := [name for name in table.colnames if _rounded(table[name])])
    if whole:  # ids such as 007, which are no numbers, and those that NaN among them made floats, which lose digits
        texts = ascii.read(
            text + "\n", format="csv", guess=False, fill_values=MISSING, include_names=whole,
            converters={name: [ascii.convert_numpy(str)] for name in whole},
        )  # fmt: skip
        for name in whole:
            if name in rounded or any(LEADING_ZERO.match(x) for x in np.ma.getdata(texts[name]).tolist()):
                table[name] = texts[name]
    for name in table.colnames:
        table[name] = _typed(table[name])
    return table


def _rounded(values: Column) -> bool:
    """Whether floats, of which some are NaN, are too large for all whole numbers to be among them."""
    data = np.ma.getdata(values)
    return data.dtype.kind == "f" and bool(np.isnan(data).any() and np.fmax.reduce(np.abs(data)) >= 2**53)


def _typed(values: Column) -> Column:
    """Integers longer than 64 bits with a sign, numbers among words for what is missing, words for true and false."""
    data, mask = np.ma.getdata(values), np.ma.getmaskarray(values)
    if data.dtype.kind != "U":
        return values
    nothing = mask | np.isin(np.strings.lower(np.strings.strip(data)), NOTHING)
    if (nothing & ~mask).any() and not nothing.all():
        rest = [x if not gone else "" for x, gone in zip(data.tolist(), nothing, strict=True)]
        lines = ["x", *(x or '""' for x in rest)]
        numbers = ascii.read(lines, format="csv", guess=False, fill_values=MISSING)["x"]
        if numbers.dtype.kind in "if" and not any(LEADING_ZERO.match(x) for x in rest):
            return column(np.ma.getdata(numbers), nothing)
        if _are_long([x for x in rest if x]):
            mask = nothing
    there = data[~mask].tolist()
    if not there:
        return values
    if _are_long(there):
        out = np.zeros(len(data), np.uint64)
        out[~mask] = [int(x) for x in there]
        return column(out, mask)
    if set(there) <= {"True", "False"}:
        return column(data == "True", mask)
    return MaskedColumn(values) if mask.any() else Column(data)


def _are_long(texts: list[str]) -> bool:
    """Whether all are whole numbers of up to 64 bits, without a sign."""
    return all(re.fullmatch(r"0|[1-9]\d{,19}", x) and int(x) < 2**64 for x in texts)
