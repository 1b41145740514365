"""ArviZ's figures and comparisons take posteriors and results as they are."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import arviz_stats
import matplotlib.pyplot as plt
import numpy as np
import pytest

import bayeslabels as bl

try:
    import arviz_plots
except (ImportError, AttributeError) as problem:  # 0.8, the last for Python 3.11, breaks beside matplotlib 3.11
    pytest.skip(f"pip install 'bayeslabels[plots]': {problem}", allow_module_level=True)


def drawn(plot: Callable[..., Any], data: Any, **options: Any) -> list[Any]:
    """The panels of `plot`, with something in them; what ArviZ warns of itself is not ours."""
    plt.close("all")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plot(data, backend="matplotlib", **options)
    panels = [ax for number in plt.get_fignums() for ax in plt.figure(number).axes]
    plt.close("all")
    assert any(ax.lines or ax.collections or ax.patches for ax in panels)
    return panels


@pytest.fixture(scope="module")
def trees():
    """Of two models of the same stars, one of which knows fewer bands."""
    stars = bl.simulate.simulate_photometry(60, seed=1)[0]
    magnitudes = stars["magnitudes"]
    few = bl.Block(magnitudes.value[:, :2], magnitudes.error[:, :2], names=magnitudes.names[:2], unit="mag")
    sets = {"all bands": stars, "two bands": stars.with_block(magnitudes=few)}
    by = {"all bands": bl.NUTS(chains=2, draws=60, warmup=60), "two bands": bl.Laplace()}
    model = bl.Parallax(features=("magnitudes",))
    posteriors = {name: bl.fit(model, x, by[name], progress=False) for name, x in sets.items()}
    more = {"all bands": {"posterior_predictive": True, "prior": 30}, "two bands": {}}
    return {name: x.to_arviz(sets[name], **more[name]) for name, x in posteriors.items()}


FEW = {"var_names": ["scatter", "zero_point"]}


@pytest.mark.parametrize("name", ["trace", "trace_dist", "rank", "rank_dist", "dist", "forest", "ess"])
def test_figures_of_parameters(trees, name):
    drawn(getattr(arviz_plots, f"plot_{name}"), trees["all bands"], **FEW)


def test_figures_of_the_sampler_and_of_the_prior(trees):
    drawn(arviz_plots.plot_energy, trees["all bands"])
    drawn(arviz_plots.plot_prior_posterior, trees["all bands"], **FEW)


def test_a_pair_shows_the_draws_that_diverged(trees):
    tree = trees["all bands"].copy()
    diverged = np.zeros(tree["sample_stats/diverging"].shape, bool)
    diverged[0, 3:6] = True
    tree["sample_stats/diverging"] = tree["sample_stats/diverging"].copy(data=diverged)
    drawn_points = [
        sum(len(points.get_offsets()) for points in ax.collections)
        for ax in drawn(arviz_plots.plot_pair, tree, visuals={"divergence": True}, **FEW)
    ]
    assert max(drawn_points) == diverged.size + 3


def test_predictive_checks(trees):
    drawn(arviz_plots.plot_ppc_dist, trees["all bands"], num_samples=20)
    drawn(arviz_plots.plot_ppc_pit, trees["all bands"])
    drawn(arviz_plots.plot_loo_pit, trees["all bands"])


def test_models_are_compared(trees):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loo = {name: arviz_stats.loo(tree, pointwise=True) for name, tree in trees.items()}
        compared = arviz_stats.compare(loo)
    assert list(compared.index) == sorted(loo, key=lambda name: -loo[name].elpd)
    drawn(arviz_plots.plot_khat, loo["all bands"])


def test_figures_of_one_star(trained, spectra):
    result = bl.infer(trained, spectra[:3], bl.NUTS(chains=2, draws=60, warmup=60), progress=False)
    star = result.data.sel(star=result.data["posterior"]["star"].values[1])
    for plot in (arviz_plots.plot_trace, arviz_plots.plot_rank, arviz_plots.plot_pair, arviz_plots.plot_dist):
        drawn(plot, star)
    assert len(arviz_stats.summary(star)) == len(result.frame.names)
