"""Gibbs: the whole training posterior of a linear model; what is drawn in a sweep, and how: `sweep`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core.priors import Flat, Laplace, Learned
from ...data.stars import Stars
from ...errors import CannotDo
from ...inference.base import Trained
from ...inference.diagnostics import worst
from ...inference.gibbs import Gibbs
from ...numerics.compiling import jit
from ...numerics.compress import PIXELS
from ...numerics.features import Features
from ...numerics.linalg import Array, in_float64
from ...progress import bar
from .draws import moments_from_draws
from .em import SHORT, by_em
from .model import LinearModel
from .sweep import MISSING, Plan, State, SweepData, sweep
from .training import EM


@in_float64
def by_gibbs(model: LinearModel, stars: Stars, inference: Gibbs, seed: int, progress: bool | None) -> Trained:
    _refuse(model)
    start = by_em(model, stars, SHORT, seed, progress, "training step, where the chains start")
    plan, data, state = _prepare(model, stars, start, inference.chains, seed)
    per_chunk = -(-inference.draws // 25)
    n_warm = -(-inference.warmup // (per_chunk * inference.thin)) if inference.warmup else 0
    n_kept = -(-inference.draws // per_chunk)
    key = jax.random.key(seed)
    kept: list[dict[str, np.ndarray]] = []
    accepted: list[dict[str, np.ndarray]] = []
    with bar((n_warm + n_kept) * per_chunk * inference.thin, "training step, Gibbs sweeps", progress) as shown:
        for chunk in range(n_warm + n_kept):
            keys = jax.random.split(jax.random.fold_in(key, chunk), (per_chunk, inference.thin, inference.chains))
            at = (chunk * per_chunk + np.arange(per_chunk))[:, None] * inference.thin + np.arange(inference.thin)
            gain = np.where(chunk < n_warm, 2.0 / np.sqrt(1.0 + at), 0.0)
            state, sites, rates = _run(plan, data, state, keys, jnp.asarray(gain))
            if chunk >= n_warm:
                kept.append({name: np.asarray(x) for name, x in sites.items()})
                accepted.append({name: np.asarray(x) for name, x in rates.items()})
            shown.update(per_chunk * inference.thin)
    raw = {name: np.moveaxis(np.concatenate([x[name] for x in kept]), 0, 1)[:, : inference.draws] for name in kept[0]}
    draws = _sites(model, stars, raw, plan, start)
    rates = {name: np.mean([x[name].mean(0) for x in accepted], axis=0).mean(0) for name in accepted[0]}
    stats = _diagnose(model.comparable(draws), rates)
    stats |= {name: start.stats[name] for name in ("n_star", "n_pixel_trained", "n_pixel_dropped")}
    stats["n_pixel_not_converged"] = 0
    if not stats["converged"]:
        stats["advice"] = f"Gibbs(draws={inference.draws}, warmup={2 * inference.warmup}, thin={4 * inference.thin})"
    return Trained(draws, moments_from_draws(model, stars, draws), stats)


def _refuse(model: LinearModel) -> None:
    if isinstance(model.prior, Laplace):
        raise CannotDo(
            "Gibbs needs a Gaussian coefficient prior (priors.Flat, Normal or Learned), got Laplace: use NUTS(), or "
            "MAP() for exact zeros"
        )
    if model.nuisances:
        raise CannotDo("Gibbs does not sample nuisances in training: use MAP() or NUTS()")
    if model.flux_error_factor is not None:
        raise CannotDo("Gibbs does not sample a factor on the flux errors: use MAP() or NUTS()")
    if model.label_curve and model.integrates_labels:
        raise CannotDo("Gibbs does not sample the curve of free labels: use MAP() or NUTS(), or label_noise='joint'")
    if np.isfinite(model.coefficient_bounds()).any():
        raise CannotDo("Gibbs does not sample coefficients within bounds: use NUTS() or MAP(), or bounds=None")


def _prepare(
    model: LinearModel, stars: Stars, start: Trained, n_chain: int, seed: int
) -> tuple[Plan, SweepData, State]:
    em, moments = EM(model, stars), start.moments
    assert moments is not None
    frame, features, prior = model.require_frame(), model.features, model.prior
    m, k, f = len(frame.names), features.size, frame.flux_scale
    n_star = len(em.value)
    rng = np.random.default_rng([seed, 32452843])
    error = np.zeros_like(em.value) if em.error is None else em.error
    ok = np.isfinite(em.value) & np.isfinite(error) & em.trained
    y = np.swapaxes(_blocks(np.where(ok, em.value, 0.0).T, 0.0), 1, 2)
    variance = np.swapaxes(_blocks(np.where(ok, error**2, MISSING).T, MISSING), 1, 2)
    trained = _blocks(em.trained, False)
    point = {name: x[0, 0] for name, x in start.draws.items()}
    s2 = np.nan_to_num(moments.scatter**2, nan=f**2)
    typical = ok.sum(0) / np.maximum((1 / np.maximum(error**2, 1e-300)).sum(0, where=ok), 1e-300)
    guess2 = _blocks(np.maximum(s2, 0.1 * typical) if em.learn_scatter else s2, f**2)
    width_mean, freedom, matrix = Learned().hyper(k, f)
    noisy = em.labels.noisy
    catalogue = em.labels.catalogue
    outputs, p = not model.labels_are_latent, features.n_label
    free = np.ones((n_star, p), bool) if noisy else ~catalogue.observed
    u = moments.training_u if outputs else np.where(free, moments.training_u, catalogue.value)

    nodes = np.random.default_rng(0).uniform(-2, 2, (4 * k, p))
    inverse = np.linalg.pinv(np.asarray(features(jnp.asarray(nodes))))
    tau2 = (moments.label_scatter / frame.scale) ** 2
    spread = np.einsum("nmm->nm", catalogue.covariance) + tau2
    weight = catalogue.observed / np.maximum(spread, 1e-10)
    affine = noisy and features.closed and bool(em.allowed.all()) and not outputs
    step = np.zeros((m, m + 1, m + 1))
    if affine:
        design = np.concatenate([np.ones((n_star, 1)), u], 1)
        gram = np.einsum("ni,nm,nj->mij", design, weight, design) + np.eye(m + 1)
        step = np.linalg.cholesky(np.linalg.inv(gram))

    fixed = model.fixed_population is not None
    plan = Plan(
        features, type(prior).__name__.lower(), em.learn_scatter, bool(free.any()), noisy,
        affine, outputs, fixed, round(freedom), int(em.trained.sum()),
    )  # fmt: skip
    data = SweepData(
        y, variance, _blocks(em.allowed, 1.0), trained, guess2,
        np.zeros((k, k)) if isinstance(prior, Flat | Learned) else prior.numeric(k, f).precision,
        matrix, catalogue.value, catalogue.covariance, catalogue.observed, free, u,
        em.scatter_scale, width_mean, model.label_coefficient_width, model.label_scatter_width,
        step, nodes, inverse,
    )  # fmt: skip

    site = model.sites["coefficients"]
    theta = np.nan_to_num(point[site])
    jitter = rng.standard_normal((n_chain, m, m + 1))
    noise = 0.3 * rng.standard_normal((n_chain, n_star, p))
    if not outputs:
        noise *= np.sqrt(1 / np.maximum(weight + 1, 1e-10))
    if affine:
        noise += 2.0 * np.einsum("ni,mij,cmj->cnm", design, step, jitter)
    c = moments.label_coefficients
    shaken = 0.1 * rng.standard_normal((n_chain, *c.shape)) if outputs else 0.0
    chains = State(
        np.broadcast_to(_blocks(theta, 0.0), (n_chain, *trained.shape, k)),
        np.sqrt(guess2) * np.exp(0.2 * em.learn_scatter * rng.standard_normal((n_chain, *guess2.shape))),
        np.broadcast_to(point.get(f"{site}_mean", np.zeros(k)), (n_chain, k)),
        np.broadcast_to(point.get(f"{site}_covariance", np.eye(k)), (n_chain, k, k)),
        np.where(free, u + noise, u),
        c + shaken * np.ones((n_chain, 1, 1)),
        np.sqrt(tau2 + 1e-4) * np.exp(0.2 * rng.standard_normal((n_chain, m))),
        np.broadcast_to(moments.population_mean, (n_chain, p)),
        np.broadcast_to(moments.population_covariance, (n_chain, p, p)),
        np.broadcast_to(np.log(np.sqrt((tau2 + 1e-4) / n_star)), (n_chain, m)),
        np.full((n_chain, m), np.log(2.4 / np.sqrt(m + 1))),
    )
    return plan, SweepData(*map(jnp.asarray, data)), State(*map(jnp.asarray, chains))


def _blocks(x: np.ndarray, fill: Any) -> np.ndarray:
    """Per-pixel rows (L, ...) in blocks (J, B, ...), the last one padded with `fill`."""
    size = min(PIXELS, len(x))
    rest = np.full((-len(x) % size, *x.shape[1:]), fill, x.dtype)
    return np.concatenate([x, rest]).reshape(-1, size, *x.shape[1:])


@functools.partial(jit, static_argnums=0)
def _run(plan: Plan, data: SweepData, state: State, keys: Array, gain: Array) -> tuple[State, dict[str, Array], Array]:
    """Draws (draw, chain, ...) and acceptance rates; keys (draw, thin, chain), gain of the tuning (draw, thin)."""
    chains = jax.vmap(functools.partial(sweep, plan, data), in_axes=(0, 0, None))

    def one(state: State, step: tuple[Array, Array]) -> tuple[State, dict[str, Array]]:
        return chains(state, *step)

    def draw(state: State, steps: tuple[Array, Array]) -> tuple[State, tuple[dict[str, Array], Array]]:
        state, rates = jax.lax.scan(one, state, steps)
        sites = {"theta": state.theta}
        if not plan.fixed_population:
            sites |= {"population_mean": state.mu, "population_covariance": state.population}
        if plan.learn_scatter:
            sites["s"] = state.s
        if plan.prior == "learned":
            sites |= {"m": state.m, "sigma": state.sigma}
        if plan.latent:
            sites["u"] = state.u
        if plan.noisy:
            sites["tau"] = state.tau
        if plan.outputs:
            sites["c"] = state.c
        return state, (sites, jax.tree.map(lambda x: x.mean(0), rates))

    state, (sites, rates) = jax.lax.scan(draw, state, (keys, gain))
    return state, sites, rates


def _sites(model: LinearModel, stars: Stars, raw: dict[str, np.ndarray], plan: Plan, start: Trained) -> dict[str, Any]:
    """Draws under the names and in the units of the NumPyro program's sites."""
    frame, moments = model.require_frame(), start.moments
    assert moments is not None
    blank = ~np.isfinite(moments.scatter)
    head = raw["theta"].shape[:2]
    theta = raw["theta"].reshape(*head, -1, model.features.size)[:, :, : frame.n_pixel]
    theta = np.where(blank[:, None], np.nan, theta)
    names = model.sites
    draws = {names["coefficients"]: theta}
    if plan.learn_scatter:
        draws["scatter"] = np.where(blank, np.nan, raw["s"].reshape(*head, -1)[:, :, : frame.n_pixel])
    if not plan.fixed_population:
        draws |= {name: raw[name] for name in ("population_mean", "population_covariance")}
    if plan.prior == "learned":
        draws |= {f"{names['coefficients']}_mean": raw["m"], f"{names['coefficients']}_covariance": raw["sigma"]}
    if plan.noisy:
        draws |= {"label_scatter": raw["tau"] * frame.scale, names["latents"]: raw["u"]}
    elif plan.latent:
        draws["labels_missing"] = raw["u"][:, :, ~model.of_latents(model.catalogue(stars)).observed]
    if plan.outputs:
        draws[names["label_coefficients"]] = raw["c"]
    if plan.latent:
        labels = raw["u"] if not plan.outputs else _label_values(model.features, raw["u"], raw["c"])
        draws["true_labels"] = frame.physical(labels)
    return draws


def _label_values(features: Features, u: np.ndarray, c: np.ndarray) -> np.ndarray:
    """C phi(u) for draws u (chain, draw, N, P) of features of first order and c (chain, draw, M, K)."""
    origin = jnp.zeros(features.n_label)
    slope = c @ np.asarray(features.jacobian(origin))
    return u @ np.swapaxes(slope, -1, -2) + (c @ np.asarray(features(origin)))[:, :, None]


def _diagnose(draws: dict[str, np.ndarray], rates: dict[str, np.ndarray]) -> dict[str, Any]:
    stats: dict[str, Any] = worst(draws)
    for name, rate in rates.items():
        stats[f"acceptance_{name}"] = float(rate.mean())
        if name == "u":
            stats[f"acceptance_{name}_min"] = float(rate.min())
    return stats
