"""The last steps to the mode of a collapsed model, after minibatches: all stars at once, every direction in its unit.

    maximise  sum_n ln p(data_n | theta) + ln p(theta)   over the part of theta that the model names

Minibatches find the shape of a function, but leave directions short that the data know little of beside others: what
all bands share is told by distances alone, a hundred times less well than colours. L-BFGS goes there in coordinates in
which the information of the stars' scores is the identity,

    F = sum_n g_n g_n' - d^2 ln p(theta) / d theta^2,   g_n = d ln p(data_n | theta) / d theta

Of a model's `LinearPart` F is that of Gauss-Newton, and nothing of it goes with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import log_density
from scipy.linalg import solve_triangular
from scipy.optimize import minimize

from ..core.collapsed import CollapsedModel
from ..numerics.compiling import jit
from ..numerics.linalg import Array

CHUNKS = 128, 192, 256, 384, 512, 768, 1024
"""Stars at a time: as few shapes as leave little padding."""
ROUNDS, ITERATIONS = 6, 30
"""New coordinates so often, at most, and iterations of L-BFGS in each."""
JITTER = 1e-6
"""Added to the diagonal of the information's correlation matrix: scores are of float32."""
GAIN = 0.1
"""In ln p. Where the slope promises less, |slope|^2 / 2 in these coordinates, there is the mode; a round that gains
less is the last."""


def polish(polisher: Polisher, best: dict[str, Any], data: Any, often: np.ndarray) -> tuple[dict[str, Any], float]:
    """theta (E, ...) on the real line of E members, each star counted `often` (E, n), and the largest slope, per sd."""
    ends = [polisher(*member) for member in _members(best, data, often)]
    return jax.tree.map(lambda *x: np.stack(x), *[end[0] for end in ends]), max(end[1] for end in ends)


def draws_about(
    polisher: Polisher, best: dict[str, Any], data: Any, often: np.ndarray, n: int, seed: int
) -> dict[str, Any]:
    """theta (E, n, ...) on the real line: n draws of the Gaussian about each member, a mode of the polisher's part of
    theta, with covariance F^-1, given the rest."""
    rng = np.random.default_rng([seed, 373587883])
    each = [polisher.draw(mode, chunks, n, rng) for mode, chunks in _members(best, data, often)]
    return jax.tree.map(lambda *x: np.stack(x), *each)


def covariance_of(
    polisher: Polisher, best: dict[str, Any], data: Any, often: np.ndarray, sites: Sequence[str]
) -> np.ndarray | None:
    """Covariance (K, K), that of F^-1, of some sites' numbers, one after the other, about theta (1, ...) on the real
    line; None if F is not finite."""
    real, chunks = next(_members(best, data, often))
    free = {name: real[name][at] for name, at in polisher.part.items()}
    flat, back = _raveled(free)
    number = back(np.arange(len(flat)))
    chosen = np.concatenate([number[name].ravel() for name in sites] or [np.zeros(0, int)])
    if not len(chosen):
        return np.zeros((0, 0))
    root = polisher.root(free, real, chunks)
    if root is None:
        return None
    half = solve_triangular(root, np.eye(len(flat))[:, chosen], lower=True)
    return half.T @ half


