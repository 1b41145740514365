"""Dust-aware photometry: real stars against the published network, reddening vector, parallaxes, calibration, speed.

    python benchmarks/photometry.py real     [--members 6]   scatter of held-out colours and of M_G (Green+21 stars)
    python benchmarks/photometry.py vector                   R by band, and with Teff, beside a standard extinction law
    python benchmarks/photometry.py heldout  [--stars 1000]  labels of held-out real stars from their magnitudes
    python benchmarks/photometry.py parallaxes [--seeds 1 2] absolute magnitudes from parallaxes of low S/N
    python benchmarks/photometry.py dusty                    a third held out: colours by E, parallaxes, labels
    python benchmarks/photometry.py sbc      [--stars 400]   simulation-based calibration, dwarfs and giants
    python benchmarks/photometry.py speed                    training and test step, stars per CPU second
    python benchmarks/photometry.py bands                    without W1 and W2; with a band that nobody foresaw
    python benchmarks/photometry.py r_v                      the second dust vector of real stars beside published laws
    python benchmarks/photometry.py xp [--stars 1500] [--pixels 61]   simulated Gaia XP spectra beside five bands

`--posterior FILE` keeps the model trained on the real stars for the next command.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from astropy.table import Table
from scipy.stats import kstest

import bayeslabels as bl
from bayeslabels.astro.extinction import band_extinction
from bayeslabels.kinds.photometry.luminosity import luminosity_sd
from bayeslabels.kinds.photometry.r_v import alignment
from bayeslabels.kinds.photometry.stars import label_prior, member
from bayeslabels.numerics import dusty
from bayeslabels.numerics.tangent import extinction
from bayeslabels.simulate import simulate_photometry, simulate_xp

BANDS = ("G", "BP", "RP", "PS1_g", "PS1_r", "PS1_i", "PS1_z", "PS1_y", "J", "H", "Ks", "W1", "W2")
LABELS = ("TEFF", "LOGG", "FE_H")
PUBLISHED_SCATTER = (0.0136, 0.0118, 0.0230, 0.0176, 0.0187, 0.0206, 0.0225, 0.0328, 0.0424, 0.0438, 0.0392, 0.0406)


def real(a, bands=BANDS, n_train=6000):
    """Training stars, test stars (split by seed), and the published numbers of the test stars."""
    t = Table.read(a.shared / "data" / "green2021_train.fits")
    columns = lambda names: np.stack([np.asarray(t[x], float) for x in names], 1)  # noqa: E731
    covariance = np.asarray(t["LABEL_COV"], float)
    covariance = 0.5 * (covariance + covariance.swapaxes(1, 2))  # single precision left them uneven
    stars = bl.Stars(
        labels=bl.Block(columns(LABELS), covariance, names=LABELS, unit=("K", "dex", "dex")),
        magnitudes=bl.Block(columns(bands), columns([f"{b}_ERR" for b in bands]), names=bands, unit="mag"),
        parallax=bl.Block(columns(["PARALLAX"]), columns(["PARALLAX_ERROR"]), unit="mas"),
        reddening=bl.Block(columns(["EBV"]), columns(["EBV_ERR"]), unit="mag"),
    )
    order = np.random.default_rng(a.seed).permutation(len(stars))
    train, test = order[:n_train], order[n_train:]
    published = {name: np.asarray(t[f"PUBLISHED_{name}"], float)[test] for name in ("M", "R", "EBV")}
    return stars[train], stars[test], published


def trained(a, train, **settings):
    if a.posterior and a.posterior.exists():
        return bl.load(a.posterior)
    start = time.process_time()
    # what selected these stars is not known: flat in the modulus, their zero point comes out as other work has it
    model = bl.Photometry(members=a.members, distance_prior=bl.priors.NormalModulus(10.0, 5.0), **settings)
    posterior = bl.fit(model, train, bl.MAP(a.epochs), seed=a.seed, progress=False)
    print(f"trained in {time.process_time() - start:.0f} CPU s: {posterior}", flush=True)
    if a.posterior:
        posterior.save(a.posterior, overwrite=True)
    return posterior


def mad(x):
    return 1.4826 * np.nanmedian(np.abs(x - np.nanmedian(x, 0)), 0)


def residuals(posterior, stars):
    """m - M - A (N, B) at the labels, and E, of the star's own magnitudes alone."""
    model, moments = posterior.model, posterior.moments
    m = posterior.predict(stars, "absolute_magnitudes")
    vector = posterior.predict(stars, "reddening_vector")
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, model.arrays(stars.drop("parallax", "reddening")))
        e = []
        for i in range(len(moments.coefficients)):
            theta = member(model, moments, i) | {"zero_point": 0.0}
            q = model.seen_in(theta, data, model.predicted(theta, data))
            e.append(dusty.summary(q, model.others(theta, data)).reddening)
    e = np.mean(e, 0)
    value = np.where(stars["magnitudes"].observed, stars["magnitudes"].value, np.nan)
    return value - m - extinction(e, vector, moments.reddening_bend), e


