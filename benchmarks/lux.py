"""Accuracy, calibration and speed of Lux: simulated surveys with known truth, and real MILES spectra.

python benchmarks/lux.py lines   [--seeds 7] [--latents 20] [--quadratic]   recovery of five labels
python benchmarks/lux.py choice  [--quadratic]     the latent size that the package chooses, and what it gives
python benchmarks/lux.py speed                     MAP to a relative change of 1e-6, test step
python benchmarks/lux.py missing                   30 per cent of the labels missing; a label known for 50 stars
python benchmarks/lux.py offset                    an unknown offset per star
python benchmarks/lux.py errors                    flux errors that nobody gave
python benchmarks/lux.py gibbs                     full posterior, R-hat and ESS of held-out labels
python benchmarks/lux.py sweep                     one Gibbs sweep at 5000 x 7214, P = 48
python benchmarks/lux.py miles   [--folds 5]       beside The Cannon, same folds
"""

import argparse
import resource
import time

import jax
import numpy as np
from stars import UNITS, line_stars, miles_stars, robust, show

import bayeslabels as bl
from bayeslabels.inference.diagnostics import ess, rhat
from bayeslabels.kinds.spectra import gibbs
from bayeslabels.kinds.spectra.em import by_em


def judge(result, truth):
    z = (result.mean - truth) / result.error
    show("RMSE", np.sqrt(((result.mean - truth) ** 2).mean(0)))
    show("z std", z.std(0))
    show("68 % coverage", (np.abs(z) < 1).mean(0))


def lines(a):
    for seed in a.seeds:
        train, test, truth = line_stars(1000, 1000, 5, seed, a.quadratic)
        start = time.process_time()
        posterior = bl.fit(bl.Lux(a.latents), train, seed=0, progress=False)
        middle = time.process_time()
        result = bl.infer(posterior, test, seed=0, progress=False)
        name = "quadratic" if a.quadratic else "saturating"
        print(f"{name} lines, M=5, P={posterior.model.latent_size}, seed {seed}: {posterior.info['selection']}")
        judge(result, truth)
        show("tau", list(posterior.label_scatter().values()))
        show("median s", np.nanmedian(posterior.moments.scatter))
        show("CPU s, train and test", [middle - start, time.process_time() - middle])


def choice(a):
    a.latents = "auto"
    lines(a)


def speed(a):
    train, test, _ = line_stars(1000, 1000, 5, 7, a.quadratic)
    method = bl.MAP(tolerance=np.inf)  # stops at a relative change of 1e-6 of the objective
    model = bl.Lux(a.latents)
    bl.fit(model, train, bl.MAP(tolerance=np.inf, max_iterations=3), progress=False)  # compiles
    start = time.process_time()
    posterior = bl.fit(model, train, method, progress=False)
    cpu = time.process_time() - start
    objective = posterior.data["sample_stats"]["objective"].values
    change = np.diff(objective) / np.abs(objective[1:])
    print(
        f"MAP of 1000 x 1000, P={a.latents}: {cpu:.1f} CPU s after compilation, {len(objective)} iterations, last "
        f"relative change {change[-1]:.1e}, smallest change of the objective {np.diff(objective).min():.3g}"
    )
    many = bl.Stars(flux=bl.Block(np.tile(test.flux.value, (8, 1)), np.tile(test.flux.error, (8, 1))))
    for name, inference in (("MAP with covariances", bl.MAP()), ("Laplace, 500 draws", bl.Laplace(draws=500))):
        bl.infer(posterior, many, inference, progress=False)
        start = time.process_time()
        bl.infer(posterior, many, inference, seed=1, progress=False)
        print(f"test step, {name}: {len(many) / (time.process_time() - start):.0f} stars per CPU s")


def missing(a):
    train, test, truth = line_stars(1000, 1000, 5, 7, a.quadratic)
    labels = train.labels
    for name, gone in (
        ("complete", np.zeros(labels.value.shape, bool)),
        ("30 % missing", np.random.default_rng(3).random(labels.value.shape) < 0.3),
        ("MG_FE known for 50 stars", (np.arange(1000) >= 50)[:, None] & (np.arange(5) == 3)),
    ):
        value = np.where(gone, np.nan, labels.value)
        some = train.with_block(labels=bl.Block(value, labels.error, names=labels.names, unit=UNITS))
        result = bl.infer(bl.fit(bl.Lux(a.latents), some, progress=False), test, progress=False)
        print(name)
        judge(result, truth)
        show("median error", np.median(result.error, 0))


