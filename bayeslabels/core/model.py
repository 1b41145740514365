"""The contract of a model: a frozen value that is a NumPyro program, and what the fast routes may rely on.

A model is called with stars: a block present in them is observed, a block absent is sampled; the site of a block bears
its name and has its units, so that what is drawn of it is data (`program.Program`). Nothing else is needed
for `numpyro.infer.MCMC`, `SVI`, `Predictive` or `numpyro.render_model`. Models whose flux is linear in features of each
star's latents declare that structure (`kinds.spectra.model.LinearModel`), and with it every exact fast route is theirs.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from numpyro.distributions import Distribution

from ..data.stars import Stars
from ..errors import bad_input
from ..numerics.by_value import ByValue
from ..numerics.linalg import Array, beside, is_traced
from .program import Program

F = TypeVar("F")
"""What a model takes from its training stars."""

_CLASSES: dict[str, type[Model]] = {}
"""Every subclass of `Model` by name."""


def models() -> dict[str, type[Model]]:
    """The models, by name, that `load` knows: all subclasses of `Model` that can be made."""
    register_kinds()
    return {name: cls for name, cls in sorted(_CLASSES.items()) if not inspect.isabstract(cls)}


def register_kinds() -> None:
    """Import all kinds of models by their package's name: they enter their models and themselves."""
    importlib.import_module("bayeslabels.kinds")


class Scales:
    """Mixin for frames with `centre` and `scale` (M,): labels (..., M) to u = (label - centre) / scale, and back."""

    centre: np.ndarray
    scale: np.ndarray

    def scaled(self, labels: Array) -> Array:
        centre, scale = beside(labels, self.centre, self.scale)
        return (labels - centre) / scale

    def physical(self, u: Array) -> Array:
        centre, scale = beside(u, self.centre, self.scale)
        return centre + scale * u


@dataclass(frozen=True)
class Frame(ByValue, Scales):
    """What a model takes from its training stars: names, units and scales, kept with the posterior.

    u = (label - centre) / scale with centre the median and scale = (p97.5 - p2.5) / 4 of the training labels.

    Attributes:
        names, units: of the labels (M).
        centre, scale: (M,), in label units.
        n_pixel: L. coordinate: (L,) wavelengths or None, named `coordinate_name`.
        flux_scale: the typical absolute flux, which sets the scale of the priors.
        flux_unit: unit of the flux, "" for none.
        blocks: the blocks that the labels came from, each with its number of columns; (): all from `labels`.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    centre: np.ndarray
    scale: np.ndarray
    n_pixel: int
    flux_scale: float
    flux_unit: str = ""
    coordinate: np.ndarray | None = None
    coordinate_name: str | None = None
    blocks: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.n_pixel < 1 or (self.coordinate is not None and self.coordinate.shape != (self.n_pixel,)):
            raise bad_input(f"a frame of {self.n_pixel} pixels", "at least one, and a coordinate for each")

    def columns(self, block: str) -> slice:
        """The labels that came from a block."""
        start = 0
        for name, size in self.blocks or (("labels", len(self.names)),):
            if name == block:
                return slice(start, start + size)
            start += size
        raise bad_input(f"block {block!r}", f"one of {tuple(name for name, _ in self.blocks)}, as in training")


def scaling(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre and scale (M,) of labels (N, M), NaN where missing, as `Frame` defines them; the sd where most labels are
    equal, and never 0."""
    low, centre, high = np.nanpercentile(values, [2.5, 50, 97.5], axis=0)
    floor = 1e-12 * np.maximum(np.abs(centre), 1.0)
    return centre, np.where(high > low, (high - low) / 4, np.maximum(np.nanstd(values, axis=0), floor))


