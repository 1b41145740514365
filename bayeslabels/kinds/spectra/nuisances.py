"""What else varies from star to star beside the labels: known shapes of unknown size, integrated out of every spectrum.

flux_nl = theta_l . phi(u_n) + sum_q v_nq T_ql(spectrum of the star) + noise,   v_n ~ N(0, I)

A nuisance says what its templates T are, given the model's own spectrum. They are linear in it, so that they are known
once the coefficients are: T_ql = t_ql . phi(u_n) with t = an operator on theta. Named nuisances that mean something
(a velocity) are inferred and stand in the table of results.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...errors import bad_input
from ...numerics.by_value import ByValue

SPEED_OF_LIGHT = 299792.458
"""km/s."""
STENCIL = 7
"""Pixels from which a slope along the spectrum is taken."""


class Grid(Protocol):
    """What a nuisance may know of the pixels: their number, and their wavelengths, where these are known."""

    @property
    def n_pixel(self) -> int: ...
    @property
    def coordinate(self) -> np.ndarray | None: ...


@dataclass(frozen=True)
class Nuisance(ByValue, ABC):
    """Base of all nuisances: Q unknowns v ~ N(0, I) of every star, linear in its flux."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Columns (Q) of the result."""

    @property
    @abstractmethod
    def units(self) -> tuple[str, ...]:
        """Their units (Q)."""

    @property
    @abstractmethod
    def widths(self) -> np.ndarray:
        """(Q,): what v = 1 means, in these units; the prior sd."""

    @abstractmethod
    def shapes(self, grid: Grid, theta: np.ndarray) -> np.ndarray:
        """t (Q, L, K), flux: the change of the coefficients theta (L, K) for v = 1; of NumPy or JAX, as theta is."""


@dataclass(frozen=True)
class Continuum(Nuisance):
    """The spectrum times 1 + a smooth curve: sum_k a_k P_k(x), Legendre polynomials over the pixels.

    Args:
        sd: root mean square of the curve, relative: 0.01 for a continuum that is known to 1 per cent.
        degree: of the curve. It has degree + 1 terms with equal parts in the variance.

    Columns: continuum_0, continuum_1, ...: a_k.

    Example:
        >>> import bayeslabels as bl
        >>> bl.Cannon(nuisances=(bl.nuisances.Continuum(0.01),)).nuisances
        (Continuum(sd=0.01, degree=4),)
    """

    sd: float
    degree: int = 4

    def __post_init__(self) -> None:
        _positive("Continuum(sd=...)", self.sd, "Continuum(0.01)")
        if not (isinstance(self.degree, int) and 0 <= self.degree <= 50):
            raise bad_input(f"Continuum(degree={self.degree!r})", "a whole number from 0 to 50")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"continuum_{k}" for k in range(self.degree + 1))

    @property
    def units(self) -> tuple[str, ...]:
        return ("",) * (self.degree + 1)

    @property
    def widths(self) -> np.ndarray:
        k = np.arange(self.degree + 1)
        return self.sd * np.sqrt((2 * k + 1) / len(k))  # the mean square of P_k is 1 / (2 k + 1)

    def shapes(self, grid: Grid, theta: np.ndarray) -> np.ndarray:
        curves = np.polynomial.legendre.legvander(_place(grid), self.degree).T
        return (self.widths[:, None] * curves)[:, :, None] * theta


@dataclass(frozen=True)
class Velocity(Nuisance):
    """A shift of the spectrum: flux(lambda) becomes flux(lambda (1 - v / c)), to first order in v.

    Args:
        sd: of the velocities, km/s. First order holds while the shift is a fraction of a line's width.

    Needs the wavelengths of the pixels: a coordinate of the training stars' flux, whatever its name.
    Column: velocity, km/s, positive away from the observer.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, nuisances=(bl.nuisances.Velocity(1.0),), progress=False)
        >>> "velocity" in result.table().colnames
        True
    """

    sd: float

    def __post_init__(self) -> None:
        _positive("Velocity(sd=...)", self.sd, "Velocity(1.0)")

    @property
    def names(self) -> tuple[str, ...]:
        return ("velocity",)

    @property
    def units(self) -> tuple[str, ...]:
        return ("km / s",)

    @property
    def widths(self) -> np.ndarray:
        return np.array([self.sd])

    def shapes(self, grid: Grid, theta: np.ndarray) -> np.ndarray:
        if grid.coordinate is None:
            raise bad_input(
                "nuisances.Velocity for spectra without wavelengths", "the wavelength of every pixel",
                "training flux without a coordinate", 'Block(flux, error, coords={"wavelength": wavelength})',
            )  # fmt: skip
        near, weights = _slopes(np.log(grid.coordinate))
        weights = weights * (-self.sd / SPEED_OF_LIGHT)
        return (weights[:, :, None] * theta[near]).sum(1)[None]


@dataclass(frozen=True)
class Broadening(Nuisance):
    """Lines wider, or narrower, than those of the training stars: convolution with a Gaussian, to first order.

    Args:
        sd: prior sd of the Gaussian's sigma, in pixels. The unknown is sigma^2, which may be negative: lines that are
            narrower than in training.

    Column: broadening: sigma^2, pixel^2.

    Example:
        >>> import bayeslabels as bl
        >>> bl.Cannon(nuisances=(bl.nuisances.Broadening(0.5),)).nuisances
        (Broadening(sd=0.5),)
    """

    sd: float

    def __post_init__(self) -> None:
        _positive("Broadening(sd=...)", self.sd, "Broadening(0.5)")

    @property
    def names(self) -> tuple[str, ...]:
        return ("broadening",)

    @property
    def units(self) -> tuple[str, ...]:
        return ("pix2",)

    @property
    def widths(self) -> np.ndarray:
        return np.array([self.sd**2])

    def shapes(self, grid: Grid, theta: np.ndarray) -> np.ndarray:
        at = np.arange(grid.n_pixel)
        left, right = theta[np.maximum(at - 1, 0)], theta[np.minimum(at + 1, grid.n_pixel - 1)]
        return 0.5 * self.sd**2 * (left + right - 2 * theta)[None]


