"""Model files: a netCDF4 (HDF5) file, and after it the SHA-256 of all its bytes.

The file is made in memory, so that a full disk is an error of this process and not of HDF5's. It is read in the same
way: the checksum comes before HDF5 sees a byte, then only what a file of this package may hold is looked at, and what
was read must fit the model that it is said to be of. Nothing that the file names is opened or run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from ..core import values as state
from ..core.model import Model, Scales
from ..errors import BadInput, bad_input
from ..kind import kind_of

FORMAT = 2
"""Version of the file layout; 1 had no checksum."""
SEAL = b"\nbayeslabels sha256 "
"""What stands between the netCDF4 file and its checksum."""
DEPTH = 4
"""Groups in groups, at most."""
FILTERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)
"""What HDF5 does without loading a library that the file names."""
WRITTEN_BY = "a model file written by Posterior.save"


def sealed(content: bytes) -> bytes:
    """A netCDF4 file with its checksum."""
    return content + SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"


def unsealed(data: bytes, path: Path) -> tuple[bytes, bool]:
    """The netCDF4 file, and whether it had a checksum; refuses a file that does not agree with its own."""
    size = len(sealed(b""))
    content, seal = data[:-size], data[-size:]
    if data and data == sealed(content):
        return content, True
    words = [word for word in SEAL.split() if word in data[-2 * size :]]
    if words or seal.startswith(SEAL):
        raise bad_input(
            f"{path}, whose numbers do not agree with its checksum", WRITTEN_BY,
            "it was damaged on a disk or on its way, or changed by another program", "copy it again, or train again",
        )  # fmt: skip
    return data, False


def to_bytes(model: Model, data: xr.DataTree, info: Mapping[str, Any]) -> bytes:
    arrays: dict[str, np.ndarray] = {}
    tree = data.copy()
    attrs = {"bayeslabels_format": FORMAT, "model": state.dumps(model, arrays), "info": json.dumps(info)}
    stored = {}
    for name, x in arrays.items():
        dims = [f"{name}_{i}" for i in range(x.ndim)]
        stored[name] = (dims, x.astype(np.int8) if x.dtype == bool else x, {"bool": int(x.dtype == bool)})
    tree["model"] = xr.DataTree(xr.Dataset(stored))
    tree.attrs.update(attrs)
    made = io.BytesIO()
    tree.to_netcdf(made, engine="h5netcdf")
    return sealed(made.getvalue())


def from_bytes(data: bytes, path: Path, program: Any = None) -> tuple[Any, xr.DataTree, Any, dict[str, Any]]:
    """Model, data, moments and info of a file; path: its name, for messages; program: of the user's own.

    Raises:
        BadInput: of all that is no whole model file.
    """
    content, checked = unsealed(data, path)
    try:
        return _read(content, checked, path, program)
    except BadInput:
        raise
    except Exception as problem:  # whatever a damaged file makes HDF5, netCDF4 or JSON stumble over
        raise bad_input(
            f"{path}, which cannot be read as netCDF4 with a model in it ({type(problem).__name__}: "
            f"{' '.join(str(problem).split())[:160]})",
            WRITTEN_BY, "a truncated download or another kind of file",
        ) from problem  # fmt: skip


def _read(content: bytes, checked: bool, path: Path, program: Any) -> tuple[Any, xr.DataTree, Any, dict[str, Any]]:
    with h5py.File(io.BytesIO(content), "r") as file:
        _refuse_others(file, path, 0)
    with xr.open_datatree(io.BytesIO(content), engine="h5netcdf") as opened:
        tree = opened.load()
    version = tree.attrs.get("bayeslabels_format")
    if version is None:
        raise bad_input(f"{path} without a bayeslabels model", WRITTEN_BY)
    version = _whole_number(version, path)
    if version > FORMAT:
        raise bad_input(
            f"{path} of format {version}", f"at most {FORMAT}", "a newer bayeslabels wrote it",
            "pip install --upgrade bayeslabels",
        )  # fmt: skip
    if version > 1 and not checked:
        raise bad_input(
            f"{path} without its checksum", WRITTEN_BY, "its end was cut off, or another program changed it"
        )
    stored = tree["model"].to_dataset()
    arrays = {str(name): (x.values.astype(bool) if x.attrs["bool"] else x.values) for name, x in stored.items()}
    model = state.loads(tree.attrs["model"], arrays, program)
    info = json.loads(tree.attrs["info"])
    if not isinstance(model, Model) or not isinstance(info, dict):
        raise bad_input(f"{path} with a {type(model).__name__} and a {type(info).__name__}", "a model and its notes")
    trained = {str(name): x for name, x in tree["moments"].to_dataset().items()}
    _check(model, {name: x.values for name, x in trained.items()}, tree, path)
    moments = kind_of(model).read_moments({name: x.values for name, x in trained.items()})
    del tree["model"]
    for name in ("bayeslabels_format", "model", "info"):
        del tree.attrs[name]
    return model, tree, moments, info


def _whole_number(x: Any, path: Path) -> int:
    if not isinstance(x, int | np.integer) or x < 1:
        raise bad_input(f"{path} of format {str(x)[:20]!r}", "a whole number", "another program changed it")
    return int(x)


def _refuse_others(group: Any, path: Path, depth: int) -> None:
    """Refuse what would make HDF5 read another file, load a library, or make up numbers that are not there."""
    if depth > DEPTH:
        raise bad_input(f"{path} with groups in groups in groups", WRITTEN_BY)
    for name in group:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise bad_input(f"{path}, in which {group.name}/{name} is a link", f"{WRITTEN_BY}, which has none")
        x = group[name]
        if isinstance(x, h5py.Group):
            _refuse_others(x, path, depth + 1)
        elif not isinstance(x, h5py.Dataset):
            raise bad_input(f"{path}, in which {x.name} is a {type(x).__name__}", f"{WRITTEN_BY}, which has none")
        else:
            _refuse_elsewhere(x, path)


def _refuse_elsewhere(x: Any, path: Path) -> None:
    settings = x.id.get_create_plist()
    filters = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
    if x.external or x.is_virtual or not filters <= set(FILTERS):
        raise bad_input(
            f"{path}, in which {x.name} is kept in another file or by a plug-in", "a file that has all in it"
        )
    label = x.attrs.get("NAME", b"")
    place = isinstance(label, bytes) and label.startswith(b"This is a netCDF dimension but not a netCDF variable")
    if not place and not filters and x.id.get_storage_size() < x.size * x.id.get_type().get_size():
        raise bad_input(f"{path}, in which {x.name} has no numbers", WRITTEN_BY)


def _check(model: Any, moments: Mapping[str, np.ndarray], tree: xr.DataTree, path: Path) -> None:
    """Refuse moments, draws or a frame of another shape than the model's, or that are not numbers."""
    if model.frame is None:
        raise bad_input(f"{path} with a model that has not seen training stars", "a trained model")
    _check_fields(model.frame, path)
    if isinstance(frame := model.frame, Scales) and hasattr(frame, "names"):
        size = (len(frame.names),)
        for name in ("centre", "scale"):
            x = getattr(frame, name)
            if x.shape != size or not np.isfinite(x).all() or (name == "scale" and not (x > 0).all()):
                raise bad_input(f"{path} with a frame whose {name} is {x}", f"{size[0]} finite numbers")
    kind = kind_of(model)
    layout = kind.layout(model)
    sizes = {name: len(values) for name, values in layout.coords.items()} | kind.sizes(model)
    for group, dims_of in (("posterior", layout.sites), ("moments", layout.moments)):
        for key, x in tree[group].to_dataset().items():
            name = str(key)
            own = dims_of.get(name)
            if own is None:
                raise bad_input(f"{path} with {name} in its {group}", f"one of {', '.join(dims_of)}")
            expected = ["chain", "draw", *own] if group == "posterior" else own
            if list(x.dims) != list(expected) or any(x.sizes[d] != sizes.get(d, x.sizes[d]) for d in own):
                shape = ", ".join(f"{d} {sizes.get(d, 'any')}" for d in expected)
                raise bad_input(f"{path} with {name} of {dict(x.sizes)}", f"({shape}), as its model says")
            if group == "moments":
                _check_numbers(name, x.values, "pixel" in own, name in kind.unbounded, path)


