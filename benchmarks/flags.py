"""Which stars are flagged: by how far outside of the training stars they are, and by how badly their spectra fit.

    python benchmarks/flags.py [--seeds 1 2 3]

Simulated giants, 200 pixels. Training stars have log g below 2, test stars log g up to 3.3: of every distance outside
the share flagged OUTSIDE_TRAINING, the offset of log g and the stated error. Then, trained on all of them, the share of
honest test stars with either flag, that of stars whose noise is larger than stated, and that of a Translator.
"""

import argparse
import itertools

import numpy as np

import bayeslabels as bl
from bayeslabels.results.star_posterior import Flags
from bayeslabels.simulate import simulate

EDGES = (-9.0, 0.0, 0.1, 0.25, 0.5, 0.8, 1.3)
"""Of log g - 2, dex."""
LIMIT = 2.0


def share(result, flag):
    return 100 * ((result.flags & flag) > 0).mean()


def outside(model, seed):
    """A row per bin of distance: stars, share flagged, rms of log g and its median error."""
    train, test, truth = simulate(1500, 200, seed=seed, n_test=2000)
    posterior = bl.fit(model, train[truth.training_labels[:, 1] < LIMIT], seed=0, progress=False)
    result = bl.infer(posterior, test, seed=0, progress=False)
    away = truth.test_labels[:, 1] - LIMIT
    for low, high in itertools.pairwise(EDGES):
        some = np.flatnonzero((away >= low) & (away < high))
        off = result.mean[some, 1] - truth.test_labels[some, 1]
        yield (
            len(some),
            share(result[some], Flags.OUTSIDE_TRAINING),
            np.sqrt(np.mean(off**2)),
            np.median(result.error[some, 1]),
        )


def honest(model, seed):
    """Shares of test stars like the training stars with either flag, and POOR_FIT where noise is 1.2 and 1.48 times
    what is stated (chi^2 per pixel 1.4 and 2.2)."""
    train, test, _ = simulate(1500, 200, seed=seed, n_test=2000)
    posterior = bl.fit(model, train, seed=0, progress=False)
    result = bl.infer(posterior, test, seed=0, progress=False)
    rng, flux, found = np.random.default_rng(seed), test["flux"], []
    for factor in (1.2, 1.48):
        more = np.sqrt(factor**2 - 1) * flux.error * rng.standard_normal(flux.value.shape)
        noisy = bl.Block(flux.value + more, flux.error, names=flux.names, coords=flux.coords)
        found.append(share(bl.infer(posterior, test.with_block(flux=noisy), seed=0, progress=False), Flags.POOR_FIT))
    return share(result, Flags.OUTSIDE_TRAINING), share(result, Flags.POOR_FIT), *found


def translated(seed):
    """Share of honest test stars of a Translator of 1122 training stars that are flagged OUTSIDE_TRAINING."""
    stars, _, truth = simulate(3122, 5, seed=seed, n_test=1)
    labels = stars["labels"]
    noise = np.random.default_rng(seed).normal(size=labels.value.shape) * labels.error
    target = bl.Block(
        truth.training_labels + np.array([20.0, 0.1, 0.05]) + noise, labels.error, names=labels.names, unit=labels.units
    )
    both = bl.Stars(labels=labels, target_labels=target)
    posterior = bl.fit(bl.Translator(), both[:1122], seed=0, progress=False)
    return share(bl.infer(posterior, both[1122:].drop("target_labels"), seed=0, progress=False), Flags.OUTSIDE_TRAINING)


def main(seeds):
    for name, model in (("Cannon()", bl.Cannon()), ("Lux(10)", bl.Lux(10))):
        rows = np.mean([list(outside(model, seed)) for seed in seeds], 0)
        for (n, flagged, rms, error), (low, high) in zip(rows, itertools.pairwise(EDGES), strict=True):
            where = "inside" if high <= 0 else f"{low:g} to {high:g} dex outside"
            print(
                f"{name}, {where}: {n:.0f} stars, {flagged:.1f} % flagged, rms {rms:.3f}, error {error:.3f}", flush=True
            )
        of_place, of_fit, *noisy = np.mean([honest(model, seed) for seed in seeds], 0)
        print(f"{name}, honest: {of_place:.1f} % OUTSIDE_TRAINING, {of_fit:.2f} % POOR_FIT; chi^2 per pixel of 1.4 and "
              f"2.2: {noisy[0]:.1f} and {noisy[1]:.1f} % POOR_FIT", flush=True)  # fmt: skip
    shares = [translated(seed) for seed in seeds]
    print(f"Translator(), 1122 stars, honest: {np.mean(shares):.1f} % OUTSIDE_TRAINING")


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    main(cli.parse_args().seeds)
