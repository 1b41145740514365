"""The posterior of every star's labels from its magnitudes, distance modulus and reddening integrated out.

    p(u | data) ~ p(u) p(labels | u) int dmu p(mu) p(parallax | mu) int dE p(E) N(E_0 | E) N(m | M + mu + E R, C)
    C = diag(sigma^2 + s_b^2) + s_M^2 1 1' + Cov[M + E R]

the last term, what the members of the ensemble disagree about, at a first estimate of u and E. Starts are the best of
many draws from the labels' population, tried for all stars by matrix products: dwarfs and giants alike.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from ..inference.starwise import StarProblem
from ..models.photometry import Photometry
from ..numerics.dusty import (
    LN10_5,
    DistancePrior,
    Others,
    Quadratic,
    draw,
    log_marginal,
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
from ..numerics.optimize import Modes
from ..posterior import Posterior
from ..stars import Stars

CANDIDATES = 1024
"""Labels drawn from their population, of which every star tries all for a start."""
CHUNK = 256
"""Stars whose modes are sought side by side."""
MEMBERS = 8
"""Functions kept of a training posterior that was sampled."""


class PhotometricMoments(NamedTuple):
    """E members of an ensemble; L labels, B bands.

    coefficients (E, P): weights of M; reddening_log (E, B), reddening_slope (E, B, L); scatter (B,), mag;
    luminosity_scatter, mag; outlier_fraction; zero_point, zero_point_error, mas.
    """

    coefficients: np.ndarray
    reddening_log: np.ndarray
    reddening_slope: np.ndarray
    scatter: np.ndarray
    luminosity_scatter: np.ndarray
    outlier_fraction: np.ndarray
    zero_point: np.ndarray
    zero_point_error: np.ndarray


class Shared(NamedTuple):
    """What the posteriors of all stars have in common; ensemble: the mean function (`Function.ensemble`); of the
    population ln weight - ln det F, mean and F^-1."""

    ensemble: Any
    baseline: Array
    spread: Array
    reddening_log: Array
    reddening_slope: Array
    log_weight: Array
    mean: Array
    whiten: Array
    prior: DistancePrior


def precision_of(shared: Shared) -> Any:
    """The type of the ensemble's weights, in which M and R are computed."""
    return jax.tree.leaves(shared.ensemble)[0].dtype


class Own(NamedTuple):
    """What belongs to each of N stars: the magnitudes less mu_0, 1 / their sd, the basis of the directions in which
    they are uncertain (N, Q, B + Q), `Others`, and the catalogue labels with their precision, scaled."""

    magnitudes: Array
    root: Array
    basis: Array
    mu_0: Array
    others: Others
    labels: Array
    label_precision: Array


@dataclass(frozen=True)
class LabelEnergy:
    """-ln p(u | data) of points u (S, L) of one star, up to a constant."""

    net: Function
    nodes: int = 9

    def at(self, u: Array, shared: Shared) -> tuple[Array, Array]:
        """M and R (S, B), means of the members; as precise as their weights."""
        dtype = precision_of(shared)
        points, base, spread = u.astype(dtype), shared.baseline.astype(dtype), shared.spread.astype(dtype)
        m = base[0] + points @ base[1:] + self.net.mean(shared.ensemble, points) @ spread
        log_vector = shared.reddening_log.astype(dtype) + points @ shared.reddening_slope.T.astype(dtype)
        return m.astype(u.dtype), jnp.exp(log_vector).astype(u.dtype)

    def quadratic(self, u: Array, shared: Shared, own: Own) -> Quadratic:
        return told_by(*self.at(u, shared), own)

    def log_prior(self, u: Array, shared: Shared, own: Own) -> Array:
        z = jnp.einsum("kij,skj->ski", shared.whiten, u[:, None] - shared.mean)
        off = u - own.labels
        known = -0.5 * ((off @ own.label_precision) * off).sum(-1)
        return jax.scipy.special.logsumexp(shared.log_weight - 0.5 * (z**2).sum(-1), axis=-1) + known

    def __call__(self, u: Array, shared: Shared, own: Own) -> Array:
        return self.in_passing(u, shared, own)[0]

    def in_passing(self, u: Array, shared: Shared, own: Own) -> tuple[Array, Quadratic]:
        """The same, and what the magnitudes say of modulus and reddening."""
        q = self.quadratic(u, shared, own)
        others = jax.tree.map(lambda x: jnp.broadcast_to(x, u.shape[:1]), own.others)
        single = precision_of(shared) != u.dtype
        return -log_marginal(q, others, shared.prior, self.nodes, single) - self.log_prior(u, shared, own), q