@dataclass(frozen=True)
class Model(ByValue, ABC, Generic[F]):
    """Base of all models: hyperparameters and priors in, NumPyro program out.

    Models are equal where their settings are; what a model is together with its frame: `Bound`.
    """

    frame: F | None = field(default=None, kw_only=True, repr=False, compare=False)
    global_sites: ClassVar[tuple[str, ...]] = ()
    """Names of the sites shared by all stars."""
    stored: ClassVar[tuple[type, ...]] = ()
    """Dataclasses that its files hold besides priors and `Frame`."""
    exact_priors: ClassVar[dict[str, str]] = {}
    """Settings that may be a distribution of the user's own, and the forms that exact routes need instead."""
    offered: ClassVar[bool] = True
    """Whether it can be made by name and settings alone, as on the command line."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = _CLASSES.get(cls.__name__)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise bad_input(
                f"a second model class {cls.__name__}, in {cls.__module__}", "another name",
                f"one of that name is in {known.__module__}, and model files name their class",
            )  # fmt: skip
        _CLASSES[cls.__name__] = cls

    @property
    def blocks(self) -> tuple[str, ...]:
        """The blocks that the program observes where they are present; in files, columns of their names are theirs."""
        return ()

    @property
    def widths(self) -> dict[str, int]:
        """Columns of the blocks that may be vectors in a table, as in training."""
        return {}

    @abstractmethod
    def __call__(self, stars: Stars, batch_size: int | None = None) -> Any:
        """The NumPyro program. batch_size: subsample the plate of stars, for stochastic optimisation."""

    @property
    def changed_program(self) -> bool:
        """Whether the program is not the one that the kind's exact routes solve: a subclass's own `__call__`, or priors
        of the user's own."""
        return bool(self.own_priors) or self.own_call

    @property
    def own_priors(self) -> tuple[str, ...]:
        """Settings that are a distribution of the user's own."""
        return tuple(name for name in self.exact_priors if isinstance(getattr(self, name, None), Distribution))

    def with_usual_priors(self) -> Self:
        """The model with default priors in the place of the user's own: where samplers begin."""
        usual = {x.name: x for x in dataclasses.fields(self) if x.name in self.own_priors}
        return self.replace(
            **{k: x.default_factory() if callable(x.default_factory) else x.default for k, x in usual.items()}
        )

    @property
    def own_call(self) -> bool:
        """Whether a subclass has a `__call__` of its own in the place of a model's."""
        own = next(cls for cls in type(self).__mro__ if "__call__" in vars(cls))
        above = own.__mro__[1:]
        return any("__call__" in vars(cls) and not inspect.isabstract(cls) for cls in above if issubclass(cls, Model))

    def training_program(self, stars: Stars) -> Callable[..., Any]:
        """The program that SVI and NUTS train: this one, unless the stars' own unknowns can be integrated out."""
        return self

    def program_of_data(self, stars: Stars) -> Any:
        """`training_program` as a function of the stars' measured values, `program(program.data(stars))`: what is
        compiled of it serves all stars that differ in nothing else."""
        return Program(self, stars)

    @abstractmethod
    def bind(self, stars: Stars) -> Self:
        """This model with the frame of these training stars; refuses stars it cannot be trained on."""

    @abstractmethod
    def check(self, stars: Stars) -> None:
        """Refuse stars that do not fit the frame of a bound model."""

    def bound(self, stars: Stars) -> Self:
        if self.frame is None and not is_traced(stars):
            return self.bind(stars)
        self.check(stars)
        return self

    def starting_point(self, stars: Stars) -> dict[str, np.ndarray]:
        """Values of sites near a good optimum, where a model knows some; for samplers and stochastic optimisers."""
        return {}

    def comparable(self, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The sites, of draws {site: (chain, draw, ...)}, that chains can agree on."""
        return draws

    @property
    def improper(self) -> str:
        """What to write in the place of a flat prior, from which nothing can be simulated; "": there is none."""
        return ""

    def variants(self) -> tuple[Self, ...]:
        """The models that these settings leave open, to be ranked by held-out density."""
        return (self,)

    def require_frame(self) -> F:
        if self.frame is None:
            raise bad_input(
                f"a {type(self).__name__} that has not seen training stars", "a bound model", fix="model.bind(stars)"
            )
        return self.frame

    def replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)


M = TypeVar("M", bound=Model)
"""The models of a kind."""


class Bound(ByValue, Generic[M]):
    """A bound model together with its frame, which is left out where models are compared: what is compiled is for
    both."""

    def __init__(self, model: M):
        self.model = model

    @cached_property
    def _value(self) -> Any:
        return self.model, self.model.frame
