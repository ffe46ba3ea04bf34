"""The tables of docs/exactness_elsewhere.md: other packages, and the papers' formulas in NumPy.

A row is held twice: how far the package is from the formula, and how far from the formula changed
as the row says, which is what makes the words of the row true.
"""

from collections.abc import Callable
import dataclasses
import importlib
from importlib import metadata
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import gallery
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from reference import (
    LEARNING_RATE,
    SHAPES,
    STEPS,
    draw,
    initial_params,
    loss,
    norm,
    ravel,
    reject,
    sgd,
    trajectory,
    unravel,
)
from test_peers import SGD, derived, look_sam, theirs

pytestmark = pytest.mark.usefixtures("x64")

PAGE = Path(__file__).parents[2] / "docs" / "exactness_elsewhere.md"
ROUNDING = 1e-12  # "0" on the page
FLOAT32 = 2e-6  # where a row says float32, whose last digit differs between processors
RHO, ETA = 0.4, 0.01
BAYES = {"ess": 30.0, "beta_1": 0.8, "beta_2": 0.9, "weight_decay": 0.05, "damping": 0.2, "key": 3}


class Row(NamedTuple):
    """One row.

    Attributes:
      peer: () -> the package's trajectory.
      paper: the step of the paper, in NumPy.
      told: the step that the words of the row make of it.
      momentum: of the SGD behind both, None for none.
    """

    peer: Callable[[], Any]
    paper: Callable[..., Any]
    told: Callable[..., Any]
    momentum: float | None = 0.9


def after_ten(step, momentum):
    return derived(step, momentum)[-1]


def away(row, step):
    """The largest difference after ten steps, over the largest way of a parameter there."""
    expected = after_ten(step, row.momentum)
    way = np.abs(after_ten(row.paper, row.momentum) - ravel(initial_params())).max()
    return np.abs(row.peer()[-1] - expected).max() / way


# The formulas, changed.


def norm_32(x):
    """The norm of each leaf rounded to float32, and the norm of those in float32."""
    norms = np.float32([norm(leaf) for leaf in unravel(x).values()])
    return np.sqrt(np.sum(norms * norms))


def scale_32(x):
    """ρ over the norm of x, in float32."""
    return np.float64(np.float32(RHO) * (np.float32(1) / norm_32(x)))


def sam_with(epsilon, combine=lambda g, h: h):
    """The gradient at w + ε, or what is made of both."""

    def step(w, gradient, t, state):
        g = gradient(w)
        return combine(g, gradient(w + epsilon(g, w))), state

    return step


def epsilon_32(g, w=None):
    return scale_32(g) * g


def adaptive_32(g, w):
    """T = |w| in every leaf, and no η."""
    return scale_32(np.abs(w) * g) * w**2 * g


def centred(g):
    """The gradient less its mean over all axes but the first."""

    def of(name, leaf):
        axes = tuple(range(1, leaf.ndim))
        return leaf - leaf.mean(axis=axes, keepdims=True) if leaf.ndim > 1 else leaf

    return gallery.by_leaf(of, g)


def less_across_32(g, h):
    """GSAM's sum, with α = 0.6."""
    return h - 0.6 * (g - np.dot(g, h) * h / np.float64(norm_32(h)) ** 2)


def wsam_32(w, gradient, t, state):
    g = gradient(w)
    second = gradient(w + epsilon_32(g))
    trace = g + 0.9 * state.get("trace", 0.0)
    return trace + 0.8 / 0.2 * (second - g), {"trace": trace}


def friendly_sam_32(w, gradient, t, state):
    g = gradient(w)
    m = state.get("m")
    direction = g if m is None else g - 0.7 * m
    m = g if m is None else 0.6 * m + 0.4 * g
    return gradient(w + epsilon_32(direction)), {"m": m}


def looksam_by_leaf(w, gradient, t, state):
    g = gradient(w)
    if t % 3 == 0:
        second = gradient(w + epsilon_32(g))
        project = gallery.by_leaf(lambda _, a, b: reject(a.ravel(), b.ravel()), second, g)
        return second, {"v": project}
    # The 1e-8 is its, and keeps the rounding in a v of one element from being magnified.
    reused = gallery.by_leaf(lambda _, g, v: norm(g) * v / (norm(v) + 1e-8), g, state["v"])
    return g + 0.7 * reused, state


