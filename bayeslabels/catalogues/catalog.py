"""Catalogues larger than memory: a table goes in, a table with posteriors comes out, and a crash loses nothing.

The table is read in batches of one size, each while the one before is inferred. Every batch becomes a part, written
beside and moved into place; a run that finds the parts of an earlier one of the same model, table and settings goes on
where that stopped, with the same result to the bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from astropy.table import QTable, Table

from ..core import values as state
from ..data.batches import ahead
from ..data.stars import Stars
from ..devices import one_each
from ..errors import CannotDo, bad_input
from ..files.bad_stars import drop_bad_errors, readable, widened
from ..files.formats import format_of
from ..files.formats.base import Stream, joined
from ..files.formats.parquet import parquet_module
from ..files.sources import Columns, Source, columns_as_in_training
from ..inference.base import Inference
from ..kind import kind_of
from ..numerics.linalg import in_float64
from ..progress import bar
from ..results.posterior import Posterior
from ..results.star_posterior import Flags
from ..verbs import even_batches, for_stars_with, gathered, infer_batch
from .parts import Parts


@dataclass(frozen=True)
class CatalogRun:
    """What a run over a catalogue did: stars in all and of an earlier run, seconds, stars per flag, where it is."""

    destination: Path
    n_star: int
    n_resumed: int
    seconds: float
    flags: dict[str, int] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def stars_per_second(self) -> float:
        return (self.n_star - self.n_resumed) / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        raised = ", ".join(f"{name} {n}" for name, n in self.flags.items() if n) or "none raised"
        earlier = f", {self.n_resumed} of them by an earlier run" if self.n_resumed else ""
        rate = f"{self.seconds:.0f} s, {self.stars_per_second:.0f} stars per s"
        return f"{self.destination}: {self.n_star} stars{earlier}; {rate}; flags: {raised}"


@in_float64
def infer_catalog(
    posterior: Posterior,
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    inference: Inference | None = None,
    *,
    columns: Mapping[str, Any] | None = None,
    nuisances: Sequence[Any] | None = None,
    flux_error_factor: str | None = None,
    save: Sequence[str] = (),
    batch_size: int | str = "auto",
    resume: bool = True,
    overwrite: bool = False,
    seed: int = 0,
    progress: bool | None = True,
) -> CatalogRun:
    """Test step for a catalogue of any length: `infer(...).table()` of every star, in the order of the source.

    Args:
        source: a table in a file of any format (`docs/reference/formats.md`), or a folder of Parquet files.
        destination: a folder, for a Parquet file per batch; or a file of any format.
        inference: as in `infer`.
        columns: names of columns as in `Stars.from_table`, ``{"flux": "FLUX", "flux_ivar": "IVAR", "id": "NAME"}``, and
            "hdu" and "wavelength"; those left out are as in the training step, or named like the blocks.
        nuisances, flux_error_factor: as in `infer`.
        save: further columns, as `also` of `StarPosterior.table`: "correlations", "reduced_chi2", "flux", "latents".
        batch_size: stars at a time, which with a row's size bounds the memory.
        resume: go on where an earlier run of the same model, source and settings stopped; False: start again.
        overwrite: put a file in the place of one that exists, at the end.
        seed: as in `infer`: the same stars in the same batches have the same posteriors, to the bit.

    Errors of a measurement that are zero or negative, and inverse variances that are negative or infinite, count as
    missing. Of a star whose covariances are none, all counts as missing. Such stars are flagged BAD_ERROR.

    Raises:
        BadInput: before anything is computed: columns or files that are not there, files cut short, duplicated ids,
            a destination that cannot be written, parts of another model, source or settings, named.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> source = bl.tables.write_table(test.to_table(), folder / "survey.fits")
        >>> run = bl.infer_catalog(posterior, source, folder / "labels.fits", progress=False)
        >>> len(bl.tables.read_table(folder / "labels.fits"))
        20
    """
    if jax.process_count() > 1:
        raise CannotDo("infer_catalog in several processes of jax.distributed: partitions.infer_partition does that")
    posterior = for_stars_with(posterior, nuisances, flux_error_factor)
    kind = kind_of(posterior.model)
    inference = inference or kind.infer_by
    kind.require(inference, posterior.model, "infer")
    save = kind.require_saved(posterior.model, save)
    plan = _CatalogPlan.of(posterior, source, destination, inference, dict(columns or {}), save, batch_size, seed)
    parts = plan.parts()
    parts.refuse(overwrite, list(plan.stream.paths))
    start, flags = time.perf_counter(), dict.fromkeys(Flags.__members__, 0)
    with parts.held(resume):
        plan.refuse_ids()
        n_resumed = _run(plan, parts, flags, progress)
        parts.assemble()
    seconds = time.perf_counter() - start
    return CatalogRun(plan.destination, plan.stream.n_row, n_resumed, seconds, flags, plan.notes)


def _run(plan: _CatalogPlan, parts: Parts, flags: dict[str, int], progress: bool | None) -> int:
    """Infer and write the parts that are not finished; adds up the flags, and returns how many stars were."""
    done = parts.finished()
    n_resumed = sum(stop - first for first, stop in done)
    for first, _ in done:
        _count(flags, parquet_module().read_table(parts.part(first), columns=["flags"])["flags"])
    waiting, n_bad = [x for x in parts.ranges if x not in done], 0
    label = f"{plan.batch_size} stars ({plan.megabytes:.0f} MB) at a time"
    with bar(plan.stream.n_row, label, progress) as shown, ThreadPoolExecutor(1) as writer:
        shown.update(n_resumed)
        written: Any = None
        for first, stop, result, bad in one_each(lambda part: _inferred(plan, *part), ahead(plan.tables(waiting))):
            _count(flags, result["flags"])
            if written is not None:
                written.result()
            written = writer.submit(parts.write, first, stop, result)
            n_bad += bad
            shown.set_postfix({"bad errors": n_bad} if n_bad else {})
            shown.update(stop - first)
        if written is not None:
            written.result()
    return n_resumed


@dataclass(frozen=True)
class _CatalogPlan:
    """A run: where rows come from and parts go to, and `notes`, which identify it."""

    posterior: Posterior
    source: Source
    destination: Path
    inference: Inference
    batch_size: int
    seed: int
    notes: dict[str, Any]

    @classmethod
    def of(
        cls, posterior: Posterior, source: Any, destination: Any, inference: Inference, given: Columns,
        save: tuple[str, ...], batch_size: int | str, seed: int,
    ) -> _CatalogPlan:  # fmt: skip
        hdu = given.get("hdu", posterior.info.get("columns", {}).get("hdu"))
        path = os.fspath(source)
        table = Source.of(path, hdu, lambda names: columns_as_in_training(path, given, posterior, names))
        stream = table.stream
        if stream.n_row == 0:
            raise bad_input(f"{source} with 0 rows", "at least one star")
        if batch_size == "auto":
            batch_size = even_batches(posterior.model, stream.n_row)
        if isinstance(batch_size, str) or batch_size < 1:
            raise bad_input(f"batch_size={batch_size!r}", 'a number of stars, or "auto"')
        if Path(destination).suffix:
            kind = kind_of(posterior.model)
            names, vectors = kind.quantities(posterior.model).names, [x for x in save if x in kind.saved]
            format_of(destination, "destination", folder=True).refuse(Path(destination), names, vectors=vectors)
        size = min(int(batch_size), stream.n_row)
        notes = {
            "model": _fingerprint(posterior), "source": stream.identity(), "n_star": stream.n_row,
            "columns": table.columns, "save": save,
            "inference": type(inference).__name__, "settings": inference.settings(), "batch_size": size, "seed": seed,
        }  # fmt: skip
        return cls(posterior, table, Path(destination), inference, size, seed, json.loads(json.dumps(notes)))

    @property
    def stream(self) -> Stream:
        return self.source.stream

    @property
    def megabytes(self) -> float:
        """Bytes of the numbers of a batch, four times over: as read, in float64, and at work."""
        frame = self.posterior.model.require_frame()
        width = getattr(frame, "n_pixel", None) or len(frame.names)
        return 4 * 2 * 8 * width * self.batch_size / 1e6

    def refuse_ids(self) -> None:
        """Refuse ids that are not one per star, before anything is computed."""
        name = self.source.columns.get("id")
        if not name:
            return
        ids = Stars(id=joined(list(self.stream.read(0, 1_000_000, [name])))[name]).id
        if self.destination.suffix and ids is not None and ids.dtype.kind == "U":
            format_of(self.destination).refuse(self.destination, ids=ids.tolist())

    def parts(self) -> Parts:
        n, size = self.stream.n_row, self.batch_size
        return Parts(self.destination, self.notes, [(first, min(first + size, n)) for first in range(0, n, size)])

    def tables(self, waiting: list[tuple[int, int]]) -> Iterator[tuple[int, int, Table]]:
        """The rows of the parts that are still to be done; rows between them are passed over."""
        if not waiting:
            return
        start = waiting[0][0]
        todo = dict(waiting)
        for i, table in enumerate(self.source.tables(start, self.batch_size)):
            first = start + i * self.batch_size
            if first in todo:
                yield first, todo[first], table


def _inferred(plan: _CatalogPlan, first: int, stop: int, table: Table) -> tuple[int, int, QTable, int]:
    """Where a batch begins and ends, the rows of its result, and how many of its stars have bad errors."""
    source = plan.source
    found = infer_table(
        plan.posterior, table, source.columns, source.coords, plan.inference, plan.seed, first, plan.batch_size,
        plan.notes["save"],
    )  # fmt: skip
    return first, stop, *found


def infer_table(
    posterior: Posterior, table: Table, columns: Columns, coords: Mapping[str, Any], inference: Inference, seed: int,
    first: int, size: int, save: Sequence[str] = (),
) -> tuple[QTable, int]:  # fmt: skip
    """The rows of the result for a batch of at most `size` stars, and how many have errors that cannot be.

    first: the place of the batch among all stars.
    """
    bad = drop_bad_errors(table, columns)
    stars, odd = readable(widened(table, columns, posterior.model.widths), columns, coords)
    bad |= odd
    if stars.id is None:
        stars = Stars(id=np.arange(first, first + len(stars)), **stars.blocks)
    posterior.model.check(stars)
    part = infer_batch(posterior, stars, inference, seed, size, False)
    part["stars"]["flags"] = part["stars"]["flags"] | np.where(bad, int(Flags.BAD_ERROR), 0)
    return gathered(posterior, stars, [part], inference, seed).table(save), int(bad.sum())


def _count(flags: dict[str, int], values: Any) -> None:
    for flag in Flags:
        flags[str(flag.name)] += int(((np.asarray(values) & flag) > 0).sum())


def _fingerprint(posterior: Posterior) -> str:
    """Digest of the model and of all that the test step integrates over."""
    arrays: dict[str, np.ndarray] = {}
    text = state.dumps(posterior.model, arrays)
    total = hashlib.sha256(text.encode())
    for x in [*arrays.values(), *posterior.moments]:
        total.update(np.ascontiguousarray(np.asarray(x, float)).tobytes())
    return total.hexdigest()[:16]
