"""The family of `LinearModel`: labels from spectra.

Before training, the variant of highest held-out density is chosen; after it tau is learned from held-out labels where
the training labels say too little of it. The test step is that of `inference.quartic`, to whose result the uncertainty
of the label system is added.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr
from astropy.table import QTable
from scipy.optimize import minimize_scalar
from scipy.spatial import cKDTree
from scipy.stats import t as student_t

from ..calibration import log_density
from ..checkpoint import Checkpoint
from ..errors import BadInput, bad_input
from ..family import Choice, Family, Layout
from ..fit import fit, fold_of, infer
from ..inference.base import Inference, Moments, StarDraws, Trained
from ..inference.batches import Rows
from ..inference.draws import moments_from_draws
from ..inference.free_labels import learn_label_curve, with_label_curve
from ..inference.importance import KHAT_LIMIT
from ..inference.labels import label_system_covariance, labels_at, variables_at
from ..inference.laplace import Laplace
from ..inference.map import MAP
from ..inference.nuts import NUTS
from ..inference.passes import by_minibatches, by_sweeps
from ..inference.quartic import prepare
from ..inference.spectra_sums import SpectraBySums
from ..inference.starwise import StarProblem
from ..inference.svi import SVI
from ..inference.whitened import Start
from ..linear import LinearModel
from ..model import Frame
from ..numerics.linalg import in_float64, inverse_observed, outer_pairs, pack, pairs
from ..posterior import Posterior
from ..progress import bar
from ..star_posterior import Flags
from ..stars import Block, Stars

FOLDS = 5
"""Folds of the training set for held-out labels."""

GAUSSIAN_DRAWS = 200
"""Draws of the coefficients from their covariance, where a posterior has but its mode."""
SOME_STARS = 4
"""Training stars of which predictions stand for those of all."""

COMPARED = 2
"""Folds on which the variants of a model are compared."""


class LinearFamily(Family):
    """Labels from spectra, by models linear in features of the latents."""

    kind: ClassVar = LinearModel
    moments: ClassVar = Moments
    fit_by: ClassVar = MAP()
    infer_by: ClassVar = Laplace()

    def choose(
        self, model: LinearModel, stars: Stars, inference: Inference, seed: int, progress: bool | None
    ) -> Choice:
        info: dict[str, Any] = {}
        model.bind(stars)
        if model.outlier_sigma is not None:
            kept = _within(model, stars, model.outlier_sigma, seed, progress)
            info["n_outlier"] = int((~kept).sum())
            stars = stars[kept]
        chosen, seen, info["selection"] = _select(model, stars, seed, progress)
        return Choice(chosen.bind(stars), stars, info, seen)

    def complete(self, posterior: Posterior, choice: Choice) -> Posterior:
        if choice.held_out is None or not choice.model.scatter_from_held_out:
            return posterior
        return _with_label_scatter(posterior, choice.stars, choice.held_out)

    def train(self, model: Any, stars: Stars, inference: Any, seed: int, progress: bool | None) -> Trained:
        if not isinstance(inference, NUTS | SVI):
            return inference.fit(model, stars, seed, progress)

        trained = inference.fit(model, stars, seed, progress, lambda: self.start(model, stars, seed))
        return self.finish(model, stars, trained)

    def by_batches(self, inference: Inference, large: bool = False) -> bool:
        return large and isinstance(inference, MAP | SVI)

    def not_by_batches(self, model: LinearModel) -> str:
        if model.outlier_sigma is None:
            return ""
        return f"{type(model).__name__} drops no outliers (outlier_sigma={model.outlier_sigma}; None keeps all)"

    def train_by_batches(
        self, rows: Rows, inference: Any, seed: int, progress: bool | None, checkpoint: Checkpoint | None
    ) -> Trained:
        if isinstance(inference, SVI):
            by_sums = SpectraBySums(rows.model, rows.stars, MAP().tolerance)
            trained = by_minibatches(by_sums, rows, inference, seed, progress, checkpoint)
        else:
            inference.refuse_batches(rows.model)
            by_sums = SpectraBySums(rows.model, rows.stars, inference.tolerance)
            trained = by_sweeps(by_sums, rows, inference.max_iterations, progress, checkpoint)
        return with_label_curve(rows.model, trained, rows.stars)

    def start(self, model: Any, stars: Stars, seed: int) -> Start:
        point = MAP(max_iterations=30, tolerance=0.1).fit(model, stars, seed, False).draws
        return Start({name: x[0, 0] for name, x in point.items()})

    def finish(self, model: Any, stars: Stars, trained: Trained) -> Trained:
        trained.moments = moments_from_draws(model, stars, trained.draws)
        return trained

    def layout(self, model: LinearModel) -> Layout:
        frame = model.require_frame()
        latents = list(frame.names)
        if not model.labels_are_latent:
            latents = [f"{model.sites['latents']}{p}" for p in range(model.features.n_label)]
        features = list(model.features.names(tuple(latents)))
        coords = {
            "labels": list(frame.names),
            "labels_bis": list(frame.names),
            "latent": latents,
            "latent_bis": latents,
            "feature": features,
            "feature_bis": features,
            "pixel": np.arange(frame.n_pixel) if frame.coordinate is None else frame.coordinate,
        }
        own_features = "label_feature" if model.label_curve else "feature"
        if model.label_curve:
            of_labels = list(model.label_features.names(frame.names))
            coords |= {"label_feature": of_labels, "label_feature_bis": of_labels}
        own, names = "labels" if model.labels_are_latent else "latent", model.sites
        shared = {
            "scatter": ["pixel"],
            "label_scatter": ["labels"],
            "population_mean": [own],
            "population_covariance": [own, f"{own}_bis"],
        }
        sites = {
            names["coefficients"]: ["pixel", "feature"],
            f"{names['coefficients']}_mean": ["feature"],
            f"{names['coefficients']}_covariance": ["feature", "feature_bis"],
            names["latents"]: ["star", own],
            "true_labels": ["star", "labels"],
            names.get("label_coefficients", "label_coefficients"): ["labels", "feature"],
            "label_curve": ["labels", own_features],
        }
        moments = {
            "coefficients": ["pixel", "feature"],
            "coefficient_covariance": ["pixel", "feature", "feature_bis"],
            "label_coefficients": ["labels", own_features],
            "label_system_covariance": ["labels", own_features, "labels_bis", f"{own_features}_bis"],
            "training_u": ["training_star", own],
        }
        return Layout(coords, shared | sites, shared | moments)

    def read_moments(self, arrays: dict[str, np.ndarray]) -> Moments:
        if "label_coefficients" not in arrays:  # a file of before labels could be outputs
            arrays = {**arrays, "label_coefficients": np.zeros(arrays["label_system_covariance"].shape[:2])}
        return super().read_moments(arrays)

    def infer(
        self, posterior: Posterior, stars: Stars, inference: Inference, seed: int, first: int, progress: bool | None
    ) -> dict[str, xr.Dataset]:
        model, moments = posterior.model, posterior.moments
        blocks = ("flux", *model.label_blocks)
        if not any(name in stars for name in blocks):
            raise bad_input(f"stars with {', '.join(stars.blocks) or 'no blocks'}", f"at least one of {blocks}")
        groups = []
        for labels, mask in model.pixels_for():
            seen = stars if mask is None else stars.with_block(flux=_masked(stars, mask))
            problem = prepare(model, moments, seen, seed, getattr(inference, "starts", 4))
            draws = inference.infer(problem, seed + first, progress)
            groups.append((labels, _finish(model, moments, seen, problem, draws, seed)))
        return groups[0][1] if len(groups) == 1 else _joined(groups)

    def batch_size(self, model: LinearModel) -> int:
        """As many as take some 200 MB."""
        return max(256, 4096 * 5 // max(5, model.features.n_label))

    def quantities(self, model: LinearModel, stars: Stars | None = None) -> Frame:
        return model.require_frame()

    def about(self, posterior: Posterior) -> dict[str, Any]:
        return {
            "integrated_over": "coefficients and label system of the training posterior",
            "label_scatter": posterior.moments.label_scatter.tolist(),
            "label_scatter_included": not posterior.model.labels_are_latent,
        }

    def asked(self, model: LinearModel) -> tuple[str, ...]:
        return ("labels",)

    def log_density(self, posterior: Posterior, result: Any, stars: Stars) -> np.ndarray:
        return log_density(result, stars, posterior.moments.label_scatter)

    def parameters(self, posterior: Posterior, seed: int) -> dict[str, np.ndarray]:
        """Of a posterior with one draw, its mode, the coefficients vary as their covariance says."""
        draws, moments = super().parameters(posterior, seed), posterior.moments
        name = posterior.model.sites["coefficients"]
        if draws[name].shape[:2] != (1, 1):
            return draws
        root = np.linalg.cholesky(moments.coefficient_covariance + 1e-14 * np.eye(moments.coefficients.shape[1]))
        z = np.random.default_rng([seed, 179424673]).standard_normal((GAUSSIAN_DRAWS, *moments.coefficients.shape))
        out = {site: np.broadcast_to(x, (1, GAUSSIAN_DRAWS, *x.shape[2:])) for site, x in draws.items()}
        out[name] = (moments.coefficients + np.einsum("ljk,dlk->dlj", root, z))[None]
        return out

    def identified(self, model: LinearModel, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Of latents that any rotation serves as well, the labels and fluxes that they predict."""
        names = model.sites
        if not model.labels_are_latent and names["latents"] in draws:
            free = {*names.values(), "true_labels", *(f"{names['coefficients']}_{x}" for x in ("mean", "covariance"))}
            phi = np.asarray(model.features(jnp.asarray(draws[names["latents"]][:, :SOME_STARS])))
            made = {
                "label": phi @ draws[names["label_coefficients"]].swapaxes(1, 2),
                "flux": phi @ draws[names["coefficients"]].swapaxes(1, 2),
            }
            draws = {name: x for name, x in draws.items() if name not in free} | made
        return super().identified(model, {name: x for name, x in draws.items() if name != "true_labels"})

    def true_quantities(self, model: LinearModel, sites: dict[str, Any], stars: Stars) -> dict[str, Any]:
        """The labels that catalogues measure with noise; where they are outputs, their scatter about A z included."""
        if model.labels_are_latent:
            values = sites["true_labels"]
        else:
            if known := [block for block in model.label_blocks if block in stars]:
                raise bad_input(f"stars with {', '.join(known)}", "spectra alone", fix=f"stars.drop{tuple(known)}")
            values = jnp.concatenate([sites[block] for block in model.label_blocks], -1)
        return {name: values[:, m] for m, name in enumerate(model.require_frame().names)}

    def predict(self, posterior: Posterior, stars: Stars, name: str | None, with_error: bool) -> Any:
        name = name or "flux"
        model, moments = posterior.model, posterior.moments
        if name not in ("flux", *model.label_blocks) or (name != "flux" and model.labels_are_latent):
            known = ("flux",) if model.labels_are_latent else ("flux", *model.label_blocks)
            raise bad_input(f"predict(..., {name!r})", f"one of {known}", "a quantity that this model does not have")
        given = [block for block in ("flux", *model.label_blocks) if block in stars and block != name]
        if not given:
            raise bad_input(
                f"stars without {'labels' if name == 'flux' else 'flux'}", f"a block to predict {name} from",
                fix="infer(posterior, stars).table() gives labels",
            )  # fmt: skip
        model.check(stars)
        u, spread = _latents(posterior, stars, given)
        phi = np.asarray(model.features(jnp.asarray(u)))
        jacobian = np.asarray(model.features.jacobian(jnp.asarray(u)))
        if name != "flux":
            at, frame = model.require_frame().columns(name), model.require_frame()
            c = moments.label_coefficients[at]
            mean = frame.centre[at] + frame.scale[at] * (phi @ c.T)
            own = np.einsum("mk,nkp,npq,njq,mj->nm", c, jacobian, spread, jacobian, c, optimize=True)
            system = moments.label_system_covariance[at][:, :, at]
            own += np.einsum("nk,mkmj,nj->nm", phi, system, phi, optimize=True)
            sd = np.sqrt(own * frame.scale[at] ** 2 + moments.label_scatter[at] ** 2)
            return (mean, sd) if with_error else mean
        theta = moments.coefficients
        mean = phi @ theta.T
        if not with_error:
            return mean
        of_phi = np.einsum("nkp,npq,njq->nkj", jacobian, spread, jacobian, optimize=True)
        second = (phi[:, :, None] * phi[:, None, :] + of_phi).reshape(len(phi), -1)
        variance = second @ moments.coefficient_covariance.reshape(len(theta), -1).T
        variance += of_phi.reshape(len(phi), -1) @ (theta[:, :, None] * theta[:, None, :]).reshape(len(theta), -1).T
        return mean, np.sqrt(variance + moments.scatter**2)

    def summary(self, posterior: Posterior) -> QTable:
        model, moments = posterior.model, posterior.moments
        frame = model.require_frame()
        if not model.labels_are_latent:
            columns = {"label": list(frame.names), "unit": list(frame.units), "label_scatter": moments.label_scatter}
            return QTable(columns)
        learned = np.nan if model.fixed_population is not None else 1.0
        return QTable(
            {
                "label": list(frame.names),
                "unit": list(frame.units),
                "label_scatter": moments.label_scatter,
                "population_mean": learned * frame.physical(moments.population_mean),
                "population_sd": learned * frame.scale * np.sqrt(np.diag(moments.population_covariance)),
            }
        )

    def describe(self, model: LinearModel) -> str:
        frame = model.require_frame()
        return f"{', '.join(frame.names)} from {frame.n_pixel} pixels"

    def details(self, posterior: Posterior) -> list[str]:
        frame, moments = posterior.model.require_frame(), posterior.data["moments"].to_dataset()
        grid = "" if frame.coordinate is None else f", {frame.coordinate[0]:.6g} to {frame.coordinate[-1]:.6g}"
        scatter = np.nanmedian(posterior.moments.scatter)
        return [
            f"spectra: {frame.n_pixel} pixels{grid}; median scatter {scatter:.2g} {frame.flux_unit}".rstrip(),
            f"features: {', '.join(moments['feature'].values.astype(str))}",
        ]


