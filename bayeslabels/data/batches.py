"""Minibatches of stars that may be more than memory holds: blocks of rows in random order, each shuffled within.

An epoch goes through all stars, block by block. A block is put together from ranges of rows from all over the table, is
read while the one before is at use, and lies in the device's memory alone. Stars in memory are one block, if they are
few. Every order follows from seed, epoch and block: a run can be taken up at any block. Which stars are held out, and
who comes after whom in a block, follows from what was measured of the stars (`digests`), not from their rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from ..errors import bad_input
from ..numerics.compress import STARS
from ..process import settings_as_usual
from .digests import digests, in_order
from .stars import Stars

Usable = Callable[[Stars], np.ndarray]
"""Which of N stars (N,) are trained on."""

BLOCK = 65_536
"""Stars in the memory of the device at a time, at most, or 16 batches."""
OPEN = 16
"""Places of the table from which a block is put together, at least, where it has so many pieces."""
NUMBERS = 2**22
"""Measured numbers in the memory of the device at a time, at most: fewer stars where each has thousands, as in
spectra."""
HELD_OUT, MOST_HELD_OUT = 0.1, 8192
"""Share and greatest number of the stars that a member does not train on."""

Range = tuple[int, int]


class Reading(Protocol):
    """What a model does with its training stars."""

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that it reads."""

    def check(self, stars: Stars) -> None:
        """Refuse stars that do not fit."""

    def arrays(self, stars: Stars) -> Any:
        """What its training takes of them: a pytree of arrays with a row per star."""


R = TypeVar("R", bound=Reading)


class Rows(ABC, Generic[R]):
    """Training stars as the `arrays` of a model, which is bound to the sample `stars`; `n` in all.

    usable (n,): the stars that say anything. digests (n,): of what was measured of each. pieces: ranges of rows that
    are read from their beginning to their end.
    """

    model: R
    stars: Stars
    n: int
    usable: np.ndarray
    digests: np.ndarray
    pieces: list[Range]
    width: int = 1
    """Numbers of a star."""
    whole: Any = None
    """`model.arrays` of all rows, if they are in memory."""

    def told(self, ranges: list[Range]) -> tuple[np.ndarray, np.ndarray]:
        """The usable rows (k,) of some ranges, in an order that follows from their digests, so that sums over them do
        not depend on that of the rows, or on blank ones; and their places among all the rows of these ranges."""
        rows = np.concatenate([np.arange(*x) for x in ranges])
        at = np.flatnonzero(self.usable[rows])
        at = at[np.argsort(self.digests[rows[at]], kind="stable")]
        return rows[at], at

    @abstractmethod
    def take(self, ranges: list[Range], size: int) -> Any:
        """`model.arrays` of the rows `told` by some ranges, filled up to `size` with copies; of `some`, if none."""

    def some(self, size: int) -> Any:
        """`model.arrays` of as many copies of a star: for their shapes, where no star counts."""
        return jax.tree.map(np.asarray, self.model.arrays(self.stars[np.zeros(size, int)]))

    @abstractmethod
    def held_out(self, index: np.ndarray) -> Any:
        """`model.arrays` of single rows (...,) of `split`."""


class RowsInMemory(Rows[R]):
    """Rows of stars in memory."""

    def __init__(self, model: R, stars: Stars, usable: np.ndarray | None = None, sample: Stars | None = None):
        self.model, self.all, self.n = model, stars, len(stars)
        self.stars = stars if sample is None else sample
        self.usable = np.ones(self.n, bool) if usable is None else usable
        self.pieces, self.width, self.digests = pieces_of(self.n), width_of(stars), digests(stars, model.blocks)

    @cached_property
    def whole(self) -> Any:  # type: ignore[override]
        return jax.tree.map(np.asarray, self.model.arrays(self.all))

    def take(self, ranges: list[Range], size: int) -> Any:
        return self.held_out(np.resize(self.told(ranges)[0], size))

    def held_out(self, index: np.ndarray) -> Any:
        return jax.tree.map(lambda x: x[index], self.whole)


def width_of(stars: Stars) -> int:
    """Measured numbers and errors of a star."""
    blocks = stars.blocks.values()
    return sum(np.size(x) for block in blocks for x in (block.value, block.error) if x is not None) // len(stars)


