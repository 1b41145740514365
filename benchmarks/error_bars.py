"""Do the error bars of the default calls hold? Stars whose labels are known, and catalogues whose labels are held out.

    python benchmarks/error_bars.py CASE ... [--seeds 0 1 2] [--write]     of the cases listed below; all by default
    python benchmarks/error_bars.py --table                                print docs/error-bars.md of what is kept

Of each run are told the root mean square (`scatter`: half of the 16th to 84th percentile, of real stars) of estimate
minus truth, the sd of z = that over the stated error (robust for real stars), and CPU seconds. With --write they stand
in benchmarks/error_bars.json, run by run, and docs/error-bars.md is made of it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stars import CLASSIC, apogee_stars, giants, line_stars, miles_stars, robust

import bayeslabels as bl
from bayeslabels.demo import simulated
from bayeslabels.simulate import simulate

HERE = Path(__file__).resolve().parent
KEPT, PAGE = HERE / "error_bars.json", HERE.parent / "docs" / "error-bars.md"

Found = dict[str, Any]
Run = tuple[str, Callable[[], Found]]
Case = Callable[[int], Iterator[Run]]


def told(mean: np.ndarray, error: np.ndarray, truth: np.ndarray, start: float, **more: Any) -> Found:
    """The figures of one run, per label where there are several."""
    offset = mean[:, : truth.shape[1]] - truth  # without hidden labels
    z = offset / error[:, : truth.shape[1]]
    found = {"rms": np.sqrt((offset**2).mean(0)), "sd of z": z.std(0), "mean of z": z.mean(0), **more}
    return {k: _plain(v) for k, v in (found | {"cpu s": time.process_time() - start}).items()}


def _plain(value: Any) -> Any:
    """What JSON takes, three digits of it."""
    if isinstance(value, str):
        return value
    digits = [float(f"{x:.3g}") for x in np.ravel(np.asarray(value, float))]
    return digits if np.ndim(value) else digits[0]


def judged(
    model: bl.Cannon | bl.Lux, train: bl.Stars, test: bl.Stars, truth: np.ndarray, inference: Any = None, **infer: Any
) -> Found:
    start = time.process_time()
    posterior = bl.fit(model, train, seed=0, progress=False)
    result = bl.infer(posterior, test, inference, seed=0, progress=False, **infer)
    size = posterior.model.latent_size if isinstance(model, bl.Lux) else posterior.model.order
    tau = list(posterior.label_scatter().values())
    return told(result.mean, result.error, truth, start, size=size, tau=tau, flagged=(result.flags > 0).mean())


def demo(seed: int) -> Iterator[Run]:
    """The survey of `bayeslabels demo`. 600 stars, 400 pixels, tau of 30 K, 0.06, 0.02 dex."""
    stars = simulated(600, 400, seed)
    assert stars.truth is not None
    for name, model in (("default", bl.Cannon()), ("classic Cannon", CLASSIC)):
        yield name, lambda m=model: judged(m, stars.train, stars.test, stars.truth, bl.Importance())


def small(seed: int) -> Iterator[Run]:
    """Few training stars of few pixels. The truth is a quadratic."""
    for n in (60, 100, 200):
        train, test, truth = line_stars(n, 300, 3, seed, True)
        yield f"{n} stars", lambda x=(train, test, truth): judged(bl.Cannon(), *x)
        yield f"{n} stars, order 2 told", lambda x=(train, test, truth): judged(bl.Cannon(order=2), *x)
        yield f"{n} stars, cut", lambda x=(train, test, truth): judged(bl.Cannon(label_noise="cut"), *x)


def lines(quadratic: bool, n_label: int, seed: int) -> Iterator[Run]:
    stars = line_stars(1000, 1000, n_label, seed, quadratic)
    yield "default", lambda: judged(bl.Cannon(), *stars)
    yield "classic Cannon", lambda: judged(CLASSIC, *stars)
    if n_label == 5:
        yield "Lux(20)", lambda: judged(bl.Lux(20), *stars)


def saturating(seed: int) -> Iterator[Run]:
    """Lines that saturate, three labels. 1000 stars x 1000 pixels of spectra that no polynomial can follow."""
    return lines(False, 3, seed)


def quadratic(seed: int) -> Iterator[Run]:
    """Quadratic spectra, three labels. 1000 stars x 1000 pixels."""
    return lines(True, 3, seed)


def saturating5(seed: int) -> Iterator[Run]:
    """Lines that saturate, five labels. 1000 stars x 1000 pixels."""
    return lines(False, 5, seed)


def quadratic5(seed: int) -> Iterator[Run]:
    """Quadratic spectra, five labels. 1000 stars x 1000 pixels."""
    return lines(True, 5, seed)


def deep(seed: int) -> Iterator[Run]:
    """Exact labels, by number of pixels and S/N. 1500 stars; at high S/N the smallest misfit shows."""
    for n_pixel, snr in ((800, 200), (200, 50), (200, 300), (3000, 50), (3000, 300)):

        def run(n_pixel: int = n_pixel, snr: int = snr) -> Found:
            train, test, truth = simulate(1500, n_pixel, snr=snr, seed=seed)
            labels = train["labels"]
            exact = bl.Block(truth.training_labels, names=labels.names, unit=labels.unit)
            return judged(bl.Cannon(label_noise=False), train.with_block(labels=exact), test, truth.test_labels)

        yield f"{n_pixel} pixels, S/N {snr}", run


def apogee(seed: int) -> Iterator[Run]:
    """Spectra like those of APOGEE's giants. 1000 stars, four labels, the truth a quadratic with scatter."""
    for n_pixel in (1000, 2000):
        train, test, truth, known = giants(seed, n_pixel)
        labels = bl.Block(known, names=train.labels.names, unit=train.labels.unit)
        exact = train.with_block(labels=labels)
        yield f"{n_pixel} pixels, noisy labels", lambda t=train, x=(test, truth): judged(bl.Cannon(), t, *x)
        yield (
            f"{n_pixel} pixels, exact labels",
            lambda t=exact, x=(test, truth): judged(bl.Cannon(label_noise=False), t, *x),
        )


