"""What the verbs, files and tables ask of a kind of models; each folder of kinds/ answers for its own.

A kind is found by the base class of a model (`kind_of`): nothing else branches on what a model is. Its table `trainers`
says which inferences train its models, and how: the refusals, the README and the tests read it there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, Self

import numpy as np
import xarray as xr
from astropy.table import QTable

from .core.model import M, Model, register_kinds
from .data.batches import Rows, RowsInMemory
from .data.stars import Stars
from .errors import CannotDo, bad_input
from .files.checkpoint import Checkpoint
from .inference.base import Inference, T, Trained
from .inference.whitened import Start

KINDS: dict[type[Model], Kind[Any, Any]] = {}
"""The kinds, by the base class of their models."""


SHOWN = 3
"""Numbers of a site that stand for all of them in simulation-based calibration."""


class TrainedModel(Protocol[M, T]):
    """What kinds ask of a `results.Posterior`."""

    model: M
    data: xr.DataTree
    moments: T
    info: dict[str, Any]

    def with_moments(self, moments: T, **point: np.ndarray) -> Self: ...
    def with_model(self, **changes: Any) -> Self: ...


class StarResult(Protocol):
    """What kinds ask of a `results.StarPosterior`."""

    data: xr.DataTree
    info: dict[str, Any]

    def __len__(self) -> int: ...
    @property
    def stars(self) -> xr.Dataset: ...
    @property
    def frame(self) -> Quantities: ...
    @property
    def mean(self) -> np.ndarray: ...
    @property
    def cov(self) -> np.ndarray: ...


@dataclass
class Choice(Generic[M]):
    """What is settled before training: the model, bound to its training stars; the stars kept; what to tell of it.

    `kept` (N,): which of the stars that were given these are; None: all. `held_out`: whatever `Kind.complete` wants to
    know again.
    """

    model: M
    stars: Stars
    info: dict[str, Any] = field(default_factory=dict)
    held_out: Any = None
    kept: np.ndarray | None = None


class Layout(NamedTuple):
    """Coordinates, and the dimensions of the sites' draws (after chain and draw) and of the moments, by name."""

    coords: dict[str, Any]
    sites: dict[str, list[str]]
    moments: dict[str, list[str]]


