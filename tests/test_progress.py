"""What a user sees of work that takes time: on a terminal, in a notebook, and where nobody watches."""

from __future__ import annotations

import sys
import types

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import bayeslabels as bl
from bayeslabels import progress
from bayeslabels.kinds.spectra.choice import held_out
from bayeslabels.progress import COMPILING, bar


@pytest.fixture(autouse=True)
def first_call(monkeypatch):
    monkeypatch.setattr(progress, "_moved", set())


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(progress, "watched", lambda: True)


def test_a_bar_says_what_it_waits_for_until_it_moves(capsys):
    with bar(3, "training step, fold 2 of 5", True) as shown:
        shown.refresh()
        before = capsys.readouterr().err
        shown.update()
        shown.refresh()
        after = capsys.readouterr().err
    assert "training step, fold 2 of 5" in before
    assert COMPILING in before
    assert COMPILING not in after.rsplit("\r", 1)[-1]
    with bar(3, "training step, fold 3 of 5", True) as shown:  # what is compiled
        shown.refresh()
    assert COMPILING not in capsys.readouterr().err


def test_bars_show_where_somebody_watches(monkeypatch, capsys):
    assert not progress.watched()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert progress.watched()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    shells = {"notebook": types.SimpleNamespace(kernel=object()), "terminal": types.SimpleNamespace(), "none": None}
    for name, shell in shells.items():
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert progress.watched() == (name == "notebook")
    monkeypatch.setattr(sys, "stderr", None)  # of a process without one
    assert not progress.watched()


NUTS = bl.NUTS(chains=2, draws=100, warmup=50)
"""With draws enough that no star is sampled anew, which would compile another program."""


def test_steps_say_what_they_do(terminal, trained, training, spectra, capsys):
    model = bl.Cannon(order=1, label_noise=False)
    for shown in (None, True):
        bl.fit(model, training, progress=shown)
        bl.infer(trained, spectra, bl.Importance(draws=200), progress=shown)
        bl.infer(trained, spectra[:3], NUTS, progress=shown)
        said = capsys.readouterr()
        assert said.out == ""
        for part in ("training step", "test step", "test step, importance sampling", "test step, NUTS"):
            assert part in said.err
    held_out(bl.Cannon(order=1, label_noise="cut").bind(training), training, 0, True, n_run=2)
    assert "training step, fold 2 of 5" in capsys.readouterr().err


def test_silence(terminal, trained, training, spectra, capsys):
    bl.fit(bl.Cannon(order=1, label_noise=False), training, progress=False)
    bl.infer(trained, spectra, bl.Importance(draws=200), progress=False)
    bl.cross_validate(trained.model, training, folds=2, progress=False)
    assert capsys.readouterr() == ("", "")


@pytest.mark.long
@pytest.mark.parametrize("inference", [bl.NUTS(chains=2, draws=31, warmup=20), bl.SVI(steps=103)])
def test_a_bar_changes_no_number(inference, capsys):
    """Training of programs, in as many calls whether its bar is shown or not."""
    stars = bl.Stars(magnitudes=bl.Block(np.random.default_rng(0).normal(1.0, 1.0, (20, 1)), 0.1))

    def program(stars):
        shift = numpyro.sample("shift", dist.Normal(0.0, 5.0))
        with numpyro.plate("star", len(stars)):
            brightness = numpyro.sample("brightness", dist.Normal(shift, 1.0))
            seen = stars["magnitudes"].value[:, 0] if "magnitudes" in stars else None
            numpyro.sample("magnitudes", dist.Normal(brightness, 0.1), obs=seen)

    found = [bl.fit(program, stars, inference, progress=shown).data["posterior"]["shift"] for shown in (False, True)]
    np.testing.assert_array_equal(*found)
    assert "training step" in capsys.readouterr().err
