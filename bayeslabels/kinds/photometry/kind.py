"""Labels, reddening and distance of stars from their magnitudes.

All inferences work on the labels alone (`photometric_stars`); distance modulus and reddening are drawn, exactly, given
each draw of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from astropy.table import QTable

from ...data.batches import Rows, RowsInMemory
from ...data.stars import Stars
from ...errors import bad_input
from ...files.checkpoint import Checkpoint
from ...inference import MAP, NUTS, SVI, Importance
from ...inference.base import Inference, StarDraws, Trained
from ...inference.guide import fit_guide
from ...inference.minibatch import covariance_about, fit_members, fit_part
from ...inference.starwise import StarProblem, even_points, spread_mixture
from ...inference.whitened import Start
from ...kind import (
    DIAGNOSTICS,
    Choice,
    Column,
    Kind,
    Layout,
    Quantities,
    StarResult,
    TrainedModel,
    Trainer,
    by_program,
    told_of,
)
from ...numerics.density import density_of
from ...numerics.dusty import summary  # fmt: skip
from ...numerics.linalg import in_float64
from ...numerics.mixture import Mixture
from ...numerics.tangent import as_measured, extinction, slope
from ...results.rows import flags_of_solution, of_draws, star_rows
from ...results.star_posterior import Flags
from . import luminosity, systems
from .channels import observed
from .frame import PhotometryFrame
from .label_prior import log_prior
from .photometry import Photometry
from .r_v import r_v_of
from .stars import SHARED, PhotometricMoments, distances, member, moments_of, prepare
from .statistical import about_members, deviations_of, unknown, unknown_vector

STEPS = 30
"""Minibatches per pass over the training stars, whatever their number, up to 4096 stars each."""
DEVIATIONS = 256
"""Draws about the members, all together, of what they do not know."""
START = 4000
"""Stars from which a guide or a sampler is given its first place."""


def _map(rows: Rows, inference: MAP, seed: int, progress: bool | None, checkpoint: Checkpoint | None) -> Trained:
    epochs, size = inference.max_iterations, inference.batch_size or batch_size(rows)
    # what members of resamples differ by is what is not known; of stars in memory every member knows that by itself
    resampled = rows.whole is None and rows.model.members > 1
    trained = fit_members(
        rows, seed, progress, epochs=epochs, patience=epochs, batch_size=size, bootstrap=resampled,
        checkpoint=checkpoint,
    )  # fmt: skip
    covariance = covariance_about(rows, trained, SHARED)
    if rows.whole is None:
        return _finished(rows.model, trained, covariance)
    about = fit_part(rows, trained, -(-DEVIATIONS // rows.model.members), seed)
    return _finished(rows.model, trained, covariance, deviations_of(rows.model, about.draws))


def _svi(rows: Rows, inference: SVI, seed: int, progress: bool | None, checkpoint: Checkpoint | None) -> Trained:
    trained = fit_guide(rows, inference, seed, progress, checkpoint, lambda: start_of(rows, seed))
    return _finished(rows.model, trained)


def _finished(
    model: Photometry, trained: Trained, covariance: np.ndarray | None = None, deviation: np.ndarray | None = None
) -> Trained:
    trained.moments = moments_of(model, trained.draws, covariance)._replace(deviation=deviation)
    return trained


class PhotometryKind(Kind[Photometry, PhotometricMoments]):
    """Labels, reddening and distance from magnitudes."""

    models: ClassVar = Photometry
    moments: ClassVar = PhotometricMoments
    lost: ClassVar = "n_without_data"
    beside: ClassVar = ("reddening", "distance_modulus", "distance", "reddening_variation")
    trainers: ClassVar = {MAP: Trainer(rows=_map), SVI: Trainer(rows=_svi), NUTS: Trainer(by_program)}
    fit_by: ClassVar = MAP()
    infer_by: ClassVar = Importance()
    columns: ClassVar = DIAGNOSTICS | {
        "chi2": Column("of magnitudes and fluxes, at the best labels, reddening and distance"),
        "n_band": Column("magnitudes and fluxes that were measured"),
        "outlier_probability": Column("that the magnitudes are those of no star of the training set's kind"),
        "r_v": Column("R(V) of the star's dust, by Cardelli+89, that of the mean extinction curve being 3.1"),
        "r_v_error": Column("standard deviation of r_v"),
        "label_density": Column("of the training stars at these labels, least of all bands, its peak being 1"),
        "distance_density": Column(
            "of the training stars with parallaxes at these labels, its peak being 1: below 0.01 "
            "absolute magnitudes and distances are extrapolated (Green+21, section 6)"
        ),
    }
    parts: ClassVar = {
        "error_shared": Column("part of the error that stars share: zero points, and offsets between label surveys")
    }

    def usable(self, model: Photometry, stars: Stars) -> np.ndarray:
        return told_of(stars, model.measured_blocks)

    def complete(self, posterior: TrainedModel[Photometry, PhotometricMoments], choice: Choice[Photometry]) -> Any:
        frame = posterior.model.require_frame()
        if posterior.moments is None or len(frame.surveys) < 2:
            return posterior
        return posterior.with_model(frame=systems.with_offsets(frame, posterior.moments))

    def start(self, model: Photometry, stars: Stars, seed: int) -> Start:
        return start_of(RowsInMemory(model, stars), seed)

    def finish(self, model: Photometry, stars: Stars, trained: Trained) -> Trained:
        return _finished(model, trained)

    def sizes(self, model: Photometry) -> dict[str, int]:
        n_label = len(model.require_frame().names)
        return {"weight": model.net.size, "term": luminosity.size(n_label), "rank": model.scatter_rank}

    def parameters(self, posterior: TrainedModel[Photometry, PhotometricMoments], seed: int) -> dict[str, np.ndarray]:
        """Draws of the sites; where there are but members, what each of them does not know is drawn about it."""
        draws, deviation = super().parameters(posterior, seed), posterior.moments.deviation
        return draws if deviation is None else about_members(posterior.model, draws, deviation)

    def layout(self, model: Photometry) -> Layout:
        frame = model.require_frame()
        coords = {"band": list(frame.bands), "labels": list(frame.names), "survey": list(frame.surveys[1:]),
                  "catalogue": list(frame.catalogues)}  # fmt: skip
        sites: dict[str, list[str]] = {
            "weights": ["weight"], "reddening_log": ["band"], "reddening_slope": ["band", "labels"],
            "reddening_bend": ["band"], "scatter": ["band"], "luminosity_scatter": [],
            "luminosity_scatter_slope": ["term"], "outlier_fraction": [], "zero_point": [],
        }  # fmt: skip
        member = ("coefficients", "reddening_log", "reddening_slope", "reddening_second", "deviation")
        moments = {"coefficients": ["weight"], **sites, "zero_point_error": []}
        del moments["weights"]
        if model.dust_vectors == 2:
            sites["reddening_second"] = moments["reddening_second"] = ["band"]
        if model.scatter_rank:
            sites["scatter_factors"] = moments["scatter_factors"] = ["rank", "band"]
        of_systems = {"survey_offset": ["survey", "labels"], "catalogue_zero_point": ["catalogue"],
                      "catalogue_error_factor": ["catalogue"]}  # fmt: skip
        moments["deviation"] = ["sample", "band", "slope"]
        there = {name: dims for name, dims in of_systems.items() if name in systems.start(model)}
        sites, moments = sites | there, moments | there | {"shared_covariance": ["shared", "shared_bis"]}
        return Layout(coords, sites, {k: ["member", *d] if k in member else d for k, d in moments.items()})

    def infer(
        self,
        posterior: TrainedModel[Photometry, PhotometricMoments],
        stars: Stars,
        inference: Inference,
        seed: int,
        keys: np.ndarray,
        progress: bool | None,
    ) -> dict[str, xr.Dataset]:
        if not any(name in stars for name in ("magnitudes", "spectrum", "labels")):
            raise bad_input(f"stars with {', '.join(stars.blocks) or 'no blocks'}", "magnitudes, spectrum or labels")
        problem = prepare(posterior, stars, seed, inference.starts)
        out = inference.infer(problem, keys, progress)
        return _finish(posterior, stars, problem, out, keys)

    def details(self, posterior: TrainedModel[Photometry, PhotometricMoments]) -> list[str]:
        return systems.described(posterior.model.require_frame(), posterior.moments)

    def asked(self, model: Photometry) -> tuple[str, ...]:
        return ("labels",)

    def batch_size(self, model: Photometry) -> int:
        return 2048

    def quantities(self, model: Photometry, stars: Stars | None = None) -> Quantities:
        names = posterior_names(model)
        return Quantities(names, (*model.require_frame().units, "mag", "mag", "kpc", "")[: len(names)])

    def about(self, posterior: TrainedModel[Photometry, PhotometricMoments]) -> dict[str, Any]:
        model, moments = posterior.model, posterior.moments
        return {
            "integrated_over": "the members of the ensemble, the zero point, and scatter",
            "zero_point": float(moments.zero_point),
            "luminosity_scatter": float(moments.luminosity_scatter),
            "distance_prior": repr(model.distance_prior),
            "reddening_prior": f"{type(model.reddening_prior).__name__}(scale={model.reddening_scale:.4g})",
            "label_prior": str(model.label_prior),
            **({"reference_survey": surveys[0]} if (surveys := model.require_frame().surveys) else {}),
        }

    def log_prior(
        self, posterior: TrainedModel[Photometry, PhotometricMoments], stars: Stars, names: Sequence[str],
        values: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        return log_prior(posterior.model, posterior.moments, stars, names, values)

    def log_density(
        self, posterior: TrainedModel[Photometry, PhotometricMoments], result: StarResult, stars: Stars
    ) -> np.ndarray:
        """Density of the catalogue labels, under a Gaussian of the posterior's mean and covariance."""
        model = posterior.model
        value, noise, observed = model.measured(stars)["labels"]
        n_label, scale = value.shape[1], model.require_frame().scale
        of = systems.common(*systems.extended(model, posterior.moments, stars), stars)
        mean = model.require_frame().scaled(result.mean[:, :n_label]) + of.offset
        spread = result.cov[:, :n_label, :n_label] / (scale[:, None] * scale) + of.covariance[:, 1:, 1:]
        out = np.full(len(value), np.nan)
        good = np.isfinite(mean).all(1) & observed.any(1)
        given = [
            Mixture(np.ones(1), m[None], s[None]).given(v[None], c[None], o[None]).log_density[0]
            for m, s, v, c, o in zip(*(x[good] for x in (mean, spread, value, noise, observed)), strict=True)
        ]
        out[good] = given - (np.log(scale) * observed[good]).sum(1)
        return out

    def true_quantities(self, model: Photometry, sites: dict[str, Any], stars: Stars) -> dict[str, Any]:
        frame, modulus = model.require_frame(), sites["distance_modulus"]
        labels = frame.physical(sites["u"])
        out = {name: labels[:, i] for i, name in enumerate(frame.names)}
        if model.dust_vectors == 2:
            out["reddening_variation"] = sites["reddening_variation"]
        return out | {"reddening": sites["true_reddening"], "distance_modulus": modulus}

    def predict(
        self, posterior: TrainedModel[Photometry, PhotometricMoments], stars: Stars, name: str | None, with_error: bool
    ) -> Any:
        name = name or "absolute_magnitudes"
        known = ("absolute_magnitudes", "reddening_vector", *posterior.model.widths)
        if name not in known:
            raise bad_input(f"predict(..., {name!r})", f"one of {known}")
        if "labels" not in stars:
            raise bad_input("stars without labels", f"labels to predict {name} from",
                            fix="infer(posterior, stars).table() gives labels")  # fmt: skip
        posterior.model.check(stars)
        mean, error = _predict(posterior, stars, name)
        blank = ~stars["labels"].observed.any(1)
        mean[blank] = error[blank] = np.nan
        return (mean, error) if with_error else mean

    def summary(self, posterior: TrainedModel[Photometry, PhotometricMoments]) -> QTable:
        """Per band: scatter, R at the median labels, and w of A = E R - w (E R)^2, 1 / mag, with the errors that the
        members or draws give."""
        frame = posterior.model.require_frame()
        draws = posterior.data["posterior"].to_dataset()
        n_label, deviation = len(frame.names), posterior.moments.deviation

        def error(each: np.ndarray, place: int | None = None) -> np.ndarray:
            """Of members or draws (S, B), and of what every member does not know of a column of c."""
            between = each.var(0, ddof=1) if len(each) > 1 else np.full(each.shape[1], np.nan)
            if deviation is None or place is None:
                return np.sqrt(between)
            return np.sqrt(np.nan_to_num(between) + deviation[..., place].astype(float).var((0, 1)))

        at_median = np.exp(draws["reddening_log"].values.reshape(-1, len(frame.bands)))
        slope = posterior.moments.reddening_slope.mean(0)
        columns = {
            "band": list(frame.bands),
            "scatter": posterior.moments.scatter,
            "reddening_vector": at_median.mean(0),
            "reddening_vector_error": at_median.mean(0) * error(np.log(at_median), -2 - n_label),
        }
        if (bend := posterior.moments.reddening_bend) is not None:
            each = draws["reddening_bend"].values.reshape(-1, len(bend))
            columns |= {"reddening_bend": bend, "reddening_bend_error": error(each, -1)}
        if (second := posterior.moments.reddening_second) is not None:
            columns |= {"second_vector": second.mean(0), "second_vector_error": error(second)}
        columns |= {f"d_ln_R_d_{label}": slope[:, i] / frame.scale[i] for i, label in enumerate(frame.names)}
        return QTable(columns)

    def describe(self, model: Photometry) -> str:
        frame = model.require_frame()
        bands = frame.bands[: len(frame.bands) - frame.n_flux]
        parts = [f"{len(bands)} bands ({', '.join(bands)})"] if bands else []
        parts += [f"{frame.n_flux} pixels"] if frame.n_flux else []
        return f"{' and '.join(parts)} from {', '.join(frame.names)}"