@dataclass(frozen=True)
class Templates(Nuisance):
    """Spectra of the user's own, added to the model's with unknown amplitudes: sky lines, interstellar bands.

    Args:
        array: (Q, L) or (L,), on the pixels of the training spectra.
        sd: prior sd of the amplitudes, a number or (Q,): flux units per unit of `array`.

    Columns: template_0, ...: the amplitudes.

    Example:
        >>> import numpy as np
        >>> import bayeslabels as bl
        >>> sky = np.zeros((1, 50))
        >>> sky[0, 20] = 1.0
        >>> bl.Cannon(nuisances=(bl.nuisances.Templates(sky, sd=0.1),)).nuisances[0].sd
        0.1
    """

    array: Any
    sd: Any

    def __post_init__(self) -> None:
        array = np.atleast_2d(np.asarray(self.array, float))
        if array.ndim != 2 or not np.isfinite(array).all():
            raise bad_input(f"Templates of shape {array.shape}", "finite numbers (Q, L)")
        sd = np.asarray(self.sd, float)
        if sd.shape not in ((), (len(array),)) or not (sd > 0).all():
            raise bad_input(f"Templates(sd={self.sd!r})", f"one sd > 0, or {len(array)}")
        object.__setattr__(self, "array", array)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"template_{q}" for q in range(len(self.array)))

    @property
    def units(self) -> tuple[str, ...]:
        return ("",) * len(self.array)

    @property
    def widths(self) -> np.ndarray:
        return np.broadcast_to(np.asarray(self.sd, float), (len(self.array),))

    def shapes(self, grid: Grid, theta: np.ndarray) -> np.ndarray:
        if self.array.shape[1] != grid.n_pixel:
            raise bad_input(
                f"Templates of {self.array.shape[1]} pixels", f"{grid.n_pixel}, as in training",
                "another wavelength grid", "bayeslabels.astro.spectra.resample(wavelength, flux, ivar, grid)",
            )  # fmt: skip
        constant = np.eye(theta.shape[1])[0]
        return (self.widths[:, None] * self.array)[:, :, None] * constant


def require_nuisances(nuisances: Any) -> tuple[Nuisance, ...]:
    """The nuisances of an argument; refuses what is none, and columns of one name."""
    if isinstance(nuisances, Nuisance):
        nuisances = (nuisances,)
    if not isinstance(nuisances, Sequence) or not all(isinstance(x, Nuisance) for x in nuisances):
        raise bad_input(
            f"nuisances={nuisances!r}", "a tuple of Continuum, Velocity, Broadening or Templates",
            fix="nuisances=(bayeslabels.nuisances.Continuum(0.01), bayeslabels.nuisances.Velocity(1.0))",
        )  # fmt: skip
    names = [name for x in nuisances for name in x.names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise bad_input(f"nuisances that share the names {twice}", "each kind once", fix="merge them into one")
    return tuple(nuisances)


def shapes_of(nuisances: Sequence[Nuisance], grid: Grid, theta: np.ndarray) -> np.ndarray:
    """t (Q, L, K) of one or more nuisances; pixels that were not trained, NaN in theta, lend nothing to their
    neighbours that these do not have themselves."""
    filled = _filled(theta)
    return np.concatenate([x.shapes(grid, filled) for x in nuisances])


def disturbance(v: np.ndarray, phi: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """What nuisances v (N, Q) of shapes (Q, L, K) add to spectra of features phi (N, K): sum_q v_nq t_ql . phi_n."""
    total = np.zeros((len(phi), shapes.shape[1]))
    for one, shape in zip(v.T, shapes, strict=True):
        total += one[:, None] * (phi @ shape.T)
    return total


def _positive(what: str, x: Any, fix: str) -> None:
    if isinstance(x, bool) or not isinstance(x, int | float | np.number) or not 0 < x < np.inf:
        raise bad_input(what.replace("...", repr(x)), "a number above 0", fix=fix)


def _place(grid: Grid) -> np.ndarray:
    """(L,): -1 to 1 along the pixels, by wavelength where it is known."""
    x = np.arange(grid.n_pixel) if grid.coordinate is None else np.log(grid.coordinate)
    return 2 * (x - x.min()) / max(np.ptp(x), 1e-300) - 1


def _filled(theta: np.ndarray) -> np.ndarray:
    """Coefficients (L, K) with those of pixels that were not trained interpolated, so that their neighbours keep a
    slope."""
    known, at = np.isfinite(theta).all(1), np.arange(len(theta))
    if known.all() or not known.any():
        return np.nan_to_num(theta)
    return np.stack([np.interp(at, at[known], column[known]) for column in theta.T], 1)


def _slopes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (L, S) near each one, and the weights (L, S) with which a function there gives its slope at x (L,).

    Exact for polynomials of degree S - 1, whatever the spacing (Fornberg 1988).
    """
    size = min(STENCIL, len(x))
    first = np.clip(np.arange(len(x)) - size // 2, 0, len(x) - size)
    near = first[:, None] + np.arange(size)
    offset = x[near] - x[:, None]
    unit = np.abs(offset).max(1, keepdims=True)
    powers = (offset / unit)[:, None, :] ** np.arange(size)[None, :, None]
    right = np.broadcast_to((np.arange(size) == 1).astype(float), (len(x), size))
    return near, np.linalg.solve(powers, right[..., None])[..., 0] / unit