def told_by(m: Array, vector: Array, own: Own) -> Quadratic:
    """What one star's magnitudes say of its modulus and reddening if M and R (S, B) are these."""
    columns = own.root * jnp.stack([jnp.ones_like(m), vector, own.magnitudes - m], 1)
    return quadratic_of(columns, columns @ own.basis[:, : m.shape[-1]].T, own.mu_0)


@dataclass(frozen=True)
class LabelCurvature:
    """Gauss-Newton curvature (S, L, L) of a `LabelEnergy`, mu and E as free as parallax and reddening leave them."""

    energy: LabelEnergy

    def __call__(self, u: Array, shared: Shared, own: Own) -> Array:
        n_label = u.shape[-1]
        push = lambda t: jax.jvp(lambda u: self.energy.at(u, shared), (u,), (jnp.broadcast_to(t, u.shape),))  # noqa: E731
        (m, vector), (slopes, _) = jax.vmap(push, out_axes=(None, 0))(jnp.eye(n_label))
        others = jax.tree.map(lambda x: jnp.broadcast_to(x, u.shape[:1]), own.others)
        x, _ = mode(told_by(m, vector, own), others, shared.prior)
        tangent = LN10_5 * parallax_at(own.mu_0 + x) * others.parallax_weight
        of_mu, of_e = 1 / jnp.sqrt(tangent**2 + 0.04), 1 / jnp.sqrt(others.reddening_weight**2 + others.rate**2)
        free = jnp.stack([of_mu[:, None] * own.root, of_e[:, None] * own.root * vector], 1)
        top = own.basis[:, : m.shape[-1]]
        columns = jnp.concatenate([free, own.root * jnp.moveaxis(slopes, 0, 1)], 1)
        columns = jnp.concatenate([columns, jnp.zeros((*columns.shape[:2], len(top)))], -1)
        columns = columns - (columns[..., : m.shape[-1]] @ top.T) @ own.basis
        _, rest, _ = project(columns[:, :2], columns[:, 2:])
        z = jnp.einsum("kij,skj->ski", shared.whiten, u[:, None] - shared.mean)
        part = jax.nn.softmax(shared.log_weight - 0.5 * (z**2).sum(-1), axis=-1)
        of_prior = jnp.einsum("sk,kij,kil->sjl", part, shared.whiten, shared.whiten)
        return jnp.einsum("sib,sjb->sij", rest, rest) + of_prior + own.label_precision


def moments_of(model: Photometry, draws: dict[str, np.ndarray]) -> PhotometricMoments:
    """From draws {site: (chain, draw, ...)} or members, of which at most `MEMBERS` functions are kept."""
    flat = {name: np.asarray(x, float).reshape(-1, *x.shape[2:]) for name, x in draws.items()}
    some = np.unique(np.linspace(0, len(flat["weights"]) - 1, MEMBERS).astype(int))
    zero = flat.get("zero_point", np.array([model.zero_point[0]]))
    fraction = flat.get("outlier_fraction", np.zeros(1))
    return PhotometricMoments(
        flat["weights"][some], flat["reddening_log"][some], flat["reddening_slope"][some],
        np.sqrt((flat["scatter"] ** 2).mean(0)), np.sqrt((flat["luminosity_scatter"] ** 2).mean()),
        fraction.mean(), zero.mean(), zero.std(),
    )  # fmt: skip


