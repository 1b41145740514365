"""A program of the user's own as a model: any function of stars with NumPyro's `sample` and a plate "star"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from ...core.model import Model
from ...data.columns import default_names
from ...data.stars import Block, Stars
from ...errors import bad_input
from ...kind import kind_of
from ...numerics.by_value import ByValue
from .sites import Site, sites_of


@dataclass(frozen=True)
class ProgramFrame(ByValue):
    """What is kept of the training stars.

    Attributes:
        blocks: their blocks, which the program saw. columns, column_units: of each.
        shared: sites that all stars share, with their shapes; star: those of the stars, without the axis of stars.
        n_star: how many stars.
        recorded: what the program records (`numpyro.deterministic`) beside its stars, with shapes.
    """

    blocks: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]
    column_units: tuple[tuple[str, ...], ...]
    shared: tuple[tuple[str, tuple[int, ...]], ...]
    star: tuple[tuple[str, tuple[int, ...]], ...]
    n_star: int
    recorded: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def named(self, site: Site) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names and units of the numbers of a star's site: those of the block that it, or `true_` and it, is."""
        block = site.name.removeprefix("true_")
        if block in self.blocks and len(self.columns[at := self.blocks.index(block)]) == site.size:
            return self.columns[at], self.column_units[at]
        if site.shape == ():
            return (site.name,), ("",)
        return tuple(f"{site.name}_{i}" for i in range(site.size)), ("",) * site.size


@dataclass(frozen=True)
class OwnProgram(Model[ProgramFrame]):
    """A NumPyro program of stars as a model; `fit(program, stars)` makes one.

    The program is called with `Stars`. A block that is present is to be observed (`obs=`), one that is absent sampled,
    under a site of the block's name, so that one program serves training (labels and flux), the test step (flux) and
    simulation (neither). Sites under `numpyro.plate("star", len(stars))` are the stars', all others are shared::

        def program(stars):
            slope = numpyro.sample("slope", dist.Normal(0, 10))
            with numpyro.plate("star", len(stars)):
                x = numpyro.sample("labels", dist.Normal(0, 1).expand([1]).to_event(1), obs=observed(stars, "labels"))
                numpyro.sample("flux", dist.Normal(slope * x, 0.1).to_event(1), obs=observed(stars, "flux"))

    Args:
        program: a function, or a model whose own program is changed in a subclass.

    Example:
        >>> import numpy as np
        >>> import numpyro
        >>> import numpyro.distributions as dist
        >>> import bayeslabels as bl
        >>> def program(stars):
        ...     width = numpyro.sample("width", dist.HalfNormal(1.0))
        ...     value, error = stars["height"].value[:, 0], stars["height"].error[:, 0]
        ...     with numpyro.plate("star", len(stars)):
        ...         true = numpyro.sample("true", dist.Normal(0.0, width))
        ...         numpyro.sample("height", dist.Normal(true, error), obs=value)
        >>> heights = bl.Block(np.random.default_rng(0).normal(size=(30, 1)), 0.3)
        >>> posterior = bl.fit(program, bl.Stars(height=heights), bl.NUTS(chains=2, draws=50), progress=False)
        >>> posterior.data["posterior"]["width"].shape
        (2, 50)
    """

    program: Callable[..., Any] = field(kw_only=False)

    stored: ClassVar[tuple[type, ...]] = (ProgramFrame,)
    offered: ClassVar[bool] = False

    def __call__(self, stars: Stars, batch_size: int | None = None) -> Any:
        return self.program(stars)

    @property
    def changed(self) -> Model | None:
        """The model whose own program is changed, where the program is none of the user's writing throughout."""
        return self.program if isinstance(self.program, Model) else None

    @property
    def name(self) -> str:
        """What the program is called."""
        if self.changed is not None:
            return type(self.changed).__name__
        return str(getattr(self.program, "__qualname__", type(self.program).__qualname__))

    @property
    def blocks(self) -> tuple[str, ...]:
        if self.changed is not None:
            return self.changed.blocks
        return () if self.frame is None else self.frame.blocks

    @property
    def widths(self) -> dict[str, int]:
        frame = self.require_frame()
        return {block: len(names) for block, names in zip(frame.blocks, frame.columns, strict=True)}

    @property
    def asked(self) -> str | None:
        """The block that the test step is asked for: `labels`, if there are any, or that of the changed model."""
        asked = ("labels",) if self.changed is None else kind_of(self.changed).asked(self.changed)
        return next((name for name in asked if name in self.require_frame().blocks), None)

    def bind(self, stars: Stars) -> Self:
        program = self.program if self.changed is None else self.changed.bind(stars)
        sites = sites_of(program, stars)
        blocks = tuple(stars.blocks)
        columns = tuple(_columns(b, stars[b]) for b in blocks)
        frame = ProgramFrame(
            blocks, columns, tuple(stars[b].units for b in blocks),
            tuple((s.name, s.shape) for s in sites if not s.of_star and s.latent),
            tuple((s.name, s.shape) for s in sites if s.of_star and (s.latent or s.name not in blocks)),
            len(stars),
            tuple((s.name, s.shape) for s in sites if s.recorded and not s.of_star),
        )  # fmt: skip
        return self.replace(program=program, frame=frame)

    def check(self, stars: Stars) -> None:
        frame = self.require_frame()
        if self.changed is not None:
            self.changed.check(stars)
        for block in stars.blocks:
            if block in frame.blocks and stars[block].n_dim != len(frame.columns[frame.blocks.index(block)]):
                n = len(frame.columns[frame.blocks.index(block)])
                raise bad_input(f"{block} of {stars[block].n_dim} columns", f"{n}, as in training")

    def starting_point(self, stars: Stars) -> dict[str, np.ndarray]:
        return {} if self.changed is None else self.changed.with_usual_priors().starting_point(stars)

    def comparable(self, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return draws if self.changed is None else self.changed.comparable(draws)


def _columns(name: str, block: Block) -> tuple[str, ...]:
    """What the columns of a block are called in results: by their names, or where they have none by the block's."""
    if block.names is not None and block.names != default_names(block.n_dim):
        return block.names
    return (name,) if block.n_dim == 1 else tuple(f"{name}_{i}" for i in range(block.n_dim))


def as_model(model: object) -> Model:
    """A model as it is; a program of the user's own, or a model whose program is, as an `OwnProgram`.

    Raises:
        BadInput: of anything else.
    """
    if isinstance(model, Model):
        return OwnProgram(model) if model.changed_program else model
    if callable(model) and not isinstance(model, type):
        return OwnProgram(model)
    got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    raise bad_input(got, "a model, or a NumPyro program of stars", fix="fit(Cannon(order=2), stars)")
