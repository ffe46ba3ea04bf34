"""No gradient is evaluated that the formula does not need: by counting calls, and in FLOPs."""

import math
import re
import warnings

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import NAMES, ROWS, few, make_step, run, sgd, small_loss, small_params
from test_modes import two_step_ball

import sam_optax
from sam_optax import combine, perturb, when

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the rule is for CPU")

# The gradients of ten steps, the caller's first included; those of a decision are in `ascents`.
COUNTS = {
    **dict.fromkeys(NAMES, 20),
    "looksam": 10 + 4,  # period 3, step 0 included
    "eigen_sam": 20 + 3 * 4,  # four Hessian-vector products at steps 3, 6 and 9
    "r_sam": 30,  # the gradient at w is taken too
    "r_gsam": 30,
    "r_sam_point": 20,
    "r_gsam_point": 20,
    "lpf_sgd": 20,
    "msam": 20,
    "s2_sam": 20,
    "bsam": 30,
    "bsam_previous": 20,
    "ivon": 20,
    "ivon_clip": 10,
    "lpf_sgd_point": 10,
    "msam_point": 10,
    "s2_sam_point": 10,
    "lpf_sgd_samples": 40,
    "lpf_sgd_samples_point": 20,
}
REPEATED = ("r_sam", "r_sam_point", "lpf_sgd_samples", "lpf_sgd_point")  # parts of the others
DECIDES = ("ss_sam", "ae_sam", "ae_looksam")
ONE_GRADIENT = ("lpf_sgd", "msam", "s2_sam", "ivon")


class Counter:
    """Wraps gradient functions; counts their calls at run time, also inside jit."""

    def __init__(self):
        self.calls = 0

    def count(self):
        self.calls += 1

    def __call__(self, gradient):
        def counted(*args):
            jax.debug.callback(self.count)
            return gradient(*args)

        return counted


small_gradient = jax.grad(small_loss)
compiled_small_gradient = jax.jit(small_gradient)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("compiled", [False, True], ids=["host", "jit"])
@pytest.mark.parametrize("name", few(*(n for n in COUNTS if n not in REPEATED), names=COUNTS))
def test_ten_steps_evaluate_the_promised_number_of_gradients(name, compiled):
    """And `ascents` counts the second ones: the adaptive methods pay for those alone."""
    row, counter = ROWS[name], Counter()
    tx = row.optimizer()
    grad_loss = small_gradient if compiled else compiled_small_gradient
    options = {"compiled": compiled, "gradient": counter, "grad_loss": grad_loss}
    step = make_step(tx, at_point=row.call["at_point"], **options)
    calls = []
    for _, opt_state in run(tx, step, params=small_params()):  # noqa: B007  (the last one is read below)
        jax.effects_barrier()
        calls.append(counter.calls)
    steps, ascents = (int(optax.tree.get(opt_state, field)) for field in ("steps", "ascents"))
    assert steps == 10
    if name in DECIDES:
        assert 0 < ascents < 10
        assert set(np.diff([0, *calls])) == {1, 2}
        assert calls[-1] == steps + ascents
    else:
        assert calls[-1] == COUNTS[name]
        expected = 0 if name.startswith(ONE_GRADIENT) else 4 if name == "looksam" else 10
        assert ascents == expected


def followed(rho):
    """The same with a state, of Optax's moving average behind it."""
    return optax.chain(two_step_ball(rho), optax.ema(0.9))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("compiled", [False, True], ids=["host", "jit"])
@pytest.mark.parametrize(("part", "own"), [(two_step_ball, 2), (followed, 4)])
def test_a_perturb_part_takes_gradients_of_its_own_where_its_state_asks_for_them(
    part, own, compiled
):
    """At the steps with a second gradient alone; at all, where it has a state that follows them."""
    counter = Counter()
    tx = optax.chain(sam_optax.sharpness_aware(part(0.4), when=when.every(2)), sgd())
    for _ in run(tx, make_step(tx, compiled=compiled, gradient=counter), steps=4):
        jax.effects_barrier()
    assert counter.calls == 4 + own + 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("compiled", [False, True], ids=["host", "jit"])
def test_a_combination_takes_gradients_of_its_own_where_it_is_asked(compiled):
    counter = Counter()
    three = combine.stateless(lambda g, h, w, *, grad_fn, **extra: grad_fn(h))
    link = sam_optax.sharpness_aware(perturb.ball(0.4), when=when.every(2), combine=three)
    tx = optax.chain(link, sgd())
    for _ in run(tx, make_step(tx, compiled=compiled, gradient=counter), steps=4):
        jax.effects_barrier()
    assert counter.calls == 4 + 2 + 2


