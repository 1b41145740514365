"""Training stars, in memory or in files larger than it: what the training step by minibatches asks of both.

Of files two things are held: a sample, which the model takes its scales from, and the stars held out. All else is read
again, pass after pass, a block at a time. Of every star in files there are some twenty bytes in memory: a digest, its
place, and how often it counts.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from astropy.table import Table

from ..core.model import Model
from ..data.batches import R, Range, Reading, Rows, RowsInMemory, Usable, at_once, held_out_of, pieces_of, width_of
from ..data.digests import digests, in_order
from ..data.sentinels import fills_of, refuse_beyond
from ..data.stars import Stars
from ..errors import bad_input
from ..progress import bar
from .formats.base import joined
from .sources import Columns, Source, columns_for_training

SAMPLE, SAMPLE_NUMBERS = 50_000, 2**24
"""Stars, and their measured numbers, that a model takes its scales, populations and start from, at most."""
AT_ONCE = 16_384
"""Rows at a time in the first pass."""


class TrainingStars(ABC):
    """n stars, of which `sample` are held; usable (n,): those that say anything of the model."""

    n: int
    sample: Stars
    usable: np.ndarray
    columns: Columns | None = None

    @abstractmethod
    def rows(self, model: R) -> Rows[R]:
        """Their arrays, for a model that is bound to the sample."""

    @abstractmethod
    def identity(self) -> Any:
        """What tells them from others, for a checkpoint."""


class StarsInMemory(TrainingStars):
    """Stars in random order, `in_order`; those that are not usable are left out."""

    def __init__(self, stars: Stars, usable: Usable):
        self.n, self.usable = len(stars), usable(stars)
        self.stars = stars if self.usable.all() or not self.usable.any() else stars[self.usable]
        self.sample = self.stars[: at_once(SAMPLE, width_of(stars), SAMPLE_NUMBERS)]

    def rows(self, model: R) -> Rows[R]:
        return RowsInMemory(model, self.stars, sample=self.sample)

    def identity(self) -> Any:
        total = hashlib.sha256(str(sorted(self.stars.blocks)).encode())
        for x in jax.tree.leaves(dict(self.stars.blocks)):
            total.update(np.ascontiguousarray(np.asarray(x, float)).tobytes())
        return total.hexdigest()[:16]


class First:
    """The first `most` usable rows of a table in random order, `in_order`, found as the table goes by.

    `index`: the numbers of these rows, ascending.
    """

    def __init__(self, most: int, seed: int):
        self.most, self.seed = most, seed
        self.tables: list[Table] = []
        self.digests, self.index = np.zeros(0, np.uint64), np.zeros(0, int)

    def add(self, table: Table, digests: np.ndarray, usable: np.ndarray, first: int) -> None:
        """Rows from `first` on."""
        at = np.flatnonzero(usable)
        if len(at):
            self.tables.append(table[at])
            self.digests, self.index = np.append(self.digests, digests[at]), np.append(self.index, first + at)
        if len(self.index) > 2 * self.most:
            self._shorten()

    def _shorten(self) -> None:
        kept = np.sort(in_order(self.digests, self.seed)[: self.most])
        self.tables = [joined(self.tables)[kept]]
        self.digests, self.index = self.digests[kept], self.index[kept]

    @property
    def table(self) -> Table:
        """Those rows."""
        if len(self.index) > self.most:
            self._shorten()
        return joined(self.tables)


class StarsInFiles(TrainingStars):
    """A table in files; read once from beginning to end, to see what there is."""

    def __init__(
        self, path: str | os.PathLike[str], given: Mapping[str, Any], model: Model, usable: Usable, seed: int,
        progress: bool | None,
    ):  # fmt: skip
        self.source = Source.of(path, given.get("hdu"), lambda names: columns_for_training(given, model, names))
        self.columns, self.n = self.source.columns, self.source.stream.n_row
        if self.n == 0:
            raise bad_input(f"{path} with 0 rows", "training stars")
        self.width = width_of(self.source.stars(next(self.source.tables(0, 1))))
        most = at_once(SAMPLE, self.width, SAMPLE_NUMBERS)
        first_few = First(max(most, getattr(model, "members", 1) * held_out_of(self.n, self.width)), seed)
        self.usable, self.digests = np.ones(self.n, bool), np.empty(self.n, np.uint64)
        self.fills: dict[str, np.ndarray] = {}
        with bar(self.n, f"reading {path}", progress) as shown:
            first = 0
            for table in self.source.tables(0, at_once(AT_ONCE, self.width)):
                stop = first + len(table)
                stars = self.source.stars(table)
                self.usable[first:stop] = usable(stars)
                self.digests[first:stop] = digests(stars, model.blocks)
                for name, x in fills_of(stars, model.blocks).items():
                    known = self.fills.get(name, x)
                    self.fills[name] = np.stack([np.fmin(known[:, 0], x[:, 0]), np.fmax(known[:, 1], x[:, 1])], 1)
                first_few.add(table, self.digests[first:stop], self.usable[first:stop], first)
                shown.update(stop - first)
                first = stop
        if not self.usable.any():
            raise bad_input(f"{path}, of which no star says anything of a {type(model).__name__}",
                            f"training stars with {', '.join(model.blocks)}")  # fmt: skip
        self.index, self.held = first_few.index, self.source.stars(first_few.table)
        refuse_beyond(self.fills, self.held)
        self.sample = self.held[in_order(self.digests[self.index], seed)[:most]]

    def rows(self, model: R) -> Rows[R]:
        return RowsInFiles(model, self)

    def identity(self) -> Any:
        return self.source.stream.identity()


class RowsInFiles(Rows[R]):
    """Read anew whenever they are asked for, but those that are held."""

    def __init__(self, model: R, training: StarsInFiles):
        self.model, self.stars, self.training = model, training.sample, training
        self.n, self.usable, self.width = training.n, training.usable, training.width
        self.digests = training.digests
        self.pieces = training.source.stream.pieces() or pieces_of(self.n)
        self.ends = {stop for _, stop in self.pieces}
        self.reading: dict[int, tuple[Iterator[Table], list[Table]]] = {}

    def take(self, ranges: list[Range], size: int) -> Any:
        table, (_, at) = joined([self._table(*x) for x in ranges]), self.told(ranges)
        return _arrays(self.model, self.training.source.stars(table[at]), size) if len(at) else self.some(size)

    def _table(self, first: int, stop: int) -> Table:
        """The rows of a range; where it goes on from one that was read, so does the reading."""
        n = stop - first
        if first not in self.reading:
            self.reading[first] = self.training.source.tables(first, n), []
        tables, parts = self.reading.pop(first)
        while sum(map(len, parts)) < n:
            parts.append(next(tables))
        read = joined(parts)
        if stop not in self.ends:
            self.reading[stop] = tables, [read[n:]] if len(read) > n else []
        return read[:n]

    def held_out(self, index: np.ndarray) -> Any:
        flat, back = np.unique(index, return_inverse=True)
        at = np.searchsorted(self.training.index, flat)
        arrays = _arrays(self.model, self.training.held[at], len(at))
        return jax.tree.map(lambda x: x[back.reshape(index.shape)], arrays)


def _arrays(model: Reading, stars: Stars, size: int) -> Any:
    """Filled up to one size, and so compiled once."""
    filled = stars if len(stars) == size else stars[np.resize(np.arange(len(stars)), size)]
    model.check(filled)
    return jax.tree.map(np.asarray, model.arrays(filled))
