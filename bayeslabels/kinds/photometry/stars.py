"""The posteriors of many stars from their magnitudes: their modes, and distance and reddening drawn given the labels.

Starts are the best of many draws from the labels' population, tried for all stars by matrix products: dwarfs and giants
alike. What the members of the ensemble disagree about is that at a first estimate of the labels and of E.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...data.stars import Stars
from ...inference.starwise import StarProblem
from ...kind import TrainedModel
from ...numerics.compiling import jit
from ...numerics.dusty import Others, Quadratic, draw, project, rough, scattered
from ...numerics.linalg import Array, in_float64
from ...numerics.modes import find_modes, passing, side_by_side
from ...numerics.own_variates import other_keys, uniforms
from ...numerics.tangent import extinction
from ...numerics.two_vectors import second_vector
from ...numerics.whitening import Noise, noise_of
from . import r_v, systems
from .density import Kinds, LabelCurvature, LabelEnergy, Own, Shared, Told
from .label_prior import label_prior
from .luminosity import luminosity_sd, size
from .photometry import Photometry
from .statistical import SITES, deviations_at

CANDIDATES = 1024
"""Labels drawn from their population, of which every star tries all for a start."""
MEMBERS = 8
"""Functions kept of a training posterior that was sampled."""


class PhotometricMoments(NamedTuple):
    """E members of an ensemble; L labels, B bands.

    coefficients (E, P): weights of M; reddening_log (E, B), reddening_slope (E, B, L); scatter (B,), mag;
    luminosity_scatter at the median labels, mag; outlier_fraction; zero_point, zero_point_error, mas; reddening_second
    (E, B): R_2 if there is one, its sign such that x grows with R_V; reddening_bend (B,): w, 1 / mag;
    luminosity_scatter_slope: of ln s_M; scatter_factors (Q, B), mag; catalogue_zero_point, catalogue_error_factor (C,),
    survey_offset (S - 1, L), scaled; shared_covariance: of the zero points and offsets, `systems.covariance_of`;
    deviation (E, S, B, D): S draws about every member of what the model is linear in (`statistical`), less its mode.
    Models of the first versions have none of these.
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
    reddening_bend: np.ndarray | None = None
    luminosity_scatter_slope: np.ndarray | None = None
    scatter_factors: np.ndarray | None = None
    catalogue_zero_point: np.ndarray | None = None
    catalogue_error_factor: np.ndarray | None = None
    survey_offset: np.ndarray | None = None
    shared_covariance: np.ndarray | None = None
    deviation: np.ndarray | None = None


SHARED = ("zero_point", "catalogue_zero_point", "survey_offset")
"""Sites of `shared_covariance`, in their order."""


def member(model: Photometry, moments: PhotometricMoments, e: int) -> dict[str, np.ndarray]:
    """theta of one member of the ensemble, but for R_2."""
    n_label, n_band = model.shape
    names = ("scatter", "luminosity_scatter", "outlier_fraction", "zero_point")
    slope, bend, factors = moments.luminosity_scatter_slope, moments.reddening_bend, moments.scatter_factors
    own = {"weights": moments.coefficients[e], "reddening_log": moments.reddening_log[e],
           "reddening_slope": moments.reddening_slope[e],
           "reddening_bend": np.zeros(n_band) if bend is None else bend,
           "luminosity_scatter_slope": np.zeros(size(n_label)) if slope is None else slope,
           "scatter_factors": np.zeros((0, n_band)) if factors is None else factors}  # fmt: skip
    of = {n: x for n in systems.SITES if (x := getattr(moments, n)) is not None}
    return {name: np.asarray(x) for name, x in (own | of | {n: getattr(moments, n) for n in names}).items()}


