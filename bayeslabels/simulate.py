"""A small survey of red giants to try things on: absorption lines, noisy labels, gaps, and the truth.

The physics is a toy, but of the right kind: lines of neutral and ionised metals strengthen along a curve of growth
with abundance, Boltzmann and Saha factors and electron pressure, and blend where they overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .astro.extinction import PASSBANDS, extinction_law
from .data.stars import Block, Stars
from .errors import bad_input

UNITS = {"TEFF": "K", "LOGG": "dex", "FE_H": "dex", "MG_FE": "dex"}
"""Labels that can be simulated, and their units."""
TYPICAL = {"TEFF": 4550.0, "LOGG": 2.1, "FE_H": -0.2, "MG_FE": 0.1}
"""Values that all stars have of the labels that are not asked for."""
ERROR = {"TEFF": 40.0, "LOGG": 0.08, "FE_H": 0.03, "MG_FE": 0.03}
"""Typical error of a catalogue label."""
START, STEP = 5160.0, 6e-5
"""First wavelength in Angstrom, and the step of its logarithm: two pixels per resolution element of R = 8000."""


class Truth(NamedTuple):
    """What a real survey would not know: labels (N, M) in the units of the stars' labels, and noiseless flux (N, L)."""

    names: tuple[str, ...]
    training_labels: np.ndarray
    test_labels: np.ndarray
    training_flux: np.ndarray
    test_flux: np.ndarray


