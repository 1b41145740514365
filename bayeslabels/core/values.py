"""Models and inferences as plain data, so that a file holds numbers and names and loading it runs no code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpyro.distributions import Distribution

from ..errors import BadInput, bad_input
from . import priors
from .model import Frame, Model, models

_PRIORS = {
    c.__name__: c
    for c in (
        priors.Flat,
        priors.Normal,
        priors.Laplace,
        priors.Learned,
        priors.HalfNormal,
        priors.Horseshoe,
        priors.Exponential,
        priors.NormalModulus,
        priors.ExponentialDisk,
        priors.Galaxy,
        priors.AlongSightline,
        priors.LabelMixture,
    )
}


def encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """JSON-ready form of a model, prior, frame or plain value; arrays are put aside in `arrays`."""
    if isinstance(value, np.ndarray):
        name = f"array_{len(arrays)}"
        arrays[name] = value
        return {"array": name}
    if isinstance(value, Distribution):
        raise bad_input(
            f"a model with a {type(value).__name__} of your own as a prior", "priors that a file can hold",
            "files hold no code", "keep the code that makes it, and fit again; or a prior of bayeslabels.priors",
        )  # fmt: skip
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: encode(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
        state = {"type": type(value).__name__, "fields": fields}
        return state | ({"module": type(value).__module__} if isinstance(value, Model) else {})
    if callable(value):
        return {"program": place_of(value)}
    if isinstance(value, Mapping):
        return {"mapping": [[str(k), encode(v, arrays)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [encode(v, arrays) for v in value]}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise BadInput(f"cannot store a {type(value).__name__} in a model file: {value!r}")


def place_of(program: Any) -> str:
    """Where a function is: module:name."""
    return f"{program.__module__}:{getattr(program, '__qualname__', type(program).__qualname__)}"


def decode(state: Any, arrays: Mapping[str, np.ndarray], program: Any = None) -> Any:
    """The value behind `encode`'s output; only known types are made.

    program: the function that a file names, which nothing imports or runs unasked.
    """
    if not isinstance(state, dict):
        return state
    kind, known = next(iter(state)), _PRIORS | models() | {"Frame": Frame}
    known |= {x.__name__: x for model in models().values() for x in model.stored}
    if kind == "array":
        return np.array(arrays[state["array"]])
    if kind == "mapping":
        return {k: decode(v, arrays, program) for k, v in state["mapping"]}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(decode(v, arrays, program) for v in state[kind])
    if kind == "type" and state["type"] in known:
        return known[state["type"]](**{k: decode(v, arrays, program) for k, v in state["fields"].items()})
    if kind == "program":
        return _as_named(program, state["program"])
    if kind == "type" and not str(state.get("module", "bayeslabels")).startswith("bayeslabels"):
        raise bad_input(
            f"a file of the model {state['type']} of the module {state['module']}, which is not imported",
            "a model that this process knows", fix=f"import {state['module']}, then load again",
        )  # fmt: skip
    raise BadInput(f"this file names {state.get('type', kind)!r}, which this version does not know: update bayeslabels")


def dumps(value: Any, arrays: dict[str, np.ndarray]) -> str:
    return json.dumps(encode(value, arrays))


def loads(text: str, arrays: Mapping[str, np.ndarray], program: Any = None) -> Any:
    return decode(json.loads(text), arrays, program)


def _as_named(program: Any, place: str) -> Any:
    """The program, if it is the one that was trained; of the module `__main__`, which is many, the name is enough."""
    if program is None:
        raise bad_input(
            f"a file of a program of your own, {place}", "that program beside it", "files hold no code",
            f"load(path, model={place.rpartition(':')[2]})",
        )  # fmt: skip
    (module, name), (own_module, own_name) = place.split(":"), place_of(program).split(":")
    if name != own_name or (module != own_module and "__main__" not in (module, own_module)):
        raise bad_input(f"the program {place_of(program)}", f"{place}, which was trained")
    return program
