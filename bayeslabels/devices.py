"""All devices that JAX sees: minibatches are shared out among them, batches of the test step go to one each.

With `jax.distributed` minibatches, and the stars of a pass, are shared out among the devices of all processes, each of
which reads the same table and does the same otherwise; the first alone writes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from .process import settings_as_usual


def shared_out(data: Any, *per_star: np.ndarray) -> tuple[Any, ...]:
    """`data` on every device, and arrays (..., B) of a minibatch with a part of their last axis on each.

    B is filled up with zeros to a multiple of the number of devices. One device: on that.
    """
    n = len(jax.devices())
    if n == 1:
        return jax.device_put((data, *per_star))
    filled = [np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % n)]) for x in per_star]
    parts = [jax.device_put(x, _placed(*[None] * (x.ndim - 1), "star")) for x in filled]
    return jax.tree.map(_everywhere, data), *parts


def of_all_processes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A compiled function of what `shared_out` returns and of other arrays, equal in all processes: so are its results,
    and every process has them whole."""

    def call(*arguments: Any) -> Any:
        if jax.process_count() == 1:
            return function(*arguments)
        return jax.tree.map(_here, function(*jax.tree.map(_everywhere, arguments)))

    return call


def writes() -> bool:
    """Whether this process is the one that writes files: of several the first."""
    return jax.process_index() == 0


def _placed(*axes: str | None) -> NamedSharding:
    """Over all devices of all processes."""
    mesh = jax.make_mesh((len(jax.devices()),), ("star",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec(*axes))


def _everywhere(x: Any) -> Any:
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return x
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_everywhere(jax.random.key_data(x)))
    x = np.asarray(x)
    return jax.device_put(x.astype(jax.dtypes.canonicalize_dtype(x.dtype)), _placed())


def _here(x: Any) -> Any:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_here(jax.random.key_data(x)))
    if not x.is_fully_replicated:
        x = jax.jit(lambda x: x, out_shardings=_placed())(x)
    return jnp.asarray(np.asarray(x.addressable_data(0)))


def summed(function: Callable[[Any, np.ndarray], Any], data: Any, counts: np.ndarray, multiple: int) -> Any:
    """function(data, counts), a pytree of sums over B stars (the first axis of both), with a part of the stars on each
    device of all processes, every one of which has the whole sum; parts are multiples of so many stars, the last filled
    up with some that do not count."""
    size = -(-len(counts) // len(jax.devices()))
    size += -size % multiple
    if size >= len(counts):
        return function(data, counts)

    def part(first: int) -> Any:
        rows = np.arange(first, first + size)
        at = np.minimum(rows, len(counts) - 1)
        found = function(jax.tree.map(lambda x: x[at], data), np.where(rows == at, counts[at], 0))
        return jax.tree.map(np.asarray, found)

    own = [i * size for i, device in enumerate(jax.devices()) if device.process_index == jax.process_index()]
    total, *rest = one_each(part, own)
    for one in rest:
        total = jax.tree.map(np.add, total, one)
    if jax.process_count() > 1:
        total = jax.tree.map(lambda x: np.asarray(x).sum(0), multihost_utils.process_allgather(total))
    return total


def one_each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`function` of every item, in order, each on one device of this process: as many at a time as there are."""
    devices = jax.local_devices()
    if len(devices) == 1:
        yield from map(function, items)
        return
    wide = bool(jax.config.read("jax_enable_x64"))

    def on(device: Any, item: Any) -> Any:
        with settings_as_usual(), jax.enable_x64(wide), jax.default_device(device):
            return function(item)

    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(len(devices)) as pool:
        for i, item in enumerate(items):
            if len(waiting) == len(devices):
                yield waiting.popleft().result()
            waiting.append(pool.submit(on, devices[i % len(devices)], item))
        while waiting:
            yield waiting.popleft().result()
