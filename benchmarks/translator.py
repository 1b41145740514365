"""One survey's labels on another's scale: real surveys, missing inputs, noise on both sides, out of range, speed.

    python benchmarks/translator.py seismic  [--seeds 0 1 2]   spectroscopic to seismic gravity (APOKASC-3)
    python benchmarks/translator.py sampled  [--seeds 0]       the same by MAP, SVI and NUTS, of a small network
    python benchmarks/translator.py releases [--seeds 0 1 2] [--figure OUT.png]   19 labels of DR12 to three of DR17
    python benchmarks/translator.py inverse  [--seeds 0 1 2]   the other way: 19 labels of DR12 from three of DR17
    python benchmarks/translator.py stated   [--seeds 0 1 2]   DR17 labels with stated errors, believed or not
    python benchmarks/translator.py gaps     [--seeds 0]       a fifth of the inputs removed; and filled with the mean
    python benchmarks/translator.py noise    [--seeds 0 1 2]   known noise on both surveys: attenuation of f
    python benchmarks/translator.py extrinsic                  gradients of intrinsic outputs; Shapley values
    python benchmarks/translator.py far                        planted stars outside of the training space
    python benchmarks/translator.py speed                      training on 10,000 stars, translating a million

Splits are 70/30 by seed; every number printed is of stars that were not in the training set.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np
from astropy.table import Table

import bayeslabels as bl
from bayeslabels.numerics.mixture import Mixture


def split(stars, seed, share=0.7):
    order = np.random.default_rng(seed).permutation(len(stars))
    n = int(share * len(stars))
    return order[:n], order[n:]


def columns(table, names):
    return np.column_stack([np.ma.filled(np.ma.asarray(table[x], float), np.nan) for x in names])


def seismic_stars(a):
    t = Table.read(a.shared / "data" / "apokasc3_train.fits")
    names = ("TEFF_FIT", "LOGG_FIT", "FE_H_RAW", "ALP_FE_ADOP_FIT", "C_M_RAW", "N_M_RAW")
    labels = bl.Block(columns(t, names), names=names, unit=("K", *["dex"] * 5))
    target = bl.Block(columns(t, ["LOGG_SEIS"]), columns(t, ["SIG_LOGG_SEIS"]), names=("LOGG_SEIS",), unit="dex")
    return bl.Stars(labels=labels, target_labels=target), np.asarray(t["ES_AST"])


def release_stars(a):
    t = Table.read(a.shared / "data" / "apogee_dr12_vs_dr17_train.ecsv")
    names = [x for x in t.colnames if x.endswith("_dr12") and x != "APOGEE_ID_dr12"]
    unit = ["K" if x.startswith("TEFF") else "dex" for x in names]
    targets = ("TEFF_FIT", "LOGG_FIT", "FE_H_RAW")
    labels = bl.Block(columns(t, names), names=names, unit=unit)
    target = bl.Block(columns(t, targets), names=targets, unit=("K", "dex", "dex"))
    return bl.Stars(labels=labels, target_labels=target), np.asarray(t["ES_AST"])


SEISMIC = {"pairs": {"LOGG_SEIS": "LOGG_FIT"}}
RELEASES = {"pairs": {"TEFF_FIT": "TEFF_dr12", "LOGG_FIT": "LOGG_dr12", "FE_H_RAW": "FE_H_dr12"}}


def scores(result, target, rows=slice(None)):
    """rms, robust scatter, z and share within p16 and p84 of each label; the labels' own errors are added."""
    y, error = target.value[rows], 0.0 if target.error is None else target.error[rows]
    off = y - result.mean[rows]
    z = off / np.hypot(result.error[rows], error)
    s = result.stars
    low, high = ((s[p].values[rows] - result.mean[rows]) for p in ("p16", "p84"))
    widen = np.hypot(result.error[rows], error) / result.error[rows]
    inside = (off > low * widen) & (off < high * widen)
    return np.stack(
        [np.sqrt((off**2).mean(0)), bl.calibration.robust_scatter(off), z.mean(0), z.std(0), inside.mean(0)]
    )


def show(name, table, names):
    for m, label in enumerate(names):
        rms, robust, mean, sd, inside = table[:, m]
        print(
            f"  {name:14s} {label:10s} rms {rms:.4g}, robust {robust:.4g}, z {mean:+.2f} +- {sd:.3f}, 68 % {inside:.3f}"
        )


