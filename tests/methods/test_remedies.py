"""Each error of the package, and what it says to do instead: both are done."""

import ast
import functools
from pathlib import Path
import traceback

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax
from sam_optax import combine, perturb, schedules, sharpness_aware, start, when
from sam_optax.flax import TrainState, nnx_grad_fn

PACKAGE = Path(sam_optax.__file__).parent

W = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([1.0, 2.0])}
MASK = {"kernel": True, "bias": False}
SAM = sam_optax.sam(0.1)
AE_SAM, LOOKSAM = sam_optax.ae_sam(total_steps=9), sam_optax.looksam()
CHAIN = optax.chain(LOOKSAM, optax.sgd(0.1))
KEPT = sam_optax.keep_aux(SAM, jnp.ones(2))


def same(p):
    return p


def update(link, w=W, grads=None, state=None, **extra):
    """A step on a loss whose gradient is the parameters."""
    extra = {"grad_fn": same} | extra
    state = link.init(w) if state is None else state
    return link.update(w if grads is None else grads, state, w, **extra)


def without_grad_fn(link):
    return link.update(W, link.init(W), W)


def on_devices(function):
    """The function of local parameters on eight devices, each with rows of its own."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, none = jax.sharding.PartitionSpec("batch"), jax.sharding.PartitionSpec()
    mapped = jax.shard_map(
        lambda x: jax.tree.map(jnp.sum, function(x)), mesh=mesh, in_specs=rows, out_specs=none,
    )  # fmt: skip
    return jax.jit(mapped)(jnp.arange(8.0))


def seeds(link):
    """The states of two seeds at once."""
    return jax.vmap(lambda scale: link.init(optax.tree.scale(scale, W)))(jnp.ones(2))


def own_count():
    """A policy of the caller's that looks at no gradient."""
    return sam_optax.When(lambda params: (), lambda *args, step, **extra: (step > 2, ()), True)


def decided_by(policy):
    return sharpness_aware(perturb.ball(0.1), when=policy)


def averaged(local):
    def step(x):
        w = jnp.ones(2)
        w = jax.lax.pcast(w, "batch", to="varying") if local else w
        grads = jax.grad(lambda w: jnp.sum(w**2) * jnp.sum(x))(w)
        link = sam_optax.average("batch")
        return link.update(grads, link.init(w))[0]

    return lambda: on_devices(step)


def counted(total):
    """A step whose aux is a count of examples."""
    link = sam_optax.keep_aux(SAM, jnp.zeros([], jnp.int32))

    def step(x):
        def both(p):
            return (jnp.mean(p**2), total((x > 3).sum(dtype=jnp.int32))), p

        w = jnp.ones(2)
        return link.update(w, link.init(w), w, value_and_grad_fn=both)[0]

    return lambda: on_devices(step)


def decided(axis_name):
    def step(x):
        w = jax.lax.pcast(jnp.ones(2), "batch", to="varying")
        link = sam_optax.ae_sam(total_steps=9, axis_name=axis_name)
        state = link.init(jnp.ones(2))
        grad = jax.grad(lambda w: jnp.sum(w**2) * jnp.sum(x))
        whole = jax.sharding.PartitionSpec()
        updates, _ = link.update(grad(w), state, w, grad_fn=grad, param_specs=whole)
        return jax.lax.pmean(updates, "batch")

    return lambda: on_devices(step)


SPEC = jax.sharding.PartitionSpec
PIECES = {"kernel": SPEC("batch"), "bias": SPEC()}


def mapped(step, mesh, specs):
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(specs,), out_specs=specs))


