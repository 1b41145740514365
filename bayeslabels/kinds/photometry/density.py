"""The posterior density of one star's labels given its magnitudes, distance modulus and reddening integrated out.

    p(u | data) ~ p(u) p(labels | u) int dmu p(mu) p(parallax | mu) int dE p(E) N(E_0 | E) p(m | M + mu + A)
    p(m | .) = (1 - f) N(m | ., C) + f N(m | ., C + w^2 I)
    A = E R - b (E R)^2,   C = C_n + diag(s_b^2) + s_M(u)^2 1 1' + Cov[M + A]

w: the scatter of outliers, which a star may be with the probability f. With a second dust vector (R + x R_2 for R) the
star's x ~ N(0, 1) is one more unknown after its labels. Arrays of the K kinds of star (good ones, and outliers if there
may be any) have the axis K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...numerics.dusty import (
    Others,
    Place,
    Quadratic,
    log_marginal_at,
    loose,
    near,
    place,
    project,
    scattered,
)
from ...numerics.linalg import Array
from ...numerics.modes import Energy
from ...numerics.network import Function
from ...numerics.tangent import TOO_BRIGHT, as_measured, bent_by_most, extinction, slope
from ...numerics.whitening import Noise
from .label_prior import Tilt
from .luminosity import luminosity_sd


class Shared(NamedTuple):
    """What the posteriors of all stars have in common; ensemble: the mean function (`Function.ensemble`); of the
    population ln weight - ln det F, mean and F^-1; tilt: of the label prior by absolute magnitude (`label_prior`);
    second: R_2 if there is one; bend (B,): of the extinction; luminosity, luminosity_slope: of s_M."""

    ensemble: Any
    baseline: Array
    spread: Array
    reddening_log: Array
    reddening_slope: Array
    second: Array | None
    bend: Array
    luminosity: Array
    luminosity_slope: Array
    log_weight: Array
    mean: Array
    whiten: Array
    tilt: Tilt


def precision_of(shared: Shared) -> Any:
    """The type of the ensemble's weights, in which M and R are computed."""
    return jax.tree.leaves(shared.ensemble)[0].dtype


class Kinds(NamedTuple):
    """Noise of N stars of K kinds: of the magnitudes, the basis of the directions in which they are uncertain (N, K, Q,
    B + Q), and ln of how probable the kind is, times its normalisation (N, K)."""

    own: Noise
    basis: Array
    log_norm: Array


class Told(NamedTuple):
    """What the magnitudes say of modulus and reddening at labels (S,), of every kind (S, K); the log odds (S,) that the
    star is an outlier, if it may be; and chi^2 (S,) of a good star's magnitudes, at the mode of the modulus and the
    mean of the reddening there."""

    place: Place
    log_odds: Array | None
    chi2: Array


class Own(NamedTuple):
    """What belongs to each of N stars: the channels, what they are as magnitudes, with weights whose sum is 1, a first
    reddening, their noise, `Others`, and the catalogue labels with their precision, scaled; among (N, K): ln of
    1 or 0, of which components of the population they may be."""

    value: Array
    bright: Array
    weight: Array
    e_0: Array
    noise: Kinds
    others: Others
    labels: Array
    label_precision: Array
    among: Array