def compare(a, stars, state, settings):
    collected = []
    for seed in a.seeds:
        train, test = split(stars, seed)
        start = time.process_time()
        posterior = bl.fit(bl.Translator(**settings), stars[train], seed=seed, progress=False)
        seconds = time.process_time() - start
        target = stars[test].target_labels
        result = bl.infer(posterior, stars[test].drop("target_labels"), seed=seed, progress=False)
        density = bl.kind.kind_of(posterior.model).log_density(posterior, result, stars[test]).mean()
        print(f"seed {seed}: {len(train)} training stars, {seconds:.1f} CPU s, {posterior.info['epochs']} epochs, "
              f"ln density {density:.4f}, held out in training {posterior.info['held_out_log_density']:.4f}, "
              f"flags {({k: v for k, v in result.flag_counts().items() if v})}")  # fmt: skip
        names = posterior.model.frame.names
        each = {"all": scores(result, target)}
        for label, value in (("shell-burning", 1), ("clump", 2)):
            each[label] = scores(result, target, state[test] == value)
        for label, table in each.items():
            show(label, table, names)
        if seed == a.seeds[0] and a.figure:
            before = target.value - stars[test].labels.value[:, posterior.model.frame.pair]
            gain_figures(a.figure, target.value, before, target.value - result.mean, names, target.units)
        collected.append(each)
    print("mean over seeds:")
    for label in collected[0]:
        show(label, np.mean([x[label] for x in collected], 0), names)


def seismic(a):
    stars, state = seismic_stars(a)
    compare(a, stars, state, SEISMIC)


def sampled(a):
    stars, _ = seismic_stars(a)
    small = {"width": 8, "depth": 1, "scatter": "linear"}
    nuts = bl.NUTS(chains=2, draws=100, warmup=150, max_tree_depth=6)
    for seed in a.seeds:
        train, test = split(stars, seed)
        for settings, inference in ((small, bl.MAP()), (small, bl.SVI()), (small, nuts), ({}, bl.SVI())):
            start = time.process_time()
            posterior = bl.fit(bl.Translator(**SEISMIC, **settings), stars[train], inference, seed=seed, progress=False)
            seconds = time.process_time() - start
            result = bl.infer(posterior, stars[test].drop("target_labels"), seed=seed, progress=False)
            density = bl.kind.kind_of(posterior.model).log_density(posterior, result, stars[test]).mean()
            rhat = posterior.info.get("rhat_max", np.nan)
            print(f"seed {seed}, {type(inference).__name__}, {settings}: {seconds:.0f} CPU s, density {density:.4f}, "
                  f"R-hat {rhat:.2f}", flush=True)  # fmt: skip
            show("all", scores(result, stars[test].target_labels), posterior.model.frame.names)


def releases(a):
    stars, state = release_stars(a)
    compare(a, stars, state, RELEASES)


def stated(a):
    """Held-out labels against `<label>_error` alone, and with the stated errors as the model scales them."""
    table, (given, _) = Table.read(a.shared / "data" / "apogee_dr12_vs_dr17_train.ecsv"), release_stars(a)
    names = ("TEFF_COR", "LOGG_COR", "FE_H_ADOP_COR")
    errors = columns(table, [f"{x}_ERR" for x in names])
    target = bl.Block(columns(table, names), errors, names=names, unit=("K", "dex", "dex"))
    stars = given.with_block(target_labels=target)
    pairs = dict(zip(names, ("TEFF_dr12", "LOGG_dr12", "FE_H_dr12"), strict=True))
    for seed in a.seeds:
        train, test = split(stars, seed, 0.8)
        for learned in (False, True):
            model = bl.Translator(pairs=pairs, error_factor=learned)
            posterior = bl.fit(model, stars[train], seed=seed, progress=False)
            result = bl.infer(posterior, stars[test].drop("target_labels"), seed=seed, progress=False)
            off, factor = target.value[test] - result.mean, posterior.moments.error_factor.mean(0)
            both = np.hypot(result.error, factor * errors[test])
            print(f"seed {seed}, factors {factor.round(3)}: sd of z {(off / result.error).std(0).round(2)}, with noise "
                  f"{(off / both).std(0).round(2)}, rms {np.sqrt((off**2).mean(0)).round(4)}, median errors "
                  f"{np.median(result.error, 0).round(4)}, outside {100 * (result.flags & 8 > 0).mean():.1f} %",
                  flush=True)  # fmt: skip


