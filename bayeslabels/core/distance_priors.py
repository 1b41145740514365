"""Priors of a star's distance. Each is bound to stars, `prior.at(stars)`, which gives p(mu) with a row for every star.

What is bound is a pytree of arrays whose first axis is that of the stars, so that a star's prior goes with its data
through batches, minibatches and the programs that are compiled for them.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ..astro.galaxy import R_SUN, Z_SUN, galactic, place_of
from ..data.stars import Stars
from ..errors import bad_input
from ..numerics.along import coefficients, spline
from ..numerics.dusty import LN10_5
from ..numerics.linalg import Array, module_of


class DistancePrior(ABC):
    """A prior of the distance modulus; `blocks`: those of the stars that it reads."""

    blocks: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def at(self, stars: Stars) -> Any:
        """p(mu) of N stars: `log_density(mu)`, `slopes(mu)` and `distribution()`, arrays with a row per star."""

    def check(self, stars: Stars) -> None:
        """Refuse stars whose blocks it cannot read; by default it reads none."""
        return


def _each(prior: Any, n: int) -> Any:
    return jax.tree.map(lambda x: np.full(n, x, float), prior)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NormalModulus(DistancePrior):
    """Distance modulus mu ~ N(mean, sd^2), mag. Wide, it says next to nothing of the distance.

    Example:
        >>> import bayeslabels as bl
        >>> round(float(bl.priors.NormalModulus(10.0, 5.0).log_density(10.0)), 2)
        -2.53
    """

    mean: float = 10.0
    sd: float = 5.0

    def at(self, stars: Stars) -> NormalModulus:
        return _each(self, len(stars))

    def log_density(self, mu: Array) -> Array:
        return -0.5 * ((mu - self.mean) / self.sd) ** 2 - jnp.log(self.sd) - 0.5 * float(np.log(2 * np.pi))

    def slopes(self, mu: Array) -> tuple[Array, Array]:
        """d ln p / dmu and -d^2 ln p / dmu^2."""
        return (self.mean - mu) / self.sd**2, self.sd**-2 + 0 * mu

    def distribution(self) -> dist.Distribution:
        return dist.Normal(self.mean, self.sd)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExponentialDisk(DistancePrior):
    """Distances d [kpc] ~ d^2 exp(-d / length): a space density that falls exponentially with distance from the Sun.

    The simplest prior that knows of the growing volume and of the Galaxy's end (Bailer-Jones 2015, eq. 17).

    Example:
        >>> import bayeslabels as bl
        >>> bl.Photometry(distance_prior=bl.priors.ExponentialDisk(1.0)).distance_prior
        ExponentialDisk(length=1.0)
    """

    length: float = 1.35

    def at(self, stars: Stars) -> ExponentialDisk:
        return _each(self, len(stars))

    def log_density(self, mu: Array) -> Array:
        """Density of the distance modulus, mag: p(mu) = p(d) dd / dmu."""
        ln_d = (mu - 10) * LN10_5
        return 3 * ln_d - jnp.exp(ln_d) / self.length + jnp.log(0.5 * LN10_5 / self.length**3)

    def slopes(self, mu: Array) -> tuple[Array, Array]:
        """d ln p / dmu and -d^2 ln p / dmu^2."""
        d = jnp.exp((mu - 10) * LN10_5) / self.length
        return LN10_5 * (3 - d), LN10_5**2 * d

    def distribution(self) -> dist.Distribution:
        to_modulus = [
            dist.transforms.ExpTransform().inv,
            dist.transforms.AffineTransform(10.0, 1 / LN10_5, domain=dist.constraints.real),
        ]
        return dist.TransformedDistribution(dist.Gamma(3.0, 1 / self.length), to_modulus)


FIRST, STEP, KNOTS = -4.0, 0.25, 121
"""Distance moduli at which a prior along the line of sight is tabled: 1.6 pc to 1.6 Mpc. A cusp of the density is
rounded off within 12 per cent of its distance."""
FINE = 5
"""Parts of a step, over which a density is summed."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tabled:
    """ln p(mu) of stars as a cubic spline, `table` (..., K + 2) its coefficients; straight beyond the ends."""

    table: Array
    first: Array
    step: Array

    @classmethod
    def of(cls, log_density: Array) -> Tabled:
        """From ln p (N, KNOTS) at the knots, up to a constant: the density is normalised."""
        xp = module_of(log_density)
        rows = coefficients(log_density)
        fine = np.linspace(0, KNOTS - 1, FINE * (KNOTS - 1) + 1)
        i = np.minimum(fine.astype(int), KNOTS - 2)
        f = fine - i
        taps = [(1 - f) ** 3, 4 - 6 * f**2 + 3 * f**3, 1 + 3 * f + 3 * f**2 - 3 * f**3, f**3]
        matrix = np.zeros((KNOTS + 2, len(fine)))
        for j, tap in enumerate(taps):
            matrix[i + j, np.arange(len(fine))] += tap / 6
        on_grid = rows @ xp.asarray(matrix)
        top = on_grid.max(-1, keepdims=True)
        total = xp.log(xp.exp(on_grid - top).sum(-1, keepdims=True) * STEP / FINE) + top
        n = rows.shape[:-1]
        return cls(rows - total, np.full(n, FIRST), np.full(n, STEP))

    def log_density(self, mu: Array) -> Array:
        return spline(self.table, self.first, self.step, mu)[0]

    def slopes(self, mu: Array) -> tuple[Array, Array]:
        """d ln p / dmu and -d^2 ln p / dmu^2."""
        _, first, second = spline(self.table, self.first, self.step, mu)
        return first, -second

    def distribution(self) -> dist.Distribution:
        return TabledModulus(self)


