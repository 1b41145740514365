"""All devices that JAX sees: minibatches are shared out among them, batches of the test step go to one each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def shared_out(data: Any, *per_star: np.ndarray) -> tuple[Any, ...]:
    """`data` on every device, and arrays (..., B) of a minibatch with a part of their last axis on each.

    B is filled up with zeros to a multiple of the number of devices. One device: on that.
    """
    n = len(jax.devices())
    if n == 1:
        return jax.tree.map(jnp.asarray, (data, *per_star))
    mesh = jax.make_mesh((n,), ("star",), axis_types=(AxisType.Auto,))
    cast = jax.tree.map(lambda x: np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype)), data)
    whole = jax.device_put(cast, NamedSharding(mesh, PartitionSpec()))
    filled = [np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % n)]) for x in per_star]
    parts = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(*[None] * (x.ndim - 1), "star"))) for x in filled]
    return whole, *parts


def one_each(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """`function` of every item, in order, each on one device: as many at a time as there are devices."""
    devices = jax.devices()
    if len(devices) == 1:
        yield from map(function, items)
        return
    wide = bool(jax.config.read("jax_enable_x64"))

    def on(device: Any, item: Any) -> Any:
        with jax.enable_x64(wide), jax.default_device(device):
            return function(item)

    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(len(devices)) as pool:
        for i, item in enumerate(items):
            if len(waiting) == len(devices):
                yield waiting.popleft().result()
            waiting.append(pool.submit(on, devices[i % len(devices)], item))
        while waiting:
            yield waiting.popleft().result()
