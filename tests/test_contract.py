"""Every model with every inference: what fits, fits and keeps the contract; what does not is refused with advice.

A model added to models/ is picked up from the registry. It is made with its defaults unless EXAMPLES has a smaller one,
and sees simulated stars that have a block of every name (`conftest.simulate`).
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, init_to_uniform
from numpyro.infer.autoguide import AutoDelta
from numpyro.optim import Adam
from numpyro.util import format_shapes

import bayeslabels as bl
from bayeslabels import calibration, inference, plots
from bayeslabels.core.collapsed import CollapsedModel
from bayeslabels.core.model import Bound, models
from bayeslabels.errors import CannotDo
from bayeslabels.inference.base import Inference, StarDraws
from bayeslabels.inference.starwise import in_passing
from bayeslabels.kind import kind_of
from bayeslabels.numerics.linalg import constant
from bayeslabels.results.star_posterior import PERCENTILES
from bayeslabels.tables import write_table

EXAMPLES = {
    "Cannon": bl.Cannon(order=1, label_noise="joint", coefficient_prior=bl.priors.Normal()),
    "Lux": bl.Lux(3, label_scatter="joint", coefficient_prior=bl.priors.Normal()),
    "Photometry": bl.Photometry(function="polynomial", order=1, members=2, components=1),
    "Translator": bl.Translator(function="polynomial", order=1, scatter="constant", members=2),
}
"""A small instance of a model, with proper priors, so that it can be simulated."""
CHEAP = {
    "Cannon": bl.Cannon(order=1, label_noise=False, coefficient_prior=bl.priors.Normal()),
    "Lux": EXAMPLES["Lux"],
    "Photometry": EXAMPLES["Photometry"],
    "Translator": EXAMPLES["Translator"].replace(robust=False, components=1),
}
"""For inferences that compile the whole program: few sites."""
ASKED = {"Parallax": "parallax", "Translator": "target_labels"}
"""The block that the test step is asked for; `labels` by default."""
SAMPLED = {
    "Parallax": ("parallax",),
    "Photometry": ("labels", "magnitudes", "parallax", "reddening"),
    "Translator": ("labels", "target_labels"),
}
"""The blocks that are data where present and sampled where absent; `labels` and `flux` by default."""
QUICK = {
    "Gibbs": {"chains": 2, "draws": 20, "warmup": 20},
    "Importance": {"draws": 200, "rescue": False},
    "Laplace": {"draws": 200},
    "MAP": {"max_iterations": 20},
    "NUTS": {"chains": 2, "draws": 10, "warmup": 10, "max_tree_depth": 3},
    "SVI": {"steps": 50, "draws": 10},
}
"""Settings that end soon, where an inference has them; as many draws as a mode is given for its errors, so that one
compiled program serves all."""
FEW = 32
"""Stars of the test step."""
WHOLE_PROGRAM = ("NUTS", "SVI")
README = Path(__file__).parent.parent / "README.md"

MODELS = {name: x for name, x in models().items() if x.offered and x.__module__.startswith("bayeslabels")}
MODEL_NAMES = sorted(MODELS)
INFERENCE_NAMES = sorted(inference.__all__)


def quick(name: str) -> inference.base.Inference:
    cls = getattr(inference, name)
    known = {field.name for field in dataclasses.fields(cls)}
    return cls(**{key: value for key, value in QUICK.get(name, {}).items() if key in known})


@functools.cache
def example(name: str, cheap: bool = False):
    return (CHEAP if cheap else EXAMPLES).get(name) or MODELS[name]()


@pytest.fixture(scope="module")
def stars(simulated):
    return simulated.stars


@pytest.fixture(scope="module")
def of(stars):
    """The stars with the blocks that a model measures."""

    def blocks(name):
        return stars.drop(*[block for block in stars.blocks if block not in example(name).blocks])

    return blocks


@pytest.fixture(scope="module")
def posterior_of(of):
    """Models trained by the inference of their kind."""

    @functools.cache
    def fitted(name):
        return bl.fit(example(name), of(name), quick(trainer(name)), seed=3)

    return fitted


@pytest.fixture(scope="module")
def result_of(of, posterior_of):
    """What the test step says of the first stars."""

    @functools.cache
    def inferred(name, strategy):
        return bl.infer(posterior_of(name), of(name)[:FEW].drop(asked(name)), quick(strategy), seed=5)

    return inferred


def abstract_trace(model, stars):
    """The program's sites with their shapes, without computing a number."""
    found = {}

    def run():
        with handlers.seed(rng_seed=0):
            found.update(handlers.trace(model).get_trace(stars))
        return 0

    jax.eval_shape(run)
    return found


def accepts(model, method, verb):
    return kind_of(model).serves(type(method), verb)