def of_distance(stars, residual):
    """Those of S/N > 10, less the distance modulus of the measured parallax."""
    w, sigma = stars["parallax"].value[:, 0], stars["parallax"].error[:, 0]
    good = w > 10 * sigma
    return residual[good, 0] - 10 + 5 * np.log10(w[good])


def colours(a):
    train, test, published = real(a)
    posterior = trained(a, train)
    ours, _ = residuals(posterior, test)
    value = np.where(test["magnitudes"].observed, test["magnitudes"].value, np.nan)
    theirs = value - published["M"] - published["EBV"][:, None] * published["R"]
    scatter, other = (mad(x[:, 1:] - x[:, :1]) for x in (ours, theirs))
    print("robust scatter relative to G [mag] of 1000 held-out stars; published network: all 7000, the same 1000")
    for row in zip(BANDS[1:], scatter, PUBLISHED_SCATTER, other, strict=True):
        print("  {:6s} {:.4f}   {:.4f} {:.4f}   ratio".format(*row), f"{row[1] / row[2]:.3f} {row[1] / row[3]:.3f}")
    of_g = [mad(of_distance(test, x)) for x in (ours, theirs)]
    print(f"M_G at parallax S/N > 10: {of_g[0]:.3f} mag, published {of_g[1]:.3f}")
    m = posterior.moments
    print(f"luminosity scatter {m.luminosity_scatter:.3f} mag, outliers {m.outlier_fraction:.3f}, zero point "
          f"{m.zero_point:+.4f} +- {m.zero_point_error:.4f} mas")  # fmt: skip


def vector(a):
    train, test, published = real(a)
    posterior = trained(a, train)
    frame = posterior.model.require_frame()
    # the star of median labels of all 7000
    both = [np.concatenate([x["labels"].value for x in (train, test)])]
    u = frame.scaled(np.median(both[0], 0))
    draws = posterior.data["posterior"].to_dataset()
    log_r = draws["reddening_log"].values[0] + draws["reddening_slope"].values[0] @ u
    ours, error = np.exp(log_r).mean(0), np.exp(log_r).std(0, ddof=1)
    theirs = np.median(published["R"], 0)
    # R's unit is that of the reddenings: the published ones were revised, away from the map that we take them from
    e = test["reddening"].value[:, 0]
    dusty = e > 0.1
    each = published["EBV"][dusty] / e[dusty]
    unit = np.median(each)
    unit_error = np.median(each[np.random.default_rng(0).integers(len(each), size=(500, len(each)))], 1).std()
    print(f"R at the median star: ours, error, published, ratio; ratio in the map's unit (x {unit:.3f} +- "
          f"{unit_error:.3f}) and how many errors, this one's included, it is from 1")  # fmt: skip
    for row in zip(BANDS, ours, error, theirs, strict=True):
        z = (row[1] - unit * row[3]) / np.hypot(row[2], unit_error * row[3])
        print("  {:6s} {:.3f} +- {:.3f}   {:.3f}".format(*row), f"{row[1] / row[3]:.3f}",
              f"{row[1] / row[3] / unit:.3f} {z:+.1f}")  # fmt: skip
    teff = np.array([4200.0, 5000.0, 5800.0, 6600.0, 7400.0])
    law = band_extinction(teff, BANDS)
    slope = posterior.moments.reddening_slope.mean(0)[:, 0] / frame.scale[0]
    print("R / R(5800 K) with Teff: ours (logg, [Fe/H] fixed) | Cardelli law, black body, Gaussian passbands")
    for b in ("G", "BP", "RP", "PS1_g", "J"):
        i = BANDS.index(b)
        print(f"  {b:6s}", np.exp(slope[i] * (teff - 5800)).round(3), "|", (law[:, i] / law[2, i]).round(3))


