"""The posterior of every star's labels from its magnitudes, distance modulus and reddening integrated out.

    p(u | data) ~ p(u) p(labels | u) int dmu p(mu) p(parallax | mu) int dE p(E) N(E_0 | E) p(m | M + mu + E R)
    p(m | .) = (1 - f) N(m | ., C) + f N(m | ., C + w^2 I)
    C = diag(sigma^2 + s_b^2) + s_M^2 1 1' + Cov[M + E R]

w: the scatter of outliers, which a star may be with the probability f. With a second dust vector (R + x R_2 for R) the
star's x ~ N(0, 1) is one more unknown after its labels. The last term of C, what the members of the ensemble disagree
about, is that at a first estimate of u and E. Starts are the best of many draws from the labels' population, tried for
all stars by matrix products: dwarfs and giants alike.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..inference.starwise import Energy, StarProblem
from ..models.photometry import Photometry, second_vector
from ..numerics.dusty import (
    LN10_5,
    DistancePrior,
    Others,
    Quadratic,
    draw,
    log_marginal,
    mean_reddening,
    mode,
    parallax_at,
    project,
    quadratic_of,
    rough,
    summary,
)  # fmt: skip
from ..numerics.linalg import Array, in_float64
from ..numerics.mixture import Mixture
from ..numerics.modes import find_modes
from ..numerics.network import Function
from ..posterior import Posterior
from ..stars import Stars

CANDIDATES = 1024
"""Labels drawn from their population, of which every star tries all for a start."""
CHUNK, FEW = 256, 32
"""Stars whose starts are chosen side by side, and where there are no more than so many."""
MEMBERS = 8
"""Functions kept of a training posterior that was sampled."""


class PhotometricMoments(NamedTuple):
    """E members of an ensemble; L labels, B bands.

    coefficients (E, P): weights of M; reddening_log (E, B), reddening_slope (E, B, L); scatter (B,), mag;
    luminosity_scatter, mag; outlier_fraction; zero_point, zero_point_error, mas; reddening_second (E, B): R_2 if there
    is one, of equal sign in all members.
    """

    coefficients: np.ndarray
    reddening_log: np.ndarray
    reddening_slope: np.ndarray
    scatter: np.ndarray
    luminosity_scatter: np.ndarray
    outlier_fraction: np.ndarray
    zero_point: np.ndarray
    zero_point_error: np.ndarray
    reddening_second: np.ndarray | None = None


class Shared(NamedTuple):
    """What the posteriors of all stars have in common; ensemble: the mean function (`Function.ensemble`); of the
    population ln weight - ln det F, mean and F^-1; second: R_2 if there is one."""

    ensemble: Any
    baseline: Array
    spread: Array
    reddening_log: Array
    reddening_slope: Array
    second: Array | None
    log_weight: Array
    mean: Array
    whiten: Array
    prior: DistancePrior


def precision_of(shared: Shared) -> Any:
    """The type of the ensemble's weights, in which M and R are computed."""
    return jax.tree.leaves(shared.ensemble)[0].dtype


class Noise(NamedTuple):
    """Of each of N stars: 1 / sd of the magnitudes (N, B), the basis of the directions in which they are uncertain
    (N, Q, B + Q), and ln of how probable this noise is, times its normalisation (N,)."""

    root: Array
    basis: Array
    log_norm: Array


class Told(NamedTuple):
    """What the magnitudes say of modulus and reddening at labels (...): of a good star, of an outlier, and the log odds
    that it is one."""

    good: Quadratic
    bad: Quadratic | None
    log_odds: Array | None


class Own(NamedTuple):
    """What belongs to each of N stars: the magnitudes less mu_0, their noise, and that of outliers if there are any,
    `Others`, and the catalogue labels with their precision, scaled."""

    magnitudes: Array
    mu_0: Array
    good: Noise
    bad: Noise | None
    others: Others
    labels: Array
    label_precision: Array


