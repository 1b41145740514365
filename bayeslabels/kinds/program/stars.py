"""The test step of a program: the density of one star's own sites, those that all stars share integrated over.

    p(x, d | D) = (1 / G) sum_g p(x, d | theta_g),   theta_g draws of the training posterior

with x the star's sites that are not observed and d its data: all that `Energy` needs of the program is its trace.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...core.model import Bound, Model
from ...data.stars import Stars
from ...errors import bad_input
from ...inference.starwise import StarProblem
from ...numerics.by_value import ByValue, hashable
from ...numerics.compiling import jit
from ...numerics.linalg import Array, in_float64
from ...numerics.modes import Energy, find_modes
from ...numerics.own_variates import other_keys, uniforms
from .program import OwnProgram
from .sites import Site, ends, sites_of, told_of, traced, transform_of, under_plate

CANDIDATES, TRIED = 512, 4
"""Points drawn from the program among which starts are chosen, and draws of theta with which they are judged."""
STARTS, WARM = 16, 8.0
"""At least so many starts, drawn from the candidates by their density to the power 1 / WARM: every mode that carries
weight has one."""
AT_ONCE = 8
"""Stars whose draws are weighed together."""


class ProgramMoments(NamedTuple):
    """theta_g, the shared sites one after the other, flat: (G, D)."""

    shared: np.ndarray


def unflattened(flat: Array, sites: tuple[tuple[str, tuple[int, ...]], ...]) -> dict[str, Array]:
    """{site: (..., *shape)} of numbers (..., D) one after the other."""
    out, at = {}, 0
    for name, shape in sites:
        size = int(np.prod(shape, dtype=int))
        out[name] = flat[..., at : at + size].reshape(*flat.shape[:-1], *shape)
        at += size
    return out


@dataclass(frozen=True)
class ProgramEnergy(ByValue, Energy):
    """Minus ln p(x, d | D) of unbounded coordinates u (S, M) of x.

    sites: x, of stars with the blocks `blocks`. left: sites that are integrated out: nothing depends on them.
    """

    model: OwnProgram
    blocks: tuple[str, ...]
    sites: tuple[Site, ...]
    left: tuple[str, ...] = ()

    @cached_property
    def _value(self) -> Any:
        program = self.model.program
        known = Bound(program) if isinstance(program, Model) else hashable(program)
        return known, self.model.frame, self.blocks, self.sites, self.left

    def __call__(self, u: Array, shared: Any, own: Any) -> Array:
        each = jax.vmap(lambda u: jax.vmap(lambda theta: self.log_joint(u, theta, own))(shared))(u)
        return jnp.log(each.shape[1]) - jax.scipy.special.logsumexp(each, axis=1)

    @cached_property
    def places(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return tuple((site.name, site.shape) for site in self.sites)

    def values(self, u: Array, trace: Any) -> tuple[dict[str, Array], Array]:
        """x (1, *shape) by site at u (M,), and the log Jacobian; trace: any, for the supports."""
        out, jacobian = {}, jnp.zeros(())
        for name, z in unflattened(u, self.places).items():
            transform = transform_of(trace[name])
            x = transform(z[None])
            out[name] = x
            jacobian += transform.log_abs_det_jacobian(z[None], x).sum()
        return out, jacobian

    def log_joint(self, u: Array, theta: Array, own: Any) -> Array:
        """ln p(x, d | theta) at u (M,), with the Jacobian of u."""
        star = jax.tree.map(lambda x: x[None], own)
        given, jacobian = self.at(u, theta, star)
        found = traced(self.model.program, star, given)
        sites = [site for name, site in found.items() if name not in self.left and under_plate(site)]
        terms = [_log_prob(site) for site in sites if site["type"] == "sample"]
        return sum(terms, jacobian)

    def at(self, u: Array, theta: Array, star: Stars) -> tuple[dict[str, Array], Array]:
        """The values of all latent sites at u (M,) and theta (D,), and the log Jacobian."""
        shared = unflattened(theta, self.model.require_frame().shared)
        x, jacobian = self.values(u, traced(self.model.program, star, shared))
        return {**shared, **x}, jacobian

    def completed(self, u: Array, shared: Array, own: Any, uniform: Array) -> dict[str, Array]:
        """Every site of the star (*shape) at u (M,), what is recorded included; uniform: picks theta."""
        star = jax.tree.map(lambda x: x[None], own)
        log_p = jax.vmap(lambda theta: self.log_joint(u, theta, own))(shared)
        upper = jnp.cumsum(jax.nn.softmax(log_p))
        theta = shared[jnp.minimum((uniform > upper).sum(), len(shared) - 1)]
        found = traced(self.model.program, star, self.at(u, theta, star)[0])
        return {name: site["value"][0] for name, site in found.items() if under_plate(site) and site["value"].ndim}

    def candidate(self, key: Array, theta: Array, own: Any) -> Array:
        """u (M,) of a draw of x from the program."""
        star = jax.tree.map(lambda x: x[None], own)
        shared = unflattened(theta, self.model.require_frame().shared)
        trace = traced(self.model.program, star, shared, key)
        parts = [transform_of(trace[name]).inv(trace[name]["value"])[0].reshape(-1) for name, _ in self.places]
        return jnp.concatenate(parts)


def _log_prob(site: Any) -> Array:
    """Log density of a site of one star."""
    log_p = site["fn"].log_prob(site["value"])
    return (log_p if site["scale"] is None else log_p * site["scale"]).sum()


@dataclass(frozen=True)
class ProgramCurvature:
    """The second derivatives of the energy, made positive."""

    energy: ProgramEnergy

    def __call__(self, u: Array, shared: Any, own: Any, beside: Any) -> Array:
        hessian = jax.vmap(jax.hessian(lambda x: self.energy(x[None], shared, own)[0]))(u)
        values, vectors = jnp.linalg.eigh(jnp.nan_to_num(hessian))
        largest = jnp.maximum(jnp.abs(values).max(-1, keepdims=True), 1e-6)
        values = jnp.maximum(jnp.abs(values), 1e-8 * largest)
        return (vectors * values[..., None, :]) @ jnp.swapaxes(vectors, -1, -2)


@in_float64
def asked_of(model: OwnProgram, stars: Stars) -> tuple[tuple[Site, ...], tuple[str, ...]]:
    """The sites that are not known of such stars, without those of which a result tells nothing and on which nothing
    depends, such as catalogue labels about true ones; and the names of the latter, whose density integrates to 1."""
    few = stars[: min(len(stars), 2)]
    sites = sites_of(model.program, few)
    latent = [site for site in sites if site.of_star and site.latent]
    told = told_of(sites, few)
    left = ends(model.program, few, [site for site in latent if site not in told])
    return tuple(site for site in latent if site.name not in left), left


@in_float64
def prepare(model: OwnProgram, moments: ProgramMoments, stars: Stars, seed: int, starts: int) -> StarProblem:
    """The stars' posteriors with their modes."""
    sites, left = asked_of(model, stars)
    if not sites:
        raise bad_input(
            "stars of which the program leaves nothing open", "some unknown", "all blocks are there",
            'stars.drop("labels")',
        )  # fmt: skip
    energy = ProgramEnergy(model, tuple(stars.blocks), sites, left)
    own = jax.tree.map(np.asarray, stars)
    shared = jnp.asarray(moments.shared)
    first = _starts(energy, shared, own, jax.random.key(seed), max(starts, STARTS))
    modes = find_modes(energy, ProgramCurvature(energy), shared, own, first)
    return StarProblem(energy, shared, own, modes, AT_ONCE)


