"""Gaia's columns, as published studies use them: which parallaxes and colours are good, and how large errors are.

Each function takes columns by the archive's names, of any length, and gives an array. NaN where a number is missing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import bad_input, index_of
from .quantities import alike, plain, positive


class ParallaxSystem(NamedTuple):
    """What is published of a catalogue's parallaxes: mean and sd [mas] of the zero point, measured less true, and the
    factor by which true errors exceed those stated."""

    zero_point: float
    zero_point_sd: float
    error_factor: float


PARALLAX_SYSTEMS = {
    # quasars -0.029 (Lindegren+18, A&A 616, A2); bright stars -0.046 to -0.056 (Riess+18, Zinn+19, Schoenrich+19);
    # external over formal error 1.08 at G > 13 (Lindegren 2018, slides of the known issues)
    "gaia_dr2": ParallaxSystem(-0.040, 0.015, 1.08),
    # quasars -0.017 (Lindegren+21, A&A 649, A4), giants and Cepheids -0.03 to -0.04; 1.05 of quasars (Fabricius+21,
    # A&A 649, A5), 1.1 to 1.3 at G < 18 of binaries (El-Badry+21)
    "gaia_edr3": ParallaxSystem(-0.025, 0.015, 1.05),
    "gaia_dr3": ParallaxSystem(-0.025, 0.015, 1.05),
    # after `astro.parallax.gaia_zero_point`: what is left (Lindegren+21, section 6; Zinn 2021, AJ 161, 214)
    "gaia_dr3_corrected": ParallaxSystem(0.0, 0.010, 1.05),
}
"""Parallaxes of surveys, by name: values as rough as their sources are unlike, with the spread between these as the sd.
Those of `gaia_dr3` are those of `gaia_edr3`, whose astrometry it repeats."""


def parallax_system(name: str) -> ParallaxSystem:
    """Zero point, its sd and the error factor of a catalogue's parallaxes, of `PARALLAX_SYSTEMS`.

    Example:
        >>> from bayeslabels.astro.gaia import parallax_system
        >>> parallax_system("gaia_dr2").error_factor
        1.08
    """
    index_of(name, PARALLAX_SYSTEMS, "catalogue of parallaxes")
    return PARALLAX_SYSTEMS[name]


@np.errstate(all="ignore")
def excess_factor(bp_rp: ArrayLike, phot_bp_rp_excess_factor: ArrayLike) -> np.ndarray:
    """C*, the excess of BP and RP flux over G, less that of normal stars of this colour: about 0 for these.

    Source: Riello et al. 2021 (A&A 649, A3), eq. 6 and table 2, for Gaia EDR3 and DR3.

    Example:
        >>> from bayeslabels.astro.gaia import excess_factor
        >>> excess_factor([0.8, 5.0], [1.20, 1.76]).round(3)
        array([ 0., -0.])
    """
    x, factor = alike(
        bp_rp=plain(bp_rp, "mag", "bp_rp"),
        excess=plain(phot_bp_rp_excess_factor, None, "phot_bp_rp_excess_factor"),
    )
    blue = np.polyval([0.032277, 0.033772, 1.154360], x)
    middle = np.polyval([-0.005879, 0.049255, 0.011464, 1.162004], x)
    return factor - np.where(x < 0.5, blue, np.where(x < 4.0, middle, np.polyval([0.140537, 1.057572], x)))


@np.errstate(all="ignore")
def good_colour(
    bp_rp: ArrayLike, phot_bp_rp_excess_factor: ArrayLike, phot_g_mean_mag: ArrayLike, n_sigma: float = 3.0
) -> np.ndarray:
    """Whether BP and RP are free of other light: \\|C*\\| < n_sigma times its scatter at this magnitude.

    Source: Riello et al. 2021, eq. 18. False where a number is missing.

    Example:
        >>> from bayeslabels.astro.gaia import good_colour
        >>> good_colour([0.8, 0.8], [1.20, 1.60], [15.0, 15.0])
        array([ True, False])
    """
    excess, g = alike(
        excess=np.abs(excess_factor(bp_rp, phot_bp_rp_excess_factor)),
        g=plain(phot_g_mean_mag, "mag", "phot_g_mean_mag"),
    )
    return excess < n_sigma * (0.0059898 + 8.817481e-12 * g**7.618399)


@np.errstate(all="ignore")
def good_astrometry(ruwe: ArrayLike, most: float = 1.4) -> np.ndarray:
    """Whether the astrometric solution fits a single star: RUWE < 1.4 (Lindegren 2018, GAIA-C3-TN-LU-LL-124).

    Stars with companions fail; a cut changes the sample. False where it is missing.

    Example:
        >>> from bayeslabels.astro.gaia import good_astrometry
        >>> good_astrometry([1.0, 2.5])
        array([ True, False])
    """
    return plain(ruwe, None, "ruwe") < most


@np.errstate(all="ignore")
def parallax_error_factor(phot_g_mean_mag: ArrayLike) -> np.ndarray:
    """True over stated error of Gaia EDR3 and DR3 parallaxes of single stars, RUWE < 1.4, at this magnitude.

    Source: El-Badry, Rix & Heintz 2021 (MNRAS 506, 2269), eq. 16, from wide binaries of 7 < G < 21. NaN elsewhere.

    Example:
        >>> from bayeslabels.astro.gaia import parallax_error_factor
        >>> parallax_error_factor([12.7, 18.0]).round(2)
        array([1.3 , 1.01])
    """
    g = plain(phot_g_mean_mag, "mag", "phot_g_mean_mag")
    factor = 0.21 * np.exp(-(((g - 12.65) / 0.90) ** 2)) + np.polyval([-0.00062, 0.0040, 1.141], g)
    return np.where((g >= 7) & (g <= 21), np.maximum(factor, 1.0), np.nan)


@np.errstate(all="ignore")
def magnitude_error(flux: ArrayLike, flux_error: ArrayLike, floor: float = 0.02, most: float = 0.2) -> np.ndarray:
    """Errors of magnitudes from flux and its error: 1.086 error / flux with a floor [mag] added in quadrature, infinite
    above `most` (Green+21, section 3: 0.02 and 0.2 mag).

    Example:
        >>> from bayeslabels.astro.gaia import magnitude_error
        >>> magnitude_error([1000.0, 100.0], [10.0, 30.0]).round(4)
        array([0.0228,    inf])
    """
    flux, error = alike(flux=plain(flux, None, "flux"), flux_error=positive(flux_error, None, "flux_error"))
    return with_floor(2.5 / np.log(10) * error / np.where(flux > 0, flux, np.nan), floor, most)


@np.errstate(all="ignore")
def with_floor(error: ArrayLike, floor: float = 0.02, most: float = np.inf) -> np.ndarray:
    """Errors with a floor added in quadrature; infinite, which is unobserved, above `most` and where missing.

    Example:
        >>> from bayeslabels.astro.gaia import with_floor
        >>> with_floor([0.001, 0.5], most=0.2).round(3)
        array([0.02,  inf])
    """
    error = positive(error, None, "error", zero=True)
    if not (floor >= 0 and most > floor):
        raise bad_input(f"floor={floor}, most={most}", "0 <= floor < most")
    out = np.hypot(error, floor)
    return np.where(np.isfinite(out) & (error <= most) & (out > 0), out, np.inf)