def inverse(a):
    stars, _ = release_stars(a)
    collected = []
    for seed in a.seeds:
        train, test = split(stars, seed)
        posterior = bl.fit(bl.Translator(**RELEASES), stars[train], seed=seed, progress=False)
        start = time.process_time()
        result = bl.infer(posterior, stars[test].drop("labels"), seed=seed, progress=False)
        seconds, khat = time.process_time() - start, result.stars["khat"].values
        print(f"seed {seed}: {len(test)} stars in {seconds:.0f} CPU s, k-hat above 0.7 of {(khat > 0.7).sum()}, flags "
              f"{({k: v for k, v in result.flag_counts().items() if v})}", flush=True)  # fmt: skip
        collected.append(scores(result, stars[test].labels))
    print("mean over seeds:")
    table = np.mean(collected, 0)
    show("all", table, stars.labels.names)
    spread = table[1] / bl.calibration.robust_scatter(stars.labels.value)
    print(
        f"sd of z {table[3].min():.2f} to {table[3].max():.2f}, median {np.median(table[3]):.2f}; robust scatter over"
    )
    print(f"that of all stars {spread.round(2)}")


def gain_figures(path, y, before, after, names, units):
    """One figure per label, of held-out stars: what is left of it, untranslated and translated, along the label."""
    import matplotlib.pyplot as plt

    for m, (name, unit) in enumerate(zip(names, units, strict=True)):
        fig, (left, right) = plt.subplots(
            1, 2, figsize=(8, 3.2), sharey=True, width_ratios=(2, 1), layout="constrained"
        )
        both = np.concatenate([before[:, m], after[:, m]])
        low, high = np.percentile(both, [0.2, 99.8])
        edges = np.linspace(low - 0.05 * (high - low), high + 0.05 * (high - low), 60)
        for label, off, colour in (("untranslated", before[:, m], "0.6"), ("translated", after[:, m], "C0")):
            left.plot(y[:, m], off, ".", ms=3, color=colour)
            told = f"{label}: {off.mean():+.2g} ± {off.std():.2g} {unit}"
            right.hist(off, edges, orientation="horizontal", color=colour, alpha=0.8, label=told)
        for ax in (left, right):
            ax.axhline(0, color="k", lw=0.8)
        left.set(xlabel=f"{name} of survey B [{unit}]", ylabel=f"B - prediction [{unit}]", ylim=edges[[0, -1]])
        right.set(xlabel="stars")
        fig.legend(loc="outside upper center", ncols=2, fontsize=9)
        fig.savefig(path.with_name(f"{path.stem}_{name}{path.suffix}"), dpi=80)
        plt.close(fig)


def with_gaps(block, share, seed):
    value = np.where(np.random.default_rng(seed).random(block.value.shape) < share, np.nan, block.value)
    return bl.Block(value, block.error, names=block.names, unit=block.units)


def gaps(a):
    for name, (stars, _), settings in (
        ("seismic", seismic_stars(a), SEISMIC), ("releases", release_stars(a), RELEASES),
    ):  # fmt: skip
        for seed in a.seeds:
            train, test = split(stars, seed)
            posterior = bl.fit(bl.Translator(**settings), stars[train], seed=seed, progress=False)
            labels, target = stars[test].labels, stars[test].target_labels
            holes = with_gaps(labels, 0.2, seed)
            mean = np.nanmean(stars[train].labels.value, 0)
            filled = bl.Block(np.where(holes.observed, holes.value, mean), names=labels.names, unit=labels.units)
            print(f"{name}, seed {seed}: {100 * (~holes.observed).mean():.0f} % of the inputs removed")
            gap = ~holes.observed.all(1)
            for what, block in (("whole", labels), ("integrated", holes), ("filled", filled)):
                result = bl.infer(posterior, bl.Stars(labels=block), progress=False)
                print(f"  {what}: median errors {np.median(result.error, 0).round(4)}")
                show(what, scores(result, target), target.names)
                show("with gaps", scores(result, target, gap), target.names)
            blank = bl.Block(np.full((1, labels.n_dim), np.nan), names=labels.names, unit=labels.units)
            result = bl.infer(posterior, bl.Stars(labels=blank), progress=False)
            y = stars[train].target_labels.value
            print(f"  no inputs: {result.mean[0].round(3)} +- {result.error[0].round(3)}, population "
                  f"{y.mean(0).round(3)} +- {y.std(0).round(3)}, {bl.flag_names(result.flags[0])}")  # fmt: skip


SCALE, OFFSET = np.array([300.0, 0.5, 0.25]), np.array([4800.0, 2.5, -0.1])
SURVEY = {"names": ("TEFF", "LOGG", "FE_H"), "unit": ("K", "dex", "dex")}