def moments_of(
    model: Photometry, draws: dict[str, np.ndarray], covariance: np.ndarray | None = None
) -> PhotometricMoments:
    """From draws {site: (chain, draw, ...)} or members, of which at most `MEMBERS` functions are kept.

    covariance: of the sites `SHARED`, where draws do not tell it.
    """
    flat = {name: np.asarray(x, float).reshape(-1, *x.shape[2:]) for name, x in draws.items()}
    some = np.unique(np.linspace(0, len(flat["weights"]) - 1, MEMBERS).astype(int))
    zero = flat.get("zero_point", np.array([model.zero_point[0]]))
    fraction = flat.get("outlier_fraction", np.zeros(1))
    second = None
    if "reddening_second" in flat:
        second = np.asarray(second_vector(flat["reddening_second"], flat["reddening_log"]))[some]
        second = second * np.where(second @ second[0] < 0, -1.0, 1.0)[:, None]
        vector = np.exp(flat["reddening_log"][some].mean(0))
        second = second * r_v.sign(model.require_frame().bands, vector, second.mean(0))
    if covariance is None:
        some_of = [flat[name].reshape(len(zero), -1) for name in SHARED if name in flat]
        known = np.cov(np.concatenate(some_of, 1).T, ddof=0) if some_of else np.zeros((0, 0))
        covariance = known.reshape(-1, sum(x.shape[1] for x in some_of))
    if "zero_point" not in flat:  # which is fixed
        covariance = np.pad(covariance, ((1, 0), (1, 0)))
    of = {name: flat[name].mean(0) for name in systems.SITES if name in flat}
    return PhotometricMoments(
        flat["weights"][some], flat["reddening_log"][some], flat["reddening_slope"][some],
        np.sqrt((flat["scatter"] ** 2).mean(0)), np.sqrt((flat["luminosity_scatter"] ** 2).mean()),
        fraction.mean(), zero.mean(), np.sqrt(covariance[0, 0]), second, flat["reddening_bend"].mean(0),
        flat["luminosity_scatter_slope"].mean(0),
        _factors(flat["scatter_factors"]) if "scatter_factors" in flat else None,
        shared_covariance=covariance, **of,
    )  # fmt: skip


def _factors(each: np.ndarray) -> np.ndarray:
    """Factors (Q, B) of the mean covariance of those (E, Q, B), which may be turned against each other."""
    value, vector = np.linalg.eigh(np.einsum("eqb,eqc->bc", each, each) / len(each))
    return (vector * np.sqrt(np.maximum(value, 0.0))).T[::-1][: each.shape[1]]


def shared_of(model: Photometry, moments: PhotometricMoments) -> Shared:
    frame = model.require_frame()
    mixture, tilt = label_prior(model, moments)
    factor = np.linalg.cholesky(mixture.covariance)
    log_weight = np.log(mixture.weight) - np.log(np.einsum("kii->ki", factor)).sum(1)
    theta = member(model, moments, 0)
    return Shared(
        model.net.ensemble(moments.coefficients), frame.baseline, frame.spread, moments.reddening_log.mean(0),
        moments.reddening_slope.mean(0), None if moments.reddening_second is None else moments.reddening_second.mean(0),
        theta["reddening_bend"], theta["luminosity_scatter"], theta["luminosity_scatter_slope"],
        log_weight, mixture.mean, np.linalg.inv(factor), tilt,
    )  # fmt: skip


@in_float64
def prepare(
    posterior: TrainedModel[Photometry, PhotometricMoments], stars: Stars, seed: int, starts: int
) -> StarProblem:
    """The label posteriors of N stars with their modes."""
    model, moments = systems.extended(posterior.model, posterior.moments, stars)
    energy = LabelEnergy(model.net, model.n_magnitude)
    shared = shared_of(model, moments)
    # for draws and their weights float32 is enough: the function right to 1e-6 mag, ln p to 1e-3
    fast = shared._replace(ensemble=jax.tree.map(lambda x: x.astype(np.float32), shared.ensemble))
    tried = label_prior(model, moments).population.draw(CANDIDATES, seed)
    if shared.second is not None:
        x = np.random.default_rng([seed, 32452843]).standard_normal((CANDIDATES, 1))
        tried = np.concatenate([tried, x], 1)
    rows = _rows_of(model, moments, stars)
    members = (moments.coefficients, moments.reddening_log, moments.reddening_slope, moments.reddening_second,
               moments.deviation, member(model, moments, 0)["scatter_factors"])  # fmt: skip
    shared, fast, tried, members = jax.device_put((shared, fast, tried, members))  # once, for all parts of the stars
    at = _at(energy, tried, shared)
    f = float(moments.outlier_fraction) if model.outliers else 0.0
    wide = model.outlier_width if f > 0 else None
    odds = np.log(f / (1 - f)) if f > 0 else 0.0
    given = energy, LabelCurvature(energy), shared
    parts, n = [], len(stars)
    for index in side_by_side(n):
        mine = jax.tree.map(lambda x, i=index: x[i], rows)
        first = np.asarray(_choose(starts, wide, odds, mine, tried, *at))
        own = _own(energy, wide, odds, members, shared, mine, first, mine["reddening_guess"], 0.0)
        e = passing(*given, own, first[:, 0]).place.e[:, 0]
        own = _own(energy, wide, odds, members, shared, mine, first, e, 1.0)._replace(weight=own.weight)
        parts.append(jax.tree.map(np.asarray, (own, first)))
    own, first = jax.tree.map(lambda *x: np.concatenate(x)[:n], *parts)  # NumPy: rows are picked at no cost
    modes = find_modes(*given, own, first)
    return StarProblem(energy, fast, own, modes, 8, passing(*given, own, modes.location[0]))


