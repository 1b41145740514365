"""What the verbs, files and tables ask of a kind of models; one file per kind in families/ answers.

A family is found by the base class of a model (`family_of`): nothing else branches on what a model is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
import xarray as xr
from astropy.table import QTable

from .checkpoint import Checkpoint
from .errors import CannotDo, bad_input
from .inference.base import Inference, Trained
from .inference.batches import Rows, RowsInMemory
from .inference.whitened import Start
from .model import Model
from .stars import Stars

FAMILIES: dict[type[Model], Family] = {}
"""The families, by the base class of their models."""


SHOWN = 3
"""Numbers of a site that stand for all of them in simulation-based calibration."""


@dataclass
class Choice:
    """What is settled before training: the model, bound to its training stars; the stars kept; what to tell of it.

    `held_out`: whatever `Family.complete` wants to know again.
    """

    model: Any
    stars: Stars
    info: dict[str, Any] = field(default_factory=dict)
    held_out: Any = None


class Layout(NamedTuple):
    """Coordinates, and the dimensions of the sites' draws (after chain and draw) and of the moments, by name."""

    coords: dict[str, Any]
    sites: dict[str, list[str]]
    moments: dict[str, list[str]]


class Quantities(NamedTuple):
    """What is inferred of every star."""

    names: tuple[str, ...]
    units: tuple[str, ...]


Usable = Callable[[Stars], np.ndarray]
"""Which of N stars (N,) are trained on."""