SHARES, CENTRES = np.array([0.4, 0.6]), np.array([[0.0, -0.2, 0.0], [0.0, 0.0, 0.0]])
ROOTS = np.array([np.diag([0.5, 0.15, 0.8]), [[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]]])
"""Of the two groups of simulated giants: shares, means, and roots of the covariances of their scaled labels."""


def difference(u):
    """f of the simulated surveys, in units of the labels' spread."""
    shift = 0.25 * u[:, :1] + 0.3 * np.sin(1.5 * u[:, 1:2]) - 0.15 * u[:, :1] * u[:, 2:] + 0.2
    return shift * np.array([1.0, -0.8, 0.6])


def simulated(n, seed, noise, scatter=0.1, missing=0.0):
    """Two surveys of the same giants, with known noise on both; and the true scaled labels."""
    rng = np.random.default_rng(seed)
    group = (rng.random(n) >= SHARES[0]).astype(int)
    u = CENTRES[group] + np.einsum("nij,nj->ni", ROOTS[group], rng.standard_normal((n, 3)))
    y = u + difference(u) + scatter * rng.standard_normal(u.shape)
    blocks = {}
    for name, true in (("labels", u), ("target_labels", y)):
        sd = noise * rng.uniform(0.7, 1.3, u.shape)
        value = OFFSET + SCALE * (true + sd * rng.standard_normal(u.shape))
        value[rng.random(u.shape) < missing] = np.nan
        blocks[name] = bl.Block(value, SCALE * sd if noise else None, **SURVEY)
    return bl.Stars(**blocks), u, y


def function_of(posterior, u):
    """The members' mean f at true scaled labels."""
    import jax
    import jax.numpy as jnp

    frame = posterior.model.frame
    x = jnp.asarray((OFFSET + SCALE * u - frame.centre) / frame.scale)
    theta = {k: jnp.asarray(v) for k, v in posterior.moments.theta.items()}
    mean = jax.vmap(lambda theta: posterior.model.outputs(theta, x)[0])(theta).mean(0)
    return (frame.target_centre + frame.target_scale * np.asarray(mean) - OFFSET) / SCALE - u


def best_slope(stars, seed):
    """What these stars say of a factor of f, were its shape and the density of the true labels known."""
    true = Mixture(SHARES, CENTRES, ROOTS @ ROOTS.swapaxes(1, 2))
    x, y = ((stars[name].value - OFFSET) / SCALE for name in ("labels", "target_labels"))
    sd = stars.labels.error / SCALE
    draws = true.given(x, sd[:, :, None] * np.eye(3) * sd[:, None], np.ones(x.shape, bool)).draw(40, seed)
    f, rest = np.mean([difference(u) for u in draws], 0), y - draws.mean(0)
    return [np.polyfit(t, r, 1)[0] for t, r in zip(f.T, rest.T, strict=True)]


def noise(a):
    """Slope of the recovered f against the true one over the stars: with the errors, as if there were none, and the one
    that could be had at best."""
    slopes = {"with the errors": [], "least squares": [], "shape and density known": []}
    for seed in a.seeds:
        stars, u, _ = simulated(a.stars, seed, 0.3)
        true = difference(u)
        slopes["shape and density known"].append(best_slope(stars, seed))
        bare = bl.Stars(**{k: bl.Block(b.value, names=b.names, unit=b.units) for k, b in stars.blocks.items()})
        for name, data in (("with the errors", stars), ("least squares", bare)):
            start = time.process_time()
            posterior = bl.fit(bl.Translator(robust=name != "least squares"), data, seed=seed, progress=False)
            found = function_of(posterior, u)
            slope = [np.polyfit(t, f, 1)[0] for t, f in zip(true.T, found.T, strict=True)]
            slopes[name].append(slope)
            rms = np.sqrt(((found - true) ** 2).mean(0))
            print(f"seed {seed}, {name}: slopes {np.round(slope, 4)}, rms {rms.round(4)}, scatter "
                  f"{(np.array(posterior.summary()['scatter']) / SCALE).round(3)} (true 0.1), "
                  f"{time.process_time() - start:.0f} CPU s", flush=True)  # fmt: skip
            if name == "with the errors":
                new, _, truth = simulated(4000, seed + 100, 0.3)
                result = bl.infer(posterior, new.drop("target_labels"), progress=False)
                z = ((truth * SCALE + OFFSET) - result.mean) / result.error
                print(f"  new stars, true labels of B: z {z.std(0).round(3)}, 68 % {(np.abs(z) < 1).mean(0).round(3)}")
    for name, x in slopes.items():
        print(f"{name}: mean slope {np.mean(x, 0).round(4)} +- {(np.std(x, 0) / np.sqrt(len(x))).round(4)}")


