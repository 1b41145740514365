"""How many threads the linear algebra of NumPy and SciPy takes.

For matrices of single stars and pixels a second thread spins more than it works: a training of 600 stars x 400 pixels
took 1.4 times the CPU time, and some of its small products twenty times. So there is one, but for matrices that are
large. The number of threads is the whole process's, whoever runs in it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from threadpoolctl import ThreadpoolController

SHARED = 5_000_000
"""Numbers in a matrix from which several threads are worth their while."""


class _Limit:
    """One BLAS thread, as the first of the user's threads asks that comes; while it is inside others go along, and what
    it found is back when it leaves."""

    def __init__(self) -> None:
        self.lock, self.depth = threading.Lock(), 0
        self.owner: threading.Thread | None = None
        self.limit: Any = None
        self.usual: list[dict[str, Any]] = []

    def enter(self) -> None:
        with self.lock:
            if self.owner is None:
                self.owner, self.usual = threading.current_thread(), _libraries().info()
                self.limit = _libraries().limit(limits=1, user_api="blas")
                self.limit.__enter__()
            self.depth += self.here

    def leave(self) -> None:
        with self.lock:
            self.depth -= self.here
            if self.here and self.depth == 0:
                self.owner = None
                self.limit.__exit__(None, None, None)

    @property
    def here(self) -> bool:
        """Whether this thread is the one that asked."""
        return self.owner is threading.current_thread()


_one = _Limit()


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra by one thread for as long as the body runs."""
    _one.enter()
    try:
        yield
    finally:
        _one.leave()


def threads_for(numbers: int) -> AbstractContextManager[Any]:
    """Within `one_thread`: as many threads as usual for a matrix of so many numbers if it is large, else one."""
    if not _one.here:
        return nullcontext()
    return _libraries().limit(limits=_one.usual if numbers >= SHARED else 1, user_api="blas")


@functools.cache
def _libraries() -> ThreadpoolController:
    """Of the process; looking for them takes longer than most of what is done with one thread."""
    return ThreadpoolController()