def asked(name):
    return ASKED.get(name, "labels")


def trainer(name):
    """The inference that trains the model where none is named."""
    return type(kind_of(example(name)).fit_by).__name__


def answerer(name):
    """The inference of the test step where none is named."""
    return type(kind_of(example(name)).infer_by).__name__


def sampled(name):
    return SAMPLED.get(name, ("labels", "flux"))


DEAR = {
    *((name, "NUTS") for name in ("Lux", "Parallax", "Photometry", "Translator")),
    ("Lux", "Gibbs"), ("Photometry", "SVI"), ("Translator", "Laplace"),
}  # fmt: skip
"""What takes a quarter of a minute and more to compile, where another model shares what is tested."""


EVERY_PAIR = pytest.mark.parametrize(
    ("name", "strategy"),
    [
        pytest.param(name, strategy, marks=[pytest.mark.slow] * ((name, strategy) in DEAR))
        for name in MODEL_NAMES
        for strategy in INFERENCE_NAMES
    ],
)


@EVERY_PAIR
def test_fit(name, strategy, of, posterior_of):
    model, method = example(name, cheap=strategy in WHOLE_PROGRAM), quick(strategy)
    if not accepts(model, method, "fit"):
        with pytest.raises(CannotDo, match=rf"{strategy}.*use \w+\("):
            bl.fit(model, of(name), method)
        return
    posterior = bl.fit(model, of(name), method, seed=3)
    assert isinstance(posterior, bl.Posterior)
    assert isinstance(posterior.data, xr.DataTree)
    draws = posterior.data["posterior"].to_dataset()
    assert all(values.dims[:2] == ("chain", "draw") for values in draws.values())
    assert all(values.dtype == np.float64 for values in draws.values())
    assert posterior.info["inference"] == strategy
    assert posterior.info["seed"] == 3
    assert isinstance(posterior.info["converged"], bool)
    assert posterior.info["n_star"] == len(of(name))
    assert {"bayeslabels", "numpyro", "jax", "python"} <= set(posterior.info["versions"])
    assert np.isfinite(posterior.moments.coefficients).all()
    if strategy == "NUTS":
        assert draws.sizes["chain"] == 2
    if strategy == trainer(name):
        assert posterior_of(name).data["posterior"].to_dataset().equals(draws)


@EVERY_PAIR
def test_infer(name, strategy, of, posterior_of, result_of, monkeypatch):
    monkeypatch.setattr(inference.nuts, "ENOUGH", -np.inf)  # so few draws are never enough: longer trees compile anew
    posterior, method = posterior_of(name), quick(strategy)
    seen, truth = of(name)[:FEW].drop(asked(name)), of(name)[:FEW][asked(name)]
    if not accepts(posterior.model, method, "infer"):
        with pytest.raises(CannotDo, match=rf"{strategy}.*use \w+\("):
            bl.infer(posterior, seen, method)
        return
    result = result_of(name, strategy)
    assert isinstance(result, bl.StarPosterior)
    names, first = result.frame.names, result.frame.names[0]
    assert names == kind_of(posterior.model).quantities(posterior.model).names
    (draws,) = result.data["posterior"].to_dataset().values()
    assert draws.dims[:3] == ("chain", "draw", "star")
    assert draws.sizes["star"] == len(result) == len(seen)
    assert list(draws[draws.dims[3]].values) == list(names)
    assert np.isfinite(result.mean).all()
    assert (result.error > 0).all()
    assert np.linalg.eigvalsh(result.cov).min() > 0
    at = slice(truth.n_dim)
    offset = (result.mean[:, at] - truth.value) / np.hypot(result.error[:, at], truth.error)
    assert np.abs(offset).mean() < 1.5
    table = result.table()
    assert table["id"].tolist() == seen.id.tolist()
    assert str(table[first].unit) == str(table[f"{first}_error"].unit) == truth.units[0]
    assert {"flags", f"{first}_p16", f"{first}_p50", f"{first}_p84"} <= set(table.colnames)
    assert np.isfinite(result.draws(names[-1])).all()
    again = bl.infer(posterior, seen, method, seed=5)
    assert again.data["posterior"].to_dataset().identical(result.data["posterior"].to_dataset())
    assert again.data["stars"].to_dataset().identical(result.data["stars"].to_dataset())


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_present_is_observed_and_absent_is_sampled(name, of):
    model = example(name).bind(of(name))
    of_both = [(), *[(block,) for block in sampled(name)], sampled(name)]
    for absent in of_both:
        some = bl.Stars(id=of(name).id, **{k: b for k, b in of(name).blocks.items() if k not in absent})
        trace = abstract_trace(model, some)
        for block in sampled(name):
            assert trace[block]["is_observed"] == (block not in absent)
            assert trace[block]["value"].shape == of(name)[block].value.shape
        for site in set(model.global_sites) & set(trace):
            assert not trace[site]["is_observed"]
    assert "star" in format_shapes(trace)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_numpyro_predictive(name, of):
    model = example(name).bind(of(name))
    some = bl.Stars(id=of(name).id, **{k: b for k, b in of(name).blocks.items() if k not in sampled(name)})
    draws = jax.jit(lambda key: Predictive(model, num_samples=2)(key, some))(jax.random.key(0))
    for absent in sampled(name):
        assert draws[absent].shape == (2, *of(name)[absent].value.shape)
        assert np.isfinite(draws[absent]).all()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "Cannon")) for n in MODEL_NAMES])
