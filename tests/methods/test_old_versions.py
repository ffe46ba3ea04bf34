"""States that version 0.2.0 made and saved."""

import json
from pathlib import Path
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import sam_optax

OLD = Path(__file__).parents[1] / "old"
PARAMS = {
    "layer": {"kernel": jnp.arange(6.0).reshape(2, 3) / 10, "bias": jnp.array([0.3, -0.2, 0.1])},
    "scale": jnp.array([1.5]),
}
# What a method has to be given.
GIVEN = {
    "ae_sam": {"total_steps": 10},
    "ae_looksam": {"total_steps": 10},
    "wsam": {"base": optax.trace(0.9)},
}


def described(leaf):
    """Shape and dtype of a leaf, of a key "key"."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return [list(leaf.shape), "key" if is_key else str(leaf.dtype)]


STATES = json.loads((OLD / "states-0.2.0.json").read_text())


@pytest.mark.parametrize("name", STATES)
def test_a_state_has_all_that_it_had(name):
    state = jax.eval_shape(getattr(sam_optax, name)(**GIVEN.get(name, {})).init, PARAMS)
    now = {
        jax.tree_util.keystr(path): described(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    assert {path: now.get(path) for path in STATES[name]} == STATES[name]


def filled(fresh, saved):
    """As docs/recipes.md has it."""

    def name(keys):
        return jax.tree_util.keystr(keys, simple=True, separator="/")

    found = {name(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    return jax.tree_util.tree_map_with_path(lambda keys, leaf: found.get(name(keys), leaf), fresh)


@pytest.mark.filterwarnings("ignore:.*[Ss]harding")
def test_a_state_that_was_saved_goes_on(tmp_path):
    """Saved after two steps; what 0.2.0 came to with a third is written here."""
    with tarfile.open(OLD / "ae_looksam-0.2.0.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(tmp_path)
    x = jnp.array([[1.0, 2.0], [-1.0, 0.5], [0.3, -0.7]])

    def loss(p):
        layer = p["layer"]
        return jnp.mean((jnp.tanh(x @ layer["kernel"]) + layer["bias"]) ** 2)

    grad_fn, params = jax.grad(loss), saved["params"]
    tx = optax.chain(sam_optax.ae_looksam(rho=0.1, total_steps=10), optax.sgd(0.1, momentum=0.9))
    opt_state = filled(tx.init(params), saved["opt_state"])
    assert opt_state[0].steps == 2
    updates, opt_state = jax.jit(tx.update, static_argnames="grad_fn")(
        grad_fn(params), opt_state, params, grad_fn=grad_fn
    )
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
        params["layer"]["kernel"], [[0.93252009, -1.92755103], [0.51123583, 0.25125942]], rtol=1e-5
    )
    np.testing.assert_allclose(params["layer"]["bias"], [-0.01379254, -0.00520082], rtol=1e-4)
    assert sam_optax.read(opt_state, "ascents") == 2
    assert sam_optax.read(opt_state, "notfinite") == 0
