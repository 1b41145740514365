"""The spectra of specutils, which need not be installed: whatever has a spectral axis, flux, uncertainty and mask."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from astropy import units as u
from astropy.nddata import StdDevUncertainty

from ...data.columns import numbers
from ...data.stars import Block, Stars
from ...errors import bad_input
from .arms import CLOSE

POWERS = {"std": 1.0, "var": 0.5, "ivar": -0.5}
"""Of an uncertainty, by its type: that which makes it an error."""


def from_spectra(spectra: Any, id: Any = None) -> Stars:
    """Stars of `Spectrum` objects of specutils: `flux` with its unit and errors, infinite where masked.

    Args:
        spectra: one with flux (n_star, n_pixel) or (n_pixel,), or several on one spectral axis. The axis may be in any
            unit of wavelength, frequency or energy; it becomes Angstrom, ascending. The objects do not say whether it
            is in air or in vacuum.
        id: one for each star.

    Raises:
        BadInput: several axes, flux that does not convert to one unit, an uncertainty that is no error.

    Example:
        >>> from types import SimpleNamespace
        >>> import numpy as np
        >>> from astropy import units as u
        >>> import bayeslabels as bl
        >>> axis, flux = [500.0, 500.1] * u.nm, [1.0, 2.0] * u.Jy
        >>> spectrum = SimpleNamespace(spectral_axis=axis, flux=flux, uncertainty=None, mask=np.array([False, True]))
        >>> stars = bl.surveys.from_spectra([spectrum, spectrum], id=["a", "b"])
        >>> stars.flux.coords["wavelength"], stars.flux.unit
        (array([5000., 5001.]), 'Jy')
    """
    several = [*spectra] if isinstance(spectra, Iterable) and not hasattr(spectra, "spectral_axis") else [spectra]
    if not several:
        raise bad_input("no spectra", "one at least")
    axis, unit = None, getattr(several[0], "flux", None)
    unit = getattr(unit, "unit", u.dimensionless_unscaled)
    values: list[np.ndarray] = []
    errors: list[Any] = []
    for spectrum in several:
        own, flux, error = _read(spectrum, unit)
        axis = own if axis is None else axis
        if own.shape != axis.shape or not np.allclose(own, axis, rtol=CLOSE, atol=0):
            fix = "specutils.manipulation.LinearInterpolatedResampler()(spectrum, axis) for each"
            raise bad_input("spectra on several spectral axes", "one", fix=fix)
        values.append(flux)
        errors.append(error)
    known = [error is not None for error in errors]
    if any(known) and not all(known):
        raise bad_input(f"{sum(known)} of {len(known)} spectra with an uncertainty", "all, or none")
    assert axis is not None
    error = np.concatenate(errors) if all(known) else None
    block = Block(np.concatenate(values), error, unit=unit.to_string(), coords={"wavelength": axis})
    return Stars(flux=block, **({} if id is None else {"id": id}))


def _read(spectrum: Any, unit: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Wavelength in Angstrom, ascending; flux and error (n, n_pixel), the error infinite where masked."""
    if missing := [x for x in ("spectral_axis", "flux") if not hasattr(spectrum, x)]:
        raise bad_input(f"a {type(spectrum).__name__} without {' and '.join(missing)}", "a Spectrum of specutils")
    try:
        axis = u.Quantity(spectrum.spectral_axis).to_value(u.AA, u.spectral())
        flux = np.atleast_2d(u.Quantity(spectrum.flux).to_value(unit))
    except (u.UnitConversionError, TypeError) as problem:
        raise bad_input(f"a spectrum in other units ({problem})", f"a spectral axis, and flux like {unit}") from problem
    if flux.ndim != 2 or flux.shape[1] != axis.size:
        raise bad_input(f"flux of shape {flux.shape} on an axis of {axis.size}", "(n_star, n_pixel) or (n_pixel,)")
    mask = getattr(spectrum, "mask", None)
    mask = np.broadcast_to(False if mask is None else np.asarray(mask, bool), flux.shape)
    flux, error = np.where(mask, np.nan, flux), _error(spectrum, unit, flux.shape)
    error = None if error is None else np.where(mask, np.inf, error)
    order = np.argsort(axis)
    return axis[order], flux[:, order], None if error is None else error[:, order]


def _error(spectrum: Any, unit: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    uncertainty = getattr(spectrum, "uncertainty", None)
    if uncertainty is None:
        return None
    kind = str(getattr(uncertainty, "uncertainty_type", "unknown"))
    if kind not in POWERS:
        raise bad_input(f"an uncertainty of type {kind!r}", f"one of {', '.join(POWERS)}")
    power, own = POWERS[kind], getattr(uncertainty, "unit", None)
    values = numbers(uncertainty.array, "uncertainty")[0].astype(float)
    if kind == "ivar":
        values = np.where(values > 0, values, np.nan)
    factor = 1.0 if own is None else (u.Unit(own) ** power).to(unit)
    error = np.broadcast_to(np.atleast_2d(values**power * factor), shape)
    return np.where(np.isnan(error), np.inf, error)


def to_spectra(stars: Stars, kind: Any = None) -> list[Any]:
    """A `Spectrum` of specutils for every star, with errors, masks where something is missing, and its id in `meta`.

    Args:
        stars: with `flux` that has wavelengths, in Angstrom.
        kind: what to make; None: `specutils.Spectrum`, or `Spectrum1D` of versions before 2.

    Raises:
        BadInput: flux without wavelengths, or with covariances, or specutils is not installed.

    Example:
        >>> from types import SimpleNamespace
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> spectra = bl.surveys.to_spectra(test, kind=SimpleNamespace)
        >>> spectra[0].flux.shape, str(spectra[0].spectral_axis.unit)
        ((50,), 'Angstrom')
    """
    if kind is None:
        try:
            import specutils
        except ImportError:
            raise bad_input("spectra without specutils installed", "it", fix="pip install specutils") from None
        kind = getattr(specutils, "Spectrum", None) or specutils.Spectrum1D
    flux = stars["flux"]
    along = next((flux.coords[x] for x in ("wavelength", "pixel") if x in flux.coords), None)
    if along is None or along.dtype.kind not in "fiu" or flux.has_covariance:
        raise bad_input(f"flux as {flux}", 'flux with coords={"wavelength": ...}, and errors but no covariances')
    unit, axis, out = u.Unit(flux.units[0]), along * u.AA, []
    for i, (value, seen) in enumerate(zip(flux.value, flux.observed, strict=True)):
        error = None if flux.error is None else StdDevUncertainty(np.where(seen, flux.error[i], np.inf), unit=unit)
        meta = {} if stars.id is None else {"id": stars.id[i]}
        out.append(kind(spectral_axis=axis, flux=value * unit, uncertainty=error, mask=~seen, meta=meta))
    return out