def offset(a):
    for seed in a.seeds:
        rng = np.random.default_rng(seed)
        n, p = 2048, 32
        z, mu = rng.normal(size=(n, p)), rng.normal(11, 3, n)
        clean = z @ rng.normal(size=(p, 128)), z @ rng.normal(size=(p, 5)) + mu[:, None]
        error = [rng.uniform(0.01, 0.1, x.shape) for x in clean]
        flux, labels = (x + e * rng.normal(size=x.shape) for x, e in zip(clean, error, strict=True))
        stars = bl.Stars(flux=bl.Block(flux, error[0]), labels=bl.Block(labels, error[1], unit="mag"))
        start = time.process_time()
        posterior = bl.fit(bl.Lux(p, intercept=False, offset=(11.0, 3.0)), stars, progress=False)
        table = bl.infer(posterior, stars, bl.MAP(), progress=False).table()
        miss = table["offset"].value - mu
        z = miss / table["offset_error"].value
        print(
            f"offset, seed {seed}: mean error {miss.mean():.3f}, std {miss.std():.3f}, z std {z.std():.2f}, 68 % "
            f"coverage {(np.abs(z) < 1).mean():.2f}, {time.process_time() - start:.0f} CPU s, "
            f"{posterior.info['iterations']} iterations"
        )


def errors(a):
    for seed in a.seeds:
        rng = np.random.default_rng(seed)
        z, true = rng.normal(size=(2048, 16)), rng.uniform(0.01, 0.1, 128)
        flux = z @ rng.normal(size=(16, 128)) + true * rng.normal(size=(2048, 128))
        labels = z @ rng.normal(size=(16, 3)) + 0.05 * rng.normal(size=(2048, 3))
        stars = bl.Stars(flux=bl.Block(flux), labels=bl.Block(labels, np.full(labels.shape, 0.05)))
        start = time.process_time()
        posterior = bl.fit(bl.Lux(16), stars, progress=False)
        s = posterior.moments.scatter
        print(
            f"unknown errors, seed {seed}: mean s - mean true {s.mean() - true.mean():+.5f}, correlation "
            f"{np.corrcoef(s, true)[0, 1]:.4f}, {time.process_time() - start:.1f} CPU s with compilation, "
            f"{posterior.info['iterations']} iterations"
        )


def held_out_labels(posterior, test):
    """A z (chain, draw, star, M) of stars by every draw of the training posterior, scaled."""
    draws = posterior.data["posterior"].to_dataset()
    value, error = test.flux.value, test.flux.error
    ok = np.isfinite(value) & np.isfinite(error)
    value, variance = np.where(ok, value, 0.0), np.where(ok, error, 1.0) ** 2

    @jax.jit
    def one(a, b, s):
        w = ok / (variance + s**2)
        g = jax.numpy.einsum("nl,lp,lq->npq", w, b[:, 1:], b[:, 1:]) + np.eye(b.shape[1] - 1)
        z = jax.numpy.linalg.solve(g, ((w * (value - b[:, 0])) @ b[:, 1:])[..., None])[..., 0]
        return a[:, 0] + z @ a[:, 1:].T

    sites = (draws["A"].values, draws["B"].values, draws["scatter"].values)
    with jax.enable_x64(True):
        return np.array(
            [[np.asarray(one(*draw)) for draw in zip(*chain, strict=True)] for chain in zip(*sites, strict=True)]
        )


