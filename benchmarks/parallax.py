"""Spectrophotometric parallaxes: the published objective, calibration, zero point, real giants, distances beyond Gaia.

    python benchmarks/parallax.py objective                    the reference objective and its optimality
    python benchmarks/parallax.py heldout [--methods laplace map horseshoe svi] [--seed 3] [--pixels 991]
    python benchmarks/parallax.py zero    [--seeds 3 4 5] [--stars 2000] [--pixels 991]
    python benchmarks/parallax.py cuts    [--seeds 0 1 2 3]    30 % of the parallaxes at S/N < 1, kept and cut
    python benchmarks/parallax.py giants  [--folds 5]          real photometry, labels and parallaxes of Green+21
    python benchmarks/parallax.py outside [--seeds 3 4 5]      trained on a part of the labels: flags and errors outside
    python benchmarks/parallax.py far                          by distance, 1 to 20 kpc
    python benchmarks/parallax.py clump                        distances against seismic luminosities
    python benchmarks/parallax.py pixels                       semi-synthetic spectra of the real giants
    python benchmarks/parallax.py survey  [--stars 14000] [--pixels 7405]    MAP and minibatch SVI, time and memory

Simulated red giants are those of `parallax_giants.py` in the shared cases; every number printed is of stars that were
not in the training set.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri

import bayeslabels as bl
from bayeslabels.kind import kind_of
from bayeslabels.kinds.parallax.training import data_of
from bayeslabels.numerics.sparse import subgradient

BANDS = ("G", "BP", "RP", "J", "H", "K", "W1", "W2")
METHODS = {
    "laplace": (bl.Parallax(), bl.Laplace()),
    "horseshoe": (bl.Parallax(coefficient_prior=bl.priors.Horseshoe()), bl.Laplace()),
    "map": (bl.Parallax(), bl.MAP()),
    "svi": (bl.Parallax(), bl.SVI()),
    "nuts": (bl.Parallax(), bl.NUTS(chains=2, draws=400, warmup=200)),
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
        density = kind_of(posterior.model).log_density(posterior, result, test)
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
    for name, values in offset.items():
        z = np.array(values)
        print(f"{name}: mean z of (constant, a, b, c) {z.mean(0).round(2)} +- {1 / np.sqrt(len(z)):.2f}")


def real_giants(a):
    """Giants of Green+21: magnitudes, labels and every parallax."""
    from astropy.io import fits

    with fits.open(a.shared / "data" / "green2021_train.fits") as file:
        t = file[1].data
    keep = np.asarray(t["LOGG"]) < 3.2
    bands = ("G", "BP", "RP", "J", "H", "Ks")
    get = lambda name: np.asarray(t[name], float)[keep]  # noqa: E731
    labels = ("TEFF", "LOGG", "FE_H")
    return bl.Stars(
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


def predictive_z(posterior, result, stars):
    """Normal quantiles of the measured parallaxes in their whole predictive distribution, outliers included."""
    m, s, frame = posterior.moments, result.stars, posterior.model.frame
    y, sigma = stars["parallax"].value[:, 0], np.hypot(stars["parallax"].error[:, 0], m.zero_point_error)
    node, weight = np.polynomial.hermite_e.hermegauss(80)
    true = np.exp(s["ln_parallax"].values[:, None] + s["ln_parallax_error"].values[:, None] * node)
    right = ndtr((y[:, None] - m.zero_point - true) / sigma[:, None]) @ (weight / weight.sum())
    wrong = ndtr((y - frame.outlier[0]) / np.hypot(frame.outlier[1], sigma))
    return ndtri(np.clip((1 - m.outlier_fraction) * right + m.outlier_fraction * wrong, 1e-12, 1 - 1e-12))


def giants_real(a):
    stars = real_giants(a)
    model = bl.Parallax(features=("magnitudes", "labels"), outliers=True)
    start = time.process_time()
    cv = bl.cross_validate(model, stars, folds=a.folds, progress=False)
    fold = np.random.default_rng(0).permutation(len(stars)) % a.folds
    honest = np.full(len(stars), np.nan)
    for f in range(a.folds):
        posterior = bl.fit(model, stars[fold != f], progress=False)
        out = stars[fold == f]
        honest[fold == f] = predictive_z(posterior, bl.infer(posterior, out, progress=False), out)
    honest = honest[np.isfinite(honest)]
    print(
        f"z in the whole predictive distribution, outliers included: {honest.mean():+.3f} +- {honest.std():.3f}, 68 % "
        f"coverage {(np.abs(honest) < 1).mean():.3f}, beyond 3 sigma {(np.abs(honest) > 3).sum()}"
    )
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
    if a.figure:
        precision_figure(a.figure, y / sigma, 100 * cv.error[:, 0] / cv.mean[:, 0], 100 * sigma / np.abs(cv.mean[:, 1]))
    for snr in ((-np.inf, 1), (1, 5), (5, 10), (10, 20), (20, 50), (50, np.inf)):
        row = ok & ~wrong & (y / sigma > snr[0]) & (y / sigma <= snr[1])
        if row.sum() > 5:
            print(
                f"  S/N {snr[0]:g} to {snr[1]:g}: {row.sum()} stars, z {z[row].mean():+.2f} +- {z[row].std():.2f}, "
                f"error {100 * np.median(cv.error[row, 0] / cv.mean[row, 0]):.1f} % against Gaia's "
                f"{100 * np.median(sigma[row] / np.abs(cv.mean[row, 1])):.1f} %"
            )


def outside(a):
    """Trained on one side of a cut in a label: flags, rms and stated errors against the distance beyond it."""
    for seed in a.seeds:
        first, second, true, _ = giants(a, 1500, 309, seed)
        from line_spectra import draw_labels

        labels = draw_labels(3000, 5, np.random.default_rng(seed))  # the first that the generator draws
        for name, column, sign, cut in (
            ("log g > 2.0", 1, 1, 2.0), ("log g < 2.4", 1, -1, 2.4), ("[Fe/H] > -0.3", 2, 1, -0.3),
        ):  # fmt: skip
            distance = sign * (cut - labels[:, column])
            posterior = bl.fit(bl.Parallax(), first[distance[:1500] < 0], progress=False)
            result = bl.infer(posterior, second.drop("parallax"), progress=False)
            s = result.stars
            off, sd = np.log(true) - s["ln_parallax"].values, s["ln_parallax_error"].values
            print(f"seed {seed}, trained on {posterior.info['n_star']} giants of {name}")
            for low, high in ((-9, 0), (0, 0.2), (0.2, 0.4), (0.4, 0.7), (0.7, 1.0), (1.0, 1.3)):
                row = (distance[1500:] >= low) & (distance[1500:] < high)
                if row.sum() < 5:
                    continue
                rms, told, z = (np.sqrt((x[row] ** 2).mean()) for x in (off, sd, off / sd))
                flagged = 100 * (result.flags[row] & 8 > 0).mean()
                print(
                    f"  {low} to {high} dex outside: {row.sum()} stars, {flagged:.1f} % flagged, rms {100 * rms:.1f}, "
                    f"stated {100 * told:.1f} %, rms of z {z:.2f}", flush=True,
                )  # fmt: skip


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


def precision_figure(path, snr, ours, gaia):
    """Fractional errors of both parallaxes against the S/N of the measured one."""
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    ax.plot(snr, gaia, ".", ms=3, color="0.6", label="Gaia DR2")
    ax.plot(snr, ours, ".", ms=3, color="C0", label="spectrophotometric")
    ax.set(xscale="symlog", yscale="log", xlabel="measured parallax / error", ylabel="error of the parallax (%)")
    ax.set(ylim=(1, 300), title="5-fold, no star's own astrometry used")
    ax.legend()
    fig.savefig(path, dpi=80)


def clump(a):
    """Distance moduli of red-clump stars against those of their seismic radii, up to a smooth bolometric correction."""
    from astropy.table import Table

    t = Table.read(a.shared / "data" / "red_clump_gaia_seismic_train.ecsv")
    get = lambda name: np.ma.filled(np.ma.asarray(t[name], float), np.nan)  # noqa: E731
    labels = np.column_stack([get(x) for x in ("TEFF_COR", "LOGG_SEIS", "FE_H_ADOP_COR")])
    label_error = np.column_stack([get(x) for x in ("TEFF_COR_ERR", "SIG_LOGG_SEIS", "FE_H_ADOP_COR_ERR")])
    stars = bl.Stars(
        magnitudes=bl.Block(
            np.column_stack([get("GAIAmag"), get("Kmag")]),
            np.column_stack([np.full(len(t), 0.01), get("e_Kmag")]), names=("G", "K"), unit="mag",
        ),
        labels=bl.Block(labels, label_error, names=("TEFF", "LOGG", "FE_H"), unit=("K", "dex", "dex")),
        parallax=bl.Block(get("parallax"), get("parallax_error"), unit="mas"),
    )  # fmt: skip
    features = ("magnitudes", "labels")
    cv = bl.cross_validate(bl.Parallax(features=features, outliers=True), stars, folds=a.folds, progress=False)
    radius, teff = get("R_Clump"), get("TEFF_COR")
    bolometric = 4.74 - 5 * np.log10(radius) - 10 * np.log10(teff / 5772)
    seismic = get("Kmag") - get("Aks") - bolometric  # distance modulus + BC_K, which is smooth in Teff and [Fe/H]
    terms = np.column_stack([np.ones(len(t)), (teff - 4800) / 200, get("FE_H_ADOP_COR")])
    print(f"{len(t)} red-clump stars; robust scatter of distance modulus (mag) against seismology:")
    for name, parallax, error in (
        ("spectrophotometric", cv.mean[:, 0], cv.error[:, 0]),
        ("with Gaia", cv.mean[:, 1], cv.error[:, 1]),
        ("Gaia alone", get("parallax") - cv.stars["zero_point"].values, get("parallax_error")),
    ):
        modulus = 10 - 5 * np.log10(np.maximum(parallax, 1e-3))
        ok = np.isfinite(modulus + seismic) & np.isfinite(terms).all(1) & (parallax > 0)
        off = modulus - seismic
        fit = np.linalg.lstsq(terms[ok], off[ok], rcond=None)[0]
        rest = off[ok] - terms[ok] @ fit
        kept = np.abs(rest) < 4 * 1.4826 * np.median(np.abs(rest))
        fit = np.linalg.lstsq(terms[ok][kept], off[ok][kept], rcond=None)[0]
        rest = off[ok] - terms[ok] @ fit
        stated = 2.17 * np.median(error[ok] / parallax[ok])
        low, high = np.percentile(rest, [15.87, 84.13])
        slope = np.polyfit(np.clip(seismic[ok], *np.percentile(seismic[ok], [1, 99])), rest, 1)[0]
        print(f"  {name}: {(high - low) / 2:.3f}, stated {stated:.3f}, slope with distance modulus {slope:+.3f}")


def semi_synthetic(a):
    """The real giants with spectra made from their labels: do pixels help, and which?"""
    from astropy.io import fits

    with fits.open(a.shared / "data" / "apogee_cannon_coefficients.fits") as file:
        theta, scatter = np.asarray(file[1].data["THETA"], float), np.asarray(file[1].data["SCATTER"], float)
        wave, head = np.asarray(file[1].data["WAVELENGTH"], float), file[1].header
    stars = real_giants(a)
    teff, logg, feh = stars["labels"].value.T
    keep = (teff > 3800) & (teff < 5250) & (logg > 0.5) & (feh > -1.0) & (feh < 0.45) & stars["parallax"].observed[:, 0]
    stars = stars[keep]
    teff, logg, feh = stars["labels"].value.T
    base = [head[f"BASE_{x}"] for x in "TGMA"]
    u = np.column_stack([teff, logg, feh, np.full(len(feh), base[3])]) - base  # alpha as the training set has it
    pairs = [u[:, i] * u[:, j] for i in range(4) for j in range(i, 4)]
    phi = np.column_stack([np.ones(len(u)), u, *pairs])
    lines = np.flatnonzero(np.isfinite(scatter) & (scatter < 0.02) & (scatter > 0))
    lines = lines[:: max(1, len(lines) // a.pixels)]
    rng = np.random.default_rng(a.seed)
    clean = phi @ theta[lines].T
    flux = clean + np.hypot(0.01, scatter[lines]) * rng.normal(size=clean.shape)
    stars = stars.with_block(flux=bl.Block(flux, np.full(flux.shape, 0.01), coords={"wavelength": wave[lines]}))
    print(f"{len(stars)} real giants, semi-synthetic spectra of {len(lines)} pixels")
    for features in (("magnitudes",), ("magnitudes", "ln flux"), ("magnitudes", "labels")):
        cv = bl.cross_validate(bl.Parallax(features=features, outliers=True), stars, folds=a.folds, progress=False)
        wrong = cv.stars["outlier_probability"].values > 0.5
        error = np.median(cv.error[:, 0] / cv.mean[:, 0])
        y, sigma = stars["parallax"].value[:, 0], stars["parallax"].error[:, 0]
        z = (y - cv.stars["zero_point"].values - cv.mean[:, 0]) / np.hypot(sigma, cv.error[:, 0])
        print(f"  {' + '.join(features)}: median error {100 * error:.1f} %, {wrong.sum()} outliers, z of the others "
              f"{z[~wrong].std():.3f}, held-out ln density {cv.elpd:.1f} +- {cv.elpd_error:.1f}")  # fmt: skip
    posterior = bl.fit(bl.Parallax(outliers=True), stars, bl.MAP(), progress=False)
    table = posterior.summary()
    pixels = np.array([str(x).startswith("ln ") for x in table["feature"]])
    size = np.abs(table["coefficient"]) * pixels
    print(f"  {(size > 0).sum()} of {pixels.sum()} pixels carry weight at the mode; largest per ln flux:")
    for j in np.argsort(-size)[:12]:
        print(f"    {table['feature'][j]}: {table['coefficient'][j]:+.3f}")


def survey(a):
    n = a.stars[0] if a.stars != [2000] else 14000
    pixels = a.pixels if a.pixels != 991 else 7405
    with tempfile.TemporaryDirectory() as folder:
        simulation = multiprocessing.get_context("spawn").Process(target=write_survey, args=(a, n, pixels, folder))
        simulation.start()  # in a process of its own, whose memory does not count
        simulation.join()
        train, test = (read_survey(folder, part) for part in ("train", "test"))
        true = np.load(f"{folder}/true.npy")
    size = train.flux.value.nbytes
    print(f"{n} stars, {pixels + 9} features ({size / 2**30:.2f} GiB), memory so far {peak():.1f} GiB", flush=True)
    svi = bl.SVI(steps=1000, batch_size=500, learning_rate=0.01)
    for name, inference in (("MAP", bl.MAP()), ("SVI", svi)):
        start = time.process_time()
        posterior = bl.fit(bl.Parallax(), train, inference, progress=False)
        cpu = time.process_time() - start
        result = bl.infer(posterior, test, progress=False)
        density = kind_of(posterior.model).log_density(posterior, result, test).mean()
        print(f"{name}: {cpu:.0f} CPU s, peak memory {peak():.1f} GiB, held-out ln density {density:.4f} per star")
        report(posterior, result, true)


def write_survey(a, n, pixels, folder):
    train, test, true, _ = giants(a, n, pixels + 9, a.seed)
    for name, stars in (("train", train), ("test", test[:1000])):
        for block in stars.blocks:
            numbers = np.array([stars[block].value, stars[block].error])
            np.save(f"{folder}/{name} {block}.npy", numbers.astype(np.float32) if block == "flux" else numbers)
    np.save(f"{folder}/true.npy", true[:1000])


def read_survey(folder, name):
    read = {block: np.load(f"{folder}/{name} {block}.npy") for block in ("magnitudes", "parallax", "flux")}
    magnitudes = bl.Block(*read["magnitudes"], names=BANDS, unit="mag")
    return bl.Stars(
        magnitudes=magnitudes, parallax=bl.Block(*read["parallax"], unit="mas"), flux=bl.Block(*read["flux"])
    )


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = {"objective": objective, "heldout": heldout, "zero": zero, "cuts": cuts, "giants": giants_real,
             "outside": outside, "far": far, "clump": clump, "pixels": semi_synthetic, "survey": survey}  # fmt: skip
    cli.add_argument("case", choices=cases)
    cli.add_argument("--methods", nargs="+", choices=METHODS, default=["laplace", "map", "horseshoe"])
    cli.add_argument("--seed", type=int, default=3)
    cli.add_argument("--pixels", type=int, default=991)
    cli.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    cli.add_argument("--stars", type=int, nargs="+", default=[2000])
    cli.add_argument("--folds", type=int, default=5)
    cli.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    cli.add_argument("--figure", type=Path, help="of giants: precision against the parallax's S/N")
    options = cli.parse_args()
    cases[options.case](options)