def nuisances(seed: int) -> Iterator[Run]:
    """The same with disturbed test stars. 1000 pixels; training never saw what `infer(nuisances=...)` is told of."""
    n = bl.nuisances
    all_three = (n.Continuum(0.01), n.Velocity(1.0), n.Broadening(0.5))
    disturbed: dict[str, tuple[dict[str, Any], tuple[Any, ...]]] = {
        "clean spectra": ({}, ()),
        "clean spectra, all three told": ({}, all_three),
        "continuum of 1 %": ({"continuum": 0.01}, all_three[:1]),
        "velocity of 1 km/s": ({"rv": 1.0}, all_three[1:2]),
        "broadened by half a pixel": ({"broadening": 0.5}, all_three[2:]),
        "all three": ({"continuum": 0.01, "rv": 1.0, "broadening": 0.5}, all_three),
    }
    train = giants(seed)[0]
    kept: list[bl.Posterior] = []
    for name, (how, told_of) in disturbed.items():

        def run(how: dict[str, Any] = how, told_of: tuple[Any, ...] = told_of) -> Found:
            start = time.process_time()
            if not kept:
                kept.append(bl.fit(bl.Cannon(), train, seed=0, progress=False))
            _, test, truth, _ = giants(seed, **how)
            result = bl.infer(kept[0], test, seed=0, progress=False, nuisances=told_of)
            return told(result.mean, result.error, truth, start, flagged=(result.flags > 0).mean())

        yield name, run


def hidden(seed: int) -> Iterator[Run]:
    """The same with variance that no label explains. In training and test; `hidden="auto"`, and a known continuum."""

    def abundance() -> Found:
        train, test, truth, _ = giants(seed, hidden=True)
        return judged(bl.Cannon(hidden="auto"), train, test, truth)

    def wiggles() -> Found:
        train, test, truth, _ = giants(seed)
        x = np.linspace(-1, 1, train.flux.n_dim)
        basis = np.stack([np.polynomial.legendre.legval(x, np.eye(5)[k]) for k in range(1, 5)])
        basis /= np.sqrt((basis**2).mean(1, keepdims=True) * 4)
        rng = np.random.default_rng(seed)

        def with_wiggles(stars: bl.Stars) -> bl.Stars:
            curve = 1 + 0.01 * rng.standard_normal((len(stars), 4)) @ basis
            flux = stars.flux
            return stars.with_block(flux=bl.Block(flux.value * curve, flux.error * curve, coords=flux.coords))

        return judged(
            bl.Cannon(nuisances=(bl.nuisances.Continuum(0.01),)), with_wiggles(train), with_wiggles(test), truth
        )

    yield "an abundance that is no label", abundance
    yield "continuum of 1 %", wiggles


