"""NUTS: the No-U-Turn sampler of NumPyro, on the whole program or on every star's compressed posterior at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.infer import NUTS as NumPyroNUTS
from numpyro.infer.hmc import hmc
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import constrain_fn, initialize_model, potential_energy

from ..core.model import Model
from ..data.stars import Stars
from ..errors import bad_input
from ..numerics.compiling import jit
from ..numerics.linalg import Array, in_float64
from ..numerics.modes import Energy
from ..numerics.own_variates import other_keys
from ..progress import bar, stretches
from .base import Inference, StarDraws, Trained
from .diagnostics import ess, rhat, worst
from .starwise import StarProblem, draw_mixture
from .whitened import Start, StartOf, Whitened

BATCH = 128
"""Stars sampled side by side."""
STEPS = np.array([0.0, 0.01, 0.03, 0.1, 0.3, 1.0])
"""Shares of a Newton step that are tried."""
DEPTH, DEEPER = 3, 5
"""Depth of a star's trees: chains go side by side at the pace of the longest, and in whitened coordinates the 7 steps
of such a tree cross most posteriors; twice as many took twice the time, for effective samples 1.3 times as large. Stars
that need more get trees of 31 steps."""
ENOUGH = 25
"""Effective draws per chain with which a star needs no deeper trees."""
SETS = 50
"""Training sets sampled side by side."""


@dataclass(frozen=True)
class NUTS(Inference):
    """Training step: NUTS on the model's NumPyro program. Chains start around its MAP where it has one, in coordinates
    whitened by a Gaussian approximation where one is known (`whitened.Start`).

    Test step: NUTS on each star's compressed posterior, whitened by its Laplace approximation, chains started from
    draws of the mixture over its modes. The cost does not depend on the number of pixels. Stars with fewer than 25
    effective draws per chain are sampled anew with longer trajectories.

    Args:
        chains, draws, warmup: per parameter or star.
        target_accept: acceptance probability aimed at.
        max_tree_depth: of the training step.
        starts: starting points per star for the modes.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test[:5], bl.NUTS(chains=2, draws=50), progress=False)
        >>> result.data["posterior"]["true_labels"].shape
        (2, 50, 5, 3)
    """

    chains: int = 4
    draws: int = 500
    warmup: int | None = None
    target_accept: float = 0.85
    max_tree_depth: int = 10
    starts: int = 4

    many: ClassVar = True

    @in_float64
    def fit(
        self, model: Model, stars: Stars, seed: int, progress: bool | None, start: StartOf | None = None
    ) -> Trained:
        key = jax.random.key(seed)
        begin = start() if start else Start(dict(model.starting_point(stars)))
        program, values = functools.partial(Whitened(model.training_program(stars), begin), stars), begin.first
        # jitted as a whole: operation by operation, every site would be compiled by itself, for minutes
        potential = jit(functools.partial(potential_energy, program, (), {}))
        first = jit(lambda key: initialize_model(key, program, init_strategy=init_to_value(values=values))[0])(key)
        if not np.isfinite(first.potential_energy):
            raise bad_input(
                "no starting point at which the model's density is finite",
                "one among 100 draws of those parameters that have no MAP",
                "a prior that excludes the data, or numbers of very different size",
            )
        z, told = self._chains(potential, key, dispersed(potential, dict(first.z), self.chains, seed), progress)
        constrain = functools.partial(constrain_fn, program, (), {}, return_deterministic=True)
        sampled = jit(jax.vmap(jax.vmap(constrain)))(z)
        draws = begin.back({name: np.asarray(x) for name, x in sampled.items()})
        known = model.comparable(draws)
        stats: dict[str, Any] = {"n_divergent": int(told["diverging"].sum()), **worst(known)}
        if stats["n_divergent"]:
            stats |= {"converged": False, "advice": f"NUTS(target_accept={0.5 + self.target_accept / 2:.3g})"}
        elif not stats["converged"]:
            stats["advice"] = f"NUTS(chains={max(self.chains, 4)}, draws={2 * self.draws})"
        told["tree_depth"] = np.ceil(np.log2(told["n_steps"] + 1)).astype(int)
        return Trained(draws, None, stats, told)

    def _chains(self, potential: Any, key: Array, initial: dict[str, Array], progress: bool | None) -> Any:
        """Positions, and statistics by ArviZ's names, (chain, draw, ...), of chains side by side, each from its own
        start."""
        warmup = self.warmup or 1000
        many = self.chains > 1
        sampler = NumPyroNUTS(
            potential_fn=potential, target_accept_prob=self.target_accept, max_tree_depth=self.max_tree_depth
        )
        keys = jax.random.split(key, self.chains) if many else key
        start = initial if many else {name: x[0] for name, x in initial.items()}
        state = sampler.init(keys, warmup, start, model_args=(), model_kwargs={})

        def told(state: Any) -> tuple[Array, dict[str, Array]]:
            return state.z, {
                "diverging": state.diverging, "energy": state.energy, "lp": -state.potential_energy,
                "acceptance_rate": state.accept_prob, "n_steps": state.num_steps,
            }  # fmt: skip

        @jit
        def run(state: Any, kept: Any, begin: Array, end: Array) -> Any:
            def step(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
                state = sampler.sample(carry[0], (), {})
                row = jnp.maximum(i - warmup, 0)  # of the warm-up the first, for a while
                return state, jax.tree.map(lambda all, x: all.at[row].set(x), carry[1], told(state))

            return jax.lax.fori_loop(begin, end, step, (state, kept))

        kept = jax.tree.map(lambda x: jnp.zeros((self.draws, *jnp.shape(x)), jnp.asarray(x).dtype), told(state))
        total = warmup + self.draws
        with bar(total, "training step, NUTS", progress) as shown:
            for begin, end in stretches(total):
                state, kept = jax.block_until_ready(run(state, kept, begin, end))
                shown.update(end - begin)
        return jax.tree.map(lambda x: np.moveaxis(np.asarray(x), 0, 1) if many else np.asarray(x)[None], kept)

    @in_float64
    def fit_many(self, model: Model, sims: Sequence[Stars], starts: Sequence[Start], seed: int) -> Iterator[Trained]:
        """`fit` of many small sets of stars that differ in their measured values alone, side by side; without moments.

        The coordinates are whitened by the curvature at the start, and chains start from draws of that Gaussian: there
        is a step size to adapt to each set, and nothing else.
        """
        program, names = model.program_of_data(sims[0]), starts[0].names

        def whitened(start: Any) -> Whitened:
            return Whitened(program, Start(start[0], names, start[1]))

        def potential(data: Any, start: Any) -> Callable[[dict[str, Array]], Array]:
            return functools.partial(potential_energy, whitened(start), (data,), {})

        @jit
        def initial(key: Array, data: Any, start: Any) -> dict[str, Array]:
            strategy = init_to_value(values=whitened(start).start.first)
            return initialize_model(key, whitened(start), init_strategy=strategy, model_args=(data,))[0].z

        @jit
        @jax.vmap
        def run(key: Array, z: dict[str, Array], data: Any, start: Any) -> tuple[dict[str, Array], Array]:
            first, back = ravel_pytree(z)
            first, root = _approach(lambda x: potential(data, start)(back(x)), first)

            def whitened_potential(data: Any, start: Any) -> Callable[[Array], Array]:
                return lambda x: potential(data, start)(back(first + root @ x))

            settings = whitened_potential, self.warmup or 1000, self.draws, self.target_accept, self.max_tree_depth
            keys = jax.random.split(key, (2, self.chains))
            x = jax.vmap(lambda key: jax.random.normal(key, first.shape))(keys[1])
            x, diverging = _chains(*settings, keys[0], x, (data, start), None)
            values = functools.partial(constrain_fn, whitened(start), (data,), {}, return_deterministic=True)
            x = jnp.moveaxis(x, 0, 1)
            return jax.vmap(jax.vmap(lambda x: values(back(first + root @ x))))(x), diverging.sum()

        keys = jax.random.split(jax.random.key(seed), (len(sims), 2))
        size = min(SETS, len(sims))
        for begin in range(0, len(sims), size):
            rows = np.minimum(np.arange(begin, begin + size), len(sims) - 1)
            parts = [(program.data(sims[i]), (starts[i].sites, starts[i].factor)) for i in rows]
            z = [initial(keys[i, 0], *part) for i, part in zip(rows, parts, strict=True)]
            z, parts = (jax.tree.map(lambda *x: jnp.stack([jnp.asarray(a) for a in x]), *x) for x in (z, parts))
            draws, diverging = run(keys[rows, 1], z, *parts)
            draws = {name: np.asarray(x) for name, x in draws.items()}
            for i in range(min(size, len(sims) - begin)):
                own = starts[begin + i].back({name: x[i] for name, x in draws.items()})
                yield Trained(own, None, {"n_divergent": int(diverging[i])})

    @in_float64
    def infer(self, problem: StarProblem, keys: np.ndarray, progress: bool | None) -> StarDraws:
        with bar(problem.n_star, "test step, NUTS", progress) as shown:
            u, divergent = self._sample_all(problem, keys, DEPTH, shown)
        sizes = ess(u).min(-1)
        hard = np.flatnonzero(sizes < min(ENOUGH * self.chains, self.draws))
        if len(hard):
            with bar(len(hard), "test step, NUTS of longer trajectories", progress) as shown:
                again = self._sample_all(problem.select(hard), other_keys(keys[hard], 611953), DEEPER, shown)
            u[:, :, hard], divergent[hard] = again
            sizes[hard] = ess(again[0]).min(-1)
        per_star = {"rhat": rhat(u).max(-1), "ess": sizes, "n_divergent": divergent}
        return StarDraws(u, ~np.asarray(problem.modes.converged[0]), star_stats=per_star)

    def _sample_all(
        self, problem: StarProblem, keys: np.ndarray, depth: int, shown: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws (chain, draw, N, M) and how many of each star diverged (N,), batch by batch."""
        n, m = problem.n_star, problem.n_latent
        size = min(BATCH, 1 << max(n - 1, 0).bit_length())  # few sizes: each is compiled
        u, divergent = np.empty((self.chains, self.draws, n, m)), np.zeros(n, int)
        for start in range(0, n, size):
            rows = np.minimum(np.arange(start, start + size), n - 1)
            kept = min(size, n - start)
            draws, diverging = self._sample(problem.select(rows), keys[rows], depth)
            u[:, :, start : start + kept] = draws[:, :, :kept]
            divergent[start : start + kept] = diverging[:kept]
            shown.update(kept)
        return u, divergent

    def _sample(self, problem: StarProblem, keys: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        start, _ = draw_mixture(problem, keys, self.chains)
        centre = problem.modes.location[0]
        factor = jnp.linalg.cholesky(problem.modes.covariance[0])
        z = jnp.einsum("nij,ncj->nci", jnp.linalg.inv(factor), start - centre[:, None])
        of_chains = jax.vmap(lambda key: jax.random.split(key, self.chains))(
            jax.random.wrap_key_data(jnp.asarray(keys))
        )
        args = (problem.own, centre, factor)
        settings = (problem.energy, self.warmup or 150, self.draws, self.target_accept, depth)
        draws, diverging = _run(*settings, problem.shared, of_chains, z, args)
        return np.moveaxis(np.asarray(draws), 0, 2), np.asarray(diverging).sum((1, 2))


WIDEST, NEARER, NEAREST = 0.05, 0.25, 1e-12
"""Spread of starting points in unconstrained coordinates, by what it is multiplied where that is too far, and the
least."""


def dispersed(potential: Any, values: dict[str, Array], n_chain: int, seed: int) -> dict[str, Array]:
    """Unconstrained starting points (n_chain, ...) about `values`, where ln p is lower by no more than their number of
    unknowns: draws of a posterior are lower than its mode by half of that. From much farther chains do not come back.
    """
    rng = np.random.default_rng([seed, 15485863])
    noise = {name: rng.standard_normal((n_chain, *np.shape(x))) for name, x in values.items()}
    most = float(potential(values)) + sum(np.size(x) for x in values.values())

    def of_chain(i: int) -> dict[str, Array]:
        width = WIDEST
        while True:
            z = {name: jnp.asarray(x + width * noise[name][i]) for name, x in values.items()}
            width *= NEARER
            if width < NEAREST or float(potential(z)) <= most:
                return z

    return jax.tree.map(lambda *x: jnp.stack(x), *(of_chain(i) for i in range(n_chain)))


@functools.partial(jit, static_argnums=(0, 1, 2, 3, 4))
def _run(
    energy: Energy,
    warmup: int,
    draws: int,
    target_accept: float,
    depth: int,
    shared: Any,
    keys: Array,
    z: Array,
    args: Any,
) -> tuple[Array, Array]:
    """Chains (N, chain, draw, M) of u = centre + factor z for every star."""

    def potential(own: Any, centre: Array, factor: Array) -> Callable[[Array], Array]:
        return lambda z: energy((centre + factor @ z)[None], shared, own)[0]

    n, chains, m = z.shape
    of_chains = jax.tree.map(lambda x: jnp.repeat(x, chains, axis=0), args)
    z = z.reshape(n * chains, m)
    z, diverging = _chains(potential, warmup, draws, target_accept, depth, keys.ravel(), z, of_chains, 0)
    z, diverging = (jnp.moveaxis(x.reshape(draws, n, chains, *x.shape[2:]), 0, 2) for x in (z, diverging))
    _, centre, factor = args
    return centre[:, None, None] + jnp.einsum("nij,ncsj->ncsi", factor, z), diverging


def _approach(potential: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """From x (d,) by Newton steps to where the mass of the density is, and F (d, d) with F F' = |curvature|^-1 there.

    Directions of next to no curvature are taken to be as wide as 1. The mode itself, which may be no place for a
    sampler, is not sought: steps end where the whitened slope is no longer than at a typical point.
    """

    def root_at(x: Array) -> Array:
        value, vector = jnp.linalg.eigh(jnp.nan_to_num(jax.hessian(potential)(x)))
        return vector / jnp.sqrt(jnp.clip(jnp.abs(value), 1.0, 1e12))

    def step(_: Array, x: Array) -> Array:
        root = root_at(x)
        slope = root.T @ jax.grad(potential)(x)
        trials = x - STEPS[:, None] * (root @ slope)
        values = jax.vmap(potential)(trials)
        best = trials[jnp.nanargmin(jnp.where(jnp.isfinite(values), values, jnp.inf))]
        return jnp.where((slope**2).sum() > len(x), best, x)

    x = jax.lax.fori_loop(0, 30, step, x)
    return x, root_at(x)


class _FirstPotential:
    """The potentials of `hmc`, of which its kernel keeps the one that it begins with.

    What JAX traces with must not outlive the tracing: the one made within the body of `with` is let go at its end.
    """

    def __init__(self, potential: Callable[..., Callable[[Array], Array]]):
        self.potential, self.begins = potential, False
        self.made: list[Callable[[Array], Array]] = []

    def __call__(self, *args: Any) -> Callable[[Array], Array]:
        if not self.begins:
            return self.potential(*args)
        self.made.append(self.potential(*args))
        return lambda z: self.made[0](z)

    def __enter__(self) -> None:
        self.begins = True

    def __exit__(self, *_: Any) -> None:
        self.begins = False
        self.made.clear()


def _chains(
    potential: Callable[..., Callable[[Array], Array]],
    warmup: int,
    draws: int,
    target_accept: float,
    max_tree_depth: int,
    keys: Array,
    z: Array,
    args: Any,
    axis: int | None,
) -> tuple[Array, Array]:
    """Draws (draw, chain, d) and whether each diverged, of chains from z (chain, d) on the potential(*args), white.

    `axis` of `args` is that of the chains, or None where all have the same. The chains are mapped over inside of one
    loop for warm-up and draws, since JAX traces loops that are themselves mapped over several times.
    """
    first = _FirstPotential(potential)
    initialise, step = hmc(potential_fn_gen=first, algo="NUTS")

    def begin(key: Array, z: Array, args: Any) -> Any:
        with first:
            return initialise(
                z,
                warmup,
                step_size=0.8,
                adapt_mass_matrix=False,
                target_accept_prob=target_accept,
                max_tree_depth=max_tree_depth,
                model_args=args,
                rng_key=key,
            )

    def record(i: Array, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        state = jax.vmap(step, in_axes=(0, axis))(carry[0], args)
        row = jnp.maximum(i - warmup, 0)  # of the warm-up the first, for a while
        return state, jax.tree.map(lambda all, x: all.at[row].set(x), carry[1], (state.z, state.diverging))

    kept = jnp.zeros((draws, *z.shape), z.dtype), jnp.zeros((draws, len(z)), bool)
    state = jax.vmap(begin, in_axes=(0, 0, axis))(keys, z, args)
    return jax.lax.fori_loop(0, warmup + draws, record, (state, kept))[1]
