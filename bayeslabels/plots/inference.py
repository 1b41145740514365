"""Pictures of how an inference went: chains, energies, what the data taught beyond the prior, losses, k-hat.

They read `posterior.data` and `result.data`, xarray.DataTrees in ArviZ's schema, so that ArviZ's own summary and plots
(`arviz_stats.summary(posterior.data)`, `arviz_plots.plot_rank`) work on the same data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpyro.infer import Predictive

from ..data.columns import default_names
from ..data.stars import Stars
from ..errors import bad_input, index_of
from ..numerics.linalg import in_float64
from ..results.posterior import Posterior
from ..results.star_posterior import StarPosterior
from .panels import BLACK, BLUE, GREEN, GREY, ORANGE, draw_on, empty, label, matrix

FEW = 6
"""Numbers of a parameter that are shown without being asked for."""
MOST = 12
"""Numbers of which every pair has a panel."""
FEWEST = 20
"""Draws that are a sample."""


def ranks(posterior: Posterior, names: Sequence[str] | None = None, *, axes: Sequence[Axes] | None = None) -> Figure:
    """Ranks of every chain's draws among those of all chains (Vehtari+21): flat where the chains agree.

    Args:
        names: parameters, such as ("label_scatter",); None: all that are few numbers, the stars' own left out.
            axes: one per number; None: a new figure.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> model = bl.Cannon(order=1, label_noise="joint")
        >>> posterior = bl.fit(model, train, bl.Gibbs(chains=2, draws=50, warmup=50), progress=False)
        >>> figure = bl.plots.ranks(posterior, ["label_scatter"])
    """
    shown = _numbers(posterior, names)
    n_chain, n_draw = next(iter(shown.values())).shape
    if n_chain < 2:
        raise bad_input("one chain", "two or more, to compare", fix="fit(model, stars, NUTS(chains=4))")
    figure, panels = draw_on(len(shown), axes, rows=_rows(len(shown), axes))
    edges = np.linspace(0, n_chain * n_draw, 21)
    for ax, (name, draws) in zip(panels, shown.items(), strict=True):
        rank = np.argsort(np.argsort(draws.ravel())).reshape(draws.shape)
        for chain in rank:
            ax.stairs(np.histogram(chain, edges)[0], edges, lw=1.2)
        ax.axhline(n_draw / 20, color=BLACK, lw=1, ls="--")
        ax.set(xlabel=f"rank of {name}", ylabel="draws, a line per chain", ylim=(0, None))
    return figure


def energy(posterior: Posterior, *, axes: Sequence[Axes] | None = None) -> Figure:
    """Energies of NUTS and their steps from draw to draw (Betancourt 2016): alike where the tails are reached.

    BFMI, the mean squared step over the variance, should be above 0.3 in every chain.

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> nuts = bl.NUTS(chains=2, draws=60, warmup=60)
        >>> posterior = bl.fit(bl.Parallax(features=("magnitudes",)), stars, nuts, progress=False)
        >>> figure = bl.plots.energy(posterior)
    """
    values = _trace(posterior, "energy", "NUTS()")
    steps = np.diff(values, axis=1)
    bfmi = (steps**2).mean(1) / values.var(1)
    figure, (ax,) = draw_on(1, axes)
    options: dict[str, Any] = {"bins": 40, "density": True, "alpha": 0.5}
    ax.hist((values - values.mean(1, keepdims=True)).ravel(), color=BLUE, label="energy $-$ mean", **options)
    ax.hist(steps.ravel(), color=ORANGE, label="step of the energy", **options)
    ax.set(xlabel="energy", ylabel="density", title="BFMI " + ", ".join(f"{x:.2f}" for x in bfmi))
    ax.legend(fontsize=9, frameon=False)
    return figure


def pair(posterior: Posterior, names: Sequence[str] | None = None) -> Figure:
    """Densities of every pair of numbers, with 68 and 95 per cent contours; names as in `ranks`.

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> nuts = bl.NUTS(chains=2, draws=60, warmup=60)
        >>> posterior = bl.fit(bl.Parallax(features=("magnitudes",)), stars, nuts, progress=False)
        >>> figure = bl.plots.pair(posterior, ["scatter", "zero_point"])
    """
    shown = {name: x.ravel() for name, x in _numbers(posterior, names).items() if np.ptp(x) > 0}
    if len(shown) > MOST:
        raise bad_input(f"{len(shown)} numbers", f"at most {MOST}", fix=f"names={list(shown)[:2]}")
    return matrix(np.stack(list(shown.values()), 1), list(shown), [""] * len(shown))


@in_float64
def prior_to_posterior(
    posterior: Posterior,
    stars: Stars,
    names: Sequence[str] | None = None,
    *,
    draws: int = 500,
    seed: int = 0,
    axes: Sequence[Axes] | None = None,
) -> Figure:
    """Prior and posterior of every number on the same axis: what the training stars taught.

    A posterior as wide as its prior has learned nothing; one at its edge fights it.

    Args:
        stars: the training stars, or some like them: the prior's draws are those of the model's program.
        names: as in `ranks`, of sites that the program samples. draws: from the prior.

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> nuts = bl.NUTS(chains=2, draws=60, warmup=60)
        >>> posterior = bl.fit(bl.Parallax(features=("magnitudes",)), stars, nuts, progress=False)
        >>> figure = bl.plots.prior_to_posterior(posterior, stars, ["scatter"])
    """
    model, shown = posterior.model, _numbers(posterior, names)
    sites = {name.split("[")[0] for name in shown}
    program = Predictive(model, num_samples=draws, return_sites=sorted(sites), batch_ndims=1)
    sampled = {name: np.asarray(x) for name, x in program(jax.random.key(seed), stars).items()}
    if missing := sites - set(sampled):
        raise bad_input(f"{sorted(missing)}, of which the program samples no prior", f"names among {sorted(sampled)}")
    prior: dict[str, np.ndarray] = {}
    learned = posterior.data["posterior"].to_dataset()
    for name, x in sampled.items():
        like = learned[name]
        prior |= _flat(xr.DataArray(x[None], dims=("chain", "draw", *like.dims[2:]), coords=_labels(like), name=name))
    figure, panels = draw_on(len(shown), axes, rows=_rows(len(shown), axes))
    for ax, (name, x) in zip(panels, shown.items(), strict=True):
        before, after = prior[name].ravel(), x.ravel()
        low, high = (f([f(after), np.percentile(before, q)]) for f, q in ((np.min, 5), (np.max, 95)))
        ax.hist(before, 40, range=(low, high), density=True, color=GREY, alpha=0.6, label="prior")
        ax.hist(after, 25, density=True, color=BLUE, alpha=0.6, label="posterior")
        ax.set(xlabel=name, yticks=[])
        ax.locator_params(axis="x", nbins=5)
        ax.legend(fontsize=8, frameon=False)
    return figure


def ppc(
    posterior: Posterior, stars: Stars, *, sets: int = 50, seed: int = 0, axes: Sequence[Axes] | None = None
) -> Figure:
    """Posterior predictive check: densities of what was measured, and of whole sets of data that the model draws.

    A panel for each number of a block; for each spectrum all pixels together. Where the black line leaves the others,
    the model has no stars like yours. Draws of the training step are used, `sets` of them; a mode is one.

    Args:
        stars: the training stars, as in `Posterior.to_arviz`.
        sets: of simulated data that are drawn, at most.
        axes: one per panel; None: a new figure.

    Example:
        >>> import bayeslabels as bl
        >>> stars, truth = bl.simulate.simulate_photometry(100, seed=1)
        >>> nuts = bl.NUTS(chains=2, draws=60, warmup=60)
        >>> posterior = bl.fit(bl.Parallax(features=("magnitudes",)), stars, nuts, progress=False)
        >>> figure = bl.plots.ppc(posterior, stars)
        >>> [ax.get_xlabel() for ax in figure.axes]
        ['parallax [mas]']
    """
    tree = posterior.to_arviz(stars, log_likelihood=False, posterior_predictive=True, seed=seed)
    observed, drawn = (tree[name].to_dataset() for name in ("observed_data", "posterior_predictive"))
    shown: list[tuple[str, np.ndarray, np.ndarray]] = []
    for name in map(str, observed.data_vars):
        block, value = stars[name], observed[name].values.reshape(len(stars), -1)
        copies = drawn[name].values.reshape(-1, *value.shape)
        copies = copies[np.linspace(0, len(copies) - 1, min(sets, len(copies))).astype(int)]
        copies = np.where(np.isfinite(value), copies, np.nan)  # what was not measured is not compared
        if value.shape[1] > MOST:
            shown.append((label(name, block.units[0]), value.ravel(), copies.reshape(len(copies), -1)))
            continue
        for i, unit in enumerate(block.units):
            own = block.names if block.names not in (None, default_names(block.n_dim)) else None
            called = own[i] if own else name if value.shape[1] == 1 else f"{name}[{i}]"
            shown.append((label(called, unit), value[:, i], copies[:, :, i]))
    figure, panels = draw_on(len(shown), axes, rows=_rows(len(shown), axes))
    for ax, (xlabel, value, copies) in zip(panels, shown, strict=True):
        if not np.isfinite(value).any():
            empty(ax, xlabel)
            continue
        low, high = np.nanpercentile(np.concatenate([value, copies[0]]), [0.5, 99.5])
        edges = np.linspace(low, high, 31 if np.isfinite(value).sum() > 300 else 16)
        for i, copy in enumerate(copies):
            ax.stairs(
                _density(copy, edges), edges, color=BLUE, lw=0.8, alpha=0.8 if len(copies) == 1 else 0.25,
                label=f"drawn, {len(copies)} set{'s'[: len(copies) - 1]}" if i == 0 else None,
            )  # fmt: skip
        ax.stairs(_density(value, edges), edges, color=BLACK, lw=1.6, label="measured")
        ax.set(xlabel=xlabel, yticks=[])
        ax.locator_params(axis="x", nbins=5)
    panels[0].set_ylabel("density")
    panels[0].legend(fontsize=8, frameon=False)
    return figure


def _density(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Density of the known values in bins; those outside count in the whole."""
    counts = np.histogram(values[np.isfinite(values)], edges)[0]
    return np.asarray(counts / (max(1, np.isfinite(values).sum()) * np.diff(edges)))


