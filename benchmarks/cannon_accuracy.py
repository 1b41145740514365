"""Accuracy and calibration of The Cannon: simulated surveys with known truth, and real MILES spectra.

    python benchmarks/cannon_accuracy.py quadratic [--seeds 7 11 13 17] [--labels 3] [--classic] [--shared ../shared]
    python benchmarks/cannon_accuracy.py saturating [--seeds 7 11 13] [--order 3] [--classic] [--recalibrate]
    python benchmarks/cannon_accuracy.py modes     [--seeds 7]
    python benchmarks/cannon_accuracy.py miles     [--folds 5] [--fold-seeds 0 1 2] [--every 4] [--models default cut]

quadratic: 1000 noisy training and 1000 test stars of 1000 pixels, the truth a quadratic. saturating: the
same with lines that saturate, which no polynomial can follow. modes: of the test stars'
optima found from a cold start, how many are worse than the one next to the truth, and how many of those are flagged.
miles: FGK stars, catalogue labels held out in folds: default settings, the classic Cannon, and kinds of label noise;
densities are compared star by star with those of the first.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from astropy.io import fits

import bayeslabels as bl
from bayeslabels import calibration
from bayeslabels.astro.spectra import normalize_gaussian
from bayeslabels.results.star_posterior import Flags

UNITS = ("K", "dex", "dex", "dex", "dex")
CLASSIC = bl.Cannon(order=2, label_noise=False, coefficient_prior=bl.priors.Flat())


def robust(x):
    return 0.5 * np.diff(np.nanpercentile(x, [15.865, 84.135], axis=0), axis=0)[0]


def show(name, values, digits=3):
    print(f"  {name:24s}", "  ".join(f"{v:.{digits}g}" for v in np.atleast_1d(values)), flush=True)


def line_stars(shared, n_label, seed, exact=False, quadratic=True):
    sys.path.insert(0, str(shared / "cases"))
    from line_spectra import make

    data = make(1000, 1000, n_label, seed, quadratic)
    ivar = data["ivar"] * np.ones_like(data["flux"])
    catalogue = data["label_true"] if exact else data["label"]
    labels = bl.Block(catalogue, data["label_err"], names=[str(n) for n in data["names"]], unit=UNITS[:n_label])
    stars = bl.Stars(flux=bl.Block.from_ivar(data["flux"], ivar), labels=labels)
    return stars[:1000], stars[1000:].drop("labels"), data["label_true"][1000:]


def quadratic(a):
    for seed in a.seeds:
        train, test, truth = line_stars(a.shared, a.labels, seed, a.floor, a.case == "quadratic")
        start = time.process_time()
        model = CLASSIC if a.classic else bl.Cannon(order=a.order)
        if a.floor:
            model = bl.Cannon(order=a.order, label_noise=False)
        posterior = bl.fit(model, train, seed=0, progress=False)
        middle = time.process_time()
        result = bl.infer(posterior, test, seed=0, progress=False)
        end = time.process_time()
        z = (result.mean - truth) / result.error
        how = "true training labels" if a.floor else posterior.info["selection"] or "classic"
        print(f"{a.case}, M={a.labels}, order {posterior.model.order}, seed {seed}: {how}")
        show("RMSE", np.sqrt(((result.mean - truth) ** 2).mean(0)))
        show("z std", z.std(0))
        show("z mean", z.mean(0))
        show("68 % coverage", (np.abs(z) < 1).mean(0))
        show(
            "z std (error + tau)", ((result.mean - truth) / np.hypot(result.error, result.info["label_scatter"])).std(0)
        )
        if a.recalibrate:
            held_out = bl.cross_validate(posterior.model, train, folds=5, progress=False)
            errors = calibration.recalibrate(held_out, train)
            z = calibration.z_scores(errors.apply(result), truth)
            show("recalibrated: z std", z.std(0))
            show("68 % coverage", (np.abs(z) < 1).mean(0))
        show("tau", list(posterior.label_scatter().values()))
        show("CPU s, train and test", [middle - start, end - middle])


def modes(a):
    for seed in a.seeds:
        train, test, truth = line_stars(a.shared, a.labels, seed)
        posterior = bl.fit(bl.Cannon(label_noise="joint"), train, seed=0, progress=False)
        cold = bl.infer(posterior, test, bl.MAP(), seed=0, progress=False)
        names = posterior.model.frame.names
        # a start at the truth: catalogue labels so noisy that they weigh nothing
        vague = bl.Block(
            truth, np.full(truth.shape, 1e4) * posterior.model.frame.scale, names=names, unit=UNITS[: a.labels]
        )
        near = bl.infer(posterior, test.with_block(labels=vague), bl.MAP(starts=1), seed=0, progress=False)
        wrong = (np.abs(cold.mean - near.mean) > 0.1 * near.error).any(1) & (
            cold.stars["chi2"] > near.stars["chi2"]
        ).values
        flagged = (cold.flags & (Flags.MULTIMODAL | Flags.NOT_CONVERGED | Flags.POOR_FIT)) > 0
        print(f"modes, seed {seed}: {wrong.sum()} of {len(wrong)} in a wrong mode, {(wrong & flagged).sum()} flagged")
        far = (np.abs((cold.mean - truth) / cold.error) > 6).any(1)
        print(f"  {far.sum()} beyond 6 sigma of the truth, {(far & flagged).sum()} of them flagged")


def miles_stars(shared, every=1):
    """FGK stars of the MILES library, normalised, and of their pixels every N-th; neither their fluxes nor their
    labels have errors."""
    with fits.open(shared / "data" / "miles_train.fits") as file:
        table, wavelength = file[1].data, np.asarray(file[2].data["WAVELENGTH"], float)
        labels = np.column_stack([table[n] for n in ("TEFF", "LOGG", "FE_H")]).astype(float)
        flux = np.asarray(table["FLUX"], float)
    keep = np.isfinite(labels).all(1) & (labels[:, 0] > 4200) & (labels[:, 0] < 6500) & (labels[:, 2] > -2.2)
    labels, flux = labels[keep], normalize_gaussian(wavelength, flux[keep], None)[0]
    return bl.Stars(
        labels=bl.Block(labels, names=("TEFF", "LOGG", "FE_H"), unit=UNITS[:3]),
        flux=bl.Block(flux[:, ::every], coords={"pixel": wavelength[::every]}),
    )


def miles(a):
    stars = miles_stars(a.shared, a.every)
    labels = stars.labels.value
    kinds = {"default": bl.Cannon(order=a.order), "classic": CLASSIC}
    models = {name: kinds.get(name) or bl.Cannon(order=a.order, label_noise=name) for name in a.models}
    for seed in a.fold_seeds:
        fold = np.random.default_rng(seed).permutation(len(stars)) % a.folds
        first = None
        for name, model in models.items():
            mean, error, tau = (np.full(labels.shape, np.nan) for _ in range(3))
            density, start, chosen = np.full(len(stars), np.nan), time.process_time(), []
            for f in range(a.folds):
                out = fold == f
                posterior = bl.fit(model, stars[~out], seed=0, progress=False)
                result = bl.infer(posterior, stars[out].drop("labels"), seed=0, progress=False)
                mean[out], error[out] = result.mean, result.error
                tau[out] = posterior.moments.label_scatter * (not result.info["label_scatter_included"])
                density[out] = calibration.log_density(result, stars[out], tau[out])
                chosen.append((posterior.model.order, posterior.model.label_noise))
            offset, cpu = mean - labels, time.process_time() - start
            z = offset / np.hypot(error, tau)
            print(f"MILES, {len(stars)} stars, {a.folds} folds by seed {seed}, {name}: {chosen}, {cpu:.0f} CPU s")
            show("robust scatter", robust(offset))
            show("median error", np.nanmedian(error, 0))
            show("tau", tau.mean(0))
            show("robust z (error + tau)", robust(z))
            show("68 % coverage", (np.abs(z) < 1).mean(0))
            show("ln density a star", np.nanmean(density))
            if first is None:
                first = density
            else:
                more = first - density
                error = np.nanstd(more) / np.sqrt(np.isfinite(more).sum())
                median = np.nanmedian(more)
                print(f"  {a.models[0]} has {np.nanmean(more):+.3f} +- {error:.3f} more, in the median {median:+.3f}")
            print(f"  {np.isnan(mean).any(1).sum()} stars without an answer")


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("case", choices=("quadratic", "saturating", "modes", "miles"))
    cli.add_argument("--seeds", type=int, nargs="+", default=[7, 11, 13, 17])
    cli.add_argument("--labels", type=int, default=3)
    cli.add_argument("--order", type=lambda x: x if x == "auto" else int(x), default="auto", help="1 to 4, or auto")
    cli.add_argument("--folds", type=int, default=5)
    cli.add_argument("--fold-seeds", type=int, nargs="+", default=[0])
    known = ("default", "classic", "joint", "free", "cut")
    cli.add_argument("--every", type=int, default=1, help="of miles: take every N-th pixel")
    cli.add_argument("--models", nargs="+", default=["default", "classic"], choices=known, help="of miles")
    cli.add_argument("--classic", action="store_true")
    cli.add_argument("--recalibrate", action="store_true", help="errors by the training stars, cross-validated")
    cli.add_argument("--floor", action="store_true", help="train on the true labels: what no training can beat")
    cli.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    options = cli.parse_args()
    {"quadratic": quadratic, "saturating": quadratic, "modes": modes, "miles": miles}[options.case](options)