def batch_size(rows: Rows) -> int:
    return int(np.clip(rows.usable.sum() // STEPS, 16, 4096))


def start_of(rows: Rows, seed: int) -> Start:
    """About the mode: of `START` of the stars that the model is bound to, one member."""
    some = np.sort(np.random.default_rng([seed, 715225739]).permutation(len(rows.stars))[:START])
    one = RowsInMemory(rows.model.replace(members=1), rows.stars[some])
    point = fit_members(one, seed, False, epochs=30, batch_size=batch_size(one)).draws
    return Start({name: x[0, 0] for name, x in point.items()})


def _finish(
    posterior: TrainedModel[Photometry, PhotometricMoments],
    stars: Stars,
    problem: StarProblem,
    out: StarDraws,
    keys: np.ndarray,
) -> dict[str, xr.Dataset]:
    """Draw modulus and reddening given the labels, turn into the user's units, and flag."""
    model, frame = posterior.model, posterior.model.require_frame()
    n, n_label = problem.n_star, len(frame.names)
    u = np.asarray(out.u)
    few = u.shape[0] * u.shape[1] == 1
    if few:  # one draw, the mode: its errors are those of the Gaussians at the modes
        points = even_points(POINTS, problem.n_latent + 4)
        u = np.moveaxis(np.asarray(spread_mixture(problem, points[:, 3:])), 1, 0)[None]
    q, wrong = distances(problem, u, keys, out.beside, points[:, :3] if few else None)
    chi2 = problem.beside.chi2
    draws = _quantities_of(frame, u, q)
    shapes = draws[..., -1]  # of the extinction curve, with two dust vectors
    summaries, covariance = of_draws(draws)
    summaries["error_shared"] = shared_error_of(posterior, stars, problem, u, draws)
    if few:
        at = np.asarray(out.u)
        draws = _quantities_of(frame, at, distances(problem, at, keys, points=MEDIAN)[0])
    seen = observed(model, stars)
    n_band = seen.sum(1)
    blank = (n_band == 0) & ~(stars["labels"].observed.any(1) if "labels" in stars else np.zeros(n, bool))
    failed = out.failed | blank
    for x in (*summaries.values(), covariance, chi2):
        x[failed] = np.nan
    draws[:, :, failed] = np.nan
    where = frame.scaled(summaries["mean"][:, :n_label])
    distant = frame.training_distant
    counted, peaks = frame.training_seen, frame.training_peak
    if distant is not None:
        counted, peaks = np.column_stack([counted, distant]), np.append(peaks, frame.distant_peak)
    density, of_distances = np.split(density_of(frame.training_u, counted, peaks, where), [seen.shape[1]], axis=1)
    used = np.where(seen, density, np.nan) if n_band.any() else density
    flags, told = flags_of_solution(out, np.asarray(problem.modes.weight), blank)
    with np.errstate(invalid="ignore"):
        lowest = np.nanmin(np.where(np.isfinite(used), used, np.inf), axis=1)
        flags |= Flags.OUTSIDE_TRAINING * (lowest < OUTSIDE)
        flags |= Flags.POOR_FIT * (chi2 > 3 * np.maximum(n_band, 1))
    flags |= Flags.OUTLIER * (wrong > 0.5)
    flags |= Flags.MISSING_BAND * ((n_band > 0) & (n_band < len(frame.bands)))
    per_star = {
        "chi2": chi2, "n_band": n_band, "outlier_probability": wrong, "label_density": lowest, **told, "flags": flags,
    }  # fmt: skip
    if (second := posterior.moments.reddening_second) is not None:
        mean_vector = np.exp(posterior.moments.reddening_log.mean(0))
        found = r_v_of(frame.bands, mean_vector, second.mean(0), shapes)
        if found is not None:
            told_of = {"r_v": found.mean((0, 1)), "r_v_error": found.std((0, 1))}
            per_star = {**{k: np.where(failed, np.nan, x) for k, x in told_of.items()}, **per_star}
    if distant is not None:
        per_star = {"distance_density": of_distances[:, 0], **per_star}
    further = {"training_density": (("star", "band"), density)}
    return star_rows(
        stars, posterior_names(model), draws, summaries, covariance, per_star,
        PhotometryKind.columns | PhotometryKind.parts,
        further=further, coords={"band": list(frame.bands)},
    )  # fmt: skip


def shared_error_of(
    posterior: TrainedModel[Photometry, PhotometricMoments], stars: Stars, problem: StarProblem, u: np.ndarray,
    draws: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """What of the errors (N, Q) stars share, of draws (chain, draw, N, Q) with scaled labels u."""
    n_label = len(posterior.model.require_frame().names)
    of = systems.common(*systems.extended(posterior.model, posterior.moments, stars), stars)
    flat, labels = (x.reshape(-1, *x.shape[2:]) for x in (draws, u[..., :n_label]))
    own = problem.own
    return systems.shared_error(
        flat, labels, 1 / flat[..., n_label + 2], np.asarray(own.others.parallax_weight),
        np.asarray(own.label_precision), of.covariance,
    )  # fmt: skip


POINTS = 200
"""Of every star's Gaussians, from which the moments of a mode follow."""
MEDIAN = np.full((1, 3), 0.5)
"""Of `distances`: the medians of reddening and modulus."""
OUTSIDE = 1e-3
"""Share of the peak density of the training stars below which colours are not to be trusted (Green+21, section 6)."""


def posterior_names(model: Photometry) -> tuple[str, ...]:
    second = ("reddening_variation",) if model.dust_vectors == 2 else ()
    return (*model.require_frame().names, "reddening", "distance_modulus", "distance", *second)


def _quantities_of(frame: PhotometryFrame, u: np.ndarray, q: np.ndarray) -> np.ndarray:
    """`posterior_names` (..., Q) of u (..., M), and of reddening, modulus and distance (..., 3)."""
    n_label = len(frame.names)
    return np.concatenate([frame.physical(u[..., :n_label]), q, u[..., n_label:]], -1)


@in_float64
def _predict(
    posterior: TrainedModel[Photometry, PhotometricMoments], stars: Stars, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd (N, B) given the catalogue labels, their errors integrated over, and for magnitudes and spectrum
    all else."""
    model, moments = systems.extended(posterior.model, posterior.moments, stars)
    if name in stars:
        stars = stars.drop(name)
    data = jax.tree.map(jnp.asarray, model.arrays(stars))
    if name == "absolute_magnitudes":
        data = data._replace(reddening_guess=jnp.zeros(len(stars)))
    values, variances = [], []
    for i in range(len(moments.coefficients)):
        theta = member(model, moments, i)
        draws = None if moments.deviation is None else moments.deviation[i]
        u = data.label_mean - systems.beyond(model.require_frame(), theta, data.systems)
        at = model.predicted(theta, data)
        if name == "reddening_vector":
            turned = jnp.einsum("bl,nlj->njb", theta["reddening_slope"], data.label_root) * at.vector[:, None]
            values.append(at.vector)
            variances.append((turned**2).sum(1) + unknown_vector(at.vector, draws, u))
            continue
        own = (at.factors**2).sum(1) + at.luminosity[:, None] ** 2 + moments.scatter**2
        second = 0.0 if moments.reddening_second is None else moments.reddening_second.mean(0)
        if name == "absolute_magnitudes":
            values.append(at.mean)
            variances.append(own + unknown(model.net, theta, draws, u, data.reddening_guess))
            continue
        q = model.seen_in(theta, data, at)
        told = summary(q, model.others(theta, data))
        bend = theta["reddening_bend"]
        values.append(at.mean + told.modulus[:, None] + extinction(told.reddening, at.vector, bend))
        along = slope(told.reddening, at.vector, bend)
        variances.append(
            own + told.modulus_error[:, None] ** 2 + (told.reddening_error[:, None] * along) ** 2
            + (told.reddening**2 + told.reddening_error**2)[:, None] * second**2
            + unknown(model.net, theta, draws, u, told.reddening)
        )  # fmt: skip
    stacked = np.stack([np.asarray(x) for x in values])
    error = np.sqrt(np.mean([np.asarray(x) for x in variances], 0) + stacked.var(0, ddof=min(1, len(stacked) - 1)))
    mean, n = stacked.mean(0), model.n_magnitude
    if name == "magnitudes":
        return mean[:, :n], error[:, :n]
    if name == "spectrum":
        flux, change = (np.asarray(x)[:, n:] for x in as_measured(jnp.asarray(mean), n))
        scale = model.require_frame().flux_scale
        return scale * flux, scale * np.abs(change) * error[:, n:]
    return mean, error
