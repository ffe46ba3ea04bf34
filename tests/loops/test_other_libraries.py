"""The loops of other libraries on docs/other_libraries.md: they run, and make the steps by hand."""

import doctest
import functools
import importlib
from pathlib import Path
import re
import types

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax

pytestmark = [
    pytest.mark.neighbours,
    # At import: true, and told on the page.
    pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning"),
]

PAGE = Path(__file__).parents[2] / "docs" / "other_libraries.md"
PREAMBLE, *SECTIONS = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
SECTIONS = {section.partition("\n")[0]: section for section in SECTIONS}
MODULES = {
    "Optimistix": "optimistix",
    "JAXopt": "jaxopt",
    "NumPyro": "numpyro",
    "Keras": "keras",
    "Haiku": "haiku",
}
STEPS, RATE, MOMENTUM = 7, 0.1, 0.9
FLOAT32 = 5e-6  # in which Keras normalises, whatever the dtype of the layer


@pytest.fixture
def library(monkeypatch, tmp_path_factory):
    """Imports the library of a section, or skips."""

    def library(section):
        monkeypatch.setenv("KERAS_BACKEND", "jax")
        # At import Keras writes a file of settings into the home folder.
        monkeypatch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        reason = f"{section} comes with the extra neighbours"
        module = pytest.importorskip(MODULES[section], reason=reason)
        if section == "Keras" and module.backend.backend() != "jax":
            pytest.skip("Keras was imported with another backend")
        return module

    return library


def run(section):
    """The names that a section leaves behind, its blocks having run as written."""
    text = PREAMBLE + SECTIONS[section]
    test = doctest.DocTestParser().get_doctest(text, {}, section, str(PAGE), 0)
    report = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)
    return test.globs


@functools.cache
def in_float64(section):
    """The names of a section that ran with float64."""
    if section == "Keras":
        importlib.import_module("keras").config.set_dtype_policy("float64")
    return types.SimpleNamespace(**run(section))


@pytest.fixture
def page(library, x64):
    """The names of a section, in float64."""

    def page(section):
        library(section)
        return in_float64(section)

    return page


@pytest.mark.parametrize("section", SECTIONS)
def test_the_section_runs(library, section):
    library(section)
    run(section)


# The methods by hand: a step's direction, of its gradient as a function of the flat parameters.


def unit(g):
    return g / max(np.linalg.norm(g), 1e-300)


def sam(w, gradient, t, state):
    del t
    return gradient(w + 0.1 * unit(gradient(w))), state


def looksam(w, gradient, t, state):
    g = gradient(w)
    if t % 3 == 0:
        second = gradient(w + 0.1 * unit(g))
        return second, second - (second @ g) / (g @ g) * g
    return g + 0.7 * np.linalg.norm(g) * unit(state), state


def msam(w, gradient, t, state):
    del t
    d = gradient(w - 0.3 * unit(state))
    return d, MOMENTUM * state + d


HAND = {"sam": sam, "looksam": looksam, "msam": msam}
LINKS = {
    "sam": lambda: sam_optax.sam(0.1),
    "looksam": lambda: sam_optax.looksam(0.1, alpha=0.7, period=3),
    "msam": lambda: sam_optax.msam(0.3, decay=MOMENTUM),
}
ASCENTS = {"sam": STEPS, "looksam": 3, "msam": 0}
each_method = pytest.mark.parametrize("method", HAND)


def optimizer(method):
    return optax.chain(LINKS[method](), optax.sgd(RATE, momentum=MOMENTUM))


def by_hand(method, params, gradient_at):
    """The flat parameters after the last step; gradient_at(t, params) is the gradient of step t."""
    w, unravel = ravel_pytree(params)
    w = begin = np.asarray(w)
    assert w.dtype == np.float64
    state = velocity = np.zeros_like(w)
    for t in range(STEPS):
        at = gradient_at(t, unravel(w))
        direction, state = HAND[method](w, lambda w, at=at: flat(at(unravel(w))), t, state)
        velocity = MOMENTUM * velocity + direction
        w = w - RATE * velocity
    assert np.linalg.norm(w - begin) > 0.1
    return w


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def assert_same(actual, expected, rtol=1e-9):
    np.testing.assert_allclose(flat(actual), flat(expected), rtol, atol=rtol)


def assert_counted(opt_state, method):
    for count, expected in {"steps": STEPS, "ascents": ASCENTS[method], "notfinite": 0}.items():
        assert int(sam_optax.read(opt_state, count)) == expected, count


