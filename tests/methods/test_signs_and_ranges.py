"""A base that descends, and schedules out of the range of a constant, are told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax
from sam_optax import schedules, when

PARAMS = {"a": {"kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}, "b": jnp.ones(())}
LABELS = {"a": "x", "b": "y"}


def by_size():
    """A step that is decided in Python, which cannot be traced."""

    def update(updates, state, params=None):
        del params
        size = float(optax.tree.norm(updates))
        return (optax.tree.scale(-0.1, updates) if size > 0 else updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def with_product():
    """A step that the axes of a leaf have to fit."""

    def update(updates, state, params=None):
        del params
        kernel, bias = updates["a"]["kernel"], updates["a"]["bias"]
        ahead = {"kernel": -kernel @ kernel.T @ kernel, "bias": -bias * (bias @ bias)}
        return {"a": ahead, "b": -updates["b"]}, state

    return optax.GradientTransformation(optax.init_empty_state, update)


LATE = optax.join_schedules([optax.constant_schedule(0.0), optax.constant_schedule(0.1)], [20])
DIRECTIONS = {
    "a mean that is taken off": optax.chain(optax.centralize(), optax.trace(0.9)),
    "trace": optax.trace(0.9),
    "adam": optax.scale_by_adam(),
    "lion": optax.scale_by_lion(),
    "weight decay": optax.chain(optax.add_decayed_weights(0.1), optax.trace(0.9)),
    "noise much larger than a gradient": optax.add_noise(100.0, 0.5, 0),
    "clipping": optax.clip_by_global_norm(1e-3),
    "muon without its minus": optax.chain(optax.contrib.muon(1.0), optax.scale(-1)),
    "groups": optax.partition({"x": optax.trace(0.9), "y": optax.scale_by_adam()}, LABELS),
    "nothing": optax.set_to_zero(),
    "one that asks for the loss": optax.chain(
        optax.scale(-1), optax.contrib.reduce_on_plateau(), optax.scale(-1)
    ),
    "steps that are summed": optax.MultiSteps(optax.trace(0.9), 4).gradient_transformation(),
}
OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "adam": optax.adam(1e-3),
    "muon": optax.contrib.muon(1.0),
    "a warm-up": optax.sgd(optax.linear_schedule(0.0, 0.1, 10)),
    "a schedule of the caller's": optax.sgd(lambda t: 0.1 / (t + 1)),
    "injected": optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
    "nothing for 20 steps": optax.sgd(LATE),
    "every fourth step": optax.MultiSteps(optax.sgd(0.1), 4).gradient_transformation(),
    "a step from the loss": optax.polyak_sgd(1.0),
    "a step from value and slope": optax.contrib.momo(1.0),
    "a line search": optax.lbfgs(),
    "a product with the Hessian": optax.contrib.sophia(0.1),
    "a decision in Python": by_size(),
    "behind a mean that is taken off": optax.chain(optax.centralize(), optax.sgd(0.1)),
    "a product with the gradient": with_product(),
    "a part by its size": optax.masked(
        optax.sgd(0.1), lambda p: jax.tree.map(lambda w: w.size > 4, p)
    ),
    "one of two groups": optax.partition({"x": optax.trace(0.9), "y": optax.adam(0.1)}, LABELS),
    "a part": optax.masked(optax.sgd(0.1), {"a": False, "b": True}),
}


@pytest.mark.parametrize("base", DIRECTIONS)
def test_a_base_along_the_gradient_is_taken(base):
    state = sam_optax.wsam(DIRECTIONS[base]).init(PARAMS)
    assert int(sam_optax.read(state, "steps")) == 0


IN_A_MASK = ["sgd", "a decision in Python", "a part"]  # in every run


@pytest.mark.parametrize(
    ("base", "masked"),
    [(base, False) for base in OPTIMIZERS]
    + [
        pytest.param(base, True, marks=() if base in IN_A_MASK else pytest.mark.slow)
        for base in OPTIMIZERS
    ],
)
def test_a_base_with_its_minus_in_it_is_refused(base, masked):
    def make(base):
        return sam_optax.masked(sam_optax.wsam(base), True) if masked else sam_optax.wsam(base)

    link = make(OPTIMIZERS[base])
    for init in (link.init, jax.jit(link.init), lambda p: jax.eval_shape(link.init, p)):
        with pytest.raises(ValueError, match=r"base must hand on .*optax.chain\(base, optax.scale"):
            init(PARAMS)
    if base not in (
        "one of two groups",
        "a part",
        "a part by its size",
    ):  # there the other leaves have no minus
        make(optax.chain(OPTIMIZERS[base], optax.scale(-1))).init(PARAMS)


def test_large_parameters_are_tried_small():
    large = {"a": {"kernel": jnp.ones((400, 400)), "bias": jnp.ones(3)}, "b": jnp.ones(())}
    with pytest.raises(ValueError, match="base must hand on"):
        sam_optax.wsam(with_product()).init(large)
    sam_optax.wsam(optax.chain(with_product(), optax.scale(-1))).init(large)


def test_the_remedies_descend():
    for base in (optax.trace(0.9), optax.chain(optax.sgd(0.05), optax.scale(-1))):
        tx = optax.chain(sam_optax.wsam(base, rho=0.01), optax.sgd(0.1))
        w = jnp.array([3.0, 4.0])
        state = tx.init(w)
        for _ in range(30):
            updates, state = tx.update(w, state, w, grad_fn=lambda p: p)
            w = optax.apply_updates(w, updates)
        assert jnp.linalg.norm(w) < 5.0


# Each hyperparameter that may be a schedule, with a value out of its range.
HELD = {
    "rho": (lambda s: sam_optax.sam(rho=s), -0.1),
    "rho of a start": (lambda s: sam_optax.msam(rho=s), -0.1),
    "eta": (lambda s: sam_optax.fisher_sam(eta=s), -1.0),
    "budget": (lambda s: sam_optax.le_sam(budget=s), -0.1),
    "rho_max": (lambda s: sam_optax.le_sam(rho_max=s), -0.1),
    "gamma of a noise": (lambda s: sam_optax.lpf_sgd(gamma=s), -0.1),
    "gamma": (lambda s: sam_optax.coupled_wsam(gamma=s), 1.0),
    "alpha": (lambda s: sam_optax.gsam(alpha=s), -0.1),
    "probability": (lambda s: sam_optax.ss_sam(probability=s), 1.5),
    "theta": (lambda s: sam_optax.vasso(theta=s), 1.5),
    "threshold": (
        lambda s: sam_optax.sharpness_aware(
            sam_optax.perturb.ball(0.1), when=when.adaptive(s)
        ),
        float("nan"),
    ),
}  # fmt: skip


def step_of(link, jit):
    w = jnp.ones(2)

    def step():
        return link.update(w, link.init(w), w, grad_fn=lambda p: p)

    return jax.jit(step)() if jit else step()


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", HELD)
def test_a_schedule_is_held_to_the_range_of_the_constant_where_it_is_known(name, jit):
    make, value = HELD[name]
    argument = name.split()[0]
    constants = {
        "of Optax": optax.constant_schedule(value),
        "of Python": lambda t: value,
        "of NumPy": lambda t: np.float32(value),
    }
    if not np.isnan(value):
        constants["from there to a value in range"] = optax.linear_schedule(value, 0.5, 9)
        with pytest.raises(ValueError, match=argument):
            make(value)
    for schedule in constants.values():
        with pytest.raises(ValueError, match=f"{argument} must lie in .*got a schedule that is"):
            step_of(make(schedule), jit)


def test_the_remedy_holds_a_schedule():
    schedule = optax.linear_schedule(-0.1, 0.5, 9)
    updates, _ = step_of(sam_optax.sam(lambda step: jnp.clip(schedule(step), 0, 1)), jit=True)
    np.testing.assert_array_equal(updates, 1.0)


def test_a_schedule_is_told_with_its_step():
    link = sam_optax.sam(rho=lambda t: 0.15 - 0.1 * int(t))
    w = jnp.ones(2)
    state = link.init(w)
    for _ in range(2):
        _, state = link.update(w, state, w, grad_fn=lambda p: p)
    with pytest.raises(ValueError, match=r"got a schedule that is -0.05.* at step 2: hold"):
        link.update(w, state, w, grad_fn=lambda p: p)


def test_rounding_beyond_a_closed_bound_stops_no_run():
    for link, expected in (
        (sam_optax.sam(lambda t: 0.3 - 0.1 * 3), 1.0),
        (sam_optax.ss_sam(0.5, probability=lambda t: 3 * 0.1 / 0.3), 1 + 0.5 / np.sqrt(2)),
    ):
        np.testing.assert_allclose(step_of(link, jit=False)[0], expected, rtol=1e-6)


def test_a_guard_of_transfers_is_none_of_its_business():
    link, w = sam_optax.sam(optax.cosine_decay_schedule(0.1, 10)), jnp.ones(2)
    state = link.init(w)
    step = jax.jit(lambda w, s: link.update(w, s, w, grad_fn=lambda p: p))
    with jax.transfer_guard("disallow"):
        updates, _ = step(w, state)
    np.testing.assert_allclose(updates, 1 + 0.1 / np.sqrt(2), rtol=1e-6)


def test_a_schedule_of_what_is_traced_is_not_held():
    def step(rho):
        return step_of(sam_optax.sam(optax.constant_schedule(rho)), jit=False)[0]

    np.testing.assert_allclose(jax.jit(step)(0.1), 1 + 0.1 / np.sqrt(2), rtol=1e-6)


def test_a_schedule_runs_within_shard_map():
    """Where the value at step 0 is traced."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    link = sam_optax.sam(optax.linear_schedule(0.5, 0.1, 9))
    moved = jax.shard_map(
        lambda w: link.update(w, link.init(w), w, grad_fn=lambda p: p, param_specs=whole)[0],
        mesh=mesh,
        in_specs=rows,
        out_specs=rows,
    )
    moved = jax.jit(moved)(np.ones((8, 2), np.float32))
    np.testing.assert_allclose(moved, 1 + 0.5 / np.sqrt(2), rtol=1e-6)


