"""What `Photometry` takes from its training stars: names, scales, the labels' population, and a first linear model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.model import Scales, scaling
from ...data.stars import Stars
from ...errors import bad_input
from ...numerics.by_value import ByValue
from ...numerics.density import peak_density
from ...numerics.mixture import Mixture, learn
from .channels import flux_scale, joined, noise_and_value
from .systems import catalogues_of, chosen, known_of, moved, populations, surveys_of

KEPT = 5000
"""Training stars whose labels are kept, to tell where the model is valid."""


MODULI = np.arange(-4.0, 26.01, 0.1)
"""Distance moduli at which a density is kept."""


@dataclass(frozen=True)
class PhotometryFrame(ByValue, Scales):
    """What `Photometry` takes from its training stars; L labels, B bands. u = (label - centre) / scale.

    Attributes:
        names, units, centre, scale: of the labels (L,). bands (B,), band_unit: of the magnitudes, and after them the
            `n_flux` pixels of a spectrum, in `flux_scale` of `flux_unit`. All that is said of bands is of both.
        baseline: (1 + L, B) the linear function of u that M departs from; spread: (B, B) of its residuals: the first
            column is shared by all bands, the others are a band's own, mag.
        vector: (B,) a first reddening vector.
        population: weight (K,), mean (K, L) and covariance (K, L, L) of the mixture of true labels, scaled.
        reddening_scale: mean reddening, mag.
        label_error (L,), magnitude_error (B,), parallax_error, reddening_error: typical ones, of simulated catalogues.
        training_u (n, L), training_seen (n, B): labels of training stars and the bands that they have;
            training_peak (B,): the largest density of them; training_magnitudes (n, B): theirs, 0 where not seen;
            training_moduli: density at `MODULI` of the distance prior, mean over the training stars;
            training_distant (n,): which have parallaxes, of any S/N; distant_peak: the largest density of those.
        surveys: that the training labels are of, the reference first; catalogues: that parallaxes are of.
        component_survey (K,), training_survey (n,): of the population and the training stars, if there are several;
            offsets (S - 1, L): what their labels are less those of the reference, already taken off (`systems`).
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    centre: np.ndarray
    scale: np.ndarray
    bands: tuple[str, ...]
    band_unit: str
    baseline: np.ndarray
    spread: np.ndarray
    vector: np.ndarray
    population: tuple[np.ndarray, np.ndarray, np.ndarray]
    reddening_scale: float
    label_error: np.ndarray
    magnitude_error: np.ndarray
    parallax_error: float
    reddening_error: float
    training_u: np.ndarray
    training_seen: np.ndarray
    training_peak: np.ndarray
    n_flux: int = 0
    flux_scale: float = 1.0
    flux_unit: str = ""
    training_magnitudes: np.ndarray | None = None
    training_moduli: np.ndarray | None = None
    surveys: tuple[str, ...] = ()
    catalogues: tuple[str, ...] = ()
    component_survey: np.ndarray | None = None
    training_survey: np.ndarray | None = None
    offsets: np.ndarray | None = None
    training_distant: np.ndarray | None = None
    distant_peak: float = 1.0

    @property
    def mixture(self) -> Mixture:
        return moved(self, Mixture(*self.population))