def heldout(a):
    train, test, _ = real(a)
    posterior = trained(a, train).with_model(distance_prior=bl.priors.ExponentialDisk())
    test = test[: a.stars or 1000]
    for name, bands in (("13 bands", BANDS), ("Gaia + 2MASS", ("G", "BP", "RP", "J", "H", "Ks"))):
        block = test["magnitudes"]
        keep = np.isin(BANDS, bands)
        magnitudes = bl.Block(np.where(keep, block.value, np.nan), block.error, names=BANDS, unit="mag")
        seen = test.drop("labels", "reddening").with_block(magnitudes=magnitudes)
        start = time.process_time()
        result = bl.infer(posterior, seen, bl.Importance(), seed=0, progress=False)
        cpu = time.process_time() - start
        error = np.sqrt(np.einsum("nmm->nm", test["labels"].error) + result.error[:, :3] ** 2)
        z = (test["labels"].value - result.mean[:, :3]) / error
        from_median = (test["labels"].value - result.stars["p50"].values[:, :3]) / error
        names = [set(bl.flag_names(x)) for x in result.flags]
        good = np.array([not x & {"OUTLIER", "POOR_FIT", "OUTSIDE_TRAINING", "NOT_CONVERGED"} for x in names])
        print(f"{name}: {len(test)} stars in {cpu:.0f} CPU s; {good.sum()} without flag; flags",
              {k: v for k, v in result.flag_counts().items() if v})  # fmt: skip
        for which, rows in (("all", np.isfinite(z).all(1)), ("unflagged", good & np.isfinite(z).all(1))):
            for i, label in enumerate(LABELS):
                x, middle = z[rows, i], np.median(from_median[rows, i])
                print(
                    f"  {which:9s} {label}: z mean {x.mean():+.3f} sd {x.std():.3f} robust {mad(x):.3f}, from medians "
                    f"{middle:+.3f}, over 5 sigma {(np.abs(x) > 5).sum()}, error {np.median(result.error[rows, i]):.3g}"
                )
        high, error = (result.stars["khat"].values > 0.7).sum(), np.nanmedian(result.error, 0)
        print(f"  k-hat > 0.7: {high}, errors of E and modulus {error[3]:.3f} {error[4]:.3f} mag", flush=True)