def loss(posterior: Posterior, *, axes: Sequence[Axes] | None = None) -> Figure:
    """What an iterative training step wrote down, against the iteration: the loss of `SVI`, the changes of `MAP`; of
    stars that were held out, against the epoch.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> figure = bl.plots.loss(posterior)
    """
    traces = _sample_stats(posterior)
    shown = {str(name): x for name, x in traces.items() if x.dims in (("iteration",), ("epoch",)) and len(x)}
    if not shown:
        raise bad_input("a training step without iterations", "one by SVI() or MAP() that iterates")
    figure, panels = draw_on(len(shown), axes)
    for ax, (name, trace) in zip(panels, shown.items(), strict=True):
        x, at = trace.values, np.arange(1, len(trace) + 1)
        if name == "change":
            ax.semilogy(at, x, color=BLUE, lw=1)
        else:
            ax.plot(at, x, color=BLUE, lw=0.7, alpha=0.6 if len(x) > 200 else 1.0)
        if len(x) > 200:
            width = len(x) // 50
            smooth = np.convolve(x, np.ones(width) / width, "valid")
            ax.plot(at[width - 1 :], smooth, color=ORANGE, lw=1.5, label=f"mean of {width}")
            ax.set_ylim(smooth.min() - 0.05 * np.ptp(smooth), np.percentile(x, 99))
            ax.legend(fontsize=9, frameon=False)
        ax.set(xlabel=trace.dims[0], ylabel=name.replace("_", " "))
    return figure