@dataclass(frozen=True)
class LabelEnergy(Energy):
    """-ln p(u | data) of points u (S, L) of one star, up to a constant."""

    net: Function
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

    def quadratic(self, u: Array, shared: Shared, own: Own) -> Quadratic:
        """What the magnitudes say of modulus and reddening, of a star that is no outlier."""
        return told_by(*self.at(u, shared), own, own.good)

    def log_prior(self, u: Array, shared: Shared, own: Own) -> Array:
        labels = self.labels(u)
        z = jnp.einsum("kij,skj->ski", shared.whiten, labels[:, None] - shared.mean)
        off = labels - own.labels
        known = -0.5 * ((off @ own.label_precision) * off).sum(-1) - 0.5 * (u[:, self.net.n_in :] ** 2).sum(-1)
        return jax.scipy.special.logsumexp(shared.log_weight - 0.5 * (z**2).sum(-1), axis=-1) + known

    def __call__(self, u: Array, shared: Shared, own: Own) -> Array:
        return self.in_passing(u, shared, own)[0]

    def in_passing(self, u: Array, shared: Shared, own: Own) -> tuple[Array, Told]:
        """The same, and what the magnitudes say."""
        m, vector = self.at(u, shared)
        others = jax.tree.map(lambda x: jnp.broadcast_to(x, u.shape[:1]), own.others)
        single = precision_of(shared) != u.dtype

        def density(noise):
            q = told_by(m, vector, own, noise)
            return q, log_marginal(q, others, shared.prior, self.nodes, single) + noise.log_norm

        (good, log_p), bad, log_odds = density(own.good), None, None
        if own.bad is not None:
            bad, log_bad = density(own.bad)
            log_odds = log_bad - log_p
            log_p = jnp.logaddexp(log_p, log_bad)
        return -log_p - self.log_prior(u, shared, own), Told(good, bad, log_odds)


def told_by(m: Array, vector: Array, own: Own, noise: Noise) -> Quadratic:
    """What one star's magnitudes say of its modulus and reddening if M and R (S, B) are these."""
    columns = noise.root * jnp.stack([jnp.ones_like(m), vector, own.magnitudes - m], 1)
    return quadratic_of(columns, columns @ noise.basis[:, : m.shape[-1]].T, own.mu_0)


@dataclass(frozen=True)
class LabelCurvature:
    """Gauss-Newton curvature (S, M, M) of a `LabelEnergy`, mu and E as free as parallax and reddening leave them."""

    energy: LabelEnergy

    def __call__(self, u: Array, shared: Shared, own: Own) -> Array:
        n, n_label = u.shape[-1], self.energy.net.n_in
        push = lambda t: jax.jvp(lambda u: self.energy.at(u, shared), (u,), (jnp.broadcast_to(t, u.shape),))  # noqa: E731
        (m, vector), (of_m, of_vector) = jax.vmap(push, out_axes=(None, 0))(jnp.eye(n))
        others = jax.tree.map(lambda x: jnp.broadcast_to(x, u.shape[:1]), own.others)
        noise, q = own.good, told_by(m, vector, own, own.good)
        if own.bad is not None:
            told = self.energy.in_passing(u, shared, own)[1]
            wrong = jnp.asarray(told.log_odds) > 0
            either = lambda bad, good: jnp.where(wrong.reshape(-1, *[1] * bad.ndim), bad, good)  # noqa: E731
            noise = jax.tree.map(either, own.bad, own.good)
            q = jax.tree.map(lambda bad, good: jnp.where(wrong, bad, good), told.bad, told.good)
        x, _ = mode(q, others, shared.prior)
        e = mean_reddening(q, others, x)
        tangent = LN10_5 * parallax_at(own.mu_0 + x) * others.parallax_weight
        of_mu, of_e = 1 / jnp.sqrt(tangent**2 + 0.04), 1 / jnp.sqrt(others.reddening_weight**2 + others.rate**2)
        slopes = jnp.moveaxis(of_m + e[:, None] * of_vector, 0, 1)
        free = jnp.stack([jnp.broadcast_to(of_mu[:, None], m.shape), of_e[:, None] * vector], 1)
        columns = jnp.concatenate([free, slopes], 1) * jnp.broadcast_to(noise.root, m.shape)[:, None]
        n_band = m.shape[-1]
        top = jnp.swapaxes(noise.basis[..., :n_band], -1, -2)
        columns = jnp.concatenate([columns, jnp.zeros((*columns.shape[:2], top.shape[-1]))], -1)
        columns = columns - (columns[..., :n_band] @ top) @ noise.basis
        _, rest, _ = project(columns[:, :2], columns[:, 2:])
        z = jnp.einsum("kij,skj->ski", shared.whiten, self.energy.labels(u)[:, None] - shared.mean)
        part = jax.nn.softmax(shared.log_weight - 0.5 * (z**2).sum(-1), axis=-1)
        of_prior = jnp.einsum("sk,kij,kil->sjl", part, shared.whiten, shared.whiten) + own.label_precision
        extra = n - n_label
        of_prior = jnp.pad(of_prior, ((0, 0), (0, extra), (0, extra))) + jnp.diag(jnp.arange(n) >= n_label)
        return jnp.einsum("sib,sjb->sij", rest, rest) + of_prior


