"""The test step of a `LinearModel`: labels, errors and flags of stars from what inferences find of their latents.

The uncertainty of the label system, common to all stars, is added.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from ...data.stars import Block, Stars
from ...inference.base import StarDraws
from ...inference.starwise import StarProblem
from ...kind import DIAGNOSTICS, Column, TrainedModel
from ...numerics.neighbours import farthest, label_distance
from ...numerics.nuisance import NuisanceSums
from ...results.rows import flags_of_solution, star_rows
from ...results.star_posterior import LEVELS, ONE_SIGMA, Flags, per_label
from .label_map import label_map
from .model import HOPELESS, LinearModel
from .moments import Moments
from .nuisances import disturbance, shapes_of
from .quartic import prepare


def latents(
    posterior: TrainedModel[LinearModel, Moments], stars: Stars, given: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Latents (N, P) and covariance (N, P, P) of stars by the blocks `given`."""
    model, moments = posterior.model, posterior.moments
    if model.labels_are_latent:
        catalogue = model.catalogue(stars)
        known = np.where(catalogue.observed.all(1, keepdims=True), catalogue.value, np.nan)
        return label_map(model, moments).inverse(known), np.zeros(catalogue.covariance.shape)
    part = stars.drop(*[block for block in stars.blocks if block not in given])
    modes = prepare(model, moments, part, 0, 1).modes
    u, spread = np.array(modes.location[0]), np.array(modes.covariance[0])
    blank = ~np.any([part[block].observed.any(1) for block in given], 0)
    u[blank] = np.nan
    return u, spread


def finish(
    model: LinearModel, moments: Moments, stars: Stars, problem: StarProblem, out: StarDraws, seed: int
) -> dict[str, xr.Dataset]:
    """Add the label system's uncertainty, turn into label units, and flag."""
    frame, features, statistics = model.require_frame(), model.features, problem.own.statistics
    rng = np.random.default_rng([seed, 49979687])
    n_draw = out.u.shape[1]
    latent = out.u.mean((0, 1)) if out.mean is None else np.array(out.mean)
    if out.covariance is None:
        offset = (out.u - latent).reshape(-1, *latent.shape)
        latent_covariance = np.einsum("snm,snk->nmk", offset, offset, optimize=True) / max(len(offset) - 1, 1)
    else:
        latent_covariance = np.array(out.covariance)
    mean, covariance, shared, u = labels_of(model, moments, latent, latent_covariance, np.asarray(out.u), rng)
    n_data = np.asarray(statistics.n_pixel) + model.catalogue(stars).observed.sum(1)
    failed = out.failed | (n_data == 0)
    for x in (mean, covariance, shared, latent, latent_covariance):
        x[failed] = np.nan
    u[:, :, failed] = np.nan
    labels = u  # turned into label units in place: it may be most of the memory
    labels *= frame.scale
    labels += frame.centre
    if n_draw > 1:
        p16, p50, p84 = np.percentile(labels.reshape(-1, *mean.shape), [100 * LEVELS[x] for x in ONE_SIGMA], axis=0)
    else:
        sd = frame.scale * np.sqrt(np.einsum("nmm->nm", covariance))
        p50 = frame.physical(mean)
        p16, p84 = p50 - sd, p50 + sd
    with np.errstate(invalid="ignore"):
        chi2 = statistics.chi2(features(latent))
    if "flux" in stars:  # fluxes that no star has: the labels run so far away that all pixels lose their weight
        absurd = stars["flux"].observed & (np.abs(stars["flux"].value) > HOPELESS * frame.flux_scale)
        chi2 = np.where(absurd.any(1), np.inf, chi2)
    train = places(model, moments, moments.training_u)
    distance = label_distance(train, places(model, moments, latent))
    n_pixel = np.asarray(statistics.n_pixel).astype(int)
    flags, told = flags_of_solution(out, np.asarray(problem.modes.weight), n_data == 0)
    flags |= Flags.OUTSIDE_TRAINING * (distance > farthest(train))
    flags |= Flags.POOR_FIT * poor_fit(chi2, n_pixel, moments.fit_quality)
    if "flux" in stars:
        flags |= Flags.MISSING_DATA * ((n_pixel < 0.5 * np.isfinite(moments.scatter).sum()) & (n_data > 0))
    columns: dict[str, Column] = COLUMNS | PARTS
    per_star: dict[str, np.ndarray] = {}
    beside = dict(model.further(moments, stars, latent, latent_covariance))
    if problem.own.nuisances is not None:
        beside |= inferred_nuisances(model, problem.own.nuisances, latent, latent_covariance)
    if problem.own.error_factor is not None:
        ln_f, sd = (np.where(failed, np.nan, x) for x in problem.own.error_factor)
        beside["flux_error_factor"] = np.exp(ln_f), np.exp(ln_f) * sd, ""
    for name, (value, error, unit) in beside.items():
        columns |= {name: Column("", unit), f"{name}_error": Column(f"standard deviation of {name}", unit)}
        per_star |= {name: value, f"{name}_error": error}
    per_star |= {"chi2": chi2, "n_pixel": n_pixel, "label_distance": distance, **told, "flags": flags}
    names = [f"{model.sites['latents']}{p}" for p in range(latent.shape[1])]
    further = {
        "latents": (("star", "latent"), latent),
        "latents_covariance": (("star", "latent", "latent_bis"), latent_covariance),
    }
    summaries = {"mean": frame.physical(mean), "p16": p16, "p50": p50, "p84": p84}
    if moments.label_system_covariance.any():
        summaries["error_shared"] = frame.scale * np.sqrt(np.einsum("nmm->nm", shared))
    covariance = covariance * frame.scale[:, None] * frame.scale
    coords = {"latent": names, "latent_bis": names}
    return star_rows(
        stars, frame.names, labels, summaries, covariance, per_star, columns, further=further, coords=coords
    )  # fmt: skip


