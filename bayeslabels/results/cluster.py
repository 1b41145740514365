"""Stars that share a distance, or anything else that is inferred of them: the members of clusters, and of binaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from astropy import units
from astropy.table import QTable

from ..data.stars import Stars
from ..errors import bad_input
from ..kind import kind_of
from ..numerics.linalg import in_float64
from ..numerics.together import Together
from ..numerics.together import together as of_draws
from .star_posterior import StarPosterior

if TYPE_CHECKING:
    from .posterior import Posterior


class Groups(NamedTuple):
    """What `together` returns.

    table: a row per group: `group`, `n_star`, what is shared with its error, and `effective`: the share of effective
    draws, not to be trusted below 0.05. member (N,): probability of each star to be a member of its group; NaN where it
    is in none or has no answer. covariance: (group, Q, Q).

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> model = bl.Photometry(function="polynomial", order=2, members=1)
        >>> posterior = bl.fit(model, stars, bl.MAP(max_iterations=20), progress=False)
        >>> some = stars[:4].drop("labels")
        >>> result = bl.infer(posterior, some, bl.Laplace(draws=200), progress=False)
        >>> groups = bl.together(posterior, some, result, ["a", "a", "b", "b"])
        >>> groups.member.shape
        (4,)
    """

    table: QTable
    member: np.ndarray
    covariance: np.ndarray


@in_float64
def together(
    posterior: Posterior,
    stars: Stars,
    result: StarPosterior,
    groups: Sequence[Any],
    share: Sequence[str] = ("distance_modulus",),
    *,
    outliers: float = 0.1,
    seed: int = 0,
) -> Groups:
    """One value for every group of what its members share, from the posteriors of the members by themselves.

        p(q | all) ~ p(q) prod_i [(1 - f) p_i(q | data_i) / p_i(q) + f]

    q: the quantities that are shared, together, so that their correlations within each star's posterior count (Hogg,
    Eilers & Rix 2019, fig. 4). p_i: the prior under which each star was inferred, which is taken out of its posterior;
    p(q): the same prior, once, that of the group's first star. f: the share of stars that are no members.

    Args:
        posterior, stars, result: as given to and returned by `infer`, with draws (not by `MAP`).
        groups: the name of each star's group (N,), "" or None for none.
        share: names of quantities of the result, such as "distance_modulus", "FE_H" and "reddening".
        outliers: f, 0 to 0.5.

    Errors that all stars have in common, such as that of the zero point of parallaxes, do not get smaller by numbers:
    they are in each star's error, and here are taken to be each star's own.

    Example:
        groups = together(posterior, stars, result, table["cluster"], ("distance_modulus", "FE_H"))

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> model = bl.Photometry(function="polynomial", order=2, members=1)
        >>> posterior = bl.fit(model, stars, bl.MAP(max_iterations=20), progress=False)
        >>> some = stars[:4].drop("labels")
        >>> result = bl.infer(posterior, some, bl.Laplace(draws=200), progress=False)
        >>> groups = bl.together(posterior, some, result, ["a", "a", "b", "b"])
        >>> len(groups.table)
        2
    """
    share = (share,) if isinstance(share, str) else tuple(share)
    names = list(result.frame.names)
    if not share or not set(share) <= set(names) or len(set(share)) < len(share):
        raise bad_input(f"share={share}", f"some of {tuple(names)}, each once", fix='share=("distance_modulus",)')
    if not len(groups) == len(stars) == len(result):
        got = f"{len(groups)} groups, {len(stars)} stars, {len(result)} results"
        raise bad_input(got, "one of each per star", fix="those that infer was given and returned")
    if not 0 <= outliers <= 0.5:
        raise bad_input(f"outliers={outliers}", "0 to 0.5")
    draws = np.stack([result.draws(name) for name in share], -1)
    if len(draws) < 50:
        raise bad_input(f"{len(draws)} draws per star", "50 at least", "a result of MAP", "infer(..., Importance())")
    own = np.array(["" if x is None else str(x) for x in groups])
    answered = np.isfinite(draws).all((0, 2))
    kind = kind_of(posterior.model)
    member, found, used = np.full(len(stars), np.nan), [], []
    for name in np.unique(own[own != ""]):
        rows = np.flatnonzero((own == name) & answered)
        if not len(rows):
            continue
        some = stars[rows]

        def log_prior(q: np.ndarray, some: Stars = some) -> np.ndarray:
            return kind.log_prior(posterior, some, share, q)

        one = of_draws(draws[:, rows], log_prior, outliers, seed)
        member[rows] = one.member
        found.append(one)
        used.append((name, len(rows)))
    return Groups(_table(result, share, found, used), member, np.array([x.covariance for x in found]))


def _table(result: StarPosterior, share: tuple[str, ...], found: list[Together], used: list[tuple[str, int]]) -> QTable:
    columns: dict[str, Any] = {"group": [x for x, _ in used], "n_star": [n for _, n in used]}
    for i, name in enumerate(share):
        unit = units.Unit(result.frame.units[list(result.frame.names).index(name)] or "")
        columns[name] = np.array([x.mean[i] for x in found]) * unit
        columns[f"{name}_error"] = np.array([np.sqrt(x.covariance[i, i]) for x in found]) * unit
    columns["effective"] = [x.share for x in found]
    return QTable(columns)