@dataclass(frozen=True)
class LabelEnergy(Energy):
    """-ln p(u | data) of points u (S, M) of one star, up to a constant."""

    net: Function
    n_magnitude: int
    nodes: int = 9

    def at(self, u: Array, shared: Shared) -> tuple[Array, Array]:
        """M and R (S, B), means of the members; as precise as their weights."""
        dtype = precision_of(shared)
        points, base, spread = self.labels(u).astype(dtype), shared.baseline.astype(dtype), shared.spread.astype(dtype)
        m = base[0] + points @ base[1:] + self.net.mean(shared.ensemble, points) @ spread
        log_vector = shared.reddening_log.astype(dtype) + points @ shared.reddening_slope.T.astype(dtype)
        vector = jnp.exp(log_vector).astype(u.dtype)
        if u.shape[-1] > self.net.n_in:
            vector = vector + u[:, -1:] * shared.second
        return m.astype(u.dtype), vector

    def labels(self, u: Array) -> Array:
        return u[..., : self.net.n_in]

    def white(self, u: Array, shared: Shared) -> Array:
        """Labels (K, M, S) in every component of their population; one product for all components."""
        n = self.net.n_in
        centre = (shared.whiten @ shared.mean[..., None]).reshape(-1, 1)
        return (shared.whiten.reshape(-1, n) @ self.labels(u).T - centre).reshape(-1, n, len(u))

    def log_prior(self, u: Array, m: Array, shared: Shared, own: Own) -> Array:
        """At absolute magnitudes m (S, B), those of u."""
        off = self.labels(u) - own.labels
        known = -0.5 * ((off @ own.label_precision) * off).sum(-1) - 0.5 * (u[:, self.net.n_in :] ** 2).sum(-1)
        in_each = (shared.log_weight + own.among)[:, None] - 0.5 * (self.white(u, shared) ** 2).sum(1)
        return jax.scipy.special.logsumexp(in_each, axis=0) + known + shared.tilt(m)

    def __call__(self, u: Array, shared: Shared, own: Own) -> Array:
        return self.in_passing(u, shared, own)[0]

    def in_passing(self, u: Array, shared: Shared, own: Own) -> tuple[Array, Told]:
        """The same, and what the magnitudes say."""
        m, vector = self.at(u, shared)
        q = told_by(self.n_magnitude, m, vector, shared, own)
        sd = luminosity_sd(shared.luminosity, shared.luminosity_slope, self.labels(u))
        at, log_norm = place(scattered(q, sd), own.others, precision_of(shared))
        # whatever the magnitudes are, the scatter in luminosity lowers ln p
        chi2 = -2 * log_norm[0] - jnp.log1p(sd**2 * q.a_mu[0])
        each = log_marginal_at(at, log_norm, own.others, self.nodes) + own.noise.log_norm[:, None]
        log_p, log_odds = each[0], None
        if len(each) == 2:
            log_p, log_odds = jnp.logaddexp(each[0], each[1]), each[1] - each[0]
        by_point = jax.tree.map(lambda x: jnp.broadcast_to(x, each.shape).T, at)
        return -log_p - self.log_prior(u, m, shared, own), Told(by_point, log_odds, chi2)


def told_by(n_magnitude: int, m: Array, vector: Array, shared: Shared, own: Own) -> Quadratic:
    """What one star's magnitudes say of its modulus and reddening if M and R (S, B) are these: (K, S), up to a constant
    in log_norm; linear where a first step from the star's own modulus and reddening leads. In float64: it subtracts."""
    dtype, good = precision_of(shared), jax.tree.map(lambda x: x[0], own.noise)
    rough_m, rough_vector, bend, once = jax.tree.map(
        lambda x: jnp.asarray(x, dtype), (m, vector, shared.bend, own._replace(noise=good))
    )
    e = jnp.zeros(m.shape[:1], dtype) + once.e_0
    mu = ((once.bright - rough_m - extinction(e, rough_vector, bend)) * once.weight).sum(-1)
    mu, e = near(_linear(n_magnitude, rough_m, rough_vector, bend, once, mu, e), once.others)
    mu, e = mu.astype(m.dtype), bent_by_most(e.astype(m.dtype), vector, shared.bend)
    return _linear(n_magnitude, m, vector, shared.bend, own, mu, e)


