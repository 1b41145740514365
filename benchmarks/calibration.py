"""Every way of training and inferring on the same real stars: accuracy, whether the error bars hold, and seconds.

    python benchmarks/calibration.py apogee [--splits 0 1 2]     671 giants x 100 pixels (Casey+16)
    python benchmarks/calibration.py miles  [--splits 0]         477 FGK stars x 4300 pixels

Half of the stars, by the split's seed, train; the others are judged against their catalogue labels, whose noise (tau)
is what the training step found: none for the classic Cannon. An error model (`calibration.recalibrate`) is learned on
half of the stars held out, tau left to it and tails allowed for, and judged on the rest. z is robust: half of the 16th
to 84th percentile.
"""

import argparse
import time

import numpy as np
from stars import CLASSIC, apogee_stars, miles_stars

import bayeslabels as bl
from bayeslabels import calibration


def plugged_in(posterior):
    """The coefficients taken as known, as the classic Cannon has them."""
    moments = posterior.moments
    known = {x: np.zeros_like(getattr(moments, x)) for x in ("coefficient_covariance", "label_system_covariance")}
    return posterior.with_moments(moments._replace(**known))


def timed(what):
    start = time.process_time()
    return what(), time.process_time() - start


def answers(train, test):
    """Name, trained posterior, result and CPU seconds of training and of the test step, method by method."""
    classic, spent = timed(lambda: bl.fit(CLASSIC, train, progress=False))
    yield "classic, coefficients plugged in", *answer(plugged_in(classic), test, bl.MAP()), spent
    yield "classic", *answer(classic, test, bl.MAP()), spent
    noisy, spent = timed(lambda: bl.fit(bl.Cannon(), train, progress=False))
    for name, inference in (("MAP", bl.MAP()), ("Laplace", bl.Laplace()), ("Importance", bl.Importance()),
                            ("NUTS", bl.NUTS())):  # fmt: skip
        yield f"label noise, {name}", *answer(noisy, test, inference), spent
    svi, more = timed(lambda: bl.fit(noisy.model, train, bl.SVI(), progress=False))
    yield "trained by SVI, Laplace", *answer(svi, test, bl.Laplace()), more


def answer(posterior, test, inference):
    return posterior, *timed(lambda: bl.infer(posterior, test.drop("labels"), inference, progress=False))


def judged(result, test, learn):
    """Scatter, robust z and 68 per cent coverage with tau, then robust z and coverage after recalibration."""
    tau, rest = calibration.label_scatter(result), ~learn
    z = calibration.robust_scatter(calibration.z_scores(result, test, scatter=tau))
    inside = calibration.coverage(result, test, scatter=tau).share
    better = calibration.recalibrate(result[learn], test[learn], freedom=4).apply(result[rest])
    again = calibration.robust_scatter(calibration.z_scores(better, test[rest]))
    return np.stack([
        calibration.robust_scatter(result.mean - test.labels.value), z, inside, again,
        calibration.coverage(better, test[rest]).share,
    ])  # fmt: skip


def main(a):
    stars = {"apogee": apogee_stars, "miles": miles_stars}[a.stars]()
    found = {}
    for seed in a.splits:
        half = np.random.default_rng(seed).permutation(len(stars)) % 2 == 0
        train, test = stars[half], stars[~half]
        learn = np.arange(len(test)) % 2 == 0
        for name, posterior, result, test_seconds, train_seconds in answers(train, test):
            numbers = judged(result, test, learn)
            found.setdefault(name, []).append((numbers, train_seconds, test_seconds, posterior.model.label_noise))
    n = f"{half.sum()} training stars, {(~half).sum()} held out, splits {a.splits}"
    print(f"{a.stars}: {n}, {', '.join(stars.labels.names)}; label noise chosen: "
          f"{[x[3] for x in found['label noise, MAP']]}")  # fmt: skip
    print(
        "| method | scatter | robust z | within 68 % | recalibrated: robust z | within 68 % | CPU s, training | test |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, runs in found.items():
        mean = np.mean([x[0] for x in runs], 0)
        cells = [" / ".join(f"{v:.3g}" for v in mean[0])] + [" / ".join(f"{v:.2f}" for v in row) for row in mean[1:]]
        seconds = [f"{np.mean([x[i] for x in runs]):.1f}" for i in (1, 2)]
        print(f"| {name} | {' | '.join(cells + seconds)} |")


if __name__ == "__main__":
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("stars", choices=("apogee", "miles"))
    cli.add_argument("--splits", type=int, nargs="+", default=[0])
    main(cli.parse_args())
