"""One survey's labels on another's scale: real surveys, missing inputs, noise on both sides, out of range, speed.

    python benchmarks/translator.py seismic  [--seeds 0 1 2]   spectroscopic to seismic gravity (APOKASC-3)
    python benchmarks/translator.py releases [--seeds 0 1 2]   19 labels of APOGEE DR12 to three of DR17

Splits are 70/30 by seed; every number printed is of stars that were not in the training set.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from astropy.table import Table

import bayeslabels as bl


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
        density = bl.family.family_of(posterior.model).log_density(posterior, result, stars[test]).mean()
        print(f"seed {seed}: {len(train)} training stars, {seconds:.1f} CPU s, {posterior.info['epochs']} epochs, "
              f"ln density {density:.4f}, held out in training {posterior.info['held_out_log_density']:.4f}, "
              f"flags {({k: v for k, v in result.flag_counts().items() if v})}")  # fmt: skip
        names = posterior.model.frame.names
        each = {"all": scores(result, target)}
        for label, value in (("shell-burning", 1), ("clump", 2)):
            each[label] = scores(result, target, state[test] == value)
        for label, table in each.items():
            show(label, table, names)
        collected.append(each)
    print("mean over seeds:")
    for label in collected[0]:
        show(label, np.mean([x[label] for x in collected], 0), names)


def seismic(a):
    stars, state = seismic_stars(a)
    compare(a, stars, state, SEISMIC)


def releases(a):
    stars, state = release_stars(a)
    compare(a, stars, state, RELEASES)


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = {"seismic": seismic, "releases": releases}
    cli.add_argument("case", choices=cases)
    cli.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    cli.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    options = cli.parse_args()
    cases[options.case](options)