class HeldOut(NamedTuple):
    """Labels of stars that were not in the training set: scaled mean (N, M) and covariance (N, M, M)."""

    mean: np.ndarray
    covariance: np.ndarray


@in_float64
def held_out(
    model: Any,
    stars: Stars,
    folds: int,
    seed: int,
    progress: bool | None = None,
    *,
    n_run: int | None = None,
    trained: dict[tuple[Any, int], Moments] | None = None,
) -> HeldOut:
    """Every star's labels from its spectrum by the MAP of the other folds, tau left out; scaled as the whole set is.

    n_run: run only so many folds; the stars of the others are NaN. trained: moments by model (without its label curve)
    and fold, kept for variants that share them.
    """
    trained = {} if trained is None else trained
    frame = model.bind(stars).require_frame()
    fold = fold_of(len(stars), folds, seed)
    mean = np.full((len(stars), len(frame.names)), np.nan)
    covariance = np.full((*mean.shape, mean.shape[1]), np.nan)
    n_run = folds if n_run is None else min(n_run, folds)
    with bar(n_run, "held-out folds", progress) as shown:
        for f in range(n_run):
            out = fold == f
            bound = model.bind(stars[~out])
            straight = bound.without_curve()
            if (straight.choice, f) not in trained:
                found = MAP(max_iterations=40, tolerance=0.03).fit(straight, stars[~out], seed, False).moments
                assert found is not None
                trained[straight.choice, f] = found
            moments = trained[straight.choice, f]
            if bound.label_curve:
                moments, _ = learn_label_curve(bound, moments, stars[~out])
            moments = moments._replace(label_scatter=0 * moments.label_scatter)
            test = stars[out].drop(*model.label_blocks)
            problem = prepare(bound, moments, test, seed, 4)
            finished = _finish(bound, moments, test, problem, MAP().infer(problem, seed, False), seed)["stars"]
            mean[out] = frame.scaled(finished["mean"].values)
            covariance[out] = finished["covariance"].values / (frame.scale[:, None] * frame.scale)
            shown.update()
    return HeldOut(mean, covariance)


