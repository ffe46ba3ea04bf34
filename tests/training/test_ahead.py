"""Runs of methods whose decisions are known ahead."""

from inprocess import small_trainer
import jax
import numpy as np
import pytest

from experiments.data.feeds import arrays
from experiments.training import ahead, fit


def small(loaded):
    return loaded._replace(train=type(loaded.train)(*(a[:96] for a in loaded.train)))


def trained(trainer, loaded, most=100):
    state = trainer.init(loaded.train.shape, seed=1)
    return fit.fit([fit.Phase(0, 2, trainer)], state, arrays(loaded), most=most)


def forbidden(*args, **kwargs):
    raise AssertionError("a piece of a step that knows its decision")


def test_a_stretch_is_a_run_of_equal_decisions():
    assert list(ahead.stretches([True, False, False, True], 7)) == [
        (7, 8, True),
        (8, 10, False),
        (10, 11, True),
    ]
    assert list(ahead.stretches([None, None], 0)) == [(0, 2, None)]
    assert list(ahead.stretches([], 3)) == []


@pytest.mark.parametrize(
    ("method", "settings"), [("looksam", {"period": 4}), ("ss_sam", {"probability": 0.5})]
)
def test_a_method_is_told_on_the_host_and_on_the_device(method, settings, digits, monkeypatch):
    """Both end where its own decisions end, to rounding, however the steps are divided."""
    loaded, ends = small(digits), []
    for on_host, told, most in (
        (True, True, 1), (False, True, 100), (False, True, 3), (False, False, 100),
    ):  # fmt: skip
        trainer = small_trainer("mlp", method, loaded, on_host=on_host, **settings)
        trainer.host_step = forbidden
        with monkeypatch.context() as patch:
            if not told:
                patch.setattr(ahead, "decisions", lambda link, state, steps: [None] * steps)
            ends.append(trained(trainer, loaded, most))
    ascents = [int(end.method_state.ascents) for end in ends]
    assert 0 < ascents[0] < 12
    assert len(set(ascents)) == 1
    host, device, divided, itself = map(jax.tree.leaves, ends)
    for one, parts, other, by_itself in zip(device, divided, host, itself, strict=True):
        np.testing.assert_array_equal(one, parts)
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)
        np.testing.assert_allclose(one, by_itself, rtol=2e-4, atol=1e-5)


def test_convolutions_are_told_without_a_warning(digits):
    """Warnings are errors here, and the pieces are not needed."""
    loaded = small(digits)
    trainer = small_trainer("cnn", "looksam", loaded, on_host=True)
    trainer.host_step = forbidden
    assert int(trained(trainer, loaded).method_state.ascents) == 3  # of 12, every fifth


def test_seeds_at_once_share_a_count_and_no_coin(digits):
    loaded = small(digits)
    taken = {}
    for method in ("looksam", "ss_sam", "sam", "sgd", "ae_sam"):
        trainer = small_trainer("mlp", method, loaded, on_host=False)
        states = [trainer.init(loaded.train.shape, seed) for seed in (0, 1)]
        taken[method] = trainer.skips_gradients(states, arrays(loaded))
    assert taken == {"looksam": False, "ss_sam": True, "sam": False, "sgd": False, "ae_sam": True}


def test_decisions_of_several_states_are_those_of_each(digits):
    loaded = small(digits)
    trainer = small_trainer("mlp", "looksam", loaded, on_host=False)
    one, other = (trainer.init(loaded.train.shape, seed).method_state for seed in (0, 1))
    link = trainer.optimizer.method
    alone = [True, False, False, False, False, True]
    assert ahead.decisions(link, one, 6) == alone
    together = jax.tree.map(lambda *leaves: np.stack(leaves), one, other)
    together = jax.tree.map(jax.numpy.asarray, together)
    assert ahead.decisions(link, together, 6) == alone
    later = together._replace(steps=together.steps.at[1].add(1))
    assert ahead.decisions(link, later, 6) == [None] * 6