def at_once(most: int, width: int, numbers: int = NUMBERS) -> int:
    """Stars of so many numbers each in memory at a time."""
    return max(1, min(most, numbers // max(width, 1)))


def pieces_of(n: int, size: int = BLOCK // OPEN) -> list[Range]:
    return [(first, min(first + size, n)) for first in range(0, n, size)]


class DeviceBlock(NamedTuple):
    """Stars held on the device at a time, cut into minibatches for each ensemble member.

    data: arrays of the stars. order (E, S, B): the rows of every member's batches; counts (E, S, B): which of them do.
    steps: of S, how many are to be done. last: of its epoch.
    """

    epoch: int
    number: int
    last: bool
    data: Any
    order: np.ndarray
    counts: np.ndarray
    steps: int


@dataclass(frozen=True)
class Batches:
    """Which stars each of `members` trains on, and in what order.

    Args:
        size: stars per step. passes: over a block before the next, where there are few stars.
        often (E, n): how many times a star counts for each member; out (E, n_out): the stars held out.
        place (n,): of a star in the order that follows from seed and digests.
        block: stars of a block, at most.
    """

    rows: Rows
    seed: int
    size: int
    passes: int
    often: np.ndarray
    out: np.ndarray
    place: np.ndarray
    block: int

    @classmethod
    def of(
        cls, rows: Rows, members: int, seed: int, batch_size: int | None, *, steps: int = 0, bootstrap: bool = False,
        hold_out: float = HELD_OUT,
    ) -> Batches:  # fmt: skip
        """bootstrap: members count stars as often as resamples with replacement do. steps: of an epoch, about, at
        least. batch_size: None: 256, or fewer of few stars. hold_out: which share of the stars."""
        order = in_order(rows.digests, seed)
        place = np.argsort(order)
        often = np.repeat(rows.usable[None].astype(np.uint8), members, 0)
        usable = order[rows.usable[order]]
        out = split(usable, members, rows.width, hold_out) if hold_out else np.zeros((members, 0), int)
        np.put_along_axis(often, out, 0, 1)
        if bootstrap:
            rng = np.random.default_rng([seed, 32416190071])
            for own in often:
                kept = usable[own[usable] > 0]
                own[:] = np.bincount(kept[rng.integers(len(kept), size=len(kept))], minlength=rows.n)
        n_kept = int(often.sum(1, dtype=int).max())
        size = min(batch_size or min(256, max(16, n_kept // 12)), n_kept)
        passes = max(1, round(steps * size / n_kept))
        return cls(rows, seed, size, passes, often, out, place, max(size, at_once(max(BLOCK, 16 * size), rows.width)))

    @property
    def n(self) -> int:
        """Stars that say anything, held out or not."""
        return int(self.rows.usable.sum())

    def plan(self, epoch: int) -> list[list[Range]]:
        """The ranges of rows of every block of an epoch."""
        if self.rows.n <= self.block:
            return [[(0, self.rows.n)]]
        rng = np.random.default_rng([self.seed, 15485863, epoch])
        share, pieces = max(1, self.block // OPEN), self.rows.pieces
        waiting = [pieces[i] for i in rng.permutation(len(pieces))]
        at_hand: list[Range] = []
        blocks: list[list[Range]] = [[]]
        room = self.block
        while waiting or at_hand:
            while waiting and len(at_hand) < OPEN:
                at_hand.append(waiting.pop())
            i = int(rng.integers(len(at_hand)))
            first, stop = at_hand[i]
            cut = min(first + share, stop)
            at_hand[i : i + 1] = [(cut, stop)] if cut < stop else []
            if cut - first > room:
                blocks.append([])
                room = self.block
            blocks[-1].append((first, cut))
            room -= cut - first
        return blocks

    def entries(self, ranges: list[Range]) -> np.ndarray:
        """(E,): how many stars, as often as they count, each member has in a block."""
        return np.sum([self.often[:, slice(*x)].sum(1, dtype=int) for x in ranges], 0)

    def steps_of(self, entries: np.ndarray) -> int:
        return int(-(-self.passes * entries.max() // self.size))

    def extent(self, epoch: int) -> tuple[int, np.ndarray]:
        """Steps of an epoch, and (E,) the stars per step: over these every batch's sum is divided, so that the mean of
        the batches of an epoch is that of the stars, although not all batches are of one size."""
        each = [self.entries(ranges) for ranges in self.plan(epoch)]
        steps = sum(map(self.steps_of, each))
        return steps, self.passes * np.sum(each, 0) / max(steps, 1)

    def order(self, epoch: int, index: int, ranges: list[Range]) -> tuple[np.ndarray, np.ndarray, int]:
        """order and counts (E, S, B) of a block, S the same for all full blocks; and its number of steps."""
        rng = np.random.default_rng([self.seed, 67867967, epoch, index])
        rows, _ = self.rows.told(ranges)
        often, following = self.often[:, rows], np.argsort(self.place[rows]).astype(np.int32)
        steps = self.steps_of(often.sum(1, dtype=int))
        room = min(self.block, self.rows.n)
        most = max(steps, -(-self.passes * int(room + 6 * np.sqrt(room)) // self.size))
        order = np.zeros((len(often), most, self.size), np.int32)
        counts = np.zeros(order.shape, bool)
        for mine, own, mask in zip(often, order, counts, strict=True):
            entries = np.repeat(following, mine[following])
            turns = np.concatenate([rng.permutation(entries) for _ in range(self.passes)])
            filled = np.diff(np.linspace(0, len(turns), steps + 1).astype(int))
            mask[:steps] = np.arange(self.size) < filled[:, None]
            own[mask] = turns
        return order, counts, steps

    def blocks(self, epoch: int = 0, index: int = 0) -> Generator[DeviceBlock]:
        """Block after block, epoch after epoch, from one of them on; read ahead by one."""
        return ahead(self._blocks(epoch, index))

    def _blocks(self, epoch: int, index: int) -> Iterator[DeviceBlock]:
        before: tuple[list[Range], Any] = ([], None)
        while True:
            plan = self.plan(epoch)
            for i in range(index, len(plan)):
                if plan[i] != before[0]:
                    before = plan[i], self.rows.take(plan[i], min(self.block, self.rows.n))
                yield DeviceBlock(epoch, i, i + 1 == len(plan), before[1], *self.order(epoch, i, plan[i]))
            epoch, index = epoch + 1, 0


@dataclass(frozen=True)
class Passes:
    """All usable stars once an epoch, in the order of the table; a block is one batch."""

    rows: Rows

    @property
    def n(self) -> int:
        return int(self.rows.usable.sum())

    @property
    def size(self) -> int:
        """Stars of a block, filled up to a multiple of `STARS`."""
        most = at_once(BLOCK, self.rows.width)
        most = min(max(most - most % STARS, STARS), self.n)
        return most + -most % STARS

    def plan(self) -> list[Range]:
        """The range of rows of every block, each with `size` usable rows, but the last."""
        stops = np.flatnonzero(self.rows.usable)[self.size - 1 :: self.size] + 1
        ends = [*stops[: -1 if self.n % self.size == 0 else None].tolist(), self.rows.n]
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def blocks(self, epoch: int = 0, index: int = 0) -> Generator[DeviceBlock]:
        """Block after block, pass after pass, from one of them on; read ahead by one."""
        return ahead(self._blocks(epoch, index))

    def _blocks(self, epoch: int, index: int) -> Iterator[DeviceBlock]:
        plan = self.plan()
        order = np.arange(self.size, dtype=np.int32)[None, None]
        while True:
            for i in range(index, len(plan)):
                counts = order < self.rows.usable[slice(*plan[i])].sum()
                yield DeviceBlock(epoch, i, i + 1 == len(plan), self.rows.take([plan[i]], self.size), order, counts, 1)
            epoch, index = epoch + 1, 0


def split(order: np.ndarray, members: int, width: int = 1, share: float = HELD_OUT) -> np.ndarray:
    """Held-out rows (E, n_out) of every member, of rows in random order: of each others, the first of them, as long as
    there are any."""
    n_out = held_out_of(len(order), width, share)
    return np.stack([np.roll(order, -e * n_out)[:n_out] for e in range(members)])


def held_out_of(n: int, width: int = 1, share: float = HELD_OUT) -> int:
    """How many of n stars a member holds out."""
    return max(1, min(int(share * n), n // 2, at_once(MOST_HELD_OUT, width)))


def ahead(items: Iterator[Any]) -> Generator[Any]:
    """The items of an iterator, the next one made while the last one is at use."""

    def following() -> Any:
        with settings_as_usual():
            return next(items, None)

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(following)
        while (item := coming.result()) is not None:
            coming = reader.submit(following)
            yield item


def fold_of(n_star: int, folds: int, seed: int) -> np.ndarray:
    """The fold of each star, balanced and shuffled by seed."""
    if not 2 <= folds <= n_star:
        raise bad_input(f"folds={folds} for {n_star} stars", "at least 2 folds, and a star for each")
    return np.random.default_rng([seed, 2718]).permutation(n_star) % folds
