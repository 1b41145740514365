"""Files of the stars' posteriors: `StarPosterior` as a tree of arrays, in a file with its checksum (`files.sealed`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..errors import bad_input
from ..files.sealed import load_sealed, refuse_unchecked, save_sealed, version_in
from ..kind import Quantities

FORMAT, VERSION = "bayeslabels_stars", 1
"""Name of the attribute with the version of the file layout, and the present one."""
WRITTEN_BY = "a file written by StarPosterior.save"
NEEDED = ("mean", "covariance", "flags")
"""What every result has of its stars."""


def save_stars(data: xr.DataTree, frame: Quantities, info: dict[str, Any], path: Any, overwrite: bool) -> Path:
    """Write the posteriors of stars."""
    about = {"names": frame.names, "units": frame.units, "block": frame.block}
    attrs = {FORMAT: VERSION, "inferred": json.dumps(about), "info": json.dumps(info, default=_plain)}
    return save_sealed(data, attrs, path, overwrite)


def load_stars(path: Any) -> tuple[xr.DataTree, Quantities, dict[str, Any]]:
    """Data, names and notes of a file."""
    return load_sealed(path, WRITTEN_BY, lambda tree, checked: _read(tree, checked, Path(path)))


def _read(tree: xr.DataTree, checked: bool, path: Path) -> tuple[xr.DataTree, Quantities, dict[str, Any]]:
    version_in(tree, FORMAT, VERSION, path, WRITTEN_BY)
    if not checked:
        refuse_unchecked(path, WRITTEN_BY)
    about, info = json.loads(tree.attrs["inferred"]), json.loads(tree.attrs["info"])
    inferred = Quantities(tuple(map(str, about["names"])), tuple(map(str, about["units"])), str(about["block"]))
    if not isinstance(info, dict):
        raise bad_input(f"{path} with notes {str(info)[:60]}", WRITTEN_BY)
    groups = {name: _as_saved(tree[name].to_dataset()) for name in ("posterior", "stars")}
    _check(groups, inferred, path)
    return xr.DataTree.from_dict(groups), inferred, info


def _check(groups: dict[str, xr.Dataset], inferred: Quantities, path: Path) -> None:
    """Refuse results whose parts are not those of the same stars and labels."""
    stars, names = groups["stars"], list(inferred.names)
    if missing := [x for x in NEEDED if x not in stars]:
        raise bad_input(f"{path} without {', '.join(missing)}", WRITTEN_BY)
    n, m = stars.sizes["star"], len(names)
    shapes = {"mean": (n, m), "covariance": (n, m, m), "flags": (n,)}
    odd = [name for name, shape in shapes.items() if stars[name].shape != shape or stars[name].dtype.kind not in "fiu"]
    odd += [f"{group} of {x}" for group, data in groups.items() for x in ("star", "labels") if x not in data.coords]
    if not odd:
        same = np.array_equal(groups["posterior"]["star"], stars["star"])
        odd += [] if same else ["draws of other stars"]
        labels = [g["labels"].values.tolist() for g in groups.values()]
        odd += [] if labels == [names, names] and len(inferred.units) == m else ["labels of other names"]
    if odd or stars["flags"].dtype.kind == "f":
        raise bad_input(f"{path} with {', '.join(odd) or 'flags'} that does not fit the rest", WRITTEN_BY)


def _as_saved(data: xr.Dataset) -> xr.Dataset:
    """Texts of one width, which files keep as objects."""
    texts = {name: x for name, x in data.coords.items() if x.dtype.kind in "OT"}
    return data.assign_coords({name: (x.dims, np.array(x.values.tolist(), str)) for name, x in texts.items()})


def _plain(value: Any) -> Any:
    """Numbers of NumPy in notes."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return str(value)
