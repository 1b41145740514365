"""Parallaxes and distances: the Gaia zero point, distance moduli, and estimates combined without losing their skewness.

    distance / kpc = 1 / (parallax / mas),   distance modulus = 10 - 5 log10(parallax / mas)

A measured parallax is never inverted here, nor its logarithm taken: both belong to the true parallax, whose logarithm
is N(eta, s^2) a priori (from spectra and photometry, say) and which the astrometry measures with Gaussian noise.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import bad_input
from .quantities import alike, plain, positive

PERCENTILES = (5, 16, 50, 84, 95)

# Lindegren+21 (A&A 649, A4), tables 9 and 10, in micro-arcsec: rows in G, columns in (power j of colour, k of latitude)
_G = np.array([6.0, 10.8, 11.2, 11.8, 12.2, 12.9, 13.1, 15.9, 16.1, 17.5, 19.0, 20.0, 21.0])
_TERMS_5 = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0), (3, 0), (4, 0))
_Q_5 = np.array([
    [-26.98, -9.62, 27.40, -25.1, 0.0, -1257, 0, 0],
    [-27.23, -3.07, 23.04, 35.3, 15.7, -1257, 0, 0],
    [-30.33, -9.23, 9.08, -88.4, -11.8, -1257, 0, 0],
    [-33.54, -10.08, 13.28, -126.7, 11.6, -1257, 0, 0],
    [-13.65, -0.07, 9.35, -111.4, 40.6, -1257, 0, 0],
    [-19.53, -1.64, 15.86, -66.8, 20.6, -1257, 0, 0],
    [-37.99, 2.63, 16.14, -5.7, 14.0, -1257, 107.9, 104.3],
    [-38.33, 5.61, 15.42, 0, 18.7, -1189, 243.8, 155.2],
    [-31.05, 2.83, 8.59, 0, 15.5, -1404, 105.5, 170.7],
    [-29.18, -0.09, 2.41, 0, 24.5, -1165, 189.7, 325.0],
    [-18.40, 5.98, -6.46, 0, 5.5, 0, 0, 276.6],
    [-12.65, -4.57, -7.46, 0, 97.9, 0, 0, 0],
    [-18.22, -15.24, -18.54, 0, 128.2, 0, 0, 0],
])  # fmt: skip
_TERMS_6 = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0))
_Q_6 = np.array([
    [-27.85, -7.78, 27.47, -32.1, 14.4, 9.5, -67],
    [-28.91, -3.57, 22.92, 7.7, 12.6, 1.6, -572],
    [-26.72, -8.74, 9.36, -30.3, 5.6, 17.2, -1104],
    [-29.04, -9.69, 13.63, -49.4, 36.3, 17.7, -1129],
    [-12.39, -2.16, 10.23, -92.6, 19.8, 27.6, -365],
    [-18.99, -1.93, 15.90, -57.2, -8.0, 19.9, -554],
    [-38.29, 2.59, 16.20, -10.5, 1.4, 0.4, -960],
    [-36.83, 4.20, 15.76, 22.3, 11.1, 10.0, -1367],
    [-28.37, 1.99, 9.28, 50.4, 17.2, 13.7, -1351],
    [-24.68, -1.37, 3.52, 86.8, 19.8, 21.3, -1380],
    [-15.32, 4.01, -6.03, 29.2, 14.1, 0.4, -563],
    [-13.73, -10.92, -8.30, -74.4, 196.4, -42.0, 536],
    [-29.53, -20.34, -18.74, -39.5, 326.8, -262.3, 1598],
])  # fmt: skip


@np.errstate(all="ignore")
def gaia_zero_point(
    g: ArrayLike, colour: ArrayLike, ecliptic_latitude: ArrayLike, solved: ArrayLike = 31
) -> np.ndarray:
    """Zero point of Gaia EDR3 and DR3 parallaxes in mas: true = published - zero point (Lindegren+21, eq. A.3-A.5).

    Z(G, nu, beta) = sum_jk q_jk(G) c_j(nu) b_k(beta), q_jk linear in G between the nodes of tables 9 and 10.

    Args:
        g: `phot_g_mean_mag`, mag. ecliptic_latitude: `ecl_lat`, degrees.
        colour: effective wavenumber in 1/micron: `nu_eff_used_in_astrometry` of five-parameter solutions,
            `pseudocolour` of six-parameter ones.
        solved: `astrometric_params_solved`: 31 for five parameters, 95 for six.

    Returns:
        NaN where an input is missing, the solution has no parallax, or the recipe does not reach: outside
        6 <= G <= 21, 1.1 <= nu <= 1.9 (five parameters) or 1.24 <= nu <= 1.72 (six).

    Example:
        >>> from bayeslabels.astro.parallax import gaia_zero_point
        >>> float(gaia_zero_point(15.0, 1.5, 20.0).round(4))
        -0.0399
    """
    g, nu, latitude, solved = alike(
        g=plain(g, "mag", "g"), colour=plain(colour, "1 / micron", "colour"),
        ecliptic_latitude=plain(ecliptic_latitude, "deg", "ecliptic_latitude"), solved=plain(solved, None, "solved"),
    )  # fmt: skip
    if (np.abs(latitude) > 90).any():
        raise bad_input("ecliptic latitudes beyond 90 degrees", "degrees", "another coordinate in its place", "ecl_lat")
    five = _zero_point(_Q_5, _TERMS_5, g, nu, latitude)
    six = _zero_point(_Q_6, _TERMS_6, g, nu, latitude)
    inside = (g >= 6) & (g <= 21) & np.isfinite(latitude)
    five = np.where((solved == 31) & inside & (nu >= 1.1) & (nu <= 1.9), five, np.nan)
    six = np.where((solved == 95) & inside & (nu >= 1.24) & (nu <= 1.72), six, np.nan)
    return 1e-3 * np.where(solved == 95, six, five)


def _zero_point(
    q: np.ndarray, terms: tuple[tuple[int, int], ...], g: np.ndarray, nu: np.ndarray, latitude: np.ndarray
) -> np.ndarray:
    """sum_jk q_jk(g) c_j(nu) b_k(latitude), micro-arcsec."""
    sine = np.sin(np.deg2rad(latitude))
    c = (
        1.0,
        np.clip(nu - 1.48, -0.24, 0.24),
        np.clip(1.48 - nu, 0.0, 0.24) ** 3,
        np.minimum(0.0, nu - 1.24),
        np.maximum(0.0, nu - 1.72),
    )
    b = (1.0, sine, sine**2 - 1 / 3)
    return sum(np.interp(g, _G, q[:, i]) * c[j] * b[k] for i, (j, k) in enumerate(terms))


@np.errstate(all="ignore")
def distance_modulus(parallax: ArrayLike) -> np.ndarray:
    """m - M in mag of true parallaxes in mas; refuses values that are not positive, which only measurements have.

    Example:
        >>> from bayeslabels.astro.parallax import distance_modulus
        >>> float(distance_modulus(1.0))
        10.0
    """
    parallax = plain(parallax, "mas", "parallax")
    if (parallax <= 0).any():
        raise bad_input(
            f"{int((parallax <= 0).sum())} parallaxes that are not positive", "true parallaxes",
            "measured parallaxes, which have no logarithm", "combine(eta, s, parallax, error).parallax",
        )  # fmt: skip
    return 10 - 5 * np.log10(parallax)


@np.errstate(all="ignore")
def parallax_from_modulus(modulus: ArrayLike) -> np.ndarray:
    """Parallax in mas of a distance modulus in mag.

    Example:
        >>> from bayeslabels.astro.parallax import parallax_from_modulus
        >>> float(parallax_from_modulus(10.0))
        1.0
    """
    return 10 ** (2 - 0.2 * plain(modulus, "mag", "modulus"))


class Combined(NamedTuple):
    """Posterior of N stars' true parallaxes [mas] and distances [kpc].

    parallax, parallax_error: mean and sd (N,); parallax_percentiles, distance_percentiles (N, 5) at `PERCENTILES`;
    distance: median (N,); ln_parallax, ln_parallax_error: mean and sd of ln(parallax / mas) (N,); distance_mean,
    distance_error: mean and sd (N,); cumulative: probability below ln(parallax) = grid, (N, GRID) both.
    """

    parallax: np.ndarray
    parallax_error: np.ndarray
    parallax_percentiles: np.ndarray
    distance: np.ndarray
    distance_percentiles: np.ndarray
    ln_parallax: np.ndarray
    ln_parallax_error: np.ndarray
    distance_mean: np.ndarray
    distance_error: np.ndarray
    grid: np.ndarray
    cumulative: np.ndarray

    def draws(self, uniform: np.ndarray) -> np.ndarray:
        """Parallaxes (S, N) at the cumulative probabilities (S, N)."""
        return np.exp(
            np.stack([np.interp(q, c, u) for q, c, u in zip(uniform.T, self.cumulative, self.grid, strict=True)], 1)
        )


@np.errstate(all="ignore")
def combine(
    eta: ArrayLike,
    s: ArrayLike,
    parallax: ArrayLike = np.nan,
    error: ArrayLike = np.inf,
    zero_point: ArrayLike = 0.0,
) -> Combined:
    """Spectrophotometric and astrometric parallax of each star together.

        p(u) ~ N(u | eta, s^2) N(parallax | exp(u) + zero_point, error^2),   u = ln(true parallax / mas)

    on a grid in u that follows each star's posterior, whose skewness is kept. Independent only if the star's own
    astrometry did not enter eta (k-fold training). eta, s: (N,). parallax of any sign, in mas; NaN or masked, or an
    infinite, NaN or masked error: not measured.

    Example:
        >>> from bayeslabels.astro.parallax import combine
        >>> both = combine(0.0, 0.1, parallax=1.1, error=0.1)  # ln parallax 0.0 +- 0.1 from the spectrum
        >>> 1.0 < float(both[0]) < 1.1
        True
    """
    eta, s, parallax, error, zero_point = alike(
        eta=plain(eta, None, "eta"), s=positive(s, None, "s"), parallax=plain(parallax, "mas", "parallax"),
        error=plain(error, "mas", "error"), zero_point=plain(zero_point, "mas", "zero_point"),
    )  # fmt: skip
    shape = eta.shape
    eta, s, parallax, error, zero_point = (np.atleast_1d(x) for x in (eta, s, parallax, error, zero_point))
    if (error <= 0).any():
        raise bad_input("errors that are not positive", "error > 0", fix="error=np.inf for no parallax")
    measured = np.isfinite(parallax) & np.isfinite(error) & np.isfinite(zero_point)
    y = np.where(measured, parallax - zero_point, 0.0)
    weight = np.where(measured, 1 / error, 0.0)
    # the mode lies between eta and what the parallax alone allows; the passes after the first zoom in on it
    sigma = np.where(measured, error, 1.0)
    lowest = np.log(np.maximum(y - 6 * sigma, sigma / (1 + np.abs(y) / sigma)))
    highest = np.log(np.maximum(y, 1e-300))
    low = np.where(measured, np.minimum(eta - 9 * s, lowest - s), eta - 9 * s)
    high = np.maximum(eta + 9 * s, np.where(measured, highest, -np.inf) + s)
    high = np.where(np.isfinite(eta), high, np.nan)
    for _ in range(3):
        u = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, GRID)
        log_p = -0.5 * ((u - eta[:, None]) / s[:, None]) ** 2 - 0.5 * ((y[:, None] - np.exp(u)) * weight[:, None]) ** 2
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        used = p > 1e-12
        step = (high - low) / (GRID - 1)
        rows = np.arange(len(u))
        low = u[rows, used.argmax(1)] - step
        high = u[rows, GRID - 1 - used[:, ::-1].argmax(1)] + step
    p /= p.sum(1, keepdims=True)
    cumulative = np.cumsum(p, 1) - 0.5 * p
    at = np.stack([_invert(cumulative, u, q / 100) for q in PERCENTILES], 1)
    true = np.exp(u)
    mean, mean_u = (p * true).sum(1), (p * u).sum(1)
    sd = np.sqrt((p * (true - mean[:, None]) ** 2).sum(1))
    sd_u = np.sqrt((p * (u - mean_u[:, None]) ** 2).sum(1))
    distance = np.exp(-at[:, ::-1])
    far = (p / true).sum(1)
    sd_far = np.sqrt((p * (1 / true - far[:, None]) ** 2).sum(1))
    put = lambda x: x.reshape(shape + x.shape[1:])  # noqa: E731
    middle = len(PERCENTILES) // 2
    return Combined(
        *(
            put(x)
            for x in (mean, sd, np.exp(at), distance[:, middle], distance, mean_u, sd_u, far, sd_far, u, cumulative)
        )
    )


GRID = 201
"""Points in ln parallax: the trapezoid rule is exact to rounding for a smooth posterior that fills them."""


def _invert(cumulative: np.ndarray, u: np.ndarray, q: float) -> np.ndarray:
    """u at which each row's cumulative probability is q, by linear interpolation."""
    right = np.clip((cumulative < q).sum(1), 1, u.shape[1] - 1)
    rows = np.arange(len(u))
    c0, c1, u0, u1 = cumulative[rows, right - 1], cumulative[rows, right], u[rows, right - 1], u[rows, right]
    return u0 + (u1 - u0) * (q - c0) / np.maximum(c1 - c0, 1e-300)