def test_numpyro_mcmc_and_svi(name, of):
    """The program needs no code of ours. Slow but for one: `fit` by NUTS and SVI runs the same programs."""
    stars = of(name)
    model = example(name, cheap=True).bind(stars)

    @jax.jit  # operation by operation, every one would be compiled by itself
    def both(key):
        sampler = MCMC(NUTS(model, max_tree_depth=2), num_warmup=2, num_samples=2, progress_bar=False)
        sampler.run(key, stars)
        svi = SVI(model, AutoDelta(model, init_loc_fn=init_to_uniform), Adam(0.01), Trace_ELBO())
        return sampler.get_samples(), svi.run(key, 3, stars, progress_bar=False).losses

    samples, losses = both(jax.random.key(0))
    assert all(np.isfinite(x).all() for x in samples.values())
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("Photometry", "Translator"))) for n in MODEL_NAMES]
)
def test_programs_run_in_one_precision_after_the_other(name, of):
    """Compiled once, as by a user whose JAX is in float32 beside what this package does in float64."""
    stars = of(name)
    model = example(name, cheap=True).bind(stars)

    @jax.jit
    def densities(key):
        sites = handlers.trace(handlers.seed(model, key)).get_trace(stars).values()
        return [x["fn"].log_prob(x["value"]) for x in sites if x["type"] == "sample" and x["name"] != "star"]

    for wide in (False, True, False):
        with jax.enable_x64(wide):
            assert {x.dtype for x in densities(jax.random.key(0))} == {np.dtype(np.float64 if wide else np.float32)}
            if isinstance(model, CollapsedModel):
                rows = jax.tree.map(np.asarray, model.arrays(stars))
                theta = handlers.seed(model.parameters, 0)()
                assert np.isfinite(model.compiled(theta, rows)).all()


def test_constants_keep_their_precision():
    """What a compiled function held in float32 is not rounded in float64, where NumPy arrays would be."""
    x = np.array([1.1, 2.3])
    for wide in (False, True, False):
        with jax.enable_x64(wide):
            jax.jit(lambda y: y * constant(x))(np.ones(2))
            assert constant(x).dtype == (np.float64 if wide else np.float32)
            assert np.abs(np.asarray(constant(x), float) - x).max() == 0 or not wide
    assert constant(np.array([True])).dtype == bool


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_what_is_compiled_is_found_again_for_the_same_frame_alone(name, of):
    model, fewer = example(name), of(name)[:-1]
    bound, same, other = model.bind(of(name)), model.bind(of(name)), model.bind(fewer)
    assert bound == same == other, "settings alone are compared"
    assert bound.frame == same.frame
    assert len({Bound(bound), Bound(same)}) == 1
    assert bound.frame != other.frame
    assert len({Bound(bound), Bound(other)}) == 2


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_models_are_values(name):
    model = example(name)
    assert model == model.replace()
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.frame = None
    assert type(model).__doc__
    assert name in repr(model)


@dataclasses.dataclass(frozen=True)
class Grid(Inference):
    """Test step: the posterior on a grid of each star's unknowns about its best mode, of those with two or three."""

    points: int = 15
    width: float = 5.0

    def infer(self, problem, seed, progress):
        modes, m = problem.modes, problem.n_latent
        line = np.linspace(-self.width, self.width, self.points)
        z = np.stack(np.meshgrid(*[line] * m, indexing="ij"), -1).reshape(-1, m)
        root = np.linalg.cholesky(np.asarray(modes.covariance[0]))
        u = np.asarray(modes.location[0])[:, None] + np.einsum("nij,sj->nsi", root, z)
        log_p = np.asarray(in_passing(problem, u)[0])
        weight = np.exp(log_p - log_p.max(1, keepdims=True))
        weight /= weight.sum(1, keepdims=True)
        mean = np.einsum("ns,nsm->nm", weight, u)
        off = u - mean[:, None]
        covariance = np.einsum("ns,nsm,nsk->nmk", weight, off, off)
        return StarDraws(mean[None, None], ~np.asarray(modes.converged[0]), mean, covariance)


