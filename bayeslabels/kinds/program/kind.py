"""Programs of the user's own: NUTS or variational inference, and a test step by the program's own density.

Nothing is exact and nothing is fast here: every evaluation runs the program.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import xarray as xr
from astropy.table import QTable

from ...data.stars import Stars
from ...errors import CannotDo, bad_input
from ...inference import NUTS, SVI, Importance
from ...inference.base import Inference, Trained
from ...inference.starwise import draw_mixture
from ...inference.whitened import Start
from ...kind import Choice, Kind, Layout, Quantities, StarResult, TrainedModel, Trainer, by_program, kind_of
from ...numerics.gaussian import log_density_of
from ...results.rows import flags_of_solution, of_draws, star_rows
from .program import OwnProgram
from .sites import Site, sites_of, told_of
from .stars import ProgramMoments, completed, prepare
from .training import KEPT, by_svi, with_moments

MIXED = 200
"""Draws from the Gaussians at the modes, where an inference gives the mode alone."""


class ProgramKind(Kind[OwnProgram, ProgramMoments]):
    """Whatever a program of the user's own infers."""

    models: ClassVar = OwnProgram
    moments: ClassVar = ProgramMoments
    trainers: ClassVar = {NUTS: Trainer(by_program), SVI: Trainer(by_svi)}
    keeps_order: ClassVar = True  # a program may have arrays of its own, star by star
    fit_by: ClassVar = NUTS()
    infer_by: ClassVar = Importance()

    def called(self, model: OwnProgram) -> str:
        program = model.changed
        if program is None:
            return f"the program {model.name}"
        own = " and ".join(f"a {name} of your own (not {program.exact_priors[name]})" for name in program.own_priors)
        return f"{model.name} with {own}" if own else model.name

    def choose(
        self, model: OwnProgram, stars: Stars, inference: Inference, seed: int, progress: bool | None
    ) -> Choice[OwnProgram]:
        if model.changed is not None and (lost := kind_of(model.changed).not_as_program(model.changed)):
            raise CannotDo(f"{model.name}, whose program is trained as it is, has no {lost}")
        return super().choose(model, stars, inference, seed, progress)

    def start(self, model: OwnProgram, stars: Stars, seed: int) -> Start:
        """Start of a sampler: for a model whose program is changed, where the unchanged one would begin."""
        if model.changed is None:
            return super().start(model, stars, seed)
        begin = kind_of(model.changed).start(model.changed.with_usual_priors(), stars, seed)
        known = dict(model.require_frame().shared) | dict(model.require_frame().star)
        return Start({name: x for name, x in begin.sites.items() if name in known})

    def finish(self, model: OwnProgram, stars: Stars, trained: Trained) -> Trained:
        return with_moments(model, trained)

    def layout(self, model: OwnProgram) -> Layout:
        frame = model.require_frame()
        shared = {name: [f"{name}_{i}" for i in range(len(shape))] for name, shape in (*frame.shared, *frame.recorded)}
        star = {name: ["training_star", *(f"{name}_{i}" for i in range(len(shape)))] for name, shape in frame.star}
        return Layout({}, shared | star, {"shared": ["kept", "number"]})

    def sizes(self, model: OwnProgram) -> dict[str, int]:
        frame = model.require_frame()
        every = *frame.shared, *frame.recorded, *frame.star
        axes = {f"{name}_{i}": n for name, shape in every for i, n in enumerate(shape)}
        number = sum(int(np.prod(shape, dtype=int)) for _, shape in frame.shared)
        return axes | {"training_star": frame.n_star, "number": number}

    def infer(
        self,
        posterior: TrainedModel[OwnProgram, ProgramMoments],
        stars: Stars,
        inference: Inference,
        seed: int,
        keys: np.ndarray,
        progress: bool | None,
    ) -> dict[str, xr.Dataset]:
        model = posterior.model
        problem = prepare(model, posterior.moments, stars, seed, inference.starts)
        out = inference.infer(problem, keys, progress)
        u = np.asarray(out.u)
        if u.shape[:2] == (1, 1):  # the mode: errors are those of the Gaussians at the modes
            u = np.moveaxis(np.asarray(draw_mixture(problem, keys, MIXED)[0]), 1, 0)[None]
        told, found = _told(model, stars), completed(problem, u, keys)
        draws = np.concatenate([found[s.name].reshape(*found[s.name].shape[:3], -1) for s in told], -1)
        summaries, covariance = of_draws(draws)
        blank = ~np.any([stars[b].observed.any(1) for b in stars.blocks if b in model.require_frame().blocks], 0)
        flags, diagnostics = flags_of_solution(out, np.asarray(problem.modes.weight), blank)
        failed = out.failed | blank
        for x in (*summaries.values(), covariance):
            x[failed] = np.nan
        draws[:, :, failed] = np.nan
        per_star = {**diagnostics, "flags": flags}
        return star_rows(stars, _named(model, told).names, draws, summaries, covariance, per_star, self.columns)

    def batch_size(self, model: OwnProgram) -> int:
        return 512

    def asked(self, model: OwnProgram) -> tuple[str, ...]:
        return () if model.asked is None else (model.asked,)

    def held_out_view(self, model: OwnProgram, stars: Stars) -> Stars:
        if model.asked is None:
            raise CannotDo("a program without a block `labels` does not say what is to be held out")
        return super().held_out_view(model, stars)

    def quantities(self, model: OwnProgram, stars: Stars | None = None) -> Quantities:
        if stars is None:
            frame = model.require_frame()
            at = frame.blocks.index(model.asked) if model.asked else 0
            return Quantities(frame.columns[at], frame.column_units[at])
        return _named(model, _told(model, stars))

    def about(self, posterior: TrainedModel[OwnProgram, ProgramMoments]) -> dict[str, Any]:
        integrated = f"{KEPT} draws of the sites that all stars share"
        return {"program": posterior.model.name, "integrated_over": integrated}

    def log_density(
        self, posterior: TrainedModel[OwnProgram, ProgramMoments], result: StarResult, stars: Stars
    ) -> np.ndarray:
        """Density of the block that is asked for, under a Gaussian of what the program draws of it."""
        block = stars[posterior.model.asked]
        value, variance, observed = block.filled()
        names = self.quantities(posterior.model).names
        at = [result.frame.names.index(name) for name in names]
        noise = variance if block.has_covariance else variance[:, :, None] * np.eye(block.n_dim)
        offset = np.where(observed, value, np.nan) - result.mean[:, at]
        return log_density_of(offset, result.cov[:, at][:, :, at] + noise)

    def true_quantities(self, model: OwnProgram, sites: dict[str, Any], stars: Stars) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for site in _told(model, stars):
            names, _ = model.require_frame().named(site)
            flat = sites[site.name].reshape(len(stars), -1)
            out |= {name: flat[:, i] for i, name in enumerate(names)}
        return out

    def predict(
        self, posterior: TrainedModel[OwnProgram, ProgramMoments], stars: Stars, name: str | None, with_error: bool
    ) -> Any:
        raise CannotDo(
            f"{posterior.model.name} is a program of your own: numpyro.infer.Predictive(program, ...)(key, stars) "
            "predicts every site"
        )

    def summary(self, posterior: TrainedModel[OwnProgram, ProgramMoments]) -> QTable:
        """Mean and sd of every number that all stars share."""
        draws = posterior.data["posterior"].to_dataset()
        rows = []
        frame = posterior.model.require_frame()
        for name, shape in (*frame.shared, *frame.recorded):
            flat = draws[name].values.reshape(-1, int(np.prod(shape, dtype=int)))
            for i, index in enumerate(np.ndindex(*shape)):
                place = f"{name}[{', '.join(map(str, index))}]" if shape else name
                rows.append((place, flat[:, i].mean(), flat[:, i].std(ddof=min(1, len(flat) - 1))))
        return QTable(rows=rows, names=("site", "mean", "sd"), dtype=(str, float, float))

    def describe(self, model: OwnProgram) -> str:
        frame = model.require_frame()
        star = ", ".join(name for name, _ in frame.star)
        return f"the program {model.name}, {star or 'nothing'} of every star"


def _told(model: OwnProgram, stars: Stars) -> list[Site]:
    """The sites that a result tells of such stars."""
    few = stars[:2]
    return told_of(sites_of(model.program, few), few)


def _named(model: OwnProgram, told: list[Site]) -> Quantities:
    """Names and units of all numbers of these sites."""
    named = [model.require_frame().named(site) for site in told]
    names, units = (tuple(x for parts in named for x in parts[i]) for i in (0, 1))
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise bad_input(f"sites of the stars that give several columns {twice}", "names that are free")
    return Quantities(names, units)
