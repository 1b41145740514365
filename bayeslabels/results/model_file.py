"""Model files: what a trained model is, in a file with its checksum (`files.sealed`); what was read must fit the model
that it is said to be of."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..core import values as state
from ..core.model import Model, Scales
from ..errors import bad_input
from ..files.sealed import ABOUT, MODEL_FILE, load_sealed, refuse_unchecked, save_sealed, version_in
from ..kind import kind_of

FORMAT = 2
"""Version of the file layout; 1 had no checksum."""


def save_model(
    model: Model, data: xr.DataTree, info: Mapping[str, Any], path: Any, overwrite: bool, about: str
) -> Path:
    """Write a model file; about: what it says of itself in words."""
    arrays: dict[str, np.ndarray] = {}
    tree = data.copy()
    attrs = {"bayeslabels_format": FORMAT, "model": state.dumps(model, arrays), "info": json.dumps(info), ABOUT: about}
    stored = {}
    for name, x in arrays.items():
        dims = [f"{name}_{i}" for i in range(x.ndim)]
        stored[name] = (dims, x.astype(np.int8) if x.dtype == bool else x, {"bool": int(x.dtype == bool)})
    tree["model"] = xr.DataTree(xr.Dataset(stored))
    return save_sealed(tree, attrs, path, overwrite)


def load_model(path: Any, program: Any = None) -> tuple[Any, xr.DataTree, Any, dict[str, Any]]:
    """Model, data, moments and info of a file; program: of the user's own.

    Raises:
        BadInput: of all that is no whole model file.
    """
    return load_sealed(path, MODEL_FILE, lambda tree, checked: _read(tree, checked, Path(path), program))


def _read(tree: xr.DataTree, checked: bool, path: Path, program: Any) -> tuple[Any, xr.DataTree, Any, dict[str, Any]]:
    if version_in(tree, "bayeslabels_format", FORMAT, path, MODEL_FILE) > 1 and not checked:
        refuse_unchecked(path, MODEL_FILE)
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
    for name in ("bayeslabels_format", "model", "info", ABOUT):
        tree.attrs.pop(name, None)
    return model, tree, moments, info


def _check(model: Model, moments: Mapping[str, np.ndarray], tree: xr.DataTree, path: Path) -> None:
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