PARTS = {
    "error_shared": Column("part of the error that stars share: what is not known of the training labels' scale"),
}
COLUMNS = DIAGNOSTICS | {
    "chi2": Column("of the spectrum, at the best labels"),
    "n_pixel": Column("pixels that were used"),
    "label_distance": Column("from the training stars, in scaled labels (Ho+17, eq. 7)"),
}
"""Columns of every star beside its labels; the model, nuisances and error factors add theirs."""


def places(model: LinearModel, moments: Moments, latent: np.ndarray) -> np.ndarray:
    """Scaled labels (N, M) of latents (N, P), in which stars are near the training stars or not."""
    return latent if model.labels_are_latent else label_map(model, moments).at(latent)


LIMIT, SURE = 3.0, 3.29
"""Reduced chi^2 of a poor fit where training stars do not tell, and sds of one where they do: 1 in 1000."""


def fit_quality(chi2: np.ndarray, n_pixel: np.ndarray) -> np.ndarray:
    """(4,) what is usual of the reduced chi^2 of training stars: centre, intrinsic sd, and sds of a poor fit, below and
    above.

    A spectrum of n pixels has sd^2 = intrinsic^2 + 2 centre^2 / n. The limits are those of 99.9 per cent of the
    training stars, or of a Gaussian, whichever is wider.
    """
    known = (n_pixel > 0) & np.isfinite(chi2)
    reduced, n = chi2[known] / n_pixel[known], n_pixel[known]
    if len(reduced) < 20:
        return np.array([1.0, 0.0, np.inf, np.inf])
    low, centre, high = np.percentile(reduced, [15.87, 50, 84.13])
    noise2 = 2 * centre**2 / n
    own = np.sqrt(max(0.0, (0.5 * (high - low)) ** 2 - np.median(noise2)))
    least, most = np.quantile((reduced - centre) / np.sqrt(own**2 + noise2), [0.001, 0.999])
    return np.array([centre, own, max(SURE, -least), max(SURE, most)])


def poor_fit(chi2: np.ndarray, n_pixel: np.ndarray, quality: np.ndarray | None) -> np.ndarray:
    """(N,): whether a star's chi^2 is too large, or too small, for one of the training stars' kind."""
    n = np.maximum(n_pixel, 1)
    if quality is None or not np.isfinite(quality).all():
        return chi2 > LIMIT * n
    centre, own, below, above = quality
    with np.errstate(invalid="ignore"):
        off = (chi2 / n - centre) / np.sqrt(own**2 + 2 * centre**2 / n)
        return (n_pixel > 0) & ((off > above) | (off < -below))