def _select(model: Any, stars: Stars, seed: int, progress: bool | None) -> tuple[Any, HeldOut | None, list[Any]]:
    """The variant of highest held-out density of the catalogue labels, its held-out labels, and all scores.

    A variant with latent labels takes many iterations a fold and is scored on `COMPARED` of the folds.
    """
    variants = model.bind(stars).variants()
    if len(variants) == 1 and not model.scatter_from_held_out:
        return variants[0], None, []
    folds = min(FOLDS, len(stars))
    outs: list[HeldOut | None] = []
    densities: list[np.ndarray] = []
    scores: list[dict[str, Any]] = []
    trained: dict[tuple[Any, int], Moments] = {}
    for variant in variants:
        n_run = COMPARED if variant.integrates_labels else None
        try:
            out = held_out(variant, stars, folds, seed, progress, n_run=n_run, trained=trained)
        except BadInput as problem:
            if len(variants) == 1:
                raise
            outs.append(None)
            densities.append(np.full(len(stars), -np.inf))
            scores.append({"variant": variant.choice, "refused": str(problem)})
            continue
        outs.append(out)
        densities.append(density_of_labels(variant.bind(stars), stars, out))
        scores.append({"variant": variant.choice})
    compared = fold_of(len(stars), folds, seed) < COMPARED
    means = [float(d[compared].mean()) for d in densities]
    best = int(np.argmax(means))
    for score, mean, density in zip(scores, means, densities, strict=True):
        if "refused" not in score:
            difference = (density - densities[best])[compared]
            score |= {"log_density": mean, "difference_error": float(difference.std() / np.sqrt(compared.sum()))}
    return variants[best], outs[best], scores


