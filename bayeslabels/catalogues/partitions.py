"""The test step for catalogues that a cluster holds in partitions (LSDB on HATS, or any Dask dataframe).

posterior.save("/shared/photometry.nc")
found = lsdb.open_catalog(...).map_partitions(infer_partition, "/shared/photometry.nc", columns={...})
found.write_catalog(...)
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from astropy.table import Table

from ..files.formats.parquet import table_of_arrow
from ..files.sources import Columns, columns_as_in_training, columns_needed
from ..inference.base import Inference
from ..kind import kind_of
from ..numerics.linalg import in_float64
from ..results.posterior import Posterior, load
from ..verbs import few_batches
from .catalog import infer_table


@in_float64
def infer_partition(
    partition: Any,
    posterior: Posterior | str | os.PathLike[str],
    inference: Inference | None = None,
    *,
    columns: Mapping[str, Any] | None = None,
    keep: Sequence[str] = ("ra", "dec"),
    seed: int = 0,
    batch_size: int | None = None,
) -> Any:
    """`infer(...).table()` of one partition: a pandas DataFrame in, one with the same index out.

    Args:
        partition: of any number of rows, none included: from such a one Dask learns the columns of the result.
        posterior: a file that every worker can read (it is read once by each), or the posterior itself.
        columns: as in `infer_catalog`. keep: columns that are carried over, those that there are; LSDB needs ra, dec.
        batch_size: stars at a time; smaller partitions are filled up, so that each worker compiles once. None: the
            smallest of three sizes that holds the stars.

    The same partition has the same result, to the bit, on whatever worker.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> import pandas
        >>> spectra = {"flux": list(test.flux.value), "err": list(test.flux.error)}
        >>> partition = pandas.DataFrame({"source": test.id} | spectra)
        >>> columns = {"flux": "flux", "flux_error": "err", "id": "source"}
        >>> frame = bl.partitions.infer_partition(partition, posterior, columns=columns, keep=())
        >>> len(frame)
        20
    """
    known = posterior if isinstance(posterior, Posterior) else _loaded(os.fspath(posterior))
    kind = kind_of(known.model)
    inference = inference or kind.infer_by
    kind.require(inference, known.model, "infer")
    given = columns_as_in_training("the partition", columns or {}, known, list(partition.columns))
    names = columns_needed(given)
    n, sizes = len(partition), [batch_size] if batch_size else few_batches(known.model)
    most = sizes[-1]
    some = _table(partition, names) if n else _nothing(partition, given)
    tables = []
    for first in range(0, len(some), most):
        part = some[first : first + most]
        size = next(x for x in sizes if x >= len(part))
        tables.append(infer_table(known, part, given, {}, inference, seed, first, size)[0])
    found = _stacked(tables, given)[:n]
    found.index = partition.index
    kept = [name for name in keep if name in partition.columns and name not in found]
    return partition[kept].join(found) if not kept or n == 0 else partition[kept].assign(**dict(found.items()))


@functools.lru_cache(maxsize=4)
def _loaded(path: str) -> Posterior:
    return load(path)


def _table(partition: Any, names: list[str]) -> Table:
    import pyarrow

    return table_of_arrow(pyarrow.Table.from_pandas(partition[names], preserve_index=False))


def _nothing(partition: Any, columns: Columns) -> Table:
    """One star of which nothing is known, with the columns of the partition."""
    out = Table()
    for name in columns_needed(columns):
        dtype = partition[name].dtype
        if "str" in str(dtype):
            out[name] = np.array([""])
        else:
            out[name] = np.zeros(1, int) if dtype.kind in "iu" else np.array([np.nan])
    return out


def _stacked(tables: list[Any], columns: Columns) -> Any:
    """One DataFrame; without the ids if they are only numbers of rows."""
    import pandas

    frames = [Table({name: np.asarray(t[name]) for name in t.colnames}).to_pandas() for t in tables]
    whole = pandas.concat(frames, ignore_index=True)
    return whole if columns.get("id") else whole.drop(columns="id")