def frame_of(components: int, stars: Stars) -> PhotometryFrame:
    """Names, scales, the labels' population, and a first linear model."""
    labels = stars["labels"]
    value, variance, observed = labels.filled()
    n = len(stars)
    names = labels.names or tuple(str(i) for i in range(labels.n_dim))
    bands: tuple[str, ...] = ()
    parts, n_flux, scale_of_flux, flux_unit = [], 0, 1.0, ""
    if "magnitudes" in stars:
        bands = stars["magnitudes"].names or tuple(str(i) for i in range(stars["magnitudes"].n_dim))
        parts.append(noise_and_value(stars["magnitudes"]))
    if "spectrum" in stars:
        scale_of_flux, flux_unit, n_flux = (
            flux_scale(stars["spectrum"]),
            stars["spectrum"].units[0],
            stars["spectrum"].n_dim,
        )
        along = next(iter(stars["spectrum"].coords.values()), np.arange(n_flux))
        bands += tuple(f"flux_{x}" for x in along)
        parts.append(noise_and_value(stars["spectrum"], scale_of_flux))
    known = np.where(observed, value, np.nan)
    for name, column in zip(names, known.T, strict=True):
        if np.isfinite(column).sum() < 10 or np.nanmax(column) == np.nanmin(column):
            raise bad_input(f"{np.isfinite(column).sum()} different values of {name}", "at least 10 training stars")
    centre, scale = scaling(known)
    both = observed[:, :, None] & observed[:, None, :]
    noise = labels.filled_covariance() / np.where(both, scale[:, None] * scale, 1.0)
    u = np.where(observed, (value - centre) / scale, 0.0)
    surveys = surveys_of(stars)
    mixture, of_component, of_star = populations(
        surveys, stars, lambda rows: learn(u[rows], noise[rows], observed[rows], components)
    )
    channels = joined(parts, len(bands) - n_flux)
    m, seen = channels.bright, channels.seen > 0
    m_variance = np.diagonal(channels.noise, axis1=1, axis2=2) if channels.noise.ndim == 3 else channels.noise
    if not seen.any(0).all():
        missing = [bands[i] for i in np.flatnonzero(~seen.any(0))]
        raise bad_input(f"no star with {', '.join(missing)}", "at least some training stars in every band",
                        fix="select([...]) of the block")  # fmt: skip
    e = np.zeros(n)
    e_scale, e_error = 0.1, 0.1
    if "reddening" in stars:
        block, e_variance, e_seen = stars["reddening"].filled()
        sure = e_seen[:, 0] & (e_variance[:, 0] < 0.3**2)
        e = np.where(sure, np.maximum(block[:, 0], 0.0), 0.0)
        if sure.any():
            e_scale, e_error = max(float(e[sure].mean()), 0.01), float(np.sqrt(np.median(e_variance[sure, 0])))
    kept = np.random.default_rng(0).permutation(n)[:KEPT]
    mean = known_of(mixture, of_component, chosen(stars, "survey", surveys), u, noise, observed).moments()[0]
    baseline, spread, vector = _first_model(stars, mean, e, m, seen)
    w_error = 0.1
    if "parallax" in stars and stars["parallax"].observed.any():
        w_error = float(np.median(stars["parallax"].error[stars["parallax"].observed]))
    distant = stars["parallax"].observed[kept, 0] if "parallax" in stars else np.zeros(len(kept), bool)
    return PhotometryFrame(
        names, labels.units, centre, scale, bands, "mag", baseline, spread, vector, (*mixture,), e_scale,
        np.sqrt(np.nanmedian(np.where(observed, variance, np.nan), 0)),
        np.sqrt(np.nanmedian(np.where(seen, m_variance, np.nan), 0)), w_error, e_error,
        mean[kept], seen[kept], peak_density(mean[kept], seen[kept]), n_flux, scale_of_flux, flux_unit, m[kept],
        surveys=surveys, catalogues=catalogues_of(stars), component_survey=of_component,
        training_survey=None if of_star is None else of_star[kept],
        training_distant=distant, distant_peak=float(peak_density(mean[kept], distant[:, None])[0]),
    )  # fmt: skip


def _first_model(
    stars: Stars, u: np.ndarray, e: np.ndarray, m: np.ndarray, seen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares of colours (all stars) and of one absolute magnitude (stars of good parallax) on (1, u, E).

    The baseline (1 + L, B), the spread (B, B) of what is left, and a reddening vector (B,).
    """
    n, n_band = m.shape
    first = int(seen.sum(0).argmax())
    x = np.column_stack([np.ones(n), u, e])
    ridge = 1e-3 * np.eye(x.shape[1])
    good = np.zeros(n, bool)
    if "parallax" in stars:
        w, variance, has = (a[:, 0] for a in stars["parallax"].filled())
        good = has & (w > 5 * np.sqrt(variance)) & seen[:, first]
    coefficients = np.zeros((x.shape[1], n_band))
    sd = np.full(n_band, 0.5)
    if good.sum() > 3 * x.shape[1]:
        y = m[good, first] - 10 + 5 * np.log10(w[good])
        coefficients[:, first], sd[first] = _robust(x[good], y, ridge)
    else:
        coefficients[0, first], sd[first] = 4.0, 3.0
    for b in range(n_band):
        both = seen[:, b] & seen[:, first]
        if b != first and both.sum() > 3 * x.shape[1]:
            colour, sd[b] = _robust(x[both], m[both, b] - m[both, first], ridge)
            coefficients[:, b] = coefficients[:, first] + colour
        elif b != first:
            coefficients[:, b] = coefficients[:, first]
    spread = np.diag(np.maximum(sd, 0.05))
    spread[first, :] = max(sd[first], 0.3)
    return coefficients[:-1], spread, np.clip(coefficients[-1], 0.05, 10.0)


def _robust(x: np.ndarray, y: np.ndarray, ridge: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients and sd of the residuals, the worst stars left out."""
    keep = np.ones(len(y), bool)
    for _ in range(4):
        c = np.linalg.solve(x[keep].T @ x[keep] + ridge, x[keep].T @ y[keep])
        off = np.abs(y - x @ c)
        sd = 1.4826 * float(np.median(off)) + 1e-3
        keep = off < 4 * sd
    return c, sd
