"""What stars of one survey, or with parallaxes of one catalogue, have in common: errors that do not average out.

    labels_n = u_n + delta_s + noise,   u_n + delta_s ~ p_s,  delta_s ~ N(0, sd^2), 0 of the reference survey
    parallax_n = 10^((10 - mu_n) / 5) + zero_c + f_c noise,   zero_c ~ N(published), ln f_c ~ N(ln published, sd^2)

Every survey has a population of its own: surveys differ by their selections, too, which say nothing of delta_s. The
stars' blocks are `survey` and `parallax_system`. A frame's populations are those of the labels as the surveys have them
less `frame.offsets`: in training nothing, afterwards what was learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ...astro.gaia import PARALLAX_SYSTEMS
from ...data.stars import Block, Stars
from ...errors import bad_input
from ...numerics.linalg import Array, constant, is_traced, module_of
from ...numerics.mixture import Given, Mixture

if TYPE_CHECKING:
    from .frame import PhotometryFrame
    from .photometry import Photometry
    from .stars import PhotometricMoments

SITES = ("survey_offset", "catalogue_zero_point", "catalogue_error_factor")
"""Those of `parameters`."""


class Systems(NamedTuple):
    """Which survey (N, S), the reference first, and which catalogue of parallaxes (N, C), a star is of: 1, else 0;
    (N, 0) where all are of one survey."""

    survey: Array
    catalogue: Array


class Common(NamedTuple):
    """What is known of N stars' systems: zero point and error factor of the parallax (N,), offset of scaled labels
    (N, L), and the covariance (N, 1 + L, 1 + L) of zero point and offset."""

    zero_point: np.ndarray
    factor: np.ndarray
    offset: np.ndarray
    covariance: np.ndarray


def check_systems(stars: Stars, frame: PhotometryFrame | None) -> None:
    """Refuse surveys that training did not have, where there is a frame, and catalogues of which nothing is known."""
    for name in ("survey", "parallax_system"):
        if name in stars and not stars[name].has_names:
            raise bad_input(f"a block {name} of numbers", "one text per star", fix=f'{name}=Block.of_names(["a", "b"])')
    if "parallax_system" in stars and (odd := _beyond(stars["parallax_system"], PARALLAX_SYSTEMS)):
        raise bad_input(
            f"parallaxes of {odd}", f"a catalogue among {tuple(PARALLAX_SYSTEMS)}, or none",
            "a catalogue of which no zero point is known here", "stars.drop('parallax_system'), zero_point=(mean, sd)",
        )  # fmt: skip
    if frame is not None and "survey" in stars and (odd := _beyond(stars["survey"], frame.surveys)):
        raise bad_input(
            f"labels of the survey {odd}", f"one of {frame.surveys or 'no survey'}, as in training",
            "a survey whose offset was not learned", "fit with some of its stars, or stars.drop('survey')",
        )  # fmt: skip


def _beyond(block: Block, known: Any) -> str:
    """A name that some star has and that is not known; "": there is none."""
    if is_traced(block.value):
        return ""
    there = (np.asarray(block.value) == 1).any(0)
    return next((x for x, some in zip(block.names or (), there, strict=True) if some and x not in known), "")


def surveys_of(stars: Stars) -> tuple[str, ...]:
    """Surveys of the training labels; the first is the reference, the one that most stars with labels are of."""
    if "survey" not in stars or "labels" not in stars:
        return ()
    often = (stars["survey"].value == 1)[stars["labels"].observed.any(1)].sum(0)
    names = stars["survey"].names or ()
    return tuple(names[i] for i in np.argsort(-often, kind="stable") if often[i])


def catalogues_of(stars: Stars) -> tuple[str, ...]:
    """Catalogues of the training stars' parallaxes."""
    if "parallax_system" not in stars or "parallax" not in stars:
        return ()
    block = stars["parallax_system"]
    there = (block.value == 1)[stars["parallax"].observed[:, 0]].any(0)
    return tuple(x for x, some in zip(block.names or (), there, strict=True) if some)


def systems_of(frame: PhotometryFrame, stars: Stars) -> Systems:
    """Of stars that fit the frame."""
    several = frame.surveys if len(frame.surveys) > 1 else ()
    return Systems(chosen(stars, "survey", several), chosen(stars, "parallax_system", frame.catalogues))


