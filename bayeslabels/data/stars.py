"""Stars: what is measured of each star, in named blocks, with errors, units and honest gaps.

Missing is missing: a value or an error that is NaN or infinite drops that number from the likelihood.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from astropy.table import QTable

from ..errors import BadInput, bad_input, index_of
from ..numerics.by_value import ByValue
from ..numerics.linalg import Array
from .arrow import without_arrow
from .columns import (
    INDICATOR,
    SUFFIXES,
    Numbers,
    column_of,
    convert,
    default_names,
    error_from_ivar,
    has_suffix,
    identifiers,
    layout_of,
    numbers,
    of_names,
    read_blocks,
    table_of,
    texts,
    unit_strings,
    where_wrong,
)
from .html import ROWS, shown

LARGEST = 1e150
"""Above it squares of numbers overflow, and sums of them."""
ROUNDING = 1e-5
"""By how much a correlation may differ from itself across the diagonal, as of matrices that were kept in float32."""


@dataclass(frozen=True)
class _Static(ByValue):
    """An array that JAX can compare to know whether a compiled function fits."""

    array: np.ndarray


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Block:
    """One measured quantity for all stars; immutable, and a JAX pytree whose leaves are value and error.

    Args:
        value: (n_star, n_dim), or (n_star,) for one column. NaN, infinite or masked: missing.
        error: standard deviations, a scalar, (n_dim,), (n_star, n_dim), or for one column (n_star,); or
            covariances (n_star, n_dim, n_dim). NaN, infinite or masked: missing. None: to be learned.
        names: one per column; "0", "1", ... by default up to 64 columns, None (unnamed) beyond.
        unit: a string, an astropy unit, or one per column. Quantities bring theirs or are converted.
        coords: what the columns stand for, e.g. ``{"pixel": wavelength}``, each of shape (n_dim,).

    Numbers are copied to NumPy float64, or float32 where ``value`` is, and validated here only.

    Raises:
        BadInput: zero or negative errors, a covariance that is not one, shapes or units that do not fit.

    Example:
        >>> import bayeslabels as bl
        >>> value, error = [[4800.0, 2.5], [5100.0, 3.1]], [[40.0, 0.1], [50.0, 0.1]]
        >>> labels = bl.Block(value, error, names=("TEFF", "LOGG"), unit=("K", "dex"))
        >>> labels.select(["LOGG"]).value
        array([[2.5],
               [3.1]])
    """

    value: Array
    error: Array | None
    names: tuple[str, ...] | None
    unit: str | tuple[str, ...] | None
    _coords: tuple[tuple[str, _Static], ...]

    def __init__(
        self,
        value: Any,
        error: Any = None,
        *,
        names: Sequence[str] | str | None = None,
        unit: Any = None,
        coords: Mapping[str, Any] | None = None,
    ):
        spread = None if error is None else numbers(error, "error")
        self.__dict__.update(_valid(numbers(value, "value"), spread, names, unit, coords))

    @classmethod
    def from_ivar(cls, value: Any, ivar: Any, *, names: Any = None, unit: Any = None, coords: Any = None) -> Block:
        """A block from inverse variances, of any shape of ``error`` but covariances; 0 or NaN: missing."""
        error = error_from_ivar(numbers(ivar, "ivar"), "ivar")
        return _make(cls, **_valid(numbers(value, "value"), error, names, unit, coords))

    @classmethod
    def of_names(cls, names: Any) -> Block:
        """A block that says which of some names each star has, such as its survey: one text per star, "" for none.

        Its columns are the names, 1 where a star has it, else 0. `Stars.from_table` makes the blocks `survey` and
        `parallax_system` of columns of texts.

        Example:
            >>> import bayeslabels as bl
            >>> bl.Block.of_names(["apogee", "galah", ""]).names
            ('apogee', 'galah')
        """
        found = texts(names)
        if found is None:
            raise bad_input("names that are no texts", "one text per star", fix='Block.of_names(["apogee", "galah"])')
        return _make(cls, **_valid(**of_names(found)))

    @property
    def has_names(self) -> bool:
        """Whether it was made by `of_names`."""
        return INDICATOR in self.coords

    def tree_flatten(self) -> tuple[Any, Any]:
        return (self.value, self.error), (self.names, self.unit, self._coords)

    @classmethod
    def tree_unflatten(cls, static: Any, leaves: Any) -> Block:
        value, error = leaves
        names, unit, coords = static
        return _make(cls, value=value, error=error, names=names, unit=unit, _coords=coords)

    @property
    def n_star(self) -> int:
        return self.value.shape[0]

    @property
    def n_dim(self) -> int:
        return self.value.shape[1]

    @property
    def units(self) -> tuple[str, ...]:
        """One per column, "" where there is none."""
        return self.unit if isinstance(self.unit, tuple) else (self.unit or "",) * self.n_dim

    @property
    def coords(self) -> dict[str, np.ndarray]:
        return {name: static.array for name, static in self._coords}

    @property
    def has_covariance(self) -> bool:
        return self.error is not None and self.error.ndim == 3

    @property
    def _xp(self) -> Any:
        return np if isinstance(self.value, np.ndarray) else jnp

    @property
    def _spread(self) -> Array:
        """Errors, or the diagonal of the covariances: (n_star, n_dim)."""
        return self._xp.diagonal(self.error, axis1=1, axis2=2) if self.has_covariance else self.error

    @property
    def observed(self) -> Array:
        """True where a number enters the likelihood: (n_star, n_dim)."""
        finite = self._xp.isfinite(self.value)
        return finite if self.error is None else finite & self._xp.isfinite(self._spread) & (self._spread > 0)

    @property
    def n_missing(self) -> int:
        return int((~self.observed).sum())

    def filled(self) -> tuple[Array, Array, Array]:
        """Value, variance and mask, each (n_star, n_dim), without a NaN: missing have value 0 and variance 1.

        Observed numbers of a block without errors have variance 0; covariances give their diagonal.
        """
        mask, where = self.observed, self._xp.where
        value = where(mask, self.value, 0)
        spread = where(mask, 0 * value if self.error is None else self._spread, 1)
        return value, spread if self.has_covariance else spread**2, mask

    def filled_covariance(self) -> Array:
        """Covariances (n_star, n_dim, n_dim) without a NaN: those of missing numbers are the identity's."""
        _, variance, mask = self.filled()
        eye = self._xp.eye(self.n_dim, dtype=variance.dtype)
        if not self.has_covariance:
            return variance[:, :, None] * eye
        return self._xp.where(mask[:, :, None] & mask[:, None, :], self.error, eye)

    def __getitem__(self, rows: Any) -> Block:
        """The stars of a slice, mask or integer array; one integer gives a block of one star."""
        rows = _rows(rows, self.n_star)
        error = None if self.error is None else self.error[rows]
        return _make(Block, **{**self.__dict__, "value": self.value[rows], "error": error})

    def select(self, columns: Any) -> Block:
        """The columns of these names or indices, in this order; or of a slice or mask."""
        if not isinstance(columns, slice):
            columns = [columns] if isinstance(columns, str | int) else list(columns)
            columns = [index_of(c, self.names or (), "column") if isinstance(c, str) else c for c in columns]
        at = np.arange(self.n_dim)[columns]
        if not 0 < len(at) == len(set(at)):
            raise bad_input(f"columns {at.tolist()}", "at least one, each once")
        error = self.error
        if error is not None:
            error = error[:, at[:, None], at] if self.has_covariance else error[:, at]
        names = self.names and tuple(self.names[i] for i in at)
        unit = unit_strings([self.unit[i] for i in at], len(at), "") if isinstance(self.unit, tuple) else self.unit
        coords = tuple((name, _Static(static.array[at])) for name, static in self._coords)
        return _make(Block, value=self.value[:, at], error=error, names=names, unit=unit, _coords=coords)

    def __repr__(self) -> str:
        unit = ", ".join(x or "-" for x in self.unit) if isinstance(self.unit, tuple) else self.unit
        error = "no error" if self.error is None else "covariance" if np.ndim(self.error) == 3 else "error"
        known = isinstance(self.value, np.ndarray)
        missing = f", {100 * self.n_missing / max(self.value.size, 1):.3g}% missing" if known else ""
        return f"Block({np.shape(self.value)}, {f'[{unit}]' if unit else 'no unit'}, {error}{missing})"

    def _repr_html_(self) -> str:
        names = self.names or tuple(str(i) for i in range(self.n_dim))
        known = self.observed.sum(0)
        some = [*range(min(self.n_dim, ROWS))]
        rows = [(names[i], self.units[i], f"{np.median(_known(self, i)):.4g}", known[i]) for i in some]
        more = f"and {self.n_dim - len(some)} more columns" if self.n_dim > len(some) else ""
        return shown(repr(self), ("column", "unit", "median", "measured"), rows, more)


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False, init=False, repr=False)
class Stars:
    """Named blocks of the same stars; immutable, a JAX pytree, sliceable by star: ``stars[mask].flux.value``.

    Args:
        id: one string or integer per star, unique; 0, 1, ... by default. None once JAX has transformed the
            stars: names do not belong in compiled functions.
        **blocks: a `Block` each, of equal ``n_star``. With an ``id`` there may be none, to simulate stars.

    Raises:
        BadInput: no stars, blocks of different length, duplicated ids, block names that are taken.

    Example:
        >>> import numpy as np
        >>> import bayeslabels as bl
        >>> flux = bl.Block(np.ones((2, 3)), 0.01, coords={"wavelength": [5000.0, 5001.0, 5002.0]})
        >>> stars = bl.Stars(id=["a", "b"], flux=flux)
        >>> len(stars), stars[:1].id
        (2, array(['a'], dtype='<U1'))
    """

    id: np.ndarray | None
    n_star: int
    _blocks: dict[str, Block]

    def __init__(self, *, id: Any = None, **blocks: Block):
        for name, block in blocks.items():
            if name.startswith("_") or name in ("id", "n_star") or hasattr(Stars, name) or has_suffix(name):
                raise bad_input(f"a block named {name!r}", f"a name that is free, and ends in none of {SUFFIXES}")
            if not isinstance(block, Block):
                raise bad_input(f"{name}: {type(block).__name__}", "a Block", fix=f"{name}=Block({name}, error)")
        ids = None if id is None else identifiers(id)
        lengths = {name: block.n_star for name, block in blocks.items()} | ({} if ids is None else {"id": len(ids)})
        if len(set(lengths.values())) != 1:
            raise bad_input(f"blocks of length {lengths}", "at least one, and one row per star in each")
        n_star = next(iter(lengths.values()))
        if n_star == 0:
            raise _no_stars()
        self.__dict__.update(id=np.arange(n_star) if ids is None else ids, n_star=n_star, _blocks=blocks)

    def tree_flatten(self) -> tuple[Any, Any]:
        names = tuple(sorted(self._blocks))
        return tuple(self._blocks[name] for name in names), (names, None if names else self.n_star)

    @classmethod
    def tree_unflatten(cls, static: Any, leaves: Any) -> Stars:
        names, n_star = static
        if names:  # leaves may be anything while JAX is at work, and have another length afterwards
            shape = getattr(getattr(leaves[0], "value", None), "shape", ())
            n_star = shape[0] if shape else 0
        return _make(cls, id=None, n_star=n_star, _blocks=dict(zip(names, leaves, strict=True)))

    @property
    def blocks(self) -> Mapping[str, Block]:
        return MappingProxyType(self._blocks)

    def __len__(self) -> int:
        return self.n_star

    def __iter__(self) -> Iterator[Stars]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._blocks

    def __getattr__(self, name: str) -> Block:
        blocks = self.__dict__.get("_blocks", {})
        if name not in blocks:
            raise AttributeError(f"these stars have no block {name!r}, only {', '.join(blocks)}")
        return blocks[name]

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *self._blocks]

    def __getitem__(self, key: Any) -> Any:
        """A block by its name; or the stars of a slice, mask, integer array, or one integer (of one star)."""
        if isinstance(key, str):
            if key not in self._blocks:
                index_of(key, self._blocks, "block")
            return self._blocks[key]
        rows = _rows(key, len(self))
        n_star = rows.shape[0] if isinstance(rows, jax.Array) else len(np.arange(len(self))[rows])
        if n_star == 0:
            raise bad_input(f"a selection that keeps 0 of {len(self)} stars", "at least one")
        blocks = {name: block[rows] for name, block in self._blocks.items()}
        return _make(Stars, id=None if self.id is None else self.id[rows], n_star=n_star, _blocks=blocks)

    def drop(self, *names: str) -> Stars:
        """Without these blocks, which a model will then sample."""
        for name in names:
            index_of(name, self._blocks, "block")
        kept = {name: block for name, block in self._blocks.items() if name not in names}
        return _make(Stars, **{**self.__dict__, "_blocks": kept})

    def with_block(self, **blocks: Block) -> Stars:
        """With these blocks added, or put in the place of those of the same name."""
        if blocks and Stars(**blocks).n_star != self.n_star:
            raise bad_input(f"{Stars(**blocks).n_star} stars in {', '.join(blocks)}", f"these {self.n_star} stars")
        return _make(Stars, **{**self.__dict__, "_blocks": {**self._blocks, **blocks}})

    def __repr__(self) -> str:
        return "\n  ".join([f"Stars({self.n_star})", *(f"{k}: {str(b)[6:-1]}" for k, b in self._blocks.items())])

    def _repr_html_(self) -> str:
        rows = [(name, str(block)[6:-1], ", ".join((block.names or ())[:ROWS])) for name, block in self._blocks.items()]
        return shown(f"{self.n_star} stars", ("block", "shape, unit, errors", "columns"), rows)

    @classmethod
    def from_table(cls, table: Any, *, id: str | None = None, **columns: Any) -> Stars:
        """Stars from a table of astropy, pandas, Arrow or polars, FITS records, a structured array or a dict of arrays.

        Args:
            table: one row per star. Units and masks are kept.
            id: the column that names the stars.
            **columns: ``<block>="FLUX"``, a vector column, or ``<block>=("TEFF", "LOGG")``, scalar ones,
                naming its columns, or several vector columns side by side; also ``<block>_error`` (or numbers, as in
                `Block`) or ``<block>_ivar``; ``<block>_unit``, ``_names`` and ``_coords`` as in `Block`. No columns
                at all for a table from `to_table`.

        Raises:
            BadInput: columns that are not there, and all that `Block` and `Stars` refuse.
        """
        table = without_arrow(table)
        if not isinstance(table, Mapping) and len(table) == 0:  # of which vectors have no length
            raise _no_stars()
        layout, id = layout_of(table, id, columns)
        blocks = {name: _make(Block, **_valid(**parts, name=name)) for name, parts in read_blocks(table, layout)}
        return cls(id=None if id is None else column_of(table, id), **blocks)

    def to_table(self) -> QTable:
        """An astropy table: ``id``, a column per name (a vector column for unnamed blocks), and errors.

        Covariances are one column without a unit. `from_table` restores the stars, also from a file.
        """
        return table_of(self.id, self._blocks)


