"""One survey's labels on another's scale: what is learned is the difference, and how well it is known.

y_n = x_n + f(x_n) + s(x_n) R^1/2 e_n,   e_n ~ Student-t_nu                    (Thomas+24 eq. 1; s, R and e are ours)
f = (f_intrinsic(x_intrinsic), f_extrinsic(x)), residual networks              (eq. 2-3, section 2.1)
labels_n = x_n + N(0, C_n),   target_labels_n = y_n + N(0, k C'_n k),   x_n ~ a mixture of Gaussians
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from ...core.collapsed import CollapsedModel
from ...data.stars import Stars
from ...errors import bad_input
from ...numerics.linalg import Array, beside, constant, is_traced, module_of
from ...numerics.mixture import Mixture
from ...numerics.network import Function, Network, Polynomial
from ...numerics.propagate import log_normal, propagate, propagated, scale_mixture
from .frame import EXACT, TARGET, TranslatorFrame, known_inputs, learn_frame, measured, plain_scatter, typical_error

FACTOR_SHARES, FACTOR_WIDTHS = (0.95, 0.05), (0.1, 2.0)
"""Prior of ln k: a mixture of N(0, width^2). Stated errors are right to a tenth, or may be wrong by any factor. Scatter
and noise of the target labels can then hardly be told apart, and the density, highest near k = 0, leaves what there is
to the scatter: to the star's own error."""
TOO_LARGE, REFUTED = 0.8, 0.1
"""Stated errors that exceed `plain_scatter` / 0.8 cannot be right; k then starts where they are a tenth of it."""
HELD = 512
"""Stars at a time of `Translator.held`."""
LN_SCATTER = np.log(0.5)
"""Where ln s starts, in units of the residuals' spread."""


class TranslatorData(NamedTuple):
    """What the likelihood takes, scaled: mean (N, D) of the true inputs and a root (N, D, R) of their covariance, given
    what is measured of them; outputs y (N, M) with noise (N, M, M), and which are observed (N, M)."""

    x: Array
    root: Array
    y: Array
    noise: Array
    observed: Array
    made: tuple[Array, Array] | None = None
    """What the inputs' uncertainty adds to the mean (N, 2 M) of `raw_outputs`, and its covariance (N, 2 M, 2 M); None:
    computed where it is needed."""


