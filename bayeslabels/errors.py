"""What goes wrong, said so that the reader can act on it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """Data or settings that cannot mean what was intended."""


class CannotDo(TypeError):
    """A model and an inference that do not go together."""


class NotConverged(RuntimeWarning):
    """A result that came back, but should not be trusted yet."""


class DoubtfulErrors(UserWarning):
    """Stated errors of the data that the data themselves refute."""


def bad_input(got: str, expected: str, cause: str | None = None, fix: str | None = None) -> BadInput:
    """The exception for ``got`` where ``expected`` was needed, with likely cause and the line to write."""
    message = f"got {got}, expected {expected}"
    if cause:
        message += f"; likely cause: {cause}"
    if fix:
        message += f"; write: {fix}"
    return BadInput(message)


def index_of(name: str, names: Iterable[str], kind: str) -> int:
    """Where a name stands among names; refuses one that is not there once, naming those that are near."""
    names = list(names)
    if (n := names.count(name)) != 1:
        near = difflib.get_close_matches(name, map(str, names), 3, 0.4) or names[:5]
        raise bad_input(f"{kind} {name!r}, which is there {n} times", "one of " + ", ".join(map(repr, near)))
    return names.index(name)


def printable(text: str) -> str:
    """Without what would command a terminal: names and notes come from files."""
    return "".join(x if x.isprintable() or x in "\n\t" else repr(x)[1:-1] for x in text)
