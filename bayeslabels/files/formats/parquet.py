"""Parquet files, and folders of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from astropy.table import Table

from ...data.arrow import table_of_arrow
from ...data.columns import column
from ...data.serialized import Written
from ...errors import advise, bad_input
from .base import Format, Stream, joined, whole_file

MOST = 0.75
"""Share of the lists of a column that are of one length, at least; the others' stars are taken for bad ones."""
LENGTH = "table::len::"
"""Before a column's name in the metadata of a file by astropy: of how many letters its texts are, at most."""


class Parquet(Format):
    name = "Parquet"
    suffixes = (".parquet", ".pq")

    def open(self, path: Path, hdu: int | str | None) -> ParquetStream:
        return ParquetStream(path)

    def write(self, table: Table, path: Path) -> None:
        parquet_module()
        table.write(path, format="parquet")

    def join(self, parts: list[Path], whole: Path, n_row: int) -> None:
        parquet, first = parquet_module(), parquet_module().read_schema(parts[0])
        texts = {LENGTH + name: str(length) for name, length in lengths_of_texts(parts).items()}
        schema = first.with_metadata(first.metadata | {k.encode(): v.encode() for k, v in texts.items()})
        with parquet.ParquetWriter(whole, schema) as writer:
            for part in parts:
                writer.write_table(parquet.read_table(part).replace_schema_metadata(schema.metadata))


class ParquetStream(Stream):
    """One file, or all Parquet files below a folder in the order of their names."""

    def __init__(self, path: Path):
        parquet = parquet_module()
        found = [path]
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in Parquet.suffixes]
            found = [p for p in inside if not any(part[0] in "._" for part in p.relative_to(path).parts)]
            if not found:
                raise bad_input(f"the folder {path} without Parquet files", "some")
        self.rows, self.groups, names = [], [], []
        self.written: list[Written] = []
        self.widths: dict[str, int] = {}
        self.lengths: dict[str, int] = {}
        self.usual: dict[str, int] = {}
        for file in found:
            with whole_file(file):
                head = parquet.read_metadata(file)
                self.rows.append(head.num_rows)
                self.groups += [head.row_group(i).num_rows for i in range(head.num_row_groups)]
                schema = head.schema.to_arrow_schema()
                text = (schema.metadata or {}).get(b"table_meta_yaml")
                self.written.append(Written.of(text, schema.names))
                names.append(tuple(x for x in schema.names if x not in self.written[-1].masks.values()))
        for file, own in zip(found, names, strict=True):
            if set(own) != set(names[0]):
                odd = sorted(set(own) ^ set(names[0]))
                raise bad_input(f"{file}, which differs from {found[0]} in the columns {odd}", "the same in all files")
        self.paths, self.names, self.n_row = tuple(found), names[0], sum(self.rows)
        self.meta = self.written[0].meta

    def pieces(self) -> list[tuple[int, int]]:
        ends = np.cumsum(self.groups).tolist()
        return [(stop - rows, stop) for rows, stop in zip(self.groups, ends, strict=True) if rows]

    def batches(self, start: int, size: int, columns: Sequence[str]) -> Iterator[Table]:
        parquet, held, n_held = parquet_module(), [], 0
        for path, rows, written in zip(self.paths, self.rows, self.written, strict=True):
            stored = [*columns, *(mask for name, mask in written.masks.items() if name in columns)]
            if start >= rows:
                start -= rows
                continue
            with (
                whole_file(path),
                parquet.ParquetFile(path) as file,
            ):  # not mapped, or all that was read stays in memory
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
                            piece = self._of_usual_length(piece)
                            held.append(self._widened(written.applied(table_of_arrow(piece))))
                            n_held += piece.num_rows
                            if n_held == size:
                                yield joined(held)
                                held, n_held = [], 0
        if held:
            yield joined(held)

    def _of_usual_length(self, batch: Any) -> Any:
        """Without the lists that are of another length than most of the files' are: one such star stops no run."""
        compute = parquet_compute()
        for at, field in enumerate(batch.schema):
            if "list" not in str(field.type) or "fixed_size" in str(field.type):
                continue
            lengths = compute.list_value_length(batch.column(at))
            found = set(compute.unique(lengths).to_pylist()) - {None, 0}
            if not found or (len(found) == 1 and self._all_of_length(field.name, *found)):
                continue
            usual = self._usual_length(field.name)
            if found == {usual}:
                continue
            odd = compute.fill_null(
                compute.and_(compute.not_equal(lengths, usual), compute.not_equal(lengths, 0)), False
            )
            advise(
                "%d of %d rows have %s of another length than the usual %d: they count as missing",
                compute.sum(odd).as_py(), batch.num_rows, field.name, usual,
            )  # fmt: skip
            batch = batch.set_column(at, field, compute.if_else(odd, None, batch.column(at)))
        return batch

    def _all_of_length(self, name: str, length: int) -> bool:
        """Whether the files say, without a list being read, that all lists of a column are of this length or null."""
        if name not in self.lengths:
            found: set[int] = set()
            for path in self.paths:
                with parquet_module().ParquetFile(path) as file:
                    found |= lengths_by_metadata(file.metadata, name)
            self.lengths[name] = next(iter(found)) if len(found) == 1 else 0
        return self.lengths[name] == length

    def _usual_length(self, name: str) -> int:
        """Numbers in most lists of a column, all of which are counted once."""
        if name in self.usual:
            return self.usual[name]
        compute, counts = parquet_compute(), Counter[int]()
        for path in self.paths:
            for batch in parquet_module().ParquetFile(path).iter_batches(4096, columns=[name]):
                counts.update(x for x in compute.list_value_length(batch.column(0)).to_pylist() if x)
        (usual, most), total = counts.most_common(1)[0], counts.total()
        if most < MOST * total:
            raise bad_input(f"column {name!r} with lists of length {sorted(counts)[:5]}", "spectra of one length")
        return self.usual.setdefault(name, usual)

    def _widened(self, table: Table) -> Table:
        """With lists that are null in all of these rows as long as they are elsewhere in the files."""
        for name in table.colnames:
            if table[name].shape[1:] == (0,) and (width := self._width(name)):
                table[name] = column(np.full((len(table), width), np.nan), unit=table[name].unit)
        return table

    def _width(self, name: str) -> int:
        """Numbers in each list of a column; 0 where all are null."""
        if name not in self.widths:
            batches = (batch for path in self.paths for batch in parquet_module().ParquetFile(path).iter_batches(
                4096, columns=[name]))  # fmt: skip
            found = (table_of_arrow(self._of_usual_length(batch))[name].shape[1] for batch in batches)
            self.widths[name] = next((width for width in found if width), 0)
        return self.widths[name]


