"""What a `Translator` takes from its training stars: scales, pairs, the inputs' mixture, where the training set is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ...core.model import scaling
from ...data.stars import Block, Stars
from ...errors import bad_input, index_of
from ...numerics import mixture, occupancy
from ...numerics.by_value import ByValue
from ...numerics.linalg import Array, beside, module_of, placed

TARGET = "target_labels"
EXACT = 1e-3
"""Error of inputs without a stated one, in units of their spread, where other inputs have errors or gaps."""
FLOOR = 0.03
"""Variance, in units of the inputs' spread, below which a direction is not stretched for the network."""
MIXTURE_STARS = 20_000
"""Training stars that the inputs' mixture is learned from, at most."""
TAILS, POOLED = (1.0, 4.0, 16.0), 5.0
"""Heavy tails of the mixture (`numerics.mixture.learn`): without them what is missing of one star in a hundred has an
error several times too small, and that of all, where stars are few and inputs many, one 1.2 times too small."""
LEFT_OUT = 0.1
"""Share of the stars that say when the mixture is learned."""
SCATTER_STARS = 50
"""Stars beyond twice the columns from which `plain_scatter` says anything."""
BACKGROUND = 100
"""Training stars kept as the background of Shapley values."""

Arrays3 = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class TranslatorFrame(ByValue):
    """D inputs x, M outputs y, both scaled by centre and scale.

    Attributes:
        names, units: of the outputs. input_names, input_units, source: of the inputs; source: the block of each.
        centre, scale (D,): median and (p97.5 - p2.5) / 4 of the inputs.
        target_centre (M,): median of the outputs; of those that are paired, centre of the input plus median difference.
        target_scale (M,): spread of the outputs, less the inputs that they are paired with.
        pair (M,): the input that an output corrects, -1 for none.
        exact (D,): inputs without stated errors. stated: whether the outputs have stated errors.
        extrinsic_inputs (D,), extrinsic_outputs (M,): those that never influence the others.
        population: weight, mean, covariance of the mixture of intrinsic inputs, and of extrinsic ones; they are
            independent, so that what is measured of the latter tells nothing of the former.
        whitening: centre and matrix that make the inputs of f_intrinsic, and of f_extrinsic, uncorrelated.
        occupancy: of the inputs and of the outputs, unscaled: low, high and counts (`numerics.occupancy.Occupancy`).
        background: (B, D) scaled inputs of some training stars.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    input_names: tuple[str, ...]
    input_units: tuple[str, ...]
    source: tuple[str, ...]
    centre: np.ndarray
    scale: np.ndarray
    target_centre: np.ndarray
    target_scale: np.ndarray
    pair: np.ndarray
    exact: np.ndarray
    stated: bool
    extrinsic_inputs: np.ndarray
    extrinsic_outputs: np.ndarray
    population: tuple[Arrays3, ...]
    whitening: tuple[tuple[np.ndarray, np.ndarray], ...]
    occupancy: tuple[Arrays3, ...]
    background: np.ndarray

    @cached_property
    def pairing(self) -> np.ndarray:
        """(M, D): d y / d x where f = 0, both scaled."""
        out = np.zeros((len(self.names), len(self.input_names)))
        for m in np.flatnonzero(self.pair >= 0):
            out[m, self.pair[m]] = self.scale[self.pair[m]] / self.target_scale[m]
        return out

    @property
    def groups(self) -> tuple[np.ndarray, ...]:
        """The inputs of each independent mixture."""
        return groups_of(self.extrinsic_inputs)

    @property
    def parts(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Inputs and outputs of f_intrinsic and of f_extrinsic."""
        return parts_of(self.extrinsic_inputs, self.extrinsic_outputs)

    @property
    def mixtures(self) -> tuple[mixture.Mixture, ...]:
        return tuple(mixture.Mixture(*x) for x in self.population)

    def columns(self, block: str) -> np.ndarray:
        """The inputs that come from a block."""
        return np.flatnonzero([source == block for source in self.source])


class Inputs(NamedTuple):
    """Scaled inputs as measured: value (N, D), 0 if missing; noise (N, D, D); observed (N, D)."""

    value: Array
    noise: Array
    observed: Array

    def select(self, rows: Any, columns: np.ndarray) -> Arrays3:
        value, noise, observed = (x[rows] for x in self)
        return value[:, columns], noise[:, columns[:, None], columns], observed[:, columns]


