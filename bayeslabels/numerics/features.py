"""The vectorizer phi(u) of the scaled labels: what any is asked for, and monomials."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .compiling import jit
from .compress import by_blocks
from .linalg import Array, module_of, outer_pairs, pack, pairs


class FeatureProducts(NamedTuple):
    """The Q products phi_j phi_k that differ, as places (Q,) among all pairs of `linalg.pairs`; and which of them every
    pair is, (K (K + 1) / 2,)."""

    places: np.ndarray
    which: np.ndarray


class Features(ABC):
    """phi: R^M -> R^K, in which a model of spectra is linear. Hashable, equal for equal functions, so that compiled
    code is reused; called with arrays of NumPy or JAX.

    A model takes them from its property `features`: a subclass of `Cannon` that returns others is trained by the same
    routes. Splines, radial functions and the like are a subclass of this, in a file of their own.
    """

    @property
    def linear(self) -> bool:
        """Whether phi is of first order, so that posteriors of the labels are Gaussian."""
        return False

    @property
    def closed(self) -> bool:
        """Whether every affine map of the labels maps the span of phi onto itself: then labels may move in training
        with the coefficients moving along (`powers` says how their volume scales), which is much faster."""
        return False

    @property
    @abstractmethod
    def size(self) -> int:
        """K"""

    @property
    @abstractmethod
    def n_label(self) -> int:
        """M"""

    @abstractmethod
    def names(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the features; '1' is the constant, and a label's own name that label."""

    @abstractmethod
    def __call__(self, u: Array) -> Array:
        """(..., M) -> (..., K)."""

    @abstractmethod
    def jacobian(self, u: Array) -> Array:
        """d phi_k / d u_m, (..., M) -> (..., K, M)."""

    def hessian(self, u: Array) -> Array:
        """d^2 phi_k / d u_m d u_j, (..., M) -> (..., K, M, M)."""
        flat = jnp.asarray(u).reshape(-1, self.n_label)
        second = jax.vmap(jax.jacfwd(self.jacobian))(flat)
        return second.reshape(*u.shape[:-1], *second.shape[1:])

    def moments(self, mean: Array, covariance: Array) -> tuple[Array, Array]:
        """E[phi] (..., K) and E[phi phi'] (..., K, K) for u ~ N(mean, covariance): of degree-5 cubature (Stroud 1971,
        E_n^{r^2} 5-3)."""
        return _by_cubature(self, mean, covariance)

    @property
    def products(self) -> FeatureProducts:
        """Which of the products phi_j phi_k are one function of u, so that sums over stars need it but once."""
        each = _index(range(self.size * (self.size + 1) // 2))
        return FeatureProducts(each, each)

    @property
    def involves(self) -> np.ndarray:
        """(K, M): which labels a feature depends on."""
        return np.ones((self.size, self.n_label), bool)

    @property
    def powers(self) -> np.ndarray:
        """(M,): ln |det T| of phi(a u) = T phi(u) per ln a of each label; where phi is `closed`."""
        raise NotImplementedError  # pragma: no cover - guarded by `closed`


@dataclasses.dataclass(frozen=True)
class Monomials(Features):
    """phi_k(u) = prod_m u_m ** exponents[k][m]; hashable, so that compiled code is reused.

    `exponents`: K rows of M non-negative integers.
    """

    exponents: tuple[tuple[int, ...], ...]

    @classmethod
    def up_to(cls, order: int, n_label: int) -> Monomials:
        """All monomials of n_label variables up to `order`, the constant first: K = C(n_label + order, order)."""
        rows = [
            tuple(chosen.count(m) for m in range(n_label))
            for degree in range(order + 1)
            for chosen in itertools.combinations_with_replacement(range(n_label), degree)
        ]
        return cls(tuple(rows))

    @property
    def size(self) -> int:
        return len(self.exponents)

    @property
    def n_label(self) -> int:
        return len(self.exponents[0])

    @property
    def order(self) -> int:
        return max(sum(row) for row in self.exponents)

    @functools.cached_property
    def linear(self) -> bool:
        return self.order == 1

    @functools.cached_property
    def products(self) -> FeatureProducts:
        i, j, _ = pairs(self.size)
        powers = np.array(self.exponents)
        _, places, which = np.unique(powers[i] + powers[j], axis=0, return_index=True, return_inverse=True)
        return FeatureProducts(places.astype(np.int32), which.ravel().astype(np.int32))

    @functools.cached_property
    def closed(self) -> bool:
        return set(self.exponents) == set(self.up_to(self.order, self.n_label).exponents)

    @property
    def involves(self) -> np.ndarray:
        return np.array(self.exponents) > 0

    @property
    def powers(self) -> np.ndarray:
        return np.array(self.exponents).sum(0)

    def names(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Readable names, such as '1', 'TEFF', 'TEFF*LOGG', 'LOGG^2'."""
        rows = []
        for row in self.exponents:
            factors = [n if e == 1 else f"{n}^{e}" for n, e in zip(labels, row, strict=True) if e]
            rows.append("*".join(factors) or "1")
        return tuple(rows)

    def __call__(self, u: Array) -> Array:
        """(..., M) -> (..., K)."""
        return self._derivative(u, 0)

    def jacobian(self, u: Array) -> Array:
        """d phi_k / d u_m, (..., M) -> (..., K, M)."""
        return self._derivative(u, 1)

    def hessian(self, u: Array) -> Array:
        """d^2 phi_k / d u_m d u_j, (..., M) -> (..., K, M, M)."""
        return self._derivative(u, 2)

    def _derivative(self, u: Array, degree: int) -> Array:
        return (_derivative_compiled if isinstance(u, jax.Array) else _derivative)(self, u, degree)

    @functools.partial(jit, static_argnums=0)
    def moments(self, mean: Array, covariance: Array) -> tuple[Array, Array]:
        """E[phi] (..., K) and E[phi phi'] (..., K, K) for u ~ N(mean, covariance), exact up to degree 5: of features of
        second order, and of first order in closed form."""
        if not self.linear:
            return _by_cubature(self, mean, covariance)
        first, slope = self(mean), self.jacobian(jnp.zeros(self.n_label))
        return first, first[..., :, None] * first[..., None, :] + slope @ covariance @ slope.T


def _by_cubature(features: Features, mean: Array, covariance: Array) -> tuple[Array, Array]:
    nodes, weights = cubature(features.n_label)
    factor = jnp.linalg.cholesky(covariance + 1e-14 * jnp.eye(features.n_label))
    points = mean[..., None, :] + jnp.einsum("...ij,sj->...si", factor, nodes)
    values = features(points)
    first = jnp.einsum("s,...sk->...k", weights, values)
    second = jnp.einsum("...sk,...sl->...kl", values * weights[:, None], values)
    return first, second


class _DerivativePlan(NamedTuple):
    """How derivatives of monomials are computed: every monomial is one of a degree below times a variable.

    levels: for each degree from 1 up, which monomials of the degree below, and which variables; places and factor: the
    derivatives are `factor` times the monomials at these places, those of low degree first.
    """

    levels: tuple[tuple[np.ndarray, np.ndarray], ...]
    places: np.ndarray
    factor: np.ndarray


@functools.lru_cache(maxsize=256)
def _plan(features: Monomials, degree: int) -> _DerivativePlan:
    terms = [(1, row) for row in features.exponents]
    for _ in range(degree):
        terms = [(factor * row[m], _lowered(row, m)) for factor, row in terms for m in range(len(row))]
    terms = [(factor, row if factor else (0,) * features.n_label) for factor, row in terms]
    needed = {row for _, row in terms} | {(0,) * features.n_label}
    for total in range(max(map(sum, needed)), 0, -1):
        needed |= {_lowered(row, _last(row)) for row in needed if sum(row) == total}
    by_degree = [sorted(row for row in needed if sum(row) == d) for d in range(max(map(sum, needed)) + 1)]
    levels = tuple(
        (_index(fewer.index(_lowered(row, _last(row))) for row in rows), _index(_last(row) for row in rows))
        for fewer, rows in itertools.pairwise(by_degree)
    )
    place = {row: i for i, row in enumerate(itertools.chain.from_iterable(by_degree))}
    return _DerivativePlan(levels, _index(place[row] for _, row in terms), np.array([float(f) for f, _ in terms]))


def _index(numbers: Iterable[int]) -> np.ndarray:
    """In the integers that JAX indexes with in either precision."""
    return np.array(list(numbers), np.int32)


def _derivative(features: Monomials, u: Array, degree: int) -> Array:
    """Derivatives of this degree at u (..., M): (..., K) and as many axes M.

    A few products of whole arrays, whatever the number of terms: hundreds of small ones would take long to compile.
    """
    u = u if isinstance(u, jax.Array) else np.asarray(u)
    xp, plan = module_of(u), _plan(features, degree)
    levels = [xp.ones_like(u[..., :1])]
    for below, variable in plan.levels:
        levels.append(levels[-1][..., below] * u[..., variable])
    out = xp.concatenate(levels, -1)[..., plan.places]
    if degree:
        out = out * plan.factor.astype(u.dtype)
    return out.reshape(*u.shape[:-1], features.size, *[features.n_label] * degree)


_derivative_compiled = jit(_derivative, static_argnums=(0, 2))


def _last(row: tuple[int, ...]) -> int:
    """The last variable of a monomial."""
    return max(m for m, e in enumerate(row) if e)


def _lowered(row: tuple[int, ...], m: int) -> tuple[int, ...]:
    return tuple(e - (i == m) for i, e in enumerate(row))


def feature_moments(features: Features, u: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[phi] and packed E[phi phi']; plain products where the labels are exact."""
    if not np.any(covariance):
        phi = features(u)
        return phi, outer_pairs(phi)
    return by_blocks(functools.partial(_gaussian_moments, features), u, covariance)


@functools.partial(jit, static_argnums=0)
def _gaussian_moments(features: Features, u: Array, covariance: Array) -> tuple[Array, Array]:
    first, second = features.moments(u, covariance)
    return first, pack(second)


def cubature(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (S, n) and weights (S,) of the degree-5 rule for a standard normal in n dimensions, S = 2 n^2 + 1."""
    nodes = [np.zeros(n)]
    weights = [2 / (n + 2)]
    for i in range(n):
        for sign in (1, -1):
            nodes.append(sign * np.sqrt(n + 2) * np.eye(n)[i])
            weights.append((4 - n) / (2 * (n + 2) ** 2))
    for i, j in itertools.combinations(range(n), 2):
        for a, b in itertools.product((1, -1), repeat=2):
            nodes.append(np.sqrt((n + 2) / 2) * (a * np.eye(n)[i] + b * np.eye(n)[j]))
            weights.append(1 / (n + 2) ** 2)
    return np.array(nodes), np.array(weights)
