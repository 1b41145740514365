"""The process that this package runs in: what is set there for other code, and forks, must not reach the code here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from .cache import in_use
from .errors import bad_input

AS_USUAL: dict[str, tuple[Any, Any]] = {
    "jax_debug_nans": (jax.debug_nans, False),
    "jax_debug_infs": (jax.debug_infs, False),
    "jax_numpy_rank_promotion": (jax.numpy_rank_promotion, "allow"),
    "jax_numpy_dtype_promotion": (jax.numpy_dtype_promotion, "standard"),
    "jax_debug_key_reuse": (jax.debug_key_reuse, False),
    "jax_default_matmul_precision": (jax.default_matmul_precision, None),
    "jax_default_prng_impl": (jax.default_prng_impl, "threefry2x32"),
}
"""Settings of JAX that stop code which is right (NaN marks what is missing, shapes are broadcast on purpose, NumPyro
uses keys again), or that change its numbers: the digits of products, and the draws that belong to a seed."""
GUARDS = ("host_to_device", "device_to_device", "device_to_host")
NUMPY = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
"""What NumPy does by default where numbers overflow, underflow or are none."""

_forked = False


@contextlib.contextmanager
def settings_as_usual() -> Iterator[None]:
    """JAX and NumPy as they are by default, in this thread, for as long as the body runs; compiled programs are kept.

    Raises:
        BadInput: in a child of a process that forked while JAX was at work in it, where JAX would wait for ever.
    """
    if _forked:
        raise bad_input(
            "a process that was forked after JAX had begun to work", "a process of its own",
            "multiprocessing or a pool with the start method 'fork', in which JAX hangs",
            "multiprocessing.get_context('spawn').Pool(...)",
        )  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, (setting, usual) in AS_USUAL.items():
            if getattr(jax.config, name) != usual:
                stack.enter_context(setting(usual))
        if any(getattr(jax.config, f"jax_transfer_guard_{way}") not in (None, "allow") for way in GUARDS):
            stack.enter_context(jax.transfer_guard("allow"))
        if odd := {key: NUMPY[key] for key, value in np.geterr().items() if value not in ("ignore", NUMPY[key])}:
            stack.enter_context(np.errstate(**odd))  # type: ignore[arg-type]
        stack.enter_context(in_use())
        yield


def _in_child() -> None:
    global _forked
    _forked = _jax_has_begun()


def _jax_has_begun() -> bool:
    try:
        from jax._src.xla_bridge import backends_are_initialized
    except ImportError:  # pragma: no cover - of another version of JAX: then every fork counts
        return True
    return bool(backends_are_initialized())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