def bsam_elsewhere(w, gradient, t, state):
    s, m = state.get("s", 1 + 0 * w), state.get("m", 0 * w)
    normal = ravel(draw(jax.random.normal, BAYES["key"], t, unravel(w)))
    noise = normal / (BAYES["ess"] * s)  # the variance, as a standard deviation
    g = gradient(w + noise)
    epsilon = 0.2 * g / s
    h = gradient(w + noise + epsilon)  # from the noisy point
    m = 0.8 * m + 0.2 * 0.05 * h  # weight decay times the gradient
    s = 0.9 * s + 0.1 * (np.sqrt(s) * np.abs(h) + 0.05 + 0.2) ** 2  # squared, and of h
    return m / s - (noise + epsilon) / LEARNING_RATE, {"s": s, "m": m}  # which stay


def ascents(rho, k):
    """k ascents, each of the length ρ."""

    def step(w, gradient, t, state):
        point, g = w, gradient(w)
        for _ in range(k):
            point = point + rho * g / norm(g)
            g = gradient(point)
        return g, state

    return step


def ascent_with_momentum(w, gradient, t, state):
    g = gradient(w)
    v = 0.9 * state.get("v", 0 * w) + g / norm(g)
    return gradient(w + RHO * v), {"v": v}


def float32_ascent(adaptive=False, spared=()):
    """The ascent in float32; T = |w| + η in every leaf that is not spared, and those stay."""

    def ascent(g, w):
        kept = gallery.by_leaf(lambda name, x: 0 * x + (name not in spared), w)
        scale = np.float32(kept)
        if adaptive:
            scale = scale * (np.float32(np.abs(w)) + np.float32(ETA))
        direction = scale * np.float32(g)
        squares = [np.sum(leaf * leaf) for leaf in unravel(direction).values()]
        length = np.sqrt(np.sum(np.float32(squares)))
        return np.float64(scale * direction * (np.float32(RHO) / length))

    return sam_with(ascent)


# The packages.


def optax_sam(ascent=None, *, opaque=False, calls=2, rho=RHO, **settings):
    ascent = ascent or optax.sgd(rho)
    tx = optax.contrib.sam(
        sgd(),
        optax.chain(optax.contrib.normalize(), ascent),
        sync_period=calls,
        opaque_mode=opaque,
        **settings,
    )

    @jax.jit
    def step(params, state, batch):
        for _ in range(1 if opaque else calls):
            grads = jax.grad(loss)(params, batch)
            updates, state = tx.update(
                grads, state, params, grad_fn=lambda p, _: jax.grad(loss)(p, batch)
            )
            params = optax.apply_updates(params, updates)
        return params, state

    return lambda: trajectory(tx, step)


def torch_made(model, name, **settings):
    import pytorch_optimizer
    import torch

    first = (model,) if name == "WSAM" else ()
    function = getattr(pytorch_optimizer, name)
    return function(*first, model.parameters(), torch.optim.SGD, rho=RHO, **settings, **SGD)


def torch_peer(name, **settings):
    return lambda: theirs(lambda model: torch_made(model, name, **settings))


def torch_gsam(model):
    import pytorch_optimizer
    import torch

    base = torch.optim.SGD(model.parameters(), **SGD)
    schedule = torch.optim.lr_scheduler.LambdaLR(base, lambda t: 1.0)
    radius = pytorch_optimizer.ProportionScheduler(schedule, LEARNING_RATE, max_value=RHO)
    return pytorch_optimizer.GSAM(model.parameters(), base, model, radius, alpha=0.6)


def torch_look_sam(**options):
    import pytorch_optimizer

    return theirs(look_sam(pytorch_optimizer), **options)


def torch_bsam():
    """With the numbers that the reference draws."""
    import pytorch_optimizer
    import torch

    trees = [draw(jax.random.normal, BAYES["key"], t, initial_params()) for t in range(STEPS)]
    normals = itertools.chain.from_iterable(tree.values() for tree in trees)

    def normal(mean, std):
        return mean + std * torch.tensor(np.array(next(normals)))

    def make(model):
        settings = {"betas": (0.8, 0.9), "weight_decay": 0.05, "rho": 0.2, "damping": 0.2}
        return pytorch_optimizer.BSAM(model.parameters(), 30, lr=LEARNING_RATE, **settings)

    with mock.patch.object(torch, "normal", normal):
        return theirs(make)


ROLES = {"conv": "weight", "dense_bias": "bias", "dense_kernel": "weight", "scale": "norm"}


