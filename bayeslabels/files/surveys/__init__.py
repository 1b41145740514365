"""Spectra of surveys, one survey a file: a new one is a file with a subclass of `Survey`, and a word in `SURVEYS`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...astro import spectra
from ...astro.quantities import plain
from ...data.stars import Block, Stars
from ...errors import bad_input, index_of
from ..formats.fits import opened
from .apogee import Apogee
from .arms import Arm, on_one_grid, together
from .base import Survey
from .desi import Desi
from .galah import Galah
from .lamost import Lamost
from .mwm import MilkyWayMapper
from .sdss import Sdss

SURVEYS: tuple[Survey, ...] = (Apogee(), Lamost(), Galah(), Desi(), Sdss(), MilkyWayMapper())
MEDIA = ("vacuum", "air")


def read_spectra(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    survey: str | None = None,
    *,
    medium: str = "vacuum",
    wavelength: Any = None,
    velocity: Any = None,
) -> Stars:
    """Stars with the spectra of a survey's own files: `flux` with errors, infinite where a pixel is masked or unknown.

    - "apogee": apStar (the first row, all visits; 1e-17 erg / (s cm2 Angstrom)) and aspcapStar (normalised); in
      vacuum, at rest.
    - "lamost": LRS, of all data releases; relative flux; in vacuum.
    - "galah": DR3, a file for each of the four CCDs; normalised (HDU 4); in air.
    - "desi": coadd, with the arms combined where they overlap; 1e-17 erg / (s cm2 Angstrom); in vacuum.
    - "sdss": spec, the coadd of a plate and fibre; 1e-17 erg / (s cm2 Angstrom); in vacuum.
    - "mwm": mwmStar of SDSS-V, BOSS and APOGEE put together; 1e-17 erg / (s cm2 Angstrom); in vacuum, at rest.

    Masked are the pixels that `APOGEE_PIXMASK` calls bad (bits 0 to 7), under a strong sky line (12), or without enough
    of the star's light (14); those with any bit of LAMOST's ANDMASK, of SDSS's and_mask, of mwmStar's pixel_flags
    or of DESI's mask; and all with an inverse variance of 0. Telluric residuals and persistence are not masked.

    Args:
        paths: one file, or many. Files of one star, such as GALAH's CCDs, are put together.
        survey: None: known by what is in the first file.
        medium: "vacuum" or "air": in which of them the result's wavelengths, in Angstrom, are. Others are converted.
        wavelength: in this medium: another grid, to which all spectra are interpolated; for files of several grids.
        velocity: of each star, in the order of the result, km/s, positive away: spectra are shifted to rest. It needs
            `wavelength`. What files of LAMOST and SDSS say of it stands in the block `velocity` of the result.

    Returns:
        Stars named as in the files: APOGEE_ID, OBSID, sobject_id, TARGETID, PLATE-MJD-FIBER or sdss_id.

    Raises:
        BadInput: files that are none of these; several grids without `wavelength`; a star that is there twice.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from astropy.io import fits
        >>> import bayeslabels as bl
        >>> flux, error, mask = np.ones((2, 50), "f4"), np.full((2, 50), 0.1, "f4"), np.zeros((2, 50), "i2")
        >>> hdus = fits.HDUList([fits.PrimaryHDU(), *map(fits.ImageHDU, (flux, error, mask))])
        >>> hdus[0].header["OBJID"] = "2M00000002+7417074"
        >>> hdus[1].header.update(CRVAL1=4.179, CDELT1=6e-6, CRPIX1=1, CTYPE1="LOG-LINEAR")
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "apStar-dr17-2M00000002+7417074.fits"
        >>> hdus.writeto(path)
        >>> stars = bl.surveys.read_spectra([path])
        >>> stars.id.tolist(), float(stars.flux.coords["wavelength"][0].round(2))
        (['2M00000002+7417074'], 15100.8)
    """
    files = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(x) for x in paths]
    if not files:
        raise bad_input("no files of spectra", "one at least", "a pattern that no name fits")
    if medium not in MEDIA:
        raise bad_input(f"medium={medium!r}", " or ".join(map(repr, MEDIA)))
    if velocity is not None and wavelength is None:
        raise bad_input("velocity without wavelength", "both", fix="wavelength=np.arange(4000.0, 8800.0)")
    asked = survey if survey is None else _named(survey)
    arms: list[Arm] = []
    for path in files:
        if not path.exists():
            raise bad_input(f"no file {path}", "spectra of " + ", ".join(x.name for x in SURVEYS))
        with opened(path) as hdus:
            asked = asked or _known(hdus, path)
            arms += asked.read(hdus, path)
    assert asked is not None  # there is a file
    grid = None if wavelength is None else plain(wavelength, "Angstrom", "wavelength")
    arms = [arm._replace(wavelength=_in_medium(arm.wavelength, asked.medium, medium)) for arm in arms]
    ids = list(dict.fromkeys(x for arm in arms for x in arm.ids))
    shifts = None if velocity is None else dict(zip(ids, _one_each(velocity, ids), strict=True))
    along, flux, ivar = together(on_one_grid(arms, grid, shifts), ids)
    return _stars(ids, along, flux, ivar, arms[0].unit, {x: v for arm in arms for x, v in arm.velocity.items()})


def _stars(
    ids: Sequence[Any],
    wavelength: np.ndarray,
    flux: np.ndarray,
    ivar: np.ndarray,
    unit: str,
    velocity: dict[Any, float],
) -> Stars:
    known = np.isfinite(flux) & (ivar > 0)
    error = np.where(known, ivar, 1.0) ** -0.5
    block = Block(
        np.where(known, flux, np.nan), np.where(known, error, np.inf), unit=unit, coords={"wavelength": wavelength}
    )  # fmt: skip
    also = {"velocity": Block([velocity.get(x, np.nan) for x in ids], unit="km/s")} if velocity else {}
    return Stars(id=np.array(ids), flux=block, **also)


def _named(survey: str) -> Survey:
    names = [x.name for x in SURVEYS]
    return SURVEYS[index_of(survey, names, "survey")]


def _known(hdus: Any, path: Path) -> Survey:
    """The survey whose files look like this one."""
    found = next((x for x in SURVEYS if x.knows(hdus)), None)
    if found is None:
        names = [x.name for x in SURVEYS]
        raise bad_input(
            f"{path}, which is no spectrum of {', '.join(names)}", "one of these", "a table, or another data release",
            "survey=..., or Stars.from_table for tables",
        )  # fmt: skip
    return found


def _in_medium(wavelength: np.ndarray, own: str, asked: str) -> np.ndarray:
    if own == asked:
        return wavelength
    return spectra.vacuum_to_air(wavelength) if asked == "air" else spectra.air_to_vacuum(wavelength)


def _one_each(velocity: Any, ids: Sequence[Any]) -> np.ndarray:
    values = np.atleast_1d(plain(velocity, "km/s", "velocity"))
    if values.shape not in ((1,), (len(ids),)):
        raise bad_input(f"velocity of shape {values.shape} for {len(ids)} stars", "one number, or one per star")
    return np.broadcast_to(values, len(ids))
