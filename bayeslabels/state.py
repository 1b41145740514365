"""Models and inferences as plain data, so that a file holds numbers and names and loading it runs no code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import priors
from .errors import BadInput
from .loglinear import FeatureFrame
from .model import MODELS, Frame
from .models.translator_frame import TranslatorFrame

_PRIORS = {
    c.__name__: c
    for c in (priors.Flat, priors.Normal, priors.Laplace, priors.Learned, priors.HalfNormal, priors.Horseshoe)
}
_FRAMES = {c.__name__: c for c in (Frame, FeatureFrame, TranslatorFrame)}


def encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """JSON-ready form of a model, prior, frame or plain value; arrays are put aside in `arrays`."""
    if isinstance(value, np.ndarray):
        name = f"array_{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encode(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, "fields": fields}
    if isinstance(value, Mapping):
        return {"mapping": [[str(k), encode(v, arrays)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [encode(v, arrays) for v in value]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BadInput(f"cannot store a {type(value).__name__} in a model file: {value!r}")


def decode(state: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """The value behind `encode`'s output; only known types are made."""
    if not isinstance(state, dict):
        return state
    (kind, *_), known = state, _PRIORS | MODELS | _FRAMES
    if kind == "array":
        return np.array(arrays[state["array"]])
    if kind == "mapping":
        return {k: decode(v, arrays) for k, v in state["mapping"]}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(decode(v, arrays) for v in state[kind])
    if kind == "type" and state["type"] in known:
        return known[state["type"]](**{k: decode(v, arrays) for k, v in state["fields"].items()})
    raise BadInput(f"this file names {state.get('type', kind)!r}, which this version does not know: update bayeslabels")


def dumps(value: Any, arrays: dict[str, np.ndarray]) -> str:
    return json.dumps(encode(value, arrays))


def loads(text: str, arrays: Mapping[str, np.ndarray]) -> Any:
    return decode(json.loads(text), arrays)