def moments_of(model: Photometry, draws: dict[str, np.ndarray]) -> PhotometricMoments:
    """From draws {site: (chain, draw, ...)} or members, of which at most `MEMBERS` functions are kept."""
    flat = {name: np.asarray(x, float).reshape(-1, *x.shape[2:]) for name, x in draws.items()}
    some = np.unique(np.linspace(0, len(flat["weights"]) - 1, MEMBERS).astype(int))
    zero = flat.get("zero_point", np.array([model.zero_point[0]]))
    fraction = flat.get("outlier_fraction", np.zeros(1))
    second = None
    if "reddening_second" in flat:
        second = np.asarray(second_vector(flat["reddening_second"], flat["reddening_log"]))[some]
        second = second * np.where(second @ second[0] < 0, -1.0, 1.0)[:, None]
    return PhotometricMoments(
        flat["weights"][some], flat["reddening_log"][some], flat["reddening_slope"][some],
        np.sqrt((flat["scatter"] ** 2).mean(0)), np.sqrt((flat["luminosity_scatter"] ** 2).mean()),
        fraction.mean(), zero.mean(), zero.std(), second,
    )  # fmt: skip


def shared_of(model: Photometry, moments: PhotometricMoments) -> Shared:
    frame = model.require_frame()
    mixture = label_prior(model)
    factor = np.linalg.cholesky(mixture.covariance)
    log_weight = np.log(mixture.weight) - np.log(np.einsum("kii->ki", factor)).sum(1)
    return Shared(
        model.net.ensemble(jnp.asarray(moments.coefficients)), jnp.asarray(frame.baseline), jnp.asarray(frame.spread),
        jnp.asarray(moments.reddening_log.mean(0)), jnp.asarray(moments.reddening_slope.mean(0)),
        None if moments.reddening_second is None else jnp.asarray(moments.reddening_second.mean(0)),
        jnp.asarray(log_weight), jnp.asarray(mixture.mean), jnp.asarray(np.linalg.inv(factor)),
        jax.tree.map(jnp.asarray, model.distance_prior),
    )  # fmt: skip


def label_prior(model: Photometry) -> Mixture:
    """Of the test step: the training labels' population; "flat": one Gaussian five times as wide in every direction."""
    population = model.require_frame().mixture
    if model.label_prior == "population":
        return population
    mean = population.weight @ population.mean
    offset = population.mean - mean
    spread = population.covariance + offset[:, :, None] * offset[:, None, :]
    return Mixture(np.ones(1), mean[None], 25 * np.einsum("k,kij->ij", population.weight, spread)[None])


