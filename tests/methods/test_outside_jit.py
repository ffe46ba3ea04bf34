"""Outside jit a link runs the caller's Python at each update, as Optax does, and no more of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax
from sam_optax import _tree, combine, perturb, schedules, when

W = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
LENGTH = 5.0


def identity(p):
    return p


def offsets(link, steps=4, before_step=lambda t: None, **extra):
    """‖d − g‖ / ‖ε‖ of a unit radius at each step: the radius in force, where grad_fn is w ↦ w."""
    state, radii = link.init(W), []
    for t in range(steps):
        before_step(t)
        direction, state = link.update(W, state, W, grad_fn=identity, **extra)
        radii.append(float(optax.tree.norm(optax.tree.sub(direction, W))))
    return radii


def from_table(step):
    return np.interp(step, [0, 2], [0.5, 2.5])


def by_if(step):
    return 0.25 if step < 2 else jnp.float32(0.75)


SCHEDULES = {
    "by if": (by_if, [0.25, 0.25, 0.75, 0.75]),
    "by int": (lambda step: [0.5, 1.0, 1.5, 2.0, 2.5][int(step)], [0.5, 1.0, 1.5, 2.0]),
    "by np.interp": (from_table, [0.5, 1.5, 2.5, 2.5]),
    "by format": (lambda step: float(f"0.{step}"), [0.0, 0.1, 0.2, 0.3]),
    "of Optax's, over a function": (
        optax.join_schedules([by_if, lambda step: 2.0], [3]),
        [0.25, 0.25, 0.75, 2.0],
    ),
    "partial": (functools.partial(lambda x, step: x if step else 0.5, 1.5), [0.5, 1.5, 1.5, 1.5]),
    "of ours, over a function": (
        schedules.rho_from_learning_rate(
            by_if, rho_max=0.75, rho_min=0.25, lr_max=0.75, lr_min=0.25
        ),
        [0.25, 0.25, 0.75, 0.75],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_may_be_any_python(name):
    schedule, expected = SCHEDULES[name]
    np.testing.assert_allclose(offsets(sam_optax.sam(schedule)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_the_coming_step_may_be_any_python(name):
    """The starts fix the offset of a step when the step before it ends; step 0 has none."""
    schedule, expected = SCHEDULES[name]
    link = sam_optax.s2_sam(schedule)
    np.testing.assert_allclose(offsets(link)[1:], expected[1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["a number", "a class", "an object"])
def test_a_schedule_follows_what_it_reads(kind):
    class Radius:
        value = 0.0

        def __call__(self, step):
            return self.value

    held = Radius()
    radius = {"a number": lambda step: held.value, "an object": held}.get(kind)
    radius = radius or (lambda step: Radius.value)

    def before_step(t):
        (Radius if kind == "a class" else held).value = 0.5 * t

    for link in (sam_optax.sam(radius), sam_optax.vasso(radius, theta=1.0)):
        np.testing.assert_allclose(
            offsets(link, before_step=before_step), [0.0, 0.5, 1.0, 1.5], atol=1e-6
        )


def test_the_schedules_of_a_piece_keep_their_places():
    """Two of them in one part, whose values differ at each step."""
    link = sam_optax.le_sam(lambda t: 5.0 * (int(t) + 1), rho_max=lambda t: [9, 1, 9, 2][int(t)])
    np.testing.assert_allclose(offsets(link), [1.0, 1.0, 3.0, 2.0], rtol=1e-5)


def test_a_piece_without_a_second_gradient_asks_its_own_schedules():
    """Where the geometry needs grad_fn, and so a skipped step is not compiled as one."""
    link = sam_optax.sharpness_aware(
        perturb.eigen_ball(0.1, period=9),
        when=when.every(2),
        combine=combine.reuse(lambda t: 0.5 if t else 1.0),
    )
    plain = sam_optax.sharpness_aware(
        perturb.eigen_ball(0.1, period=9), when=when.every(2), combine=combine.reuse(0.5)
    )

    def grad_fn(p):
        return jax.tree.map(lambda leaf: leaf**2 + 1, p)

    states = [link.init(W), plain.init(W)]
    for _ in range(4):
        (d, states[0]), (expected, states[1]) = (
            tx.update(W, state, W, grad_fn=grad_fn)
            for tx, state in zip((link, plain), states, strict=True)
        )
        np.testing.assert_allclose(d["a"], expected["a"], rtol=1e-5)


def test_a_schedule_is_called_once_a_step_with_the_step():
    """And not to find out what it is: it may have a side effect."""
    for make in (sam_optax.sam, lambda rho: sam_optax.ae_sam(rho, total_steps=9)):
        steps = []

        def radius(step, steps=steps):
            assert not isinstance(step, jax.core.Tracer)
            steps.append(int(step))
            return 0.1

        offsets(make(radius))
        assert steps == [0, 1, 2, 3]


def test_a_weight_of_one_divides_by_zero_nowhere_but_in_its_own_step():
    """What a piece is traced with to find its schedules is no value that could fail."""
    radii = offsets(sam_optax.coupled_wsam(rho=1.0, gamma=lambda t: 0.5 if t >= 0 else 1.0))
    np.testing.assert_allclose(radii, 1.0, rtol=1e-5)


# Code of the caller's in the parts.


STRANGE = [{"verbose": True}, {"name": "a string"}, {"nothing": None}, {"thing": object()}]


# What the engine hands to parts besides.
ENGINE = ("grad_fn", "offset", "epsilon", "second_value", "slots", "first")


def foreign_parts(note):
    """A method of four parts of the caller's, each of which tells what it got."""

    def seen(result):
        def call(*args, step, **extra):
            extra = {name: value for name, value in extra.items() if name not in ENGINE}
            if "verbose" in extra:
                assert extra["verbose"]
            note(bool(step >= 0), extra)
            return result(*args)

        return call

    return sam_optax.sharpness_aware(
        optax.GradientTransformationExtraArgs(optax.init_empty_state, seen(lambda g, s, p: (g, s))),
        start=sam_optax.Start(optax.init_empty_state, seen(lambda d, s, p: s)),
        when=sam_optax.When(optax.init_empty_state, seen(lambda g, s, p: (True, s))),
        combine=sam_optax.Combine(optax.init_empty_state, seen(lambda g, h, s, p: (h, s)), None),
    )


