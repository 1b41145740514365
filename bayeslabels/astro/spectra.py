"""Preparing spectra: pseudo-continuum, normalisation, Doppler shift, resampling, air and vacuum wavelengths.

A continuum or a resampled spectrum is a linear operation on the flux, flux @ O, whose matrix O follows from
wavelengths and weights alone: symmetric noise then leaves it unbiased at any S/N (Ho+17, section 2.1).
Nothing here clips or iterates on a star's own flux. A normalised spectrum is the ratio of flux and continuum.

Conventions of every function:

- wavelength: (n_pixel,) in Angstrom, ascending; an astropy Quantity of any length unit is converted;
- flux: (n_star, n_pixel) or (n_pixel,), in any unit; NaN, infinite or masked entries are missing;
- ivar: inverse variance of the flux, same shape; 0, NaN or masked is missing. None: errors unknown, every
  pixel weighs the same and the ivar returned is None;
- returned: (flux, ivar) in float64, flux NaN and ivar 0 where nothing can be said, for a whole star if need
  be. Only variances are carried, not the covariance between pixels that these operations create.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from astropy import units as u
from numpy.polynomial.chebyshev import chebvander
from numpy.typing import ArrayLike, NDArray

from ..errors import bad_input
from .quantities import plain

Mask: TypeAlias = NDArray[np.bool_]
FluxAndIvar: TypeAlias = tuple[np.ndarray, np.ndarray | None]

SPEED_OF_LIGHT = 299792.458  # km/s
_REACH = 6.0  # in widths: the weights beyond are below exp(-36) = 2e-16
_BLOCK = 2**21  # numbers in one block of a kernel or an interpolation (16 MiB)


def gaussian_pseudo_continuum(
    wavelength: ArrayLike, flux: ArrayLike, ivar: ArrayLike | None, width: float = 50.0
) -> FluxAndIvar:
    """Error-weighted broad Gaussian smoothing of each spectrum (Ho+17, eq. 1 and 2).

    f_bar(l0) = sum_i f_i ivar_i w_i(l0) / sum_i ivar_i w_i(l0),  w_i(l0) = exp(-(l0 - l_i)^2 / L^2)
    var f_bar(l0) = sum_i ivar_i w_i(l0)^2 / (sum_i ivar_i w_i(l0))^2

    `width` is L in Angstrom: sqrt(2) standard deviations. Missing pixels do not contribute and receive a
    continuum from their neighbours; f_bar is missing where no pixel within 6 L was measured.

    Example:
        >>> import numpy as np
        >>> from bayeslabels.astro import spectra
        >>> wavelength = np.linspace(5000.0, 5100.0, 101)
        >>> flux = np.tile(1 + 0.002 * (wavelength - 5050), (3, 1))
        >>> ivar = np.full(flux.shape, 1e4)
        >>> continuum = spectra.gaussian_pseudo_continuum(wavelength, flux, ivar)[0]
        >>> continuum.shape
        (3, 101)
    """
    spectra = _read(wavelength, flux, ivar)
    weighted_flux, weight, squared = _gaussian_sums(spectra, width, with_variance=True)
    known = weight > 0
    return spectra.result(weighted_flux / np.where(known, weight, 1), weight**2 / np.where(known, squared, 1), known)


def normalize_gaussian(
    wavelength: ArrayLike, flux: ArrayLike, ivar: ArrayLike | None, width: float = 50.0
) -> FluxAndIvar:
    """Flux over its Gaussian pseudo-continuum: f / f_bar, with ivar f_bar^2 (Ho+17, section 2.1).

    f_bar is taken as exact: its variance is below the pixel's by about the number of pixels in a width, and
    since it contains f, ignoring it overstates the error of pixels below 2 f_bar rather than understating it.
    Missing in the result: missing pixels, those where f_bar is not positive, and those that make up more than
    half of their own continuum (an isolated pixel has ratio 1 whatever its flux).

    Example:
        >>> import numpy as np
        >>> from bayeslabels.astro import spectra
        >>> wavelength = np.linspace(5000.0, 5100.0, 101)
        >>> flux = np.tile(1 + 0.002 * (wavelength - 5050), (3, 1))
        >>> ivar = np.full(flux.shape, 1e4)
        >>> normalised, weight = spectra.normalize_gaussian(wavelength, flux, ivar)
        >>> bool(abs(normalised - 1).max() < 0.1)
        True
    """
    spectra = _read(wavelength, flux, ivar)
    weighted_flux, weight, _ = _gaussian_sums(spectra, width, with_variance=False)
    known = (spectra.weight > 0) & (weighted_flux > 0) & (2 * spectra.weight <= weight)
    return spectra.divided_by(weighted_flux / np.where(known, weight, 1), known)


def polynomial_continuum(
    wavelength: ArrayLike,
    flux: ArrayLike,
    ivar: ArrayLike | None,
    pixels: ArrayLike,
    order: int = 2,
    segments: Sequence[tuple[Any, Any]] | None = None,
) -> FluxAndIvar:
    """Weighted least-squares Chebyshev polynomial through continuum pixels (Ness+15, ApJ 808, 16).

    c(l) = sum_k a_k T_k(x),  a = (T' W T)^-1 T' W f,  var c(l) = T(x) (T' W T)^-1 T(x)'

    with W = diag(ivar) over the continuum pixels and x the wavelength mapped to [-1, 1] over the segment.

    Args:
        pixels: which pixels are continuum, boolean (n_pixel,); see `continuum_pixels`.
        order: highest k.
        segments: (lowest, highest) wavelength, both included, of each stretch with its own polynomial, e.g.
            APOGEE's detectors [(15140, 15812), (15857, 16437), (16472, 16960)]. None: one for all pixels.

    c is missing outside the segments, and where a star's measured continuum pixels do not determine it.

    Example:
        >>> import numpy as np
        >>> from bayeslabels.astro import spectra
        >>> wavelength = np.linspace(5000.0, 5100.0, 101)
        >>> flux = np.tile(1 + 0.002 * (wavelength - 5050), (3, 1))
        >>> ivar = np.full(flux.shape, 1e4)
        >>> continuum = spectra.polynomial_continuum(wavelength, flux, ivar, np.ones(101, bool), order=1)[0]
        >>> continuum.shape
        (3, 101)
    """
    spectra = _read(wavelength, flux, ivar)
    continuum, variance = _polynomial_fit(spectra, pixels, order, segments)
    known = np.isfinite(continuum)
    return spectra.result(continuum, 1 / np.where(known, variance, 1), known)


def normalize_polynomial(
    wavelength: ArrayLike,
    flux: ArrayLike,
    ivar: ArrayLike | None,
    pixels: ArrayLike,
    order: int = 2,
    segments: Sequence[tuple[Any, Any]] | None = None,
) -> FluxAndIvar:
    """Flux over its polynomial continuum: f / c, with ivar c^2 (Ness+15).

    Arguments as in `polynomial_continuum`; c is taken as exact. Missing where f or c is, and where c <= 0.

    Example:
        >>> import numpy as np
        >>> from bayeslabels.astro import spectra
        >>> wavelength = np.linspace(5000.0, 5100.0, 101)
        >>> flux = np.tile(1 + 0.002 * (wavelength - 5050), (3, 1))
        >>> ivar = np.full(flux.shape, 1e4)
        >>> normalised, weight = spectra.normalize_polynomial(wavelength, flux, ivar, np.ones(101, bool), order=1)
        >>> bool(abs(normalised - 1).max() < 1e-9)
        True
    """
    spectra = _read(wavelength, flux, ivar)
    continuum, _ = _polynomial_fit(spectra, pixels, order, segments)
    return spectra.divided_by(continuum, (spectra.weight > 0) & (continuum > 0))


def continuum_pixels(flux: ArrayLike, ivar: ArrayLike | None, tolerance: float = 0.015, fraction: float = 0.07) -> Mask:
    """Pixels at the continuum in all stars, as a mask (n_pixel,), from normalised flux (n_star, n_pixel).

    Candidates are measured in at least half of the stars and have |median over stars - 1| <= tolerance. Those
    that vary least between stars (median absolute deviation, in which noise counts) are taken, until they
    make up `fraction` of all pixels. Ness+15 judge by a trained model (baseline coefficient within
    1 +- 0.015, small label coefficients); this needs no labels. Call it per detector to have pixels in each.

    Example:
        >>> import numpy as np
        >>> from bayeslabels.astro import spectra
        >>> wavelength = np.linspace(5000.0, 5100.0, 101)
        >>> flux = np.tile(1 + 0.002 * (wavelength - 5050), (3, 1))
        >>> ivar = np.full(flux.shape, 1e4)
        >>> spectra.continuum_pixels(np.ones((3, 101)), ivar, fraction=0.1).shape
        (101,)
    """
    values, weight, _ = _read_flux(flux, ivar)
    if values.ndim != 2 or len(values) < 2 or not 0 < fraction <= 1:
        raise bad_input(
            f"flux of shape {values.shape}, fraction={fraction}",
            "flux of shape (n_star, n_pixel) with at least 2 stars, and a fraction in (0, 1]",
            fix="choose the pixels on a set of stars, then give them to polynomial_continuum",
        )
    covered = np.flatnonzero(2 * (weight > 0).sum(0) >= len(values))
    sample = np.where(weight > 0, values, np.nan)[:, covered]
    median = np.nanmedian(sample, axis=0)
    variation = np.nanmedian(np.abs(sample - median), axis=0)
    variation[np.abs(median - 1) > tolerance] = np.inf
    n_candidate = np.isfinite(variation).sum()
    if n_candidate == 0:
        raise bad_input(
            f"no pixel of {values.shape[1]} with a median flux within {tolerance} of 1",
            "normalised spectra that reach the continuum",
            cause="the flux is not normalised, or to another level",
            fix="flux, ivar = normalize_gaussian(wavelength, flux, ivar) first, or a larger tolerance",
        )
    n_chosen = min(n_candidate, max(1, int(fraction * values.shape[1])))
    chosen = np.zeros(values.shape[1], dtype=bool)
    chosen[covered[np.argsort(variation, kind="stable")[:n_chosen]]] = True
    return chosen


def doppler_shift(wavelength: ArrayLike, velocity: ArrayLike) -> np.ndarray:
    """Rest-frame wavelengths, l_rest = l_observed sqrt((1 - v/c) / (1 + v/c)), in Angstrom.

    `velocity` is v in km/s (or a Quantity), positive away from the observer: a number, or (n_star,), which
    gives (n_star, n_pixel). -v leads from rest-frame to observed wavelengths.

    Example:
        >>> from bayeslabels.astro.spectra import doppler_shift
        >>> doppler_shift([5000.0], [30.0]).round(3)
        array([[4999.5]])
    """
    return _doppler_factor(velocity)[..., None] * _read_wavelength(wavelength)


def resample(
    wavelength: ArrayLike,
    flux: ArrayLike,
    ivar: ArrayLike | None,
    new_wavelength: ArrayLike,
    velocity: ArrayLike | None = None,
) -> FluxAndIvar:
    """Linear interpolation to new_wavelength (n_new,), in each star's rest frame if velocity is given.

    f(l) = a f_i + b f_i+1,  b = (l - l_i) / (l_i+1 - l_i),  a = 1 - b,  var f(l) = a^2 var_i + b^2 var_i+1

    Ho+17 (section 2.1) interpolate ivar itself; this is the variance of the interpolated flux. New pixels
    that share an old one are correlated, which is not represented: halfway between pixels the error is
    sqrt(2) smaller, but neighbours are not independent, and a finer grid looks more informative than it is.

    `velocity` in km/s, positive away, is a number or (n_star,); NaN makes its star missing. Flux values are
    moved, not rescaled. Missing: outside the old range (never extrapolated), and where a neighbour of
    non-zero weight is.

    Example:
        >>> import numpy as np
        >>> from bayeslabels.astro import spectra
        >>> wavelength = np.linspace(5000.0, 5100.0, 101)
        >>> flux = np.tile(1 + 0.002 * (wavelength - 5050), (3, 1))
        >>> ivar = np.full(flux.shape, 1e4)
        >>> new, weight = spectra.resample(wavelength, flux, ivar, np.array([5010.5, 5020.5]))
        >>> new.round(3)[0]
        array([0.921, 0.941])
    """
    spectra, grid = _read(wavelength, flux, ivar), _read_wavelength(new_wavelength, "new_wavelength")
    old, n_star = spectra.wavelength, len(spectra.flux)
    factor = np.atleast_1d(_doppler_factor(0.0 if velocity is None else velocity))
    if len(old) < 2 or len(factor) not in (1, n_star):
        raise bad_input(
            f"{n_star} spectra of {len(old)} pixels with {len(factor)} velocities",
            "at least 2 pixels, and one velocity or one per star",
            cause="velocities were not cut with the stars",
            fix="velocity[rows] with flux[rows]",
        )
    measured = spectra.weight > 0
    variance = 1 / np.where(measured, spectra.weight, 1)
    new_flux, new_ivar = np.empty((2, n_star, len(grid)))
    known = np.empty(new_flux.shape, dtype=bool)
    step = max(1, _BLOCK // len(grid))
    for start in range(0, n_star, step):
        some = slice(start, start + step)
        target = grid / (factor if len(factor) == 1 else factor[some])[:, None]
        left = np.clip(np.searchsorted(old, target, side="right") - 1, 0, len(old) - 2)
        b = (target - old[left]) / np.diff(old)[left]
        # A grid shifted and shifted back must meet its own pixels, the edges too, despite rounding.
        b = np.where(np.abs(b - np.rint(b)) < 1e-9, np.rint(b), b)
        a = 1 - b
        star = np.arange(n_star)[some, None]
        i, j = (star, left), (star, left + 1)
        new_flux[some] = a * spectra.flux[i] + b * spectra.flux[j]
        new_ivar[some] = 1 / (a**2 * variance[i] + b**2 * variance[j])
        known[some] = (b >= 0) & (b <= 1) & (measured[i] | (a == 0)) & (measured[j] | (b == 0))
    return spectra.result(new_flux, new_ivar, known)


def vacuum_to_air(wavelength: ArrayLike) -> np.ndarray:
    """Wavelengths in dry air (1 atm, 15 C) from those in vacuum, Angstrom, any shape (Morton 2000).

    l_air = l / n(l),  n = 1 + 8.34254e-5 + 2.406147e-2 / (130 - s^2) + 1.5998e-4 / (38.9 - s^2),  s = 1e4 / l

    ApJS 130, 403, the IAU standard, after Birch & Downs 1994. Below 2000 Angstrom nothing changes.

    Example:
        >>> from bayeslabels.astro.spectra import vacuum_to_air
        >>> float(vacuum_to_air(5000.0).round(2))
        4998.61
    """
    vacuum = _angstrom(wavelength)
    return np.where(vacuum >= 2000, vacuum / _refractive_index(vacuum), vacuum)


def _angstrom(wavelength: ArrayLike) -> np.ndarray:
    """Wavelengths in Angstrom; refuses what no spectrograph on a telescope has."""
    found = plain(wavelength, "Angstrom", "wavelength")
    if (odd := found < SHORTEST).any():
        raise bad_input(
            f"wavelength {found[odd].flat[0]:.6g} Angstrom", f"{SHORTEST:g} Angstrom or more",
            "wavelengths in micron without their unit, or their logarithms",
            "wavelength * astropy.units.micron, or 10**log_wavelength",
        )  # fmt: skip
    return found


SHORTEST = 100.0
"""Angstrom."""


def air_to_vacuum(wavelength: ArrayLike) -> np.ndarray:
    """Wavelengths in vacuum from those in air, Angstrom, any shape: inverse of `vacuum_to_air` (Morton 2000).

    Solves l = l_air n(l) by fixed-point iteration, to rounding.

    Example:
        >>> from bayeslabels.astro.spectra import air_to_vacuum
        >>> float(air_to_vacuum(4998.61).round(2))
        5000.0
    """
    air = vacuum = _angstrom(wavelength)
    for _ in range(6):
        vacuum = air * _refractive_index(vacuum)
    return np.where(air >= vacuum_to_air(2000.0), vacuum, air)


@dataclass(frozen=True)
class _CheckedSpectra:
    """Checked input, (n_star, n_pixel), 0 where missing; weight is ivar, or 1 without errors."""

    wavelength: np.ndarray
    flux: np.ndarray
    weight: np.ndarray
    has_errors: bool
    single: bool

    def result(self, flux: np.ndarray, ivar: np.ndarray, known: Mask) -> FluxAndIvar:
        flux, ivar = np.where(known, flux, np.nan), np.where(known, ivar, 0)
        if self.single:
            flux, ivar = flux[0], ivar[0]
        return flux, ivar if self.has_errors else None

    def divided_by(self, continuum: np.ndarray, known: Mask) -> FluxAndIvar:
        continuum = np.where(known, continuum, 1)
        return self.result(self.flux / continuum, self.weight * continuum**2, known)


def _read(wavelength: ArrayLike, flux: ArrayLike, ivar: ArrayLike | None) -> _CheckedSpectra:
    grid = _read_wavelength(wavelength)
    values, weight, has_errors = _read_flux(flux, ivar)
    if values.ndim not in (1, 2) or values.shape[-1] != len(grid):
        transposed = values.ndim == 2 and len(values) == len(grid)
        raise bad_input(
            f"flux of shape {values.shape} with {len(grid)} wavelengths",
            f"flux of shape (n_star, {len(grid)}) or ({len(grid)},)",
            cause="flux is transposed" if transposed else "flux and wavelength were cut differently",
            fix="pass flux.T and ivar.T" if transposed else "cut both with the same pixel mask",
        )
    return _CheckedSpectra(grid, np.atleast_2d(values), np.atleast_2d(weight), has_errors, values.ndim == 1)


def _read_flux(flux: ArrayLike, ivar: ArrayLike | None) -> tuple[np.ndarray, np.ndarray, bool]:
    unit = getattr(flux, "unit", None)
    values = plain(flux, unit, "flux")
    if ivar is None:
        weight = np.ones_like(values)
    else:
        weight = plain(
            ivar, None if unit is None or isinstance(unit, u.UnrecognizedUnit) else u.Unit(unit) ** -2, "ivar"
        )
    if weight.shape != values.shape:
        raise bad_input(
            f"ivar of shape {weight.shape} for flux of shape {values.shape}",
            "one inverse variance per flux",
            cause="one error for all pixels or all stars",
            fix="np.broadcast_to(ivar, flux.shape), or ivar=None where errors are unknown",
        )
    wrong = (weight < 0) | np.isposinf(weight)
    if wrong.any():
        raise bad_input(
            f"{wrong.sum()} of {weight.size} ivar negative or infinite",
            "finite inverse variances >= 0, with 0 for a missing pixel",
            cause="a sentinel such as -1 marks bad pixels, or an error of 0 was inverted",
            fix="ivar = np.where((ivar > 0) & (ivar < np.inf), ivar, 0)",
        )
    measured = np.isfinite(values) & (weight > 0)
    return np.where(measured, values, 0), np.where(measured, weight, 0), ivar is not None


def _read_wavelength(wavelength: ArrayLike, name: str = "wavelength") -> np.ndarray:
    grid = plain(wavelength, "Angstrom", name)
    if grid.ndim != 1 or len(grid) == 0:
        raise bad_input(f"{name} of shape {grid.shape}", f"{name} of shape (n_pixel,), common to all stars")
    wrong = np.flatnonzero(~(np.isfinite(grid) & (np.diff(grid, prepend=0) > 0)))
    if len(wrong):
        raise bad_input(
            f"{name}[{wrong[0]}] = {grid[wrong[0]]}" + (f" after {grid[wrong[0] - 1]}" if wrong[0] else ""),
            f"{name} positive, finite and strictly ascending",
            cause="the spectrum runs from red to blue, or overlapping orders were joined end to end",
            fix="order = np.argsort(wavelength), and use wavelength[order], flux[:, order], ivar[:, order]",
        )
    return grid


def _doppler_factor(velocity: ArrayLike) -> np.ndarray:
    beta = plain(velocity, "km/s", "velocity") / SPEED_OF_LIGHT
    if beta.ndim > 1 or np.any(np.abs(beta) >= 1):
        raise bad_input(
            f"velocity of shape {beta.shape}, {np.sum(np.abs(beta) >= 1)} at or above the speed of light",
            "one number or (n_star,), in km/s",
            cause="velocity in m/s, or a sentinel for a missing one",
            fix="velocity in km/s, NaN where unknown",
        )
    return np.sqrt((1 - beta) / (1 + beta))


def _refractive_index(vacuum: np.ndarray) -> np.ndarray:
    s2 = (1e4 / np.maximum(vacuum, 1900)) ** 2
    return 1 + 8.34254e-5 + 2.406147e-2 / (130 - s2) + 1.5998e-4 / (38.9 - s2)


def _gaussian_sums(
    spectra: _CheckedSpectra, width: float, with_variance: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """sum_i f_i ivar_i w_i, sum_i ivar_i w_i and, with_variance, sum_i ivar_i w_i^2: (n_star, n_pixel)."""
    width = float(np.squeeze(plain(width, "Angstrom", "width"))) if np.size(width) == 1 else np.nan
    if not 0 < width < np.inf:
        raise bad_input(f"width={width}", "a positive width in Angstrom", fix="width=50.0")
    grid, reach = _angstrom(spectra.wavelength), _REACH * width
    band = int(np.max(np.searchsorted(grid, grid + reach, "right") - np.searchsorted(grid, grid - reach)))
    block = max(1, min(max(band, 256), _BLOCK // band))
    weighted = spectra.flux * spectra.weight
    sums = [np.empty_like(weighted) for _ in range(2 + with_variance)]
    for start in range(0, len(grid), block):
        here = slice(start, start + block)
        low = np.searchsorted(grid, grid[here][0] - reach)
        high = np.searchsorted(grid, grid[here][-1] + reach, "right")
        distance = (grid[low:high, None] - grid[here]) / width
        kernel = np.where(np.abs(distance) <= _REACH, np.exp(-(distance**2)), 0)
        sums[0][:, here] = weighted[:, low:high] @ kernel
        sums[1][:, here] = spectra.weight[:, low:high] @ kernel
        if with_variance:
            sums[2][:, here] = spectra.weight[:, low:high] @ kernel**2
    return sums[0], sums[1], sums[-1]


def _polynomial_fit(
    spectra: _CheckedSpectra, pixels: ArrayLike, order: int, segments: Sequence[tuple[Any, Any]] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Continuum and its variance, (n_star, n_pixel), NaN where undetermined."""
    grid, chosen = spectra.wavelength, np.asarray(pixels)
    if chosen.dtype != bool or chosen.shape != grid.shape:
        raise bad_input(
            f"pixels of type {chosen.dtype} and shape {chosen.shape}",
            f"pixels a boolean mask of shape {grid.shape}",
            fix=f"pixels=continuum_pixels(flux, ivar), or np.isin(np.arange({len(grid)}), indices)",
        )
    continuum, variance = np.full((2, *spectra.flux.shape), np.nan)
    fitted = np.zeros(len(grid), dtype=bool)
    for edges in [(grid[0], grid[-1])] if segments is None else segments:
        low, high = (plain(edge, "Angstrom", "segment") for edge in edges)
        inside = (grid >= low) & (grid <= high)
        use, shared = chosen[inside], np.sum(fitted & inside)
        if use.sum() <= order or shared:
            raise bad_input(
                f"{use.sum()} continuum pixels in segment ({low}, {high}), {shared} pixels in an earlier one",
                f"more than order={order} continuum pixels in each segment, and no overlap",
                fix="a lower order, continuum_pixels with a larger fraction, or other segments",
            )
        fitted |= inside
        x = grid[inside]
        basis = chebvander((2 * x - x[0] - x[-1]) / max(x[-1] - x[0], 1e-300), order)
        products = (basis[:, :, None] * basis[:, None, :]).reshape(len(x), -1)
        flux, weight = spectra.flux[:, inside][:, use], spectra.weight[:, inside][:, use]
        scale = np.max(weight, axis=1, keepdims=True, initial=np.finfo(float).tiny)
        normal = (weight / scale @ products[use]).reshape(-1, order + 1, order + 1)
        spread = np.linalg.eigvalsh(normal)
        undetermined = spread[:, 0] <= 1e-12 * spread[:, -1]
        normal[undetermined] = np.eye(order + 1)
        inverse = np.linalg.inv(normal)
        inverse[undetermined] = np.nan
        coefficients = np.einsum("njk,nk->nj", inverse, (weight / scale * flux) @ basis[use])
        continuum[:, inside] = coefficients @ basis.T
        variance[:, inside] = inverse.reshape(len(inverse), (order + 1) ** 2) @ products.T / scale
    return continuum, variance
