"""Long work that is stopped and taken up again: the state in a file, and of what it is the state.

A checkpoint is a NumPy archive of plain arrays, written beside and moved into place; the one before is kept, and read
if the last one is torn. Plain arrays: loading runs no code.
"""

from __future__ import annotations

import json
import os
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from .devices import writes
from .errors import bad_input

NOTES, PLACE = "__notes__", "__place__"


class Found(NamedTuple):
    """What a checkpoint holds: arrays by name, and where in the work it was."""

    arrays: dict[str, np.ndarray]
    place: tuple[int, ...]

    def restore(self, like: Any) -> Any:
        """A pytree of the same structure as `like`."""
        named, structure = jax.tree_util.tree_flatten_with_path(like)
        leaves = []
        for path, leaf in named:
            x = self.arrays[jax.tree_util.keystr(path)]
            if _is_key(leaf):
                leaves.append(jax.random.wrap_key_data(jax.numpy.asarray(x)))
            else:
                leaves.append(x if isinstance(leaf, np.ndarray) else jax.numpy.asarray(x))
        return jax.tree_util.tree_unflatten(structure, leaves)


@dataclass
class Checkpoint:
    """The file at `path` (.npz), written every so many seconds of work that `notes` describe.

    Raises:
        BadInput: of a file that holds the state of other work, saying how it differs; of a path that cannot be written.
    """

    path: Path
    every: float
    notes: Mapping[str, Any]
    last: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        self.notes = json.loads(json.dumps(self.notes))
        if self.path.suffix != ".npz":
            raise bad_input(f"checkpoint={str(self.path)!r}", "a file name that ends in .npz")
        if not self.path.parent.is_dir() or not os.access(self.path.parent, os.W_OK) or self.path.is_dir():
            raise bad_input(f"checkpoint={str(self.path)!r}", "a file in a folder that can be written")

    @property
    def before(self) -> Path:
        """The checkpoint before the last."""
        return self.path.with_suffix(".previous.npz")

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.every

    def save(self, state: Any, place: tuple[int, ...]) -> None:
        if not writes():
            return
        arrays = {NOTES: np.array(json.dumps(self.notes)), PLACE: np.array(place)}
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
            arrays[jax.tree_util.keystr(path)] = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        part = self.path.with_suffix(".part.npz")
        with open(part, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        if self.path.exists():
            os.replace(self.path, self.before)
        os.replace(part, self.path)
        self.last = time.monotonic()

    def load(self) -> Found | None:
        """The last state that is whole; None where there is none as yet."""
        for path in (self.path, self.before):
            try:
                with open(path, "rb") as file, np.load(file) as stored:
                    arrays = {name: stored[name] for name in stored.files}
                notes, place = json.loads(str(arrays.pop(NOTES))), arrays.pop(PLACE)
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                continue
            refuse_other(notes, self.notes, f"the checkpoint {path}", "another file name, or remove this one")
            return Found(arrays, tuple(map(int, place)))
        return None


def refuse_other(before: Mapping[str, Any], now: Mapping[str, Any], what: str, fix: str) -> None:
    """Refuse to go on with what was begun with other notes."""
    if odd := differences(before, now):
        raise bad_input(f"{what} of another run ({odd})", "the same model, source and settings", fix=fix)


def differences(before: Any, now: Any, name: str = "") -> str:
    """ "model.width was 32, is 16; seed was 0, is 1"; "" where nothing differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        both = [(k, before.get(k), now.get(k)) for k in dict.fromkeys([*now, *before])]
        return "; ".join(x for k, a, b in both if (x := differences(a, b, f"{name}.{k}" if name else str(k))))
    return "" if before == now else f"{name} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "..."


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
