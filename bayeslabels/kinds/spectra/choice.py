"""What stars that were held out decide of a `LinearModel`: its variant, and tau."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import gammaln

from ...data.batches import fold_of
from ...data.stars import Stars
from ...errors import BadInput, advise
from ...inference.map import MAP
from ...inference.starwise import modes_of
from ...kind import TrainedModel
from ...numerics.linalg import in_float64
from .em import by_em
from .hidden import with_hidden
from .label_curve import with_label_curve
from .model import LinearModel
from .moments import Moments
from .order import choose_components, choose_order
from .quartic import flux_given_labels, prepare
from .stars import finish, fit_quality

FOLDS = 5
"""Folds of the training set for held-out labels."""

COMPARED = 2
"""Folds on which the variants of a model are compared, at most, where held-out labels are needed for nothing else."""

COMPARED_STARS = 2000
"""Stars that are divided into folds, at most: of more, as many are drawn, which bounds the time that a choice takes."""

UNSTATED = 0.0
"""`LinearModel.surely` of a catalogue that states no errors: nothing says beforehand that its labels are noisy, and the
best is taken."""

ON_FOLDS = MAP(max_iterations=40, tolerance=0.03)
"""How a fold is trained on."""


class HeldOut(NamedTuple):
    """Labels of stars that were not in the training set: scaled mean (N, M) and covariance (N, M, M); flux (N,):
    ln p(flux | labels) where labels are outputs, else 0."""

    mean: np.ndarray
    covariance: np.ndarray
    flux: np.ndarray


def folds_of(n_star: int, seed: int) -> tuple[np.ndarray, int]:
    """The fold of each star, -1 of those that take no part, and the number of folds."""
    folds = min(FOLDS, n_star)
    fold = fold_of(n_star, folds, seed)
    left = np.random.default_rng([seed, 15485863]).permutation(n_star)[COMPARED_STARS:]
    fold[left] = -1
    return fold, folds


@in_float64
def held_out(
    model: LinearModel,
    stars: Stars,
    seed: int,
    progress: bool | None = None,
    *,
    n_run: int | None = None,
    before: HeldOut | None = None,
) -> HeldOut:
    """Stars' labels from their spectra by the MAP of the other folds, tau left out; scaled as the whole set is.

    model: bound to the whole set. n_run: run only so many folds; the stars of the others, and those of no fold, are
    NaN. before: of some folds, which are not run again.
    """
    frame = model.require_frame()
    fold, folds = folds_of(len(stars), seed)
    mean = np.full((len(stars), len(frame.names)), np.nan)
    covariance = np.full((*mean.shape, mean.shape[1]), np.nan)
    flux = np.zeros(len(stars))
    if before is not None:
        mean[:], covariance[:], flux[:] = before
    to_run = [f for f in range(folds if n_run is None else min(n_run, folds)) if np.isnan(mean[fold == f]).all()]
    for f in to_run:
        out, what = fold == f, f"training step, fold {f + 1} of {folds}"
        others = stars[(fold >= 0) & ~out]
        bound = model.bind(others)
        trained = by_em(bound, others, ON_FOLDS, seed, progress, what)
        moments = with_label_curve(bound, trained, others).moments
        assert moments is not None
        bare = moments._replace(label_scatter=0 * moments.label_scatter)
        test = stars[out].drop(*model.label_blocks)
        problem = prepare(bound, bare, test, seed, 4)
        finished = finish(bound, bare, test, problem, modes_of(problem), seed)["stars"]
        mean[out] = frame.scaled(finished["mean"].values)
        covariance[out] = finished["covariance"].values / (frame.scale[:, None] * frame.scale)
        if not model.labels_are_latent:
            phi = bound.features(np.where(np.isfinite(z := problem.modes.location[0]), z, 0.0))
            flux[out] = flux_given_labels(bound, moments, stars[out], phi)
    return HeldOut(mean, covariance, flux)


def select(
    model: LinearModel, stars: Stars, seed: int, progress: bool | None
) -> tuple[Any, Stars, HeldOut | None, list[Any]]:
    """The variant of highest held-out density, of the catalogue labels given the flux and where labels are outputs of
    the flux given the labels, too (Lux, appendix A), if it is better than the first as surely as the model asks; the
    stars, with starting values of hidden labels; held-out labels, and all scores. The model is bound to the stars.

    A variant with latent labels takes many iterations a fold and is scored on `COMPARED` of the folds at most, on one
    where no other is ahead of the first there; on all where tau is learned from them.
    """
    scores: list[dict[str, Any]] = []
    em = None
    if model.asks_hidden:  # first: what no label explains would pass for a higher order
        model, stars, scores = with_hidden(model, stars, progress)
        model = model.bind(stars)
    if model.orders:
        order, found, em = choose_order(model, stars, seed, progress)
        model, scores = model.of_order(order).bind(stars), scores + found
    if model.asks_components:
        number, found = choose_components(model, stars, em, seed, progress)
        model, scores = model.replace(components=number), scores + found
    variants = model.variants()
    if len(variants) == 1 and not asks_held_out(variants[0], stars):
        return variants[0], stars, None, scores
    seen, best, own = _compared(variants, stars, seed, progress, model.surely)
    if len(variants) > 1 and asks_held_out(variants[best], stars):  # tau, of all folds
        seen = held_out(variants[best], stars, seed, progress, before=seen)
    return variants[best], stars, seen, scores + own


def _compared(
    variants: tuple[LinearModel, ...], stars: Stars, seed: int, progress: bool | None, surely: float
) -> tuple[HeldOut | None, int, list[dict[str, Any]]]:
    """Held-out labels by the best variant, which one it is, and all scores; of one variant on all folds."""
    fold, folds = folds_of(len(stars), seed)
    outs: list[HeldOut | None] = [None] * len(variants)
    refused: dict[int, str] = {}
    to_run: Iterable[int] = range(1, COMPARED + 1)
    if len(variants) == 1:
        to_run = (folds,)
    elif surely > UNSTATED and asks_held_out(variants[0], stars):
        to_run, surely = (folds,), UNSTATED
    for n_run in to_run:
        for i, variant in enumerate(variants):
            try:
                if i not in refused:
                    outs[i] = held_out(variant, stars, seed, progress, n_run=n_run, before=outs[i])
            except BadInput as problem:
                if len(variants) == 1:
                    raise
                outs[i], refused[i] = None, str(problem)
        compared = (fold >= 0) & (fold < n_run)
        densities = [
            np.full(compared.sum(), -np.inf)
            if out is None
            else (density_of_labels(variant, stars, out) + out.flux)[compared]
            for variant, out in zip(variants, outs, strict=True)
        ]
        best = first_or_clearly_better(densities, surely)
        if surely > 0 and max(densities, key=np.mean) is densities[0]:
            break  # the others would have to lead by far on the fold that is left
    scores: list[dict[str, Any]] = []
    for i, (variant, density) in enumerate(zip(variants, densities, strict=True)):
        scores.append({"variant": variant.choice} | ({"chosen": True} if i == best else {}))
        if i in refused:
            scores[i]["refused"] = refused[i]
            continue
        error = float((density - densities[best]).std() / np.sqrt(len(density)))
        scores[i] |= {"log_density": float(density.mean()), "difference_error": error}
    return outs[best], best, scores


def first_or_clearly_better(densities: list[np.ndarray], surely: float) -> int:
    """Which of several variants, of log densities (N,) of the same stars: the first that could be trained (those of the
    others are -inf), or the best of those that are better by so many standard errors."""
    trained = [i for i, density in enumerate(densities) if np.isfinite(density).all()]
    first = trained[0] if trained else 0
    for i in sorted(trained, key=lambda i: -float(densities[i].mean())):
        lead = densities[i] - densities[first]
        if lead.mean() > surely * lead.std() / np.sqrt(len(lead)):
            return i
    return first


def asks_held_out(model: LinearModel, stars: Stars) -> bool:
    """Whether tau is to be learned from held-out labels: of labels that training integrates over only where errors are
    not stated."""
    integrated = model.label_curve and model.integrates_labels
    return model.scatter_from_held_out and not (integrated and model.catalogue(stars).stated.all())


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
            return -float(student_log_density(r, freedom, v + np.exp(2 * log_tau)).sum())

        best = minimize_scalar(loss, bounds=(-9.0, 2.0), method="bounded").x
        total[known] += student_log_density(offset, freedom, variance + np.exp(2 * best))
        unanswered = measured.observed[:, m] & ~np.isfinite(out.mean[:, m])
        total[unanswered] += student_log_density(measured.value[unanswered, m], freedom, 4.0)
    return total


def student_log_density(x: np.ndarray, freedom: float, scale2: np.ndarray | float) -> np.ndarray:
    """ln of Student's t density, of squared scale scale2. That of SciPy loads all its distributions with it, half a
    second of a first call."""
    constant = gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - 0.5 * np.log(np.pi * freedom * scale2)
    return constant - (freedom + 1) / 2 * np.log1p(x**2 / (freedom * scale2))


def with_label_scatter(
    posterior: TrainedModel[LinearModel, Moments], stars: Stars, out: HeldOut
) -> TrainedModel[LinearModel, Moments]:
    """tau such that 68.27 per cent of held-out catalogue labels lie within their predictive sd."""
    model = posterior.model
    measured = model.catalogue(stars)
    tau2 = np.zeros(out.mean.shape[1])
    for m in range(len(tau2)):
        known = measured.observed[:, m] & np.isfinite(out.mean[:, m])
        offset2 = (measured.value - out.mean)[known, m] ** 2
        variance = (measured.covariance + out.covariance)[known, m, m]
        tau2[m] = max(0.0, float(np.quantile(offset2 - variance, 0.6827)))
    scatter = np.sqrt(tau2) * model.require_frame().scale
    if model.label_curve and model.integrates_labels:  # stated errors tell tau in training
        scatter = np.where(measured.stated, posterior.moments.label_scatter, scatter)
    return posterior.with_moments(posterior.moments._replace(label_scatter=scatter), label_scatter=scatter)


def tell_which_error(posterior: TrainedModel[LinearModel, Moments], stars: Stars) -> None:
    """A line in the log of labels whose catalogue scatters by more than it states: which column of a table to quote."""
    model, tau = posterior.model, posterior.moments.label_scatter
    if model.scatter_is_own or not len(tau):
        return
    frame, catalogue = model.require_frame(), model.catalogue(stars)
    variance = np.where(catalogue.observed, np.einsum("nmm->nm", catalogue.covariance), np.nan)
    stated = frame.scale * np.sqrt(np.nanmedian(variance, 0))
    rows = list(zip(frame.names, frame.units, tau, stated, strict=True))
    if noisy := [f"{name} {t:.3g} {unit}".rstrip() for name, unit, t, error in rows if t > error]:
        advise(
            "The catalogue's labels %s (%s): <label>_catalogue_error is the error of a label on the catalogue's scale, "
            "<label>_error leaves this scatter out.",
            "scatter by more than their stated errors" if (stated > 0).any() else "have no stated errors, and scatter",
            ", ".join(noisy),
        )


QUALITY_STARS = 1000
"""Training stars, at most, whose chi^2 tells what is usual."""


@in_float64
def with_fit_quality(posterior: TrainedModel[LinearModel, Moments], stars: Stars) -> TrainedModel[LinearModel, Moments]:
    """With what is usual of the training stars' chi^2, by which the test step tells poor fits."""
    model, moments = posterior.model, posterior.moments
    some = stars[:: -(-len(stars) // QUALITY_STARS)].drop(*model.label_blocks)
    problem = prepare(model, moments, some, 0, 1)
    statistics = problem.own.statistics
    chi2 = statistics.chi2(model.features(problem.modes.location[0]))
    return posterior.with_moments(moments._replace(fit_quality=fit_quality(chi2, np.asarray(statistics.n_pixel))))