def extrinsic(a):
    import jax
    import jax.numpy as jnp

    from bayeslabels.kinds.translator.frame import known_inputs, measured
    from bayeslabels.kinds.translator.importances import importances

    stars, _, _ = simulated(2000, 0, 0.2)
    posterior = bl.fit(bl.Translator(extrinsic=("FE_H",)), stars, seed=0, progress=False)
    model, frame = posterior.model, posterior.model.frame
    x, root = known_inputs(frame, measured(frame, stars))
    largest = 0.0
    for e in range(len(posterior.moments.coefficients)):
        theta = {k: jnp.asarray(v[e]) for k, v in posterior.moments.theta.items()}
        one = jax.jacrev(lambda x, r, theta=theta: model.predictive(theta, x[None], r[None])[0][0], (0, 1))
        slopes = jax.jit(jax.vmap(one))(jnp.asarray(x), jnp.asarray(root))
        largest = max(largest, *(float(jnp.abs(s[:, :2, 2]).max()) for s in slopes))
    print(f"largest |d intrinsic output / d extrinsic input|: {largest}")
    start = time.process_time()
    values = importances(posterior, stars[:100])
    print(f"Shapley values of 100 stars in {time.process_time() - start:.1f} CPU s; mean |value|:")
    print(abs(values).mean("star").to_pandas().round(3).to_string())


def far(a):
    stars, _ = seismic_stars(a)
    train, test = split(stars, 0)
    posterior = bl.fit(bl.Translator(**SEISMIC), stars[train], seed=0, progress=False)
    x = np.array(stars[train].labels.value)
    centre, sd = np.median(x, 0), x.std(0)
    rng = np.random.default_rng(0)
    inside = bl.infer(posterior, stars[test].drop("target_labels"), progress=False)
    print(f"held-out stars: {100 * (inside.flags & 8 > 0).mean():.1f} % flagged, median function error "
          f"{np.median(inside.stars['error_function']):.4f}, total {np.median(inside.error):.4f}")  # fmt: skip
    for step in (3, 5, 8, 12):
        way = rng.standard_normal((400, x.shape[1]))
        planted = centre + sd * step * way / np.linalg.norm(way, axis=1, keepdims=True)
        block = bl.Block(planted, names=stars.labels.names, unit=stars.labels.units)
        result = bl.infer(posterior, bl.Stars(labels=block), progress=False)
        print(f"planted {step} sd away: {100 * (result.flags & 8 > 0).mean():.1f} % flagged, median function error "
              f"{np.median(result.stars['error_function']):.4f}, total {np.median(result.error):.4f}, such as "
              f"{str(result.stars['outside'].values[0])[:60]!r}")  # fmt: skip


def speed(a):
    for name, sd in (("without errors", 0.0), ("errors on all labels", 0.2)):
        stars, _, _ = simulated(10_000, 0, sd)
        start = time.process_time()
        posterior = bl.fit(bl.Translator(), stars, seed=0, progress=False)
        print(f"{name}: training on 10,000 stars {time.process_time() - start:.1f} CPU s, "
              f"{posterior.info['epochs']} epochs", flush=True)  # fmt: skip
        many, _, _ = simulated(1_000_000, 1, sd)
        start, wall = time.process_time(), time.time()
        result = bl.infer(posterior, many.drop("target_labels"), progress=False)
        seconds, wall = time.process_time() - start, time.time() - wall
        start = time.process_time()
        result.table()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{name}: a million stars {seconds:.1f} CPU s ({wall:.1f} s), table {time.process_time() - start:.1f} s, "
              f"peak {peak:.1f} GB", flush=True)  # fmt: skip


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    functions = (seismic, sampled, releases, stated, inverse, gaps, noise, extrinsic, far, speed)
    cases = {function.__name__: function for function in functions}
    cli.add_argument("case", choices=cases)
    cli.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    cli.add_argument("--stars", type=int, default=10_000, help="of `noise`")
    cli.add_argument("--figure", type=Path, help="OUT.png of `seismic`, `releases`: OUT_LABEL.png")
    cli.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    options = cli.parse_args()
    cases[options.case](options)
