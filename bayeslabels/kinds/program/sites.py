"""What a NumPyro program has: its sites, those of the stars and those that all stars share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.distributions.transforms import biject_to
from numpyro.ops.provenance import eval_provenance

from ...core.program import PLATE
from ...data.stars import Stars
from ...errors import CannotDo, bad_input


@dataclass(frozen=True)
class Site:
    """A variable of a program.

    Attributes:
        name, shape: as in the program; of a star's, without the axis of stars.
        of_star: whether it is under the plate of stars. latent: whether it is sampled and not observed.
        recorded: whether it is computed from others (`numpyro.deterministic`).
    """

    name: str
    shape: tuple[int, ...]
    of_star: bool
    latent: bool
    recorded: bool = False

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
    sites: list[Site] = []

    def read() -> int:  # the supports of sites may be values of this trace
        found = traced(program, stars, {})
        if not any(under_plate(site) for site in found.values()):
            raise bad_input(
                "a program without a plate of stars", f'sites of the stars under numpyro.plate("{PLATE}", len(stars))'
            )
        sites.extend(_site(name, site, len(stars)) for name, site in found.items() if not _is_factor(site))
        return 0

    jax.eval_shape(read)
    return tuple(sites)


def told_of(sites: Sequence[Site], stars: Stars) -> list[Site]:
    """The sites that a result tells of such stars: those that are not observed, but for a block of which the program
    records the truth, `true_` and its name, as well."""
    of_stars = [site for site in sites if site.of_star and site.name not in stars]
    names = {site.name for site in of_stars}
    return [site for site in of_stars if f"true_{site.name}" not in names]


def ends(program: Callable[..., Any], stars: Stars, sites: Sequence[Site]) -> tuple[str, ...]:
    """Those of the stars' sites on which no other site of the program depends; computes no number."""
    shapes = {site.name: jax.ShapeDtypeStruct((len(stars), *site.shape), jnp.result_type(float)) for site in sites}

    def densities(**values: Any) -> dict[str, Any]:
        found = traced(program, stars, values)
        return {k: x["fn"].log_prob(x["value"]) if x["type"] == "sample" else x["value"] for k, x in found.items()}

    used = eval_provenance(densities, **shapes)
    needed = {name for other, names in used.items() for name in frozenset().union(*jax.tree.leaves(names)) - {other}}
    return tuple(name for name in shapes if name not in needed)


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
    return Site(name, shape[1:] if of_star else shape, of_star, latent, site["type"] == "deterministic")


def transform_of(site: Mapping[str, Any]) -> Any:
    """From unbounded numbers to values that a site of a trace can have."""
    return biject_to(site["fn"].support)