def measured(frame: TranslatorFrame, stars: Stars) -> Inputs:
    """The inputs of stars that fit the frame; an absent block is one whose numbers are all missing."""
    n, d = len(stars), len(frame.centre)
    value, noise, observed = np.zeros((n, d)), np.zeros((n, d, d)), np.zeros((n, d), bool)
    for block in dict.fromkeys(frame.source):
        if block in stars:
            at = frame.columns(block)
            x, _, seen = stars[block].filled()
            centre, scale = beside(x, frame.centre[at], frame.scale[at])
            value = placed(value, np.s_[:, at], module_of(x).where(seen, (x - centre) / scale, 0.0))
            observed = placed(observed, np.s_[:, at], seen)
            if stars[block].error is not None:
                own = stars[block].filled_covariance() / (scale[:, None] * scale)
                noise = placed(noise, np.s_[:, at[:, None], at], own)
    diagonal, xp = np.arange(d), module_of(value)
    own = xp.where(observed, xp.maximum(noise[:, diagonal, diagonal], EXACT**2), 1.0)
    return Inputs(value, placed(noise, np.s_[:, diagonal, diagonal], own), observed)


def known_inputs(frame: TranslatorFrame, given: Inputs) -> tuple[np.ndarray, np.ndarray]:
    """Mean (N, D) of the true inputs and a root (N, D, R) of their covariance, given what is measured of them.

    R = 0 where all is measured exactly; else the rank that the stars need.
    """
    d = len(frame.centre)
    rows = np.arange(len(given.value)) if not frame.exact.all() else np.flatnonzero(~given.observed.all(1))
    mean, roots = given.value.copy(), np.zeros((*given.value.shape, 0))
    for group, population in zip(frame.groups, frame.mixtures, strict=True):
        if not len(rows):
            break
        centre, covariance = population.given(*given.select(rows, group)).moments()
        mean[rows[:, None], group] = centre
        own = _low_rank(covariance)
        part = np.zeros((len(mean), d, own.shape[-1]))
        part[rows[:, None], group] = own
        roots = np.concatenate([roots, part], 2)
    return mean, roots


def typical_error(block: Block) -> np.ndarray:
    """Median stated error of each column, in its unit."""
    _, variance, observed = (np.asarray(x) for x in block.filled())
    return np.sqrt(np.nanmedian(np.where(observed, variance, np.nan), 0))


def plain_scatter(frame: TranslatorFrame, stars: Stars) -> np.ndarray:
    """How far the outputs scatter (M,), scaled, about their regression on the inputs and the squares of these.

    Each star is left out for itself; inf where stars are too few to say. No translation of any use scatters more.
    """
    given, target = measured(frame, stars), stars[TARGET]
    x = given.value
    design = np.concatenate([np.ones((len(x), 1)), x, x**2], 1)
    y = (np.where(target.observed, target.value, 0.0) - frame.target_centre) / frame.target_scale
    y = y - x @ frame.pairing.T
    out = np.full(len(frame.names), np.inf)
    for m in range(len(out)):
        rows = target.observed[:, m] & given.observed.all(1)
        if rows.sum() < SCATTER_STARS + 2 * design.shape[1]:
            continue
        basis, _, _ = np.linalg.svd(design[rows], full_matrices=False)
        left = 1 - (basis**2).sum(1)
        residual = (y[rows, m] - basis @ (basis.T @ y[rows, m])) / np.maximum(left, 1e-6)
        out[m] = np.median(np.abs(residual)) / 0.6745
    return out


def _low_rank(covariance: np.ndarray) -> np.ndarray:
    """Roots of covariances, without the directions in which no star is uncertain."""
    value, vector = np.linalg.eigh(covariance)
    used = (value > 4 * EXACT**2).any(0)
    return (vector * np.sqrt(np.maximum(value, 0.0))[:, None])[:, :, used]