def _check_numbers(name: str, x: np.ndarray, by_pixel: bool, unbounded: bool, path: Path) -> None:
    """Pixels that could not be trained are NaN; nothing else is."""
    if x.dtype.kind not in "fiu":
        raise bad_input(f"{path} with {name} of type {x.dtype}", "numbers")
    wrong = np.isnan(x) if unbounded else ~np.isfinite(x)
    if wrong.all() if by_pixel and x.size else wrong.any():
        raise bad_input(
            f"{path} with {name} of which {int(wrong.sum())} of {x.size} are not finite", "finite numbers",
            "a training step that did not converge",
        )  # fmt: skip


def _check_fields(value: Any, path: Path) -> None:
    """Refuse a frame with a field of another type than it declares."""
    hints = typing.get_type_hints(type(value))
    for one in dataclasses.fields(value):
        if not _is_a(getattr(value, one.name), hints[one.name]):
            shown = str(getattr(value, one.name))[:60]
            raise bad_input(f"{path}, in which {one.name} of {type(value).__name__} is {shown}", str(one.type))


def _is_a(x: Any, hint: Any) -> bool:
    """Whether a value is of a declared type; types that cannot be told are."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(x, part) for part in parts)
    if origin is typing.Literal:
        return x in parts
    if origin is tuple:
        if not isinstance(x, tuple):
            return False
        if parts[1:] == (...,):
            return all(_is_a(y, parts[0]) for y in x)
        return len(x) == len(parts) and all(map(_is_a, x, parts))
    if hint is typing.Any:
        return True
    if hint is float:
        return isinstance(x, float | int) and not isinstance(x, bool)
    if hint is int:
        return isinstance(x, int) and not isinstance(x, bool)
    return isinstance(x, hint) if isinstance(hint, type) and origin is None else True