class TabledModulus(dist.Distribution):
    """The distribution of distance moduli whose log density is tabled."""

    support = dist.constraints.real
    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, table: Tabled):
        self.tabled = table
        super().__init__(batch_shape=jnp.shape(table.first), validate_args=False)

    def log_prob(self, value: Array) -> Array:
        return self.tabled.log_density(value)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """At the cumulative probabilities of a fine grid, straight between."""
        n = FINE * (KNOTS - 1) + 1
        grid = FIRST + STEP / FINE * jnp.arange(n, dtype=float)
        density = jnp.exp(self.log_prob(grid.reshape(-1, *[1] * len(self.batch_shape))))
        density = jnp.broadcast_to(density, (n, *self.batch_shape)).reshape(n, -1).T
        cumulative = jnp.cumsum(0.5 * (density[:, 1:] + density[:, :-1]), 1)
        cumulative = jnp.pad(cumulative, ((0, 0), (1, 0))) / cumulative[:, -1:]
        uniform = jax.random.uniform(key, (*sample_shape, *self.batch_shape))
        flat = uniform.reshape(-1, len(density)).T
        drawn = jax.vmap(lambda u, c: jnp.interp(u, c, grid))(flat, cumulative)
        return drawn.T.reshape(uniform.shape)


@dataclass(frozen=True)
class Galaxy(DistancePrior):
    """Distances of the Galaxy's stars along the line of sight of each star.

        p(mu | l, b) ~ d^3 rho(R, z)
        rho = thin + thick + halo, of the density near the Sun
        thin  = (1 - thick_share - halo_share) exp(-(R - R_0) / thin_length - (|z| - z_0) / thin_height)
        thick = thick_share exp(-(R - R_0) / thick_length - (|z| - z_0) / thick_height)
        halo  = halo_share (r / R_0)^-halo_slope, and steeper, with halo_outer_slope, beyond halo_break
        r^2   = R^2 + (z / halo_axis)^2 + core^2

    R_0 = 8.2 kpc, z_0 = 25 pc. Lengths and heights in kpc. The block `sky` of the stars says where they are: columns
    `l` and `b`, or `ra` and `dec` (ICRS), in degrees, without errors. A star without coordinates has the mean of all
    directions, each with its stars.

    Source: Juric et al. 2008 (ApJ 673, 864), table 10, values freed of bias; the Sun's place, and the break and the
    outer slope of the halo, from Bland-Hawthorn & Gerhard 2016 (ARA&A 54, 529), section 6.1. There is no bulge: within
    3 kpc of the centre the density is too small.

    Example:
        >>> import numpy as np
        >>> import bayeslabels as bl
        >>> sky = bl.Block([[0.0, 0.0], [0.0, 90.0]], names=("l", "b"), unit="deg")
        >>> bound = bl.priors.Galaxy().at(bl.Stars(sky=sky))
        >>> slopes = bound.slopes(np.array([13.0, 13.0]))[0]  # at 4 kpc: towards the centre, and the pole
        >>> [round(float(x), 1) for x in slopes]
        [2.1, 0.4]
    """

    blocks: ClassVar[tuple[str, ...]] = ("sky",)

    thin_length: float = 2.6
    thin_height: float = 0.3
    thick_length: float = 3.6
    thick_height: float = 0.9
    thick_share: float = 0.107
    halo_slope: float = 2.77
    halo_axis: float = 0.64
    halo_share: float = 0.0046
    halo_break: float = 25.0
    halo_outer_slope: float = 4.2

    def __post_init__(self) -> None:
        for name in (x.name for x in dataclasses.fields(self)):
            if not getattr(self, name) > 0:
                raise bad_input(f"Galaxy({name}={getattr(self, name)!r})", "a number > 0", fix="priors.Galaxy()")
        if not self.thick_share + self.halo_share < 1:
            raise bad_input(f"thick_share={self.thick_share}, halo_share={self.halo_share}", "shares of 1")
        if not self.halo_outer_slope > 3:
            raise bad_input(f"halo_outer_slope={self.halo_outer_slope}", "a slope > 3, or there is no end to the stars")

    def density(self, r: Array, z: Array, xp: Any = np) -> Array:
        """Stars per volume, that at the Sun being 1, at R and z, kpc."""
        off, above = r - R_SUN, xp.abs(z) - Z_SUN
        thin = 1 - self.thick_share - self.halo_share
        out = thin * xp.exp(-off / self.thin_length - above / self.thin_height)
        out = out + self.thick_share * xp.exp(-off / self.thick_length - above / self.thick_height)
        far = xp.sqrt(r**2 + (z / self.halo_axis) ** 2 + CORE**2)
        inner = xp.minimum(far, self.halo_break)
        halo = (inner / R_SUN) ** -self.halo_slope * (far / inner) ** -self.halo_outer_slope
        return out + self.halo_share * halo

    def log_along(self, longitude: Array, latitude: Array, mu: Array, xp: Any = np) -> Array:
        """ln d^3 rho at distance moduli mu in directions (l, b) [deg], broadcast; not normalised."""
        ln_d = (mu - 10) * LN10_5
        return 3 * ln_d + xp.log(self.density(*place_of(longitude, latitude, xp.exp(ln_d), xp), xp))

    def at(self, stars: Stars) -> Tabled:
        mu, (longitude, latitude, known) = FIRST + STEP * np.arange(KNOTS), directions(stars)
        xp = module_of(longitude)
        every = self.log_along(_LONGITUDES, _LATITUDES, mu[:, None])
        top = every.max(1)
        of_all = np.log(np.exp(every - top[:, None]).mean(1)) + top
        own = self.log_along(longitude[:, None], latitude[:, None], mu, xp)
        return Tabled.of(xp.where(known[:, None], own, of_all))

    def check(self, stars: Stars) -> None:
        directions(stars)


