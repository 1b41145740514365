"""A standard extinction law through broad passbands: what reddening vectors should look like.

    A_band / A_V = -2.5 log10[ int f T 10^(-0.4 a(lambda) A_V) dlambda / int f T dlambda ] / A_V    (Green+21, eq. B19)

f: photons of a black body, T: a Gaussian passband. Good to a few per cent: for comparisons, not for corrections.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from ..errors import bad_input, index_of
from .quantities import plain, positive, single

SHORTEST, LONGEST = 0.3, 10.0
"""Where the law was measured, micron."""
R_V = (1.0, 10.0)
"""R_V of any dust that is known, and more."""
MOST = 200.0
"""A_V in mag, beyond which no star was seen."""

PASSBANDS = {
    "G": (0.640, 0.144), "BP": (0.520, 0.085), "RP": (0.785, 0.090),
    "PS1_g": (0.487, 0.037), "PS1_r": (0.622, 0.039), "PS1_i": (0.755, 0.037), "PS1_z": (0.868, 0.029),
    "PS1_y": (0.963, 0.028), "J": (1.241, 0.063), "H": (1.651, 0.082), "Ks": (2.165, 0.086),
    "W1": (3.379, 0.270), "W2": (4.629, 0.400),
}  # fmt: skip
"""Mean wavelength and sd of the transmission of some bands, micron (Gaia, Pan-STARRS 1, 2MASS, WISE; rounded)."""
ALIASES = {b: f"PS1_{b}" for b in "grizy"} | {"K": "Ks"}
"""Other names of some bands."""


@np.errstate(all="ignore")
def extinction_law(wavelength: ArrayLike, r_v: float = 3.1, law: str = "o94") -> np.ndarray:
    """A(lambda) / A_V at 0.3 to 10 micron.

    Args:
        wavelength: in micron, or with a unit of length; NaN or masked: NaN.
        r_v: A_V / E(B - V) of the dust, 1 to 10.
        law: "ccm89": Cardelli, Clayton & Mathis 1989 (ApJ 345, 245), eq. 2-3; "o94": the same with the optical
            coefficients of O'Donnell 1994 (ApJ 422, 158); "f99": Fitzpatrick 1999 (PASP 111, 63), appendix.

    Raises:
        BadInput: of wavelengths that the law does not reach.

    Example:
        >>> from bayeslabels.astro.extinction import extinction_law
        >>> float(extinction_law(0.55).round(1))
        1.0
    """
    wave, r_v = plain(wavelength, "micron", "wavelength"), single(r_v, None, "r_v")
    if not R_V[0] <= r_v <= R_V[1]:
        raise bad_input(f"r_v={r_v:g}", f"{R_V[0]:g} to {R_V[1]:g}", "A_V in its place", "r_v=3.1")
    outside = (wave < SHORTEST) | (wave > LONGEST)
    if outside.any():
        raise bad_input(
            f"wavelength {wave[outside].flat[0]:.6g} micron", f"{SHORTEST} to {LONGEST:.0f} micron",
            "wavelengths in Angstrom or nm without their unit", "extinction_law(wavelength * astropy.units.AA)",
        )  # fmt: skip
    index_of(law, LAWS, "law")
    return LAWS[law](1 / wave, r_v)


def _cardelli(a: tuple[float, ...], b: tuple[float, ...]) -> Callable[[np.ndarray, float], np.ndarray]:
    """A / A_V at x [1 / micron] with the optical polynomials a and b in x - 1.82, highest power first."""

    def law(x: np.ndarray, r_v: float) -> np.ndarray:
        y = x - 1.82
        optical = np.polyval(a, y) + np.polyval(b, y) / r_v
        return np.where(x < 1.1, (0.574 - 0.527 / r_v) * np.maximum(x, 1e-9) ** 1.61, optical)

    return law


def _fitzpatrick(x: np.ndarray, r_v: float) -> np.ndarray:
    """A / A_V at x [1 / micron]: a cubic spline through k = A / E(B - V) at nine wavelengths."""
    from scipy.interpolate import CubicSpline  # here, since all that is not photometry would wait for it

    c2 = -0.824 + 4.717 / r_v
    far = 1e4 / np.array([2700.0, 2600.0])
    bump = far**2 / ((far**2 - 4.596**2) ** 2 + 0.99**2 * far**2)
    optical = (
        [2.13572e-4, 1.00270, -0.422809],
        [-7.35778e-5, 1.00216, -5.13540e-2],
        [-3.32598e-5, 1.00184, 0.700127],
        [-4.45636e-5, 7.97809e-4, -5.46959e-3, 1.01707, 1.19456],
    )
    k = [0.0, 0.26469 * r_v / 3.1, 0.82925 * r_v / 3.1, *(np.polyval(p, r_v) for p in optical)]
    ultraviolet = r_v + 2.030 - 3.007 * c2 + c2 * far + 3.23 * bump
    knots = np.concatenate([[0.0], 1e4 / np.array([26500.0, 12200.0, 6000.0, 5470.0, 4670.0, 4110.0]), far])
    return CubicSpline(knots, [*k, *ultraviolet], bc_type="natural")(x) / r_v


LAWS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "o94": _cardelli(
        (-0.505, 1.647, -0.827, -1.718, 1.137, 0.701, -0.609, 0.104, 1.0),
        (3.347, -10.805, 5.491, 11.102, -7.985, -3.989, 2.908, 1.952, 0.0),
    ),
    "ccm89": _cardelli(
        (0.32999, -0.77530, 0.01979, 0.72085, -0.02427, -0.50447, 0.17699, 1.0),
        (-2.09002, 5.30260, -0.62251, -5.38434, 1.07233, 2.28305, 1.41338, 0.0),
    ),
    "f99": _fitzpatrick,
}
"""A(lambda) / A_V as functions of 1 / lambda [1 / micron] and R_V."""


@np.errstate(all="ignore")
def band_extinction(
    temperature: ArrayLike, bands: tuple[str, ...], a_v: float = 0.3, r_v: float = 3.1, law: str = "o94"
) -> np.ndarray:
    """A_band / A_V (N, B) of black bodies of these temperatures (N,), K, behind dust of A_V mag; law as in
    `extinction_law`.

    Example:
        >>> from bayeslabels.astro.extinction import band_extinction
        >>> band_extinction([5000.0], ("G", "J")).shape
        (1, 2)
    """
    t = np.atleast_1d(positive(temperature, "K", "temperature"))[..., None]
    if t.ndim > 2:
        raise bad_input(f"temperature of shape {t.shape[:-1]}", "one number, or one per star")
    a_v = single(a_v, "mag", "a_v")
    if not a_v <= MOST:
        raise bad_input(f"a_v={a_v:g}", f"a number up to {MOST:g} mag", "a sentinel for what is missing")
    out = np.empty((len(t), len(bands)))
    for i, band in enumerate(bands):
        band = ALIASES.get(band, band)
        index_of(band, PASSBANDS, "band")
        centre, sd = PASSBANDS[band]
        wave = np.linspace(max(centre - 3 * sd, SHORTEST), centre + 3 * sd, 301)
        photons = wave**-4 / np.expm1(14387.77 / (wave * t)) * np.exp(-0.5 * ((wave - centre) / sd) ** 2)
        dimmed = photons * 10 ** (-0.4 * a_v * extinction_law(wave, r_v, law))
        out[:, i] = -2.5 * np.log10(dimmed.sum(1) / photons.sum(1)) / a_v
    return out


def band_bend(bands: tuple[str, ...], temperature: float = 5500.0) -> np.ndarray:
    """w (B,) of A = E R - w (E R)^2, 1 / mag: by how much extinction in a broad band falls short of growing with the
    dust, to second order in the band's width (Green+21, eq. B30). 0 for bands that are not known here.

        w = (ln 10 / 5) Var(k) / mean(k)^2,   k: the law in the band, weighted by photons of a black body

    Args:
        bands: of `PASSBANDS`, or g, r, i, z, y and K for those of Pan-STARRS 1 and 2MASS.
        temperature: of the black body, K.

    Example:
        >>> from bayeslabels.astro.extinction import band_bend
        >>> band_bend(("G", "J", "?")).round(3)
        array([0.033, 0.003, 0.   ])
    """
    t = single(temperature, "K", "temperature")
    out = np.zeros(len(bands))
    for i, band in enumerate(bands):
        if (known := PASSBANDS.get(ALIASES.get(band, band))) is None:
            continue
        centre, sd = known
        wave = np.linspace(max(centre - 3 * sd, SHORTEST), centre + 3 * sd, 301)
        photons = wave**-4 / np.expm1(14387.77 / (wave * t)) * np.exp(-0.5 * ((wave - centre) / sd) ** 2)
        k = extinction_law(wave)
        mean = np.average(k, weights=photons)
        out[i] = np.log(10) / 5 * np.average((k - mean) ** 2, weights=photons) / mean**2
    return out
