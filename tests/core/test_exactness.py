"""Ten steps of every method against the independent NumPy reference."""

import jax
import numpy as np
import optax
import pytest
from reference import (
    METHODS,
    ROWS,
    few,
    initial_params,
    loss,
    loss_gradient,
    make_batch,
    ravel,
    run,
    run_reference,
)

pytestmark = pytest.mark.usefixtures("x64")


def test_the_gradient_written_by_hand_is_the_gradient():
    params, batch = initial_params(), make_batch(0)
    actual = ravel(jax.jit(jax.grad(loss))(params, batch))
    np.testing.assert_allclose(actual, loss_gradient(ravel(params), batch), rtol=1e-12)


# r_gsam_point and lpf_sgd_samples_point have all of these settings at once.
LIKE_OTHERS = ("r_sam_variance", "r_sam_normalized", "r_sam_point", "lpf_sgd_samples")


@pytest.mark.parametrize("name", few(*ROWS.keys() - LIKE_OTHERS, names=ROWS))
def test_ten_steps_equal_the_reference(name):
    """Parameters and the papers' state quantities agree after each of ten steps."""
    row = ROWS[name]
    library = run(row.optimizer(), **row.call, valued=True)
    for t, ((params, opt_state), (w, state)) in enumerate(
        zip(library, run_reference(row), strict=True)
    ):
        np.testing.assert_allclose(ravel(params), w, 1e-10, 1e-13, err_msg=f"step {t}")
        for quantity, expected in state.items():
            # The trace of the base inside wsam; behind other links it belongs to SGD.
            actual = ravel(optax.tree.get(opt_state, quantity))
            np.testing.assert_allclose(
                actual, np.ravel(expected), 1e-10, 1e-13, err_msg=f"{quantity} at step {t}"
            )


@pytest.mark.parametrize("name", ["ae_sam", "ae_looksam"])
def test_the_adaptive_rows_both_fire_and_skip(name):
    ascents = [state["ascents"] for _, state in run_reference(METHODS[name])]
    fired = np.diff([0, *ascents])
    assert 3 <= fired.sum() <= 7
    assert np.abs(np.diff(fired)).sum() >= 3  # and alternate


@pytest.mark.parametrize("name", ["samar", "samar_perturbed"])
def test_the_samar_rows_grow_shrink_and_clip_at_both_ends(name):
    row = ROWS[name]
    lambdas = np.array([state["lambda_k"] for _, state in run_reference(row)])
    delta, gamma = row.settings["delta"], row.settings["gamma"]
    ratios = lambdas[1:] / lambdas[:-1]
    assert np.isclose(lambdas, delta).any()
    assert np.isclose(lambdas, 1 - delta).any()
    assert np.isclose(ratios, gamma).any()
    assert np.isclose(ratios, 1 / gamma).any()


@pytest.mark.parametrize("name", ["le_sam", "le_sam_plus"])
def test_the_le_sam_rows_clip_at_some_steps_only(name):
    row = METHODS[name]
    radii = np.array([state["rho"] for _, state in run_reference(row)])
    clipped = radii == row.settings["rho_max"]
    assert 2 <= clipped.sum() <= 8