def khat(result: StarPosterior, *, axes: Sequence[Axes] | None = None) -> Figure:
    """Pareto k-hat of every star's importance weights (Vehtari+24): above 0.7 they are not to be trusted.

    Such stars were sampled with NUTS instead, unless `Importance(rescue=False)` was asked for.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> posterior = bl.fit(bl.Cannon(order=1), train, progress=False)
        >>> result = bl.infer(posterior, test, bl.Importance(draws=200), progress=False)
        >>> figure = bl.plots.khat(result)
    """
    if "khat" not in result.stars:
        raise bad_input(
            f"a result of {result.info.get('inference')} without k-hat", "one by Importance()",
            fix="infer(posterior, stars, Importance())",
        )  # fmt: skip
    values = result.stars["khat"].values
    known = values[np.isfinite(values)]
    figure, (ax,) = draw_on(1, axes)
    low, high = min(-0.2, *known.tolist(), 0.0), max(1.0, *known.tolist())
    ax.hist(known, np.linspace(low, high, 41).tolist(), color=BLUE, alpha=0.6)
    ax.axvline(0.7, color=ORANGE, lw=1.5, ls="--", label=f"{int((known > 0.7).sum())} of {len(known)} stars above 0.7")
    ax.set(xlabel="Pareto $\\hat k$", ylabel="stars", yscale="log" if len(known) > 300 else "linear")
    if missing := len(values) - len(known):
        ax.plot([], [], color=GREEN, label=f"{missing} stars without weights")
    ax.set_ylim(top=ax.get_ylim()[1] * (5 if ax.get_yscale() == "log" else 1.25))
    ax.legend(fontsize=9, frameon=False, loc="upper center")
    return figure