def dusty_stars(a):
    """A third held out: residual colours by reddening, parallaxes from labels and bands by log g, labels from bands."""
    train, test, published = real(a, n_train=4667)
    posterior = trained(a, train)
    value = np.where(test["magnitudes"].observed, test["magnitudes"].value, np.nan)
    theirs = value - published["M"] - published["EBV"][:, None] * published["R"]
    ours, e = residuals(posterior, test)
    print("w:", dict(zip(BANDS, np.round(posterior.moments.reddening_bend, 4), strict=True)))
    print("residual colour, median by E of the star's own bands: ours; published network, by its own E")
    for name, i in (("J - G", 8), ("r - G", 4), ("BP - RP", 1)):
        base = 0 if i != 1 else 2
        for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 9)):
            some = [(x[:, i] - x[:, base])[(y > low) & (y < high)] for x, y in ((ours, e), (theirs, published["EBV"]))]
            print(f"  {name:7s} E {low}-{high}: {np.nanmedian(some[0]):+.4f} {np.nanmedian(some[1]):+.4f}  "
                  f"({np.isfinite(some[0]).sum()} stars)")  # fmt: skip
    theta = member(posterior.model, posterior.moments, 0)
    u = posterior.model.frame.scaled(test["labels"].value)
    grey = np.asarray(posterior.model.luminosity(theta, jnp.asarray(u)))
    told = bl.infer(posterior, test.drop("parallax"), bl.Importance(draws=300, rescue=False), seed=0, progress=False)
    w = 1 / told.draws("distance")
    sigma = test["parallax"].error[:, 0]
    measured = test["parallax"].value[:, 0] - posterior.moments.zero_point
    z = (measured - w.mean(0)) / np.hypot(w.std(0), sigma)
    good = np.isfinite(z) & (told.stars["outlier_probability"].values < 0.5)
    logg = test["labels"].value[:, 1]
    for low, high in ((0, 2.3), (2.3, 3.5), (3.5, 6)):
        some = good & (logg > low) & (logg < high)
        print(f"parallaxes, log g {low}-{high}: z {z[some].mean():+.3f} sd {z[some].std():.3f} ({mad(z[some]):.2f}) "
              f"{some.sum()} stars, scatter {np.median(grey[some]):.3f} mag", flush=True)  # fmt: skip
    own = posterior.with_model(distance_prior=bl.priors.ExponentialDisk())
    some = test[: a.stars or 600]
    result = bl.infer(own, some.drop("labels", "reddening"), bl.Importance(draws=300, rescue=False), seed=0,
                      progress=False)  # fmt: skip
    error = np.sqrt(np.einsum("nmm->nm", some["labels"].error) + result.error[:, :3] ** 2)
    z, logg = (some["labels"].value - result.mean[:, :3]) / error, logg[: len(some)]
    good = np.isfinite(z).all(1) & (result.stars["outlier_probability"].values < 0.5)
    kinds = {"giants": logg < 3.5, "dwarfs": logg > 3.5, "E > 0.8": e[: len(logg)] > 0.8}
    for name, rows in ((name, good & kind) for name, kind in kinds.items()):
        print(f"labels of {name} ({rows.sum()}): z mean {z[rows].mean(0).round(2)} sd {z[rows].std(0).round(2)} robust "
              f"{mad(z[rows]).round(2)}", flush=True)  # fmt: skip


def parallaxes(a):
    """Every seed draws training and test stars anew: what is left of their mean is bias."""
    found = np.array([of_parallaxes(a, seed) for seed in a.seeds])
    for name, off in zip(("the disk's prior", "flat in the modulus"), found.T, strict=True):
        error = off.std(ddof=1) / np.sqrt(len(off)) if len(off) > 1 else np.nan
        print(f"{name}: median offset, mean over {len(off)} simulations {off.mean():+.3f} +- {error:.3f} mag")