def inferred_nuisances(
    model: LinearModel, sums: NuisanceSums, latent: np.ndarray, spread: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """Mean, error and unit of every nuisance, the uncertainty of the star's latents included."""
    phi, slope = model.features(latent), model.features.jacobian(latent)
    mean, covariance = sums.given(phi)
    moved = covariance @ sums.cross @ slope
    covariance = covariance + moved @ spread @ np.swapaxes(moved, 1, 2)
    out: dict[str, tuple[np.ndarray, np.ndarray, str]] = {}
    at = 0
    for nuisance in model.nuisances:
        for name, unit, width in zip(nuisance.names, nuisance.units, nuisance.widths, strict=True):
            out[name] = width * np.asarray(mean)[:, at], width * np.sqrt(covariance[:, at, at]), unit
            at += 1
    return out


def predicted_flux(
    model: LinearModel,
    moments: Moments,
    u: np.ndarray,
    spread: np.ndarray,
    with_error: bool,
    v: np.ndarray | None = None,
) -> Any:
    """Noise-free spectra (N, L) of latents (N, P) with covariance (N, P, P) and nuisances v (N, Q), and their sd."""
    phi = model.features(u)
    theta = moments.coefficients
    mean = phi @ theta.T
    if v is not None:
        mean += disturbance(v, phi, shapes_of(model.nuisances, model.require_frame(), theta))
    if not with_error:
        return mean
    jacobian = model.features.jacobian(u)
    of_phi = np.einsum("nkp,npq,njq->nkj", jacobian, spread, jacobian, optimize=True)
    second = (phi[:, :, None] * phi[:, None, :] + of_phi).reshape(len(phi), -1)
    variance = second @ moments.coefficient_covariance.reshape(len(theta), -1).T
    variance += of_phi.reshape(len(phi), -1) @ (theta[:, :, None] * theta[:, None, :]).reshape(len(theta), -1).T
    return mean, np.sqrt(variance + moments.scatter**2)


def masked(stars: Stars, mask: np.ndarray) -> Block:
    """The flux without the pixels outside the mask."""
    flux = stars["flux"]
    return Block(np.where(mask, flux.value, np.nan), flux.error, names=flux.names, unit=flux.unit, coords=flux.coords)


def joined(groups: list[tuple[tuple[int, ...], dict[str, xr.Dataset]]]) -> dict[str, xr.Dataset]:
    """Labels that were inferred from different pixels, each from its own result; all else is the first result's.

    Covariances between labels of different groups, which no one likelihood gives, are zero.
    """
    first = {name: data.copy(deep=True) for name, data in groups[0][1].items()}
    own = first["stars"]["covariance"].values
    keep = np.zeros(own.shape[1:], bool)
    for labels, result in groups:
        at = list(labels)
        keep[np.ix_(at, at)] = True
        first["posterior"]["true_labels"].values[..., at] = result["posterior"]["true_labels"].values[..., at]
        for name in per_label(first["stars"]):
            first["stars"][name].values[:, at] = result["stars"][name].values[:, at]
        rows = np.ix_(range(len(own)), at, at)
        own[rows] = result["stars"]["covariance"].values[rows]
        first["stars"]["flags"].values[:] |= result["stars"]["flags"].values
    own[:, ~keep] = 0.0
    return first


def labels_of(
    model: LinearModel, moments: Moments, latent: np.ndarray, spread: np.ndarray, u: np.ndarray, rng: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Scaled true labels of latents (N, P) with covariance (N, P, P) and draws u (chain, draw, N, P).

    Mean (N, M), covariance (N, M, M), the label system's part of it (N, M, M), draws (chain, draw, N, M). The
    uncertainty of the label system, common to all stars, is added, and tau where it is the scatter of the true labels
    (`LinearModel.scatter_is_own`).
    """
    labels = label_map(model, moments)
    tau = moments.label_scatter / model.require_frame().scale * model.scatter_is_own
    mean, shared = np.array(labels.at(latent)), labels.system_at(latent)
    covariance = labels.own(latent, spread) + shared + np.diag(tau**2)
    if len(u[0]) == 1:  # the mode
        return mean, covariance, shared, np.array(labels.at(u))
    draws = labels.drawn(u, latent, rng)
    if tau.any():
        draws += tau * rng.standard_normal(draws.shape)
    return mean, covariance, shared, draws
