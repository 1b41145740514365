"""Dust-aware photometry: absolute magnitudes as functions of the labels, and the vector along which dust moves them.

magnitudes_n = M(u_n) + mu_n + A_n + noise               (Green+21, eq. 2)
A_n = E_n R(u_n) - w (E_n R(u_n))^2                      (eq. B30: broad bands bend)
ln R_b(u) = r_b + r'_b . u                               (section 2.1)
optionally R + x_n R_2 for R                             (eq. 20, E_2 = E x)
parallax_n = 10^((10 - mu_n) / 5) + zero + noise         (mas; any sign)

and what surveys and catalogues differ by: `systems`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import Distribution

from ...astro.extinction import band_bend
from ...core.collapsed import CollapsedModel
from ...core.own_priors import fitted
from ...core.priors import DistancePrior, Exponential, ExponentialDisk, LabelMixture, ReddeningPrior
from ...data.stars import Stars
from ...errors import bad_input
from ...numerics.dusty import (
    Others,
    Quadratic,
    centre_of,
    log_marginal,
    near,
    parallax_at,
    quadratic_and_rest,
    scattered,
)
from ...numerics.linalg import Array, after, constant
from ...numerics.network import Function, Network, Polynomial
from ...numerics.tangent import as_measured, bent_by_most, extinction
from ...numerics.two_vectors import log_marginal_of_both, second_vector
from ...numerics.whitening import Noise, noise_of
from . import luminosity, systems
from .blocks import check_blocks, check_frame, check_settings
from .frame import PhotometryFrame, frame_of
from .label_prior import density_of_moduli
from .rows import PhotometricData, measured, rows_of
from .scattered import Scattered
from .statistical import ChannelPart

STEP = float(np.sqrt(3.0))
"""In sd: at the mean and at so many sd to either side, a quadrature of third order in each direction of label space."""

FACTOR_SD = 0.03
"""Sd of the Normal prior of `scatter_factors`, mag."""
BEND_SD = 0.02, 0.002
"""Sd of the Normal prior of w, 1 / mag, about what a band's width predicts, and about 0 of a pixel, which is narrow."""


class PredictedMagnitudes(NamedTuple):
    """Absolute magnitudes (N, B), reddening vector (N, B), the directions (N, L, B) of their uncertainty, and the
    scatter in luminosity (N,)."""

    mean: Array
    vector: Array
    factors: Array
    luminosity: Array