def divided(link=SAM, specs=PIECES, **told):
    """A step on parameters that lie on eight devices as specs tell."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    w = {"kernel": jnp.arange(16.0).reshape(8, 2), "bias": jnp.ones(8)}

    def step(w):
        return link.update(w, link.init(w), w, grad_fn=same, **told)[0]

    return lambda: mapped(step, mesh, specs)(w)


def by_a_test(link=SAM, own=True, **told):
    """A step of what each device's test of its own part has chosen, or one for all."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    w = {"kernel": jnp.arange(16.0).reshape(8, 2), "bias": jnp.ones(8)}

    def step(w):
        test = jnp.isfinite(w["kernel"]).all()
        test = test if own else jax.lax.pmin(test.astype(int), "batch") > 0
        state = link.init(w)
        chosen = optax.tree.where(test, state, state)
        p = w if not told else {**w, "bias": jnp.where(test, w["bias"], 0.0)}
        updates = link.update(p, chosen, p, grad_fn=same, **told)[0]
        return {**updates, "bias": jax.lax.pmean(updates["bias"], "batch")}

    return lambda: mapped(step, mesh, PIECES)(w)


def kernels_made(inside):
    link = sam_optax.r_sam(kernels=start.kernel_axes())
    w, specs = {"bias": jnp.ones((8, 2))}, {"bias": SPEC("batch")}
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    state = link.init(w)

    def step(w):
        own = link.init(w) if inside else state
        return link.update(w, own, w, grad_fn=same, param_specs=specs)[0]

    return lambda: mapped(step, mesh, specs)(w)


def injected(**options):
    def run():
        link = optax.inject_hyperparams(sam_optax.lpf_sgd, **options)(gamma=0.1, samples=2)
        return update(link)

    return run


def selected(link=SAM, **extra):
    losses = {"example_loss_fn": lambda p: jnp.arange(4.0) * p["bias"].sum()}
    return lambda: update(
        sam_optax.select_examples(link, 0.5),
        **(losses | {"grad_fn": lambda p, indices: p} | extra),
    )


def complex_loss(p):
    return jnp.sum(jnp.abs(jax.lax.complex(p["re"], p["im"])) ** 2)


def eigen(kind, products="exact"):
    @kind
    def double(w):
        return 2 * w

    if kind is jax.custom_vjp:
        double.defvjp(lambda w: (2 * w, None), lambda _, t: (2 * t,))
    else:
        double.defjvp(lambda w, t: (2 * w[0], 2 * t[0]))
    return lambda: update(
        sam_optax.eigen_sam(products=products), jnp.ones(2), grad_fn=lambda w: double(w)
    )  # fmt: skip


def of_three(p):
    return jax.tree.map(lambda w: jnp.stack([w, w, w]), p)


def cast(dtype):
    return {**W, "bias": W["bias"].astype(dtype)}


TWO = optax.chain(sam_optax.msam(), sam_optax.msam())
KERNELS = start.kernel_axes(out_axis=0)
NAMED = {"theta": jnp.ones((2, 2))}
RADII = {"rho_max": 0.6, "rho_min": 0.2, "lr_min": 0.0}
RELATIVE = optax.cosine_decay_schedule(1.0, 100)
MASKED_BALL = optax.masked(perturb.ball(0.1), MASK)
ZERO = optax.masked(optax.set_to_zero(), {"kernel": False, "bias": True})
OTHER = {"kernel": jnp.ones((5, 5)), "bias": jnp.ones(5)}