@in_float64
def prepare(posterior: Posterior, stars: Stars, seed: int, starts: int) -> StarProblem:
    """The label posteriors of N stars with their modes."""
    model, moments = posterior.model, posterior.moments
    energy = LabelEnergy(model.net)
    shared = shared_of(model, moments)
    tried = label_prior(model).draw(CANDIDATES, seed)
    if shared.second is not None:
        x = np.random.default_rng([seed, 32452843]).standard_normal((CANDIDATES, 1))
        tried = np.concatenate([tried, x], 1)
    candidates = jnp.asarray(tried)
    at = _at(energy, candidates, shared)
    rows = _rows_of(model, moments, stars)
    members = jax.tree.map(
        jnp.asarray,
        (moments.coefficients, moments.reddening_log, moments.reddening_slope, moments.reddening_second),
    )
    grey = jnp.asarray(moments.luminosity_scatter)
    f = float(moments.outlier_fraction) if model.outliers else 0.0
    wide = model.outlier_width if f > 0 else None
    odds = float(np.log(f / (1 - f))) if f > 0 else -np.inf
    # for draws and their weights float32 is enough: the function right to 1e-6 mag, ln p to 1e-3
    fast = shared._replace(ensemble=jax.tree.map(lambda x: x.astype(jnp.float32), shared.ensemble))
    parts, n = [], len(stars)
    size = FEW if n <= FEW else CHUNK  # two sizes: each is compiled
    for start in range(0, n, size):
        index = np.minimum(np.arange(start, start + size), n - 1)
        mine = jax.tree.map(lambda x, i=index: jnp.asarray(x[i]), rows)
        first = _choose(starts, wide, odds, shared.prior, mine, grey, candidates, *at)
        own = _own(energy, wide, odds, members, shared, mine, grey, first[:, 0])
        parts.append(jax.tree.map(lambda x, k=n - start: np.asarray(x)[:k], (own, first)))
    own, first = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    modes = find_modes(energy, LabelCurvature(energy), shared, own, first, rough=fast)
    return StarProblem(energy, fast, own, modes, 8)


def _rows_of(model: Photometry, moments: PhotometricMoments, stars: Stars) -> dict[str, Any]:
    """Arrays with a row per star: magnitudes and variances, the catalogue labels and their precision, `Others`."""
    seen, n = model.measured(stars), len(stars)
    n_label = model.shape[0]
    data = model.arrays(stars)
    labels, precision = np.zeros((n, n_label)), np.zeros((n, n_label, n_label))
    if "labels" in seen:
        labels, covariance, observed = seen["labels"]
        both = observed[:, :, None] & observed[:, None, :]
        precision = np.where(both, np.linalg.inv(covariance), 0.0)
    # the zero point's own error is common to all stars: it widens every parallax
    sigma = np.where(data.parallax_weight > 0, 1 / np.maximum(data.parallax_weight, 1e-300), 1.0)
    weight = np.where(data.parallax_weight > 0, 1 / np.hypot(sigma, moments.zero_point_error), 0.0)
    parallax = np.where(weight > 0, data.parallax - moments.zero_point, 0.0)
    rate = np.full(n, 1 / model.reddening_scale)
    return {
        "magnitudes": data.magnitudes, "variance": data.variance + moments.scatter**2, "seen": data.seen,
        "labels": labels, "precision": precision, "label_mean": data.label_mean,
        "others": Others(parallax, weight, data.reddening, data.reddening_weight, rate),
    }  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def _at(energy, u, shared):
    return energy.at(u, shared)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _choose(starts, wide, log_odds, prior, rows, luminosity, candidates, m, vector):
    """The best candidates (N, J, M) that are not neighbours; wide: scatter of outliers, or None."""
    y, others = rows["magnitudes"], jax.tree.map(lambda x: x[:, None], rows["others"])

    def density(variance):
        """ln p(magnitudes, ... | candidate) (N, S), by matrix products."""
        w = rows["seen"] / variance
        total = w.sum(1)
        mu_0 = (w * y).sum(1) / jnp.maximum(total, 1e-12) - 4.0
        z = rows["seen"] * (y - mu_0[:, None])
        wz = w * z
        rr = (wz * z).sum(1)[:, None] - 2 * wz @ m.T + w @ (m**2).T
        b_mu, b_e = wz.sum(1)[:, None] - w @ m.T, wz @ vector.T - w @ (m * vector).T
        a_both, a_e = w @ vector.T, w @ (vector**2).T
        # the scatter that all bands share
        k = luminosity**2 / (1 + luminosity**2 * total)[:, None]
        t = total[:, None]
        log_det = (rows["seen"] * jnp.log(2 * np.pi * variance)).sum(1) + jnp.log1p(luminosity**2 * total)
        q = Quadratic(
            t - k * t**2, a_both - k * t * a_both, a_e - k * a_both**2, b_mu - k * t * b_mu, b_e - k * a_both * b_mu,
            -0.5 * (rr - k * b_mu**2 + log_det[:, None]), mu_0[:, None], jnp.zeros_like(t),
        )  # fmt: skip
        return rough(q, others, prior)

    off = candidates[:, : rows["labels"].shape[1]] - rows["labels"][:, None]
    score = density(rows["variance"])
    if wide is not None:
        score = jnp.logaddexp(score, log_odds + density(rows["variance"] + wide**2))
    score = score - 0.5 * ((off @ rows["precision"]) * off).sum(-1)
    has_labels = (rows["precision"] != 0).any((1, 2))
    picks, nearest = [], jnp.full(score.shape, jnp.inf)
    for j in range(starts):
        apart = FAR if j <= starts // 2 else NEIGHBOUR
        pick = candidates[jnp.where(nearest < apart**2, -jnp.inf, score).argmax(1)]
        picks.append(pick)
        nearest = jnp.minimum(nearest, ((candidates - pick[:, None]) ** 2).sum(-1))
    known = jnp.pad(rows["label_mean"], ((0, 0), (0, candidates.shape[1] - off.shape[-1])))
    picks[0] = jnp.where(has_labels[:, None], known, picks[0])
    return jnp.stack(picks, 1)