def simulate(
    n_star: int = 1000,
    n_pixel: int = 500,
    labels: Sequence[str] = ("TEFF", "LOGG", "FE_H"),
    *,
    seed: int = 0,
    n_test: int | None = None,
    snr: float = 100.0,
    missing: float = 0.02,
    label_error: Sequence[float] | None = None,
    label_scatter: Sequence[float] | None = None,
) -> tuple[Stars, Stars, Truth]:
    """Training stars (labels and flux), test stars (flux alone) and the truth of both.

    A quadratic in the labels describes the flux to about 0.3 per cent.

    Args:
        n_star: training stars. n_test: test stars; None: half as many.
        n_pixel: of the normalised spectra; their wavelengths in Angstrom are ``flux.coords["pixel"]``.
        labels: of TEFF, LOGG, FE_H and MG_FE; of a label left out all stars have the same.
        seed: same seed, same survey.
        snr: median signal-to-noise ratio per pixel; stars differ by 40 per cent.
        missing: fraction of bad pixels, which are missing.
        label_error: typical stated error of each training label, by default 40 K and 0.08, 0.03, 0.03 dex; stars
            differ by a factor of up to three.
        label_scatter: sd of the noise in the training labels beyond their stated errors (tau); by default none.

    Example:
        >>> from bayeslabels.simulate import simulate
        >>> train, test, truth = simulate(200, 100)
        >>> len(train), len(test), truth.test_labels.shape
        (200, 100, (100, 3))
    """
    names = (labels,) if isinstance(labels, str) else tuple(labels)
    n_test = max(1, n_star // 2) if n_test is None else n_test
    if not names or set(names) - set(UNITS) or len(set(names)) < len(names):
        raise bad_input(f"labels={names}", f"some of {tuple(UNITS)}, each once")
    if min(n_star, n_pixel, n_test) < 1:
        raise bad_input(f"n_star={n_star}, n_pixel={n_pixel}, n_test={n_test}", "at least 1 each")
    if not (snr > 0 and 0 <= missing < 1):
        raise bad_input(f"snr={snr}, missing={missing}", "snr > 0 and 0 <= missing < 1")
    typical = _per_label(label_error, [ERROR[name] for name in names], "label_error")
    tau = _per_label(label_scatter, np.zeros(len(names)), "label_scatter")
    if not (typical > 0).all():
        raise bad_input(f"label_error={typical}", "errors above 0")

    rng = np.random.default_rng(seed)
    total, train, test = n_star + n_test, slice(None, n_star), slice(n_star, None)
    physical = _giants(total, rng)
    for i, name in enumerate(UNITS):
        if name not in names:
            physical[:, i] = TYPICAL[name]
    wavelength = START * np.exp(STEP * np.arange(n_pixel))
    true_flux = _spectra(physical, wavelength)
    true_labels = physical[:, [list(UNITS).index(name) for name in names]]

    noise = 1 / (snr * np.exp(0.4 * rng.standard_normal((total, 1))))
    flux = true_flux + noise * rng.standard_normal(true_flux.shape)
    flux[rng.uniform(size=flux.shape) < missing] = np.nan
    error = typical * rng.uniform(0.5, 1.5, true_labels.shape)
    catalogue = true_labels + np.hypot(error, tau) * rng.standard_normal(error.shape)

    spectra = Block(flux, np.broadcast_to(noise, flux.shape), coords={"pixel": wavelength})
    known = Block(catalogue[train], error[train], names=names, unit=[UNITS[name] for name in names])
    truth = Truth(names, true_labels[train], true_labels[test], true_flux[train], true_flux[test])
    ids = np.array([f"giant {i:05d}" for i in range(total)])
    return Stars(labels=known, flux=spectra[train], id=ids[train]), Stars(flux=spectra[test], id=ids[test]), truth


BANDS = {"G": 2.74, "BP": 3.38, "RP": 2.04, "J": 0.72, "H": 0.46, "Ks": 0.30}
"""Bands of `simulate_disk`, and extinction in them per E(B-V)."""
SUN = np.array([-8.2, 0.0, 0.0])
"""Galactocentric position of the Sun, kpc."""


class DiskTruth(NamedTuple):
    """distance (N,) in kpc; position (N, 3), Galactocentric, kpc, the Sun at `SUN`; labels (N, 4) as in `UNITS`."""

    distance: np.ndarray
    position: np.ndarray
    labels: np.ndarray


def simulate_disk(
    n_star: int = 2000, n_pixel: int = 200, *, seed: int = 0, zero_point: float = -0.04, limit: float = 13.5
) -> tuple[Stars, DiskTruth]:
    """Giants of a disk galaxy as seen from within: magnitudes, spectra, parallaxes of any sign, and the truth.

    The disk is exponential, of scale length 2.6 kpc and height 0.4 kpc; iron falls by 0.06 dex per kpc, dust grows with
    distance. Absolute magnitudes are linear in the labels with a scatter of 0.07 mag; ln flux is not.

    Args:
        n_star, n_pixel: their number, and that of the pixels of a spectrum.
        seed: same seed, same disk.
        zero_point: of the parallaxes, mas: measured - true.
        limit: faintest H magnitude seen.

    Example:
        >>> from bayeslabels.simulate import simulate_disk
        >>> stars, truth = simulate_disk(500, 40)
        >>> print(tuple(stars.blocks), bool((stars["parallax"].value < 0).any()))
        ('magnitudes', 'flux', 'parallax') True
    """
    if min(n_star, n_pixel) < 1:
        raise bad_input(f"n_star={n_star}, n_pixel={n_pixel}", "at least 1 each")
    rng = np.random.default_rng(seed)
    many = 12 * n_star + 100
    radius, angle = rng.gamma(2.0, 2.6, many), rng.uniform(-np.pi, np.pi, many)
    height = rng.laplace(0.0, 0.4, many)
    position = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1)
    distance = np.linalg.norm(position - SUN, axis=1)
    physical = _giants(many, rng)
    gradient = -0.06 * (radius - 8.2)
    physical[:, 2] = np.clip(physical[:, 2] + gradient, -1.0, 0.5)
    physical[:, 0] -= 330 * gradient
    teff, logg, iron, _ = physical.T
    cool = (teff - 4600) / 500
    absolute = -1.6 + 2.2 * (logg - 2.45) - 0.5 * cool - 0.15 * iron + rng.normal(0, 0.07, many)
    colours = np.stack([2.0 - 0.55 * cool, 2.7 - 0.8 * cool, 1.3 - 0.4 * cool, 0.7 - 0.2 * cool, 0.1 - 0.04 * cool], 1)
    dust = 0.08 * distance * np.exp(-np.abs(height) / 0.3) * rng.gamma(4.0, 0.25, many)
    true = (absolute + 5 * np.log10(100 * distance))[:, None] + np.column_stack([colours, np.zeros(many)])
    true += dust[:, None] * np.array(list(BANDS.values()))
    seen = np.flatnonzero(true[:, list(BANDS).index("H")] < limit)[:n_star]
    if len(seen) < n_star:
        raise bad_input(f"limit={limit}", "a limit at which enough stars are seen, such as 13.5")
    position, distance, physical, true = position[seen], distance[seen], physical[seen], true[seen]
    wavelength = START * np.exp(STEP * np.arange(n_pixel))
    noise = 1 / (100 * np.exp(0.3 * rng.standard_normal((n_star, 1))))
    flux = _spectra(physical, wavelength)
    flux = flux + noise * rng.standard_normal(flux.shape)
    error = 0.025 * 10 ** (0.2 * np.maximum(true[:, 0] - 14.0, 0)) * np.exp(0.2 * rng.standard_normal(n_star))
    parallax = 1 / distance + zero_point + error * rng.standard_normal(n_star)
    stars = Stars(
        magnitudes=Block(true + 0.02 * rng.standard_normal(true.shape), 0.02, names=tuple(BANDS), unit="mag"),
        flux=Block(flux, np.broadcast_to(noise, flux.shape), coords={"pixel": wavelength}),
        parallax=Block(parallax, error, unit="mas"),
        id=np.array([f"giant {i:05d}" for i in range(n_star)]),
    )
    return stars, DiskTruth(distance, position, physical)


