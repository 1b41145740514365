"""What a log-linear model takes from its training stars: its features, their scales and their Gaussian population."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from ...data.columns import default_names
from ...data.stars import Block, Stars
from ...errors import bad_input
from ...numerics.by_value import ByValue
from ...numerics.entries import Entries
from ...numerics.incomplete import Population, learn
from ...numerics.linalg import Array, is_traced, module_of
from .products import SOURCE, Products, products_of

if TYPE_CHECKING:
    from .model import LogLinearModel

FACTORS = 24
"""Factors of the features' population, at most."""
ROWS = 1024
"""Stars whose features are computed at a time."""
POPULATION_STARS = 3000
"""Training stars that the population of many features is learned from."""
LEADING, ABOVE_NOISE = 5, 3.0
"""Leading directions, at most, and how far their squared loadings rise above those that noise makes."""


@dataclass(frozen=True)
class FeatureFrame(ByValue):
    """What a log-linear model takes from its training stars: its features' names, units and scales.

    x = (feature - centre) / scale; x_0 = 1, the constant. scale is 1 for logarithms and magnitudes, whose columns share
    a meaning, and otherwise (p97.5 - p2.5) / 4 of each column.

    Attributes:
        names, units: of the D features, the constant first.
        source: block of each feature, "" for the constant; log: whether its logarithm is taken; penalised: whether it
            has the sparse prior; (D,) each.
        columns: of each block, its column names as they must be met again, None for unnamed ones.
        mean, loadings, noise: of the features' population, scaled (`numerics.incomplete.Population`).
        leading: (K, Q) directions of the factors that tell the training stars apart, `leading_directions`.
        unit: of the quantity predicted.
        farthest: Mahalanobis distance^2 (of the factors) beyond which a star is outside of the training set.
        outlier: location and scale of measured parallaxes that have nothing to do with the features: those of the
            training stars, three times as wide, with the tails of a Student-t.
        products: of features, which are the last of the D; None: there are none.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    source: tuple[str, ...]
    columns: tuple[tuple[str, ...] | None, ...]
    log: np.ndarray
    penalised: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    loadings: np.ndarray
    noise: np.ndarray
    leading: np.ndarray
    unit: str
    farthest: float
    outlier: np.ndarray
    taken_in: tuple[str, ...] = ()
    products: Products | None = None

    @property
    def population(self) -> Population:
        return Population(self.mean, self.loadings, self.noise)

    @property
    def taken(self) -> np.ndarray:
        """(D,): whether a feature is a column of a block, no product and not the constant."""
        return np.array([name not in ("", SOURCE) for name in self.source])


def raw_features(
    specs: tuple[str, ...], stars: Stars, products: Products | None = None
) -> tuple[Array, Array, Array, Entries]:
    """Features (N, D) in their own units with the constant first, the entries (N, V) of their errors' covariances,
    which features are measured, and which entries these are."""
    own = _own_features(specs, stars)
    return own if products is None else products.added(*own)


def _own_features(specs: tuple[str, ...], stars: Stars) -> tuple[Array, Array, Array, Entries]:
    blocks = [stars[spec.removeprefix("ln ")] for spec in specs]
    ends = np.cumsum([1, *(block.n_dim for block in blocks)]).tolist()
    columns = [slice(*x) for x in itertools.pairwise(ends)]
    correlated = [block.has_covariance and block.n_dim > 1 for block in blocks]
    entries = Entries(ends[-1], tuple((x.start, x.stop) for x, own in zip(columns, correlated, strict=True) if own))
    if is_traced(blocks):
        one = jnp.ones((len(stars), 1))
        parts = [(one, 0 * one, one > 0, one[:, :0]), *map(_of_block, specs, blocks)]
        x, v, known, beside = (jnp.concatenate(part, 1) for part in zip(*parts, strict=True))
        return x, jnp.concatenate([v, beside], 1), known, entries
    n, start = len(stars), entries.size
    value, measured, variance = np.ones((n, start)), np.ones((n, start), bool), np.zeros((n, entries.n_entry))
    for spec, block, at, own in zip(specs, blocks, columns, correlated, strict=True):
        pairs = slice(start, start := start + own * (block.n_dim * (block.n_dim - 1)) // 2)
        for first in range(0, n, ROWS):  # in place: it may be most of the memory
            rows = slice(first, first + ROWS)
            found = _of_block(spec, block[rows])
            value[rows, at], variance[rows, at], measured[rows, at], variance[rows, pairs] = found
    return value, variance, measured, entries


def _of_block(spec: str, block: Block) -> tuple[Array, Array, Array, Array]:
    """Features (N, d) of one block, their variances, which are measured, and the covariances (N, d (d - 1) / 2)."""
    x, v, known = block.filled()
    xp = module_of(x)
    x, v = x.astype(float), v.astype(float)
    slope = xp.ones_like(x)
    if spec.startswith("ln "):
        known = known & (x > 0)
        x = xp.where(known, x, 1.0)
        x, slope = xp.log(x), 1 / x
    slope = xp.where(known, slope, 0.0)
    beside = x[:, :0]
    if block.has_covariance:
        i, j = np.triu_indices(block.n_dim, 1)
        beside = block.filled_covariance()[:, i, j] * slope[:, i] * slope[:, j]
    return x, v * slope**2, known, beside


def learn_frame(model: LogLinearModel, stars: Stars) -> FeatureFrame:
    names, units, source, log, penalised, shared, columns = ["1"], [""], [""], [False], [False], [True], []
    for spec in model.feature_blocks:
        block: Block = stars[spec.removeprefix("ln ")]
        logarithm = spec.startswith("ln ")
        along = next(iter(block.coords.values()), np.arange(block.n_dim))
        own = list(block.names or ())
        if not own or block.coords or block.names == default_names(block.n_dim):
            own = [f"{spec.removeprefix('ln ')} {x}" for x in along]
        names += [f"ln {name}" if logarithm else name for name in own]
        units += [""] * block.n_dim if logarithm else list(block.units)
        source += [spec.removeprefix("ln ")] * block.n_dim
        log += [logarithm] * block.n_dim
        penalised += [spec in model.sparse_blocks] * block.n_dim
        shared += [logarithm or unit == "mag" for unit in block.units]
        columns.append(block.names)
    products = None
    first = 1 + sum(stars[x.removeprefix("ln ")].n_dim for x in model.feature_blocks if x in model.sparse_blocks)
    if model.degree > 1 and first < len(source):
        value, _, measured, _ = raw_features(model.feature_blocks, stars)
        products = products_of(model.degree, first, value[:, first:], measured[:, first:])
        n_product = products.monomials.size
        names += products.monomials.names(tuple(names[first:]))
        units, source = [*units, *[""] * n_product], [*source, *[SOURCE] * n_product]
        log, penalised, shared = ([*x, *[False] * n_product] for x in (log, penalised, shared))
    value, _, measured, _ = raw_features(model.feature_blocks, stars, products)
    if (empty := measured.sum(0) < 2).any():
        raise bad_input(
            f"{int(empty.sum())} features with fewer than two measured values, such as {names[int(empty.argmax())]}",
            "features that are measured", "an empty column, or fluxes <= 0, which have no logarithm",
        )  # fmt: skip
    if (still := np.flatnonzero(_of_one_value(value, measured))).size:
        same, block = names[still[0]], source[still[0]]
        raise bad_input(
            f"{same} (and {still.size - 1} other features) of one value for all training stars",
            "features that differ from star to star: what another value means for the parallax cannot be learned",
            f"a column of {block} that was filled in where nothing was measured",
            f"NaN where nothing was measured, or {block} without that column: stars[{block!r}].select(columns)",
        )  # fmt: skip
    centre = value.sum(0, where=measured) / measured.sum(0)
    centre[0], many = 0.0, value.shape[1] > 100
    few = slice(None, None, max(1, len(value) // POPULATION_STARS) if many else 1)
    value, measured = value[few].copy(), measured[few].copy()  # and let go of the whole
    low, high = np.nanpercentile(np.where(measured, value, np.nan), [2.5, 97.5], axis=0)
    scale = np.where(shared, 1.0, np.where(high > low, (high - low) / 4, 1.0))
    x, seen = np.where(measured, (value - centre) / scale, 0.0)[:, 1:], measured[:, 1:]
    population = learn(x, seen, FACTORS, iterations=30 if many else 200)
    own = (population.factors(x, seen)[0] ** 2).sum(1)
    target = stars[model.predicted]
    low, middle, high = np.percentile(target.value[target.observed], [15.87, 50, 84.13])
    outlier = np.array([middle, 1.5 * (high - low)])
    farthest = 2 * float(np.quantile(own, 0.99))
    return FeatureFrame(
        tuple(names), tuple(units), tuple(source), tuple(columns), np.array(log), np.array(penalised), centre, scale,
        *population, leading_directions(population, len(x)), stars[model.predicted].units[0], farthest,
        outlier, ("", *(unit for spec in model.feature_blocks for unit in stars[spec.removeprefix("ln ")].units)),
        products,
    )  # fmt: skip


def _of_one_value(value: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Which features (D,), the constant apart, are the same of all stars of which they are measured."""
    low = value.min(0, where=measured, initial=np.inf)
    high = value.max(0, where=measured, initial=-np.inf)
    return (low == high) & (np.arange(value.shape[1]) > 0)


def leading_directions(population: Population, n_star: int) -> np.ndarray:
    """(K, Q): turned factors, the first the one that the features measure best, while they rise above noise.

    Of n stars, noise alone makes factors whose loadings, in units of the noise, have squares up to
    (1 + sqrt(D / n))^2 - 1 (Marchenko & Pastur 1967).
    """
    _, size, turn = np.linalg.svd(population.loadings / np.sqrt(population.noise)[:, None], full_matrices=False)
    edge = (1 + np.sqrt(len(population.noise) / n_star)) ** 2 - 1
    return turn[: max(1, min(LEADING, int((size**2 > ABOVE_NOISE * edge).sum())))]