def _starts(energy: ProgramEnergy, shared: Array, own: Any, key: Array, starts: int) -> np.ndarray:
    """The best of points that the program draws, and others by their density: (N, J, M)."""
    tried = shared[np.linspace(0, len(shared) - 1, min(TRIED, len(shared))).astype(int)]
    return np.asarray(_best_draws(energy, starts, key, tried, jax.tree.map(jnp.asarray, own)))


@functools.partial(jit, static_argnums=(0, 1))
def _best_draws(energy: ProgramEnergy, starts: int, key: Array, tried: Array, own: Any) -> Array:
    def of_star(own: Any) -> Array:
        keys = jax.random.split(key, CANDIDATES)
        u = jax.vmap(lambda key, i: energy.candidate(key, tried[i % len(tried)], own))(keys, jnp.arange(CANDIDATES))
        f = jnp.nan_to_num(energy(u, tried, own), nan=jnp.inf)
        upper = jnp.cumsum(jax.nn.softmax(-f / WARM))
        others = jnp.searchsorted(upper, (jnp.arange(starts - 1) + 0.5) / (starts - 1)).clip(0, CANDIDATES - 1)
        return u[jnp.concatenate([jnp.argmin(f)[None], others])]

    return jax.lax.map(of_star, own)


@in_float64
def completed(problem: StarProblem, u: np.ndarray, keys: np.ndarray) -> dict[str, np.ndarray]:
    """Every site of the stars, {name: (chain, draw, N, *shape)}, at draws u (chain, draw, N, M)."""
    n_chain, n_draw, n = u.shape[:3]
    by_star = np.moveaxis(u.reshape(-1, *u.shape[2:]), 1, 0)
    which = uniforms(other_keys(keys, 49979687), by_star.shape[1])
    arrays = jax.tree.map(jnp.asarray, (by_star, problem.own, which))
    found = _completed(problem.energy, problem.shared, *arrays)
    return {
        name: np.moveaxis(np.asarray(x), 1, 0).reshape(n_chain, n_draw, n, *x.shape[2:]) for name, x in found.items()
    }


@functools.partial(jit, static_argnums=0)
def _completed(energy: ProgramEnergy, shared: Any, u: Array, own: Any, uniform: Array) -> dict[str, Array]:
    def of_star(star: tuple[Array, Any, Array]) -> dict[str, Array]:
        u, own, uniform = star
        return jax.vmap(lambda u, x: energy.completed(u, shared, own, x))(u, uniform)

    return jax.lax.map(of_star, (u, own, uniform))