def shared_of(model: Photometry, moments: PhotometricMoments) -> Shared:
    frame = model.require_frame()
    mixture = label_prior(model)
    factor = np.linalg.cholesky(mixture.covariance)
    log_weight = np.log(mixture.weight) - np.log(np.einsum("kii->ki", factor)).sum(1)
    return Shared(
        model.net.ensemble(jnp.asarray(moments.coefficients)), jnp.asarray(frame.baseline), jnp.asarray(frame.spread),
        jnp.asarray(moments.reddening_log.mean(0)), jnp.asarray(moments.reddening_slope.mean(0)),
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
def prepare(posterior: Posterior, stars: Stars, seed: int, starts: int) -> tuple[StarProblem, np.ndarray]:
    """The label posteriors of N stars with their modes, and the probability (N,) that a star is an outlier."""
    model, moments = posterior.model, posterior.moments
    energy = LabelEnergy(model.net)
    shared = shared_of(model, moments)
    candidates = jnp.asarray(label_prior(model).draw(CANDIDATES, seed))
    at = _at(energy, candidates, shared)
    rows = _rows_of(model, moments, stars)
    members = tuple(map(jnp.asarray, (moments.coefficients, moments.reddening_log, moments.reddening_slope)))
    grey = jnp.asarray(moments.luminosity_scatter)
    # for draws and their weights float32 is enough: the function right to 1e-6 mag, ln p to 1e-3
    fast = shared._replace(ensemble=jax.tree.map(lambda x: x.astype(jnp.float32), shared.ensemble))
    parts, n = [], len(stars)
    size = min(CHUNK, 1 << max(3, int(n - 1).bit_length()))
    for start in range(0, n, size):
        index = np.minimum(np.arange(start, start + size), n - 1)
        mine = jax.tree.map(lambda x, i=index: jnp.asarray(x[i]), rows)
        first, good, bad = _choose(starts, model.outlier_width, shared.prior, mine, grey, candidates, *at)
        own = _own(energy, *members, shared, mine, grey, first[:, 0])
        modes = find_modes(energy, LabelCurvature(energy), shared, own, first, rough=fast)
        f = float(moments.outlier_fraction) if model.outliers else 0.0
        odds = np.asarray(bad - good) + (np.log(f) - np.log1p(-f) if f > 0 else -np.inf)
        kept = min(size, n - start)
        parts.append((jax.tree.map(lambda x, k=kept: np.asarray(x)[:k], own),
                      Modes(*(np.asarray(x)[:, :kept] for x in modes)), expit(odds)[:kept]))  # fmt: skip
    joined = jax.tree.map(lambda *x: np.concatenate(x), *[p[0] for p in parts])
    all_modes = Modes(*(np.concatenate(x, 1) for x in zip(*[p[1] for p in parts], strict=True)))
    wrong = np.concatenate([p[2] for p in parts])
    return StarProblem(energy, fast, joined, all_modes, 8, energy.in_passing), wrong


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _choose(starts, wide, prior, rows, luminosity, candidates, m, vector):
    """The best candidates (N, J, L) that are not neighbours, and ln p(data) (N,) as no outlier and as one."""
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

    off = candidates - rows["labels"][:, None]
    known = -0.5 * ((off @ rows["precision"]) * off).sum(-1)
    good = density(rows["variance"]) + known
    bad = density(rows["variance"] + wide**2) + known
    evidence = [jax.scipy.special.logsumexp(x, axis=1) for x in (good, bad)]
    has_labels = (rows["precision"] != 0).any((1, 2))
    picks, nearest = [], jnp.full(good.shape, jnp.inf)
    for j in range(starts):
        apart = FAR if j <= starts // 2 else NEIGHBOUR
        pick = candidates[jnp.where(nearest < apart**2, -jnp.inf, good).argmax(1)]
        picks.append(pick)
        nearest = jnp.minimum(nearest, ((candidates - pick[:, None]) ** 2).sum(-1))
    picks[0] = jnp.where(has_labels[:, None], rows["label_mean"], picks[0])
    return jnp.stack(picks, 1), *evidence


NEIGHBOUR, FAR = 0.6, 1.5
"""Scaled distances of a start from those before: a dwarf's from a giant's first, then what else there may be."""


@functools.partial(jax.jit, static_argnums=0)
def _own(energy, coefficients, reddening_log, reddening_slope, shared, rows, luminosity, first):
    """`Own` of N stars: what the members disagree about, at the first estimate of labels (N, L) and reddening."""
    n_member = len(coefficients)
    root = rows["seen"] / jnp.sqrt(rows["variance"])
    total = jnp.maximum((root**2).sum(1), 1e-12)
    mu_0 = (root**2 * rows["magnitudes"]).sum(1) / total - 4.0
    z = rows["seen"] * (rows["magnitudes"] - mu_0[:, None])

    def own_with(factors):
        basis, _, _ = project(factors * root[:, None], jnp.zeros((len(root), 0, root.shape[1])))
        return Own(z, root, basis, mu_0, rows["others"], rows["labels"], rows["precision"])

    shared_by_all = jnp.broadcast_to(luminosity, (*root.shape,))[:, None]
    if n_member == 1:
        return own_with(shared_by_all)
    q = jax.vmap(lambda u, own: energy.quadratic(u[None], shared, own))(first, own_with(shared_by_all))
    q = jax.tree.map(lambda x: x[:, 0], q)
    e = summary(q, rows["others"], shared.prior).reddening
    of_m = jax.vmap(energy.net, (0, None))(coefficients, first) @ shared.spread
    vectors = jnp.exp(reddening_log[:, None] + jnp.einsum("nl,ebl->enb", first, reddening_slope))
    each = of_m + e[:, None] * vectors
    apart = jnp.moveaxis(each - each.mean(0), 0, 1) / np.sqrt(n_member - 1)
    return own_with(jnp.concatenate([shared_by_all, apart], 1))


@in_float64
def distances(problem: StarProblem, u: np.ndarray, seed: int, told: Quadratic | None = None) -> np.ndarray:
    """Reddening, modulus and distance (chain, draw, N, 3) given labels u (chain, draw, N, L), and what the magnitudes
    say of modulus and reddening at these, where that is known."""
    n_chain, n_draw, n, _ = u.shape
    by_star = lambda x: np.moveaxis(np.asarray(x).reshape(-1, *x.shape[2:]), 1, 0)  # noqa: E731
    flat, known = by_star(u), None if told is None else jax.tree.map(by_star, told)
    uniform = np.random.default_rng([seed, 49979687]).uniform(1e-9, 1 - 1e-9, (2, *flat.shape[:2]))
    out = np.empty((*flat.shape[:2], 3))
    size = min(problem.at_once, n)
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        own = jax.tree.map(lambda x, i=rows: x[i], problem.own)
        q = None if known is None else jax.tree.map(lambda x, i=rows: x[i], known)
        drawn = _draw_distances(problem.energy, problem.shared, own, flat[rows], q, uniform[:, rows])
        out[start : start + size, :, :2] = np.asarray(drawn)[: n - start]
    out[..., 2] = 10 ** (0.2 * (out[..., 1] - 10))
    return np.moveaxis(out, 0, 1).reshape(n_chain, n_draw, n, 3)


@functools.partial(jax.jit, static_argnums=0)
def _draw_distances(energy, shared, own, u, q, uniform):
    def one(own, u, q, uniform):
        others = jax.tree.map(lambda x: jnp.broadcast_to(x, u.shape[:1]), own.others)
        q = energy.quadratic(u, shared, own) if q is None else q
        mu, e = draw(q, others, shared.prior, (uniform[0], uniform[1]))
        return jnp.stack([e, mu], -1)

    return jax.vmap(one, (0, 0, 0, 1))(own, u, q, uniform)


@in_float64
def misfit(problem: StarProblem) -> np.ndarray:
    """chi^2 (N,) of the magnitudes at the best mode of the labels."""
    return np.array(_misfit(problem.energy, problem.shared, problem.own, problem.modes.location[0]))


@functools.partial(jax.jit, static_argnums=0)
def _misfit(energy, shared, own, best):
    q = jax.vmap(energy.quadratic, (0, None, 0))(best[:, None], shared, own)
    q = jax.tree.map(lambda x: x[:, 0], q)
    at = summary(q, own.others, shared.prior)
    x, y = at.modulus - q.mu_0, at.reddening - q.e_0
    return q.a_mu * x**2 + 2 * q.a_both * x * y + q.a_e * y**2 - 2 * (q.b_mu * x + q.b_e * y) - 2 * q.log_norm
