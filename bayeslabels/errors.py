"""What goes wrong, said so that the reader can act on it."""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator

LOG = logging.getLogger("bayeslabels")
_advising = contextvars.ContextVar("_advising", default=True)


class BadInput(ValueError):
    """Data or settings that cannot mean what was intended.

    Example:
        >>> import bayeslabels as bl
        >>> try:
        ...     bl.Cannon(order=2).replace(order=-1)
        ... except bl.BadInput as problem:
        ...     print("refused")
        refused
    """


class CannotDo(TypeError):
    """A model and an inference that do not go together.

    Example:
        >>> from bayeslabels.errors import CannotDo
        >>> issubclass(CannotDo, Exception)
        True
    """


class NotConverged(RuntimeWarning):
    """A result that came back, but should not be trusted yet.

    Example:
        >>> import warnings
        >>> import bayeslabels as bl
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", bl.NotConverged)  # stop where a result should not be trusted
    """


class DoubtfulErrors(UserWarning):
    """Stated errors of the data that the data themselves refute.

    Example:
        >>> import warnings
        >>> from bayeslabels.errors import DoubtfulErrors
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", DoubtfulErrors)
    """


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
    n = names.count(name)
    if n == 1:
        return names.index(name)
    if n > 1:
        raise bad_input(f"{kind} {name!r}, which is there {n} times", "each name once")
    near = difflib.get_close_matches(name.lower(), (str(x).lower() for x in names), 3, 0.4)
    meant = [repr(x) for x in names if str(x).lower() in near]
    there = f"there are {', '.join(map(repr, names[:5]))}" if names else "there are none"
    raise BadInput(f"there is no {kind} {name!r}; " + (f"did you mean {' or '.join(meant[:3])}?" if meant else there))


def printable(text: str) -> str:
    """Without what would command a terminal: names and notes come from files."""
    return "".join(x if x.isprintable() or x in "\n\t" else repr(x)[1:-1] for x in text)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning at the line of the user's that called this package, however many of its functions lie between."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def advise(message: str, *parts: object) -> None:
    """A line in the log, with `parts` in the places of %s, about what the user may want to know of a step."""
    if _advising.get():
        LOG.warning(message, *parts)


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
    """Steps within a step of the user's, which need no advice of their own."""
    token = _advising.set(False)
    try:
        yield
    finally:
        _advising.reset(token)