# Compiled FLOPs, on an MLP with batch norm so large that the link's own work is below 1 %.

WIDTH, EXAMPLES = 64, 8192


def mlp_params():
    return {
        "hidden": jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32),
        "norm": jax.ShapeDtypeStruct((WIDTH,), jnp.float32),
        "out": jax.ShapeDtypeStruct((WIDTH, 10), jnp.float32),
    }


def mlp_losses(params, batch):
    """The loss of each example, and the statistics of batch norm."""
    x, y = batch
    x = x @ params["hidden"]
    mean, variance = jnp.mean(x, axis=0), jnp.var(x, axis=0)
    x = jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + 1e-5) * params["norm"])
    return jnp.mean((x @ params["out"] - y) ** 2, axis=1), (mean, variance)


def mlp_loss(params, batch):
    """The mean of the losses, and the statistics."""
    each, statistics = mlp_losses(params, batch)
    return jnp.mean(each), statistics


def flops(tx, at_point=False, examples=False):
    """Of a whole training step: loss value, statistics, update."""
    params = mlp_params()
    batch = tuple(jax.ShapeDtypeStruct((EXAMPLES, n), jnp.float32) for n in (WIDTH, 10))

    def step(params, opt_state, batch):
        def grad_fn(p, indices=slice(None)):
            kept = jax.tree.map(lambda x: x[indices], batch)
            return jax.grad(mlp_loss, has_aux=True)(p, kept)[0]

        point = sam_optax.gradient_point(opt_state, params) if at_point else params
        (value, statistics), grads = jax.value_and_grad(mlp_loss, has_aux=True)(point, batch)
        extra = {"example_loss_fn": lambda p: mlp_losses(p, batch)[0]} if examples else {}
        updates, opt_state = tx.update(grads, opt_state, params, grad_fn=grad_fn, **extra)
        return optax.apply_updates(params, updates), opt_state, value, statistics

    lowered = jax.jit(step).lower(params, jax.eval_shape(tx.init, params), batch)
    return lowered.compile().cost_analysis()["flops"]


@pytest.fixture(scope="module")
def sgd_flops():
    return flops(optax.with_extra_args_support(sgd()))


def flops_ratio(name, sgd_flops):
    return flops(ROWS[name].unnamed.optimizer(), **ROWS[name].call) / sgd_flops


MULTIPLES = {
    **dict.fromkeys(
        ("sam", "asam", "fisher_sam", "gsam", "ssam", "samar", "vasso", "friendly_sam", "esam_all"),
        2,
    ),
    **dict.fromkeys(("le_sam", "le_sam_plus", "coupled_wsam", "wsam"), 2),
    **dict.fromkeys(("r_sam_point", "r_gsam_point"), 2),
    **dict.fromkeys(("lpf_sgd_point", "msam_point", "s2_sam_point"), 1),
    "lpf_sgd_samples_point": 2,
}


@pytest.mark.parametrize("name", few(*(n for n in MULTIPLES if n not in REPEATED), names=MULTIPLES))
def test_a_compiled_training_step_costs_a_whole_multiple_of_sgd(name, sgd_flops):
    """The loss and the statistics of batch norm included."""
    assert flops_ratio(name, sgd_flops) == pytest.approx(MULTIPLES[name], rel=0.01)


@pytest.mark.parametrize("gradients", [3, 4])
def test_further_points_cost_a_gradient_each(gradients, sgd_flops):
    def further(g, h, w, *, grad_fn, epsilon, **extra):
        for _ in range(gradients - 2):
            h = grad_fn(optax.tree.add_scale(optax.tree.sub(w, epsilon), 0.1, h))
        return h

    link = sam_optax.sharpness_aware(perturb.ball(0.1), combine=combine.stateless(further))
    ratio = flops(optax.chain(link, sgd())) / sgd_flops
    assert ratio == pytest.approx(gradients, rel=0.01)