FEWEST = 10
"""Stars of a survey, at least."""
NEVER = -1e30
"""ln p of components that a star is not of."""


def populations(
    surveys: tuple[str, ...], stars: Stars, learned: Callable[[np.ndarray], Mixture]
) -> tuple[Mixture, np.ndarray | None, np.ndarray | None]:
    """One mixture of those `learned` of each survey's rows; its components' surveys (K,) and the stars' (N,), -1: of
    none; None of both where there are no two surveys."""
    if len(surveys) < 2:
        return learned(np.arange(len(stars))), None, None
    own, labelled = chosen(stars, "survey", surveys), stars["labels"].observed.any(1)
    if nameless := int((labelled & (own.sum(1) == 0)).sum()):
        raise bad_input(f"{nameless} training stars with labels of no survey, and others of {', '.join(surveys)}",
                        "the survey of all labels", fix="stars[mask], or Block.of_names(...)")  # fmt: skip
    number = own[labelled].sum(0)
    if (few := number.argmin()) >= 0 and number[few] < FEWEST:
        raise bad_input(f"{number[few]:.0f} training stars of {surveys[few]}", f"{FEWEST} at least",
                        fix="training stars without them")  # fmt: skip
    each = [learned(np.flatnonzero(labelled & (mine > 0))) for mine in own.T]
    weight = [share * x.weight for share, x in zip(number / number.sum(), each, strict=True)]
    whole = Mixture(*map(np.concatenate, (weight, [x.mean for x in each], [x.covariance for x in each])))
    of = np.repeat(np.arange(len(each)), [len(x.weight) for x in each])
    return whole, of, np.where(own.any(1), own.argmax(1), -1)


def moved(frame: PhotometryFrame, mixture: Mixture) -> Mixture:
    """The populations less `frame.offsets`."""
    if frame.offsets is None:
        return mixture
    return mixture._replace(mean=mixture.mean - np.pad(frame.offsets, ((1, 0), (0, 0)))[frame.component_survey])


def among(component_survey: np.ndarray, survey: Array) -> Array:
    """(N, K): which components of the population a star may be of, that is of which surveys (N, S)."""
    return (survey[:, component_survey] > 0) | (survey.sum(1) == 0)[:, None]


def known_of(mixture: Mixture, component_survey: np.ndarray | None, survey: np.ndarray, *labels: np.ndarray) -> Given:
    """What the populations say of labels u (N, L), their noise (N, L, L) and which are observed (N, L), u as the
    surveys (N, S) have them less `frame.offsets`."""
    given = mixture.given(*labels)
    if component_survey is None:
        return given
    open_to = among(component_survey, survey)
    weight = (given.weight + 1e-300) * open_to
    total, prior = weight.sum(1), (mixture.weight * open_to).sum(1)
    return given._replace(weight=weight / total[:, None], log_density=given.log_density + np.log(total / prior))


def population(frame: PhotometryFrame, theta: Mapping[str, Array], of: Systems) -> dist.Distribution:
    """Of scaled labels in the reference's system, of each of N stars or of all."""
    weight, mean, covariance = map(constant, frame.mixture)
    if frame.component_survey is None:
        each = dist.Categorical(weight)
    else:
        each = dist.Categorical(logits=jnp.where(among(frame.component_survey, of.survey), jnp.log(weight), NEVER))
        mean = mean - jnp.pad(departure(frame, theta), ((1, 0), (0, 0)))[frame.component_survey]
    return dist.MixtureSameFamily(each, dist.MultivariateNormal(mean, covariance_matrix=covariance))


def chosen(stars: Stars, name: str, known: Sequence[str]) -> Array:
    if name not in stars or not known:
        return np.zeros((len(stars), len(known)))
    value, own = stars[name].value, stars[name].names or ()
    pick = np.array([[x == y for y in known] for x in own], float)
    return module_of(value).nan_to_num(value) @ pick


