"""Model files: equal to the bit after a round trip, readable in years, and nothing in them runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

import bayeslabels as bl

DATA = Path(__file__).parent / "data"
GOLDEN = DATA / "golden_cannon_v1.nc"
PACKAGE = Path(bl.__file__).parent


def assert_same(a: bl.StarPosterior, b: bl.StarPosterior) -> None:
    for group in ("posterior", "stars"):
        assert a.data[group].to_dataset().identical(b.data[group].to_dataset())


def test_round_trip(trained, training, spectra, tmp_path):
    path = trained.save(tmp_path / "cannon.nc")
    again = bl.load(path)
    assert [x.name for x in tmp_path.iterdir()] == ["cannon.nc"]
    assert again.model == trained.model
    assert again.info == json.loads(json.dumps(trained.info))
    for a, b in zip(trained.predict(training, with_error=True), again.predict(training, with_error=True), strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same(bl.infer(trained, spectra), bl.infer(again, spectra))
    second = again.save(tmp_path / "second.nc")
    np.testing.assert_array_equal(bl.load(second).predict(training), trained.predict(training))


def test_settings_survive(training, tmp_path):
    n_pixel = training.flux.n_dim
    model = bl.Cannon(
        terms=[{}, {"TEFF": 1}, {"LOGG": 1}, {"TEFF": 1, "LOGG": 1}],
        label_noise=False,
        scatter=np.full(n_pixel, 0.01),
        coefficient_prior=bl.priors.Normal(0.3),
        censor={"LOGG": np.arange(n_pixel) % 2 == 0},
    )
    posterior = bl.fit(model, training)
    again = bl.load(posterior.save(tmp_path / "x.nc")).model
    assert again.terms == model.terms
    assert again.coefficient_prior == model.coefficient_prior
    np.testing.assert_array_equal(again.scatter, model.scatter)
    np.testing.assert_array_equal(again.censor["LOGG"], model.censor["LOGG"])
    assert again.censor["LOGG"].dtype == bool
    np.testing.assert_array_equal(again.frame.centre, posterior.model.frame.centre)


def test_golden_file():
    expected = json.loads(GOLDEN.with_suffix(".json").read_text())
    posterior = bl.load(GOLDEN)
    assert GOLDEN.stat().st_size < 60_000
    assert posterior.model.frame.names == tuple(expected["names"])
    names, units = expected["names"], expected["units"]
    stars = bl.Stars(labels=bl.Block(expected["labels"], names=names, unit=units))
    flux, error = posterior.predict(stars, with_error=True)
    np.testing.assert_allclose(flux, expected["flux"], rtol=1e-12)
    np.testing.assert_allclose(error, expected["flux_error"], rtol=1e-12)
    seen = bl.Stars(flux=bl.Block(expected["flux"], 0.01))
    result = bl.infer(posterior, seen, bl.MAP())
    sd = np.array(expected["inferred_error"])
    np.testing.assert_allclose((result.mean - expected["inferred"]) / sd, 0, atol=1e-4)
    np.testing.assert_allclose(result.error / sd, 1, atol=1e-4)


def test_a_torn_write_leaves_the_old_file(trained, training, tmp_path, monkeypatch):
    path = trained.save(tmp_path / "cannon.nc")
    before = path.read_bytes()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("bayeslabels.posterior.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.save(path)
    assert path.read_bytes() == before
    assert [x.name for x in tmp_path.iterdir()] == ["cannon.nc"]


def test_unknown_types_are_refused(trained, tmp_path):
    path = trained.save(tmp_path / "cannon.nc")
    with h5py.File(path, "r+") as file:
        file.attrs["model"] = file.attrs["model"].replace('"Cannon"', '"os.system"')
    with pytest.raises(bl.BadInput, match=r"os\.system"):
        bl.load(path)


def test_a_newer_format_is_refused(trained, tmp_path):
    path = trained.save(tmp_path / "cannon.nc")
    with h5py.File(path, "r+") as file:
        file.attrs["bayeslabels_format"] = 99
    with pytest.raises(bl.BadInput, match=r"99.*newer bayeslabels"):
        bl.load(path)


def test_no_pickle():
    forbidden = re.compile(r"\b(pickle|dill|joblib|marshal|shelve)\b|allow_pickle|\beval\(|\bexec\(")
    for path in PACKAGE.rglob("*.py"):
        assert not forbidden.search(path.read_text()), path
    assert not [x for x in DATA.iterdir() if x.suffix in (".pkl", ".pickle", ".npy", ".npz")]
