"""Tables of Apache Arrow as astropy tables: those of pyarrow, and of all that speaks its protocol (polars, DuckDB)."""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy.table import Table

from ..errors import bad_input
from .columns import column, unit_in
from .serialized import Written


def without_arrow(table: Any) -> Any:
    """An Arrow table as an astropy table, with the units and masks that astropy left in its metadata; any other as it
    is."""
    if not hasattr(table, "__arrow_c_stream__") or hasattr(table, "iloc") or isinstance(table, Table):
        return table
    try:
        import pyarrow
    except ImportError:
        raise bad_input(
            f"a {type(table).__module__}.{type(table).__name__} without pyarrow installed", "pyarrow",
            fix="pip install 'bayeslabels[catalogs]'",
        ) from None  # fmt: skip
    whole = table if isinstance(table, pyarrow.Table) else pyarrow.table(table)
    written = Written.of((whole.schema.metadata or {}).get(b"table_meta_yaml"), whole.schema.names)
    found = written.applied(table_of_arrow(whole))
    found.meta.update(written.meta)
    return found


def table_of_arrow(data: Any) -> Table:
    """An astropy table of a pyarrow table or batch; list columns become vector columns, NaN where they are null."""
    out = Table()
    for name in data.schema.names:
        values, field = data.column(name), data.schema.field(name)
        unit = unit_in((field.metadata or {}).get(b"unit"))
        if hasattr(values, "combine_chunks"):
            values = values.combine_chunks()
        out[name] = column(*_numpy(name, values), unit)
    return out


def _numpy(name: str, values: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The numbers or texts of a pyarrow array, and where they are null, if that does not stand in them as NaN."""
    if hasattr(values, "storage"):  # of an extension, such as tensors of one shape
        inner, null = _numpy(name, values.storage)
        return inner.reshape(len(inner), *getattr(values.type, "shape", inner.shape[1:])), null
    kind = str(values.type)
    if kind == "null":
        return np.full(len(values), np.nan), None
    if "list" in kind:
        return _vectors(name, values), None
    if "string" in kind:
        texts = values.to_pylist()
        return np.array([x or "" for x in texts], str), np.array([x is None for x in texts], bool)
    if "int" in kind and values.null_count and "dictionary" not in kind:  # Arrow would make floats of long ids
        null = np.asarray(values.is_null().to_numpy(zero_copy_only=False))
        return values.fill_null(0).to_numpy(zero_copy_only=False), null
    return values.to_numpy(zero_copy_only=False), None


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
    inner = column.flatten()  # of the rows that are present, alone
    values = _vectors(name, inner) if "list" in str(inner.type) else inner.to_numpy(zero_copy_only=False)
    n = int(present.sum())
    values = values.reshape(n, length, *values.shape[1:])
    if n == len(present):
        return np.asarray(values)
    out = np.full((len(present), *values.shape[1:]), np.nan, values.dtype if values.dtype.kind == "f" else float)
    out[present] = values
    return out