def independent(link):
    """Whether its second gradient is taken at a point that the first has no part in."""
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    state = link.init(params)

    def point(grads):
        seen = []

        def grad_fn(p):
            seen.append(p)
            return jax.tree.map(jnp.cos, p)

        link.update(grads, state, params, grad_fn=grad_fn)
        return seen[-1]

    derivative = jax.jacobian(point)(jax.tree.map(jnp.sin, params))
    return not any(leaf.any() for leaf in jax.tree.leaves(derivative))


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (lambda: perturb.ball(0.1), False),
        (lambda: perturb.noise(0.1), True),
        (lambda: optax.chain(perturb.previous(), perturb.ball(0.1)), True),
    ],
)
def test_gradients_that_need_not_wait_do_not(part, expected):
    """In the values, and in the compiled program, where one is no operand of the other."""
    link = sam_optax.sharpness_aware(part(), combine=combine.interpolate(0.5))
    assert independent(link) == expected
    w = jnp.ones((64, 64))

    def step(w, x, state):
        def grad_fn(p):
            return jax.grad(lambda p: jnp.sum(jnp.sin(x @ p)))(p)

        return link.update(grad_fn(w), state, w, grad_fn=grad_fn)[0]

    def depth(function, *args):
        return depth_of_products(jax.jit(function).lower(*args).compile().as_text())

    x = jnp.ones((64, 64))
    alone = depth(jax.grad(lambda p: jnp.sum(jnp.sin(x @ p))), w)
    assert depth(step, w, x, link.init(w)) == (alone if expected else 2 * alone)


def depth_of_products(hlo):
    """The longest chain of matrix products in a compiled program."""
    depths, longest = {}, 0
    entry = hlo[hlo.index("ENTRY") :]
    for name, body in re.findall(r"%([\w.-]+) = (.*)", entry):
        before = [depths.get(used, 0) for used in re.findall(r"%([\w.-]+)", body)]
        depths[name] = max(before, default=0) + (" dot(" in body)
        longest = max(longest, depths[name])
    return longest


@pytest.mark.parametrize(("name", "gradients"), [("r_sam", 3), ("msam", 2), ("s2_sam", 2)])
def test_the_gradient_at_the_parameters_is_one_more(name, gradients, sgd_flops):
    """A step falls back on it where its own is not finite."""
    assert flops_ratio(name, sgd_flops) == pytest.approx(gradients, rel=0.01)


def test_esam_costs_a_forward_pass_and_a_part_of_a_gradient_more_than_sgd(sgd_flops):
    """Half of the examples; the losses at w come from the first gradient's pass."""
    params = mlp_params()
    batch = tuple(jax.ShapeDtypeStruct((EXAMPLES, n), jnp.float32) for n in (WIDTH, 10))
    forward = jax.jit(mlp_losses).lower(params, batch).compile().cost_analysis()["flops"]
    expected = 1 + forward / sgd_flops + 0.5
    assert flops_ratio("esam", sgd_flops) == pytest.approx(expected, rel=0.02)


class BatchNormNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.Dense(256)(x))
        return nn.Dense(10)(nn.relu(x))


@pytest.mark.parametrize("given", [True, False])
def test_esam_takes_no_clean_pass_where_it_is_given_the_losses_of_the_first(given):
    """With Flax's batch norm, XLA does not find the losses at w in the first gradient's pass."""
    net = BatchNormNet()
    x, y = (jax.ShapeDtypeStruct((4096, n), jnp.float32) for n in (64, 10))
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    params = variables["params"]

    def losses(p, x, y):
        out, new = net.apply(variables_of(p), x, mutable=["batch_stats"])
        return jnp.mean((out - y) ** 2, axis=1), new

    def variables_of(p):
        return {"params": p, "batch_stats": {"BatchNorm_0": {"mean": 0.0, "var": 1.0}}}

    def loss(p, x, y):
        each, new = losses(p, x, y)
        return each.mean(), (each, new)

    def cost(tx, select):
        def step(params, state, x, y):
            (value, (each, new)), grads = jax.value_and_grad(loss, has_aux=True)(params, x, y)
            extra = {"example_loss_fn": lambda p: losses(p, x, y)[0]} if select else {}
            if select and given:
                extra["example_losses"] = each

            def grad_fn(p, kept=slice(None)):
                return jax.grad(loss, has_aux=True)(p, x[kept], y[kept])[0]

            updates, state = tx.update(grads, state, params, grad_fn=grad_fn, **extra)
            return optax.apply_updates(params, updates), state, value, new

        lowered = jax.jit(step).lower(params, jax.eval_shape(tx.init, params), x, y)
        return lowered.compile().cost_analysis()["flops"]

    once = cost(optax.with_extra_args_support(sgd()), select=False)
    ratio = cost(optax.chain(sam_optax.esam(gamma=0.5), sgd()), select=True) / once
    forward = jax.jit(losses).lower(params, x, y).compile().cost_analysis()["flops"] / once
    assert (abs(ratio - (1 + forward + 0.5)) < 0.03) == given


# The decision under jit.


def convolution(params, x):
    return jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME")


def nested(function):
    return jax.jit(lambda params, x: jax.jit(function)(params, x))


def scanned(function):
    return lambda params, x: jax.lax.scan(
        lambda carry, _: (function(params, carry), None), x, length=2
    )[0]


