"""A model's NumPyro program as a function of its data: what is compiled for one set of stars serves all of its shape.

Of stars, the template, the errors, the missing pattern and what the program takes as given stay; the values of the
blocks that it observes are arguments, or are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.primitives import Messenger

from ..data.stars import Block, Stars
from ..errors import CannotDo
from ..numerics.linalg import Array

PLATE = "star"
"""Name of the plate of stars in every program."""


class Program:
    """A bound model's program on stars like the template.

    Attributes:
        observed: the blocks of the template that are the program's data; all else in it is given.
    """

    def __init__(self, model: Callable[[Stars], Any], template: Stars):
        self.model, self.template = model, template
        found: dict[str, Any] = {}

        def read() -> int:
            found.update(handlers.trace(handlers.seed(_Drawn(model, template.blocks), 0)).get_trace(template))
            return 0

        try:
            jax.eval_shape(read)
        except NotImplementedError as problem:
            raise CannotDo(
                f"{type(model).__name__} has a flat prior for exact labels that are missing, from which "
                "nothing can be simulated: give every label, or label_noise='joint'"
            ) from problem
        drawn = {name: site for name, site in found.items() if site["type"] in ("sample", "deterministic")}
        self.observed = tuple(name for name in template.blocks if name in drawn)
        self.shared = tuple(
            name
            for name, site in drawn.items()
            if name not in self.observed and not any(f.name == PLATE for f in site.get("cond_indep_stack", ()))
            and site["type"] == "sample" and not site["is_observed"]
        )  # fmt: skip

    def __call__(self, data: Mapping[str, Array]) -> Any:
        """The program with these values observed, {block: (N, D)}, in the block's units."""
        masks = {name: self.template[name].observed for name in data}
        with _Seen(dict(data), masks):
            return self.model(self.template)

    def data(self, stars: Stars) -> dict[str, np.ndarray]:
        """The argument of the program that has these stars as data."""
        return {name: np.asarray(stars[name].filled()[0], float) for name in self.observed}

    def simulate(self, key: Array, given: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Every site's value, drawn from the program but for the values given: parameters, latents and data."""
        return drawn_sites(self.model, self.template, self.observed, key, given or {})

    def stars(self, sites: Mapping[str, np.ndarray]) -> Stars:
        """The template with the data of a simulation, missing where the template's are."""
        return refilled(self.template, {name: sites[name] for name in self.observed})


def observed_blocks(model: Callable[[Stars], Any], stars: Stars, at: Mapping[str, Array]) -> tuple[str, ...]:
    """The blocks of the stars that the program of a bound model has as its data; all others are given.

    at: values of sites, so that priors from which nothing can be drawn do not matter.
    """
    found: set[str] = set()

    def read() -> int:
        program = handlers.substitute(handlers.seed(model, 0), data=dict(at))
        sites = handlers.trace(program).get_trace(stars)
        found.update(name for name, site in sites.items() if site["type"] == "sample" and site["is_observed"])
        return 0

    jax.eval_shape(read)
    return tuple(name for name in stars.blocks if name in found)


def drawn_sites(
    model: Callable[[Stars], Any], stars: Stars, observed: tuple[str, ...], key: Array, given: Mapping[str, Array]
) -> dict[str, Array]:
    """Every site's value, drawn from the program but for the values given; blocks in `observed` are drawn, too."""
    program = handlers.substitute(handlers.seed(_Drawn(model, observed), key), data=dict(given))
    sites = handlers.trace(program).get_trace(stars)
    return {name: x["value"] for name, x in sites.items() if x["type"] in ("sample", "deterministic")}


class _Drawn(Messenger):
    """Observed sites of these names are drawn instead."""

    def __init__(self, fn: Any, names: Any):
        self.names = tuple(names)
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and msg["is_observed"] and msg["name"] in self.names:
            msg["is_observed"], msg["value"] = False, None


class _Seen(Messenger):
    """Observed sites take these values where the template has one."""

    def __init__(self, values: dict[str, Array], masks: dict[str, np.ndarray]):
        self.values, self.masks = values, masks
        super().__init__(None)

    def process_message(self, msg: Any) -> None:
        if msg["type"] == "sample" and msg["is_observed"] and msg["name"] in self.values:
            name = msg["name"]
            msg["value"] = jnp.where(self.masks[name], self.values[name], msg["value"])


def refilled(stars: Stars, values: Mapping[str, np.ndarray]) -> Stars:
    """Stars with other values in some blocks where they have one."""
    blocks = {}
    for name, value in values.items():
        block = stars[name]
        new = np.where(block.observed, value, np.nan)
        blocks[name] = Block(new, block.error, names=block.names, unit=block.unit, coords=block.coords)
    return stars.with_block(**blocks)