def of_parallaxes(a, seed):
    stars, truth = simulate_photometry(4000, seed=seed, parallax_error=0.09, luminosity_scatter=a.luminosity)
    train, test = stars[:3000], stars[3000:]
    w, sigma = train["parallax"].value[:, 0], train["parallax"].error[:, 0]
    print(f"parallax S/N < 3: {(w < 3 * sigma).mean():.2f}, negative {(w < 0).mean():.2f}")
    true = truth.absolute_magnitudes[3000:]
    giant = truth.labels[3000:, 1] < 3.5
    flat = bl.Photometry(members=a.members, distance_prior=bl.priors.NormalModulus(10.0, 5.0))
    medians = []
    for name, model in (("the disk's prior", bl.Photometry(members=a.members)), ("flat in the modulus", flat)):
        posterior = bl.fit(model, train, bl.MAP(a.epochs), seed=seed, progress=False)
        off = (posterior.predict(test, "absolute_magnitudes") - true)[:, 0]
        both, members = (np.median(off[~giant]), np.median(off[giant])), posterior.moments.coefficients
        bound, u = posterior.model, posterior.model.frame.scaled(truth.labels[3000:])
        levels = [np.mean(bound.absolute(jnp.asarray(w), jnp.asarray(u))[:, 0]) for w in members]
        spread = np.std(levels, ddof=1)
        print(f"{name}: absolute G magnitudes off by {np.median(off):+.3f} mag in the median (dwarfs {both[0]:+.3f}, "
              f"giants {both[1]:+.3f}), mean {off.mean():+.3f} +- {spread:.3f}", flush=True)  # fmt: skip
        medians.append(np.median(off))
    for least in (0, 3, 5):
        good = w > max(least, 1e-3) * sigma
        naive = train["magnitudes"].value[good, 0] - 10 + 5 * np.log10(w[good])
        naive -= truth.reddening[:3000][good] * truth.reddening_vector[:3000][good, 0]
        off = naive - truth.absolute_magnitudes[:3000][good, 0]
        print(
            f"naive modulus, S/N > {least}: mean {off.mean():+.3f} median {np.median(off):+.3f} mag, {good.sum()} stars"
        )
    return medians


def simulated_from(posterior, n, seed, parallax):
    """Stars drawn from the model, of a function that is known, and its priors; and the truth (N, 6)."""
    model, moments = posterior.model, posterior.moments
    frame, rng = model.require_frame(), np.random.default_rng(seed)
    u = label_prior(model, moments).population.draw(n, seed)
    e = rng.exponential(model.reddening_scale, n)
    key = jax.random.key(seed)
    mu = np.asarray(model.distance_prior.distribution().sample(key, (n,)), float)
    with jax.enable_x64(True):
        each = [
            np.asarray(model.absolute(jnp.asarray(w), jnp.asarray(u)))
            + np.asarray(extinction(e, np.exp(r + u @ s.T), moments.reddening_bend))
            for w, r, s in zip(moments.coefficients, moments.reddening_log, moments.reddening_slope, strict=True)
        ]
    mean = np.mean([np.asarray(x) for x in each], 0)
    z = rng.standard_normal((len(each), n, 1))
    m = mean + sum((x - mean) * y for x, y in zip(each, z, strict=True)) / np.sqrt(max(len(each) - 1, 1))
    grey = np.asarray(luminosity_sd(moments.luminosity_scatter, moments.luminosity_scatter_slope, u))
    m = m + (mu + grey * rng.standard_normal(n))[:, None]
    wrong = model.outlier_width * (rng.random((n, 1)) < moments.outlier_fraction)
    sd = np.sqrt(frame.magnitude_error**2 + moments.scatter**2 + wrong**2)
    m = m + sd * rng.standard_normal(m.shape)
    blocks = {"magnitudes": bl.Block(m, np.tile(frame.magnitude_error, (n, 1)), names=frame.bands, unit="mag")}
    if parallax:
        error = np.full(n, frame.parallax_error)
        sd = np.hypot(error, moments.zero_point_error)
        w = 10 ** (0.2 * (10 - mu)) + float(moments.zero_point) + sd * rng.standard_normal(n)
        blocks["parallax"] = bl.Block(w, error, unit="mas")
    return bl.Stars(**blocks), np.column_stack([frame.physical(u), e, mu, 10 ** (0.2 * (mu - 10))])