def imputed(seed: int) -> Iterator[Run]:
    """Lux from flux to flux. Lux(20), five labels, 1000 stars x 1000 pixels. A third of every test star's pixels is
    hidden. In the place of *rms* stands the residual of the pixels that Lux sees, over what noise, scatter and twenty
    latents leave of it; *sd of z* is that of the hidden pixels' observed flux."""
    for name, is_quadratic in (("lines that saturate", False), ("quadratic spectra", True)):

        def run(is_quadratic: bool = is_quadratic) -> Found:
            train, test, _ = line_stars(1000, 1000, 5, seed, is_quadratic)
            start = time.process_time()
            posterior = bl.fit(bl.Lux(20), train, seed=0, progress=False)
            flux, hidden = test["flux"], np.arange(1000) // 20 % 3 == seed % 3
            seen = bl.Block(np.where(hidden, np.nan, flux.value), flux.error, names=flux.names, coords=flux.coords)
            result = bl.infer(posterior, test.with_block(flux=seen), seed=0, progress=False)
            mean, error = result.predict("flux", with_error=True)
            assert flux.error is not None
            with np.errstate(invalid="ignore"):
                of_noise = (flux.value - mean) / np.hypot(flux.error, posterior.moments.scatter)
                z = (flux.value - mean) / np.hypot(flux.error, error)
            near, away = (
                x[:, use & np.isfinite(posterior.moments.scatter)] for x, use in ((of_noise, ~hidden), (z, hidden))
            )
            left = 1 - 20 / np.isfinite(near).sum(1).mean()
            found = {"rms": [np.sqrt(np.nanmean(near**2) / left)], "sd of z": [np.nanstd(away)]}
            return {k: _plain(v) for k, v in (found | {"cpu s": time.process_time() - start}).items()}

        yield name, run


def modes(seed: int) -> Iterator[Run]:
    """Wrong modes. 1000 stars of quadratic lines from a cold start, judged against optima next to the truth."""

    def run() -> Found:
        train, test, truth = line_stars(1000, 1000, 3, seed, True)
        start = time.process_time()
        posterior = bl.fit(bl.Cannon(order=2), train, seed=0, progress=False)
        cold = bl.infer(posterior, test, bl.MAP(), seed=0, progress=False)
        # a start at the truth: catalogue labels so noisy that they weigh nothing
        frame = posterior.model.frame
        vague = bl.Block(truth, np.full(truth.shape, 1e4) * frame.scale, names=frame.names, unit=train.labels.unit)
        near = bl.infer(posterior, test.with_block(labels=vague), bl.MAP(starts=1), seed=0, progress=False)
        worse = (cold.stars["chi2"] > near.stars["chi2"]).values
        wrong = (np.abs(cold.mean - near.mean) > 0.1 * near.error).any(1) & worse
        return told(
            cold.mean, cold.error, truth, start, wrong=wrong.sum(), flagged_of_wrong=(cold.flags[wrong] > 0).sum()
        )

    yield "default", run


def held_out(stars: bl.Stars, seed: int, folds: int, model: bl.Cannon) -> Found:
    """The catalogue's labels held out in folds; errors are those on the catalogue's scale, tau included."""
    labels = stars.labels.value
    fold = np.random.default_rng(seed).permutation(len(stars)) % folds
    mean, error = np.full(labels.shape, np.nan), np.full(labels.shape, np.nan)
    start, sizes, density = time.process_time(), [], np.full(len(stars), np.nan)
    for f in range(folds):
        out = fold == f
        posterior = bl.fit(model, stars[~out], seed=0, progress=False)
        result = bl.infer(posterior, stars[out].drop("labels"), seed=0, progress=False)
        tau = result.label_scatter
        mean[out], error[out] = result.mean, np.hypot(result.error, tau)
        density[out] = bl.calibration.log_density(result, stars[out], tau)
        sizes.append(f"{posterior.model.order} {posterior.model.label_noise}")
    offset = mean - labels
    found = {
        "scatter": robust(offset), "robust z": robust(offset / error), "ln density": np.nanmean(density),
        "no answer": np.isnan(mean).any(1).sum(), "sizes": ", ".join(sizes), "cpu s": time.process_time() - start,
    }  # fmt: skip
    return {k: _plain(v) for k, v in found.items()}