def _linear(n_magnitude: int, m: Array, vector: Array, bend: Array, own: Own, mu: Array, e: Array) -> Quadratic:
    """The same, linear about mu and E (S,); of one kind (S,) or all (K, S)."""
    # bands first, so that sums over bands run along the points
    dimmed, along_e = (f(e, vector.T, bend[:, None], bands=0) for f in (extinction, slope))
    value, change = as_measured(m.T + mu + dimmed, n_magnitude, 0, (own.bright - TOO_BRIGHT)[:, None])
    columns = change, change * along_e, own.value[:, None] - value

    def of_kind(noise: Kinds) -> Quadratic:
        white = [noise.own.white_rows(x) for x in columns]
        along = [noise.basis[:, : m.shape[-1]] @ x for x in white]
        dot = lambda i, j: (white[i] * white[j]).sum(0) - (along[i] * along[j]).sum(0)  # noqa: E731
        return Quadratic(dot(0, 0), dot(0, 1), dot(1, 1), dot(0, 2), dot(1, 2), -0.5 * dot(2, 2), mu, e)

    if own.noise.basis.ndim == 2:
        return of_kind(own.noise)
    kinds = [of_kind(jax.tree.map(lambda x, k=k: x[k], own.noise)) for k in range(len(own.noise.basis))]
    return jax.tree.map(lambda *x: jnp.stack(x), *kinds)._replace(mu_0=mu, e_0=e)


@dataclass(frozen=True)
class LabelCurvature:
    """Gauss-Newton curvature (S, M, M) of a `LabelEnergy`, mu and E as free as parallax and reddening leave them; of an
    outlier, if the star is more probably one."""

    energy: LabelEnergy

    def __call__(self, u: Array, shared: Shared, own: Own, told: Told) -> Array:
        n, n_label = u.shape[-1], self.energy.net.n_in
        push = lambda t: jax.jvp(lambda u: self.energy.at(u, shared), (u,), (jnp.broadcast_to(t, u.shape),))  # noqa: E731
        (m, vector), (of_m, of_vector) = jax.vmap(push, out_axes=(None, 0))(jnp.eye(n))
        others, noise = own.others, jax.tree.map(lambda x: x[0], own.noise)
        mu, e = told.place.mu[:, 0], told.place.e[:, 0]
        if told.log_odds is not None:
            wrong = told.log_odds > 0
            noise = jax.tree.map(lambda x: jnp.where(wrong.reshape(-1, *[1] * (x.ndim - 1)), x[1], x[0]), own.noise)
            mu, e = (jnp.where(wrong, x[:, 1], x[:, 0]) for x in (told.place.mu, told.place.e))
        sd = luminosity_sd(shared.luminosity, shared.luminosity_slope, self.energy.labels(u))
        of_mu, of_e = (jnp.broadcast_to(x, e.shape) for x in loose(others, mu, sd))
        along, bends = slope(e, vector, shared.bend), 1 - 2 * shared.bend * e[:, None] * vector
        slopes = jnp.moveaxis(of_m + e[:, None] * bends * of_vector, 0, 1)
        free = jnp.stack([jnp.broadcast_to(of_mu[:, None], m.shape), of_e[:, None] * along], 1)
        dimmed = extinction(e, vector, shared.bend)
        least = own.bright - TOO_BRIGHT
        change = as_measured(m + mu[:, None] + dimmed, self.energy.n_magnitude, brightest=least)[1]
        columns = noise.own.white(jnp.concatenate([free, slopes], 1) * change[:, None])
        n_band = m.shape[-1]
        top = jnp.swapaxes(noise.basis[..., :n_band], -1, -2)
        columns = jnp.concatenate([columns, jnp.zeros((*columns.shape[:2], top.shape[-1]))], -1)
        columns = columns - (columns[..., :n_band] @ top) @ noise.basis
        _, rest, _ = project(columns[:, :2], columns[:, 2:])
        z = self.energy.white(u, shared)
        part = jax.nn.softmax((shared.log_weight + own.among)[:, None] - 0.5 * (z**2).sum(1), axis=0)
        of_prior = jnp.einsum("ks,kij,kil->sjl", part, shared.whiten, shared.whiten) + own.label_precision
        extra = n - n_label
        of_prior = jnp.pad(of_prior, ((0, 0), (0, extra), (0, extra))) + jnp.diag(jnp.arange(n) >= n_label)
        return jnp.einsum("sib,sjb->sij", rest, rest) + of_prior