@pytest.mark.parametrize("extra", STRANGE, ids=lambda extra: next(iter(extra)))
def test_a_part_of_the_callers_gets_the_extra_arguments_as_they_are(extra):
    got = []
    offsets(foreign_parts(lambda _, extra: got.append(extra)), **extra)
    assert got == [extra] * 16


@pytest.mark.parametrize("extra", STRANGE, ids=lambda extra: next(iter(extra)))
def test_any_extra_argument_leaves_a_method_as_it_is(extra):
    for link in (sam_optax.sam(0.5), sam_optax.wsam(optax.trace(0.9), 0.5, 0.5)):
        np.testing.assert_array_equal(offsets(link, **extra)[0], offsets(link)[0])


HOLDERS = {
    "a transformation": lambda f: sam_optax.sharpness_aware(
        optax.stateless(lambda g, p: optax.tree.scale(f() / LENGTH, g))
    ),
    "a transformation in a chain": lambda f: sam_optax.sharpness_aware(
        optax.chain(perturb.ball(1.0), optax.stateless(lambda g, p: optax.tree.scale(f(), g)))
    ),
    "a schedule of Optax's": lambda f: sam_optax.sharpness_aware(
        optax.chain(perturb.ball(1.0), optax.scale_by_schedule(lambda t: f()))
    ),
    "an injected schedule": lambda f: sam_optax.sharpness_aware(
        optax.inject_hyperparams(perturb.ball)(lambda t: f())
    ),
    "a wrapped part": lambda f: sam_optax.sharpness_aware(wrapped(perturb.ball(1.0), f)),
    "a base": lambda f: sam_optax.wsam(
        optax.stateless(lambda g, p: optax.tree.scale(1 + f() / LENGTH, g)), 0.0, 0.0
    ),
    "a base in a chain": lambda f: sam_optax.wsam(
        optax.chain(optax.identity(), optax.scale_by_schedule(lambda t: 1 + f() / LENGTH)), 0.0, 0.0
    ),
    "weights": lambda f: sam_optax.sharpness_aware(
        optax.chain(
            perturb.adaptive_ball(1.0, 0.0, lambda path: bool(f() < 0)),
            optax.stateless(lambda g, p: optax.tree.scale(f(), g)),
        )
    ),
    "a combination": lambda f: sam_optax.sharpness_aware(
        perturb.ball(0.0),
        combine=sam_optax.Combine(
            optax.init_empty_state,
            lambda g, h, s, p, **extra: (optax.tree.scale(1 + f() / LENGTH, h), s),
            None,
        ),
    ),
}