@dataclass(frozen=True)
class Translator(CollapsedModel[TranslatorFrame]):
    """Labels of survey A (with magnitudes, colours, ...) to labels of survey B, learned from stars in common.

    ::

        target_n = x_n + f(x_n) + s(x_n) R^1/2 e_n,    e_n ~ Student-t_nu

    ====== =================== ============================================================================
    symbol site                meaning, shape
    ====== =================== ============================================================================
    f      ``coefficients``    weights of the networks or polynomials, outputs in units of the residuals' spread
    s      ``scatter_weights`` weights of ln s(x), the intrinsic scatter of each output
    R      ``correlation``     Cholesky factor (M, M) of the correlation of the scatter
    nu     ``freedom``         degrees of freedom of the scatter
    k      ``error_factor``    factor (M,) of the target labels' stated errors, where they have some
    x      ``true_inputs``     (N, D), in units of their spread; integrated out in training
    ====== =================== ============================================================================

    The true inputs have a prior, a mixture of Gaussians learned from the noisy and incomplete inputs of the training
    stars: errors of the inputs do not attenuate f, and what is missing is integrated over, given the rest (the paper
    fills in the mean). Outputs that are missing are left out, label by label. The test step of stars with
    `target_labels` goes the other way: it gives the inputs, from the same fit (`inverse`).

    Stated errors of the target labels are believed unless the stars refute them: k stays near 1 where it can. Where the
    translation is better than the stated errors allow, what is left is taken for the scatter of the star's own label:
    the error of a translated label is then the one with which held-out labels agree. `fit` warns and says so.

    Args:
        pairs: {target label: input that it corrects}, in one unit; None: those of equal name. Targets without one are
            predicted outright.
        extrinsic: labels, such as a velocity or single abundances, that are translated with the help of the others and
            never influence them; names of inputs or targets, each with the one that it is paired with.
        inputs: blocks of survey A, such as ("labels", "colours"); no two columns may have one name.
        function: "network", or "polynomial" of this `order`.
        width, depth: of the network's hidden layers; width: of all, or of each. The paper's shape is
            width=(64, 128, 256, 512, 256, 128, 64), depth=7, dropout=0.5.
        dropout: share of the hidden units that `MAP` leaves out of each step, others every time; never when a star is
            translated. A share of 0.1 lowers the held-out ln density of a star by 0.01 to 0.06 on both real sets tried,
            one of 0.3 by 0.06 to 0.13.
        scatter: ln s(x), a "network", "linear" or "constant".
        robust: Student-t tails of the scatter (where the paper minimises absolute errors); False: Gaussian.
        members: of the ensemble that `MAP` trains; their spread is the uncertainty of the function (section 3.5).
        weight_scale: factor of the sd of the weights' prior (`numerics.network`).
        error_factor: whether k is learned; False: the stated errors are right.
        components: of the inputs' mixture, at most.
        bins, threshold: a star is outside of the training set where a pair of its inputs or outputs lies in a cell
            that, with the eight around it, has fewer than `threshold` training stars (section 2.2); of bins x bins
            cells, or fewer of few stars (`numerics.occupancy`).

    Source: Thomas et al. 2024 (SpectroTranslator).

    Example:
        >>> import numpy as np
        >>> import bayeslabels as bl
        >>> rng = np.random.default_rng(0)
        >>> ours = rng.normal([5000.0, 3.0], [300.0, 0.5], (200, 2))
        >>> theirs = ours + [20.0, 0.1] + rng.normal(size=ours.shape) * [10.0, 0.02]
        >>> names, unit = ("TEFF", "LOGG"), ("K", "dex")
        >>> labels = bl.Block(ours, (10.0, 0.02), names=names, unit=unit)
        >>> target = bl.Block(theirs, (10.0, 0.02), names=names, unit=unit)
        >>> model = bl.Translator(function="polynomial", order=1)
        >>> posterior = bl.fit(model, bl.Stars(labels=labels, target_labels=target), bl.Laplace(), progress=False)
        >>> bl.infer(posterior, bl.Stars(labels=labels), progress=False).frame.names
        ('TEFF', 'LOGG')
    """

    pairs: Mapping[str, str] | None = None
    extrinsic: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ("labels",)
    function: Literal["network", "polynomial"] = "network"
    order: int = 2
    width: int | tuple[int, ...] = 32
    depth: int = 3
    dropout: float = 0.0
    scatter: Literal["network", "linear", "constant"] = "network"
    robust: bool = True
    members: int = 5  # type: ignore[assignment]
    weight_scale: float = 1.0
    error_factor: bool = True
    components: int = 8
    bins: int = 30
    threshold: int = 1

    global_sites: ClassVar[tuple[str, ...]] = (
        "coefficients", "scatter_weights", "correlation", "freedom", "error_factor",
    )  # fmt: skip
    stored: ClassVar[tuple[type, ...]] = (TranslatorFrame,)

    def __post_init__(self) -> None:
        for name in ("inputs", "extrinsic"):
            if isinstance(given := getattr(self, name), str):
                raise bad_input(f"{name}={given!r}", "a tuple of names", fix=f"{name}=({given!r},)")
        if not self.inputs or len(set(self.inputs)) < len(self.inputs) or TARGET in self.inputs:
            raise bad_input(f"inputs={self.inputs}", f"blocks other than {TARGET}, each once", fix='inputs=("labels",)')
        for name, known in (("function", ("network", "polynomial")), ("scatter", ("network", "linear", "constant"))):
            if getattr(self, name) not in known:
                raise bad_input(f"{name}={getattr(self, name)!r}", f"one of {known}")
        layers = tuple(self.width) if isinstance(self.width, tuple | list) else None
        if not isinstance(self.width, int | tuple) or (layers is not None and len(layers) != self.depth):
            raise bad_input(
                f"width={self.width!r} and depth={self.depth}", "one whole number, or a tuple of one for each layer",
                fix="width=32" if layers is None else f"width={layers}, depth={len(layers)}",
            )  # fmt: skip
        for name in ("width", "members", "components", "bins", "threshold"):
            if np.min(getattr(self, name), initial=1) < 1:
                raise bad_input(f"{name}={getattr(self, name)}", "at least 1")
        if self.order < 0 or self.depth < 0 or not self.weight_scale > 0:
            raise bad_input(
                f"order={self.order}, depth={self.depth}, weight_scale={self.weight_scale}", ">= 0, >= 0 and > 0"
            )
        if not 0 <= self.dropout < 1 or (self.dropout and self.function != "network"):
            raise bad_input(f"dropout={self.dropout} of a {self.function}", "at least 0 and below 1, of a network")

    @property
    def blocks(self) -> tuple[str, ...]:
        return (*self.inputs, TARGET)

    def __call__(self, stars: Stars, batch_size: int | None = None) -> Any:
        """The NumPyro program; blocks that are absent are sampled without noise."""
        model = self.bound(stars)
        frame, theta = model.require_frame(), model.parameters()
        given = measured(frame, stars)
        with numpyro.plate("star", len(stars), subsample_size=batch_size) as rows:
            if frame.exact.all() and is_traced(given):  # which ones are missing is not known: NaN where one is
                x = jnp.where(given.observed, given.value, jnp.nan)[rows]
            elif frame.exact.all() and given.observed.all():
                x = constant(given.value)[rows]
            else:
                names = ("true_inputs", "true_inputs_extrinsic")
                each = [
                    numpyro.sample(name, _density(population))
                    for name, population in zip(names, frame.mixtures, strict=False)
                ]
                x = jnp.concatenate(each, -1)[..., np.argsort(np.concatenate(frame.groups))]
            for block in dict.fromkeys(frame.source):
                at = frame.columns(block)
                centre, scale = frame.centre[at], frame.scale[at]
                (both,) = beside(given.noise, scale[:, None] * scale)
                noise = given.noise[:, at[:, None], at] * both
                if block not in stars:
                    noise = np.broadcast_to(np.diag((EXACT * scale) ** 2), noise.shape)
                mean = constant(centre) + constant(scale) * x[..., at]
                _measure(block, mean, constant(noise)[rows], stars, rows)

            mean, s = model.outputs(theta, x)
            root = s[..., :, None] * theta["correlation"]
            if model.robust:
                half = theta["freedom"] / 2
                root = root / jnp.sqrt(numpyro.sample("precision", dist.Gamma(half, half)))[..., None, None]
            centre, scale = constant(frame.target_centre), constant(frame.target_scale)
            covariance = scale[:, None] * root @ jnp.swapaxes(root, -1, -2) * scale
            if TARGET in stars and stars[TARGET].error is not None:
                noise = constant(stars[TARGET].filled_covariance())[rows]
                covariance = covariance + _scaled(noise, theta)
            _measure(TARGET, centre + scale * mean, covariance, stars, rows)

    def parameters(self) -> dict[str, Array]:
        m = len(self.require_frame().names)
        theta = {
            name: numpyro.sample(name, dist.Normal(0.0, self.weight_scale * _together(functions)).to_event(1))
            for name, functions in (("coefficients", self.functions), ("scatter_weights", self.scatters))
        }
        theta["correlation"] = numpyro.sample("correlation", dist.LKJCholesky(m, 2.0)) if m > 1 else jnp.ones((1, 1))
        if self.robust:
            theta["freedom"] = numpyro.sample("freedom", dist.LogNormal(np.log(5.0), 1.0))
        if self.has_error_factor:
            theta["error_factor"] = numpyro.sample("error_factor", self.factor_prior())
        return theta

    def factor_prior(self) -> dist.Distribution:
        """Of k, (M,)."""
        widths = dist.LogNormal(jnp.zeros(2), jnp.asarray(FACTOR_WIDTHS))
        prior = dist.MixtureSameFamily(dist.Categorical(jnp.asarray(FACTOR_SHARES)), widths)
        return prior.expand([len(self.require_frame().names)]).to_event(1)

    @property
    def has_error_factor(self) -> bool:
        return self.error_factor and self.require_frame().stated

    def start(self, stars: Stars, seed: int) -> dict[str, np.ndarray]:
        start = {
            "coefficients": np.concatenate([f.initial(seed + i) for i, f in enumerate(self.functions)]),
            "scatter_weights": np.concatenate([f.initial(seed + 31 + i) for i, f in enumerate(self.scatters)]),
        }
        if (m := len(self.require_frame().names)) > 1:
            start["correlation"] = np.eye(m)
        if self.robust:
            start["freedom"] = np.array(5.0)
        if self.has_error_factor:
            start["error_factor"] = self._first_factor(stars)
        return start

    def _first_factor(self, stars: Stars) -> np.ndarray:
        frame = self.require_frame()
        stated = typical_error(stars[TARGET]) / frame.target_scale
        scatter = plain_scatter(frame, stars)
        return np.where(scatter < TOO_LARGE * stated, REFUTED * scatter / stated, 1.0)

    @property
    def functions(self) -> tuple[Function, ...]:
        """f_intrinsic and f_extrinsic."""
        shapes = [(len(inputs), len(outputs)) for inputs, outputs in self.require_frame().parts]
        if self.function == "polynomial":
            return tuple(Polynomial(*shape, self.order) for shape in shapes)
        return tuple(Network(*shape, self.width, self.depth) for shape in shapes)

    @property
    def scatters(self) -> tuple[Function, ...]:
        """ln s of the intrinsic and of the extrinsic outputs."""
        shapes = [(len(inputs), len(outputs)) for inputs, outputs in self.require_frame().parts]
        if self.scatter == "network":
            first = self.width if isinstance(self.width, int) else max(self.width, default=1)
            return tuple(Network(*shape, max(1, first // 2), 1) for shape in shapes)
        return tuple(Polynomial(*shape, 1 if self.scatter == "linear" else 0) for shape in shapes)

    @property
    def delayed(self) -> dict[str, np.ndarray]:
        """How ln s varies: beside an f that is still far off, a scatter as large as f is wrong would hide it."""
        return {"scatter_weights": ~np.concatenate([g.is_constant for g in self.scatters])}

    def dropped(self, theta: Mapping[str, Array], key: Array) -> Mapping[str, Array]:
        if self.has_error_factor:  # `MAP` settles it by held-out stars, when the rest is known
            theta = {**theta, "error_factor": jax.lax.stop_gradient(theta["error_factor"])}
        if not self.dropout:
            return theta
        parts, start = [], 0
        networks = [f for f in self.functions if isinstance(f, Network)]
        for f, own in zip(networks, jax.random.split(key, len(networks)), strict=True):
            parts.append(f.dropped(theta["coefficients"][start : start + f.size], own, self.dropout))
            start += f.size
        return {**theta, "coefficients": jnp.concatenate(parts)}

    def outputs(self, theta: Mapping[str, Array], x: Array) -> tuple[Array, Array]:
        """x + f(x) and s(x), (..., M) each, of inputs (..., D); all scaled."""
        both = self.raw_outputs(theta, x)
        m = both.shape[-1] // 2
        return both[..., :m], jnp.exp(both[..., m:])

    def raw_outputs(self, theta: Mapping[str, Array], x: Array) -> Array:
        """x + f(x) and ln s(x) side by side, (..., 2 M); theta may have a `scatter_shift` (M,) of ln s."""
        frame = self.require_frame()
        values, used, first, second = [], [], 0, 0
        for part, f, g, (centre, matrix) in zip(
            frame.parts, self.functions, self.scatters, frame.whitening, strict=True
        ):
            inputs, outputs = part
            own = x[..., inputs]
            white = (own - jnp.asarray(centre, x.dtype)) @ jnp.asarray(matrix, x.dtype)
            shortcut = own @ jnp.asarray(frame.pairing[np.ix_(outputs, inputs)].T, x.dtype)
            mean = shortcut + f(theta["coefficients"][first : first + f.size], white)
            ln_s = LN_SCATTER + g(theta["scatter_weights"][second : second + g.size], white)
            if "scatter_shift" in theta:
                ln_s = ln_s + theta["scatter_shift"][outputs]
            values.append(jnp.stack([mean, ln_s], -2))
            used.append(outputs)
            first, second = first + f.size, second + g.size
        both = jnp.concatenate(values, -1)[..., np.argsort(np.concatenate(used))]
        return both.reshape(*both.shape[:-2], -1)

    def held(self, theta: Mapping[str, Array], data: TranslatorData) -> TranslatorData:
        """Rows with `made`: 2 R + 1 networks a star in each step would cost more than all the rest.

        Residuals still have mean zero at the true f, so that it is found; each renewal takes the next term of a series
        that converges (what is added to the mean is -1 to 0 times a wave of f, whatever its length).
        """
        if not data.root.shape[-1]:
            return data
        n = len(data.x)
        index = np.minimum(np.arange(-(-n // HELD) * HELD), n - 1).reshape(-1, HELD).astype(np.int32)

        def of_chunk(rows: tuple[Array, Array]) -> tuple[Array, Array]:
            _, shift, covariance = propagated(lambda x: self.raw_outputs(theta, x), *rows)
            return shift, covariance

        made = jax.lax.map(of_chunk, (data.x[index], data.root[index]))
        return data._replace(
            root=data.root[..., :0], made=jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], made)
        )

    def predictive(
        self, theta: Mapping[str, Array], x: Array, root: Array, made: tuple[Array, Array] | None = None
    ) -> tuple[Array, Array, Array]:
        """Moments of y given what is measured of the inputs, scaled: mean (N, M), the covariance that the inputs'
        uncertainty makes, and s R s' averaged over it, (N, M, M) each."""
        if made is None:
            both, spread = propagate(lambda x: self.raw_outputs(theta, x), x, root)
        else:
            both, spread = self.raw_outputs(theta, x) + made[0], made[1]
        m = both.shape[-1] // 2
        ln_variance = jnp.minimum(jnp.diagonal(spread, axis1=-2, axis2=-1)[..., m:], 1.0)
        s = jnp.exp(both[..., m:] + ln_variance)
        correlation = theta["correlation"] @ jnp.swapaxes(theta["correlation"], -1, -2)
        return both[..., :m], spread[..., :m, :m], s[..., :, None] * correlation * s[..., None, :]

    def arrays(self, stars: Stars) -> TranslatorData:
        frame = self.require_frame()
        return TranslatorData(*known_inputs(frame, measured(frame, stars)), *self.outputs_of(stars))

    def outputs_of(self, stars: Stars) -> tuple[Array, Array, Array]:
        """y, noise and observed of `TranslatorData`."""
        frame, target = self.require_frame(), stars[TARGET]
        value, _, observed = target.filled()
        xp = module_of(value)
        centre, scale = beside(value, frame.target_centre, frame.target_scale)
        noise = xp.zeros((*value.shape, value.shape[1]))
        if target.error is not None:
            noise = target.filled_covariance() / (scale[:, None] * scale)
        return xp.where(observed, (value - centre) / scale, 0.0), noise, observed

    def log_likelihood(self, theta: Mapping[str, Array], data: TranslatorData) -> Array:
        if "correlation" not in theta:
            theta = {**theta, "correlation": jnp.ones((1, 1), data.x.dtype)}
        mean, spread, intrinsic = self.predictive(theta, data.x, data.root, data.made)
        known = spread + _scaled(data.noise, theta)
        return self.log_density_of(data.y - mean, known, intrinsic, theta.get("freedom"), data.observed)

    def log_density_of(
        self, offset: Array, known: Array, intrinsic: Array, freedom: Array | None, observed: Array
    ) -> Array:
        """ln p (N,) of offsets (N, M) from the mean, of Gaussian noise with the covariance `known` and of scatter."""
        if not self.robust:
            return log_normal(offset, known + intrinsic, observed)
        log_weight, precision = scale_mixture(freedom)
        each = jax.vmap(lambda w, p: w + log_normal(offset, known + intrinsic / p, observed))
        return jax.scipy.special.logsumexp(each(log_weight, jnp.asarray(precision, offset.dtype)), 0)

    def bind(self, stars: Stars) -> Self:
        for name in (TARGET, *self.inputs):
            if name not in stars:
                raise bad_input(
                    f"stars with the blocks {', '.join(stars.blocks)}", f"a block {name!r}, which training needs",
                    fix=f"stars.with_block({name}=Block(value, error, names=(...)))",
                )  # fmt: skip
        settings = self.inputs, self.pairs, self.extrinsic, self.components, self.bins, self.threshold
        return self.replace(frame=learn_frame(stars, *settings))

    def check(self, stars: Stars) -> None:
        frame = self.require_frame()
        for block in (*dict.fromkeys(frame.source), TARGET):
            if block not in stars:
                continue
            at = frame.columns(block)
            names = frame.names if block == TARGET else tuple(frame.input_names[j] for j in at)
            units = frame.units if block == TARGET else tuple(frame.input_units[j] for j in at)
            if stars[block].names != names:
                raise bad_input(
                    f"{block} {stars[block].names}", f"{names}, as in training", "columns swapped or renamed",
                    f"{block}.select({names!r})",
                )  # fmt: skip
            if stars[block].units != units:
                raise bad_input(f"{block} in {stars[block].units}", f"{units}, as in training")
            if block != TARGET and (stars[block].error is None) != frame.exact[at[0]]:
                raise bad_input(
                    f"{block} {'without' if stars[block].error is None else 'with'} errors", "as in training",
                    "what was learned is for inputs with errors of the same kind",
                )  # fmt: skip


def _together(functions: tuple[Function, ...]) -> np.ndarray:
    """Prior sd of all weights."""
    return np.concatenate([f.prior_sd for f in functions])


def _scaled(noise: Array, theta: Mapping[str, Array]) -> Array:
    """k C k of the target labels' stated covariances C (..., M, M)."""
    if "error_factor" not in theta:
        return noise
    factor = theta["error_factor"].astype(noise.dtype)
    return factor[:, None] * noise * factor


def _density(population: Mixture) -> dist.Distribution:
    return dist.MixtureSameFamily(
        dist.Categorical(constant(population.weight)),
        dist.MultivariateNormal(constant(population.mean), constant(population.covariance)),
    )


def _measure(block: str, mean: Array, covariance: Array, stars: Stars, rows: Array) -> None:
    """The site of a block: observed where the stars have it, missing numbers of density 1."""
    if block not in stars:
        numpyro.sample(block, dist.MultivariateNormal(mean, covariance))
        return
    value, _, observed = (constant(a)[rows] for a in stars[block].filled())
    both = observed[..., :, None] & observed[..., None, :]
    mean = jnp.where(observed, mean, 0.0)
    covariance = jnp.where(both, covariance, jnp.eye(mean.shape[-1]) / (2 * np.pi))
    numpyro.sample(block, dist.MultivariateNormal(mean, covariance), obs=value)


class TranslatorMoments(NamedTuple):
    """Members of an ensemble, or draws of the training posterior; E of them, as in `Translator.parameters`.

    coefficients (E, P), scatter_weights (E, P'), correlation (E, M, M), freedom (E,), inf for a Gaussian;
    scatter_shift (E, M): what held-out stars add to ln s; error_factor (E, M): of the stated errors of the outputs.
    """

    coefficients: np.ndarray
    scatter_weights: np.ndarray
    correlation: np.ndarray
    freedom: np.ndarray
    scatter_shift: np.ndarray
    error_factor: np.ndarray

    @property
    def theta(self) -> dict[str, np.ndarray]:
        return self._asdict()

    @property
    def tails(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights and precisions of the Gaussians that make the scatter's distribution."""
        if not np.isfinite(self.freedom).all():
            return np.ones(1), np.ones(1)
        log_weight, precision = scale_mixture(np.asarray(self.freedom, float))
        return np.exp(log_weight).mean(0), precision