def rollfast_sam(name, **settings):
    """Its two-pass step, SGD in the place of the base optimizer."""

    def run():
        from rollfast import finetune

        spec = {"depth": None, "lr_multiplier": 1.0, "weight_decay": False, "tags": ()}
        params = jax.tree.map(jnp.asarray, initial_params())
        plan = SimpleNamespace(
            trainable=params,
            frozen=dict.fromkeys(SHAPES),
            labels=ROLES,
            group_specs={r: SimpleNamespace(label=r, role=r, **spec) for r in ROLES.values()},
            identities={name: SimpleNamespace(logical_id=name) for name in SHAPES},
            combine=lambda trainable: trainable,
        )
        bundle = finetune.adamw_from_plan(plan, schedule="constant")
        step = finetune.make_sam_step(
            plan=plan,
            base_optimizer=dataclasses.replace(bundle, tx=sgd()),
            config=getattr(finetune, name)(enabled=True, rho=RHO, **settings),
            loss_fn=loss,
        )
        return trajectory(sgd(), lambda params, state, batch: step(params, state, batch)[:2])

    return run


# The rows, by the words of their first cells.

ADAPTIVE = reference.asam(RHO, ETA)
LOOKSAM = reference.looksam(RHO, 0.7, 3)
GCSAM = sam_with(lambda g, w: RHO * centred(g) / norm(g))

ROWS = {
    "optax": {
        "`sam`, `opaque_mode=True`": Row(
            optax_sam(opaque=True), reference.sam(RHO), reference.sam(RHO)
        ),
        "`sam`": Row(optax_sam(), reference.sam(RHO), reference.sam(RHO)),
        "`sam`, `sync_period=4`, ascent `sgd(rho / 3)`": Row(
            optax_sam(calls=4, rho=0.1 / 3), gallery.multi_step, ascents(0.1 / 3, 3)
        ),
        "`sam`, `sync_period=4`, ascent `sgd(rho)`": Row(
            optax_sam(calls=4, rho=0.1), gallery.multi_step, ascents(0.1, 3)
        ),
        "`sam`, ascent `sgd(rho, momentum=0.9)`": Row(
            optax_sam(optax.sgd(RHO, 0.9)), reference.sam(RHO), reference.sam(RHO)
        ),
        "the same, `reset_state=False`": Row(
            optax_sam(optax.sgd(RHO, 0.9), reset_state=False),
            reference.sam(RHO),
            ascent_with_momentum,
        ),
        "the same, `opaque_mode=True`": Row(
            optax_sam(optax.sgd(RHO, 0.9), opaque=True, reset_state=False),
            reference.sam(RHO),
            ascent_with_momentum,
        ),
    },
    "pytorch_optimizer": {
        "`SAM`": Row(torch_peer("SAM"), reference.sam(RHO), sam_with(epsilon_32)),
        "`SAM`, `adaptive=True`": Row(
            torch_peer("SAM", adaptive=True), ADAPTIVE, sam_with(adaptive_32)
        ),
        "`SAM`, `use_gc=True`": Row(
            torch_peer("SAM", use_gc=True),
            GCSAM,
            sam_with(lambda g, w: scale_32(g) * centred(g)),
        ),
        "`GSAM`": Row(
            lambda: theirs(torch_gsam),
            reference.gsam(RHO, 0.6),
            sam_with(epsilon_32, less_across_32),
        ),
        "`WSAM`": Row(torch_peer("WSAM", gamma=0.8), reference.wsam(0.9, RHO, 0.8), wsam_32, None),
        "`WSAM`, `decouple=False`": Row(
            torch_peer("WSAM", gamma=0.8, decouple=False),
            reference.coupled_wsam(RHO, 0.8),
            sam_with(epsilon_32, lambda g, h: 4 * h - 3 * g),
        ),
        "`LookSAM`": Row(torch_look_sam, LOOKSAM, looksam_by_leaf),
        "`LookSAM`, one tensor": Row(lambda: torch_look_sam(one_leaf=True), LOOKSAM, LOOKSAM),
        "`FriendlySAM`": Row(
            torch_peer("FriendlySAM", sigma=0.7, lmbda=0.6),
            reference.friendly_sam(RHO, 0.7, 0.6),
            friendly_sam_32,
        ),
        "`BSAM`": Row(torch_bsam, reference.bsam(0.2, **BAYES), bsam_elsewhere, None),
    },
    "rollfast": {
        "`SAMConfig`": Row(rollfast_sam("SAMConfig"), reference.sam(RHO), float32_ascent()),
        "`ASAMConfig`": Row(
            rollfast_sam("ASAMConfig", eta=ETA),
            ADAPTIVE,
            float32_ascent(True, ("dense_bias", "scale")),
        ),
        "`ASAMConfig`, `perturb_bias=True`, `perturb_norm=True`": Row(
            rollfast_sam("ASAMConfig", eta=ETA, perturb_bias=True, perturb_norm=True),
            ADAPTIVE,
            float32_ascent(True),
        ),
    },
}


# The page.