def _make(cls: Any, **fields: Any) -> Any:
    new = object.__new__(cls)
    new.__dict__.update(fields)
    return new


def _rows(rows: Any, n_star: int) -> Any:
    if isinstance(rows, slice | jax.core.Tracer):
        return rows
    rows = np.asarray(rows)
    if rows.ndim == 0 and rows.dtype != bool:
        i = operator.index(rows[()])
        if not -n_star <= i < n_star:
            raise IndexError(f"star {i} of {n_star}")
        return slice(i % n_star, i % n_star + 1)
    if rows.ndim != 1 or (rows.dtype == bool and len(rows) != n_star):
        raise bad_input(f"rows of shape {rows.shape}", f"a slice, a mask ({n_star},) or integers")
    return rows if len(rows) else slice(0, 0)


def _valid(value: Numbers, error: Numbers | None, names: Any, unit: Any, coords: Any, name: str = "") -> dict[str, Any]:
    """The fields of a block, which messages call ``name``."""
    what, error_name = name or "value", f"{name}_error" if name else "error"
    x = value[0][:, None] if value[0].ndim == 1 else value[0]
    if x.ndim != 2 or not x.shape[1]:
        raise bad_input(f"{what} of shape {x.shape}", "(n_star, n_dim), or (n_star,)")
    n_dim = x.shape[1]
    unit = unit_strings(unit if unit is not None else value[1], n_dim, what)
    x = convert((x, value[1]), unit, what)
    if isinstance(names, set | frozenset):
        raise bad_input(f"names of {what} as a set, which has no order", "a list or tuple")
    names = default_names(n_dim) if names is None else (names,) if isinstance(names, str) else tuple(names)
    if odd := [x for x in names or () if not (isinstance(x, str) and x.strip() and x.isprintable())]:
        raise bad_input(f"{odd[0]!r} among the names of {what}", "texts that can be printed", fix='names=("TEFF", ...)')
    if names is not None and (len(names) != n_dim or len(set(names)) < n_dim):
        raise bad_input(f"names {names} of {what}", f"{n_dim}, each once")
    if x.dtype == np.float64 and (wrong := np.isfinite(x) & ((x > LARGEST) | (x < -LARGEST))).any():
        raise bad_input(
            f"{what} {where_wrong(wrong, f'above {LARGEST:g}', names)}", "numbers whose square is finite",
            "a number that stands for missing", f"np.where(np.abs({what}) < 1e30, {what}, np.nan)",
        )  # fmt: skip
    spread = None
    if error is not None:
        spread = convert((_shaped(error[0], x, what, error_name), error[1]), unit, error_name, spread=True)
        _check(spread, x, error_name, names, f"{name}_ivar=..." if name else "Block.from_ivar(value, ivar)")
        spread = spread.astype(x.dtype, copy=False)
        spread.flags.writeable = False
    x.flags.writeable = False
    frozen = []
    for key, along in (coords or {}).items():
        array = np.array(along)
        if (
            hasattr(along, "unit")
            or np.ma.is_masked(along)
            or array.shape != (n_dim,)
            or array.dtype.kind not in "iufU"
        ):
            raise bad_input(
                f"coords {key!r} of shape {array.shape}", f"({n_dim},) plain numbers or strings, none masked"
            )
        array.flags.writeable = False
        frozen.append((key, _Static(array)))
    return {"value": x, "error": spread, "names": names, "unit": unit, "_coords": tuple(frozen)}