def sbc(a):
    stars, _ = simulate_photometry(2500, seed=a.seed)
    posterior = bl.fit(bl.Photometry(members=a.members), stars, bl.MAP(a.epochs), seed=a.seed, progress=False)
    posterior = posterior.with_moments(posterior.moments._replace(deviation=None))
    n = a.stars or 400
    for parallax in (True, False):
        seen, true = simulated_from(posterior, n, 17 + a.seed, parallax)
        result = bl.infer(posterior, seen, bl.Importance(), seed=1, progress=False)
        names = result.frame.names
        flags = {k: v for k, v in result.flag_counts().items() if v}
        high = (result.stars["khat"].values > 0.7).sum()
        print(f"{'with' if parallax else 'without'} parallax, {n} stars; flags {flags}, k-hat > 0.7: {high}")
        for i, name in enumerate(names[:5]):
            draws = result.draws(name)
            good = np.isfinite(draws).all(0)
            rank = ((draws < true[:, i]).sum(0) + 0.5)[good] / (len(draws) + 1)
            z = ((true[:, i] - result.mean[:, i]) / result.error[:, i])[good]
            print(f"  {name:17s} ranks: KS p {kstest(rank, 'uniform').pvalue:.3f}, mean {rank.mean():.3f}, in 68 % "
                  f"{(np.abs(rank - 0.5) < 0.34135).mean():.3f}; z {z.mean():+.2f} +- {z.std():.2f}")  # fmt: skip
        giant = true[:, 1] < 3.6
        p = (result.draws("LOGG") < 3.6).mean(0)
        doubt = (p > 0.05) & (p < 0.95)
        for rows, what in ((doubt, "of which 5 to 95 % of the posterior is giant"), (np.isfinite(p), "all")):
            sd = np.sqrt((p[rows] * (1 - p[rows])).sum())
            print(
                f"  {rows.sum()} stars ({what}): {giant[rows].sum()} giants, {p[rows].sum():.1f} +- {sd:.1f} expected"
            )
        print(f"  wrong and sure (truth of less than 1 %): {(np.where(giant, p, 1 - p) < 0.01).sum()}", flush=True)


def speed(a):
    train, test, _ = real(a)
    posterior = trained(a, train)
    seen = test.drop("labels", "reddening")
    for name, method, n in (
        ("importance, 1000 draws", bl.Importance(), 768),
        ("Laplace, 500 draws", bl.Laplace(), 768),
        ("NUTS, 4 x 500", bl.NUTS(), 64),
    ):
        some = seen[:n]
        bl.infer(posterior, some, method, seed=0, progress=False)
        start = time.process_time()
        result = bl.infer(posterior, some, method, seed=1, progress=False)
        cpu = time.process_time() - start
        note = f"rhat > 1.02: {(result.stars['rhat'].values > 1.02).sum()}" if "rhat" in result.stars else ""
        print(f"{name}: {n / cpu:.0f} stars per CPU s {note}", flush=True)
    steps = 300
    for n in (3000, 30000):
        many = train[np.random.default_rng(0).integers(len(train), size=n)]
        model = bl.Photometry(members=1).bind(many)
        times = []
        for k in (1, 11):  # each call compiles anew, for longer than a few steps take
            start = time.process_time()
            bl.fit(model, many, bl.SVI(steps=k * steps, batch_size=500, draws=10, start="cold"), seed=0, progress=False)
            times.append(time.process_time() - start)
        per_star = (times[1] - times[0]) / (10 * steps * 500)
        print(f"SVI, {n} stars: {1 / per_star:.0f} stars per CPU s, {per_star * n:.2f} CPU s a pass", flush=True)


def bands(a):
    some = tuple(b for b in BANDS if b not in ("W1", "W2"))
    train, test, _ = real(a, some)
    a.posterior = None
    posterior = trained(a, train)
    ours, _ = residuals(posterior, test)
    print(
        "without W1, W2: scatter relative to G",
        dict(zip(some[1:], mad(ours[:, 1:] - ours[:, :1]).round(4), strict=True)),
    )
    new = train["magnitudes"]
    value = np.column_stack([new.value, 0.5 * (new.value[:, 3] + new.value[:, 4]) + 0.1])
    error = np.column_stack([new.error, np.hypot(new.error[:, 3], new.error[:, 4]) / 2])
    more = train.with_block(magnitudes=bl.Block(value, error, names=(*some, "halfway"), unit="mag"))
    summary = trained(a, more).summary()
    r = dict(zip(summary["band"], summary["reddening_vector"], strict=True))
    print(
        f"a new band halfway between g and r: R {r['halfway']:.3f}, mean of g and r {(r['PS1_g'] + r['PS1_r']) / 2:.3f}"
    )