@dataclass(frozen=True)
class Photometry(CollapsedModel[PhotometryFrame]):
    """Magnitudes in any bands from labels, distance and dust; and labels, distances and dust from magnitudes.

    ::

        magnitudes_n = M(u_n) + mu_n + A_n + noise,    A_n = E_n R(u_n) - w (E_n R(u_n))^2
        parallax_n   = 10^((10 - mu_n) / 5) + zero + noise

    ======== ============================ ===========================================================================
    symbol   site                         meaning, shape, unit
    ======== ============================ ===========================================================================
    M        ``weights``                  of the function from scaled labels to absolute magnitudes (B,), mag
    r        ``reddening_log``            (B,), ln of mag per mag of reddening at the median labels
    r'       ``reddening_slope``          (B, L), per unit of the scaled labels
    R_2      ``reddening_second``         (B,), with `dust_vectors=2`, at right angles to R, mag per mag of reddening
    F        ``scatter_factors``          (Q, B), with `scatter_rank=Q`: directions in which stars scatter about M, mag
    w        ``reddening_bend``           (B,), by how much extinction A falls short of growing with E: w A^2, 1 / mag
    s_b      ``scatter``                  (B,), of every band about M, mag
    s_M      ``luminosity_scatter``       that all bands share (ages, companions), at the median labels, mag
    c        ``luminosity_scatter_slope`` of ln s_M, linear and quadratic in the scaled labels
    f        ``outlier_fraction``         of stars whose magnitudes scatter by `outlier_width` in every band
    zero     ``zero_point``               of the parallaxes, measured less true, mas
    zero_c   ``catalogue_zero_point``     (C,), of the catalogues that the block `parallax_system` names, mas
    f_c      ``catalogue_error_factor``   (C,), of true errors of parallaxes over those stated
    delta_s  ``survey_offset``            (S - 1, L), labels of a survey less those of the reference, scaled
    u_n      ``u``                        (L,) a star's scaled labels ~ a mixture of Gaussians learned in training
    E_n      ``true_reddening``           its reddening ~ `reddening_prior`, mag
    x_n      ``reddening_variation``      of its extinction curve from the mean, in sd (as R_V is) ~ N(0, 1)
    mu_n     ``distance_modulus``         its distance modulus ~ `distance_prior`, mag
    ======== ============================ ===========================================================================

    Blocks, each optional star by star: `labels` (errors or covariances), `magnitudes` (bands named by their columns,
    NaN for a band that a star has not), `spectrum` (flux in pixels, of any unit and sign), both with errors or
    covariances, `parallax` [mas] (any sign, any S/N), `reddening` [mag] (from dust maps). Names star by star: `survey`
    of the labels, of which the most numerous is the reference, whose system all results are in; `parallax_system`, one
    of `astro.gaia.PARALLAX_SYSTEMS`, whose zero points and error factors are priors; none: the reference, and
    `zero_point` (`Block.of_names`). B counts the bands and after
    them the pixels, whose fluxes are 10^(-0.4 m) in units of `frame.flux_scale`; their R is the extinction curve. The
    length of R and all reddenings are degenerate but for the block `reddening`, whose unit R takes.

    Args:
        function: of labels to absolute magnitudes: "network", or "polynomial" of this `order`.
        width, depth: of the network's hidden layers.
        members: how many networks `MAP` trains. What they differ by widens the error bars of every star, and so does
            what each does not know of its last layer, R and w (from files: what networks of resamples differ by).
        dust_vectors: 1, or 2 for dust that differs between stars: the extinction is E (R + x R_2). In the test step x
            grows with R_V, of which stars have an estimate, `r_v`, where at least three bands are known.
        scatter_rank: Q, the number of directions in which all bands and pixels of a star scatter together, beside the
            scatter of each and that in luminosity: abundances, for one, in spectra.
        reddening_slope: sd of the Normal prior of r': R varies by a few per cent with Teff (Green+21, fig. 10).
        outliers, outlier_width: whether there are any, and their scatter, mag.
        zero_point: mean and sd of the zero point's Normal prior, mas; sd 0: fixed. Of parallaxes of no named system.
        survey_offset: sd of the Normal prior of delta, in units of each label's spread.
        parallax_error_factor: sd of the Normal prior of ln f_c.
        distance_prior: of the Galaxy's stars, not of the sample's. Where stars were selected by their magnitudes, the
            distances at given magnitudes are still those of the Galaxy; a prior that is flat in mu would make
            absolute magnitudes too faint by 1.4 times the variance in luminosity that parallaxes of low S/N leave.
            `priors.Galaxy` reads where stars are from the block `sky`. Or a distribution of NumPyro, of the modulus.
        reddening_prior: of E; exponential, with the mean of the training stars, by default; `priors.AlongSightline` for
            a map that says how E grows with distance. Or a distribution of NumPyro.
        label_prior: of the test step. "population": that of the training stars. "volume": that of all stars of a
            volume, which is the population freed of the training survey's selection by apparent magnitude. "cmd": flat
            in the colour-magnitude diagram where there are training stars. "flat": within twice the extent of the
            population. Or `priors.LabelMixture`, or a distribution of NumPyro of all labels together, in their units.
        components: Gaussians of the labels' population, at most.

    Source: Green, Rix, Tschesche et al. 2021 (arXiv:2006.16258). Departures: errors of the labels act through the true
    labels behind them, parallaxes of any S/N enter as parallaxes, E is never negative, outliers are a mixture.

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> model = bl.Photometry(function="polynomial", order=2, members=1)
        >>> posterior = bl.fit(model, stars, bl.MAP(max_iterations=20), progress=False)
        >>> result = bl.infer(posterior, stars[:20].drop("labels"), bl.MAP(), progress=False)
        >>> result.frame.names[:5]
        ('TEFF', 'LOGG', 'FE_H', 'reddening', 'distance_modulus')
    """

    function: Literal["network", "polynomial"] = "network"
    order: int = 3
    width: int = 32
    depth: int = 2
    members: int = 4  # type: ignore[assignment]
    dust_vectors: Literal[1, 2] = 1
    scatter_rank: int = 0
    reddening_slope: float = 0.05
    outliers: bool = True
    outlier_width: float = 0.5
    zero_point: tuple[float, float] = (0.0, 0.05)
    survey_offset: float = 0.3
    parallax_error_factor: float = 0.1
    distance_prior: DistancePrior | Distribution = field(default_factory=ExponentialDisk)
    reddening_prior: ReddeningPrior | Distribution = field(default_factory=Exponential)
    label_prior: Literal["population", "flat", "volume", "cmd"] | LabelMixture | Distribution = "population"
    components: int = 8

    exact_priors: ClassVar[dict[str, str]] = {
        "distance_prior": "priors.Galaxy, ExponentialDisk or NormalModulus",
        "reddening_prior": "priors.Exponential or AlongSightline",
    }
    global_sites: ClassVar[tuple[str, ...]] = (
        "weights",
        "reddening_log",
        "reddening_slope",
        "reddening_second",
        "reddening_bend",
        "scatter",
        "scatter_factors",
        "luminosity_scatter",
        "luminosity_scatter_slope",
        "outlier_fraction",
        "zero_point",
        *systems.SITES,
    )
    measured_blocks: ClassVar[tuple[str, ...]] = ("labels", "magnitudes", "spectrum", "parallax", "reddening")
    stored: ClassVar[tuple[type, ...]] = (PhotometryFrame,)

    @property
    def blocks(self) -> tuple[str, ...]:
        """What is measured of the stars, what it is from, and what their priors read."""
        named = ("survey", "parallax_system")
        return self.measured_blocks + named + tuple(name for prior in self.star_priors for name in prior.blocks)

    @property
    def star_priors(self) -> tuple[DistancePrior | ReddeningPrior, ...]:
        """The priors that may differ from star to star."""
        both = (self.distance_prior, self.reddening_prior)
        return tuple(x for x in both if isinstance(x, DistancePrior | ReddeningPrior))

    @property
    def widths(self) -> dict[str, int]:
        frame = self.require_frame()
        widths = {"magnitudes": self.n_magnitude, "spectrum": frame.n_flux}
        return {name: n for name, n in widths.items() if n}

    @property
    def n_magnitude(self) -> int:
        """Number of bands that are magnitudes."""
        frame = self.require_frame()
        return len(frame.bands) - frame.n_flux

    def __call__(self, stars: Stars, batch_size: int | None = None) -> Any:
        """The NumPyro program; each of `labels`, `magnitudes`, `parallax` and `reddening` is observed where present."""
        model = self.bound(stars)
        frame, theta = model.require_frame(), model.parameters()
        blocks, of_stars = model.measured(stars), systems.systems_of(frame, stars)
        with numpyro.plate("star", len(stars), subsample_size=batch_size) as rows:
            of = jax.tree.map(lambda x: constant(x)[rows], of_stars)
            u = numpyro.sample("u", systems.population(frame, theta, of))
            mu = numpyro.sample("distance_modulus", model.distance_distribution(stars, rows))
            e = numpyro.sample("true_reddening", model.reddening_distribution(stars, rows, mu))
            offset = model.luminosity(theta, u) * numpyro.sample("luminosity", dist.Normal(0.0, 1.0))
            vector = model.vector(theta, u)
            if model.dust_vectors == 2:
                x = numpyro.sample("reddening_variation", dist.Normal(0.0, 1.0))
                vector = vector + x[:, None] * second_vector(theta["reddening_second"], theta["reddening_log"])
            dimmed = extinction(e, vector, theta["reddening_bend"])
            m = model.absolute(theta["weights"], u) + (mu + offset)[:, None] + dimmed
            if model.scatter_rank:
                latent = dist.Normal(0.0, 1.0).expand([model.scatter_rank]).to_event(1)
                m = m + numpyro.sample("scatter_latent", latent) @ theta["scatter_factors"]
            seen = {name: tuple(constant(x)[rows] for x in block) for name, block in blocks.items()}
            model.sites(seen, u, m, mu, e, theta, of)

    def sites(
        self, seen: dict[str, Any], u: Array, m: Array, mu: Array, e: Array, theta: Mapping[str, Array],
        of: systems.Systems,
    ) -> None:  # fmt: skip
        """What is measured of the stars, about what is true of them."""
        frame, delta = self.require_frame(), systems.offset(theta, of)
        if "labels" in seen:
            value, covariance, observed = seen["labels"]
            scale = constant(frame.scale)
            true, both = frame.physical(u + delta), observed[:, :, None] & observed[:, None, :]
            value = jnp.where(observed, frame.physical(value), true)
            covariance = covariance * jnp.where(both, scale[:, None] * scale, 1.0)
            numpyro.sample("labels", dist.MultivariateNormal(true, covariance_matrix=covariance), obs=value)
        else:
            error = constant(frame.label_error)
            numpyro.sample("labels", dist.Normal(frame.physical(u + delta), error).to_event(1))
        wide = self.outlier_width if self.outliers else 0.0
        true, change = as_measured(m, self.n_magnitude)
        f, first = theta["outlier_fraction"], 0
        for name, n in self.widths.items():
            at = slice(first, first := first + n)
            typical = constant(frame.magnitude_error[at]) ** 2 + jnp.zeros_like(m[:, at])
            value, noise, observed = seen.get(name, (None, typical, jnp.ones_like(typical)))
            unit = frame.flux_scale if name == "spectrum" else 1.0
            own = Scattered(
                true[:, at], after(noise, f), theta["scatter"][at] ** 2, wide, f, observed, change[:, at], unit
            )
            got = numpyro.sample(name, own, obs=None if value is None else value * unit)
            f = own.outlier_given(got)  # the same star is one in both
        zero, factor = systems.zero_point(theta, of), systems.error_factor(theta, of)
        for name, true, error, times in (
            ("parallax", parallax_at(mu) + zero, frame.parallax_error, factor[..., None]),
            ("reddening", e, frame.reddening_error, 1.0),
        ):
            value, variance, observed = seen.get(name, (None, jnp.asarray(error) ** 2, None))
            measured = dist.Normal(true[:, None], times * jnp.sqrt(variance))
            measured = measured if observed is None else measured.mask(observed)
            numpyro.sample(name, measured.to_event(1), obs=value)

    def parameters(self) -> dict[str, Array]:
        f, (n_label, n_band) = self.net, self.shape
        out = {"weights": numpyro.sample("weights", dist.Normal(0.0, jnp.asarray(f.prior_sd)).to_event(1))}
        out["reddening_log"] = numpyro.sample("reddening_log", dist.Normal(0.0, 2.0).expand([n_band]).to_event(1))
        slope = dist.Normal(0.0, self.reddening_slope).expand([n_band, n_label]).to_event(2)
        out["reddening_slope"] = numpyro.sample("reddening_slope", slope)
        if self.dust_vectors == 2:
            out["reddening_second"] = numpyro.sample(
                "reddening_second", dist.Normal(0.0, 0.3).expand([n_band]).to_event(1)
            )
        if self.scatter_rank:
            factors = dist.Normal(0.0, FACTOR_SD).expand([self.scatter_rank, n_band]).to_event(2)
            out["scatter_factors"] = numpyro.sample("scatter_factors", factors)
        width = np.where(np.arange(n_band) < self.n_magnitude, *BEND_SD)
        bends = dist.Normal(constant(band_bend(self.require_frame().bands)), constant(width)).to_event(1)
        out["reddening_bend"] = numpyro.sample("reddening_bend", bends)
        out["scatter"] = numpyro.sample("scatter", dist.HalfNormal(0.05).expand([n_band]).to_event(1))
        out["luminosity_scatter"] = numpyro.sample("luminosity_scatter", dist.HalfNormal(0.3))
        widths = dist.Normal(0.0, constant(luminosity.prior_sd(n_label))).to_event(1)
        out["luminosity_scatter_slope"] = numpyro.sample("luminosity_scatter_slope", widths)
        out["outlier_fraction"] = jnp.zeros(())
        if self.outliers:
            out["outlier_fraction"] = numpyro.sample("outlier_fraction", dist.Beta(1.0, 20.0))
        mean, sd = self.zero_point
        out["zero_point"] = jnp.asarray(mean)
        if sd > 0:
            out["zero_point"] = numpyro.sample("zero_point", dist.Normal(mean, sd))
        return out | systems.parameters(self)

    @property
    def polished(self) -> dict[str, Any]:
        """All but the network's hidden layers."""
        sites = [name for name in self.global_sites if name != "weights"]
        sites = [name for name in sites if self.outliers or name != "outlier_fraction"]
        sites = [name for name in sites if self.zero_point[1] > 0 or name != "zero_point"]
        sites = [name for name in sites if self.dust_vectors == 2 or name != "reddening_second"]
        sites = [name for name in sites if self.scatter_rank or name != "scatter_factors"]
        sites = [name for name in sites if name not in systems.SITES or name in systems.start(self)]
        return {"weights": slice(self.net.linear), **dict.fromkeys(sites, ...)}

    @property
    def linear_part(self) -> ChannelPart:
        return ChannelPart(self)

    @cached_property
    def net(self) -> Function:
        n_label, n_band = self.shape
        if self.function == "polynomial":
            return Polynomial(n_label, n_band, self.order)
        return Network(n_label, n_band, self.width, self.depth)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of labels and bands."""
        frame = self.require_frame()
        return len(frame.names), len(frame.bands)

    def distance_distribution(self, stars: Stars, rows: Array) -> Distribution:
        """Prior of the distance moduli of some of the stars."""
        own = self.distance_prior
        if isinstance(own, Distribution):
            return fitted("distance_modulus", own, ())
        return jax.tree.map(lambda x: constant(x)[rows], own.at(stars)).distribution()

    def reddening_distribution(self, stars: Stars, rows: Array, mu: Array) -> Distribution:
        """Prior of the reddenings of some of the stars, whose distance moduli are mu."""
        own = self.reddening_prior
        if isinstance(own, Distribution):
            return fitted("true_reddening", own, ())
        bound = own.at(stars, self.require_frame().reddening_scale)
        return jax.tree.map(lambda x: constant(x)[rows], bound).distribution(mu)

    @property
    def reddening_scale(self) -> float:
        given = self.reddening_prior.scale if isinstance(self.reddening_prior, ReddeningPrior) else None
        return self.require_frame().reddening_scale if given is None else given

    def absolute(self, weights: Array, u: Array) -> Array:
        """M (..., B) of scaled labels u (..., L)."""
        frame = self.require_frame()
        dtype = u.dtype
        base, spread = jnp.asarray(frame.baseline, dtype), jnp.asarray(frame.spread, dtype)
        return base[0] + u @ base[1:] + self.net(weights, u) @ spread

    def vector(self, theta: Mapping[str, Array], u: Array) -> Array:
        """R (..., B) of scaled labels u (..., L)."""
        return jnp.exp(theta["reddening_log"] + u @ theta["reddening_slope"].T)

    def predicted(self, theta: Mapping[str, Array], data: PhotometricData) -> PredictedMagnitudes:
        """What the stars' labels, true ones integrated over, say of their magnitudes."""
        u, root = data.label_mean - systems.beyond(self.require_frame(), theta, data.systems), data.label_root
        either = jnp.concatenate([u[None], u + STEP * jnp.moveaxis(root, -1, 0), u - STEP * jnp.moveaxis(root, -1, 0)])
        m = self.absolute(theta["weights"], either)
        n_label = u.shape[-1]
        up, down = m[1 : 1 + n_label], m[1 + n_label :]
        mean = m[0] + (up + down - 2 * m[0]).sum(0) / (2 * STEP**2)
        vector = self.vector(theta, u)
        slope = jnp.moveaxis(up - down, 0, -2) / (2 * STEP)
        turned = jnp.einsum("bl,nlj->njb", theta["reddening_slope"], root)
        slope = slope + (data.reddening_guess[:, None] * vector)[:, None, :] * turned
        if self.scatter_rank:
            common = jnp.broadcast_to(theta["scatter_factors"], (len(u), self.scatter_rank, mean.shape[-1]))
            slope = jnp.concatenate([slope, common], 1)
        return PredictedMagnitudes(mean, vector, slope, self.luminosity(theta, u))

    def luminosity(self, theta: Mapping[str, Array], u: Array) -> Array:
        """s_M (...) of scaled labels u (..., L), mag."""
        return luminosity.luminosity_sd(theta["luminosity_scatter"], theta["luminosity_scatter_slope"], u)

    def others(self, theta: Mapping[str, Array], data: PhotometricData) -> Others:
        parallax = data.parallax - systems.zero_point(theta, data.systems)
        weight = data.parallax_weight / systems.error_factor(theta, data.systems)
        known = (weight, data.reddening, data.reddening_weight)
        return Others(parallax, *known, data.distance, data.dust)

    def seen_in(
        self, theta: Mapping[str, Array], data: PhotometricData, at: PredictedMagnitudes, wide: Array = 0.0
    ) -> Quadratic:
        """What the magnitudes say of modulus and reddening."""
        return scattered(self.linear(theta, data, at, wide)[0], at.luminosity)

    def linear(
        self,
        theta: Mapping[str, Array],
        data: PhotometricData,
        at: PredictedMagnitudes,
        wide: Array = 0.0,
        *more: Array,
    ) -> tuple[Quadratic, Array]:
        """`quadratic_and_rest`, without the scatter in luminosity, about where one step from a first estimate leads;
        more: reddening vectors besides R (N, B)."""
        x, bend = data.channels, theta["reddening_bend"]
        noise = noise_of(x.noise, (theta["scatter"] ** 2 + wide**2) * x.unit**2, x.seen)

        def about(
            at: PredictedMagnitudes, noise: Noise, bend: Array, mu: Array, e: Array, *more: Array
        ) -> tuple[Quadratic, Array]:
            value, change = as_measured(at.mean + mu[:, None] + extinction(e, at.vector, bend), self.n_magnitude)
            bends = change * (1 - 2 * bend * e[:, None] * at.vector)
            columns = [change, at.vector * bends, x.value - value, *(y * bends for y in more)]
            return quadratic_and_rest(jnp.stack(columns, -2), at.factors * change[:, None], noise, mu, e)

        # the slope of a flux goes with where it is taken, and that with theta; magnitudes are linear all along
        given = (at, noise, bend, theta)
        *fixed, known = jax.lax.stop_gradient(given) if self.n_magnitude == at.mean.shape[-1] else given
        e = data.reddening_guess
        bright = x.bright - fixed[0].mean - extinction(e, fixed[0].vector, fixed[2])
        mu = centre_of(bright, fixed[1].scaled(x.unit))
        mu, e = near(about(*fixed, mu, e)[0], self.others(known, data))
        return about(at, noise, bend, mu, bent_by_most(e, fixed[0].vector, fixed[2]), *more)

    def log_likelihood(self, theta: Mapping[str, Array], data: PhotometricData) -> Array:
        """ln p(magnitudes, parallax, reddening, labels | theta): the labels to third order about their mean given the
        catalogue's, all else exactly."""
        at, others = self.predicted(theta, data), self.others(theta, data)

        def density(wide: Array) -> Array:
            if self.dust_vectors == 1:
                return log_marginal(self.seen_in(theta, data, at, wide), others)
            second = jnp.broadcast_to(second_vector(theta["reddening_second"], theta["reddening_log"]), at.vector.shape)
            return log_marginal_of_both(*self.linear(theta, data, at, wide, second), at.luminosity, others)

        if not self.outliers:
            return density(0.0) + data.label_density
        good, bad = jax.vmap(density)(jnp.array([0.0, self.outlier_width], data.channels.unit.dtype))
        f = jnp.clip(theta["outlier_fraction"], 1e-9, 1 - 1e-6)
        return jnp.logaddexp(jnp.log1p(-f) + good, jnp.log(f) + bad) + data.label_density

    def measured(self, stars: Stars) -> dict[str, tuple[Array, Array, Array]]:
        """Value, variance or covariance, and mask of the stars' blocks; labels scaled, with covariances."""
        return measured(self, stars)

    def arrays(self, stars: Stars) -> PhotometricData:
        return rows_of(self, stars)

    def start(self, stars: Stars, seed: int) -> dict[str, np.ndarray]:
        frame, (n_label, n_band) = self.require_frame(), self.shape
        out: dict[str, np.ndarray] = {
            "weights": self.net.initial(seed),
            "reddening_log": np.log(frame.vector),
            "reddening_slope": np.zeros((n_band, n_label)),
            "scatter": np.full(n_band, 0.03),
            "luminosity_scatter": np.array(0.1),
            "luminosity_scatter_slope": np.zeros(luminosity.size(n_label)),
            "reddening_bend": band_bend(frame.bands),
        }
        if self.dust_vectors == 2:  # not 0, where the density is level
            out["reddening_second"] = 0.1 * np.random.default_rng([seed, 86028121]).standard_normal(n_band)
        if self.scatter_rank:
            rng = np.random.default_rng([seed, 67867967])
            out["scatter_factors"] = 0.01 * rng.standard_normal((self.scatter_rank, n_band))
        if self.outliers:
            out["outlier_fraction"] = np.array(0.02)
        if self.zero_point[1] > 0:
            out["zero_point"] = np.array(self.zero_point[0])
        return out | systems.start(self)

    def bind(self, stars: Stars) -> Self:
        for name, instead in (("labels", "labels"), ("magnitudes", "spectrum")):
            if name not in stars and instead not in stars:
                raise bad_input(
                    f"stars with the blocks {', '.join(stars.blocks)}", f"a block {name!r}, which training needs",
                    fix=f"Stars({name}=..., ...) or Stars.from_table(table, {name}=(...), {name}_error=(...))",
                )  # fmt: skip
        check_blocks(self, stars)
        moduli = density_of_moduli(self.distance_prior, stars)
        return self.replace(frame=dataclasses.replace(frame_of(self.components, stars), training_moduli=moduli))

    def __post_init__(self) -> None:
        check_settings(self)

    def check(self, stars: Stars) -> None:
        check_frame(self, stars)