def _rows_of(model: Photometry, moments: PhotometricMoments, stars: Stars) -> dict[str, Any]:
    """Arrays with a row per star: magnitudes, their noise and scatter, the catalogue labels in the reference's system
    and their precision, `Others`."""
    seen, n = model.measured(stars), len(stars)
    n_label = model.shape[0]
    data, of = model.arrays(stars), systems.common(model, moments, stars)
    labels, precision = np.zeros((n, n_label)), np.zeros((n, n_label, n_label))
    if "labels" in seen:
        labels, covariance, observed = seen["labels"]
        both = observed[:, :, None] & observed[:, None, :]
        precision = np.where(both, np.linalg.inv(covariance + np.where(both, of.covariance[:, 1:, 1:], 0.0)), 0.0)
        labels = np.where(observed, labels - of.offset, 0.0)
    # what zero points and offsets are not known to is common to all stars: it widens every parallax and label
    sigma = of.factor * np.where(data.parallax_weight > 0, 1 / np.maximum(data.parallax_weight, 1e-300), 1.0)
    weight = np.where(data.parallax_weight > 0, 1 / np.hypot(sigma, np.sqrt(of.covariance[:, 0, 0])), 0.0)
    parallax = np.where(weight > 0, data.parallax - of.zero_point, 0.0)
    return {
        "channels": data.channels, "scatter": moments.scatter**2 + np.zeros_like(data.channels.seen),
        "reddening_guess": data.reddening_guess,
        "labels": labels, "precision": precision, "label_mean": data.label_mean,
        "among": _among(model, moments, data.systems.survey),
        "others": Others(parallax, weight, data.reddening, data.reddening_weight, data.distance, data.dust),
    }  # fmt: skip


def _among(model: Photometry, moments: PhotometricMoments, survey: np.ndarray) -> np.ndarray:
    """ln of 1 or 0 (N, K): of which components of the label prior the stars may be; the population's are of surveys."""
    frame = model.require_frame()
    if model.label_prior != "population" or frame.component_survey is None:
        return np.zeros((len(survey), len(label_prior(model, moments).population.weight)))
    return np.where(systems.among(frame.component_survey, survey), 0.0, systems.NEVER)


@functools.partial(jit, static_argnums=0)
def _at(energy: LabelEnergy, u: Array, shared: Shared) -> tuple[Array, Array, Array, Array]:
    """M and R (S, B) at candidates u (S, M), the tilt of their prior and their scatter in luminosity (S,)."""
    m, vector = energy.at(u, shared)
    return m, vector, shared.tilt(m), luminosity_sd(shared.luminosity, shared.luminosity_slope, energy.labels(u))