def _sample_stats(posterior: Posterior) -> xr.Dataset:
    return posterior.data["sample_stats"].to_dataset() if "sample_stats" in posterior.data.children else xr.Dataset()


def _trace(posterior: Posterior, name: str, by: str) -> np.ndarray:
    stats = _sample_stats(posterior)
    if name not in stats:
        raise bad_input(f"a training step by {posterior.info.get('inference')} without {name}", f"one by {by}")
    return stats[name].values


def _numbers(posterior: Posterior, names: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Draws (chain, draw) of every number of the parameters named, by name and coordinates."""
    draws = posterior.data["posterior"].to_dataset()
    if draws.sizes["chain"] * draws.sizes["draw"] < FEWEST:
        raise bad_input(
            f"{draws.sizes['chain'] * draws.sizes['draw']} draw(s) by {posterior.info.get('inference')}", "a sample",
            "MAP has a mode and no draws", "fit(model, stars, NUTS()), Gibbs() or SVI()",
        )  # fmt: skip
    if names is None:
        known = [x for x in draws.data_vars if "star" not in draws[x].dims and draws[x][0, 0].size <= FEW]
        names = [str(x) for x in known]
    else:
        names = [names] if isinstance(names, str) else list(names)
    found: dict[str, np.ndarray] = {}
    for name in names:
        index_of(name, map(str, draws.data_vars), "parameter")
        found |= _flat(draws[name])
    if not found:
        raise bad_input("no parameter of few numbers", f"names= of some of {sorted(map(str, draws.data_vars))}")
    return found


def _flat(draws: xr.DataArray) -> dict[str, np.ndarray]:
    """{name[coordinates]: (chain, draw)} of one parameter."""
    dims = draws.dims[2:]
    if not dims:
        return {str(draws.name): draws.values}
    coords = _labels(draws)
    out = {}
    for index in np.ndindex(draws.shape[2:]):
        at = ", ".join(str(coords[d][i]) if d in coords else str(i) for d, i in zip(dims, index, strict=True))
        out[f"{draws.name}[{at}]"] = draws.values[(slice(None), slice(None), *index)]
    return out


def _labels(draws: xr.DataArray) -> dict[Any, np.ndarray]:
    return {d: draws.coords[d].values for d in draws.dims[2:] if d in draws.coords}


def _rows(n: int, axes: Any) -> int:
    return 1 if axes is not None else -(-n // 4)
