"""Progress bars: shown on terminals and in notebooks, silent elsewhere unless asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm

PARTS = 100
"""Calls that a run of many steps is made in, about."""
COMPILING = "compiling (first call only)"
_moved: set[str] = set()
"""What has moved in this process, and is compiled."""


def bar(total: int | None, description: str, show: bool | None) -> Bar:
    """A tqdm bar, of what is being done: "training step, fold 3 of 5"; show=None: where somebody may be watching."""
    hidden = not (watched() if show is None else show)
    return Bar(total=total, desc=description, disable=hidden, leave=False, dynamic_ncols=True, mininterval=0.3)


def watched() -> bool:
    """Whether stderr is a terminal, or the code runs in a notebook."""
    shell = sys.modules.get("IPython")
    notebook = shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None
    return notebook or bool(sys.stderr is not None and sys.stderr.isatty())


def stretches(total: int) -> Iterator[tuple[int, int]]:
    """Steps from `begin` to `end` of so many, in calls between which a bar moves."""
    at_once = max(1, total // PARTS)
    for begin in range(0, total, at_once):
        yield begin, min(begin + at_once, total)


class Bar(tqdm):
    """A bar that says, until it moves, what it waits for."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.what = settings["desc"].split(",")[0]
        if not self.disable and self.what not in _moved:
            self.set_postfix_str(COMPILING)

    def update(self, n: float | None = 1) -> bool | None:
        if not self.disable and n and self.what not in _moved:
            _moved.add(self.what)
            self.set_postfix_str("", refresh=False)
        return super().update(n)