@functools.partial(jit, static_argnums=(0, 1))
def _choose(
    starts: int,
    wide: float | None,
    log_odds: float,
    rows: dict[str, Any],
    candidates: Array,
    m: Array,
    vector: Array,
    tilt: Array,
    luminosity: Array,
) -> Array:
    """The best candidates (N, J, M) that are not neighbours; wide: scatter of outliers, or None."""
    channels, others = rows["channels"], jax.tree.map(lambda x: x[:, None], rows["others"])
    y = channels.bright

    def density(noise: Noise) -> Array:
        """ln p(magnitudes, ... | candidate) (N, S), by matrix products; extinction is straight."""
        noise = noise.scaled(channels.unit)
        weight = noise.precision_times(jnp.ones_like(y)[:, None])[:, 0]
        total = weight.sum(1)
        mu_0 = (weight * y).sum(1) / jnp.maximum(total, 1e-12) - 4.0
        z = channels.seen * (y - mu_0[:, None])
        wz = noise.precision_times(z[:, None])[:, 0]
        rr = (wz * z).sum(1)[:, None] - 2 * wz @ m.T + noise.products(m, m)
        b_mu, b_e = wz.sum(1)[:, None] - weight @ m.T, wz @ vector.T - noise.products(m, vector)
        q = Quadratic(
            total[:, None], weight @ vector.T, noise.products(vector, vector), b_mu, b_e,
            -0.5 * (rr + noise.log_det[:, None]), mu_0[:, None], jnp.zeros_like(total[:, None]),
        )  # fmt: skip
        return rough(scattered(q, luminosity), others)

    off = candidates[:, : rows["labels"].shape[1]] - rows["labels"][:, None]
    each = jax.vmap(density)(_kinds(rows, wide))
    score = each[0] if wide is None else jnp.logaddexp(each[0], log_odds + each[1])
    score = score - 0.5 * ((off @ rows["precision"]) * off).sum(-1) + tilt
    has_labels = (rows["precision"] != 0).any((1, 2))
    picks, nearest, bright, first = [], jnp.full(score.shape, jnp.inf), m.mean(1), None
    for j in range(starts):
        apart = FAR if j <= starts // 2 else NEIGHBOUR
        best = jnp.where(nearest < apart**2, -jnp.inf, score).argmax(1)
        if j == 1:  # a dwarf's from a giant's: metals alone can be as far apart
            alike = jnp.abs(bright - bright[first][:, None]) < BRIGHTER
            best = jnp.where(alike, -jnp.inf, score).argmax(1)
        first = best if j == 0 else first
        pick = candidates[best]
        picks.append(pick)
        nearest = jnp.minimum(nearest, ((candidates - pick[:, None]) ** 2).sum(-1))
    known = jnp.pad(rows["label_mean"], ((0, 0), (0, candidates.shape[1] - off.shape[-1])))
    picks[0] = jnp.where(has_labels[:, None], known, picks[0])
    return jnp.stack(picks, 1)


NEIGHBOUR, FAR = 0.6, 1.5
"""Scaled distances of a start from those before: far ones first, then what else there may be."""
BRIGHTER = 2.0
"""By how much the second start differs from the first in absolute magnitude."""


def _kinds(rows: dict[str, Any], wide: float | None) -> Noise:
    """Noise (K, N, ...) of stars, good ones and, where there may be any, outliers: one factorisation."""
    x = rows["channels"]
    widths = jnp.asarray([0.0] if wide is None else [0.0, wide], x.unit.dtype)
    return jax.vmap(lambda w: noise_of(x.noise, (rows["scatter"] + w**2) * x.unit**2, x.seen))(widths)