def density_of_labels(model: LinearModel, stars: Stars, out: HeldOut, freedom: float = 4.0) -> np.ndarray:
    """Log density (N,) of the catalogue labels under held-out predictions, tau fitted to them: Student-t, per label.

    A star without a prediction counts as one of which nothing is known (twice the training stars' spread). The heavy
    tails keep a few wrong catalogue entries from deciding.
    """
    measured = model.catalogue(stars)
    total = np.zeros(len(stars))
    for m in range(out.mean.shape[1]):
        known = measured.observed[:, m] & np.isfinite(out.mean[:, m])
        offset = (measured.value - out.mean)[known, m]
        variance = (measured.covariance + out.covariance)[known, m, m]

        def loss(log_tau: float, r: np.ndarray = offset, v: np.ndarray = variance) -> float:
            return -float(student_t.logpdf(r, freedom, scale=np.sqrt(v + np.exp(2 * log_tau))).sum())

        best = minimize_scalar(loss, bounds=(-9.0, 2.0), method="bounded").x
        total[known] += student_t.logpdf(offset, freedom, scale=np.sqrt(variance + np.exp(2 * best)))
        unanswered = measured.observed[:, m] & ~np.isfinite(out.mean[:, m])
        total[unanswered] += student_t.logpdf(measured.value[unanswered, m], freedom, scale=2.0)
    return total


