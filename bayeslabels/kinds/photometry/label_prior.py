"""Priors of the labels in the test step: the training stars' population, or what is left of it without their selection.

    p(labels) ~ population(labels) exp(tilt(M(labels)))

M: the absolute magnitudes. The training stars of a survey that sees giants from afar and dwarfs nearby are no sample of
the stars that another one meets: as a prior they make dwarfs with vague luminosities too bright, and too distant.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from ...core.model import Bound
from ...core.priors import LabelMixture
from ...data.stars import Stars
from ...errors import CannotDo, bad_input
from ...numerics.along import coefficients, spline
from ...numerics.by_value import ByValue
from ...numerics.compiling import jit
from ...numerics.linalg import Array, in_float64
from ...numerics.mixture import Mixture, learn
from ...numerics.selection import STEP, log_convolved, log_share
from .frame import MODULI, PhotometryFrame

if TYPE_CHECKING:
    from .photometry import Photometry
    from .stars import PhotometricMoments

FORMS = ("population", "flat", "volume", "cmd")
"""Label priors by name."""
FLOOR = 0.01
"""Share of its peak below which the density of training stars in the colour-magnitude diagram counts as that."""
DRAWN, COMPONENTS = 8000, 24
"""Draws of a user's distribution, and Gaussians that stand for it."""
SOME = 1000
"""Training stars whose distance priors stand for those of all."""


class Tilt(Protocol):
    """ln of what the population is multiplied by, (S,), at absolute magnitudes (S, B)."""

    def __call__(self, m: Array) -> Array: ...