def groups_of(extrinsic: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(x for x in (np.flatnonzero(~extrinsic), np.flatnonzero(extrinsic)) if len(x))


def parts_of(extrinsic_in: np.ndarray, extrinsic_out: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    both = (
        (np.flatnonzero(~extrinsic_in), np.flatnonzero(~extrinsic_out)),
        (np.arange(len(extrinsic_in)), np.flatnonzero(extrinsic_out)),
    )
    return tuple(part for part in both if len(part[1]))


def learn_frame(
    stars: Stars,
    blocks: tuple[str, ...],
    pairs: Mapping[str, str] | None,
    extrinsic: tuple[str, ...],
    components: int,
    bins: int,
    threshold: int,
) -> TranslatorFrame:
    """The frame of training stars, which must have these blocks and `target_labels`."""
    target = stars[TARGET]
    names, input_names = _names(stars, (TARGET,)), _names(stars, blocks)
    source = tuple(block for block in blocks for _ in range(stars[block].n_dim))
    units = tuple(unit for block in blocks for unit in stars[block].units)
    raw = np.concatenate([np.where(stars[b].observed, stars[b].value, np.nan) for b in blocks], 1)
    y = np.where(target.observed, target.value, np.nan).astype(float)
    for what, columns, values in (("input", input_names, raw), (TARGET, names, y)):
        few = [name for name, x in zip(columns, values.T, strict=True) if len(np.unique(x[np.isfinite(x)])) < 3]
        if few:
            raise bad_input(
                f"{what} {few} with fewer than 3 different numbers", "columns that vary", fix="leave it out"
            )
    centre, scale = scaling(raw)
    pair = _pairs(pairs, names, input_names, target.units, units)
    offset = y - np.where(pair >= 0, raw[:, pair], 0.0)
    both = np.isfinite(offset).sum(0)
    if both.min() < 3:
        raise bad_input(
            f"{both.min()} stars with {names[both.argmin()]} in both surveys",
            "at least 3",
            "other stars, or all missing",
        )
    target_centre, target_scale = scaling(offset)
    _check_scales(names, input_names, pair, y, raw)
    target_centre = target_centre + np.where(pair >= 0, centre[pair], 0.0)
    target_scale = np.maximum(target_scale, np.where(pair >= 0, EXACT * scale[pair], 0.0))  # where nothing differs
    extrinsic_in, extrinsic_out = _extrinsic(extrinsic, names, input_names, pair)
    exact = np.array([stars[block].error is None for block in source])
    nothing: Any = np.zeros(0)
    frame = TranslatorFrame(
        names, target.units, input_names, units, source, centre, scale, target_centre, target_scale, pair, exact,
        target.error is not None, extrinsic_in, extrinsic_out, (), (), (), nothing,
    )  # fmt: skip
    given = measured(frame, stars)
    some = np.random.default_rng(0).permutation(len(stars))[:MIXTURE_STARS]
    populations = tuple(
        mixture.learn(*given.select(some, group), components, tails=TAILS, pooled=POOLED, held_out=LEFT_OUT)
        for group in frame.groups
    )
    known = some[given.observed[some].all(1)][:BACKGROUND]
    whitening = tuple(_whitening(given.value, given.observed, inputs) for inputs, _ in frame.parts)
    return dataclasses.replace(
        frame,
        population=tuple((*x,) for x in populations),
        whitening=whitening,
        occupancy=tuple((*occupancy.learn(x, bins, threshold),) for x in (raw, y)),
        background=given.value[known],
    )


def _names(stars: Stars, blocks: tuple[str, ...]) -> tuple[str, ...]:
    names = [name for block in blocks for name in stars[block].names or ()]
    if len(names) != sum(stars[block].n_dim for block in blocks) or len(set(names)) < len(names):
        raise bad_input(f"columns {names} of {blocks}", "a name for each, no two alike", fix="Block(..., names=(...))")
    return tuple(names)


def _pairs(
    pairs: Mapping[str, str] | None,
    names: tuple[str, ...],
    inputs: tuple[str, ...],
    units: tuple[str, ...],
    input_units: tuple[str, ...],
) -> np.ndarray:
    if pairs is None:
        pairs = {name: name for name in names if name in inputs}
    pair = np.full(len(names), -1)
    for target, name in pairs.items():
        m, j = index_of(target, names, TARGET), index_of(name, inputs, "input")
        if units[m] != input_units[j]:
            raise bad_input(
                f"{target} in {units[m] or 'no unit'!r} and {name} in {input_units[j] or 'no unit'!r}",
                "a pair in one unit", fix=f'Block(..., unit="{units[m]}"), or pairs without {target!r}',
            )  # fmt: skip
        pair[m] = j
    return pair


def _check_scales(names: tuple[str, ...], inputs: tuple[str, ...], pair: np.ndarray, y: np.ndarray, x: Any) -> None:
    for m in np.flatnonzero(pair >= 0):
        both = np.isfinite(y[:, m]) & np.isfinite(x[:, pair[m]])
        target, own = (float(scaling(a[both][:, None])[1][0]) for a in (y[:, m], x[:, pair[m]]))
        if not 0.1 < target / own < 10:
            raise bad_input(
                f"{names[m]} that spreads by {target:.3g} where {inputs[pair[m]]} spreads by {own:.3g}",
                "a pair on much the same scale", "other units, or a logarithm", f"pairs without {names[m]!r}",
            )  # fmt: skip


def _extrinsic(
    extrinsic: tuple[str, ...], names: tuple[str, ...], inputs: tuple[str, ...], pair: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    for name in extrinsic:
        index_of(name, dict.fromkeys((*names, *inputs)), "extrinsic label")
    out = np.array(
        [name in extrinsic or (j >= 0 and inputs[j] in extrinsic) for name, j in zip(names, pair, strict=True)]
    )
    into = np.isin(inputs, extrinsic)
    into[pair[out & (pair >= 0)]] = True
    if into.all():
        raise bad_input(f"extrinsic={extrinsic}, which are all inputs", "some that are intrinsic")
    return into, out


def _whitening(x: np.ndarray, observed: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (d,) and matrix (d, d): (x - centre) @ matrix is uncorrelated and of about unit spread."""
    seen = observed[:, columns]
    count = np.maximum(seen.sum(0), 1)
    centre = np.where(seen, x[:, columns], 0.0).sum(0) / count
    offset = np.where(seen, x[:, columns] - centre, 0.0)
    value, vector = np.linalg.eigh(offset.T @ offset / np.sqrt(np.outer(count, count)))
    return centre, vector / np.sqrt(np.maximum(value, 0.0) + FLOOR)