NEIGHBOUR, FAR = 0.6, 1.5
"""Scaled distances of a start from those before: a dwarf's from a giant's first, then what else there may be."""


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _own(energy, wide, log_odds, members, shared, rows, luminosity, first):
    """`Own` of N stars: what the members disagree about, at the first estimate of u (N, M) and reddening."""
    coefficients, reddening_log, reddening_slope, second = members
    n_member, seen = len(coefficients), rows["seen"]
    root = seen / jnp.sqrt(rows["variance"])
    total = jnp.maximum((root**2).sum(1), 1e-12)
    mu_0 = (root**2 * rows["magnitudes"]).sum(1) / total - 4.0
    z = seen * (rows["magnitudes"] - mu_0[:, None])

    def noise_with(factors, variance):
        root = seen / jnp.sqrt(variance)
        basis, _, log_det = project(factors * root[:, None], jnp.zeros((len(root), 0, root.shape[1])))
        return Noise(root, basis, -0.5 * (log_det + (seen * jnp.log(variance)).sum(1)))

    def own_with(factors, wide=None):
        good, bad = noise_with(factors, rows["variance"]), None
        if wide is not None:
            bad = noise_with(factors, rows["variance"] + wide**2)
            bad = bad._replace(log_norm=bad.log_norm - good.log_norm + log_odds)
        good = good._replace(log_norm=jnp.zeros_like(good.log_norm))
        return Own(z, mu_0, good, bad, rows["others"], rows["labels"], rows["precision"])

    shared_by_all = jnp.broadcast_to(luminosity, (*root.shape,))[:, None]
    if n_member == 1:
        return own_with(shared_by_all, wide)
    q = jax.vmap(lambda u, own: energy.quadratic(u[None], shared, own))(first, own_with(shared_by_all))
    q = jax.tree.map(lambda x: x[:, 0], q)
    e = summary(q, rows["others"], shared.prior).reddening
    labels = energy.labels(first)
    of_m = jax.vmap(energy.net, (0, None))(coefficients, labels) @ shared.spread
    vectors = jnp.exp(reddening_log[:, None] + jnp.einsum("nl,ebl->enb", labels, reddening_slope))
    if second is not None:
        vectors = vectors + first[:, -1:] * second[:, None]
    each = of_m + e[:, None] * vectors
    apart = jnp.moveaxis(each - each.mean(0), 0, 1) / np.sqrt(n_member - 1)
    return own_with(jnp.concatenate([shared_by_all, apart], 1), wide)