@dataclasses.dataclass(frozen=True)
class Line(bl.Cannon):
    """A model of a kind that is there: a Cannon of first order."""

    order: int = 1


def solves_problems(name):
    return kind_of(example(name)).answers is None


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_an_inference_of_ones_own_serves_every_kind_that_poses_a_star_problem(name, of, posterior_of, result_of):
    posterior, seen = posterior_of(name), of(name)[:FEW].drop(asked(name))
    if not solves_problems(name):
        with pytest.raises(CannotDo, match="Grid has no infer step"):
            bl.infer(posterior, seen, Grid())
        return
    if name == "Lux":  # three latents, of which one says next to nothing
        return
    grid, exact = bl.infer(posterior, seen, Grid(), seed=0), result_of(name, "Importance")
    labels = slice(len(posterior.model.require_frame().names))
    off = np.abs(grid.mean - exact.mean)[:, labels] / exact.error[:, labels]
    assert np.median(off) < 0.3
    assert "Grid" in repr(grid)


def test_a_model_of_ones_own_is_served_by_the_inferences_of_its_kind(of, tmp_path):
    model, stars = Line(label_noise="joint"), of("Cannon")
    assert kind_of(model) is kind_of(bl.Cannon())
    posterior = bl.fit(model, stars, bl.MAP(max_iterations=5))
    assert isinstance(bl.load(posterior.save(tmp_path / "line.nc")).model, Line)
    assert np.isfinite(bl.infer(posterior, stars.drop("labels")).mean).all()


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_table_says_what_trains_a_kind(name):
    """Every trainer is of stars in memory, of rows, or both, and the recommended ones are among those that serve."""
    kind = kind_of(example(name))
    assert all(how.stars or how.rows for how in kind.trainers.values())
    assert kind.serves(type(kind.fit_by), "fit")
    assert kind.serves(type(kind.infer_by), "infer")


@pytest.mark.parametrize(
    ("name", "strategy"),
    [(name, x.__name__) for name in MODEL_NAMES for x, how in kind_of(example(name)).trainers.items() if not how.rows],
)
def test_what_takes_no_files_says_so(name, strategy, of, tmp_path):
    write_table(of(name).to_table(), tmp_path / "stars.fits")
    with pytest.raises(CannotDo, match=f"{strategy} of {name} takes no stars in files"):
        bl.fit(example(name), tmp_path / "stars.fits", quick(strategy))


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_what_a_table_has_of_every_star_is_declared(name, result_of):
    result, kind = result_of(name, answerer(name)), kind_of(example(name))
    known = {"id", *kind.columns}
    for label in result.frame.names:
        parts = ("error", "catalogue_error", *PERCENTILES, *kind.parts)
        known |= {label, *(f"{label}_{part}" for part in parts)}
    table = result.table()
    assert set(table.colnames) <= known
    assert table.colnames[-1] == "flags"
    assert table["flags"].info.description
    assert set(result.data["posterior"].to_dataset()) == {"true_labels"}


def test_the_readme_says_what_serves_what():
    rows = [line.split("|") for line in README.read_text().splitlines() if line.startswith("| `")]
    rows = {row[1].strip().strip("`()"): row[2:4] for row in rows if row[1].strip().strip("`()") in INFERENCE_NAMES}
    assert set(rows) == set(INFERENCE_NAMES)
    for strategy, cells in rows.items():
        for verb, cell in zip(("fit", "infer"), cells, strict=True):
            served = {x for x in MODEL_NAMES if kind_of(example(x)).serves(getattr(inference, strategy), verb)}
            said = set(MODEL_NAMES) if cell.strip() == "all" else {x.strip() for x in cell.split(",") if x.strip()}
            assert said == served, (strategy, verb)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_every_result_can_be_drawn_and_compared(name, of, result_of):
    stars, result = of(name)[:FEW], result_of(name, answerer(name))
    assert plots.corner(result, 0).axes
    truth = np.where(np.isfinite(result.mean), result.mean + result.error, np.nan)
    np.testing.assert_allclose(calibration.z_scores(result, truth), 1.0, rtol=1e-6)
    assert plots.one_to_one(result, truth).axes
    assert plots.calibration(result, truth).axes
    assert calibration.coverage(result, truth).share.shape == (len(result.frame.names),)
    if name in ("Cannon", "Lux", "Photometry"):
        z = calibration.z_scores(result, stars)
        assert np.isfinite(z[:, : stars.labels.n_dim]).any()
        assert np.isnan(z[:, stars.labels.n_dim :]).all()