def r_v(a):
    train, test, _ = real(a)
    posterior = trained(a, train, dust_vectors=2)
    moments, bands = posterior.moments, posterior.model.frame.bands
    for law in ("ccm89", "o94", "f99"):
        each = [
            alignment(bands, np.exp(x), second, law)
            for x, second in zip(moments.reddening_log, moments.reddening_second, strict=True)
        ]
        print(
            f"cosine of R_2 with dA / dR_V by {law}, in colours: {np.mean(each):.3f} +- {np.std(each):.3f} of members"
        )
    print("R_2", dict(zip(bands, moments.reddening_second.mean(0).round(3).tolist(), strict=True)))
    told = bl.infer(posterior, test[test["reddening"].value[:, 0] > 0.3], seed=0, progress=False).stars
    value, error = told["r_v"].values, told["r_v_error"].values
    print(
        f"{len(value)} stars of E > 0.3: R_V {np.median(value):.2f}, sd {value.std():.2f}, error {np.median(error):.2f}"
    )


def xp(a):
    """Training and test stars of one simulation, whose median star sets the unit of the fluxes."""
    n, names = a.stars or 1500, ("J", "H", "Ks", "W1", "W2")
    stars, truth = simulate_xp(n + 400, seed=a.seed, n_pixel=a.pixels, bands=names)
    start = time.process_time()
    model = bl.Photometry(members=a.members, distance_prior=bl.priors.ExponentialDisk(0.6))
    posterior = bl.fit(model, stars[:n], bl.MAP(max_iterations=a.epochs), seed=0, progress=False)
    print(f"trained in {time.process_time() - start:.0f} CPU s: {posterior}", flush=True)
    ratio = np.median(posterior.predict(stars[n:], "reddening_vector") / truth.reddening_vector[n:], 0)
    print(f"R over the truth: bands {ratio[:5].round(3)}, pixels {ratio[5:].min():.3f} to {ratio[5:].max():.3f}")
    true = np.column_stack([truth.labels, truth.reddening])[n:]
    start = time.process_time()
    told = bl.infer(posterior, stars[n:].drop("labels"), seed=0, progress=False)
    z = (told.mean[:, :4] - true) / told.error[:, :4]
    print(f"Teff, log g, [Fe/H], E: sd of z {z.std(0).round(2)}, robust {mad(z).round(2)}, mean {z.mean(0).round(2)}; "
          f"{400 / (time.process_time() - start):.0f} stars per CPU s, with compilation")  # fmt: skip


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = {"real": colours, "vector": vector, "heldout": heldout, "parallaxes": parallaxes, "sbc": sbc}
    cases |= {"speed": speed, "bands": bands, "dusty": dusty_stars, "r_v": r_v, "xp": xp}
    cli.add_argument("case", choices=cases)
    cli.add_argument("--seed", type=int, default=1)
    cli.add_argument("--seeds", type=int, nargs="+", default=[1], help="of parallaxes")
    cli.add_argument("--stars", type=int)
    cli.add_argument("--pixels", type=int, default=61, help="of xp")
    cli.add_argument("--members", type=int, default=bl.Photometry.members)
    cli.add_argument("--epochs", type=int, default=100)
    cli.add_argument("--luminosity", type=float, default=0.1, help="of parallaxes: scatter that all bands share, mag")
    cli.add_argument("--posterior", type=Path)
    cli.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    options = cli.parse_args()
    cases[options.case](options)
