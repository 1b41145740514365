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


class _OneThread:
    """One BLAS thread from when the first comes until the last has left, in whatever threads these run."""

    def __init__(self) -> None:
        self.lock, self.inside = threading.Lock(), 0
        self.usual: list[dict[str, Any]] = []

    def enter(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.usual = [x for x in _libraries().info() if x["user_api"] == "blas"]
                _libraries().limit(limits=1, user_api="blas")
            self.inside += 1

    def leave(self) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                _libraries().limit(limits=self.usual)


_one = _OneThread()


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
    if not _one.inside:
        return nullcontext()
    return _libraries().limit(limits=_one.usual if numbers >= SHARED else 1, user_api="blas")


@functools.cache
def _libraries() -> ThreadpoolController:
    """Of the process; looking for them takes longer than most of what is done with one thread."""
    return ThreadpoolController()
