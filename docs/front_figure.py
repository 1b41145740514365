"""The figure of the README: labels of the same stars from a classic Cannon and from bayeslabels, against the truth.

It is drawn by `python docs/front_figure.py`.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

import bayeslabels as bl
from bayeslabels.simulate import simulate

OUT = Path(__file__).parent / "figures" / "front.png"
SHOWN = 60
"""Stars that are drawn; the shares are of all test stars."""
CLASSIC = bl.Cannon(order=2, label_noise=False, coefficient_prior=bl.priors.Flat())
"""Training labels taken as exact, the flux quadratic in them."""
NAMES = {"TEFF": "T$_{eff}$ (K)", "FE_H": "[Fe/H] (dex)"}


def main() -> None:
    train, test, truth = simulate(120, 300, n_test=500, snr=60, label_scatter=(60, 0.1, 0.04), seed=3)
    results = {
        "Classic Cannon": bl.infer(bl.fit(CLASSIC, train, seed=0), test, bl.MAP(), seed=0),
        "bayeslabels": bl.infer(bl.fit(bl.Cannon(), train, seed=0), test, seed=0),
    }
    fig, axes = plt.subplots(2, 2, figsize=(8, 4.4), sharex=True, sharey="row", layout="constrained")
    star = np.arange(SHOWN)
    for column, (title, result) in enumerate(results.items()):
        off = result.mean - truth.test_labels
        inside = np.abs(off) < result.error
        for ax, (name, label) in zip(axes[:, column], NAMES.items(), strict=True):
            m = result.frame.names.index(name)
            held = inside[:SHOWN, m]
            for which, colour in ((held, "#0072b2"), (~held, "#d55e00")):
                ax.errorbar(star[which], off[:SHOWN, m][which], result.error[:SHOWN, m][which], fmt="o", ms=2.5, lw=1,
                            color=colour)  # fmt: skip
            ax.axhline(0, color="black", lw=0.8)
            share, rms = inside[:, m].mean(), np.sqrt(np.mean(off[:, m] ** 2))
            precise = f"{rms:.0f} K" if name == "TEFF" else f"{rms:.3f} dex"
            text = f"truth inside the error bar: {100 * share:.0f} %, rms {precise}"
            ax.set_title(text, fontsize=8.5)
            print(title, name, text)
            if column == 0:
                ax.set_ylabel(f"{label}\ninferred $-$ true")
        axes[1, column].set_xlabel(f"{title}: test stars")
    axes[0, 0].set_ylim(*np.array([-1, 1]) * np.ptp(axes[0, 0].get_ylim()) / 2)
    fig.savefig(OUT, dpi=110)
    print(f"{OUT}: {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
