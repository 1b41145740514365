"""One Gibbs sweep of a linear model, block by block, every block exact or Metropolis-corrected.

Drawn in turn, each given all the rest:

theta_l           Gaussian, all pixels from one matrix product
s_l               Metropolis-Hastings with a folded t proposal in s_l; s_l^2 from two Fisher-scoring steps
m, Sigma          Gaussian, inverse Wishart (prior `Learned`)
u_n               Metropolis-Hastings from the compressed spectra, t proposals at the Gauss-Newton optimum; Gaussian if
                  phi is linear
C                 Gaussian, where the labels are outputs C phi(u)
tau, mu, Lambda   folded random walk, Gaussian, inverse Wishart
(u, theta) -> (A u + c, T' theta)    an affine move of the label system that leaves every flux as it is

The target is the joint density of the model's NumPyro program. The last move makes the offsets and slopes of the label
system, which otherwise creep, mix in a few sweeps, and takes chains to labels that are reflected or exchanged: where
the catalogue says little, these are modes of their own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from ...numerics import lockstep, variates
from ...numerics.features import Features
from ...numerics.linalg import Array, after, inverse_psd, outer_pairs, unpack
from .labels import outputs_on_latents
from .model import FLAT_POPULATION

MISSING = 1e200
"""Variance of a number that was not measured: its weight underflows in every sum."""
SCATTER_FREEDOM, LABEL_FREEDOM = 6, 8
"""Degrees of freedom (even) of the t proposals for s_l and u_n."""
LABEL_TRIES, TAU_TRIES, AFFINE_TRIES = 3, 2, 3
"""Proposals per sweep for each star, tau_m and row of the affine map (of either kind)."""
SCATTER_TARGET, AFFINE_TARGET = 0.44, 0.3
"""Acceptance that the random walks are tuned to during warmup."""


class Plan(NamedTuple):
    """What the compiled sweep depends on. prior: "flat", "normal" or "learned"."""

    features: Features
    prior: str
    learn_scatter: bool
    latent: bool
    noisy: bool
    affine: bool
    outputs: bool
    fixed_population: bool
    freedom: int
    n_trained: int


class SweepData(NamedTuple):
    """Pixels in J blocks of B, N stars, M labels, P latents (the labels themselves, P = M, unless they are outputs).

    value, variance (J, N, B), 0 and `MISSING` where missing; allowed (J, B, K); trained, guess2 (J, B): whether a pixel
    is, and the s_l^2 at which Fisher scoring starts; precision (K, K): fixed, of the prior; matrix (K, K): of Sigma's
    prior; labels, observed (N, M): catalogue labels, where known; label_covariance (N, M, M); free (N, P): which
    latents are sampled; guess_u (N, P): where Gauss-Newton starts; width_scatter, width_mean, width_label and
    width_tau, of the priors of s_l, m, C and tau; step (M, M + 1, M + 1): shape of the affine proposals; nodes (S, M),
    inverse (K, S): points that determine a polynomial, and the inverse of its values there.
    """

    value: Array
    variance: Array
    allowed: Array
    trained: Array
    guess2: Array
    precision: Array
    matrix: Array
    labels: Array
    label_covariance: Array
    observed: Array
    free: Array
    guess_u: Array
    width_scatter: Array
    width_mean: Array
    width_label: Array
    width_tau: Array
    step: Array
    nodes: Array
    inverse: Array


class State(NamedTuple):
    """One chain: theta (J, B, K), s (J, B), m (K,), Sigma (K, K), u (N, P), C (M, K), tau in scaled labels (M,),
    mu (P,), Lambda (P, P), and the logarithms of the random walks' widths, (M,) each."""

    theta: Array
    s: Array
    m: Array
    sigma: Array
    u: Array
    c: Array
    tau: Array
    mu: Array
    population: Array
    tau_width: Array
    affine_width: Array


def sweep(plan: Plan, data: SweepData, state: State, key: Array, gain: Any) -> tuple[State, dict[str, Array]]:
    """All blocks once, in turn. Leaves the posterior invariant while gain = 0. Returns acceptance rates, too."""
    keys = jax.random.split(key, 5)
    state, gram, linear, rates = _pixels(plan, data, state, keys[0])
    if plan.prior == "learned":
        state = _hyper(plan, data, state, keys[1])
    if plan.outputs:
        state = _outputs(plan, data, state, gram, linear, keys[2])
    elif plan.latent:
        u, rates["u"] = _labels(plan, data, state, gram, linear, keys[2])
        state = state._replace(u=u)
    if not plan.fixed_population:
        state = _population(state, keys[3])
    if plan.noisy:
        k1, k2 = jax.random.split(keys[4])
        state, rates["tau"] = _label_scatter(plan, data, state, k1, gain)
        if plan.affine:
            state, moved = _affine(plan, data, state, k2, gain)
            rates |= moved
    return state, rates