RADII = {"rho_max": 0.6, "rho_min": 0.2, "lr_min": 0.0}
RATES = {
    "relative": optax.cosine_decay_schedule(1.0, 100),
    "relative, of Python": lambda t: 1.0 - t / 100,
    "with its peak after a warm-up": optax.warmup_cosine_decay_schedule(0.0, 0.3, 500, 9000),
}


@pytest.mark.parametrize("rate", RATES)
def test_a_learning_rate_beyond_lr_max_is_refused_at_construction(rate):
    with pytest.raises(ValueError, match=r"lr_max must be .* got 0\.1, and learning_rate is"):
        schedules.rho_from_learning_rate(RATES[rate], lr_max=0.1, **RADII)
    schedules.rho_from_learning_rate(RATES[rate], lr_max=1.0, **RADII)
    line = schedules.rho_from_learning_rate(RATES[rate], lr_max=0.1, clamp=False, **RADII)
    assert max(float(line(t)) for t in (0, 500)) > 0.6


def test_the_peak_is_looked_at_where_the_bounds_are_equal_too():
    rate = optax.constant_schedule(0.5)
    with pytest.raises(ValueError, match="lr_max must be"):
        schedules.rho_from_learning_rate(rate, rho_max=0.3, rho_min=0.1, lr_max=0.1, lr_min=0.1)


