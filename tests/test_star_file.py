"""Files of `StarPosterior`: all comes back to the bit, and what is damaged or of another kind is refused."""

from __future__ import annotations

import contextlib
import json

import h5py
import numpy as np
import pytest
from test_files import assert_same, put, scrambled

import bayeslabels as bl
from bayeslabels.files import sealed


@pytest.fixture(scope="module")
def result(trained, spectra):
    named = bl.Stars(id=[f"star é{i}" for i in range(len(spectra))], flux=spectra.flux)
    return bl.infer(trained, named, bl.Importance(draws=8))


def test_round_trip(trained, result, tmp_path):
    again = bl.StarPosterior.load(result.save(tmp_path / "stars.nc"), trained)
    assert_same(result, again)
    assert again.info == json.loads(json.dumps(result.info))
    assert (again.frame.names, again.frame.units) == (result.frame.names, result.frame.units)
    table, other = result.table(("flux", "latents")), again.table(("flux", "latents"))
    assert table.colnames == other.colnames
    for name in table.colnames:
        np.testing.assert_array_equal(table[name], other[name])
        assert table[name].info.description == other[name].info.description
        assert table[name].info.unit == other[name].info.unit
    np.testing.assert_array_equal(again.draws("TEFF"), result.draws("TEFF"))
    np.testing.assert_array_equal(again[3:5].mean, result[3:5].mean)
    assert_same(bl.StarPosterior.load(again.save(tmp_path / "second.nc")), result)


@pytest.mark.parametrize("ids", [[2**62 + 1, 5], np.array([2**63 + 5, 1], np.uint64), ["a", "bb"], None])
def test_ids_of_every_kind(trained, spectra, tmp_path, ids):
    some = spectra[:2] if ids is None else bl.Stars(id=ids, flux=spectra[:2].flux)
    result = bl.infer(trained, some, bl.MAP())
    again = bl.StarPosterior.load(result.save(tmp_path / "stars.nc"))
    assert again.table()["id"].dtype == result.table()["id"].dtype
    np.testing.assert_array_equal(again.table()["id"], result.table()["id"])


@pytest.mark.parametrize("model", [bl.Parallax(("magnitudes",))])
def test_results_of_other_kinds(simulated, tmp_path, model):
    stars = simulated.stars
    blocks = bl.Stars(magnitudes=stars.magnitudes, parallax=stars.parallax)
    result = bl.infer(bl.fit(model, blocks), blocks)
    again = bl.StarPosterior.load(result.save(tmp_path / "stars.nc"))
    assert_same(result, again)
    assert again.table().colnames == result.table().colnames


def test_files_are_not_replaced_unasked(trained, result, tmp_path):
    for saved in (trained, result):
        path = tmp_path / f"{type(saved).__name__}.nc"
        path.write_bytes(b"mine")
        with pytest.raises(bl.BadInput, match=r"which exists.*overwrite=True"):
            saved.save(path)
        assert path.read_bytes() == b"mine"
        saved.save(path, overwrite=True)
        assert isinstance(type(saved).load(path) if saved is result else bl.load(path), type(saved))


def test_files_of_another_kind(trained, result, simulated, tmp_path):
    model, stars = trained.save(tmp_path / "model.nc"), result.save(tmp_path / "stars.nc")
    with pytest.raises(bl.BadInput, match="Posterior"):
        bl.load(stars)
    with pytest.raises(bl.BadInput, match="StarPosterior"):
        bl.StarPosterior.load(model)
    with pytest.raises(bl.BadInput, match="no file"):
        bl.StarPosterior.load(tmp_path / "none.nc")
    with pytest.raises(bl.BadInput, match="training posterior"):
        bl.StarPosterior.load(stars).predict()
    some = bl.Stars(magnitudes=simulated.stars.magnitudes, parallax=simulated.stars.parallax)
    with pytest.raises(bl.BadInput, match="TEFF, LOGG, and a posterior of parallax"):
        bl.StarPosterior.load(stars, bl.fit(bl.Parallax(("magnitudes",)), some))


@pytest.mark.parametrize("times", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_damage_is_noticed(result, tmp_path, times):
    """Bits, blocks, lengths; and other attributes and arrays under a checksum that is right."""
    path, rng = result[:3].save(tmp_path / "stars.nc"), np.random.default_rng(0)
    whole = path.read_bytes()
    content, _ = sealed.unsealed(whole, path, "")
    for i in range(times):
        damaged, at = bytearray(whole), int(rng.integers(len(whole)))
        if i % 2:
            path.write_bytes(content)
            with h5py.File(path, "r+") as file:
                scrambled(file, rng)
            path.write_bytes(sealed.sealed(path.read_bytes()))
            with contextlib.suppress(bl.BadInput):
                assert isinstance(bl.StarPosterior.load(path), bl.StarPosterior)
            continue
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged if i % 4 else damaged[:at])
        with pytest.raises(bl.BadInput):
            bl.StarPosterior.load(path)


def test_what_does_not_fit_together_is_refused(result, tmp_path):
    path = result[:3].save(tmp_path / "stars.nc")
    content, _ = sealed.unsealed(path.read_bytes(), path, "")
    changes = {
        "names": lambda f: put(f, "inferred", '{"names": ["A", "B"], "units": ["", ""], "block": "labels"}'),
        "units": lambda f: put(f, "inferred", '{"names": ["TEFF", "LOGG"], "units": [""], "block": "labels"}'),
        "flags": lambda f: f["stars"].__delitem__("flags"),
        "version": lambda f: put(f, "bayeslabels_stars", 2),
        "notes": lambda f: put(f, "info", "[]"),
    }
    for change in changes.values():
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            change(file)
        path.write_bytes(sealed.sealed(path.read_bytes()))
        with pytest.raises(bl.BadInput):
            bl.StarPosterior.load(path)
    path.write_bytes(content)
    with pytest.raises(bl.BadInput, match="checksum"):
        bl.StarPosterior.load(path)