class Family(ABC):
    """A kind of models: how they are trained, what is inferred of a star, and how both are told."""

    kind: ClassVar[type[Model]]
    moments: ClassVar[Any]
    """NamedTuple of arrays: what the test step integrates over."""
    fit_by: ClassVar[Inference]
    infer_by: ClassVar[Inference]
    """The inferences where the user names none."""
    from_files: ClassVar[tuple[type[Inference], ...]] = ()
    """The inferences that `train_by_batches` serves: of stars that may be more than memory holds, with checkpoints."""
    by_batches: ClassVar[tuple[type[Inference], ...]] = ()
    """Those of them that it serves in place of `train` where the stars are in memory, too."""
    lost: ClassVar[str] = "n_unusable"
    """What the stars are called, in a result's `info`, that are not `usable`."""

    beside: ClassVar[tuple[str, ...]] = ()
    """Quantities of every star beside its labels, whose names labels cannot have."""
    saved: ClassVar[tuple[str, ...]] = ()
    """What `StarPosterior.table` can hold of a star beside its quantities, errors and diagnostics."""
    unbounded: ClassVar[tuple[str, ...]] = ()
    """Moments that may be infinite."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        FAMILIES[cls.kind] = cls()

    def accepts(self, inference: Inference | type[Inference], verb: str) -> bool:
        """Whether an inference serves these models, for "fit" or "infer"."""
        kind = inference.trains if verb == "fit" else inference.infers
        return kind is not None and issubclass(self.kind, kind)

    def require(self, inference: Inference, model: Model, verb: str) -> None:
        """Refuse an inference that does not serve this model, saying what does."""
        if not self.accepts(inference, verb):
            names = sorted(x.__name__ for x in Inference.__subclasses__() if self.accepts(x, verb))
            others = " or ".join(f"{name}()" for name in names)
            raise CannotDo(f"{type(inference).__name__} has no {verb} step for {type(model).__name__}: use {others}")

    def choose(self, model: Any, stars: Stars, inference: Inference, seed: int, progress: bool | None) -> Choice:
        """Settle what the model's settings leave open."""
        return Choice(model.bind(stars), stars)

    def train(self, model: Any, stars: Stars, inference: Inference, seed: int, progress: bool | None) -> Trained:
        return inference.fit(model, stars, seed, progress)

    def not_by_batches(self, model: Any) -> str:
        """What of a model's settings `train_by_batches` cannot heed, and what to do; "": nothing."""
        return ""

    def usable(self, model: Any, stars: Stars) -> np.ndarray:
        """(N,): stars that say anything of the model."""
        return np.ones(len(stars), bool)

    def inliers(self, model: Any, stars: Stars, seed: int, progress: bool | None) -> Usable | None:
        """Which of any stars are no outliers, learned from some; None: the model asks for none to be left out."""
        return None

    def train_by_batches(
        self, rows: Rows, inference: Any, seed: int, progress: bool | None, checkpoint: Checkpoint | None
    ) -> Trained:
        raise NotImplementedError  # pragma: no cover - guarded by `from_files`

    def start(self, model: Any, stars: Stars, seed: int) -> Start:
        """Where samplers of the program begin."""
        return Start(dict(model.starting_point(stars)))

    def finish(self, model: Any, stars: Stars, trained: Trained) -> Trained:
        """What inferences of the program found, with the moments."""
        return trained

    def train_many(self, model: Any, sims: Sequence[Stars], inference: Any, seed: int) -> Iterator[Trained]:
        """`train` of several sets of stars that differ in their measured values alone; side by side where it can be."""
        if not inference.many:
            for i, stars in enumerate(sims):
                if isinstance(inference, self.by_batches):
                    yield self.train_by_batches(RowsInMemory(model, stars), inference, seed + i, False, None)
                else:
                    yield self.train(model, stars, inference, seed + i, False)
            return
        starts = [self.start(model, stars, seed + i) for i, stars in enumerate(sims)]
        for stars, trained in zip(sims, inference.fit_many(model, sims, starts, seed), strict=True):
            yield self.finish(model, stars, trained)

    def complete(self, posterior: Any, choice: Choice) -> Any:
        """The posterior with what only held-out stars could tell."""
        return posterior

    @abstractmethod
    def layout(self, model: Any) -> Layout: ...

    def sizes(self, model: Any) -> dict[str, int]:
        """Sizes of dimensions of the moments that have no coordinates, where the model says them."""
        return {}

    def read_moments(self, arrays: dict[str, np.ndarray]) -> Any:
        """The moments from the arrays of a file."""
        return self.moments(**{name: arrays[name] for name in self.moments._fields if name in arrays})

    @abstractmethod
    def infer(
        self, posterior: Any, stars: Stars, inference: Inference, seed: int, first: int, progress: bool | None
    ) -> dict[str, xr.Dataset]:
        """`posterior` (draws) and `stars` (summaries and flags) of a batch of stars, a row each; first: its place."""

    def asked(self, model: Any) -> tuple[str, ...]:
        """Blocks that the test step is asked for, and would take as data where they are present."""
        return ()

    def held_out_view(self, model: Any, stars: Stars) -> Stars:
        """Stars without what the test step is asked for."""
        return stars.drop(*[name for name in self.asked(model) if name in stars])

    def batch_size(self, model: Any) -> int:
        """Stars at a time."""
        return 4096

    @abstractmethod
    def quantities(self, model: Any, stars: Stars | None = None) -> Any:
        """`names` and `units` of what is inferred of every star, or of such stars as these."""

    @abstractmethod
    def about(self, posterior: Any) -> dict[str, Any]:
        """For a result's `info`: what was integrated over."""

    @abstractmethod
    def log_density(self, posterior: Any, result: Any, stars: Stars) -> np.ndarray:
        """ln p (N,) of what `held_out_view` hides, or the test step does not use; NaN where a star has none."""

    def require_saved(self, model: Any, names: Sequence[str]) -> tuple[str, ...]:
        """The names, if all are of those that can be saved."""
        names = (names,) if isinstance(names, str) else tuple(names)
        if odd := [name for name in names if name not in self.saved]:
            can = f"some of {self.saved}" if self.saved else f"nothing: {type(model).__name__} has no further columns"
            raise bad_input(f"save={tuple(odd)}", can)
        return names

    def predict_stars(self, posterior: Any, result: Any, name: str | None, with_error: bool) -> Any:
        """What the model makes of the stars of a result, given all that was inferred of them."""
        raise CannotDo(f"{type(posterior.model).__name__} predicts nothing further of a star: see table()")

    def parameters(self, posterior: Any, seed: int) -> dict[str, np.ndarray]:
        """Draws {site: (chain, draw, ...)} of the training posterior, as its moments tell it where it has one draw."""
        return {str(name): x.values for name, x in posterior.data["posterior"].to_dataset().items()}

    def identified(self, model: Any, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Quantities (S,) that data identify, of sites {name: (S, ...)}: some of each site's numbers."""
        out = {}
        for name, x in draws.items():
            flat = x.reshape(len(x), -1)
            for i in np.unique(np.linspace(0, flat.shape[1] - 1, SHOWN).astype(int)):
                place = ", ".join(map(str, np.unravel_index(i, x.shape[1:])))
                out[f"{name}[{place}]" if place else name] = flat[:, i]
        return out

    @abstractmethod
    def true_quantities(self, model: Any, sites: dict[str, Any], stars: Stars) -> dict[str, Any]:
        """True values (N,) of what the test step infers, by name, from sites of a simulation of stars without it."""

    @abstractmethod
    def predict(self, posterior: Any, stars: Stars, name: str | None, with_error: bool) -> Any: ...

    @abstractmethod
    def summary(self, posterior: Any) -> QTable: ...

    @abstractmethod
    def describe(self, model: Any) -> str:
        """What is made from what, in a line."""

    def details(self, posterior: Any) -> list[str]:
        """Lines for `bayeslabels info` that `summary` leaves out."""
        return []


def family_of(model: Any) -> Family:
    """The family of a model."""
    for base in type(model).__mro__:
        if base in FAMILIES:
            return FAMILIES[base]
    raise bad_input(f"a {type(model).__name__}", "a model", fix="fit(Cannon(order=2), stars)")
