"""Training stars, in memory or in files larger than it: what the training step by minibatches asks of both.

Of files two things are held: a sample, which the model takes its scales from, and the stars held out. All else is read
again, pass after pass, a block at a time.
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
from ..data.batches import Range, Rows, RowsInMemory, Usable, at_once, pieces_of, split, width_of
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
    def rows(self, model: Any) -> Rows:
        """Their arrays, for a model that is bound to the sample."""

    @abstractmethod
    def identity(self) -> Any:
        """What tells them from others, for a checkpoint."""


class StarsInMemory(TrainingStars):
    """Stars."""

    def __init__(self, stars: Stars, usable: Usable, seed: int):
        self.stars, self.n, self.usable = stars, len(stars), usable(stars)
        most = at_once(SAMPLE, width_of(stars), SAMPLE_NUMBERS)
        self.sample = stars if self.n <= most and self.usable.all() else stars[sample_of(self.usable, seed, most)]

    def rows(self, model: Any) -> Rows:
        return RowsInMemory(model, self.stars, self.usable, self.sample)

    def identity(self) -> Any:
        total = hashlib.sha256(str(sorted(self.stars.blocks)).encode())
        for x in jax.tree.leaves(dict(self.stars.blocks)):
            total.update(np.ascontiguousarray(np.asarray(x, float)).tobytes())
        return total.hexdigest()[:16]


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
        everything = np.ones(self.n, bool)
        self.width = width_of(self.source.stars(next(self.source.tables(0, 1))))
        sample = sample_of(everything, seed, at_once(SAMPLE, self.width, SAMPLE_NUMBERS))
        out = split(self.n, getattr(model, "members", 1), seed, self.width)
        self.index = np.unique(np.concatenate([sample, out.ravel()]))
        self.usable, kept = everything, []
        self.fills: dict[str, np.ndarray] = {}
        with bar(self.n, f"reading {path}", progress) as shown:
            first = 0
            for table in self.source.tables(0, at_once(AT_ONCE, self.width)):
                stop = first + len(table)
                stars = self.source.stars(table)
                self.usable[first:stop] = usable(stars)
                for name, x in fills_of(stars, model.blocks).items():
                    known = self.fills.get(name, x)
                    self.fills[name] = np.stack([np.fmin(known[:, 0], x[:, 0]), np.fmax(known[:, 1], x[:, 1])], 1)
                low, high = np.searchsorted(self.index, [first, stop])
                if high > low:
                    kept.append(table[self.index[low:high] - first])
                shown.update(stop - first)
                first = stop
        self.held = self.source.stars(joined(kept))
        refuse_beyond(self.fills, self.held)
        self.sample = self.held[np.searchsorted(self.index, sample[self.usable[sample]])]

    def rows(self, model: Any) -> Rows:
        return RowsInFiles(model, self)

    def identity(self) -> Any:
        return self.source.stream.identity()


class RowsInFiles(Rows):
    """Read anew whenever they are asked for, but those that are held."""

    def __init__(self, model: Any, training: StarsInFiles):
        self.model, self.stars, self.training = model, training.sample, training
        self.n, self.usable, self.width = training.n, training.usable, training.width
        self.pieces = training.source.stream.pieces() or pieces_of(self.n)
        self.ends = {stop for _, stop in self.pieces}
        self.reading: dict[int, Iterator[Table]] = {}

    def take(self, ranges: list[Range], size: int) -> Any:
        stars = self.training.source.stars(joined([self._table(*x) for x in ranges]))
        return _arrays(self.model, stars, size)

    def _table(self, first: int, stop: int) -> Table:
        """The rows of a range; where it goes on from one that was read, so does the reading."""
        tables = self.reading.pop(first, None) or self.training.source.tables(first, stop - first)
        table = next(tables)[: stop - first]
        if stop not in self.ends:
            self.reading[stop] = tables
        return table

    def held_out(self, index: np.ndarray) -> Any:
        flat, back = np.unique(index, return_inverse=True)
        at = np.searchsorted(self.training.index, flat)
        arrays = _arrays(self.model, self.training.held[at], len(at))
        return jax.tree.map(lambda x: x[back.reshape(index.shape)], arrays)


def _arrays(model: Any, stars: Stars, size: int) -> Any:
    """Filled up to one size, and so compiled once."""
    filled = stars if len(stars) == size else stars[np.minimum(np.arange(size), len(stars) - 1)]
    model.check(filled)
    return jax.tree.map(np.asarray, model.arrays(filled))


def sample_of(usable: np.ndarray, seed: int, most: int) -> np.ndarray:
    """Rows of the sample, in order."""
    rows = np.flatnonzero(usable)
    if len(rows) > most:
        rows = np.sort(np.random.default_rng([seed, 982451653]).choice(rows, most, replace=False))
    return rows