def _with_label_scatter(posterior: Posterior, stars: Stars, out: HeldOut) -> Posterior:
    """tau such that 68.27 per cent of held-out catalogue labels lie within their predictive sd."""
    model = posterior.model
    measured = model.catalogue(stars)
    tau2 = np.zeros(out.mean.shape[1])
    for m in range(len(tau2)):
        known = measured.observed[:, m] & np.isfinite(out.mean[:, m])
        offset2 = (measured.value - out.mean)[known, m] ** 2
        variance = (measured.covariance + out.covariance)[known, m, m]
        tau2[m] = max(0.0, float(np.quantile(offset2 - variance, 0.6827)))
    moments = posterior.moments._replace(label_scatter=np.sqrt(tau2) * model.require_frame().scale)
    if model.labels_are_latent:
        noise = jnp.asarray(measured.covariance) + np.diag(np.maximum(tau2, 1e-8))
        precision = inverse_observed(noise, jnp.asarray(measured.observed))
        n_star = posterior.info["n_star"]
        system = label_system_covariance(model.features, moments.training_u, precision, n_star=n_star)
        moments = moments._replace(label_system_covariance=system)
    return posterior.with_moments(moments)


def _within(model: Any, stars: Stars, limit: float, seed: int, progress: bool | None) -> np.ndarray:
    """Stars of which every catalogue label is within `limit` robust scatters of a first pass (Ho+17, section 3)."""
    first = fit(model.replace(outlier_sigma=None), stars, seed=seed, progress=progress)
    result = infer(first, stars.drop(*model.label_blocks), MAP(), seed=seed, progress=False)
    catalogue = first.model.catalogue(stars)
    offset = first.model.require_frame().scaled(result.mean) - np.where(catalogue.observed, catalogue.value, np.nan)
    low, middle, high = np.nanpercentile(offset, [15.87, 50, 84.13], axis=0)
    return ~(np.abs(offset - middle) > limit * (high - low) / 2).any(1)