def wrapped(part, f):
    """A part of ours as a decorator wraps it, with all that functools copies."""

    @functools.wraps(part.update)
    def update(*args, **extra):
        epsilon, state = part.update(*args, **extra)
        return optax.tree.scale(f(), epsilon), state

    return optax.GradientTransformationExtraArgs(part.init, update)


@pytest.mark.parametrize("name", HOLDERS)
def test_code_of_the_callers_follows_what_it_reads(name):
    held = [0.0]

    def before_step(t):
        held[0] = 0.5 * t

    link = HOLDERS[name](lambda: held[0])
    np.testing.assert_allclose(
        offsets(link, before_step=before_step), [0.0, 0.5, 1.0, 1.5], rtol=1e-5, atol=1e-6
    )


def test_a_choice_of_weights_follows_what_it_reads():
    chosen = []
    link = sam_optax.asam(rho=1.0, eta=0.0, weights=lambda path: path[-1].key in chosen)
    state = link.init(W)
    directions = []
    for names in ([], [], ["a"]):
        chosen[:] = names
        direction, state = link.update(W, state, W, grad_fn=identity)
        directions.append(direction["a"][0])
    assert directions[0] == directions[1] != directions[2]


def test_a_policy_of_the_callers_decides_in_python():
    def update(first, state, params, *, step, **extra):
        return int(step) in (1, 2), state

    link = sam_optax.sharpness_aware(
        perturb.ball(0.5), when=sam_optax.When(optax.init_empty_state, update)
    )
    np.testing.assert_allclose(offsets(link), [0.0, 0.5, 0.5, 0.0], rtol=1e-5)


# What is compiled.


@pytest.fixture
def compiled(monkeypatch):
    """Whether each norm of a step was taken in a compiled piece."""
    seen = []
    towards = _tree.towards

    def spy(a, length):
        seen.append(isinstance(jax.tree.leaves(a)[0], jax.core.Tracer))
        return towards(a, length)

    monkeypatch.setattr(_tree, "towards", spy)
    return seen


OURS = {
    "sam": sam_optax.sam,
    "a schedule": lambda: sam_optax.sam(by_if),
    "vasso": sam_optax.vasso,
    "friendly_sam": lambda: sam_optax.friendly_sam(sigma=by_if),
    "esam by tensor": lambda: sam_optax.esam(mask="tensor", gamma=1),
    "wsam": lambda: sam_optax.wsam(optax.chain(optax.trace(0.9), optax.add_decayed_weights(1e-3))),
    "a chain of the caller's": lambda: sam_optax.sharpness_aware(
        optax.chain(optax.masked(optax.set_to_zero(), {"a": True, "b": False}), perturb.ball(0.1))
    ),
    "a policy": lambda: sam_optax.sharpness_aware(perturb.ball(0.1), when=when.adaptive(by_if)),
    "a mask": lambda: sam_optax.asam(weights={"a": True, "b": False}),
}


@pytest.mark.parametrize("name", OURS)
def test_parts_of_ours_and_of_optax_are_compiled(name, compiled):
    """From the first update on, and traced no more than to find the schedules and to compile."""
    link = OURS[name]()
    state = link.init(W)
    _, state = link.update(W, state, W, grad_fn=identity)
    assert compiled
    assert all(compiled)
    compiled.clear()
    _, state = link.update(W, state, W, grad_fn=identity)
    link.update(W, state, W, grad_fn=identity)
    assert len(compiled) <= 1  # where a schedule gives first a number, and then an array


def test_parts_of_ours_beside_one_of_the_callers_are_compiled(compiled):
    policy = sam_optax.When(optax.init_empty_state, lambda g, s, p, **extra: (False, s))
    link = sam_optax.sharpness_aware(perturb.ball(0.1), when=policy, combine=combine.reuse(0.1))
    link.update(W, link.init(W), W, grad_fn=identity)
    assert compiled
    assert all(compiled)


def test_inside_jit_a_schedule_is_traced():
    def schedule(step):
        assert isinstance(step, jax.core.Tracer)
        return 0.5 * step

    link = sam_optax.sam(schedule)
    update = jax.jit(lambda state: link.update(W, state, W, grad_fn=identity))
    direction, _ = update(link.init(W)._replace(steps=jnp.int32(2)))
    assert float(optax.tree.norm(optax.tree.sub(direction, W))) == pytest.approx(1.0)