def _pixels(plan: Plan, data: SweepData, state: State, key: Array) -> tuple[State, Array, Array, Array]:
    """theta and s, block by block of pixels, and with them the compressed spectra: G (packed), b."""
    k = plan.features.size
    phi = plan.features(state.u)
    phi_pairs = outer_pairs(phi)
    precision, information = data.precision, jnp.zeros(k)
    if plan.prior == "learned":
        precision = inverse_psd(state.sigma)
        information = precision @ state.m

    def block(sums: tuple[Array, ...], part: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        y, variance, allowed, trained, guess2, theta, s, key = part
        k1, k2 = jax.random.split(key)
        w = 1 / (variance + s**2)
        gram = unpack(w.T @ phi_pairs, k) * allowed[:, :, None] * allowed[:, None, :] + precision
        if plan.prior == "flat":
            idle = jnp.where(trained[:, None], 1 - allowed, 1.0)
            gram = gram * trained[:, None, None] + idle[:, :, None] * jnp.eye(k)
        right = ((w * y).T @ phi) * allowed + information
        z = jax.random.normal(k1, right.shape)
        if plan.prior == "flat":
            z = z * allowed * trained[:, None]
        theta = variates.gaussian(gram, right, z, theta)
        effective = theta * allowed
        accepted = jnp.ones_like(s)
        if plan.learn_scatter:
            r2 = (y - phi @ effective.T) ** 2
            s, accepted = _scatter(k2, s, r2, variance, guess2, data.width_scatter)
        accepted = jnp.where(trained, accepted, jnp.nan)
        if plan.latent:
            w = 1 / (variance + s**2)
            sums = (sums[0] + w @ outer_pairs(effective), sums[1] + (w * y) @ effective)
        return sums, (theta, s, accepted)

    n = phi.shape[0]
    sums = (jnp.zeros((n, k * (k + 1) // 2)), jnp.zeros((n, k)))
    keys = jax.random.split(key, len(data.value))
    parts = (data.value, data.variance, data.allowed, data.trained, data.guess2, state.theta, state.s, keys)
    (gram, linear), (theta, s, accepted) = jax.lax.scan(block, sums, parts)
    rates = {}
    if plan.learn_scatter:
        rates["scatter"] = jnp.where(data.trained, accepted, 0.0).sum() / plan.n_trained
    return state._replace(theta=theta, s=s), gram, linear, rates


def _scatter(
    key: Array, s: Array, residual2: Array, variance: Array, guess2: Array, width: Array
) -> tuple[Array, Array]:
    """Metropolis-Hastings for s_l (B,): the proposal depends on residuals only, never on the present s."""
    prior = 1 / width**2

    def score(q: Array) -> tuple[Array, Array]:
        w = 1 / (variance + q)
        fisher = 0.5 * (w * w).sum(0) + 1e-300
        return 0.5 * (w * w * residual2 - w).sum(0) - 0.5 * prior, fisher

    gradient, fisher = score(guess2)
    q = jnp.clip(guess2 + gradient / fisher, 0.03 * guess2, 30 * guess2)
    gradient, fisher = score(q)
    best = jnp.clip(q + gradient / fisher, -30 * q, 30 * q)
    location = jnp.sqrt(jnp.maximum(best, 0.0))
    curvature = 4 * fisher * jnp.maximum(best, 0) + 2 * fisher * jnp.maximum(-best, 0) + 2.1 * jnp.sqrt(fisher)
    scale = 1 / jnp.sqrt(curvature + prior)

    def proposal(s: Array) -> Array:
        power = -0.5 * (SCATTER_FREEDOM + 1)
        near, far = (power * jnp.log1p(((s + sign * location) / scale) ** 2 / SCATTER_FREEDOM) for sign in (-1, 1))
        return jnp.logaddexp(near, far)

    k1, k2 = jax.random.split(key)
    new = jnp.abs(location + scale * variates.student(k1, s.shape, SCATTER_FREEDOM, 1)[..., 0])
    old_total, new_total = variance + s**2, variance + new**2
    ratio = new_total / old_total
    likelihood = -0.5 * (_sum_log(ratio) + (residual2 * (1 - ratio) / new_total).sum(0))
    log_accept = likelihood - 0.5 * prior * (new**2 - s**2) + proposal(s) - proposal(new)
    accept = jnp.log(jax.random.uniform(k2, s.shape)) < log_accept
    return jnp.where(accept, new, s), accept.astype(s.dtype)


def _hyper(plan: Plan, data: SweepData, state: State, key: Array) -> State:
    """m and Sigma given the trained pixels' coefficients."""
    k1, k2 = jax.random.split(key)
    k = plan.features.size
    used = data.trained.reshape(-1, 1)
    theta = state.theta.reshape(-1, k)
    count = plan.n_trained
    precision = inverse_psd(state.sigma)
    total = jnp.where(used, theta, 0.0).sum(0)
    m = variates.gaussian(
        count * precision + jnp.eye(k) / data.width_mean**2, precision @ total, jax.random.normal(k1, (k,))
    )
    offset = jnp.where(used, theta - m, 0.0)
    sigma = variates.inverse_wishart(k2, plan.freedom + count, data.matrix + offset.T @ offset)
    return state._replace(m=m, sigma=sigma)


def _labels(plan: Plan, data: SweepData, state: State, gram: Array, linear: Array, key: Array) -> tuple[Array, Array]:
    """u of all stars: t proposals at the Gauss-Newton optimum, then a random walk of the same shape.

    The optimum is sought from a fixed point, so that the proposals do not depend on the present labels. Arrays have the
    star last. Entries not `free` stay where they are.
    """
    features = plan.features
    n, m = state.u.shape
    g, b = jnp.moveaxis(unpack(gram, features.size), 0, -1), linear.T
    prior = inverse_psd(state.population)
    p = jnp.broadcast_to(prior[:, :, None], (m, m, n))
    h = jnp.broadcast_to((prior @ state.mu)[:, None], (m, n))
    if plan.noisy:
        seen = _label_precision(data, state.tau)
        p = p + seen
        h = h + (seen * data.labels.T[None]).sum(1)
    free = data.free.T.astype(float)
    both, eye = free[:, None] * free[None], jnp.eye(m)[:, :, None]

    def log_density(u: Array) -> Array:
        phi = features(u.T).T
        half = sum(g[j] * phi[j] for j in range(features.size))
        return ((b - 0.5 * half) * phi).sum(0) + ((h - 0.5 * (p * u[None]).sum(1)) * u).sum(0)

    def derivatives(u: Array) -> tuple[Array, Array]:
        phi, jac = features(u.T).T, jnp.moveaxis(features.jacobian(u.T), 0, -1)
        slope = sum(g[j] * phi[j] for j in range(features.size)) - b
        product: Any = sum(g[:, j, None] * jac[j] for j in range(features.size))
        curvature = sum(jac[j][:, None] * product[j][None] for j in range(features.size)) + p
        gradient = (jac * slope[:, None]).sum(0) + (p * u[None]).sum(1) - h
        return gradient * free, curvature * both + eye * (1 - free)

    def newton(_: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        u, value, damping = carry
        gradient, curvature = derivatives(u)
        factor = lockstep.cholesky(curvature * (1 + eye * damping))
        trial = u - lockstep.back(factor, lockstep.forward(factor, gradient))
        at = log_density(trial)
        better = at >= value
        damping = jnp.where(better, 0.1 * damping, 10 * damping + 1e-3)
        return jnp.where(better, trial, u), jnp.where(better, at, value), damping

    guess = data.guess_u.T
    best, *_ = jax.lax.fori_loop(0, 4, newton, (guess, log_density(guess), jnp.full(n, 1e-4)))
    factor = lockstep.cholesky(derivatives(best)[1])
    dimension = free.sum(0)

    def proposal(u: Array) -> Array:
        z2 = ((lockstep.up(factor, u - best) * free) ** 2).sum(0)
        return -0.5 * (LABEL_FREEDOM + dimension) * jnp.log1p(z2 / LABEL_FREEDOM)

    k1, k2, k3 = jax.random.split(key, 3)
    t = jnp.moveaxis(variates.student(k1, (LABEL_TRIES, n), LABEL_FREEDOM, m), -1, 1)
    uniform = jnp.log(jax.random.uniform(k2, (LABEL_TRIES + 1, n)))

    def attempt(carry: tuple[Array, ...], part: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        u, value, weight = carry
        t, uniform = part
        new = best + lockstep.back(factor, t * free)
        new_value = log_density(new)
        new_weight = new_value - proposal(new)
        accept = uniform < new_weight - weight
        u, value = jnp.where(accept, new, u), jnp.where(accept, new_value, value)
        return (u, value, jnp.where(accept, new_weight, weight)), accept

    u = state.u.T
    value = log_density(u)
    start = (u, value, value - proposal(u))
    (u, value, _), accepted = jax.lax.scan(attempt, start, (t, uniform[1:]))
    new = u + lockstep.back(factor, 2.0 / np.sqrt(m) * jax.random.normal(k3, (m, n)) * free)
    accept = uniform[0] < log_density(new) - value
    return jnp.where(accept, new, u).T, accepted.mean(0)


def _population(state: State, key: Array) -> State:
    """mu ~ N(0, 10^2) and Lambda ~ InverseWishart(M + 2, I) given u."""
    k1, k2 = jax.random.split(key)
    n, m = state.u.shape
    precision = inverse_psd(state.population)
    mu = variates.gaussian(n * precision + jnp.eye(m) / 100.0, precision @ state.u.sum(0), jax.random.normal(k1, (m,)))
    offset = state.u - mu
    population = variates.inverse_wishart(k2, m + 2 + n, jnp.eye(m) + offset.T @ offset)
    return state._replace(mu=mu, population=population)


def _outputs(plan: Plan, data: SweepData, state: State, gram: Array, linear: Array, key: Array) -> State:
    """Latents of all stars, then C: both Gaussian, phi being linear."""
    k1, k2 = jax.random.split(key)
    features = plan.features
    origin = jnp.zeros(features.n_label)
    at_zero, jacobian = features(origin), features.jacobian(origin)
    seen = jnp.moveaxis(_label_precision(data, state.tau), -1, 0)
    precision, information = outputs_on_latents(data.labels, seen, state.c, at_zero, jacobian)
    prior = after(inverse_psd(state.population), state.sigma)
    g = unpack(gram, features.size)
    precision = precision + prior + jacobian.T @ g @ jacobian
    information = information + prior @ state.mu + (linear - g @ at_zero) @ jacobian
    u = variates.gaussian(precision, information, jax.random.normal(k1, state.u.shape), state.u)
    phi = features(u)
    m, k = state.c.shape
    flat = seen.reshape(-1, m * m).T @ (phi[:, :, None] * phi[:, None, :]).reshape(-1, k * k)
    total = jnp.moveaxis(flat.reshape(m, m, k, k), 2, 1).reshape(m * k, m * k) + jnp.eye(m * k) / data.width_label**2
    right = jnp.einsum("nij,nj->ni", seen, data.labels).T @ phi
    c = variates.gaussian(total, right.reshape(m * k), jax.random.normal(k2, (m * k,)), state.c.reshape(m * k)).reshape(
        m, k
    )
    return state._replace(u=u, c=c)


def _label_scatter(plan: Plan, data: SweepData, state: State, key: Array, gain: Any) -> tuple[State, Array]:
    """tau_m, one at a time, by a random walk folded at zero; in scaled labels."""
    m = len(state.tau)
    true = plan.features(state.u) @ state.c.T if plan.outputs else state.u
    offset = jnp.where(data.observed, data.labels - true, 0.0).T

    def density(tau: Array) -> Array:
        return _label_density(data, offset, tau) - 0.5 * (tau**2).sum() / data.width_tau**2

    def step(carry: tuple[Array, ...], part: tuple[Array, ...]) -> tuple[tuple[Array, ...], Array]:
        tau, value, width = carry
        index, key = part
        k1, k2 = jax.random.split(key)
        move = jnp.exp(width[index]) * jax.random.normal(k1)
        new = tau.at[index].set(jnp.abs(tau[index] + move))
        new_value = density(new)
        chance = jnp.minimum(jnp.exp(new_value - value), 1.0)
        accept = jax.random.uniform(k2) < chance
        width = width.at[index].add(gain * (chance - SCATTER_TARGET))
        return (jnp.where(accept, new, tau), jnp.where(accept, new_value, value), width), chance

    start = (state.tau, density(state.tau), state.tau_width)
    parts = (jnp.tile(jnp.arange(m), TAU_TRIES), jax.random.split(key, m * TAU_TRIES))
    (tau, _, width), chance = jax.lax.scan(step, start, parts)
    return state._replace(tau=tau, tau_width=width), chance.mean()


def _affine(plan: Plan, data: SweepData, state: State, key: Array, gain: Any) -> tuple[State, Array]:
    """u_m -> c + sum_j a_j u_j, one label m at a time, with everything that lives on the labels; proposed in two ways.

    walk: unit time of the flow du_m/dt = xi . (1, u). xi and -xi are equally likely and undo each other, so that the
    acceptance ratio is that of the densities times the Jacobian.

    leap: the new u_m is what the catalogue says of it within the span of (1, u), wherever it is now: reflected and
    exchanged labels, which no walk reaches, are among it. The span, and so what is likely, is the same from the new
    labels; in coordinates (c, a) there and back differ by the Jacobian |a_m|^-(M + 2) of the inverse, and |a_m| of the
    basis.

    With phi(u') = T phi(u): theta' = T^-T theta, m' = T^-T m, Sigma' = T^-T Sigma T^-1, mu' = A mu + c,
    Lambda' = A Lambda A'. The fluxes and, where learned, p(u | mu, Lambda) du and p(theta | m, Sigma) dtheta stay.
    """
    m, k = len(state.mu), plan.features.size
    powers = jnp.asarray(plan.features.powers, float)
    precision = inverse_psd(state.sigma) if plan.prior == "learned" else jnp.zeros((k, k))
    weight = data.observed / (jnp.diagonal(data.label_covariance, axis1=1, axis2=2) + state.tau**2)

    def density(
        tau: Array, u: Array, theta: Array, mean: Array, precision: Array, mu: Array, population_precision: Array
    ) -> Array:
        """Log density of all that changes: catalogue labels and hyperpriors, without the determinants."""
        offset = jnp.where(data.observed, data.labels - u, 0.0).T
        out = _label_density(data, offset, tau)
        if plan.fixed_population:
            out = out - 0.5 * (u**2).sum() / FLAT_POPULATION
        else:
            out = out - 0.5 * (mu**2).sum() / 100 - 0.5 * jnp.trace(population_precision)
        if plan.prior == "learned":
            out = out - 0.5 * (mean**2).sum() / data.width_mean**2 - 0.5 * (data.matrix * precision).sum()
        elif plan.prior == "normal":
            used = jnp.where(data.trained[..., None], theta, 0.0)
            out = out - 0.5 * (used**2 * jnp.diagonal(data.precision)).sum()
        return out

    def at(now: Any, line: Array, row: Array) -> tuple[Any, Array]:
        """Everything where u_row is line . (1, u), and the logarithm of the Jacobian."""
        chosen = jnp.arange(m) == row
        turned = -line.at[row + 1].set(-1.0) / line[row + 1]
        slope, back = (jnp.where(chosen[:, None], x[1:], jnp.eye(m)) for x in (line, turned))
        offset, back_offset = (chosen * x[0] for x in (line, turned))
        forth = (data.inverse @ plan.features(data.nodes @ slope.T + offset)).T
        inverse = (data.inverse @ plan.features(data.nodes @ back.T + back_offset)).T
        u, theta, mean, precision, mu, population_precision = now
        new: tuple[Any, ...] = (u @ slope.T + offset, theta @ inverse, mean @ inverse, forth @ precision @ forth.T)
        if plan.fixed_population:
            new = (*new, mu, population_precision)
        else:
            new = (*new, slope @ mu + offset, back.T @ population_precision @ back)
        log_a = jnp.log(jnp.abs(line[row + 1]))
        log_t = log_a * powers[row]
        jacobian = (len(u) if plan.fixed_population else -(m + 1.0)) * log_a
        jacobian += (plan.freedom - 1) * log_t if plan.prior == "learned" else -plan.n_trained * log_t
        return new, jacobian

    def decided(now: Any, value: Array, new: Any, log_ratio: Array, key: Array) -> tuple[Any, Array, Array]:
        new_value = density(state.tau, *new)
        chance = jnp.minimum(jnp.exp(new_value - value + log_ratio), 1.0)
        chance = jnp.where(jnp.isfinite(chance), chance, 0.0)
        accept = jax.random.uniform(key) < chance
        return *jax.tree.map(lambda a, b: jnp.where(accept, a, b), (new, new_value), (now, value)), chance

    def step(carry: tuple[Array, ...], part: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        now, value, width = carry
        row, key = part
        k1, k2, k3, k4 = jax.random.split(key, 4)
        xi = jnp.exp(width[row]) * data.step[row] @ jax.random.normal(k1, (m + 1,))
        new, jacobian = at(now, _flow(xi, row), row)
        now, value, walked = decided(now, value, new, jacobian, k2)
        width = width.at[row].add(gain * (walked - AFFINE_TARGET))

        u = now[0]
        design = jnp.concatenate([jnp.ones((len(u), 1)), u], 1)
        w = weight[:, row]
        factor = jnp.linalg.cholesky((design.T * w) @ design)
        right = design.T @ (w * data.labels[:, row])
        best = solve_triangular(factor, solve_triangular(factor, right, lower=True), lower=True, trans="T")
        t = variates.student(k3, (), LABEL_FREEDOM, m + 1)
        line = best + solve_triangular(factor, t, lower=True, trans="T")
        present = factor.T @ (jnp.eye(m + 1)[row + 1] - best)
        new, jacobian = at(now, line, row)
        tails = jnp.log1p((t**2).sum() / LABEL_FREEDOM) - jnp.log1p((present**2).sum() / LABEL_FREEDOM)
        ratio = jacobian - (m + 1) * jnp.log(jnp.abs(line[row + 1])) + 0.5 * (LABEL_FREEDOM + m + 1) * tails
        now, value, leapt = decided(now, value, new, ratio, k4)
        return (now, value, width), (walked, leapt)

    now: tuple[Any, ...] = (state.u, state.theta, state.m, precision, state.mu, inverse_psd(state.population))
    start = (now, density(state.tau, *now), state.affine_width)
    parts = (jnp.tile(jnp.arange(m), AFFINE_TRIES), jax.random.split(key, m * AFFINE_TRIES))
    (now, _, width), (walked, leapt) = jax.lax.scan(step, start, parts)
    u, theta, mean, precision, mu, population_precision = now
    state = state._replace(
        u=u, theta=theta, m=mean, mu=mu, population=inverse_psd(population_precision), affine_width=width
    )
    if plan.prior == "learned":
        state = state._replace(sigma=inverse_psd(precision))
    return state, {"affine": walked.mean(), "leap": leapt.mean()}


def _flow(xi: Array, row: Array) -> Array:
    """(c, a) (M + 1,) of u_row -> c + sum_j a_j u_j after unit time of du_row/dt = xi . (1, u)."""
    rate = xi[row + 1]
    small = jnp.abs(rate) < 1e-8
    stretch = jnp.where(small, 1 + 0.5 * rate, jnp.expm1(rate) / jnp.where(small, 1.0, rate))
    return (stretch * xi).at[row + 1].set(jnp.exp(rate))


def _label_covariance(data: SweepData, tau: Array) -> Array:
    """(M, M, N): of the catalogue labels about the true ones, the identity where not observed."""
    eye = jnp.eye(len(tau))[:, :, None]
    seen = data.observed.T
    both = seen[:, None] & seen[None]
    return jnp.where(both, jnp.moveaxis(data.label_covariance, 0, -1) + eye * tau[:, None, None] ** 2, eye)


def _label_density(data: SweepData, offset: Array, tau: Array) -> Array:
    """ln p(catalogue labels) from offset (M, N), zero where not observed."""
    factor = lockstep.cholesky(_label_covariance(data, tau))
    z2 = (lockstep.forward(factor, offset) ** 2).sum(0)
    return -(0.5 * z2 + sum(jnp.log(factor[i][i]) for i in range(len(tau)))).sum()


def _label_precision(data: SweepData, tau: Array) -> Array:
    """(M, M, N), zero in rows and columns not observed."""
    m = len(tau)
    seen = data.observed.T
    factor = lockstep.cholesky(_label_covariance(data, tau))
    columns = [
        lockstep.back(factor, lockstep.forward(factor, jnp.broadcast_to(jnp.eye(m)[i][:, None], seen.shape)))
        for i in range(m)
    ]
    return jnp.stack(columns, 1) * (seen[:, None] & seen[None])


def _sum_log(x: Array) -> Array:
    """sum of ln x over the first axis."""
    return jnp.log(x).sum(0)