def parquet_module() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise bad_input(
            "a Parquet file without pyarrow installed", "pyarrow", fix="pip install 'bayeslabels[catalogs]'"
        ) from None
    return pyarrow.parquet


def parquet_compute() -> Any:
    import pyarrow.compute

    return pyarrow.compute


def lengths_by_metadata(metadata: Any, name: str) -> set[int]:
    """Mean lengths of a column's lists that are not null, one for each row group; 0 where it is no whole number."""
    found = set()
    for group in (metadata.row_group(i) for i in range(metadata.num_row_groups)):
        chunks = [group.column(i) for i in range(group.num_columns)]
        of_column = [x for x in chunks if x.path_in_schema.startswith(f"{name}.")]
        if len(of_column) != 1 or of_column[0].statistics is None or not of_column[0].statistics.has_null_count:
            return {0}
        null = of_column[0].statistics.null_count  # a list that is null or empty counts as one number
        lists, numbers = group.num_rows - null, of_column[0].num_values - null
        if lists > 0 or numbers:
            found.add(numbers // lists if lists > 0 and numbers % lists == 0 else 0)
    return found


def lengths_of_texts(parts: list[Path]) -> dict[str, int]:
    """Letters of the longest text of every column of texts, of all parts together."""
    out: dict[str, int] = {}
    for part in parts:
        for name, value in parquet_module().read_schema(part).metadata.items():
            if (key := name.decode()).startswith(LENGTH):
                text = key.removeprefix(LENGTH)
                out[text] = max(int(value), out.get(text, 1))
    return out
