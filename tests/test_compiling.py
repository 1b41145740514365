"""`numerics.compiling.jit`: by itself or as part of another program, with the same numbers."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bayeslabels
from bayeslabels.numerics.compiling import QUICKLY, jit


@functools.partial(jit, static_argnames="power")
def raised(x, power):
    return jnp.sin(x) ** power


def inside(x):
    return raised(x, power=3)


@pytest.mark.parametrize(
    "how",
    [
        inside,
        jax.jit(inside),
        jit(inside),
        jax.vmap(inside),
        lambda x: jax.lax.map(inside, x),
        lambda x: jnp.diagonal(jax.jacobian(lambda t: inside(t) ** 2 / 2)(x)) / (3 * jnp.sin(x) ** 2 * jnp.cos(x)),
    ],
    ids=["by itself", "in a program", "in one of ours", "mapped", "in a loop", "differentiated"],
)
def test_a_program_may_be_part_of_another(how):
    x = np.linspace(0.1, 1.0, 7)
    np.testing.assert_allclose(how(x), np.sin(x) ** 3, rtol=1e-5)


def test_numbers_that_are_known_inside_of_a_program():
    """Constants do not tell that a program is being traced."""
    found = jax.jit(lambda x: x + raised(np.full(3, 0.5), power=2))(jnp.zeros(3))
    np.testing.assert_allclose(found, np.sin(0.5) ** 2, rtol=1e-6)


def test_xla_takes_what_it_is_told():
    lowered = jax.jit(inside).lower(np.ones(3))
    assert np.isfinite(np.asarray(lowered.compile(compiler_options=QUICKLY)(np.ones(3)))).all()


def test_nothing_is_compiled_in_another_way():
    """But for `devices`, below it in the tower, whose one program moves an array."""
    root = Path(bayeslabels.__file__).parent
    files = {str(path.relative_to(root)) for path in root.rglob("*.py") if "jax.jit" in path.read_text()}
    assert files == {"numerics/compiling.py", "devices.py"}