class Quantities(NamedTuple):
    """What is inferred of every star, and the block of labels that it is compared with."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    block: str = "labels"


class Column(NamedTuple):
    """What a number of every star is, beside its labels; unit: "" for none."""

    meaning: str
    unit: str = ""


DIAGNOSTICS = {
    "khat": Column("Pareto k-hat of the importance weights: not to be trusted above 0.7"),
    "rhat": Column("R-hat of the chains: they do not agree above 1.02"),
    "ess": Column("effective number of draws"),
    "n_divergent": Column("divergent transitions of the sampler"),
    "second_mode": Column("probability of all solutions but the best"),
    "flags": Column("bits of what to beware of, named in the table's metadata"),
}
"""Columns that stars of every kind may have."""


class Trainer(NamedTuple):
    """How an inference trains the models of a kind.

    stars: (model, stars, inference, seed, progress) -> Trained, of stars in memory.
    rows: (rows, inference, seed, progress, checkpoint) -> Trained, of stars that may be more than memory holds; serves
    stars in memory, too, where the other is None.
    """

    stars: Callable[[Any, Stars, Any, int, bool | None], Trained] | None = None
    rows: Callable[[Rows, Any, int, bool | None, Checkpoint | None], Trained] | None = None


def told_of(stars: Stars, blocks: Iterable[str]) -> np.ndarray:
    """(N,): stars of which anything was measured in these blocks."""
    told = [stars[name].observed.any(1) for name in blocks if name in stars]
    return np.any([np.zeros(len(stars), bool), *told], 0)


class Kind(ABC, Generic[M, T]):
    """A kind of models: how they are trained, what is inferred of a star, and how both are told."""

    models: ClassVar[type[Model]]
    """The base class of its models."""
    moments: ClassVar[type[Any]]
    """NamedTuple of arrays: what the test step integrates over."""
    trainers: ClassVar[Mapping[type[Inference], Trainer]]
    """The training step: inference -> how. What is not here is refused."""
    answers: ClassVar[tuple[type[Inference], ...] | None] = None
    """The inferences of the test step; None: the kind poses a `StarProblem`, which every inference that has a test step
    solves."""
    fit_by: ClassVar[Inference]
    infer_by: ClassVar[Inference]
    """The inferences where the user names none."""
    keeps_order: ClassVar[bool] = False
    """Whether models are trained on stars in the order in which these are given, on which all then may depend."""
    lost: ClassVar[str] = ""
    """Key of a result's `info` under which the number of stars that are not `usable` is recorded; "": all are."""

    beside: ClassVar[tuple[str, ...]] = ()
    """Quantities of every star beside its labels, whose names labels cannot have."""
    columns: ClassVar[Mapping[str, Column]] = DIAGNOSTICS
    """What a result tells of every star beside its labels."""
    parts: ClassVar[Mapping[str, Column]] = {}
    """What it may tell of every label beside its error and percentiles, in the label's unit."""
    saved: ClassVar[tuple[str, ...]] = ()
    """Vectors that `StarPosterior.table` can hold of a star beside its quantities, errors and diagnostics."""
    unbounded: ClassVar[tuple[str, ...]] = ()
    """Moments that may be infinite."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        KINDS[cls.models] = cls()

    def serving(self, verb: str) -> list[type[Inference]]:
        """The inferences that serve these models, by name, for "fit" or "infer"."""
        every = sorted(Inference.__subclasses__(), key=lambda x: x.__name__)
        return [x for x in every if self.serves(x, verb)]

    def serves(self, inference: type[Inference], verb: str) -> bool:
        """Whether an inference serves these models, for "fit" or "infer"."""
        if verb == "fit":
            return inference in self.trainers
        return inference.answers() if self.answers is None else inference in self.answers

    def require(self, inference: Inference, model: M, verb: str) -> None:
        """Refuse an inference that does not serve this model, saying what does."""
        if not isinstance(inference, Inference):
            got = f"the class {inference.__name__}" if isinstance(inference, type) else f"inference={inference!r}"
            others = " or ".join(f"{x.__name__}()" for x in self.serving(verb))
            raise bad_input(got, "an inference", fix=others)
        if not self.serves(type(inference), verb):
            others = " or ".join(f"{x.__name__}()" for x in self.serving(verb))
            raise CannotDo(f"{type(inference).__name__} has no {verb} step for {self.called(model)}: use {others}")

    def called(self, model: M) -> str:
        """What messages call a model."""
        return type(model).__name__

    def choose(self, model: M, stars: Stars, inference: Inference, seed: int, progress: bool | None) -> Choice[M]:
        """Settle what the model's settings leave open, and leave out the stars that are not `usable`."""
        usable = self.usable(model, stars)
        kept = None if usable.all() or not usable.any() else usable
        used = stars if kept is None else stars[kept]
        info = {self.lost: int((~usable).sum())} if self.lost else {}
        return Choice(model.bind(used), used, info, kept=kept)

    def train(self, model: M, stars: Stars, inference: Inference, seed: int, progress: bool | None) -> Trained[T]:
        """The training step, of stars in memory."""
        how = self.trainers[type(inference)]
        if how.stars is not None:
            return how.stars(model, stars, inference, seed, progress)
        return self.train_rows(RowsInMemory(model, stars), inference, seed, progress, None)

    def train_rows(
        self, rows: Rows, inference: Inference, seed: int, progress: bool | None, checkpoint: Checkpoint | None
    ) -> Trained[T]:
        """The training step, of stars that may be more than memory holds."""
        how = self.trainers[type(inference)].rows
        assert how is not None
        return how(rows, inference, seed, progress, checkpoint)

    def by_rows(self, inference: Inference, large: bool) -> bool:
        """Whether the stars are taken row after row: where they are `large`, in files or with a checkpoint, if that can
        be, and where there is no other way."""
        how = self.trainers[type(inference)]
        return how.rows is not None and (large or how.stars is None)

    def not_by_rows(self, model: M) -> str:
        """What of a model's settings training by rows cannot heed, and what to do; "": nothing."""
        return ""

    def not_as_program(self, model: M) -> str:
        """What of a model's settings is lost where its program alone is trained, and what to do; "": nothing."""
        return "" if self.first_pass(model) is None else "a first pass that finds outliers (outlier_sigma=None)"

    def usable(self, model: M, stars: Stars) -> np.ndarray:
        """(N,): stars that say anything of the model."""
        return np.ones(len(stars), bool)

    def first_pass(self, model: M) -> tuple[M, float] | None:
        """The model whose training tells outliers before the model itself is trained, and how many robust scatters away
        these are; None: no star is left out."""
        return None

    def offsets(self, model: M, result: StarResult, stars: Stars) -> np.ndarray:
        """What is measured of stars less what a test step without it found, NaN where either is missing; where there
        is a `first_pass`."""
        raise NotImplementedError  # pragma: no cover - guarded by `first_pass`

    def test_settings(self, model: M, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of the model for the test step alone, checked: what `infer` was asked beside stars."""
        raise CannotDo(f"{' and '.join(asked)} are of models of spectra, such as Cannon: {self.called(model)} has none")

    def start(self, model: M, stars: Stars, seed: int) -> Start:
        """Where samplers of the program begin."""
        return Start(dict(model.starting_point(stars)))

    def finish(self, model: M, stars: Stars, trained: Trained[Any]) -> Trained[T]:
        """What inferences of the program found, with the moments."""
        return trained

    def train_many(self, model: M, sims: Sequence[Stars], inference: Any, seed: int) -> Iterator[Trained[Any]]:
        """`train` of several sets of stars that differ in their measured values alone; side by side where it can be."""
        if not inference.many:
            for i, stars in enumerate(sims):
                yield self.train(model, stars, inference, seed + i, False)
            return
        starts = [self.start(model, stars, seed + i) for i, stars in enumerate(sims)]
        for stars, trained in zip(sims, inference.fit_many(model, sims, starts, seed), strict=True):
            yield self.finish(model, stars, trained)

    def complete(self, posterior: TrainedModel[M, T], choice: Choice[M]) -> TrainedModel[M, T]:
        """The posterior with what only held-out stars could tell."""
        return posterior

    @abstractmethod
    def layout(self, model: M) -> Layout: ...

    def sizes(self, model: M) -> dict[str, int]:
        """Sizes of dimensions of the moments that have no coordinates, where the model says them."""
        return {}

    def read_moments(self, arrays: dict[str, np.ndarray]) -> T:
        """The moments from the arrays of a file."""
        return self.moments(**{name: arrays[name] for name in self.moments._fields if name in arrays})

    @abstractmethod
    def infer(
        self,
        posterior: TrainedModel[M, T],
        stars: Stars,
        inference: Inference,
        seed: int,
        keys: np.ndarray,
        progress: bool | None,
    ) -> dict[str, xr.Dataset]:
        """`posterior` (draws) and `stars` (summaries and flags) of a batch of stars, a row each.

        seed: of random numbers that all stars share; keys (N, 2): of each star's own (`numerics.own_variates`).
        """

    def asked(self, model: M) -> tuple[str, ...]:
        """Blocks that the test step is asked for, and would take as data where they are present."""
        return ()

    def held_out_view(self, model: M, stars: Stars) -> Stars:
        """Stars without what the test step is asked for."""
        return stars.drop(*[name for name in self.asked(model) if name in stars])

    def batch_size(self, model: M) -> int:
        """Stars at a time."""
        return 4096

    @abstractmethod
    def quantities(self, model: M, stars: Stars | None = None) -> Quantities:
        """What is inferred of every star, or of such stars as these."""

    @abstractmethod
    def about(self, posterior: TrainedModel[M, T]) -> dict[str, Any]:
        """For a result's `info`: what was integrated over."""

    def log_prior(
        self, posterior: TrainedModel[M, T], stars: Stars, names: Sequence[str], values: np.ndarray
    ) -> np.ndarray:
        """ln p (P, N) of quantities of these names at values (P, Q), under each star's own prior in the test step."""
        raise CannotDo(f"the prior of {', '.join(names)} is not known of {self.called(posterior.model)}")

    @abstractmethod
    def log_density(self, posterior: TrainedModel[M, T], result: StarResult, stars: Stars) -> np.ndarray:
        """ln p (N,) of what `held_out_view` hides, or the test step does not use; NaN where a star has none."""

    def require_saved(self, model: M, names: Sequence[str]) -> tuple[str, ...]:
        """The names, if all are of those that can be saved."""
        names = (names,) if isinstance(names, str) else tuple(names)
        can = (*self.saved, "correlations", *(["reduced_chi2"] if "chi2" in self.columns else []))
        if odd := [name for name in names if name not in can]:
            raise bad_input(f"save={tuple(odd)} of {self.called(model)}", f"some of {can}")
        return names

    def predict_stars(
        self, posterior: TrainedModel[M, T], result: StarResult, name: str | None, with_error: bool
    ) -> Any:
        """What the model makes of the stars of a result, given all that was inferred of them."""
        raise CannotDo(f"{type(posterior.model).__name__} predicts nothing further of a star: see table()")

    def trained_part(self, posterior: TrainedModel[M, T], stars: Stars) -> Stars:
        """The stars without what the training step could not learn from: its parameters are not known."""
        return stars

    def parameters(self, posterior: TrainedModel[M, T], seed: int) -> dict[str, np.ndarray]:
        """Draws {site: (chain, draw, ...)} of the training posterior, as its moments tell it where it has one draw."""
        return {str(name): x.values for name, x in posterior.data["posterior"].to_dataset().items()}

    def identified(self, model: M, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Quantities (S,) that data identify, of sites {name: (S, ...)}: some of each site's numbers."""
        out = {}
        for name, x in draws.items():
            flat = x.reshape(len(x), -1)
            for i in np.unique(np.linspace(0, flat.shape[1] - 1, SHOWN).astype(int)):
                place = ", ".join(map(str, np.unravel_index(i, x.shape[1:])))
                out[f"{name}[{place}]" if place else name] = flat[:, i]
        return out

    @abstractmethod
    def true_quantities(self, model: M, sites: dict[str, Any], stars: Stars) -> dict[str, Any]:
        """True values (N,) of what the test step infers, by name, from sites of a simulation of stars without it."""

    @abstractmethod
    def predict(self, posterior: TrainedModel[M, T], stars: Stars, name: str | None, with_error: bool) -> Any: ...

    @abstractmethod
    def summary(self, posterior: TrainedModel[M, T]) -> QTable: ...

    @abstractmethod
    def describe(self, model: M) -> str:
        """What is made from what, in a line."""

    def details(self, posterior: TrainedModel[M, T]) -> list[str]:
        """Lines for `bayeslabels info` that `summary` leaves out."""
        return []


def by_program(model: Model, stars: Stars, inference: Any, seed: int, progress: bool | None) -> Trained[Any]:
    """The trainer of inferences that take any program, from the start that the kind knows."""
    kind = kind_of(model)
    trained = inference.fit(model, stars, seed, progress, lambda: kind.start(model, stars, seed))
    return kind.finish(model, stars, trained)


def kind_of(model: Model) -> Kind[Any, Any]:
    """The kind of a model."""
    register_kinds()
    for base in type(model).__mro__:
        if base in KINDS:
            return KINDS[base]
    raise bad_input(f"a {type(model).__name__}", "a model", fix="fit(Cannon(order=2), stars)")
