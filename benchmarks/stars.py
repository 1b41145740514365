"""Stars that several benchmarks share: generators of known truth, and real survey data, from the folder beside the
project's (`SHARED`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

import bayeslabels as bl
from bayeslabels.astro.spectra import normalize_gaussian

SHARED = Path(__file__).resolve().parents[2] / "shared"
UNITS = ("K", "dex", "dex", "dex", "dex")
CLASSIC = bl.Cannon(order=2, label_noise=False, coefficient_prior=bl.priors.Flat())


def robust(x: np.ndarray) -> np.ndarray:
    """Half of the 16th to 84th percentile, by column."""
    return 0.5 * np.diff(np.nanpercentile(x, [15.865, 84.135], axis=0), axis=0)[0]


def show(name: str, values: Any, digits: int = 3) -> None:
    print(f"  {name:24s}", "  ".join(f"{v:.{digits}g}" for v in np.atleast_1d(values)), flush=True)


def line_stars(n: int, n_pixel: int, n_label: int, seed: int, quadratic: bool) -> tuple[bl.Stars, bl.Stars, np.ndarray]:
    data = of_cases("line_spectra").make(n, n_pixel, n_label, seed, quadratic)
    ivar = data["ivar"] * np.ones_like(data["flux"])
    labels = bl.Block(data["label"], data["label_err"], names=[str(x) for x in data["names"]], unit=UNITS[:n_label])
    stars = bl.Stars(flux=bl.Block.from_ivar(data["flux"], ivar), labels=labels)
    return stars[:n], stars[n:].drop("labels"), data["label_true"][n:]


def of_cases(name: str) -> Any:
    sys.path.insert(0, str(SHARED / "cases"))
    return __import__(name)


def giants(seed: int, n_pixel: int = 1000, **disturbed: Any) -> tuple[bl.Stars, bl.Stars, np.ndarray, np.ndarray]:
    """1000 training and 400 test stars like APOGEE's giants, the truth, and the training stars' true labels."""
    data = of_cases("apogee_like").make(1000, 400, n_pixel, seed, **disturbed)
    labels = bl.Block(data["label"], data["label_err"], names=data["names"], unit=data["units"])
    stars = bl.Stars(
        labels=labels, flux=bl.Block(data["flux"], data["flux_err"], coords={"wavelength": data["wavelength"]})
    )
    return stars[:1000], stars[1000:].drop("labels"), data["label_true"][1000:], data["label_true"][:1000]


def miles_stars(every: int = 1) -> bl.Stars:
    """FGK stars of the MILES library, normalised, and of their pixels every N-th; neither their fluxes nor their
    labels have errors."""
    with fits.open(SHARED / "data" / "miles_train.fits") as file:
        table, wavelength = file[1].data, np.asarray(file[2].data["WAVELENGTH"], float)
        labels = np.column_stack([table[n] for n in ("TEFF", "LOGG", "FE_H")]).astype(float)
        flux = np.asarray(table["FLUX"], float)
    keep = np.isfinite(labels).all(1) & (labels[:, 0] > 4200) & (labels[:, 0] < 6500) & (labels[:, 2] > -2.2)
    labels, flux = labels[keep], normalize_gaussian(wavelength, flux[keep], None)[0]
    return bl.Stars(
        labels=bl.Block(labels, names=("TEFF", "LOGG", "FE_H"), unit=UNITS[:3]),
        flux=bl.Block(flux[:, ::every], coords={"pixel": wavelength[::every]}),
    )


def apogee_stars() -> bl.Stars:
    """Giants of APOGEE DR12, pixels with errors; their labels have none."""
    with fits.open(SHARED / "data" / "apogee_671x100.fits") as file:
        table = file[1].data
        labels = np.column_stack([table[n] for n in ("TEFF", "LOGG", "PARAM_M_H")]).astype(float)
        flux, error = (np.asarray(table[n], float) for n in ("FLUX", "FLUX_ERR"))
    labels = bl.Block(labels, names=("TEFF", "LOGG", "M_H"), unit=UNITS[:3])
    return bl.Stars(labels=labels, flux=bl.Block(flux, np.where(error > 0, error, np.inf)))