def tuned(wrt):
    """A step of LoRA, with the gradient of other variables or of its own."""
    model = nnx.LoRA(3, 2, 4, base_module=nnx.Linear(3, 4, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, optax.chain(SAM, optax.sgd(0.1)), wrt=nnx.LoRAParam)

    def loss_fn(model):
        return jnp.mean(model(jnp.ones((2, 3))) ** 2)

    grads = nnx.grad(loss_fn, argnums=nnx.DiffState(0, nnx.LoRAParam))(model)
    optimizer.update(model, grads, grad_fn=nnx_grad_fn(loss_fn, model, wrt=wrt))
    return nnx.as_pure(nnx.state(model))


class WithStatistics(TrainState):
    batch_stats: jax.Array


STATE = WithStatistics.create(apply_fn=None, params=W, tx=SAM, batch_stats=jnp.ones(2))

# What is wrong, and what the message says to do in its place.
REMEDIES = {
    "average of what is averaged": (averaged(local=False), averaged(local=True)),
    "axis name": (lambda: sam_optax.average(0), lambda: sam_optax.average("batch")),
    "a number": (lambda: sam_optax.sam("0.1"), lambda: sam_optax.sam(lambda step: 0.1)),
    "32 bits": (lambda: sam_optax.sam(2**40), lambda: sam_optax.sam(float(2**40))),
    "interval": (lambda: sam_optax.sam(-0.1), lambda: sam_optax.sam(0.1)),
    "integer": (lambda: sam_optax.looksam(period=2.5), lambda: sam_optax.looksam(period=2)),
    "too large": (lambda: sam_optax.looksam(period=2**40), lambda: sam_optax.looksam(period=9)),
    "too small": (lambda: sam_optax.looksam(period=0), lambda: sam_optax.looksam(period=1)),
    "static": (injected(), injected(static_args=("samples",))),
    "choice": (
        lambda: sam_optax.msam(updates_at="point"),
        lambda: sam_optax.msam(updates_at="gradient_point"),
    ),
    "flag": (
        lambda: perturb.noisy_ball(0.1, normalize_gradient=1),
        lambda: perturb.noisy_ball(0.1, normalize_gradient=True),
    ),
    "one number": (lambda: sam_optax.sam(np.ones(2)), lambda: sam_optax.sam(np.ones(2)[0])),
    "a schedule out of range": (
        lambda: update(sam_optax.sam(optax.linear_schedule(-0.1, 0.1, 9))),
        lambda: update(
            sam_optax.sam(lambda t: jnp.clip(optax.linear_schedule(-0.1, 0.1, 9)(t), 0, 1))
        ),
    ),
    "a decision of its own on each device": (decided(None), decided("batch")),
    "the state of another optimizer": (
        lambda: update(SAM, state=optax.adam(0.1).init(W)),
        lambda: update(SAM, state=SAM.init(W)),
    ),
    "no parameters": (
        lambda: SAM.update(W, SAM.init(W), grad_fn=same),
        lambda: SAM.update(W, SAM.init(W), W, grad_fn=same),
    ),
    "no grad_fn": (lambda: without_grad_fn(SAM), lambda: update(SAM, grad_fn=same)),
    "a decision on nothing": (
        lambda: sharpness_aware(when=when.every(2)),
        lambda: sharpness_aware(perturb.ball(0.05), when=when.every(2)),
    ),
    "no perturbation": (
        lambda: sharpness_aware(perturb.ball),
        lambda: sharpness_aware(perturb.ball(0.05)),
    ),
    "another part": (
        lambda: sharpness_aware(perturb.ball(0.05), when=2),
        lambda: sharpness_aware(perturb.ball(0.05), when=when.every(2)),
    ),
    "no link to select for": (
        lambda: sam_optax.select_examples(sam_optax.sam, 0.5),
        lambda: sam_optax.select_examples(sam_optax.sam(), 0.5),
    ),
    "no method to select for": (selected(optax.sgd(0.1)), selected(sam_optax.sam())),
    "a method with a start": (
        selected(sam_optax.r_sam()),
        lambda: update(sam_optax.r_sam()),
    ),
    "a mean loss": (
        selected(example_loss_fn=lambda p: p["bias"].sum()),
        selected(example_loss_fn=lambda p: jnp.arange(4.0)),
    ),
    "no losses": (selected(example_loss_fn=None), selected()),
    "no indices": (selected(grad_fn=same), selected(grad_fn=lambda params, indices: params)),
    "no indices, whole batch": (
        selected(grad_fn=same),
        lambda: update(sam_optax.select_examples(SAM, 1)),
    ),
    "a masked perturbation": (
        lambda: update(sharpness_aware(MASKED_BALL)),
        lambda: update(sharpness_aware(perturb.only(MASK, perturb.ball(0.1)))),
    ),
    "a masked perturbation, set to zero": (
        lambda: update(sharpness_aware(MASKED_BALL)),
        lambda: update(sharpness_aware(optax.chain(MASKED_BALL, ZERO))),
    ),
    "value and gradient": (
        lambda: update(SAM, grad_fn=jax.value_and_grad(lambda p: p["bias"].sum())),
        lambda: update(SAM, grad_fn=jax.grad(lambda p: p["bias"].sum())),
    ),
    "another tree": (
        lambda: update(SAM, grads={"kernel": W["kernel"]}),
        lambda: update(SAM, grads=jax.grad(lambda p: p["bias"].sum())(W)),
    ),
    "a forgotten mean": (
        lambda: update(SAM, grad_fn=of_three),
        lambda: update(SAM, grad_fn=lambda p: jax.tree.map(lambda g: g.mean(0), of_three(p))),
    ),
    "no gradient": (
        lambda: update(SAM, grads={**W, "bias": None}),
        lambda: update(sam_optax.masked(SAM, MASK), grads={**W, "bias": None}),
    ),
    "no gradient, of all": (
        lambda: update(SAM, grads={**W, "bias": None}),
        lambda: update(SAM, grads=jax.grad(lambda p: p["bias"].sum())(W)),
    ),
    "an integer gradient": (
        lambda: update(SAM, grads=cast(int)),
        lambda: update(SAM, grads=cast(jnp.bfloat16)),
    ),
    "kernels that are none": (
        lambda: sam_optax.r_sam(kernels=0),
        lambda: update(sam_optax.r_sam(kernels=KERNELS)),
    ),
    "kernels of another tree": (
        lambda: update(sam_optax.r_sam(kernels={"other": KERNELS})),
        lambda: update(sam_optax.r_sam(kernels={"kernel": KERNELS, "bias": None})),
    ),
    "axes that a leaf lacks": (
        lambda: update(sam_optax.r_sam(kernels=lambda path, w: (2,))),
        lambda: update(sam_optax.r_sam(kernels=lambda path, w: (-1,))),
    ),
    "no link to mask": (
        lambda: sam_optax.masked(sam_optax.sam, MASK),
        lambda: update(sam_optax.masked(sam_optax.sam(), MASK)),
    ),
    "masked, a state without": (
        lambda: update(sam_optax.masked(SAM, MASK), state=SAM.init(W)),
        lambda: update(sam_optax.masked(SAM, MASK), state=sam_optax.masked(SAM, MASK).init(W)),
    ),
    "masked, a state of another mask": (
        lambda: update(sam_optax.masked(SAM, MASK), state=sam_optax.masked(SAM, True).init(W)),
        lambda: update(sam_optax.masked(SAM, MASK), state=sam_optax.masked(SAM, MASK).init(W)),
    ),
    "masked, no parameters": (
        lambda: sam_optax.masked(SAM, MASK).update(W, sam_optax.masked(SAM, MASK).init(W)),
        lambda: update(sam_optax.masked(SAM, MASK)),
    ),
    "optax.masked around a link": (
        lambda: update(optax.masked(SAM, MASK)),
        lambda: update(sam_optax.masked(SAM, MASK)),
    ),
    "optax.partition around links": (
        lambda: update(optax.partition({"a": SAM, "b": SAM}, {"kernel": "a", "bias": "b"})),
        lambda: update(sharpness_aware(optax.partition(
            {"a": perturb.ball(0.1), "b": perturb.ball(0.2)}, {"kernel": "a", "bias": "b"}))),
    ),
    "accumulation around a second gradient": (
        lambda: update(optax.MultiSteps(SAM, 2).gradient_transformation()),
        lambda: update(
            optax.chain(SAM, optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation())
        ),
    ),
    "complex parameters": (
        lambda: update(SAM, {"z": jnp.ones(2, complex)}),
        lambda: update(SAM, {"re": jnp.ones(2), "im": jnp.ones(2)}, grad_fn=jax.grad(complex_loss)),
    ),
    "a part of optax.masked": (
        lambda: update(sharpness_aware(optax.masked(perturb.ball(0.1), MASK))),
        lambda: update(sharpness_aware(perturb.only(MASK, perturb.ball(0.1)))),
    ),
    "the gradient as an offset": (
        lambda: update(sharpness_aware(optax.partition(
            {"a": perturb.ball(0.1), "b": optax.identity()}, {"kernel": "a", "bias": "b"}))),
        lambda: update(sharpness_aware(optax.partition(
            {"a": perturb.ball(0.1), "b": optax.scale(1.0)}, {"kernel": "a", "bias": "b"}))),
    ),
    "no mask": (
        lambda: sam_optax.masked(SAM, None),
        lambda: update(sam_optax.masked(SAM, True)),
    ),
    "updates of optax.masked": (
        lambda: update(SAM, grads={"kernel": W["kernel"], "bias": optax.MaskedNode()}),
        lambda: update(sam_optax.masked(SAM, MASK), grads={**W, "bias": optax.MaskedNode()}),
    ),
    "a mask of numbers": (
        lambda: sam_optax.masked(SAM, {"kernel": 1, "bias": 0}),
        lambda: sam_optax.masked(SAM, {"kernel": True, "bias": False}),
    ),
    "a mask of another tree": (
        lambda: update(sam_optax.masked(SAM, {"other": True})),
        lambda: update(sam_optax.masked(SAM, lambda params: MASK)),
    ),
    "two gradient points": (
        lambda: sam_optax.gradient_point(TWO.init(W), W),
        lambda: sam_optax.gradient_point(TWO.init(W)[0], W),
    ),
    "a key": (lambda: sam_optax.ss_sam(key="0"), lambda: sam_optax.ss_sam(key=jax.random.key(0))),
    "several keys": (
        lambda: sam_optax.ss_sam(key=jax.random.split(jax.random.key(0))),
        lambda: sam_optax.ss_sam(key=jax.random.split(jax.random.key(0))[0]),
    ),
    "a long key": (lambda: sam_optax.ss_sam(key=2**80), lambda: sam_optax.ss_sam(key=2**60)),
    "a quantity that is not kept": (
        lambda: sam_optax.read(SAM.init(W), "v"),
        lambda: sam_optax.read(SAM.init(W), "ascents"),
    ),
    "no name of a quantity": (
        lambda: sam_optax.read(SAM.init(W), 0),
        lambda: sam_optax.read(SAM.init(W), "ascents"),
    ),
    "two quantities": (
        lambda: sam_optax.read(TWO.init(W), "rho"),
        lambda: sam_optax.read(TWO.init(W)[0], "rho"),
    ),
    "no method to read": (
        lambda: sam_optax.read(optax.sgd(0.1).init(W), "v"),
        lambda: sam_optax.read(optax.chain(sam_optax.looksam(), optax.sgd(0.1)).init(W), "v"),
    ),
    "the state of another method": (
        lambda: update(SAM, state=sam_optax.looksam().init(W)),
        lambda: update(SAM, state=SAM.init(W)),
    ),
    "the state of other parameters": (
        lambda: update(sam_optax.looksam(), state=sam_optax.looksam().init(OTHER)),
        lambda: update(sam_optax.looksam(), state=sam_optax.looksam().init(W)),
    ),
    "no base": (
        lambda: combine.weigh(0.5, optax.trace),
        lambda: combine.weigh(0.5, optax.trace(0.9)),
    ),
    "a base with its minus": (
        lambda: update(sam_optax.wsam(optax.sgd(0.1))),
        lambda: update(sam_optax.wsam(optax.chain(optax.sgd(0.1), optax.scale(-1)))),
    ),
    "nearly a field": (
        lambda: STATE.apply_gradients(grads=W, grad_fn=same, batch_stat=jnp.zeros(2)),
        lambda: STATE.apply_gradients(grads=W, grad_fn=same, batch_stats=jnp.zeros(2)),
    ),
    "another wrt": (lambda: tuned(nnx.Param), lambda: tuned(nnx.LoRAParam)),
    "None for a base": (lambda: sam_optax.wsam(None), lambda: sam_optax.coupled_wsam()),
    "a function of the tree": (
        lambda: update(sam_optax.asam(weights=lambda params: MASK)),
        lambda: update(sam_optax.asam(weights=MASK)),
    ),
    "names that say nothing": (
        lambda: update(sam_optax.asam(), NAMED),
        lambda: update(sam_optax.asam(weights=lambda path: True), NAMED),
    ),
    "names that say nothing, a tree": (
        lambda: update(sam_optax.asam(), NAMED),
        lambda: update(sam_optax.asam(weights={"theta": True}), NAMED),
    ),
    "nothing to perturb only": (
        lambda: perturb.only(MASK, perturb.ball),
        lambda: perturb.only(MASK, perturb.ball(0.05)),
    ),
    "a name for weights": (
        lambda: sam_optax.asam(weights="kernel"),
        lambda: update(sam_optax.asam(weights=lambda path: "kernel" in jax.tree_util.keystr(path))),
    ),
    "weights of another tree": (
        lambda: update(sam_optax.asam(weights={"other": True})),
        lambda: update(sam_optax.asam(weights={"kernel": True, "bias": False})),
    ),
    "a custom_vjp in the way": (
        eigen(jax.custom_vjp),
        lambda: (eigen(jax.custom_vjp, "differences")(), eigen(jax.custom_jvp)())),
    "an eigenvector of a group": (
        lambda: update(sharpness_aware(optax.partition(
            {"a": perturb.eigen_ball(0.1), "b": perturb.ball(0.2)}, {"kernel": "a", "bias": "b"}))),
        lambda: update(sharpness_aware(perturb.only(MASK, perturb.eigen_ball(0.1)))),
    ),
    "a constant learning rate": (
        lambda: schedules.rho_from_learning_rate(0.1, lr_max=0.1, **RADII),
        lambda: schedules.rho_from_learning_rate(optax.constant_schedule(0.1), lr_max=0.1, **RADII),
    ),
    "bounds in the wrong order": (
        lambda: schedules.rho_from_learning_rate(RELATIVE, lr_max=-1.0, **RADII),
        lambda: schedules.rho_from_learning_rate(RELATIVE, lr_max=1.0, **RADII),
    ),
    "opposite infinities": (
        lambda: schedules.linear_threshold(np.inf, -np.inf, 9),
        lambda: schedules.linear_threshold(np.inf, np.inf, 9),
    ),
    "a relative learning rate": (
        lambda: schedules.rho_from_learning_rate(RELATIVE, lr_max=0.1, **RADII),
        lambda: schedules.rho_from_learning_rate(
            lambda step: 0.1 * RELATIVE(step), lr_max=0.1, **RADII),
    ),
    "a relative learning rate, unclamped": (
        lambda: schedules.rho_from_learning_rate(RELATIVE, lr_max=0.1, **RADII),
        lambda: schedules.rho_from_learning_rate(RELATIVE, lr_max=0.1, clamp=False, **RADII),
    ),
    "parts of a model, or models": (
        divided(specs=SPEC("batch")), divided(specs=SPEC("batch"), param_specs=SPEC("batch"))),
    "models, or parts of one": (
        divided(specs=SPEC("batch")), divided(specs=SPEC("batch"), param_specs=SPEC())),
    "a decision by a test": (
        by_a_test(sam_optax.ae_sam(total_steps=9)),
        by_a_test(sam_optax.ae_sam(total_steps=9), own=False)),
    "a parameter by a test": (
        by_a_test(param_specs=PIECES), by_a_test(own=False, param_specs=PIECES)),
    "kernels of a part": (kernels_made(inside=True), kernels_made(inside=False)),
    "which axis of a kernel": (
        divided(sam_optax.r_sam()), divided(sam_optax.r_sam(), param_specs=PIECES)),
    "a sharding": (
        divided(param_specs=jax.tree.map(lambda x: x.sharding, jnp.ones(2))),
        divided(param_specs=PIECES)),
    "a leaf without spec": (
        divided(param_specs={"kernel": SPEC("batch")}),
        divided(param_specs={"kernel": SPEC("batch"), "bias": SPEC()})),
    "a spec of more axes": (
        divided(param_specs=SPEC(None, "batch")), divided(param_specs=PIECES)),
    "a spec of what is whole": (
        divided(param_specs=SPEC("batch")), divided(param_specs=PIECES)),
    "a spec of a whole array": (
        lambda: update(SAM, param_specs=SPEC("batch")), lambda: update(SAM)),
    "no axis": (lambda: start.kernel_axes("out"), lambda: start.kernel_axes(-1)),
    "no axis of several": (lambda: start.kernel_axes((0, "in")), lambda: start.kernel_axes((0, 1))),
    "no value beside the gradient": (
        lambda: update(SAM, value_and_grad_fn=same), lambda: update(SAM, grad_fn=same)),
    "a value for each example": (
        lambda: update(SAM, value_and_grad_fn=lambda p: (p["bias"], p)),
        lambda: update(SAM, value_and_grad_fn=lambda p: ((jnp.mean(p["bias"]), p["bias"]), p))),
    "no aux to keep": (
        lambda: update(KEPT, value_and_grad_fn=lambda p: (jnp.ones(()), p)),
        lambda: update(KEPT, value_and_grad_fn=lambda p: ((jnp.ones(()), jnp.ones(2)), p))),
    "aux of each device": (
        counted(lambda hits: hits), counted(lambda hits: jax.lax.psum(hits, "batch"))),
    "value of no number": (
        lambda: update(SAM, value=jnp.ones(2), value_and_grad_fn=lambda p: (jnp.ones(()), p)),
        lambda: update(SAM, value=jnp.ones(()), value_and_grad_fn=lambda p: (jnp.ones(()), p))),
    "a combination without the rest": (
        lambda: combine.stateless(lambda first, second: second),
        lambda: combine.stateless(lambda first, second, params, **extra: second)),
    "aux of no link": (
        lambda: sam_optax.keep_aux("sam", jnp.ones(2)),
        lambda: sam_optax.keep_aux(sam_optax.sam(), jnp.ones(2))),
    "aux of nothing": (
        lambda: sam_optax.keep_aux(SAM, ()),
        lambda: sam_optax.keep_aux(SAM, jax.eval_shape(lambda: jnp.ones(2)))),
    "aux of a chain": (
        lambda: sam_optax.keep_aux(optax.chain(SAM), jnp.ones(2)).init(W),
        lambda: (optax.chain(KEPT, optax.sgd(0.1)).init(W), sam_optax.masked(KEPT, MASK).init(W))),
    "a combination that is none": (
        lambda: combine.stateless(0.5), lambda: combine.stateless(lambda first, second, w, **x: w)),
    "a combination of one gradient": (
        lambda: sharpness_aware(perturb.ball(0.1), combine=combine.newton_hessian()),
        lambda: (sharpness_aware(start=start.hessian(9.0), combine=combine.newton_hessian()),
                 sharpness_aware(perturb.ball(0.1), combine=combine.perturbed()))),
    "a window that ends before it begins": (
        lambda: when.between(5, 5), lambda: (when.between(5, 6), when.between(5, None))),
    "decisions by gradients": (
        lambda: sam_optax.decisions(AE_SAM, AE_SAM.init(W), 5),
        lambda: [
            update(AE_SAM, fire=True),
            sam_optax.decisions(LOOKSAM, LOOKSAM.init(W), 5),
            sam_optax.decisions(decided_by(own_count()), decided_by(own_count()).init(W), 5),
        ],
    ),
    "decisions of a chain": (
        lambda: sam_optax.decisions(CHAIN, CHAIN.init(W), 5),
        lambda: sam_optax.decisions(LOOKSAM, CHAIN.init(W), 5),
    ),
    "decisions of two": (
        lambda: sam_optax.decisions(LOOKSAM, (CHAIN.init(W), LOOKSAM.init(W)), 5),
        lambda: sam_optax.decisions(LOOKSAM, CHAIN.init(W)[0], 5),
    ),
    "decisions of another policy": (
        lambda: sam_optax.decisions(sam_optax.ss_sam(), LOOKSAM.init(W), 5),
        lambda: sam_optax.decisions(sam_optax.ss_sam(), sam_optax.ss_sam().init(W), 5),
    ),
    "decisions inside jit": (
        lambda: jax.jit(lambda state: sam_optax.decisions(LOOKSAM, state, 5))(LOOKSAM.init(W)),
        lambda: [
            jax.jit(functools.partial(update, LOOKSAM, fire=bool(fire)))()[0]
            for fire in sam_optax.decisions(LOOKSAM, LOOKSAM.init(W), 2)
        ],
    ),
    "decisions of several seeds": (
        lambda: sam_optax.decisions(LOOKSAM, seeds(LOOKSAM), 5),
        lambda: sam_optax.decisions(
            LOOKSAM, jax.tree.map(lambda leaf: leaf[0], seeds(LOOKSAM)), 5
        ),
    ),
    "a traced decision": (
        lambda: jax.jit(lambda fire: update(LOOKSAM, fire=fire)[0])(True),
        lambda: jax.jit(lambda fire: update(LOOKSAM, fire=fire)[0], static_argnames="fire")(
            fire=bool(jnp.array(True))
        ),
    ),
    "no policy": (when.all_of, lambda: when.all_of(when.every(5), when.between(0, 900))),
    "policies in a list": (
        lambda: when.any_of([when.every(5), when.between(0, 9)]),
        lambda: when.any_of(when.every(5), when.between(0, 9))),
    "no precision at all": (
        lambda: start.precision(9.0, weight_decay=0, damping=0),
        lambda: start.precision(9.0, weight_decay=0, damping=0.1)),
    "nothing learned to divide by": (
        lambda: update(sharpness_aware(perturb.over_precision(0.1)), grad_fn=same),
        lambda: (
            update(
                sharpness_aware(perturb.over_precision(0.1), start=start.precision(9.0)),
                grad_fn=same),
            update(
                sharpness_aware(start=start.hessian(9.0), combine=combine.newton_hessian()),
                grad_fn=same))),
    "no posterior": (
        lambda: sam_optax.posterior_sample(0, SAM.init(W), W),
        lambda: sam_optax.posterior_sample(0, sam_optax.ivon(9.0).init(W), W)),
}  # fmt: skip


@functools.cache
def raised_at(error):
    """The file of the package and the line that raise."""
    wrong, _ = REMEDIES[error]
    with pytest.raises((TypeError, ValueError, KeyError)) as raised:
        wrong()
    frame = traceback.extract_tb(raised.value.__traceback__)[-1]
    return Path(frame.filename), frame.lineno


@pytest.mark.parametrize("error", REMEDIES)
def test_what_an_error_says_to_do_works(error):
    _, right = REMEDIES[error]
    path, _ = raised_at(error)
    assert path.is_relative_to(PACKAGE)
    result = right()
    for leaf in jax.tree.leaves(result):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.isfinite(leaf).all()


def test_there_is_no_other_error():
    """Every raise of the package that has a message is among them."""
    raised = {raised_at(error) for error in REMEDIES}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                lines = range(node.lineno, node.end_lineno + 1)
                assert any((path, line) in raised for line in lines), (path.name, node.lineno)