@in_float64
def distances(
    problem: StarProblem, u: np.ndarray, seed: int, told: Told | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reddening, modulus and distance (chain, draw, N, 3) given u (chain, draw, N, M), and the probability (N,) that a
    star is an outlier; told: what the magnitudes say at these u, where that is known."""
    n_chain, n_draw, n, _ = u.shape
    by_star = lambda x: np.moveaxis(np.asarray(x).reshape(-1, *x.shape[2:]), 1, 0)  # noqa: E731
    flat, known = by_star(u), None if told is None else jax.tree.map(by_star, told)
    uniform = np.random.default_rng([seed, 49979687]).uniform(1e-9, 1 - 1e-9, (3, *flat.shape[:2]))
    out, wrong = np.empty((*flat.shape[:2], 3)), np.empty(n)
    size = min(problem.at_once * max(1, 128 // flat.shape[1]), n)
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        own = jax.tree.map(lambda x, i=rows: x[i], problem.own)
        mine = None if known is None else jax.tree.map(lambda x, i=rows: x[i], known)
        drawn, odds = _draw_distances(problem.energy, problem.shared, own, flat[rows], mine, uniform[:, rows])
        out[start : start + size, :, :2] = np.asarray(drawn)[: n - start]
        wrong[start : start + size] = np.asarray(odds)[: n - start]
    out[..., 2] = 10 ** (0.2 * (out[..., 1] - 10))
    return np.moveaxis(out, 0, 1).reshape(n_chain, n_draw, n, 3), wrong


@functools.partial(jax.jit, static_argnums=0)
def _draw_distances(energy, shared, own, u, told, uniform):
    def one(own, u, told, uniform):
        others = jax.tree.map(lambda x: jnp.broadcast_to(x, u.shape[:1]), own.others)
        told = energy.in_passing(u, shared, own)[1] if told is None else told
        q, wrong = told.good, jnp.zeros(len(u))
        if told.bad is not None:
            wrong = jax.nn.sigmoid(told.log_odds)
            q = jax.tree.map(lambda bad, good: jnp.where(uniform[2] < wrong, bad, good), told.bad, told.good)
        mu, e = draw(q, others, shared.prior, (uniform[0], uniform[1]))
        return jnp.stack([e, mu], -1), wrong.mean()

    return jax.vmap(one, (0, 0, 0, 1))(own, u, told, uniform)


@in_float64
def misfit(problem: StarProblem) -> np.ndarray:
    """chi^2 (N,) of the magnitudes at the best mode of the labels."""
    n, best, out = problem.n_star, np.asarray(problem.modes.location[0]), []
    for start in range(0, n, FEW):
        rows = np.minimum(np.arange(start, start + FEW), n - 1)
        own = jax.tree.map(lambda x, i=rows: x[i], problem.own)
        out.append(_misfit(problem.energy, problem.shared, own, best[rows]))
    return np.concatenate(out)[:n]


@functools.partial(jax.jit, static_argnums=0)
def _misfit(energy, shared, own, best):
    q = jax.vmap(energy.quadratic, (0, None, 0))(best[:, None], shared, own)
    q = jax.tree.map(lambda x: x[:, 0], q)
    at = summary(q, own.others, shared.prior)
    x, y = at.modulus - q.mu_0, at.reddening - q.e_0
    return q.a_mu * x**2 + 2 * q.a_both * x * y + q.a_e * y**2 - 2 * (q.b_mu * x + q.b_e * y) - 2 * q.log_norm