def _per_label(given: Sequence[float] | None, default: Sequence[float] | np.ndarray, what: str) -> np.ndarray:
    values = np.asarray(default if given is None else given, float)
    if values.shape != (len(default),) or not (values >= 0).all():
        raise bad_input(f"{what}={given}", f"{len(default)} numbers >= 0, one per label")
    return values


def _giants(n: int, rng: np.random.Generator) -> np.ndarray:
    """Labels (n, 4) along the red-giant branch and in the red clump; metal-poor giants are hotter."""
    clump = rng.uniform(size=n) < 0.3
    logg = np.where(clump, rng.normal(2.45, 0.08, n), 0.9 + 2.4 * rng.beta(1.6, 1.3, n))
    iron = np.clip(-0.1 + 0.2 * rng.standard_normal(n) - 0.12 * rng.exponential(size=n), -0.9, 0.45)
    teff = 4580 + 420 * (logg - 2.1) - 60 * (logg - 2.1) ** 2 - 330 * (iron + 0.2) + 110 * clump
    magnesium = np.clip(0.03 - 0.22 * iron + 0.06 * rng.standard_normal(n), -0.15, 0.45)
    return np.stack([teff + 60 * rng.standard_normal(n), logg, iron, magnesium], 1)


class Lines(NamedTuple):
    """The absorption lines of the simulated spectra, (J,) each.

    centre, width: of the Gaussian profile, Angstrom; strength: log10 of the central optical depth at `TYPICAL`;
    deepest: depth of a saturated line, of 1; excitation: of the lower level, eV; ionised: of an ion, else of a neutral
    atom; magnesium: of magnesium, else of iron.
    """

    centre: np.ndarray
    width: np.ndarray
    strength: np.ndarray
    deepest: np.ndarray
    excitation: np.ndarray
    ionised: np.ndarray
    magnesium: np.ndarray