CORE = 0.5
"""Within so many kpc of its centre the halo's density stays what it is."""
_LONGITUDES = np.repeat(7.5 + 15 * np.arange(24), 48)
_LATITUDES = np.tile(np.rad2deg(np.arcsin((np.arange(48) + 0.5) / 24 - 1)), 24)
"""Directions [deg], spread evenly over the sky."""


def directions(stars: Stars) -> tuple[Array, Array, Array]:
    """Galactic longitude and latitude [deg] of stars (N,), and whether they are known."""
    if "sky" not in stars:
        n = len(stars)
        return np.zeros(n), np.zeros(n), np.zeros(n, bool)
    block = stars["sky"]
    names = tuple(x.lower() for x in block.names or ())
    if block.n_dim != 2 or not any(set(names) == set(pair) for pair in (("l", "b"), ("ra", "dec"))):
        raise bad_input(
            f"a block sky with the columns {block.names or block.n_dim}", "'l' and 'b', or 'ra' and 'dec', in degrees",
            fix='sky=Block(np.column_stack([l, b]), names=("l", "b"), unit="deg")',
        )  # fmt: skip
    if wrong := set(block.units) - {"deg", ""}:
        raise bad_input(f"a block sky in {sorted(wrong)}", "degrees", fix='Block(..., unit="deg")')
    value, _, observed = block.filled()
    first, second = (value[:, names.index(x)] for x in (("l", "b") if "l" in names else ("ra", "dec")))
    if isinstance(second, np.ndarray) and (np.abs(second) > 90).any():
        which = names[names.index("b" if "b" in names else "dec")]
        raise bad_input(f"{which} = {second[np.abs(second) > 90][0]:g}", "-90 to 90 degrees", "columns swapped")
    longitude, latitude = (first, second) if "l" in names else galactic(first, second, module_of(first))
    return longitude, latitude, observed.all(1)