def parameters(model: Photometry) -> dict[str, Array]:
    """Their sites, of a bound model; none where the training stars name neither surveys nor catalogues."""
    frame, out = model.require_frame(), {}
    if n := len(frame.surveys[1:]):
        prior = dist.Normal(0.0, model.survey_offset).expand([n, len(frame.names)]).to_event(2)
        out["survey_offset"] = numpyro.sample("survey_offset", prior)
    if frame.catalogues:
        zero, sd, factor = map(constant, _published(frame.catalogues))
        out["catalogue_zero_point"] = numpyro.sample("catalogue_zero_point", dist.Normal(zero, sd).to_event(1))
        prior = dist.LogNormal(jnp.log(factor), model.parallax_error_factor).to_event(1)
        out["catalogue_error_factor"] = numpyro.sample("catalogue_error_factor", prior)
    return out


def _published(catalogues: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Zero points, their sd and error factors (C,)."""
    zero, sd, factor = np.array([PARALLAX_SYSTEMS[x] for x in catalogues]).reshape(-1, 3).T
    return zero, sd, factor


def start(model: Photometry) -> dict[str, np.ndarray]:
    frame, out = model.require_frame(), {}
    if n := len(frame.surveys[1:]):
        out["survey_offset"] = np.zeros((n, len(frame.names)))
    if frame.catalogues:
        out["catalogue_zero_point"], _, out["catalogue_error_factor"] = _published(frame.catalogues)
    return out


def offset(theta: Mapping[str, Array], of: Systems) -> Array:
    """delta (N, L), in scaled labels; 0 where there is one survey."""
    return of.survey[:, 1:] @ theta["survey_offset"] if "survey_offset" in theta else jnp.zeros(())


def departure(frame: PhotometryFrame, theta: Mapping[str, Array]) -> Array:
    """delta (S - 1, L) less `frame.offsets`."""
    return theta["survey_offset"] - (0.0 if frame.offsets is None else constant(frame.offsets))


def beyond(frame: PhotometryFrame, theta: Mapping[str, Array], of: Systems) -> Array:
    """(N, L): delta less `frame.offsets`."""
    return of.survey[:, 1:] @ departure(frame, theta) if "survey_offset" in theta else jnp.zeros(())


def with_offsets(frame: PhotometryFrame, moments: PhotometricMoments) -> PhotometryFrame:
    """The frame with its populations and training stars in the reference's system, as far as it was learned."""
    delta = moments.survey_offset
    if delta is None:
        return frame
    u = frame.training_u - np.pad(delta, ((1, 1), (0, 0)))[frame.training_survey]
    return dataclasses.replace(frame, offsets=np.asarray(delta), training_u=u)


def zero_point(theta: Mapping[str, Array], of: Systems) -> Array:
    """(N,), mas; () where the stars name no catalogue."""
    if "catalogue_zero_point" not in theta:
        return theta["zero_point"]
    return theta["zero_point"] * (1 - of.catalogue.sum(-1)) + of.catalogue @ theta["catalogue_zero_point"]


def error_factor(theta: Mapping[str, Array], of: Systems) -> Array:
    """(N,), by which errors of parallaxes exceed those stated; () where the stars name no catalogue."""
    if "catalogue_error_factor" not in theta:
        return jnp.ones(())
    return 1 + of.catalogue @ (theta["catalogue_error_factor"] - 1)


def extended(model: Photometry, moments: PhotometricMoments, stars: Stars) -> tuple[Photometry, PhotometricMoments]:
    """Model and moments with the catalogues of these stars that training had none of, as they are published."""
    frame = model.require_frame()
    new = [x for x in catalogues_of(stars) if x not in frame.catalogues]
    if not new:
        return model, moments
    zero, sd, factor = _published(new)
    first = 1 + len(frame.catalogues)
    known = covariance_of(moments)
    order = [*range(first), *range(len(known), len(known) + len(new)), *range(first, len(known))]
    whole = np.zeros((len(order), len(order)))
    whole[: len(known), : len(known)] = known
    whole[len(known) :, len(known) :] = np.diag(sd**2)
    old = [() if x is None else x for x in (moments.catalogue_zero_point, moments.catalogue_error_factor)]
    changed = dataclasses.replace(frame, catalogues=(*frame.catalogues, *new))
    return model.replace(frame=changed), moments._replace(
        catalogue_zero_point=np.concatenate([old[0], zero]), catalogue_error_factor=np.concatenate([old[1], factor]),
        shared_covariance=whole[np.ix_(order, order)],
    )  # fmt: skip


def covariance_of(moments: PhotometricMoments) -> np.ndarray:
    """(K, K) of the zero point, those of the catalogues, and the surveys' offsets, one after the other."""
    known = moments.shared_covariance
    return np.array([[moments.zero_point_error**2]], float) if known is None else np.asarray(known)


def common(model: Photometry, moments: PhotometricMoments, stars: Stars) -> Common:
    """Of N stars that fit the frame."""
    frame = model.require_frame()
    of, n, n_label = systems_of(frame, stars), len(stars), len(frame.names)
    covariance = covariance_of(moments)
    pick = np.zeros((n, 1 + n_label, len(covariance)))
    pick[:, 0, 0] = 1 - of.catalogue.sum(1)
    first = 1 + len(frame.catalogues)
    pick[:, 0, 1:first] = of.catalogue
    delta = np.zeros((n, n_label))
    if moments.survey_offset is not None:
        delta = of.survey[:, 1:] @ moments.survey_offset
        pick[:, 1:, first:] = np.einsum("ns,lm->nlsm", of.survey[:, 1:], np.eye(n_label)).reshape(n, n_label, -1)
    zero, factor = np.full(n, float(moments.zero_point)), np.ones(n)
    if moments.catalogue_zero_point is not None and moments.catalogue_error_factor is not None:
        zero = zero * pick[:, 0, 0] + of.catalogue @ moments.catalogue_zero_point
        factor = 1 + of.catalogue @ (moments.catalogue_error_factor - 1)
    return Common(zero, factor, delta, pick @ covariance @ np.swapaxes(pick, 1, 2))


def shared_error(
    draws: np.ndarray, u: np.ndarray, parallax: np.ndarray, parallax_weight: np.ndarray, precision: np.ndarray,
    covariance: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Sd (N, Q) of the posterior means of quantities q that comes from what the stars share, (z, delta).

    d E[q] / dz = -Cov(q, parallax) / sigma^2,   d E[q] / d delta = -Cov(q, u) C^-1

    Args:
        draws: q (S, N, Q). u (S, N, L): scaled labels, parallax (S, N) [mas]: of the same draws, true ones.
        parallax_weight: 1 / sigma (N,), precision: C^-1 (N, L, L), 0 where unknown; both with what is shared in them.
        covariance: of (z, delta), (N, 1 + L, 1 + L).
    """
    off = draws - draws.mean(0)
    of_zero = np.einsum("snq,sn->nq", off, parallax - parallax.mean(0)) * parallax_weight[:, None] ** 2
    of_offset = np.einsum("snq,snl->nql", off, u - u.mean(0), optimize=True) @ precision
    slope = np.concatenate([of_zero[..., None], of_offset], -1) / max(len(draws) - 1, 1)
    return np.sqrt(np.einsum("nqi,nij,nqj->nq", slope, covariance, slope, optimize=True))


def described(frame: PhotometryFrame, moments: PhotometricMoments) -> list[str]:
    """Lines that say what was learned of surveys and catalogues, in the labels' units."""
    surveys, catalogues = frame.surveys, frame.catalogues
    sd, lines = np.sqrt(np.maximum(np.diag(covariance_of(moments)), 0.0)), []
    learned = moments.catalogue_zero_point, moments.catalogue_error_factor, moments.survey_offset
    zeros, factors, offsets = (() if x is None else x for x in learned)
    for i, (name, zero, factor) in enumerate(zip(catalogues, zeros, factors, strict=False)):
        lines.append(f"parallaxes of {name}: zero point {zero:.4f} +- {sd[1 + i]:.4f} mas, errors x {factor:.3f}")
    own = sd[1 + len(catalogues) :].reshape(-1, len(frame.names))
    for name, delta, error in zip(surveys[1:], np.atleast_2d(offsets), own, strict=False):
        each = [
            f"{label} {s * x:.3g} +- {s * e:.2g} {unit}".rstrip()
            for label, unit, s, x, e in zip(frame.names, frame.units, frame.scale, delta, error, strict=True)
        ]
        lines.append(f"labels of {name} less those of {surveys[0]}: {', '.join(each)}")
    return lines
