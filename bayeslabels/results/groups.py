"""Further groups of ArviZ's schema for a training posterior, computed when they are asked for.

What the program observes of the stars, ln p of it for every star and draw, and draws of it from the posterior and from
the prior: what `arviz_stats.loo` and `compare`, and ArviZ's predictive checks, work on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import xarray as xr
from arviz_base import from_dict
from numpyro import handlers
from numpyro.infer import log_likelihood as log_likelihood_of_program

from ..core.collapsed import CollapsedModel
from ..core.model import Model
from ..core.program import drawn_sites, observed_blocks
from ..data.stars import Stars
from ..errors import CannotDo, bad_input
from ..kind import kind_of
from ..numerics.compiling import jit
from ..numerics.linalg import in_float64

if TYPE_CHECKING:
    from .posterior import Posterior

TOGETHER = "stars"
"""The variable of `log_likelihood` of models whose stars' own unknowns are integrated out: all blocks together."""
OF_STARS = "posterior_of_stars"
"""The group of the draws of every star's own unknowns, apart from the parameters that all stars share."""


@in_float64
def with_groups(
    posterior: Posterior, stars: Stars, log_likelihood: bool, posterior_predictive: bool, prior: int, seed: int
) -> xr.DataTree:
    """`posterior`, of stars apart, and `sample_stats`, with the groups asked for; see `Posterior.to_arviz`."""
    model, kind = posterior.model, kind_of(posterior.model)
    if prior < 0:
        raise bad_input(f"prior={prior}", "a number of draws, 0 for none", fix="prior=500")
    model.check(stars)
    stars = kind.trained_part(posterior, stars)
    learned = posterior.data["posterior"].to_dataset()
    draws = {str(k): np.nan_to_num(x.values) for k, x in learned.items()}
    _require_same_stars(draws, kind.layout(model).sites, stars)
    observed = observed_blocks(model, stars, {k: x[0, 0] for k, x in draws.items()})
    layout = _layout(stars, observed) | kind.layout(model).sites
    coords = {**kind.layout(model).coords, **_coords(stars, observed)}
    out = xr.DataTree.from_dict(_apart(learned, coords["star"]))
    if "sample_stats" in posterior.data.children:
        out["sample_stats"] = xr.DataTree(posterior.data["sample_stats"].to_dataset())

    def put(name: str, variables: Mapping[str, Any], sample_dims: tuple[str, ...] = ("chain", "draw")) -> None:
        dims = {k: layout[k] for k in variables if k in layout}
        kept = {k: v for k, v in variables.items() if k in dims}
        tree = from_dict({name: kept}, coords=coords, dims=dims, sample_dims=list(sample_dims))
        out[name] = tree[name]

    def measured(name: str, x: np.ndarray) -> np.ndarray:
        return x[..., 0] if stars[name].n_dim == 1 else x

    put("observed_data", {k: measured(k, np.where(stars[k].observed, stars[k].value, np.nan)) for k in observed}, ())
    errors = {k: stars[k].error for k in observed if not stars[k].has_covariance}
    layout |= {f"{k}_error": layout[k] for k in errors}
    put("constant_data", {f"{k}_error": measured(k, x) for k, x in errors.items() if x is not None}, ())
    key, other = jax.random.split(jax.random.key(seed))
    if log_likelihood:
        of_stars = _log_likelihood(model, stars, draws)
        layout |= {name: ["star"] for name in of_stars}
        put("log_likelihood", of_stars)
        layout |= _layout(stars, observed)
    if posterior_predictive:
        shape = draws[next(iter(draws))].shape[:2]
        flat = {k: x.reshape(-1, *x.shape[2:]) for k, x in draws.items()}
        sites = _drawn(model, stars, observed, jax.random.split(key, shape[0] * shape[1]), flat)
        put("posterior_predictive", {k: measured(k, sites[k].reshape(*shape, *sites[k].shape[1:])) for k in observed})
    if prior:
        sites = {k: x[None] for k, x in _drawn(model, stars, observed, jax.random.split(other, prior), {}).items()}
        put("prior_predictive", {k: measured(k, sites[k]) for k in observed})
        put("prior", {k: x for k, x in sites.items() if k not in observed and "star" not in layout.get(k, [])})
    return out


def _apart(learned: xr.Dataset, star: Any) -> dict[str, xr.Dataset]:
    """The parameters that all stars share, and the unknowns of every star, as two groups."""
    own = [name for name, x in learned.items() if "star" in x.dims]
    groups = {"posterior": learned.drop_dims("star") if own else learned}
    if own:
        groups[OF_STARS] = learned[own].assign_coords(star=star)
    return groups


def _drawn(
    model: Model, stars: Stars, observed: tuple[str, ...], keys: Any, draws: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Every site's value {name: (S, ...)}, one draw for each key, given the values in `draws` {site: (S, ...)}."""

    def one(given: Any) -> dict[str, Any]:
        key, point = given
        return drawn_sites(model, stars, observed, key, point)

    try:
        each = jit(lambda given: jax.lax.map(one, given))((keys, dict(draws)))
    except NotImplementedError as problem:
        raise CannotDo(
            f"{type(model).__name__} has a flat prior, from which nothing can be drawn: prior=0"
        ) from problem
    return {name: np.asarray(x) for name, x in each.items()}


def _log_likelihood(model: Model, stars: Stars, draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """ln p (chain, draw, star) of every block given the stars' own unknowns, or of all with these integrated out."""
    if not isinstance(model, CollapsedModel):
        # what makes up a site that is kept, such as horseshoe's scales, is drawn and not used: hence a seed
        of_blocks = log_likelihood_of_program(handlers.seed(model, 0), draws, stars, batch_ndims=2)
        return {k: np.asarray(x) for k, x in of_blocks.items()}
    rows = model.arrays(stars)
    each = jit(jax.vmap(jax.vmap(lambda theta: model.log_likelihood(theta, rows))))
    return {TOGETHER: np.asarray(each(dict(draws)))}


def _require_same_stars(draws: Mapping[str, np.ndarray], sites: Mapping[str, list[str]], stars: Stars) -> None:
    """Refuse other stars than those of which the posterior has draws."""
    for name, x in draws.items():
        dims = sites.get(name, [])
        if "star" in dims and x.shape[2 + dims.index("star")] != len(stars):
            raise bad_input(
                f"{len(stars)} stars", f"the {x.shape[2 + dims.index('star')]} training stars, in their order",
                "others, or stars that training left out", "posterior.to_arviz(training_stars)",
            )  # fmt: skip


def _layout(stars: Stars, blocks: tuple[str, ...]) -> dict[str, list[str]]:
    """Dimensions of the blocks; one of a single column has the stars' alone."""
    return {name: ["star"] if stars[name].n_dim == 1 else ["star", f"{name}_column"] for name in blocks}


def _coords(stars: Stars, blocks: tuple[str, ...]) -> dict[str, Any]:
    columns = {f"{name}_column": stars[name].names for name in blocks if stars[name].n_dim > 1}
    ids = np.arange(len(stars)) if stars.id is None else stars.id
    return {"star": ids, **{name: list(x) for name, x in columns.items() if x is not None}}