def _latents(posterior: Posterior, stars: Stars, given: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Latents (N, P) and covariance (N, P, P) of stars by the blocks `given`."""
    model, moments = posterior.model, posterior.moments
    if model.labels_are_latent:
        catalogue = model.catalogue(stars)
        u = np.where(catalogue.observed.all(1, keepdims=True), catalogue.value, np.nan)
        if model.label_curve:
            u = np.array(variables_at(u, posterior.moments.label_coefficients, model.label_features))
        return u, np.zeros(catalogue.covariance.shape)
    part = stars.drop(*[block for block in stars.blocks if block not in given])
    modes = prepare(model, moments, part, 0, 1).modes
    u, spread = np.array(modes.location[0]), np.array(modes.covariance[0])
    blank = ~np.any([part[block].observed.any(1) for block in given], 0)
    u[blank] = np.nan
    return u, spread


def _finish(
    model: LinearModel, moments: Moments, stars: Stars, problem: StarProblem, out: StarDraws, seed: int
) -> dict[str, xr.Dataset]:
    """Add the label system's uncertainty, turn into label units, and flag."""
    frame, features, statistics = model.require_frame(), model.features, problem.own.statistics
    rng = np.random.default_rng([seed, 49979687])
    n_chain, n_draw = out.u.shape[:2]
    latent = out.u.mean((0, 1)) if out.mean is None else np.array(out.mean)
    if out.covariance is None:
        offset = (out.u - latent).reshape(-1, *latent.shape)
        latent_covariance = np.einsum("snm,snk->nmk", offset, offset, optimize=True) / max(len(offset) - 1, 1)
    else:
        latent_covariance = np.array(out.covariance)
    mean, covariance, u = _labels_of(model, moments, latent, latent_covariance, np.asarray(out.u), rng)
    n_data = np.asarray(statistics.n_pixel) + model.catalogue(stars).observed.sum(1)
    failed = out.failed | (n_data == 0)
    for x in (mean, covariance, latent, latent_covariance):
        x[failed] = np.nan
    u[:, :, failed] = np.nan
    labels = u  # turned into label units in place: it may be most of the memory
    labels *= frame.scale
    labels += frame.centre
    if n_draw > 1:
        p16, p50, p84 = np.percentile(labels.reshape(-1, *mean.shape), [15.865, 50, 84.135], axis=0)
    else:
        sd = frame.scale * np.sqrt(np.einsum("nmm->nm", covariance))
        p50 = frame.physical(mean)
        p16, p84 = p50 - sd, p50 + sd
    with np.errstate(invalid="ignore"):
        chi2 = np.asarray(statistics.chi2(features(jnp.asarray(latent))))
    distance, threshold = label_distance(moments.training_u, latent)
    n_pixel = np.asarray(statistics.n_pixel).astype(int)
    star_stats = {k: v for k, v in out.star_stats.items() if k != "rescued"}
    flags = np.zeros(len(stars), int)
    weight = np.asarray(problem.modes.weight)
    flags |= Flags.NOT_CONVERGED * (out.failed & (n_data > 0))
    flags |= Flags.NO_DATA * (n_data == 0)
    flags |= Flags.MULTIMODAL * (weight[1:].sum(0) > 0.01)
    flags |= Flags.OUTSIDE_TRAINING * (distance > threshold)
    flags |= Flags.POOR_FIT * (chi2 > 3 * np.maximum(n_pixel, 1))
    if "flux" in stars:
        flags |= Flags.MISSING_DATA * ((n_pixel < 0.5 * np.isfinite(moments.scatter).sum()) & (n_data > 0))
    if "khat" in star_stats:
        rescued = out.star_stats.get("rescued", np.zeros(len(stars), bool))
        flags |= Flags.KHAT_HIGH * ((star_stats["khat"] > KHAT_LIMIT) & ~rescued)
    if "rhat" in star_stats:
        flags |= Flags.RHAT_HIGH * (star_stats["rhat"] > 1.02)
    ids = stars.id if stars.id is not None else np.arange(len(stars))
    coords: dict[str, Any] = {"star": ids, "labels": list(frame.names), "labels_bis": list(frame.names)}
    per_label = {"mean": frame.physical(mean), "p16": p16, "p50": p50, "p84": p84}
    table: dict[str, Any] = {name: (("star", "labels"), x) for name, x in per_label.items()}
    for name, (value, error, unit) in model.further(moments, stars, latent, latent_covariance).items():
        table |= {name: (("star",), value, {"unit": unit}), f"{name}_error": (("star",), error, {"unit": unit})}
    names = [f"{model.sites['latents']}{p}" for p in range(latent.shape[1])]
    coords |= {"latent": names, "latent_bis": names}
    table["latents"] = (("star", "latent"), latent)
    table["latents_covariance"] = (("star", "latent", "latent_bis"), latent_covariance)
    table["covariance"] = (("star", "labels", "labels_bis"), covariance * frame.scale[:, None] * frame.scale)
    per_star = {"chi2": chi2, "n_pixel": n_pixel, "label_distance": distance, "flags": flags, **star_stats}
    table |= {name: (("star",), x) for name, x in per_star.items()}
    draws = xr.Dataset(
        {"true_labels": (("chain", "draw", "star", "labels"), labels)},
        coords={**coords, "chain": np.arange(n_chain), "draw": np.arange(n_draw)},
    )
    return {
        "posterior": draws.drop_vars(["labels_bis", "latent", "latent_bis"]),
        "stars": xr.Dataset(table, coords=coords),
    }


def _masked(stars: Stars, mask: np.ndarray) -> Block:
    """The flux without the pixels outside the mask."""
    flux = stars["flux"]
    return Block(np.where(mask, flux.value, np.nan), flux.error, names=flux.names, unit=flux.unit, coords=flux.coords)


def _joined(groups: list[tuple[tuple[int, ...], dict[str, xr.Dataset]]]) -> dict[str, xr.Dataset]:
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
        for name in ("mean", "p16", "p50", "p84"):
            first["stars"][name].values[:, at] = result["stars"][name].values[:, at]
        rows = np.ix_(range(len(own)), at, at)
        own[rows] = result["stars"]["covariance"].values[rows]
        first["stars"]["flags"].values[:] |= result["stars"]["flags"].values
    own[:, ~keep] = 0.0
    return first


def _labels_of(
    model: LinearModel, moments: Moments, latent: np.ndarray, spread: np.ndarray, u: np.ndarray, rng: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scaled true labels of latents (N, P) with covariance (N, P, P) and draws u (chain, draw, N, P).

    Mean (N, M), covariance (N, M, M), draws (chain, draw, N, M). The uncertainty of the label system, common to all
    stars, is added; for labels that are outputs tau is, too: there it is the scatter of the true labels.
    """
    features, c, system = model.label_features, moments.label_coefficients, moments.label_system_covariance
    phi, draws = np.asarray(features(jnp.asarray(latent))), u.copy()
    if model.label_curve:
        at, slope = map(np.asarray, labels_at(latent, c, features))
        mean, covariance, tau = at.copy(), slope @ spread @ np.swapaxes(slope, 1, 2), None
        for draw in draws.reshape(-1, *latent.shape):
            draw += np.asarray(features(jnp.asarray(draw))) @ c.T
    elif model.labels_are_latent:
        mean, covariance, tau = latent.copy(), spread.copy(), None
    else:
        slope = c @ np.asarray(features.jacobian(jnp.zeros(features.n_label)))
        mean, covariance = phi @ c.T, slope @ spread @ slope.T
        tau = moments.label_scatter / model.require_frame().scale
        covariance += np.diag(tau**2)
        draws = (u @ slope.T) + np.asarray(features(jnp.zeros(features.n_label))) @ c.T
    m, k = c.shape
    both = system + np.swapaxes(system, 1, 3)  # the part that is symmetric in k and l is all that counts
    packed = pack(np.moveaxis(both, 2, 1)).reshape(m * m, -1) * (0.5 * pairs(k)[2])
    covariance += (outer_pairs(phi) @ packed.T).reshape(-1, m, m)
    if len(u[0]) > 1:
        factor = np.linalg.cholesky(system.reshape(m * k, m * k) + 1e-14 * np.eye(m * k))
        for chain in draws:
            for draw in chain:
                draw += phi @ (factor @ rng.standard_normal(m * k)).reshape(m, k).T
                if tau is not None:
                    draw += tau * rng.standard_normal(draw.shape)
    return mean, covariance, draws


def label_distance(training_u: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean squared distance (N,) to the ten nearest training stars in scaled labels (Ho+17 eq. 7), and its limit.

    The limit is twice the largest distance, save for one star in a hundred, among the training stars themselves.
    """
    train = np.ascontiguousarray(training_u[:: max(1, len(training_u) // 4000)])
    tree, k, limit = _neighbours(train.tobytes(), train.shape[1])
    ok = np.isfinite(u).all(1)
    distance = np.full(len(u), np.nan)
    if ok.any():
        distance[ok] = (tree.query(u[ok], k=k)[0].reshape(ok.sum(), -1) ** 2).mean(1)
    return distance, limit


@functools.lru_cache(maxsize=8)
def _neighbours(train: bytes, width: int) -> tuple[cKDTree, int, float]:
    """The tree of training stars, how many of them count as near, and the limit: once for all batches of stars."""
    points = np.frombuffer(train).reshape(-1, width)
    tree, k = cKDTree(points), min(10, len(points) - 1)
    own = (tree.query(points, k=k + 1)[0][:, 1:] ** 2).mean(1)
    return tree, k, 4 * float(np.quantile(own, 0.99))