def _shaped(error: np.ndarray, x: np.ndarray, what: str, error_name: str) -> np.ndarray:
    (n_star, n_dim), shape = x.shape, error.shape
    if shape == x.shape:
        return error
    if shape in ((), (n_dim,)):
        return np.array(np.broadcast_to(error, x.shape))
    if shape == (n_star, n_dim, n_dim) or (n_dim == 1 and shape == (n_star,)):
        return error.reshape(n_star, n_dim, *shape[2:])
    if shape == (n_star,):
        fix = f"np.tile({error_name}[:, None], {n_dim})"
        raise bad_input(f"one {error_name} per star", f"one per column of {what}", fix=fix)
    if len(shape) == 3 or shape == (n_dim, n_dim) or shape[1:] == (n_dim,):
        raise bad_input(f"{error_name} of shape {shape}", f"{x.shape}, or covariances {(n_star, n_dim, n_dim)}")
    one = "label" if what == "labels" else "column"
    cure = f"give one error per {one}, or omit {error_name} to learn the scatter."
    raise BadInput(f"{what} has {n_dim} columns but {error_name} has {shape[-1]}: {cure}")


def _check(error: np.ndarray, x: np.ndarray, what: str, names: Any, from_ivar: str) -> None:
    """Refuse errors that cannot be; covariances become symmetric to the bit."""
    spread = np.diagonal(error, axis1=1, axis2=2) if error.ndim == 3 else error
    there = np.isfinite(x) & np.isfinite(spread)
    if (wrong := there & (spread <= 0)).any():
        fix = f"{from_ivar}, or error=np.where(error > 0, error, np.nan) to mark missing"
        cause = "inverse variances, or a sentinel for missing"
        raise bad_input(f"{what} {where_wrong(wrong, 'zero or negative', names)}", "errors above 0", cause, fix)
    if (there & (spread < np.finfo(x.dtype).tiny ** (1 / 2 if error.ndim == 2 else 1))).any():
        fix = 'flux / 1e-17, unit="1e-17 W / (m2 nm)", or float64'
        raise bad_input(f"{what} so small that its square is 0 in {x.dtype}", "numbers nearer to 1", fix=fix)
    if error.ndim == 2:
        return
    pairs = there[:, :, None] & there[:, None, :]
    scale = np.sqrt(np.where(there, spread, 1).astype(float))
    matrix = np.where(pairs, error / (scale[:, :, None] * scale[:, None, :]), np.eye(x.shape[1]))
    even = np.abs(matrix - matrix.swapaxes(1, 2)) <= max(ROUNDING, np.sqrt(np.finfo(error.dtype).eps))
    if (wrong := ~even.all((1, 2))).any():
        cure = "covariances, 0 where uncorrelated, NaN on the diagonal where missing"
        raise bad_input(f"{what} {where_wrong(wrong, 'not symmetric or not finite')}", cure)
    error[...] = 0.5 * (error + error.swapaxes(1, 2))
    matrix = 0.5 * (matrix + matrix.swapaxes(1, 2))
    if (wrong := np.linalg.eigvalsh(matrix)[:, 0] <= 0).any():
        raise bad_input(f"{what} {where_wrong(wrong, 'not positive definite')}", "covariances", "correlations of 1")


def _known(block: Block, column: int) -> np.ndarray:
    """The measured numbers of a column, one NaN if there is none."""
    value = np.asarray(block.value)[np.asarray(block.observed)[:, column], column]
    return value if value.size else np.array([np.nan])


def _no_stars() -> BadInput:
    return bad_input("0 stars", "at least one", "a selection that no star passes")
