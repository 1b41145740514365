"""Smooth functions of a few variables with one flat vector of weights: residual networks and polynomials.

    f(x) = W x + b + V h_depth,   h_1 = tanh(W_1 x + b_1),   h_{i+1} = P_{i+1} h_i + tanh(W_{i+1} h_i + b_{i+1})

P_i is 1 between layers of equal width, and learned between others. Inputs and outputs are meant to be scaled to about
unit spread. The weights' Normal prior has the sd `prior_sd`; smooth functions have small weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .features import Monomials
from .linalg import Array


class Function(Protocol):
    """What a model asks of its unknown function."""

    @property
    def n_in(self) -> int: ...

    @property
    def n_out(self) -> int: ...

    @property
    def size(self) -> int:
        """P, the number of weights."""

    @property
    def linear(self) -> int:
        """So many of the weights, the first, are coefficients of what f is linear in."""

    @property
    def is_constant(self) -> np.ndarray:
        """(P,): the weights that are added to f(x) wherever x is."""

    @property
    def prior_sd(self) -> np.ndarray:
        """(P,)"""

    def initial(self, seed: int) -> np.ndarray:
        """(P,) weights to start an optimiser from."""

    def __call__(self, weights: Array, x: Array, /) -> Array:
        """f(x) (..., n_out) of weights (P,) and x (..., n_in)."""

    def features(self, weights: Array, x: Array, /) -> Array:
        """phi (..., K), of which f(x) = phi @ weights[:linear].reshape(K, n_out)."""

    def ensemble(self, weights: Array, /) -> Any:
        """Arrays of one function that is the mean of those of weights (E, P)."""

    def mean(self, ensemble: Any, x: Array, /) -> Array:
        """The mean of f(x) (N, n_out) over an `ensemble`, at x (N, n_in)."""


@dataclass(frozen=True)
class Network:
    """A residual network of `depth` hidden layers, beside a linear function; width: their units, one number for all
    or one for each."""

    n_in: int
    n_out: int
    width: int | tuple[int, ...] = 32
    depth: int = 2

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """(depth,)"""
        return (self.width,) * self.depth if isinstance(self.width, int) else self.width

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"W": (self.n_in, self.n_out), "b": (self.n_out,)}
        if self.widths:
            shapes["V"] = (self.widths[-1], self.n_out)
        for i, (before, width) in enumerate(zip((self.n_in, *self.widths), self.widths, strict=False)):
            shapes[f"W{i}"], shapes[f"b{i}"] = (before, width), (width,)
            if i and before != width:
                shapes[f"P{i}"] = (before, width)
        return shapes

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for shape in self._shapes.values())

    @property
    def linear(self) -> int:
        return (self.n_in + 1 + (self.widths[-1] if self.widths else 0)) * self.n_out

    @property
    def is_constant(self) -> np.ndarray:
        return np.arange(self.size) // self.n_out == self.n_in

    @cached_property
    def prior_sd(self) -> np.ndarray:
        """2 for the linear function, 1 for biases, 2 / sqrt(number of inputs) for the other layers."""
        sd = {"W": 2.0, "b": 2.0}
        return np.concatenate([
            np.full(int(np.prod(shape)), sd.get(name, 1.0 if name[0] == "b" else 2.0 / np.sqrt(shape[0])))
            for name, shape in self._shapes.items()
        ])  # fmt: skip

    def initial(self, seed: int) -> np.ndarray:
        """Half as wide as the prior, and nothing of the network in the outputs."""
        start = 0.5 * self.prior_sd * np.random.default_rng([seed, 104729]).standard_normal(self.size)
        start[: self.linear] = 0.0
        return start

    def dropped(self, weights: Array, key: Array, rate: float) -> Array:
        """Weights of the network without a share `rate` of its hidden units, others for another key.

        The next layer, or V, takes 0 for those, and 1 / (1 - rate) times the others; shortcuts keep all. All x see the
        same units, so that there are slopes to speak of.
        """
        keys = jax.random.split(key, len(self.widths))
        kept = [jax.random.bernoulli(k, 1 - rate, (w,)) / (1 - rate) for k, w in zip(keys, self.widths, strict=True)]
        takes = {f"W{i}": i - 1 for i in range(1, len(kept))} | {"V": -1}
        factors = [
            jnp.broadcast_to(kept[takes[name]][:, None] if name in takes else 1.0, shape).ravel()
            for name, shape in self._shapes.items()
        ]
        return weights * jnp.concatenate(factors).astype(weights.dtype)

    def _parts(self, weights: Array) -> dict[str, Array]:
        parts, start = {}, 0
        for name, shape in self._shapes.items():
            stop = start + int(np.prod(shape))
            parts[name] = weights[..., start:stop].reshape(*weights.shape[:-1], *shape)
            start = stop
        return parts

    def __call__(self, weights: Array, x: Array) -> Array:
        parts = self._parts(weights)
        out = x @ parts["W"] + parts["b"]
        return out + self._hidden(parts, x) @ parts["V"] if self.widths else out

    def _hidden(self, parts: dict[str, Array], x: Array) -> Array:
        """The last layer (..., width)."""
        hidden = jnp.tanh(x @ parts["W0"] + parts["b0"])
        for i in range(1, len(self.widths)):
            shortcut = hidden @ parts[f"P{i}"] if f"P{i}" in parts else hidden
            hidden = shortcut + jnp.tanh(hidden @ parts[f"W{i}"] + parts[f"b{i}"])
        return hidden

    def features(self, weights: Array, x: Array) -> Array:
        hidden = [self._hidden(self._parts(weights), x)] if self.widths else []
        return jnp.concatenate([x, jnp.ones_like(x[..., :1]), *hidden], -1)

    def ensemble(self, weights: Array) -> dict[str, Array]:
        """Layers of all members side by side; the hidden ones, of which each member sees its own, stacked."""
        n, parts = len(weights), self._parts(weights)
        out = {"W": parts["W"].mean(0), "b": parts["b"].mean(0)}
        if not self.widths:
            return out
        out["V"] = parts["V"].reshape(-1, self.n_out) / n
        out["W0"] = parts["W0"].swapaxes(0, 1).reshape(self.n_in, -1)
        out |= {name: x for name, x in parts.items() if name[0] in "WP" and name not in out}
        return out | {name: x.reshape(-1) for name, x in parts.items() if name[0] == "b" and name not in out}

    def mean(self, ensemble: dict[str, Array], x: Array) -> Array:
        """Few products, and the tanh of all members at once: twice as fast as one by one."""
        out = x @ ensemble["W"] + ensemble["b"]
        if not self.widths:
            return out

        def own(hidden: Array, layers: Array) -> Array:
            each = jnp.split(hidden, len(layers), -1)
            return jnp.concatenate([h @ w for h, w in zip(each, layers, strict=True)], -1)

        hidden = jnp.tanh(x @ ensemble["W0"] + ensemble["b0"])
        for i in range(1, len(self.widths)):
            shortcut = own(hidden, ensemble[f"P{i}"]) if f"P{i}" in ensemble else hidden
            hidden = shortcut + jnp.tanh(own(hidden, ensemble[f"W{i}"]) + ensemble[f"b{i}"])
        return out + hidden @ ensemble["V"]


@dataclass(frozen=True)
class Polynomial:
    """All monomials of x up to `order`, a coefficient for each and every output."""

    n_in: int
    n_out: int
    order: int = 2

    @cached_property
    def monomials(self) -> Monomials:
        return Monomials.up_to(self.order, self.n_in)

    @property
    def size(self) -> int:
        return self.monomials.size * self.n_out

    @property
    def linear(self) -> int:
        return self.size

    @property
    def is_constant(self) -> np.ndarray:
        return np.arange(self.size) < self.n_out

    @cached_property
    def prior_sd(self) -> np.ndarray:
        return np.full(self.size, 2.0)

    def initial(self, seed: int) -> np.ndarray:
        return np.zeros(self.size)

    def __call__(self, weights: Array, x: Array) -> Array:
        return self.monomials(x) @ weights.reshape(self.monomials.size, self.n_out)

    def features(self, weights: Array, x: Array) -> Array:
        return self.monomials(x)

    def ensemble(self, weights: Array) -> Array:
        return weights.mean(0)

    def mean(self, ensemble: Array, x: Array) -> Array:
        return self(ensemble, x)