class LabelPrior(NamedTuple):
    """population: a mixture of scaled labels; tilt: by absolute magnitudes."""

    population: Mixture
    tilt: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Level:
    """The population as it is."""

    def __call__(self, m: Array) -> Array:
        return jnp.zeros(m.shape[:-1], m.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerVolume:
    """1 / the share of stars of an absolute magnitude m . pick that the training survey has."""

    pick: Array
    table: Array
    first: Array
    step: Array

    def __call__(self, m: Array) -> Array:
        return spline(self.table, self.first, self.step, m @ self.pick)[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerColour:
    """1 / the density of the training stars in the plane x = m . pick, a mixture of Gaussians and a floor."""

    pick: Array
    log_weight: Array
    mean: Array
    whiten: Array
    log_floor: Array

    def __call__(self, m: Array) -> Array:
        off = (m @ self.pick)[..., None, :] - self.mean
        z2 = ((off[..., None, :] * self.whiten).sum(-1) ** 2).sum(-1)
        return -jnp.logaddexp(jax.scipy.special.logsumexp(self.log_weight - 0.5 * z2, axis=-1), self.log_floor)


def require_label_prior(given: Any) -> None:
    """Refuse, as a model's `label_prior`, what is none."""
    ok = given in FORMS if isinstance(given, str) else isinstance(given, LabelMixture | Distribution)
    if not ok:
        raise bad_input(
            f"label_prior={given!r}", f"one of {FORMS}, priors.LabelMixture(...), or a distribution of NumPyro",
            fix='label_prior="volume"',
        )  # fmt: skip


@dataclass(frozen=True)
class _Asked(ByValue):
    """A bound model and what it has learned: what a label prior is made of."""

    bound: Bound
    weights: np.ndarray
    reddening_log: np.ndarray


def label_prior(model: Photometry, moments: PhotometricMoments) -> LabelPrior:
    """The label prior of a model's test step; learned once for equal posteriors."""
    return _learned(_Asked(Bound(model), np.asarray(moments.coefficients), np.asarray(moments.reddening_log)))


@functools.lru_cache(maxsize=4)
def _learned(asked: _Asked) -> LabelPrior:
    given, frame = asked.bound.model.label_prior, asked.bound.model.require_frame()
    if not isinstance(given, str):
        return LabelPrior(_own(given, frame), Level())
    if given == "flat":
        return LabelPrior(_wide(frame.mixture), Level())
    tilts = {"population": lambda _: Level(), "volume": _per_volume, "cmd": _per_colour}
    return LabelPrior(frame.mixture, tilts[given](asked))


def _wide(population: Mixture) -> Mixture:
    """One Gaussian five times as wide in every direction."""
    mean = population.weight @ population.mean
    offset = population.mean - mean
    spread = population.covariance + offset[:, :, None] * offset[:, None, :]
    return Mixture(np.ones(1), mean[None], 25 * np.einsum("k,kij->ij", population.weight, spread)[None])


def _own(given: LabelMixture | Distribution, frame: PhotometryFrame) -> Mixture:
    """The user's density, in scaled labels."""
    n = len(frame.names)
    if isinstance(given, LabelMixture):
        if given.mean.shape[1] != n:
            raise bad_input(f"a label prior of {given.mean.shape[1]} labels", f"one of {frame.names}")
        scale = frame.scale
        return Mixture(given.weight, frame.scaled(given.mean), given.covariance / (scale[:, None] * scale))
    if given.event_shape != (n,) or given.batch_shape:
        got = f"a label prior of shape {(*given.batch_shape, *given.event_shape)}"
        raise bad_input(got, f"a distribution of {frame.names} together, event shape ({n},)", fix="to_event(1)")
    drawn = frame.scaled(np.asarray(given.sample(jax.random.key(0), (DRAWN,)), float))
    return learn(drawn, np.zeros((DRAWN, n, n)), np.ones(drawn.shape, bool), COMPONENTS)


@in_float64
def log_prior(
    model: Photometry, moments: PhotometricMoments, stars: Stars, names: Sequence[str], values: np.ndarray
) -> np.ndarray:
    """ln p (P, N) of labels, modulus and reddening of these names at values (P, Q), under each star's own priors."""
    frame, own = model.require_frame(), list(names)
    out = np.zeros((len(values), len(stars)))
    at = [own.index(x) for x in own if x in frame.names]
    if at:
        asked = _Asked(Bound(model), np.asarray(moments.coefficients), np.asarray(moments.reddening_log))
        some, n = values[:, at], len(at)
        labels = _marginal(asked, tuple(own[i] for i in at))
        out += labels.given(some, np.zeros((len(some), n, n)), np.ones(some.shape, bool)).log_density[:, None]
    mu = values[:, [own.index("distance_modulus")]] if "distance_modulus" in own else None
    if mu is not None:
        out += np.asarray(model.distance_prior.at(stars).log_density(jnp.asarray(mu)))
    if "reddening" in own:
        dust = model.reddening_prior.at(stars, frame.reddening_scale)
        if mu is None and "sightline" in stars:
            raise CannotDo("the prior of a reddening that grows with distance, without the distance_modulus")
        e = values[:, [own.index("reddening")]]
        out += np.asarray(dust.distribution(jnp.asarray(0 * e if mu is None else mu)).log_prob(jnp.asarray(e)))
    if odd := [x for x in own if x not in (*frame.names, "distance_modulus", "reddening")]:
        raise bad_input(f"a prior of {odd}", f"of {(*frame.names, 'distance_modulus', 'reddening')}")
    return out


@functools.lru_cache(maxsize=8)
def _marginal(asked: _Asked, names: tuple[str, ...]) -> Mixture:
    """The label prior of some of the labels, in their units: of draws of the population, as often as the tilt says."""
    model = asked.bound.model
    frame, (population, tilt) = model.require_frame(), _learned(asked)
    at = [frame.names.index(x) for x in names]
    if isinstance(tilt, Level):
        part = Mixture(population.weight, population.mean[:, at], population.covariance[:, at][:, :, at])
    else:
        u = population.draw(DRAWN, 0)
        m = np.mean([np.asarray(model.absolute(jnp.asarray(w), jnp.asarray(u))) for w in asked.weights], 0)
        log_weight = np.asarray(tilt(jnp.asarray(m)))
        p = np.exp(log_weight - log_weight.max())
        chosen = u[np.random.default_rng(0).choice(len(u), len(u), p=p / p.sum())][:, at]
        part = learn(chosen, np.zeros((len(u), len(at), len(at))), np.ones(chosen.shape, bool), 6)
    scale = frame.scale[at]
    return Mixture(part.weight, frame.centre[at] + scale * part.mean, part.covariance * (scale[:, None] * scale))


@in_float64
def _absolute(asked: _Asked) -> np.ndarray:
    """Absolute magnitudes (n, B) of the training stars that are kept, means over the members."""
    model = asked.bound.model
    u = jnp.asarray(model.require_frame().training_u)
    return np.mean([np.asarray(model.absolute(jnp.asarray(w), u)) for w in asked.weights], 0)


def _per_volume(asked: _Asked) -> PerVolume:
    model, m = asked.bound.model, _absolute(asked)
    frame = model.require_frame()
    if frame.training_magnitudes is None or frame.training_moduli is None:
        raise bad_input(
            "label_prior='volume' of a posterior that knows nothing of its training stars' magnitudes and distances",
            "a posterior of this version, with a distance prior of `priors`", fix="fit(Photometry(...), stars)",
        )  # fmt: skip
    band = _commonest(model)
    seen = frame.training_seen[:, band]
    absolute, apparent = m[seen, band], frame.training_magnitudes[seen, band]
    log_p = np.log(np.maximum(frame.training_moduli, 1e-300))
    extinction = model.reddening_scale * float(np.exp(asked.reddening_log[:, band].mean()))
    fine = np.arange(MODULI[0], MODULI[-1] + 10, 0.1)
    along = log_convolved(lambda mu: np.interp(mu, MODULI, log_p, -700.0, -700.0), extinction, fine)
    low, high = np.percentile(absolute, [0.2, 99.8])
    at = np.arange(low, high + 2 * STEP, 2 * STEP)
    share = log_share(absolute, apparent, lambda x: np.interp(x, fine, along, -700.0, -700.0), at)
    table = coefficients(share.min() - share)
    return PerVolume(np.eye(m.shape[1])[band], table, np.asarray(at[0]), np.asarray(2 * STEP))


@in_float64
def density_of_moduli(prior: Any, stars: Stars) -> np.ndarray | None:
    """Density of a distance prior at `MODULI`, mean over the stars, or some of them; None: of a user's distribution."""
    if isinstance(prior, Distribution):
        return None
    some = stars[np.random.default_rng(0).permutation(len(stars))[:SOME]]
    mu = np.repeat(MODULI[:, None], len(some), 1)
    return np.exp(np.asarray(_log_density(prior.at(some), mu))).mean(1)


_log_density = jit(lambda prior, mu: prior.log_density(mu))


def _commonest(model: Photometry) -> int:
    """The magnitude that most training stars have."""
    if model.n_magnitude == 0:
        raise bad_input(f"label_prior={model.label_prior!r} of spectra alone", "stars with magnitudes")
    return int(model.require_frame().training_seen[:, : model.n_magnitude].sum(0).argmax())


def _per_colour(asked: _Asked) -> PerColour:
    model, m = asked.bound.model, _absolute(asked)
    n_band = m.shape[1]
    if n_band < 2:
        raise bad_input("label_prior='cmd' of one band", "at least two, for a colour")
    # the magnitude that most stars have, and of the colours with it the one that varies most
    band = _commonest(model)
    other = int((m - m[:, [band]]).std(0).argmax())
    pick = np.zeros((n_band, 2))
    pick[band] = [1, 1]
    pick[other, 1] = -1
    x = m @ pick
    spread = x.std(0)
    mixture = learn(x / spread, np.zeros((len(x), 2, 2)), np.ones(x.shape, bool), 12)
    factor = np.linalg.cholesky(mixture.covariance)
    log_weight = np.log(mixture.weight) - np.log(np.einsum("kii->ki", factor)).sum(1)
    parts = pick / spread, log_weight, mixture.mean, np.linalg.inv(factor)
    peak = float(-np.asarray(PerColour(*parts, np.asarray(-np.inf))(jnp.asarray(m))).min())
    return PerColour(*parts, np.asarray(peak + np.log(FLOOR)))