@functools.partial(jit, static_argnums=(0, 1))
def _own(
    energy: LabelEnergy,
    wide: float | None,
    log_odds: float,
    members: tuple[Array, ...],
    shared: Shared,
    rows: dict[str, Any],
    starts: Array,
    e: Array,
    share: float,
) -> Own:
    """`Own` of N stars: this share of what the members disagree about, and of what each does not know, is noise with
    the covariance that it has at the first of the stars' starts (N, J, M) and its reddening e (N,)."""
    first, (coefficients, reddening_log, reddening_slope, second, deviation, of_all) = starts[:, 0], members
    n_member, x = len(coefficients), rows["channels"]
    if n_member > 1 or deviation is not None:
        labels = energy.labels(first)
        of_m = jax.vmap(energy.net, (0, None))(coefficients, labels) @ shared.spread
        vectors = jnp.exp(reddening_log[:, None] + jnp.einsum("nl,ebl->enb", labels, reddening_slope))
        if second is not None:
            vectors = vectors + first[:, -1:] * second[:, None]
        each = of_m + extinction(jnp.broadcast_to(e, of_m.shape[:-1]), vectors, shared.bend)
        apart = [(each - each.mean(0)) / np.sqrt(max(n_member - 1, 1))]
        if deviation is not None:
            for theta, draws in zip(
                zip(coefficients, reddening_log, reddening_slope, strict=True), deviation, strict=True
            ):
                sites = dict(zip(SITES, (*theta, shared.bend), strict=True))
                apart.append(deviations_at(energy.net, sites, draws, labels, e) / np.sqrt(n_member * len(draws)))
        unknown = jnp.concatenate(apart) * x.unit
        stated = x.noise if x.noise.ndim == 3 else x.noise[:, :, None] * jnp.eye(x.unit.shape[1])
        rows = rows | {"channels": x._replace(noise=stated + share * jnp.einsum("snb,snc->nbc", unknown, unknown))}
    noise = _kinds(rows, wide)
    good = jax.tree.map(lambda x: x[0], noise).scaled(x.unit)
    weight = good.precision_times(jnp.ones_like(x.unit)[:, None])[:, 0]
    total = weight.sum(1, keepdims=True)
    weight = weight / jnp.where(total > 0, total, 1.0)
    common = jnp.broadcast_to(of_all, (len(x.unit), *of_all.shape))

    def projected(noise: Noise) -> tuple[Array, Array]:
        white = noise.scaled(x.unit).white(common)
        basis, _, log_det = project(white, jnp.zeros((len(white), 0, white.shape[-1])))
        return basis, -0.5 * (log_det + noise.log_det)

    basis, log_norm = jax.vmap(projected)(noise)
    odds = jnp.stack([0.0 * log_odds, log_odds])[: len(log_norm), None]
    kinds = Kinds(noise, basis, log_norm - log_norm[:1] + odds)
    kinds = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), kinds)
    return Own(x.value, x.bright, weight, e, kinds, rows["others"], rows["labels"], rows["precision"], rows["among"])


@in_float64
def distances(
    problem: StarProblem, u: np.ndarray, keys: np.ndarray, told: Told | None = None, points: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reddening, modulus and distance (chain, draw, N, 3) given u (chain, draw, N, M), and the probability (N,) that a
    star is an outlier; told: what the magnitudes say at these u, where that is known; points (chain * draw, 3) of the
    unit cube that all stars share, None: drawn."""
    n_chain, n_draw, n, _ = u.shape
    by_star = lambda x: np.moveaxis(np.asarray(x).reshape(-1, *x.shape[2:]), 1, 0)  # noqa: E731
    flat, known = by_star(u), None if told is None else jax.tree.map(by_star, told)
    shape = n, 3, flat.shape[1]
    if points is None:
        uniform = uniforms(other_keys(keys, 49979687), 3 * flat.shape[1]).reshape(shape)
    else:
        uniform = np.broadcast_to(points.T, shape)
    out, wrong = np.empty((*flat.shape[:2], 3)), np.empty(n)
    size = problem.at_once * max(1, 128 // flat.shape[1])
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)
        own = jax.tree.map(lambda x, i=rows: x[i], problem.own)
        mine = None if known is None else jax.tree.map(lambda x, i=rows: x[i], known)
        drawn, odds = _draw_distances(problem.energy, problem.shared, own, flat[rows], mine, uniform[rows])
        out[start : start + size, :, :2] = np.asarray(drawn)[: n - start]
        wrong[start : start + size] = np.asarray(odds)[: n - start]
    out[..., 2] = 10 ** (0.2 * (out[..., 1] - 10))
    return np.moveaxis(out, 0, 1).reshape(n_chain, n_draw, n, 3), wrong


@functools.partial(jit, static_argnums=0)
def _draw_distances(
    energy: LabelEnergy, shared: Shared, own: Own, u: Array, told: Told | None, uniform: Array
) -> tuple[Array, Array]:
    def one(own: Own, u: Array, told: Told | None, uniform: Array) -> tuple[Array, Array]:
        told = energy.in_passing(u, shared, own)[1] if told is None else told
        at, wrong = jax.tree.map(lambda x: x[:, 0], told.place), jnp.zeros(len(u))
        if told.log_odds is not None:
            wrong = jax.nn.sigmoid(told.log_odds)
            at = jax.tree.map(lambda x: jnp.where(uniform[2] < wrong, x[:, 1], x[:, 0]), told.place)
        mu, e = draw(at, own.others, (uniform[0], uniform[1]))
        return jnp.stack([e, mu], -1), wrong.mean()

    return jax.vmap(one)(own, u, told, uniform)
