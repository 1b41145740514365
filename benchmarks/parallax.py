"""Spectrophotometric parallaxes: the published objective, calibration, zero point, real giants, distances beyond Gaia.

    python benchmarks/parallax.py objective                    the reference objective and its optimality
    python benchmarks/parallax.py heldout [--methods laplace map horseshoe svi] [--seed 3] [--pixels 991]
    python benchmarks/parallax.py zero    [--seeds 3 4 5] [--stars 2000] [--pixels 991]
    python benchmarks/parallax.py cuts    [--seeds 0 1 2 3]    30 % of the parallaxes at S/N < 1, kept and cut
    python benchmarks/parallax.py giants  [--folds 5]          real photometry, labels and parallaxes of Green+21
    python benchmarks/parallax.py far                          by distance, 1 to 20 kpc

Simulated red giants are those of `parallax_giants.py` in the shared cases; every number printed is of stars that were
not in the training set.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

import bayeslabels as bl
from bayeslabels.inference.loglinear import data_of
from bayeslabels.numerics.sparse import subgradient

BANDS = ("G", "BP", "RP", "J", "H", "K", "W1", "W2")
METHODS = {
    "laplace": (bl.Parallax(), bl.Laplace()),
    "horseshoe": (bl.Parallax(coefficient_prior=bl.priors.Horseshoe()), bl.Laplace()),
    "map": (bl.Parallax(), bl.MAP()),
    "svi": (bl.Parallax(), bl.SVI()),
}


def giants(a, n, n_feature, seed, zero=0.0):
    """Training stars, test stars, true parallaxes of the test stars, and the simulated arrays."""
    sys.path.insert(0, str(a.shared / "cases"))
    from parallax_giants import make

    d = make(n, n_feature, seed)
    x, error = d["features"], d["feature_err"]
    flux = np.exp(x[:, 9:])
    blocks = {
        "magnitudes": bl.Block(x[:, 1:9], error[:, 1:9], names=BANDS, unit="mag"),
        "parallax": bl.Block(d["parallax"] + zero, d["parallax_err"], unit="mas"),
        "flux": bl.Block(flux, error[:, 9:] * flux),
    }
    stars = bl.Stars(**blocks)
    return stars[:n], stars[n:], d["parallax_true"][n:], d


def report(posterior, result, true):
    s = result.stars
    z = (np.log(true) - s["ln_parallax"].values) / s["ln_parallax_error"].values
    ratio = s["p50"].values[:, 0] / true
    inside = [((true > s["p16"].values[:, m]) & (true < s["p84"].values[:, m])).mean() for m in (0, 1)]
    m = posterior.moments
    print(
        f"  rms {100 * np.sqrt(((ratio - 1) ** 2).mean()):.2f} %, z {z.mean():+.3f} +- {z.std():.3f}, 68 % coverage "
        f"{inside[0]:.3f} (combined {inside[1]:.3f}), s {m.scatter:.4f}, zero point {m.zero_point:+.4f} +- "
        f"{m.zero_point_error:.4f}, converged {posterior.info['converged']}",
        flush=True,
    )


def objective(a):
    train, test, true, _ = giants(a, 2000, 1000, 3)
    model = bl.Parallax(coefficient_prior=bl.priors.Laplace(1 / 30), wide=np.inf, zero_point=(0.0, 0.0), scatter=0.0)
    for run in ("cold", "compiled"):
        start = time.process_time()
        posterior = bl.fit(model, train, bl.MAP(), progress=False)
        print(f"  {run}: {time.process_time() - start:.2f} CPU s")
    bound = posterior.model
    data, theta = data_of(bound, train), posterior.moments.coefficients
    eta = data.features.value @ theta
    h = 0.5 * (((data.y - np.exp(eta)) / data.sigma) ** 2).sum() + 30 * np.abs(theta[9:]).sum()
    gradient = ((np.exp(eta) - data.y) * np.exp(eta) / data.sigma**2) @ data.features.value
    off = subgradient(gradient, theta, np.where(bound.frame.penalised, 30.0, 0.0))
    print(f"  H {h:.2f} (published code: 7064.76), largest subgradient {np.abs(off).max():.2e}")
    print(f"  {100 * (theta[9:] == 0).mean():.1f} % of the pixel coefficients are 0")
    report(posterior, bl.infer(posterior, test, progress=False), true)


def heldout(a):
    train, test, true, _ = giants(a, 2000, a.pixels + 9, a.seed)
    for name in a.methods:
        model, inference = METHODS[name]
        start = time.process_time()
        posterior = bl.fit(model, train, inference, progress=False)
        print(f"{name}: {time.process_time() - start:.1f} CPU s")
        result = bl.infer(posterior, test, progress=False)
        report(posterior, result, true)
        from bayeslabels.family import family_of

        density = family_of(posterior.model).log_density(posterior, result, test)
        print(f"  ln density of the measured parallaxes {density.mean():.4f} per star")


def zero(a):
    for n in a.stars:
        for seed in a.seeds:
            train, test, true, _ = giants(a, n, a.pixels + 9, seed, zero=-0.048)
            posterior = bl.fit(bl.Parallax(), train, progress=False)
            print(f"{n} stars, seed {seed}, injected -0.048 mas:")
            report(posterior, bl.infer(posterior, test, progress=False), true)


def cuts(a):
    """Coefficients of three features in units of their errors, all stars and those of S/N > 1."""
    offset = {"all": [], "S/N > 1": []}
    for seed in a.seeds:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(4000, 3))
        theta = np.array([-1.2, -0.8, 0.4, 0.2])
        true = np.exp(theta[0] + x @ theta[1:] + 0.05 * rng.normal(size=4000))
        error = np.full(4000, np.quantile(true, 0.3))
        y = true + error * rng.normal(size=4000)
        stars = bl.Stars(labels=bl.Block(x, names=("a", "b", "c")), parallax=bl.Block(y, error, unit="mas"))
        model = bl.Parallax(features=("labels",), zero_point=(0.0, 0.0))
        for name, kept in (("all", np.ones(4000, bool)), ("S/N > 1", y > error)):
            summary = bl.fit(model, stars[kept], progress=False).summary()
            at_mean = theta.copy()
            at_mean[0] += x[kept].mean(0) @ theta[1:]
            offset[name].append((summary["coefficient"] - at_mean) / summary["coefficient_error"])
    for name, z in offset.items():
        z = np.array(z)
        print(f"{name}: mean z of (constant, a, b, c) {z.mean(0).round(2)} +- {1 / np.sqrt(len(z)):.2f}")


def giants_real(a):
    from astropy.io import fits

    with fits.open(a.shared / "data" / "green2021_train.fits") as file:
        t = file[1].data
    keep = np.asarray(t["LOGG"]) < 3.2
    bands = ("G", "BP", "RP", "J", "H", "Ks")
    get = lambda name: np.asarray(t[name], float)[keep]  # noqa: E731
    labels = ("TEFF", "LOGG", "FE_H")
    stars = bl.Stars(
        magnitudes=bl.Block(
            np.column_stack([get(b) for b in bands]), np.column_stack([get(f"{b}_ERR") for b in bands]),
            names=bands, unit="mag",
        ),
        labels=bl.Block(
            np.column_stack([get(x) for x in labels]), np.column_stack([get(f"{x}_ERR") for x in labels]),
            names=labels, unit=("K", "dex", "dex"),
        ),
        parallax=bl.Block(get("PARALLAX"), get("PARALLAX_ERROR"), unit="mas"),
    )  # fmt: skip
    model = bl.Parallax(features=("magnitudes", "labels"), outliers=True)
    start = time.process_time()
    cv = bl.cross_validate(model, stars, folds=a.folds, progress=False)
    y, sigma = stars["parallax"].value[:, 0], stars["parallax"].error[:, 0]
    zero_point = cv.stars["zero_point"].values
    z = (y - zero_point - cv.mean[:, 0]) / np.hypot(sigma, cv.error[:, 0])
    ok = np.isfinite(z)
    print(
        f"{len(stars)} giants, {ok.sum()} with a parallax, {(y < 0).sum()} negative, "
        f"{stars['magnitudes'].n_missing} magnitudes missing, {time.process_time() - start:.0f} CPU s"
    )
    wrong = cv.stars["outlier_probability"].values > 0.5
    low, high = np.percentile(z[ok], [15.87, 84.13])
    print(f"  {wrong.sum()} outliers; z of the others {z[ok & ~wrong].mean():+.3f} +- {z[ok & ~wrong].std():.3f}")
    print(f"  z of the measured parallaxes {z[ok].mean():+.3f} +- {z[ok].std():.3f}, robust {(high - low) / 2:.3f}")
    print(f"  zero point {np.unique(zero_point).round(4)}, beyond 5 sigma {(np.abs(z[ok]) > 5).sum()}")
    for snr in ((-np.inf, 1), (1, 5), (5, 10), (10, 20), (20, 50), (50, np.inf)):
        row = ok & ~wrong & (y / sigma > snr[0]) & (y / sigma <= snr[1])
        if row.sum() > 5:
            print(
                f"  S/N {snr[0]:g} to {snr[1]:g}: {row.sum()} stars, z {z[row].mean():+.2f} +- {z[row].std():.2f}, "
                f"error {100 * np.median(cv.error[row, 0] / cv.mean[row, 0]):.1f} % against Gaia's "
                f"{100 * np.median(sigma[row] / np.abs(cv.mean[row, 1])):.1f} %"
            )


def far(a):
    train, test, true, _ = giants(a, 4000, 300, 11)
    posterior = bl.fit(bl.Parallax(), train, progress=False)
    rng = np.random.default_rng(0)
    distance = np.exp(rng.uniform(np.log(1.0), np.log(20.0), len(test)))
    shift = 5 * np.log10(distance * true)
    magnitudes = test["magnitudes"]
    moved = bl.Block(magnitudes.value + shift[:, None], magnitudes.error, names=BANDS, unit="mag")
    seen = bl.Block(1 / distance + 0.03 * rng.normal(size=len(test)), np.full(len(test), 0.03), unit="mas")
    result = bl.infer(posterior, test.with_block(magnitudes=moved, parallax=seen), progress=False)
    s = result.stars
    for low, high in ((1, 2), (2, 4), (4, 8), (8, 14), (14, 20)):
        row = (distance >= low) & (distance < high)
        off = s["p50"].values[row, 2] / distance[row] - 1
        inside = (s["p16"].values[row, 2] < distance[row]) & (distance[row] < s["p84"].values[row, 2])
        stated = result.error[row, 2] / result.mean[row, 2]
        print(
            f"  {low} to {high} kpc: {row.sum()} stars, rms {100 * np.sqrt((off**2).mean()):.1f} %, stated "
            f"{100 * np.median(stated):.1f} %, 68 % coverage {inside.mean():.3f}, Gaia alone "
            f"{100 * np.median(0.03 * distance[row]):.0f} %"
        )


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = {"objective": objective, "heldout": heldout, "zero": zero, "cuts": cuts, "giants": giants_real, "far": far}
    cli.add_argument("case", choices=cases)
    cli.add_argument("--methods", nargs="+", choices=METHODS, default=["laplace", "map", "horseshoe"])
    cli.add_argument("--seed", type=int, default=3)
    cli.add_argument("--pixels", type=int, default=991)
    cli.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    cli.add_argument("--stars", type=int, nargs="+", default=[2000])
    cli.add_argument("--folds", type=int, default=5)
    cli.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    options = cli.parse_args()
    cases[options.case](options)
