"""`jax.jit` for functions of this package: the same numbers, compiled in half the time where XLA can be told to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

try:
    from jax._src.core import trace_state_clean as _outermost
except ImportError:  # pragma: no cover - of another version of JAX: then nothing is told to XLA

    def _outermost() -> bool:
        return False


QUICKLY: dict[str, bool] | None = None
"""What XLA is told of a program for the CPU. Up to JAX 0.10 it fuses loops by way of MLIR, which takes longer than all
the rest of compiling, and makes the programs here no faster."""
if (0, 8) <= jax.__version_info__[:2] < (0, 11):
    QUICKLY = {"xla_cpu_use_fusion_emitters": False}


def jit(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
    """`jax.jit(function, **settings)`; what XLA is told counts where the call is not part of another program."""
    inside = jax.jit(function, **settings)
    if QUICKLY is None:
        return inside
    outermost = jax.jit(function, compiler_options=QUICKLY, **settings)

    @functools.wraps(function)
    def compiled(*args: Any, **kwargs: Any) -> Any:
        return (outermost if _outermost() else inside)(*args, **kwargs)

    return compiled
