"""Progress bars: shown on a terminal, silent elsewhere unless asked for."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def bar(total: int | None, description: str, show: bool | None) -> Any:
    """A tqdm bar; show=None: only where stderr is a terminal."""
    hidden = not sys.stderr.isatty() if show is None else not show
    return tqdm(total=total, desc=description, disable=hidden, leave=False, dynamic_ncols=True, mininterval=0.3)