def full(a):
    train, test, truth = line_stars(1000, 1000, 5, 7, a.quadratic)
    start, wall = time.process_time(), time.perf_counter()
    posterior = bl.fit(bl.Lux(a.latents), train, bl.Gibbs(draws=a.draws, warmup=a.warmup, thin=a.thin), progress=False)
    print(f"Gibbs of 1000 x 1000, P={a.latents}: {time.process_time() - start:.0f} CPU s, "
          f"{time.perf_counter() - wall:.0f} s; {posterior.info}")  # fmt: skip
    labels = held_out_labels(posterior, test[:100])
    print(f"labels of 100 held-out stars: R-hat {np.nanmax(rhat(labels)):.4f}, least ESS {np.nanmin(ess(labels)):.0f}")
    judge(bl.infer(posterior, test, progress=False), truth)


def sweep(a):
    rng = np.random.default_rng(0)
    n, n_pixel, p = 5000, 7214, 48
    z = rng.normal(size=(n, p))
    flux = 1 + z @ (0.02 * rng.normal(size=(p, n_pixel))) + 0.01 * rng.normal(size=(n, n_pixel))
    labels = z[:, :5] + 0.1 * rng.normal(size=(n, 5))
    stars = bl.Stars(
        flux=bl.Block(flux, np.full(flux.shape, 0.01)), labels=bl.Block(labels, np.full(labels.shape, 0.1))
    )
    del flux
    model = bl.Lux(p).bind(stars)
    with jax.enable_x64(True):
        start = by_em(model, stars, bl.MAP(max_iterations=1), 0, False)
        plan, data, state = gibbs._prepare(model, stars, start, 1, 0)
        keys = jax.random.split(jax.random.key(0), (1, 1, 1))
        for _ in range(2):
            cpu, wall = time.process_time(), time.perf_counter()
            state, *_ = jax.block_until_ready(gibbs._run(plan, data, state, keys, np.zeros((1, 1))))
            print(f"a sweep: {time.process_time() - cpu:.1f} CPU s, {time.perf_counter() - wall:.1f} s")
    size = stars.flux.value.nbytes + stars.flux.error.nbytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"peak memory {peak / 2**30:.1f} GiB, {peak / size:.1f} times the input")


def miles(a):
    stars = miles_stars()
    value = stars.labels.value
    fold = np.random.default_rng(0).permutation(len(stars)) % a.folds
    for name, model in (("Cannon", bl.Cannon()), (f"Lux({a.latents})", bl.Lux(a.latents))):
        mean, error, tau = (np.full(value.shape, np.nan) for _ in range(3))
        chi2, start = np.full(len(stars), np.nan), time.process_time()
        for f in range(a.folds):
            posterior = bl.fit(model, stars[fold != f], seed=0, progress=False)
            result = bl.infer(posterior, stars[fold == f].drop("labels"), seed=0, progress=False)
            table = result.table()
            mean[fold == f] = result.mean
            for m, label in enumerate(stars.labels.names):
                column = (
                    f"{label}_catalogue_error" if f"{label}_catalogue_error" in table.colnames else f"{label}_error"
                )
                error[fold == f, m] = np.asarray(table[column])
            tau[fold == f] = list(posterior.label_scatter().values())
            chi2[fold == f] = result.stars["chi2"] / result.stars["n_pixel"]
        offset = mean - value
        print(f"MILES, {len(stars)} stars, {a.folds} folds, {name}: {time.process_time() - start:.0f} CPU s")
        show("robust scatter", robust(offset))
        show("tau", tau.mean(0))
        show("robust z (catalogue)", robust(offset / error))
        show("68 % coverage", (np.abs(offset / error) < 1).mean(0))
        show("reduced chi2, median", np.nanmedian(chi2))


if __name__ == "__main__":
    cases = {"lines": lines, "choice": choice, "speed": speed, "missing": missing, "offset": offset, "errors": errors,
             "gibbs": full, "sweep": sweep, "miles": miles}  # fmt: skip
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("case", choices=cases)
    cli.add_argument("--seeds", type=int, nargs="+", default=[7])
    cli.add_argument("--latents", type=int, default=20)
    cli.add_argument("--folds", type=int, default=5)
    cli.add_argument("--quadratic", action="store_true")
    cli.add_argument("--draws", type=int, default=450)
    cli.add_argument("--warmup", type=int, default=100)
    cli.add_argument("--thin", type=int, default=3)
    options = cli.parse_args()
    cases[options.case](options)
