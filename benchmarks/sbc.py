"""Which inferences give posteriors: simulation-based calibration of every model, small enough for hundreds of fits.

    python benchmarks/sbc.py [cannon cannon-wide cannon-exact cannon-mixture lux parallax translator photometry
                             photometry-xp cannon-stars]
                             [--n 300] [--by Gibbs ...] [--worst] [--stars 60] [--pixels 60]

One row per model and inference: simulations, p-value, verdict at p > 0.01, CPU seconds. `-stars` and `photometry`
judge the test step alone, a star per simulation; the others whole training steps, with the test step (`Laplace`) of
test stars of the same truth. All priors are proper; those of coefficients are as wide as the effects in the templates.

In `cannon` the catalogue is known to scatter by less than the stars do. In `cannon-wide` it may scatter as far, as the
default has it, and twenty stars do not always tell labels from their reflections: the posterior has several modes.
`Gibbs` finds them, since its affine moves leap (`kinds.spectra.sweep`); the test step, which takes the coefficients for
Gaussian, then errs on the wide side.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property

import numpy as np

import bayeslabels as bl
from bayeslabels import MAP, NUTS, SVI, Block, Gibbs, Importance, Laplace, Stars
from bayeslabels.calibration import SBC, sbc
from bayeslabels.core import priors
from bayeslabels.core.model import Model
from bayeslabels.simulate import simulate, simulate_photometry, simulate_xp

Rows = Iterator[tuple[str, Callable[[int, int], SBC]]]
FEW = NUTS(chains=1, draws=200, warmup=200, max_tree_depth=8)
"""As many draws as make 49 nearly independent ones; and where they are more correlated."""
MORE = NUTS(chains=1, draws=1000, warmup=300, max_tree_depth=8)
SMALLER_STEPS = replace(MORE, target_accept=0.99)
"""Latents may be rotated into each other: on that ring steps diverge that are right where the warm-up ended."""
SCATTER = priors.HalfNormal(0.03)


TRAINING = {"n_star": 20, "n_pixel": 10}
"""Of spectra: training stars, and pixels."""


def spectra() -> Stars:
    """Errors and gaps of the training stars and three test stars; the values only give names and scales."""
    n, n_pixel = TRAINING["n_star"] + 3, TRAINING["n_pixel"]
    rng = np.random.default_rng(0)
    labels = np.array([5000.0, 3.0]) + rng.standard_normal((n, 2)) * [300, 0.5]
    flux = 1 + 0.05 * rng.standard_normal((n, n_pixel))
    flux[0, 3] = flux[4, 5] = np.nan
    block = Block(labels, np.tile([60, 0.1], (n, 1)), names=("TEFF", "LOGG"), unit=("K", "dex"))
    return Stars(labels=block, flux=Block(flux, np.full(flux.shape, 0.02)))


def of_training(model: Model, stars: Stars, test: Stars, inferences: list) -> Rows:
    model = model.bind(stars)
    for inference in inferences:
        run = lambda n, seed, i=inference: sbc(  # noqa: E731
            model, stars, i, n, test=test, infer_with=Laplace(draws=200), n_draw=49, seed=seed
        )
        yield type(inference).__name__, run


def cannon_exact() -> Rows:
    model = bl.Cannon(
        order=1, label_noise=False, population="learned", coefficient_prior=priors.Normal(0.1),
        scatter_distribution=SCATTER,
    )  # fmt: skip
    stars = spectra()
    return of_training(model, stars[3:], stars[:3].drop("labels"), [Gibbs(2, 250, 100), MAP(), SVI(), FEW])


def noisy(label_scatter: float = 0.3, components: int = 1) -> bl.Cannon:
    return bl.Cannon(
        order=1, label_noise="joint", coefficient_prior=priors.Normal(0.1), scatter_distribution=SCATTER,
        label_scatter_distribution=priors.HalfNormal(label_scatter), components=components,
    )  # fmt: skip


def cannon(label_scatter: float = 0.3) -> Rows:
    stars, by = spectra(), [Gibbs(2, 250, 200, 4), MAP(), SVI(), MORE]
    return of_training(noisy(label_scatter), stars[3:], stars[:3].drop("labels"), by)


def cannon_wide() -> Rows:
    return cannon(1.0)


def cannon_mixture() -> Rows:
    """A population of two Gaussians, which samplers do not train with."""
    stars = spectra()
    return of_training(noisy(components=2), stars[3:], stars[:3].drop("labels"), [MAP()])


def lux() -> Rows:
    model = bl.Lux(2, coefficient_prior=priors.Normal(0.1), scatter_distribution=SCATTER)
    stars = spectra()
    return of_training(model, stars[3:], stars[:3].drop("labels"), [Gibbs(2, 250, 200, 4), MAP(), SVI(), SMALLER_STEPS])


class NearParallax(bl.Parallax):
    """The constant has the width of the other coefficients: stars of some mas, not of 10^-4 to 10^4."""

    @cached_property
    def wide_precision(self) -> np.ndarray:
        return np.full(len(self.require_frame().names), self.wide**-2)


def parallax() -> Rows:
    rng = np.random.default_rng(0)
    magnitudes = 12 + rng.standard_normal((43, 3))
    stars = Stars(
        magnitudes=Block(magnitudes, np.full((43, 3), 0.02), names=("G", "BP", "RP"), unit="mag"),
        parallax=Block(1 + 0.1 * rng.standard_normal(43), np.full(43, 0.1), unit="mas"),
    )
    model = NearParallax(features=("magnitudes",), wide=0.3, scatter_distribution=priors.HalfNormal(0.1))
    return of_training(model, stars[3:], stars[:3].drop("parallax"), [Laplace(), SVI(), FEW])


def translator() -> Rows:
    rng = np.random.default_rng(0)
    x = np.array([5000.0, 3.0]) + rng.standard_normal((43, 2)) * [300, 0.5]
    error = np.tile([30, 0.05], (43, 1))
    stars = Stars(
        labels=Block(x, names=("TEFF", "LOGG"), unit=("K", "dex")),
        target_labels=Block(x + error * rng.standard_normal(x.shape), error, names=("TEFF", "LOGG"), unit=("K", "dex")),
    )
    model = bl.Translator(function="polynomial", order=1, scatter="constant", robust=False)
    return of_training(model, stars[3:], stars[:3].drop("target_labels"), [MORE, SVI()])


def of_test_step(posterior: bl.Posterior, stars: Stars, inferences: list) -> Rows:
    for inference in inferences:
        run = lambda n, seed, i=inference: sbc(posterior, stars, i, n, n_draw=49, seed=seed)  # noqa: E731
        yield f"{type(inference).__name__} of stars", run


def cannon_stars() -> Rows:
    stars, _, _ = simulate(150, 40, labels=("TEFF", "LOGG"), seed=1, n_test=1)
    model = bl.Cannon(order=2, label_noise=False, population="learned", coefficient_prior=priors.Normal(0.1))
    posterior = bl.fit(model, stars, Gibbs(2, 300, 100))
    return of_test_step(posterior, stars.drop("labels"), [MAP(), Laplace(), Importance(), NUTS(chains=2)])


def photometry() -> Rows:
    stars, _ = simulate_photometry(400, seed=1)
    model = bl.Photometry(function="polynomial", order=2, members=1, outliers=False)
    posterior = bl.fit(model, stars, MAP(max_iterations=60))
    test = stars[:100].drop("labels", "reddening")
    return of_test_step(posterior, test, [MAP(), Laplace(), Importance(), NUTS(chains=2, draws=500)])


def photometry_xp() -> Rows:
    """Fluxes with covariances beside magnitudes, and extinction that bends."""
    stars, _ = simulate_xp(400, n_pixel=11, bands=("J", "Ks"), seed=1)
    model = bl.Photometry(function="polynomial", order=2, members=1, outliers=False, scatter_rank=1)
    posterior = bl.fit(model, stars, MAP(max_iterations=60))
    return of_test_step(posterior, stars[:100].drop("labels", "reddening"), [Laplace(), Importance()])


CASES = {
    "cannon-exact": cannon_exact, "cannon": cannon, "cannon-wide": cannon_wide, "cannon-mixture": cannon_mixture,
    "lux": lux, "parallax": parallax,
    "translator": translator, "cannon-stars": cannon_stars, "photometry": photometry,
    "photometry-xp": photometry_xp,
}  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("models", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    arguments.add_argument("--n", type=int, default=300, help="simulations")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--stars", type=int, default=20, help="training stars of models of spectra")
    arguments.add_argument("--pixels", type=int, default=10, help="of their spectra")
    arguments.add_argument("--by", nargs="*", help="only these inferences")
    arguments.add_argument("--worst", action="store_true", help="and the quantities of the smallest p-values")
    given = arguments.parse_args()
    TRAINING.update(n_star=given.stars, n_pixel=given.pixels)
    print(f"{'model':13} {'inference':19} {'n_sim':>6} {'left out':>8} {'p':>9} {'verdict':>8} {'CPU s':>6}  worst")
    for name in given.models or CASES:
        for inference, run in CASES[name]():
            if given.by and inference.split()[0] not in given.by:
                continue
            found = run(given.n, given.seed)
            stars = [x for x in found.names if "test star" in x]
            rest = [x for x in found.names if x not in stars]
            for label, names in ((inference, rest), (f"{inference}, test stars", stars)):
                if names:
                    tell(name, label, found.select(names), given.worst)


def tell(name: str, inference: str, found: SBC, worst: bool) -> None:
    smallest = found.verdict.p_values.min(1)
    notes = [found.names[int(smallest.argmin())]]
    if found.without_error and "stars" not in inference:
        notes.append(f"{len(found.without_error)} quantities without an error")
    if divergent := found.info.get("n_divergent"):
        notes.append(f"{divergent} divergences")
    print(
        f"{name:13} {inference:19} {found.n_sim:6} {found.n_failed + found.n_correlated:8} {found.p_value:9.2g} "
        f"{'holds' if found.holds else 'FAILS':>8} {found.info['cpu_seconds']:6.0f}  {'; '.join(notes)}",
        flush=True,
    )
    if worst:
        print(found.table()[np.argsort(smallest)[:8]], flush=True)


if __name__ == "__main__":
    main()