def line_list(n_pixel: int) -> Lines:
    """The lines in spectra of so many pixels, the same in every survey.

    Example:
        >>> import bayeslabels as bl
        >>> lines = bl.simulate.line_list(500)
        >>> len(lines[0]) > 10
        True
    """
    rng = np.random.default_rng(42)
    n_line = max(6, n_pixel // 4)
    centre = START * np.exp(STEP * rng.uniform(-3, n_pixel + 3, n_line))
    return Lines(
        centre,
        width=centre * STEP * rng.uniform(1.2, 1.7, n_line),
        strength=rng.normal(-0.2, 0.35, n_line),
        deepest=rng.uniform(0.2, 0.7, n_line),
        excitation=rng.uniform(0.0, 5.0, n_line),
        ionised=rng.uniform(size=n_line) < 0.3,
        magnesium=rng.uniform(size=n_line) < 0.12,
    )


def _spectra(physical: np.ndarray, wavelength: np.ndarray) -> np.ndarray:
    """Normalised flux (n, L): the product of the transmissions of all lines.

    A neutral metal line of excitation chi follows 10^(0.5 (5 - chi) (theta - theta_0)) with theta = 5040 K / Teff, an
    ionised one g^(-1/3): the electron pressure of a cool giant goes as g^(1/3).
    """
    lines = line_list(len(wavelength))
    teff, logg, iron, mg = physical.T[..., None]
    cool = 5040 / teff - 5040 / TYPICAL["TEFF"]
    slope = np.where(lines.ionised, -0.35 * lines.excitation, 0.5 * (5.0 - lines.excitation))
    pressure = np.where(lines.ionised, -1 / 3, 0.06) * (logg - TYPICAL["LOGG"])
    abundance = 0.65 * (iron - TYPICAL["FE_H"] + lines.magnesium * (mg - TYPICAL["MG_FE"]))
    tau = 10 ** (lines.strength + abundance + slope * cool + pressure)
    depth = lines.deepest * tau / (1 + tau)
    profile = np.exp(-0.5 * ((wavelength - lines.centre[:, None]) / lines.width[:, None]) ** 2)
    return np.exp(np.log1p(-depth) @ profile)


class PhotometryTruth(NamedTuple):
    """labels (N, 3): TEFF [K], LOGG, FE_H; distance [kpc], reddening [mag] (N,); absolute_magnitudes and
    reddening_vector (N, B)."""

    labels: np.ndarray
    distance: np.ndarray
    reddening: np.ndarray
    absolute_magnitudes: np.ndarray
    reddening_vector: np.ndarray


def simulate_photometry(
    n_star: int = 2000,
    bands: Sequence[str] = ("G", "BP", "RP", "J", "H", "Ks"),
    *,
    seed: int = 0,
    parallax_error: float = 0.04,
    label_error: Sequence[float] = (60.0, 0.08, 0.06),
    magnitude_error: float = 0.02,
    luminosity_scatter: float = 0.1,
    missing: float = 0.05,
    length: float = 1.35,
) -> tuple[Stars, PhotometryTruth]:
    """Dwarfs and giants behind dust: labels, magnitudes, parallaxes and reddening, all with errors; and the truth.

    Luminosities are those of one solar mass with the labels' Teff and logg, colours those of black bodies, bluer where
    metals are rare.

    Args:
        bands: of `astro.extinction.PASSBANDS`.
        parallax_error: median error [mas]; stars differ by 40 per cent. label_error: TEFF [K], LOGG, FE_H.
        luminosity_scatter: that all bands share, mag. missing: share of the magnitudes.
        length: of the exponential fall of the space density, kpc; all stars are seen, at any magnitude.

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> stars["magnitudes"].names
        ('G', 'BP', 'RP', 'J', 'H', 'Ks')
    """
    if n_star < 1 or not set(bands) <= set(PASSBANDS):
        raise bad_input(f"n_star={n_star}, bands={tuple(bands)}", f"at least 1, and some of {tuple(PASSBANDS)}")
    rng = np.random.default_rng([seed, 31])
    labels = _dwarfs_and_giants(n_star, rng)
    absolute, vector = _magnitudes(labels, tuple(bands))
    distance = rng.gamma(3.0, length, n_star)
    reddening = 0.15 * rng.exponential(size=n_star)
    modulus = 10 + 5 * np.log10(distance)
    shared = luminosity_scatter * rng.standard_normal(n_star)
    m = absolute + (modulus + shared)[:, None] + reddening[:, None] * vector
    m = m + magnitude_error * rng.standard_normal(m.shape)
    gone = rng.random(m.shape) < missing
    gone[:, 0] = False
    of_parallax = parallax_error * np.exp(0.4 * rng.standard_normal(n_star))
    of_labels = np.asarray(label_error, float) * np.exp(0.3 * rng.standard_normal((n_star, 3)))
    of_reddening = 0.02 + 0.1 * reddening
    stars = Stars(
        labels=Block(labels + of_labels * rng.standard_normal(labels.shape), of_labels,
                     names=("TEFF", "LOGG", "FE_H"), unit=("K", "dex", "dex")),
        magnitudes=Block(np.where(gone, np.nan, m), np.full(m.shape, magnitude_error), names=bands, unit="mag"),
        parallax=Block(1 / distance + of_parallax * rng.standard_normal(n_star), of_parallax, unit="mas"),
        reddening=Block(reddening + of_reddening * rng.standard_normal(n_star), of_reddening, unit="mag"),
    )  # fmt: skip
    return stars, PhotometryTruth(labels, distance, reddening, absolute, vector)


def _dwarfs_and_giants(n: int, rng: np.random.Generator) -> np.ndarray:
    """TEFF, LOGG, FE_H (N, 3) along a main sequence and a giant branch."""
    giant = rng.random(n) < 0.35
    metals = np.where(giant, -0.35, -0.15) + 0.3 * rng.standard_normal(n)
    teff = np.where(giant, rng.normal(4700, 250, n), rng.normal(5600, 550, n)) - 60 * metals
    branch = 2.5 + 0.0022 * (teff - 4750) + 0.35 * metals
    sequence = 4.55 - 0.00025 * (teff - 5000) - 0.1 * metals
    logg = np.where(giant, branch + 0.15 * rng.standard_normal(n), sequence + 0.06 * rng.standard_normal(n))
    return np.stack([teff, logg, metals], 1)


def _magnitudes(labels: np.ndarray, bands: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Absolute magnitudes and reddening vectors (N, B)."""
    teff, logg, metals = (x[:, None] for x in labels.T)
    wave = np.array([PASSBANDS[b][0] for b in bands])
    bolometric = 4.74 + 2.5 * (logg - 4.44) - 10 * np.log10(teff / 5772)
    of_sun = np.log(wave**-5 / np.expm1(14388 / (wave * 5772)) / 5772.0**4)
    colour = -2.5 / np.log(10) * (np.log(wave**-5 / np.expm1(14388 / (wave * teff)) / teff**4) - of_sun)
    absolute = bolometric + colour + 0.12 * metals * (0.52 / wave) ** 3
    vector = 3.1 * extinction_law(wave) * (1 + 0.06 * (teff - 5500) / 1000 * (0.52 / wave))
    return absolute, vector


def simulate_xp(
    n_star: int = 2000,
    *,
    n_pixel: int = 61,
    bands: Sequence[str] = ("J", "H", "Ks", "W1", "W2"),
    seed: int = 0,
    snr: float = 100.0,
    scatter: float = 0.003,
    label_error: Sequence[float] = (60.0, 0.08, 0.06),
    parallax_error: float = 0.04,
) -> tuple[Stars, PhotometryTruth]:
    """Spectra of low resolution and magnitudes of dwarfs and giants behind dust, as Gaia XP beside 2MASS and WISE.

    Black bodies with lines that follow Teff, log g and [Fe/H]; fluxes in W / (m2 nm), with covariances between
    neighbouring pixels, sampled at 392 to 992 nm (`coords["wavelength"]`).

    Args:
        n_pixel: of the spectra. bands: of `astro.extinction.PASSBANDS`.
        snr: median per pixel; stars and pixels differ. scatter: of every pixel about the function of the labels, mag.
        label_error: typical, TEFF [K], LOGG, FE_H. parallax_error: median, mas.

    Returns:
        The stars, with labels, magnitudes, spectrum, parallax and reddening; and the truth, of magnitudes and then
        pixels, whose absolute magnitudes are -2.5 log10 of the flux at 10 pc.

    Example:
        >>> from bayeslabels.simulate import simulate_xp
        >>> stars, truth = simulate_xp(100, n_pixel=21)
        >>> stars["spectrum"].value.shape, truth.reddening_vector.shape
        ((100, 21), (100, 26))
    """
    if n_star < 1 or n_pixel < 2 or not set(bands) <= set(PASSBANDS):
        raise bad_input(f"n_star={n_star}, n_pixel={n_pixel}, bands={tuple(bands)}",
                        f"at least 1, at least 2, and some of {tuple(PASSBANDS)}")  # fmt: skip
    rng = np.random.default_rng([seed, 37])
    labels = _dwarfs_and_giants(n_star, rng)
    of_bands, vector = _magnitudes(labels, tuple(bands))
    wave = np.linspace(0.392, 0.992, n_pixel)
    teff, logg, metals = (x[:, None] for x in labels.T)
    radiance = wave**-5 / np.expm1(14388 / (wave * teff)) / teff**4
    lines = np.random.default_rng(5)
    centre, width = lines.uniform(0.38, 1.0, 12), lines.uniform(0.008, 0.03, 12)
    depth = lines.uniform(0.05, 0.35, 12) * (0.7 / (0.4 + centre))
    trend = lines.normal(size=(3, 12)) * [[0.25], [0.25], [0.5]]
    trend[2] = np.abs(trend[2])
    strength = np.exp((teff - 5200) / 1000 * trend[0] + (logg - 3.5) / 1.5 * trend[1] + metals * trend[2])
    profile = np.exp(-0.5 * ((wave - centre[:, None]) / width[:, None]) ** 2)
    bolometric = 4.74 + 2.5 * (logg - 4.44) - 10 * np.log10(teff / 5772)
    spectra = bolometric - 2.5 * np.log10(radiance) + 1.086 * (depth * strength) @ profile
    spectra = spectra - np.median(spectra) + 33.0
    curve = np.broadcast_to(3.1 * extinction_law(wave), spectra.shape)
    absolute, vector = np.concatenate([of_bands, spectra], 1), np.concatenate([vector, curve], 1)
    distance = rng.gamma(3.0, 0.6, n_star)
    reddening = 0.2 * rng.exponential(size=n_star)
    shared = (10 + 5 * np.log10(distance) + 0.1 * rng.standard_normal(n_star))[:, None]
    m = absolute + shared + reddening[:, None] * vector
    n = len(bands)
    flux = 10 ** (-0.4 * (m[:, n:] + scatter * rng.standard_normal(spectra.shape)))
    faint = np.median(flux, 1, keepdims=True) / (snr * np.exp(0.4 * rng.standard_normal((n_star, 1))))
    apart = np.abs(np.arange(n_pixel)[:, None] - np.arange(n_pixel))
    factor = np.linalg.cholesky(np.exp(-0.5 * (apart / 1.5) ** 2) + 0.05 * np.eye(n_pixel))
    covariance = faint[:, :, None] ** 2 * (factor @ factor.T)
    of_labels = np.asarray(label_error, float) * np.exp(0.3 * rng.standard_normal((n_star, 3)))
    of_parallax = parallax_error * np.exp(0.4 * rng.standard_normal(n_star))
    of_reddening = 0.02 + 0.1 * reddening
    stars = Stars(
        labels=Block(labels + of_labels * rng.standard_normal(labels.shape), of_labels,
                     names=("TEFF", "LOGG", "FE_H"), unit=("K", "dex", "dex")),
        magnitudes=Block(m[:, :n] + 0.02 * rng.standard_normal((n_star, n)), 0.02, names=bands, unit="mag"),
        spectrum=Block(flux + faint * (rng.standard_normal(flux.shape) @ factor.T), covariance, unit="W / (m2 nm)",
                   coords={"wavelength": 1000 * wave}),
        parallax=Block(1 / distance + of_parallax * rng.standard_normal(n_star), of_parallax, unit="mas"),
        reddening=Block(reddening + of_reddening * rng.standard_normal(n_star), of_reddening, unit="mag"),
    )  # fmt: skip
    return stars, PhotometryTruth(labels, distance, reddening, absolute, vector)