def _raveled(free: dict[str, np.ndarray]) -> tuple[np.ndarray, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """`ravel_pytree` in NumPy, so that nothing is compiled for it; what takes numbers back takes (..., P)."""
    names = sorted(free)
    ends = np.cumsum([free[name].size for name in names])

    def back(x: np.ndarray) -> dict[str, np.ndarray]:
        parts = np.split(x, ends[:-1], axis=-1)
        return {name: y.reshape((*x.shape[:-1], *free[name].shape)) for name, y in zip(names, parts, strict=True)}

    return np.concatenate([free[name].ravel() for name in names]), back


def _members(best: dict[str, Any], data: Any, often: np.ndarray) -> Iterator[tuple[dict[str, Any], Any]]:
    """theta of each member, and its stars in chunks of one shape with how often they count."""
    n = often.shape[1]
    size = next(x for x in CHUNKS if x >= -(-n // -(-n // CHUNKS[-1])))
    index = np.minimum(np.arange(-(-n // size) * size), n - 1).reshape(-1, size)
    chunks = jax.device_put(jax.tree.map(lambda x: np.asarray(x)[index], data))
    weight = np.where(np.arange(index.size) < n, often[:, index.ravel()], 0).astype(np.float32)
    for e, own in enumerate(weight.reshape(len(often), *index.shape)):
        yield {name: np.array(np.asarray(x)[e]) for name, x in best.items()}, (chunks, jax.device_put(own))


class Barred:
    """A function and its slope, whose line searches turn back where it is no number (float32 may overflow far out).

    There it is given the value at the best point, raised by what its slope there would have gained, and the slope
    turned round: a search along that slope goes on well before the middle.
    """

    def __init__(self, function: Callable[[np.ndarray], tuple[float, np.ndarray]]):
        self.function = function
        self.best: tuple[np.ndarray, float, np.ndarray] | None = None

    def __call__(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = self.function(x)
        if not np.isfinite(value):
            if self.best is None:
                return np.inf, np.zeros(len(x))
            at, lowest, way = self.best
            return lowest + abs(float(way @ (x - at))), -way
        if self.best is None or value < self.best[1]:
            self.best = x.copy(), value, slope
        return value, slope

    @property
    def at_mode(self) -> bool:
        return self.best is not None and 0.5 * float(self.best[2] @ self.best[2]) < GAIN

    def stop(self, _: np.ndarray) -> None:
        """As a callback of SciPy's `minimize`."""
        if self.at_mode:
            raise StopIteration


class Polisher:
    """Compiled once for all members of ensembles. real_line: transforms of the sites to their support."""

    def __init__(self, model: CollapsedModel, real_line: Mapping[str, Any], part: Mapping[str, Any]):
        linear = model.linear_part
        self.part, self.linear = part, linear if linear and set(linear.sites) <= part.keys() else None

        def theta_of(free: Any, fixed: Any) -> dict[str, Any]:
            whole = {name: x if name not in part else x.at[part[name]].set(free[name]) for name, x in fixed.items()}
            return {name: real_line[name](x) for name, x in whole.items()}

        def prior(free: Any, fixed: Any) -> Array:
            return log_density(model.parameters, (), {}, theta_of(free, fixed))[0]

        def of_chunk(free: Any, fixed: Any, chunk: tuple[Any, Array]) -> Array:
            rows, weight = chunk
            return (weight * model.log_likelihood(theta_of(free, fixed), rows)).sum()

        def of_star(free: Any, fixed: Any, star: tuple[Any, Array]) -> Array:
            """A star that counts k times adds k g g', not k^2."""
            rows, weight = star
            return (
                jnp.sqrt(weight) * model.log_likelihood(theta_of(free, fixed), jax.tree.map(lambda x: x[None], rows))[0]
            )

        @jit
        def value_and_slope(free: Any, fixed: Any, chunks: Any) -> tuple[Array, Any]:
            def add(total: Any, chunk: tuple[Any, Array]) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, total, jax.value_and_grad(of_chunk)(free, fixed, chunk)), None

            return jax.lax.scan(add, jax.value_and_grad(prior)(free, fixed), chunks)[0]

        @jit
        def of_prior(free: Any, fixed: Any) -> Array:
            """(P,), on the diagonal, since its parameters are independent."""
            flat, back = ravel_pytree(free)
            slope_of = jax.grad(lambda x: prior(back(x), fixed))
            own = -jax.jvp(slope_of, (flat,), (jnp.ones_like(flat),))[1]
            own = jnp.where(jnp.isfinite(own), own, 0.0)  # at the edge of a support float32 may overflow
            return jnp.maximum(own, 1e-3)

        @jit
        def scores(free: Any, fixed: Any, chunks: Any, i: Array) -> Array:
            """g (n, P) of the stars of a chunk, times the root of how often they count."""
            each = jax.vmap(jax.grad(of_star), (None, None, 0))(free, fixed, jax.tree.map(lambda x: x[i], chunks))
            return jax.vmap(lambda x: ravel_pytree(x)[0])(each)

        @jit
        def told(free: Any, fixed: Any, rows: Any, i: Array) -> Any:
            rows = jax.tree.map(lambda x: x[i], rows)
            return self.linear.told(theta_of(free, fixed), rows) if self.linear else None

        self.value_and_slope, self.of_prior, self.scores, self.told = value_and_slope, of_prior, scores, told

    def __call__(self, real: dict[str, Any], chunks: Any) -> tuple[dict[str, Any], float]:
        """From a point near the mode: theta, and the largest slope of ln p at it, per sd."""
        start, back = _raveled({name: real[name][at] for name, at in self.part.items()})
        x, dtype, value, slope = start.astype(float), start.dtype, -np.inf, np.inf
        for _ in range(ROUNDS):
            root = self.root(back(x.astype(dtype)), real, chunks, apart=True)
            if root is None:  # training went astray: said so, and left alone
                return real, np.inf

            def there(y: np.ndarray, x: np.ndarray = x, root: np.ndarray = root) -> np.ndarray:
                return x + solve_triangular(root.T, y, lower=False)

            def loss(
                y: np.ndarray, there: Callable[[np.ndarray], np.ndarray] = there, root: np.ndarray = root
            ) -> tuple[float, np.ndarray]:
                value, slope = self.value_and_slope(back(there(y).astype(dtype)), real, chunks)
                slope = _raveled(jax.tree.map(np.asarray, slope))[0].astype(float)
                if not (np.isfinite(value) and np.isfinite(slope).all()):
                    return np.nan, slope
                return -float(value), -solve_triangular(root, slope, lower=True)

            barred = Barred(loss)
            barred(np.zeros(len(x)))
            if not barred.at_mode:
                options = {"maxiter": ITERATIONS, "ftol": 1e-7, "gtol": 1e-3}
                minimize(barred, np.zeros(len(x)), jac=True, method="L-BFGS-B", options=options, callback=barred.stop)
            if barred.best is None or -barred.best[1] < value:
                break
            gain, value, slope = -barred.best[1] - value, -barred.best[1], float(np.abs(barred.best[2]).max())
            x = there(barred.best[0])
            if gain < GAIN or barred.at_mode:
                break
        out, free = {k: v.copy() for k, v in real.items()}, back(x.astype(dtype))
        for name, at in self.part.items():
            out[name][at] = free[name]
        return out, slope

    def root(self, free: dict[str, Any], real: dict[str, Any], chunks: Any, apart: bool = False) -> np.ndarray | None:
        """Cholesky factor of F; None if F is not finite. apart: with the `LinearPart` as that knows it, if any."""
        own = np.asarray(self.of_prior(free, real), float)
        start, back = _raveled(free)
        number, information, known = back(np.arange(len(start))), np.diag(own), np.zeros(())
        index = np.zeros(0, int)
        for i in range(len(chunks[1])):
            if apart and self.linear:
                told = jax.tree.map(np.asarray, self.told(free, real, chunks[0], i))
                more, index = self.linear.information(told, np.asarray(chunks[1])[i], number)
                known = known + more
            rest = np.setdiff1d(np.arange(len(own)), index)
            scores = np.asarray(self.scores(free, real, chunks, i), float)[:, rest]  # float32 sums may not be positive
            information[np.ix_(rest, rest)] += scores.T @ scores
        information[np.ix_(index, index)] += known
        if not np.isfinite(information).all():
            return None
        sd = np.sqrt(np.diag(information))
        return sd[:, None] * np.linalg.cholesky(information / np.outer(sd, sd) + JITTER * np.eye(len(sd)))

    def draw(self, mode: dict[str, Any], chunks: Any, n: int, rng: np.random.Generator) -> dict[str, Any]:
        """theta (n, ...), the part N(mode, F^-1), NaN if F is not finite, and the rest as it is."""
        free = {name: mode[name][at] for name, at in self.part.items()}
        start, back = _raveled(free)
        root = self.root(free, mode, chunks, apart=True)
        z = rng.standard_normal((len(start), n))
        step = np.full(z.shape, np.nan) if root is None else solve_triangular(root.T, z, lower=False)
        points = back((start.astype(float)[:, None] + step).T.astype(start.dtype))
        many = {name: np.repeat(x[None], n, 0) for name, x in mode.items()}
        for name, at in self.part.items():
            many[name][:, at] = points[name]
        return many