def batches(size=8):
    """One for each step."""
    keys = jax.random.split(jax.random.key(5), STEPS)
    xs = [jax.random.normal(key, (size, 4)) for key in keys]
    return [(x, jnp.sin(x).sum(axis=1, keepdims=True) + 1) for x in xs]


# The libraries.


@each_method
@pytest.mark.parametrize("aux", [False, True])
def test_optimistix_takes_the_steps_by_hand(page, method, aux):
    names = page("Optimistix")
    data = names.x, names.y

    def fn(params, data):
        loss = names.loss_fn(params, data)
        return (loss, 2 * loss) if aux else loss

    minimiser = names.optimistix.OptaxMinimiser(optimizer(method), rtol=0, atol=0)
    solution = names.optimistix.minimise(
        fn, minimiser, names.params, args=data, has_aux=aux, max_steps=STEPS, throw=False
    )
    gradient = functools.partial(jax.grad(names.loss_fn), data=data)
    assert_same(solution.value, by_hand(method, names.params, lambda t, w: gradient))
    assert_counted(solution.state.opt_state, method)


def test_optimistix_does_not_come_to_rest_with_a_fixed_radius(page):
    """As the page says; with one that falls to 0 it does there."""
    names = page("Optimistix")
    link = optax.chain(sam_optax.sam(0.05), optax.sgd(RATE))
    minimiser = names.optimistix.OptaxMinimiser(link, rtol=1e-6, atol=1e-6)
    solution = names.optimistix.minimise(
        names.loss_fn, minimiser, names.params, (names.x, names.y), max_steps=2000, throw=False
    )
    assert int(sam_optax.read(solution.state.opt_state, "steps")) == 2000


def jaxopt_solver(names, method, data, **settings):
    tx = names.with_data(optimizer(method), names.loss_fn, data)
    return names.jaxopt.OptaxSolver(names.loss_fn, tx, pre_update=names.see_data, tol=0, **settings)


@each_method
def test_jaxopt_takes_the_steps_by_hand_on_all_data(page, method):
    names = page("JAXopt")
    data = names.x, names.y
    # Those of the run are taken, not those that the state begins with.
    solver = jaxopt_solver(names, method, jax.tree.map(jnp.zeros_like, data), maxiter=STEPS)
    params, state = solver.run(names.params, data=data)
    gradient = functools.partial(jax.grad(names.loss_fn), data=data)
    assert_same(params, by_hand(method, names.params, lambda t, w: gradient))
    assert_counted(state.internal_state, method)


@each_method
def test_jaxopt_takes_the_steps_by_hand_on_batches(page, method):
    names = page("JAXopt")
    stream = batches()
    solver = jaxopt_solver(names, method, stream[0])
    # A first batch is for the initial state alone.
    params, state = solver.run_iterator(names.params, iter([stream[0], *stream]))

    def gradient_at(t, params):
        return functools.partial(jax.grad(names.loss_fn), data=stream[t])

    assert_same(params, by_hand(method, names.params, gradient_at))
    assert_counted(state.internal_state, method)


@each_method
def test_numpyro_takes_the_steps_by_hand(page, method):
    """With one draw from the guide for both gradients, and a mutable site that moves once."""
    names = page("NumPyro")
    from numpyro.primitives import mutable

    def model(x, y):
        w = names.numpyro.sample(
            "w", names.numpyro.distributions.Normal(jnp.zeros(4), 1).to_event(1)
        )
        seen = mutable("seen", {"draw": jnp.zeros(4), "times": jnp.zeros(())})
        mean = jnp.tanh(x @ w) + 0.1 * seen["times"]
        seen.update(draw=0.9 * seen["draw"] + w, times=seen["times"] + 1)
        with names.numpyro.plate("examples", len(x)):
            names.numpyro.sample("y", names.numpyro.distributions.Normal(mean, 2), obs=y[:, 0])

    guide, elbo, stream = names.autoguide.AutoNormal(model), names.Trace_ELBO(), batches()
    svi = names.SVI(model, guide, names.sharp(optimizer(method)), elbo)
    state = svi.init(jax.random.key(3), *stream[0])
    params, mutables, key = svi.optim.get_params(state.optim_state), state.mutable_state, state[-1]
    begin = float(mutables["seen"]["times"])

    def gradient_at(t, params):
        nonlocal mutables, key
        key, key_step = jax.random.split(key)

        def loss(params, mutables):
            # A copy, since the model changes the dictionary that it is given.
            params = {**svi.constrain_fn(params), **jax.tree.map(jnp.asarray, mutables)}
            out = elbo.loss_with_mutable_state(key_step, params, model, guide, *stream[t])
            return out["loss"], out["mutable_state"]

        before = mutables
        mutables = loss(params, before)[1]
        return lambda p: jax.grad(loss, has_aux=True)(p, before)[0]

    update = jax.jit(svi.update)
    for batch in stream:
        state, _ = update(state, *batch)
    assert_same(svi.optim.get_params(state.optim_state), by_hand(method, params, gradient_at))
    assert_same(state.mutable_state, mutables)
    assert state.mutable_state["seen"]["times"] == begin + STEPS
    assert_counted(state.optim_state, method)


