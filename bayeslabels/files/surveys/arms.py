"""Arms of spectrographs: spectra of stars on grids of their own, brought to one grid and combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...astro.spectra import resample
from ...errors import bad_input

CLOSE = 1e-7
"""By how much, of themselves, wavelengths of one pixel may differ between files: a few m/s."""


class Arm(NamedTuple):
    """Spectra of some stars in one arm: flux and ivar (n, n_pixel), 0 where masked; velocity: km/s, of those known."""

    name: str
    ids: Sequence[Any]
    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    unit: str = ""
    velocity: Mapping[Any, float] = {}


def on_one_grid(arms: Sequence[Arm], grid: np.ndarray | None, velocity: Mapping[Any, float] | None) -> list[Arm]:
    """One arm of each name, with all its stars; grid: to which all are interpolated, at rest if velocities are given.

    Raises:
        BadInput: an arm with several grids of its own, where no other is given; a star that is there twice.
    """
    if len(units := {arm.unit for arm in arms}) > 1:
        raise bad_input(f"spectra in several units ({', '.join(map(repr, sorted(units)))})", "one kind of files")
    whole = []
    for name in dict.fromkeys(arm.name for arm in arms):
        some = [arm for arm in arms if arm.name == name]
        ids = [x for arm in some for x in arm.ids]
        if len(ids) > len(set(ids)):
            twice = next(x for x in ids if ids.count(x) > 1)
            raise bad_input(
                f"several spectra of star {twice!r}", "one of each", "several visits, or a file given twice"
            )
        if grid is not None:
            some = [_moved(arm, grid, velocity) for arm in some]
        first = some[0].wavelength
        for arm in some:
            if arm.wavelength.shape != first.shape or not np.allclose(arm.wavelength, first, rtol=CLOSE, atol=0):
                raise bad_input(
                    f"spectra of {len(first)} pixels from {first[0]:.2f} Angstrom, and of {len(arm.wavelength)} from "
                    f"{arm.wavelength[0]:.2f}", "one grid of wavelengths",
                    fix=f"wavelength=np.geomspace({first[0]:.1f}, {first[-1]:.1f}, {len(first)}) for all",
                )  # fmt: skip
        flux, ivar = (np.concatenate([getattr(arm, x) for arm in some]) for x in ("flux", "ivar"))
        whole.append(Arm(name, ids, first, flux, ivar, some[0].unit))
    return whole


def _moved(arm: Arm, grid: np.ndarray, velocity: Mapping[Any, float] | None) -> Arm:
    shifts = None if velocity is None else np.array([velocity[x] for x in arm.ids])
    flux, ivar = resample(arm.wavelength, arm.flux, arm.ivar, grid, shifts)
    assert ivar is not None  # as it was given
    return arm._replace(wavelength=grid, flux=flux, ivar=ivar)


def together(arms: Sequence[Arm], ids: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wavelength (n_pixel,), flux and ivar (n_star, n_pixel) of all arms, weighted by ivar where they overlap."""
    grid = np.sort(np.concatenate([arm.wavelength for arm in arms]))
    grid = grid[np.concatenate([[True], np.diff(grid) > CLOSE * grid[1:]])]
    row = {x: i for i, x in enumerate(ids)}
    weighted, weight = np.zeros((2, len(ids), len(grid)))
    for arm in arms:
        at = np.searchsorted(grid, arm.wavelength * (1 - CLOSE))
        rows = np.array([row[x] for x in arm.ids])[:, None]
        known = np.isfinite(arm.flux) & np.isfinite(arm.ivar) & (arm.ivar > 0)
        ivar = np.where(known, arm.ivar, 0.0)
        weighted[rows, at] += ivar * np.where(known, arm.flux, 0.0)
        weight[rows, at] += ivar
    return grid, np.where(weight > 0, weighted / np.where(weight > 0, weight, 1.0), np.nan), weight


def ivar_of(error: np.ndarray, bad: np.ndarray) -> np.ndarray:
    """Inverse variances, 0 where the error is no positive number or the pixel is bad."""
    known = np.isfinite(error) & (error > 0) & ~bad
    return np.where(known, np.where(known, error, 1.0).astype(float) ** -2.0, 0.0)


def linear(header: Any, n: int) -> np.ndarray:
    """The coordinate of n pixels by the keywords CRVAL1, CDELT1 and CRPIX1, which count from 1."""
    first = float(header.get("CRPIX1", 1)) or 1.0  # 0 in some files of GALAH, meant as 1
    return float(header["CRVAL1"]) + float(header["CDELT1"]) * (np.arange(n) + 1 - first)
