"""Values that hold arrays, compared and hashed by content, so that what JAX compiles for one serves its equals."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jax
import numpy as np
from numpyro.distributions import Distribution


class ByValue:
    """Mixin for frozen dataclasses that hold arrays, mappings or distributions: compare and hash by content.

    Subclasses keep this comparison, dataclasses or not. A field with `compare=False` is left out. Functions, and
    objects that cannot be hashed, are compared by identity.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("__eq__", "__hash__"):  # where the dataclass decorator would put its own
            if name not in vars(cls):
                setattr(cls, name, vars(ByValue)[name])

    @cached_property
    def _value(self) -> Any:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return tuple(hashable(getattr(self, x.name)) for x in fields if x.compare)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return type(other) is type(self) and self._value == other._value  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((type(self), self._value))


class _Same:
    """An object that equals itself alone."""

    def __init__(self, x: Any):
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.x is other.x

    def __hash__(self) -> int:
        return id(self.x)


def hashable(x: Any) -> Any:
    """What stands for x in comparisons: equal, with equal hashes, for equal content."""
    if isinstance(x, np.ndarray | jax.Array):
        array = np.asarray(x)
        return array.shape, array.dtype.str, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()
    if isinstance(x, list | tuple):
        return tuple(map(hashable, x))
    if isinstance(x, Mapping):
        return frozenset((key, hashable(value)) for key, value in x.items())
    if isinstance(x, Distribution):
        leaves, structure = jax.tree.flatten(x)
        return _or_same(x, (type(x), x.batch_shape, x.event_shape, structure, hashable(leaves)))
    return _or_same(x, x)


def _or_same(x: Any, value: Any) -> Any:
    """The value, or where it has no hash x itself."""
    try:
        hash(value)
    except TypeError:
        return _Same(x)
    return value