def miles(seed: int) -> Iterator[Run]:
    """FGK stars of MILES. 477 stars, every eighth of 4300 pixels, five folds; neither labels nor fluxes have errors."""
    stars = miles_stars(8)
    yield "classic", lambda: held_out(stars, seed, 5, CLASSIC)
    yield "default", lambda: held_out(stars, seed, 5, bl.Cannon())


def apogee_real(seed: int) -> Iterator[Run]:
    """Giants of APOGEE. 671 stars, 100 pixels, two folds; the labels have no errors."""
    stars = apogee_stars()
    yield "classic", lambda: held_out(stars, seed, 2, CLASSIC)
    yield "default", lambda: held_out(stars, seed, 2, bl.Cannon())


FIVE, THREE, LINES = range(5), range(3), (7, 11, 13)
CASES: dict[str, tuple[Case, Sequence[int]]] = {
    "demo": (demo, FIVE), "small": (small, FIVE), "quadratic": (quadratic, LINES), "saturating": (saturating, LINES),
    "quadratic5": (quadratic5, LINES), "saturating5": (saturating5, LINES), "deep": (deep, (3,)),
    "apogee": (apogee, FIVE), "nuisances": (nuisances, THREE), "hidden": (hidden, THREE), "miles": (miles, THREE),
    "apogee_real": (apogee_real, THREE), "imputed": (imputed, LINES), "modes": (modes, LINES[:1]),
}  # fmt: skip
"""The cases, and the seeds of each that stand in the table."""


def table(kept: dict[str, Any]) -> str:
    """The page: of each case and setting the figures of the mean over its seeds, and how far the seeds go."""
    lines = [
        "# Error bars of the default calls",
        "",
        "Numbers stand in the order Teff / log g / [Fe/H] and further abundances. *sd of z* is the standard deviation",
        "of (estimate minus truth) over the stated error: 1 where the error bars hold. Of real stars the truth is the",
        "catalogue's label, held out, and both the scatter and *sd of z* are robust. Means over the seeds; in",
        "brackets the least and the greatest sd of z of any label and seed. CPU seconds are those of training and",
        "test step, beside other work, most programs compiled before.",
        "",
        "Made by `python benchmarks/error_bars.py --write`.",
    ]
    for name, (case, _) in CASES.items():
        if name not in kept:
            continue
        title, about = " ".join((case.__doc__ or "").split()).split(". ", 1)
        lines += ["", f"## {title}", "", about, ""]
        lines += ["| setting | seeds | rms or scatter | sd of z | CPU s |", "|---|---|---|---|---|"]
        for setting, runs in kept[name].items():
            lines.append(_row(setting, list(runs.values())))
    return "\n".join(lines) + "\n"


def _row(setting: str, runs: list[Found]) -> str:
    rms, z = (np.array([x.get(a, x.get(b)) for x in runs]) for a, b in (("rms", "scatter"), ("sd of z", "robust z")))
    cells = [" / ".join(f"{x:.3g}" for x in rms.mean(0)), " / ".join(f"{x:.2f}" for x in z.mean(0))]
    seconds = np.mean([x["cpu s"] for x in runs])
    if "wrong" in runs[0]:
        setting += f", {sum(x['wrong'] for x in runs):.0f} stars in a wrong mode"
    return f"| {setting} | {len(runs)} | {cells[0]} | {cells[1]} ({z.min():.2f} to {z.max():.2f}) | {seconds:.0f} |"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    cli.add_argument("--seeds", type=int, nargs="+", help="by default those of the table")
    cli.add_argument("--write", action="store_true", help="keep the figures")
    cli.add_argument("--table", action="store_true", help="print the table of the figures kept, and stop")
    given = cli.parse_args()
    if given.table:
        print(table(json.loads(KEPT.read_text())), end="")
        return
    for name in given.cases or CASES:
        case, seeds = CASES[name]
        for seed in given.seeds or seeds:
            for setting, run in case(seed):
                found = run()
                print(name, setting, f"seed {seed}:", json.dumps(found), flush=True)
                if given.write:
                    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
                    kept.setdefault(name, {}).setdefault(setting, {})[str(seed)] = found
                    KEPT.write_text(json.dumps(kept, indent=1) + "\n")
                    PAGE.write_text(table(kept))


if __name__ == "__main__":
    main()