@pytest.mark.parametrize("peak", [0.1, 0.05, 3e-4, 1 / 3])
def test_the_peak_itself_is_no_larger_than_lr_max_whatever_its_rounding(peak):
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, 512, 9000)
    rho = schedules.rho_from_learning_rate(rate, lr_max=peak, **RADII)
    np.testing.assert_allclose(rho(512), RADII["rho_max"], rtol=1e-5)


def test_weights_by_name_are_asked_for_where_no_name_is_known():
    for tree in (jnp.ones((2, 2)), {"theta": jnp.ones((2, 2))}, [jnp.ones(3)], {"x": {"y": 1.0}}):
        link = sam_optax.asam(0.5)
        with pytest.raises(ValueError, match=r"weights=None goes by the names .* pass weights="):
            link.update(tree, link.init(tree), tree, grad_fn=lambda p: p)
        for weights in (lambda path: True, True):
            told = sam_optax.asam(0.5, weights=weights)
            told.update(tree, told.init(tree), tree, grad_fn=lambda p: p)


def test_one_known_name_is_enough():
    tree = {"theta": jnp.ones((2, 2)), "x": [{"bias": jnp.ones(2)}]}
    told = {"theta": True, "x": False}
    link, other = sam_optax.asam(0.5), sam_optax.asam(0.5, weights=told)
    found, expected = (
        each.update(tree, each.init(tree), tree, grad_fn=lambda p: p)[0] for each in (link, other)
    )
    np.testing.assert_array_equal(found["theta"], expected["theta"])
    np.testing.assert_array_equal(found["x"][0]["bias"], expected["x"][0]["bias"])
