"""Long work that is stopped and taken up again: the state in a file, and of what it is the state.

A checkpoint is a NumPy archive of plain arrays, written beside and moved into place; the one before is kept, and read
if the last one is torn. Plain arrays: loading runs no code.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ..devices import writes
from ..errors import bad_input, warn
from .whole import in_one_piece, locked, refuse_unwritable

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
            name = jax.tree_util.keystr(path)
            if name not in self.arrays or self.arrays[name].ndim != np.ndim(_plain(leaf)):
                raise bad_input(
                    f"a checkpoint whose {name} is not that of this work", "the state of the same version",
                    "another version of bayeslabels wrote it", "another file name, or remove this one",
                )  # fmt: skip
            x = self.arrays[name]
            if _is_key(leaf):
                leaves.append(jax.random.wrap_key_data(jax.numpy.asarray(x)))
            else:
                leaves.append(x if isinstance(leaf, np.ndarray) else jax.numpy.asarray(x))
        return jax.tree_util.tree_unflatten(structure, leaves)


@dataclass
class Checkpoint:
    """The file at `path` (.npz), written every so many seconds of work that `notes` describe.

    Raises:
        BadInput: of a file that holds the state of other work, saying how it differs; of a file that is no checkpoint,
            which is never replaced; of a path that cannot be written.
    """

    path: Path
    every: float
    notes: Mapping[str, Any]
    last: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        given = Path(self.path)
        self.path = Path(os.path.realpath(given))  # through links, which stay
        self.notes = json.loads(json.dumps(self.notes))
        if given.suffix != ".npz":
            raise bad_input(f"checkpoint={str(given)!r}", "a file name that ends in .npz")
        if writes():
            refuse_unwritable(given, "checkpoint")
        for path in (self.path, self.before):
            if path.exists() and not _is_checkpoint(path):
                raise bad_input(
                    f"checkpoint={str(given)!r}, but {path} is no checkpoint", "a name that is free, or a checkpoint",
                    "a file of yours of that name, which would be replaced", 'checkpoint="training.checkpoint.npz"',
                )  # fmt: skip

    def alone(self) -> AbstractContextManager[None]:
        """Keep other processes away from the file for as long as the work takes."""
        if not writes():
            return nullcontext()
        return locked(self.path.with_name(f".{self.path.name}.lock"), f"the checkpoint {self.path}")

    @property
    def before(self) -> Path:
        """The checkpoint before the last."""
        return self.path.with_suffix(".previous.npz")

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.every

    def save(self, state: Any, place: tuple[int, ...]) -> None:
        if not writes():
            return
        leaves = jax.tree_util.tree_flatten_with_path(state)[0]
        arrays = {jax.tree_util.keystr(path): np.asarray(_plain(leaf)) for path, leaf in leaves}
        arrays[PLACE] = np.array(place)
        notes = np.array(json.dumps({"work": self.notes, "arrays": sorted(arrays), "sha256": _digest(arrays)}))
        with in_one_piece(self.path) as part:
            with open(part, "wb") as file:
                np.savez(file, **{NOTES: notes, **arrays})  # type: ignore[arg-type]
            if self.path.exists():
                os.replace(self.path, self.before)
        self.last = time.monotonic()

    def load(self) -> Found | None:
        """The last state that is whole; None where there is none as yet."""
        torn: list[str] = []
        for path in (self.path, self.before):
            try:
                with open(path, "rb") as file, np.load(file) as stored:
                    arrays = {name: stored[name] for name in stored.files}
                notes = json.loads(str(arrays.pop(NOTES)))
                if sorted(arrays) != notes["arrays"] or _digest(arrays) != notes["sha256"]:
                    raise ValueError("its arrays are not those that were written")
                place, work = arrays.pop(PLACE), dict(notes["work"])
            except FileNotFoundError:
                continue
            except Exception:  # whatever a damaged archive makes zipfile and NumPy stumble over
                torn.append(str(path))
                continue
            refuse_other(work, self.notes, f"the checkpoint {path}", "another file name, or remove this one")
            return Found(arrays, tuple(map(int, place)))
        if torn:
            warn(f"{' and '.join(torn)} cannot be read: the work starts again")
        return None


def _is_checkpoint(path: Path) -> bool:
    """Whether a file has the notes that checkpoints begin with, be it whole or not; an empty one holds nothing."""
    with open(path, "rb") as file:
        head = file.read(30 + len(NOTES))
    if not head or head.endswith(NOTES.encode()):
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return f"{NOTES}.npy" in archive.namelist()
    except Exception:  # whatever another kind of file makes zipfile stumble over
        return False


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """Of names, types, shapes and numbers."""
    out = hashlib.sha256()
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        out.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
        out.update(x.tobytes())
    return out.hexdigest()


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


def _plain(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
