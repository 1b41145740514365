"""What a NumPyro program has: its sites, those of the stars and those that all stars share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpyro import handlers
from numpyro.distributions.transforms import biject_to

from ...core.program import PLATE
from ...data.stars import Stars
from ...errors import CannotDo, bad_input


@dataclass(frozen=True)
class Site:
    """A variable of a program.

    Attributes:
        name, shape: as in the program; of a star's, without the axis of stars.
        of_star: whether it is under the plate of stars. latent: whether it is sampled and not observed.
    """

    name: str
    shape: tuple[int, ...]
    of_star: bool
    latent: bool

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=int))


def traced(program: Callable[..., Any], stars: Stars, values: Mapping[str, Any], key: Any = None) -> dict[str, Any]:
    """The program's trace on stars, with these values at its sites; what has none is drawn."""
    seeded = handlers.seed(program, jax.random.key(0) if key is None else key)
    found = handlers.trace(handlers.substitute(seeded, data=dict(values))).get_trace(stars)
    return {name: site for name, site in found.items() if site["type"] in ("sample", "deterministic")}


def under_plate(site: Mapping[str, Any]) -> bool:
    """Whether a site of a trace is the stars'."""
    return any(frame.name == PLATE for frame in site["cond_indep_stack"])


def sites_of(program: Callable[..., Any], stars: Stars) -> tuple[Site, ...]:
    """All sites that are sampled or recorded, but for factors; computes no number.

    Raises:
        BadInput: no plate of stars, or one that is not the first axis. CannotDo: discrete latents, or one name with
        another shape for other stars.
    """
    found: dict[str, Any] = {}

    def read() -> int:
        found.update(traced(program, stars, {}))
        return 0

    jax.eval_shape(read)
    if not any(under_plate(site) for site in found.values()):
        raise bad_input(
            "a program without a plate of stars", f'sites of the stars under numpyro.plate("{PLATE}", len(stars))'
        )
    return tuple(_site(name, site, len(stars)) for name, site in found.items() if not _is_factor(site))


def _is_factor(site: Mapping[str, Any]) -> bool:
    return site["type"] == "sample" and type(site["fn"]).__name__ == "Unit"


def _site(name: str, site: Mapping[str, Any], n_star: int) -> Site:
    shape, of_star = tuple(site["value"].shape), under_plate(site)
    latent = site["type"] == "sample" and not site["is_observed"]
    if latent and site["fn"].support.is_discrete:
        raise CannotDo(f"the site {name!r} is discrete, which no inference here samples: sum over it, as mixtures do")
    if of_star and site["type"] == "sample":
        stack = next(frame for frame in site["cond_indep_stack"] if frame.name == PLATE)
        if len(site["fn"].batch_shape) + stack.dim != 0:
            raise bad_input(f"the site {name!r} with stars along another axis", "stars along the first")
    if of_star and shape[:1] != (n_star,):
        raise bad_input(f"the site {name!r} of shape {shape} under the plate of stars", f"({n_star}, ...)")
    return Site(name, shape[1:] if of_star else shape, of_star, latent)


def transform_of(site: Mapping[str, Any]) -> Any:
    """From unbounded numbers to values that a site of a trace can have."""
    return biject_to(site["fn"].support)