def tables():
    """{(package, version): {called: (away, what differs, left)}}, a section each."""
    found = {}
    for section in PAGE.read_text().split("\n## ")[1:]:
        heading, *lines = section.splitlines()
        rows = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]
        package, version = heading.lower().split()
        found[package, version] = {
            called: (float(away), words, float(left)) for called, _, away, words, left in rows[1:]
        }
    return found


TABLES = tables()


def the(package):
    """The package, or the test skips."""
    if package == "pytorch_optimizer":
        pytest.importorskip("torch", reason="pytorch_optimizer needs PyTorch")
    return pytest.importorskip(package, reason=f"{package} comes with the extra peers")


def test_the_page_has_these_rows():
    assert {key[0]: set(rows) for key, rows in TABLES.items()} == {
        package: set(rows) for package, rows in ROWS.items()
    }


@pytest.mark.peers
@pytest.mark.parametrize(("package", "version"), list(TABLES))
def test_the_page_tells_of_the_version_that_is_here(package, version):
    the(package)
    assert metadata.version(package) == version


def assert_as_told(measured, told, words):
    if told > 1e-4:
        assert math.isclose(measured, told, rel_tol=0.05)
    else:
        assert measured < (FLOAT32 if "float32" in words else ROUNDING)
        assert told == 0 or measured > ROUNDING


@pytest.mark.parametrize(
    ("package", "called", "told"),
    [
        pytest.param(
            package, *row, id=row[0], marks=() if package == "optax" else pytest.mark.peers
        )
        for (package, _), rows in TABLES.items()
        for row in rows.items()
    ],
)
def test_a_row_is_as_measured(package, called, told):
    the(package)
    row, (distance, words, left) = ROWS[package][called], told
    assert_as_told(away(row, row.paper), distance, words)
    assert_as_told(away(row, row.told), left, words)
    assert left < 1e-6  # the words are all that differs


# What is told beside the tables.


@pytest.mark.parametrize("opaque", [False, True])
def test_a_gradient_of_zero_gives_nan_in_optax(opaque):
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    tx = optax.contrib.sam(sgd(), ascent, opaque_mode=opaque)
    params = jnp.ones(3)
    updates, _ = tx.update(0 * params, tx.init(params), params, grad_fn=lambda p, _: 0 * p)
    assert jnp.isnan(updates).all()


@pytest.mark.peers
@pytest.mark.parametrize("name", ["SAM", "GSAM", "WSAM", "LookSAM", "FriendlySAM"])
@pytest.mark.parametrize("size", [0, 1e-12])
def test_the_epsilon_of_pytorch_optimizer_is_added_to_the_norm(name, size):
    torch = the("pytorch_optimizer") and importlib.import_module("torch")
    model = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.ones(1))})
    optimizer = torch_gsam(model) if name == "GSAM" else torch_made(model, name)
    seen = []

    @torch.enable_grad()
    def closure():
        seen.append(model["w"].item())
        model.zero_grad()
        loss = size * model["w"].sum()
        loss.backward()
        return None, loss

    closure()
    optimizer.step(closure)
    assert math.isclose(seen[-1], 1 + RHO * size / (size + 1e-12), rel_tol=1e-6)


@pytest.mark.peers
def test_these_are_all_that_pytorch_optimizer_has():
    module = the("pytorch_optimizer") and importlib.import_module("pytorch_optimizer.optimizer.sam")
    classes = {
        n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__
    }
    told = {called.split("`")[1] for called in ROWS["pytorch_optimizer"]}
    assert {name for name in classes if not name.startswith("_")} == told


@pytest.mark.peers
def test_the_norm_of_pytorch_optimizer_is_in_float32():
    torch = the("pytorch_optimizer") and importlib.import_module("torch")
    gradient = importlib.import_module("pytorch_optimizer.optimizer.utils.gradient")
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    w.grad = torch.ones_like(w)
    assert gradient.get_global_gradient_norm([{"params": [w]}]).dtype == torch.float32


@pytest.mark.peers
def test_looksam_of_pytorch_optimizer_asks_for_a_second_gradient_at_every_step():
    asked, make = [], look_sam(the("pytorch_optimizer"))

    def counting(model):
        optimizer = make(model)
        step = optimizer.step
        optimizer.step = lambda closure: step(lambda: asked.append(1) or closure())
        return optimizer

    theirs(counting)
    assert len(asked) == STEPS


@pytest.mark.peers
@pytest.mark.parametrize("size", [0, 1e-12])
def test_rollfast_climbs_in_float32_and_adds_its_epsilon_to_the_norm(size):
    epsilon, _ = the("rollfast").sam_perturbation({"w": size * jnp.ones(1)}, rho=RHO)
    assert epsilon["w"].dtype == jnp.float32
    np.testing.assert_allclose(epsilon["w"], RHO * size / (size + 1e-12), rtol=1e-6)