def step_with(names, step, method):
    """A step of the page with another optimizer, which it finds among its names."""
    step.__wrapped__.__globals__["tx"] = optimizer(method)
    step.clear_cache()
    return step


@each_method
def test_keras_takes_the_steps_by_hand(page, method):
    """With one mask of dropout for both gradients, and statistics that move once."""
    names = page("Keras")
    step = step_with(names, names.keras_step, method)
    trained = begin = [variable.value for variable in names.net.trainable_variables]
    rest = state = [variable.value for variable in names.net.non_trainable_variables]
    stream = batches()
    opt_state = optimizer(method).init(trained)
    for batch in stream:
        trained, rest, opt_state, _ = step(trained, rest, opt_state, *batch)

    def gradient_at(t, params):
        nonlocal state
        before, (_, state) = state, names.keras_loss(params, state, *stream[t])
        return lambda p: jax.grad(names.keras_loss, has_aux=True)(p, before, *stream[t])[0]

    assert_same(trained, by_hand(method, begin, gradient_at), FLOAT32)
    for variable, value, expected in zip(
        names.net.non_trainable_variables, rest, state, strict=True
    ):
        assert_same(value, expected, FLOAT32)
        if "seed" in variable.path:
            assert int((value - variable.value)[1]) == STEPS
    assert_counted(opt_state, method)


def test_keras_tells_asam_the_weights(page):
    names = page("Keras")
    variables = names.net.trainable_variables
    params = [variable.value + 1 for variable in variables]
    weights = [variable.name in ("kernel", "gamma") for variable in variables]
    assert sum(weights) == 3
    link = sam_optax.asam(0.1, weights=weights)
    link.update(params, link.init(params), params, grad_fn=lambda p: p)
    with pytest.raises(ValueError, match="weights=None goes by the names"):
        sam_optax.asam(0.1).update(params, link.init(params), params, grad_fn=lambda p: p)


@pytest.mark.parametrize("method", [*HAND, "msam at its point"])
def test_haiku_takes_the_steps_by_hand(page, monkeypatch, method):
    """With one mask of dropout for both gradients, and statistics that move once."""
    names = page("Haiku")

    def forward(x):
        """That of the page, with a state that changes the gradient."""
        times = names.hk.get_state("times", (), init=jnp.zeros)
        names.hk.set_state("times", times + 1)
        return names.forward(x) + 0.1 * times

    net = names.hk.transform_with_state(forward)
    monkeypatch.setitem(names.haiku_loss.__globals__, "net", net)
    trained, rest = begin, state = net.init(jax.random.key(0), names.x)
    at_point = method not in HAND
    method = method.split()[0]
    tx, step = optimizer(method), step_with(names, names.haiku_step, method)
    if at_point:
        link = sam_optax.msam(0.3, decay=MOMENTUM, updates_at="gradient_point")
        tx = optax.chain(link, optax.sgd(RATE, momentum=MOMENTUM))

        @jax.jit
        def step(params, state, opt_state, key, x, y):
            point = sam_optax.gradient_point(opt_state, params)
            grads, new = jax.grad(names.haiku_loss, has_aux=True)(point, state, key, x, y)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), new, opt_state, None

    stream, keys = batches(), jax.random.split(jax.random.key(7), STEPS)
    opt_state = tx.init(trained)
    for key, batch in zip(keys, stream, strict=True):
        trained, rest, opt_state, _ = step(trained, rest, opt_state, key, *batch)

    def gradient_at(t, params):
        nonlocal state
        before, rest = state, (keys[t], *stream[t])
        if not at_point:
            state = names.haiku_loss(params, before, *rest)[1]

        def gradient(p):
            nonlocal state
            grads, new = jax.grad(names.haiku_loss, has_aux=True)(p, before, *rest)
            if at_point:  # its only gradient
                state = new
            return grads

        return gradient

    assert_same(trained, by_hand(method, begin, gradient_at))
    assert_same(rest, state)
    assert rest["~"]["times"] == STEPS
    assert_counted(opt_state, method)