def conditional_on(function):
    return lambda params, x: jax.lax.cond(jnp.sum(x) > 0, function, lambda p, x: x, params, x)


def decide_under_jit(apply, link=None):
    """The warnings and the compiled program of one AE-SAM update under jit."""
    link = link or sam_optax.ae_sam(total_steps=10)
    params = {"kernel": jnp.ones((2, 2, 3, 3))}
    x = jnp.ones((1, 2, 4, 4))

    def grad_fn(p):
        return jax.grad(lambda p: jnp.sum(apply(p, x) ** 2))(p)

    def update(state, params):
        return link.update(grad_fn(params), state, params, grad_fn=grad_fn)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = jax.jit(update).lower(link.init(params), params).compile()
    return [str(w.message) for w in caught], compiled


@on_cpu
@pytest.mark.parametrize(
    "wrap",
    [lambda f: f, jax.checkpoint, nested, scanned],
    ids=["plain", "checkpoint", "nested jit", "scan"],
)
def test_a_convolution_is_selected_on_cpu_with_one_warning(wrap):
    """The second gradient is outside any conditional, and the warning names the way out."""
    messages, compiled = decide_under_jit(wrap(convolution))
    (message,) = messages
    assert "40 times slower on CPU" in message
    assert "call the optimizer's update outside jit" in message
    assert " conditional(" not in compiled.as_text()


def product(params, x):
    return x.reshape(1, 32) @ params["kernel"].reshape(36, 1)[:32]


@on_cpu
@pytest.mark.parametrize(("apply", "warns"), [(convolution, True), (product, False)])
def test_the_hessian_products_of_a_convolution_are_unrolled_and_selected_on_cpu(apply, warns):
    """Those of matrix products are a loop, whose body counts once, under a conditional."""
    flops = []
    for power_iterations in (1, 11):
        link = sam_optax.eigen_sam(period=2, power_iterations=power_iterations)
        messages, compiled = decide_under_jit(apply, link)
        assert len(messages) == warns
        assert (" conditional(" in compiled.as_text()) != warns
        flops.append(compiled.cost_analysis()["flops"])
    assert (flops[1] > 2 * flops[0]) == warns


@on_cpu
def test_a_convolution_in_a_branch_of_the_callers_own_is_found():
    messages, _ = decide_under_jit(conditional_on(convolution))
    assert len(messages) == 1


@on_cpu
def test_the_selected_update_is_the_update_of_the_host():
    link = sam_optax.ae_looksam(total_steps=10, lambda_1=-1.0, lambda_2=1.0)
    _, compiled = decide_under_jit(convolution, link)
    params = {"kernel": jnp.linspace(-1.0, 1.0, 36).reshape(2, 2, 3, 3)}
    x = jnp.ones((1, 2, 4, 4))

    def grad_fn(p):
        return jax.grad(lambda p: jnp.sum(convolution(p, x) ** 2))(p)

    device, host, fired = link.init(params), link.init(params), []
    for scale in (1.0, 0.5, 0.2, 1.5, 1.0):
        params_t = optax.tree.scale(scale, params)
        _, device = compiled(device, params_t)
        _, host = link.update(grad_fn(params_t), host, params_t, grad_fn=grad_fn)
        fired.append(int(host.ascents))
    assert 0 < fired[-1] < 5
    for actual, expected in zip(jax.tree.leaves(device), jax.tree.leaves(host), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", ["ae_sam", "ae_looksam", "looksam"])
def test_matrix_products_are_decided_on_the_device_without_a_warning(policy):
    settings = {"period": 3} if policy == "looksam" else {"total_steps": 10}
    link = getattr(sam_optax, policy)(**settings)
    messages, compiled = decide_under_jit(product, link)
    assert messages == []
    assert " conditional(" in compiled.as_text()


def test_a_method_that_always_ascends_has_no_conditional_and_no_warning():
    messages, compiled = decide_under_jit(convolution, sam_optax.gsam())
    assert messages == []
    assert " conditional(" not in compiled.as_text()


def test_the_host_decision_on_a_convolution_does_not_warn():
    link = sam_optax.ae_sam(total_steps=10, lambda_1=math.inf, lambda_2=math.inf)
    params, x = {"kernel": jnp.ones((2, 2, 3, 3))}, jnp.ones((1, 2, 4, 4))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(convolution(p, x) ** 2)))
    state = link.init(params)
    for _ in range(3):  # warnings are errors here
        _, state = link.update(gradient(params), state, params, grad_fn=gradient)
    assert int(state.steps) == 3
    assert int(state.ascents) == 0
