"""What the user has set in the process for other code, and forks, do not reach what is computed here."""

from __future__ import annotations

import multiprocessing
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
import threadpoolctl
from astropy.table import Table

import bayeslabels as bl
from bayeslabels import process
from bayeslabels.catalogues.catalog import infer_catalog
from bayeslabels.files.tables import read_table
from bayeslabels.numerics.threads import one_thread, threads_for

FLAGS = {
    "jax_debug_nans": True,
    "jax_debug_infs": True,
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_transfer_guard": "disallow",
}
MODEL = bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Flat())


@pytest.fixture(params=FLAGS)
def flag(request):
    before = getattr(jax.config, request.param)
    jax.config.update(request.param, FLAGS[request.param])
    jax.clear_caches()
    yield request.param
    jax.config.update(request.param, before)
    assert before != FLAGS[request.param]


def test_flags_of_the_users_own_code(flag, trained, training, spectra, tmp_path):
    """Training by blocks, inference, prediction and a catalogue read in another thread."""
    flux = np.where(np.random.default_rng(0).random(spectra.flux.value.shape) < 0.2, np.nan, spectra.flux.value)
    flux[4] = np.nan
    holes = bl.Stars(flux=bl.Block(flux, 0.01))
    posterior = bl.fit(MODEL, training, bl.MAP(), checkpoint=tmp_path / "run.npz")
    result = bl.infer(posterior, holes)
    assert (np.isfinite(result.mean).all(1) == (np.arange(len(holes)) != 4)).all()
    assert np.isfinite(posterior.predict(training)).all()
    Table({"flux": flux, "flux_error": np.full(flux.shape, 0.01)}).write(tmp_path / "in.fits")
    infer_catalog(posterior, tmp_path / "in.fits", tmp_path / "out.fits", batch_size=16, progress=False)
    assert len(read_table(tmp_path / "out.fits")) == len(holes)
    assert getattr(jax.config, flag) == FLAGS[flag]


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_debug_key_reuse", True), ("jax_default_prng_impl", "rbg"), ("jax_default_matmul_precision", "bfloat16")],
)
def test_settings_that_change_draws_or_digits(name, value):
    """The draws that belong to a seed, and products of numbers, are those of JAX as it is by default."""

    def draws():
        key = jax.random.PRNGKey(0)
        return np.array(jax.random.normal(key, 3) + jax.random.normal(key, 3))

    before, expected = getattr(jax.config, name), draws()
    jax.config.update(name, value)
    try:
        with process.settings_as_usual():
            assert getattr(jax.config, name) == process.AS_USUAL[name][1] == before
            np.testing.assert_array_equal(draws(), expected)
        assert getattr(jax.config, name) == value
    finally:
        jax.config.update(name, before)


SHORT = bl.NUTS(chains=2, draws=5, warmup=5, max_tree_depth=2)


@pytest.mark.slow
def test_no_tracer_outlives_its_trace(trained, spectra):
    with jax.check_tracer_leaks():
        result = bl.infer(trained, spectra[:4], SHORT, progress=False)
    assert np.isfinite(result.mean).all()


@pytest.mark.slow
@pytest.mark.parametrize("noisy", [False, True])
def test_no_tracer_outlives_training(training, spectra, noisy):
    model = bl.Cannon(order=1, label_noise=noisy, coefficient_prior=bl.priors.Normal())
    with jax.check_tracer_leaks():
        posterior = bl.fit(model, training, SHORT, progress=False)
        result = bl.infer(posterior, spectra, SHORT, progress=False)
    assert len(result) == len(spectra)


def test_two_threads_at_once(trained, spectra):
    expected = bl.infer(trained, spectra, progress=False).mean
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: bl.infer(trained, spectra, progress=False).mean, range(4)))
    for mean in found:
        np.testing.assert_array_equal(mean, expected)


def test_numpy_that_raises(trained, training, spectra):
    expected = bl.infer(trained, spectra).mean
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        before = np.geterr()
        posterior = bl.fit(MODEL, training)
        np.testing.assert_allclose(bl.infer(posterior, spectra).mean, expected)
        assert bl.fit(bl.Cannon(order=1), training).info["converged"]  # with all that is learned
        assert len(bl.infer(posterior, spectra).table()) == len(spectra)
        assert np.geterr() == before


def test_what_the_user_has_silenced_stays_silent():
    with np.errstate(divide="ignore", over="raise"), process.settings_as_usual():
        assert np.geterr() == {"divide": "ignore", "over": "warn", "under": "ignore", "invalid": "warn"}


def in_child(queue, trained, spectra):
    try:
        queue.put(str(bl.infer(trained, spectra).mean[0]))
    except bl.BadInput as problem:
        queue.put(f"refused: {problem}")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there are no forks here")
def test_a_forked_child_is_refused(trained, spectra):
    bl.infer(trained, spectra)
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX and Python, that forks of many threads may hang
        child = fork.Process(target=in_child, args=(queue, trained, spectra))
        child.start()
    try:
        assert "get_context('spawn')" in queue.get(timeout=60)
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
    assert bl.infer(trained, spectra).mean.shape == (len(spectra), 2)  # the parent goes on


def blas_threads() -> list[int]:
    return [x["num_threads"] for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas"]


def test_linear_algebra_takes_one_thread_and_gives_the_others_back():
    """As the first of the user's threads asks that comes, and until it leaves; large matrices are shared out."""
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        usual, seen = blas_threads(), {}
        inside, out = threading.Event(), threading.Event()

        def other():
            with one_thread(), threads_for(10**8):
                seen["another"] = blas_threads()
                inside.set()
                out.wait(60)

        thread = threading.Thread(target=other)
        with one_thread(), one_thread():
            thread.start()
            inside.wait(60)
            with threads_for(10**8):
                seen["large"] = blas_threads()
                with threads_for(100):
                    seen["small"] = blas_threads()
            seen["again"] = blas_threads()
        seen["first has left"] = blas_threads()
        out.set()
        thread.join(60)
        one = [1] * len(usual)
        assert seen == {"another": one, "large": usual, "small": one, "again": one, "first has left": usual}
        assert blas_threads() == usual
    with ThreadPoolExecutor(1) as pool:  # nobody keeps a hold of the number of threads

        def of_another():
            with threadpoolctl.threadpool_limits(1, user_api="blas"):
                return blas_threads()

        assert pool.submit(of_another).result() == [1] * len(usual)
