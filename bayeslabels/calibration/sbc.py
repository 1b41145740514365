"""Simulation-based calibration: is what is called a posterior one?

    theta* ~ p(theta),   y ~ p(y | theta*),   theta_1 ... theta_S ~ q(theta | y):   rank of theta* uniform on 0 ... S

if and only if q, averaged over the prior, is the posterior (Talts et al. 2018, arXiv:1804.06788; Modrák et al. 2023).
Parameters and data are drawn from the model's own program. Ranked are quantities that the data identify
(`Kind.identified`), and labels of test stars of the same truth.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import process_time
from typing import Any

import jax
import numpy as np
import xarray as xr
from astropy.table import QTable

from ..core.model import Model
from ..core.program import Program, refilled
from ..data.stars import Stars
from ..errors import CannotDo, bad_input, index_of
from ..inference.base import Inference
from ..inference.diagnostics import ess
from ..kind import kind_of
from ..kinds.program.program import as_model
from ..numerics.compiling import jit
from ..numerics.linalg import in_float64
from ..progress import bar
from ..results.posterior import Posterior, provenance
from ..results.star_posterior import StarPosterior
from ..verbs import infer
from .verdict import TESTS, Verdict, ecdf_band, ranks_of, uniform_verdict

LEVEL = 0.01
"""p-value below which an inference is said not to hold."""


@dataclass(frozen=True, eq=False)
class SBC:
    """Ranks of n_sim true values among the draws of their posteriors, and the verdict on them.

    Attributes:
        names: of the Q quantities ranked.
        ranks: (n_sim, Q), 0 to n_draw; -1 in simulations without an answer, which the verdict leaves out.
        n_draw: draws per simulation, thinned evenly from all that there were.
        ess: (n_sim,) effective number of the draws before thinning, of the worst quantity; NaN where they are
            independent. Ranks among correlated draws pile up at both ends: simulations with fewer than n_draw are left
            out, and an inference that leaves many is to be run with more draws or `thin`.
        without_error: quantities of which the inference gives one value and no error, which cannot be ranked.
        seed: of the uniform numbers that fill the steps between ranks.
        info: model, inference, settings, CPU seconds.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> model = bl.Cannon(order=1, label_noise="joint", coefficient_prior=bl.priors.Normal(0.1))
        >>> done = bl.calibration.sbc(model, train, bl.MAP(), n_sim=4, test=test[:2], progress=False)
        >>> done.n_draw
        99
    """

    names: tuple[str, ...]
    ranks: np.ndarray
    n_draw: int
    ess: np.ndarray
    without_error: tuple[str, ...] = ()
    seed: int = 0
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def n_sim(self) -> int:
        return len(self.ranks)

    @property
    def n_failed(self) -> int:
        """Simulations without an answer."""
        return int((self.ranks < 0).any(1).sum())

    @property
    def n_correlated(self) -> int:
        """Simulations with fewer effective than ranked draws, of which the verdict is not."""
        return int((self.ess < self.n_draw).sum())

    @functools.cached_property
    def pit(self) -> np.ndarray:
        """(rank + U) / (n_draw + 1), (n_sim, Q): uniform where the posterior is right; NaN without an answer, or where
        the draws are too correlated to rank among. The truth has no part in that choice, but the draws have: it should
        leave out a few in a hundred, not more."""
        u = np.random.default_rng([self.seed, 86028121]).random(self.ranks.shape)
        judged = (self.ranks >= 0) & ~(self.ess < self.n_draw)[:, None]
        return np.where(judged, (self.ranks + u) / (self.n_draw + 1), np.nan)

    @functools.cached_property
    def verdict(self) -> Verdict:
        return uniform_verdict(self.pit)

    @property
    def p_value(self) -> float:
        """Probability of ranks this far from uniform, all quantities and tests together."""
        return self.verdict.p_value

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against the posterior at the level 0.01."""
        return self.p_value > LEVEL

    def select(self, names: Sequence[str]) -> SBC:
        """The verdict on some of the quantities."""
        at = [index_of(name, self.names, "quantity") for name in names]
        return replace(self, names=tuple(names), ranks=self.ranks[:, at])

    @property
    def data(self) -> xr.DataTree:
        """`prior_sbc`: the PIT of each quantity with dimensions (chain, draw), a draw per simulation, as ArviZ's
        `plot_ecdf_pit(sbc.data)` takes it; and `ranks`."""
        dims = ("chain", "draw")
        pit = {name: (dims, x[None]) for name, x in zip(self.names, self.pit.T, strict=True)}
        ranks = {name: (dims, x[None]) for name, x in zip(self.names, self.ranks.T, strict=True)}
        return xr.DataTree.from_dict({"prior_sbc": xr.Dataset(pit), "ranks": xr.Dataset(ranks)})

    def band(self, probability: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """x (P,); ECDF of each quantity's PIT less x (Q, P); and the limits (P,) between which that of one calibrated
        quantity lies everywhere at once with this probability."""
        pit = self.pit[np.isfinite(self.pit).all(1)]
        x, low, high = ecdf_band(len(pit), probability)
        return x, (pit.T[:, :, None] <= x).mean(1) - x, low, high

    def table(self) -> QTable:
        """One row per quantity: mean and sd of its normal scores (0 and 1 if calibrated; a positive mean: the posterior
        is too low; sd > 1: too narrow), and the p-values of both and of their shape."""
        v = self.verdict
        columns: dict[str, Any] = {"quantity": list(self.names), "mean": v.mean, "sd": v.sd}
        out = QTable(columns | {f"p_{test}": v.p_values[:, i] for i, test in enumerate(TESTS)})
        for name in out.colnames[1:]:
            out[name].info.format = ".2f" if name in ("mean", "sd") else ".2g"
        return out

    def __repr__(self) -> str:
        worst = int(np.nanargmin(self.verdict.p_values.min(1)))
        failed = f", {self.n_failed} without an answer" if self.n_failed else ""
        correlated = f", {self.n_correlated} left out for correlated draws" if self.n_correlated else ""
        return (
            f"SBC of {self.info.get('model', '?')} by {self.info.get('inference', '?')}: "
            f"{'holds' if self.holds else 'DOES NOT HOLD'}, p = {self.p_value:.2g} "
            f"({self.n_sim} simulations{failed}{correlated}, {len(self.names)} quantities, worst {self.names[worst]})"
        )


@in_float64
def sbc(
    model: Model | Posterior,
    stars: Stars,
    inference: Inference | None = None,
    n_sim: int = 300,
    *,
    test: Stars | None = None,
    infer_with: Inference | None = None,
    n_draw: int = 99,
    seed: int = 0,
    progress: bool | None = None,
) -> SBC:
    """Rank what was simulated from a model's prior among the draws of an inference.

    Args:
        model: with proper priors, and no setting left open. Or a posterior: then the test step alone is judged, a star
            of the posterior's own kind per simulation, its parameters a draw from the training posterior.
        stars: a template, whose errors, missing numbers and given quantities every simulation has; names and scales are
            taken from it once. Of a posterior: the stars' blocks are what the test step is to see.
        inference: judged: of the training step, or of a posterior's test step.
        test: a template of test stars, simulated with the same parameters as the training stars, of which `infer_with`
            infers what is ranked, too.
        n_draw: draws ranked among, thinned evenly from all. With `NUTS` and `Gibbs` take several times as many.
        seed: same seed, same result.

    Raises:
        CannotDo: a prior that cannot be simulated from.

    Example:
        >>> import bayeslabels as bl
        >>> train, test, truth = bl.simulate.simulate(100, 50, seed=1, n_test=20)
        >>> model = bl.Cannon(order=1, label_noise="joint", coefficient_prior=bl.priors.Normal(0.1))
        >>> ranks = bl.calibration.sbc(model, train, bl.MAP(), n_sim=4, test=test[:2], progress=False)
        >>> ranks.ranks.shape[0]
        4
    """
    began = process_time()
    if isinstance(model, Posterior):
        found, judged = _of_test_step(model, stars, inference, n_sim, n_draw, seed)
        kind = type(model.model).__name__
    else:
        found, judged = _of_training(model, stars, inference, n_sim, test, infer_with, n_draw, seed, progress)
        kind = type(model).__name__
    info = {**provenance(seed, judged), "model": kind, "cpu_seconds": process_time() - began}
    names, truth, draws, effective, told = found
    return ranked(names, truth, draws, effective, told, seed, info)


def ranked(
    names: Any, truth: Any, draws: Any, effective: Any, told: dict[str, Any], seed: int, info: dict[str, Any]
) -> SBC:
    """From the true values (n_sim, Q) and draws (n_sim, S, Q)."""
    rng = np.random.default_rng([seed, 122949823])
    ranks = np.stack([ranks_of(t, x, rng) for t, x in zip(truth, draws, strict=True)])
    varies = np.array([(np.ptp(draws[:, :, q], axis=1) > 0).any() for q in range(draws.shape[2])])
    if not varies.any():
        raise CannotDo(f"{info['inference']} gives one value of each quantity and no error: nothing to rank among")
    without = tuple(name for name, x in zip(names, varies, strict=True) if not x)
    named = tuple(name for name, x in zip(names, varies, strict=True) if x)
    return SBC(named, ranks[:, varies], draws.shape[1], np.asarray(effective), without, seed, {**info, **told})


def _of_training(
    model: Model, stars: Stars, inference: Inference | None, n_sim: int, test: Any, infer_with: Inference | None,
    n_draw: int, seed: int, progress: bool | None,
) -> tuple[list[Any], Inference]:  # fmt: skip
    model = as_model(model).bound(stars)
    kind = kind_of(model)
    inference = inference or kind.fit_by
    kind.require(inference, model, "fit")
    if len(model.variants()) > 1:
        options = ", ".join(str(getattr(x, "choice", "?")) for x in model.variants())
        raise bad_input(f"a {type(model).__name__} that leaves a setting open", f"one of {options}")
    _require_priors(model)
    program, of_test = Program(model, stars), None if test is None else Program(model, test)
    draw, draw_test = jit(program.simulate), None if of_test is None else jit(of_test.simulate)
    keys = jax.random.split(jax.random.key(seed), (n_sim, 2))
    truth: list[dict[str, np.ndarray]] = []
    draws: list[dict[str, np.ndarray]] = []
    effective: list[float] = []
    told = {"n_divergent": 0}
    sites = [_arrays(draw(key)) for key in keys[:, 0]]
    sims = [program.stars(x) for x in sites]
    with bar(n_sim, "simulation-based calibration", progress) as shown:
        for i, trained in enumerate(kind.train_many(model, sims, inference, seed)):
            site, posterior = sites[i], Posterior.from_training(model, trained, {**trained.stats, "n_star": len(stars)})
            sampled = kind.parameters(posterior, seed + i)
            true = kind.identified(model, {name: site[name][None] for name in sampled})
            found = kind.identified(model, {name: x.reshape(-1, *x.shape[2:]) for name, x in sampled.items()})
            chains = next(iter(sampled.values())).shape[:2]
            sizes = (float(ess(x.reshape(*chains, 1))[0]) for x in found.values() if np.ptp(x) > 0)
            effective.append(min(sizes, default=np.inf))
            found = {name: thinned(x, n_draw) for name, x in found.items()}
            if of_test is not None and draw_test is not None:
                own = _arrays(draw_test(keys[i, 1], {name: site[name] for name in program.shared}))
                result = infer(posterior, of_test.stars(own), infer_with, seed=seed + i, progress=False)
                for name, x in kind.true_quantities(model, own, of_test.template).items():
                    of_stars = star_draws(result, name, n_draw, seed + i)
                    for n, value in enumerate(np.asarray(x)):
                        true[f"{name} of test star {n}"] = value[None]
                        found[f"{name} of test star {n}"] = of_stars[:, n]
            truth.append(true)
            draws.append(found)
            told["n_divergent"] += trained.stats.get("n_divergent", 0)
            shown.update()
    names = tuple(truth[0])
    both = (
        np.array([[x[name][0] for name in names] for x in truth]),
        np.array([[x[name] for name in names] for x in draws]).swapaxes(1, 2),
    )
    return [names, *both, effective, told], inference


def _of_test_step(
    posterior: Posterior, stars: Stars, inference: Inference | None, n_sim: int, n_draw: int, seed: int
) -> tuple[list[Any], Inference]:
    kind, model = kind_of(posterior.model), posterior.model
    inference = inference or kind.infer_by
    kind.require(inference, model, "infer")
    model.check(stars)
    _require_priors(model)
    program = Program(model, stars)
    rng = np.random.default_rng([seed, 141650939])
    parameters = {
        name: x.reshape(-1, *x.shape[2:])[rng.integers(x.shape[0] * x.shape[1], size=n_sim)]
        for name, x in kind.parameters(posterior, seed).items()
        if name in program.shared
    }
    row = np.arange(n_sim) % len(stars)
    used = stars[row]

    def one(args: Any) -> Any:
        key, given, row = args
        sites = program.simulate(key, given)
        true = kind.true_quantities(model, sites, stars)
        return jax.tree.map(lambda x: x[row], (true, {name: sites[name] for name in program.observed}))

    keys = jax.random.split(jax.random.key(seed), n_sim)
    true, data = jit(lambda *args: jax.lax.map(one, args))(keys, parameters, row)
    simulated = refilled(used, _arrays(data))
    result = infer(posterior, simulated, inference, seed=seed, progress=False)
    names = tuple(name for name in result.frame.names if name in true)
    draws = np.stack([star_draws(result, name, n_draw, seed).T for name in names], -1)
    effective = result.stars["ess"].values if "ess" in result.stars else np.full(n_sim, np.nan)
    truth = np.stack([np.asarray(true[name]) for name in names], -1)
    return [names, truth, draws, effective, {}], inference


def _require_priors(model: Model) -> None:
    if model.improper:
        name = type(model).__name__
        raise CannotDo(f"{name} has a flat prior, from which nothing can be simulated: use {name}({model.improper})")


def _arrays(tree: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in tree.items()}


def thinned(draws: np.ndarray, n: int) -> np.ndarray:
    """n of the draws (S, ...), evenly spaced; all of them if there are fewer."""
    return draws[np.linspace(0, len(draws) - 1, min(n, len(draws))).round().astype(int)]


def star_draws(result: StarPosterior, name: str, n: int, seed: int) -> np.ndarray:
    """(n, N) draws of a quantity; of inferences that give one, from the Gaussian of its mean and covariance."""
    draws = result.draws(name)
    if len(draws) > 1:
        return thinned(draws, n)
    m = result.frame.names.index(name)
    z = np.random.default_rng([seed, m, 160481183]).standard_normal((n, len(result)))
    return result.mean[:, m] + result.error[:, m] * z
