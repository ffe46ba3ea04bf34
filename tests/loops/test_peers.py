"""Ten steps against other implementations: the SAM of Optax, and methods of pytorch_optimizer 4.1.

The latter takes the norm of the gradient in float32, whatever the dtype of the parameters; so its
trajectories equal ours to five digits, where another formula changes the second.
"""

from functools import partial
import math

import numpy as np
import optax
import pytest
from reference import (
    LEARNING_RATE,
    SHAPES,
    STEPS,
    Row,
    initial_params,
    make_batch,
    norm,
    ravel,
    reject,
    run_reference,
    sgd,
    trajectory,
    unit,
    unravel,
)

import sam_optax

pytestmark = pytest.mark.usefixtures("x64")

SGD = {"lr": LEARNING_RATE, "momentum": 0.9}  # PyTorch's names for what `sgd()` is


def ours(link):
    return trajectory(optax.chain(link, sgd()))


def derived(step, momentum=0.9):
    """The trajectory of a step in NumPy."""
    return np.stack([w for w, _ in run_reference(Row(None, {}, step, momentum))])


def assert_same(actual, expected, rtol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol, atol=rtol)


def assert_different(actual, expected):
    assert np.abs(actual - expected).max() > 1e-2


# Optax.


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_sam_is_the_sam_of_optax(name):
    base = {"sgd": sgd(), "adamw": optax.adamw(LEARNING_RATE, weight_decay=0.1)}[name]
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(0.4))
    peer = optax.contrib.sam(base, ascent, sync_period=2, opaque_mode=True)

    def update(updates, state, params, *, grad_fn):
        # Its grad_fn takes the number of the ascent step too.
        return peer.update(updates, state, params, grad_fn=lambda p, _: grad_fn(p))

    expected = trajectory(optax.GradientTransformationExtraArgs(peer.init, update))
    assert_same(trajectory(optax.chain(sam_optax.sam(0.4), base)), expected, rtol=1e-9)


# pytorch_optimizer.


@pytest.fixture
def peers():
    pytest.importorskip("torch", reason="pytorch_optimizer needs PyTorch")
    return pytest.importorskip("pytorch_optimizer", reason="the peers are in pytorch_optimizer")


def torch_leaves(model):
    """The parameters by name, whether they are one leaf or several."""
    if "flat" not in model:
        return model
    parts = model["flat"].split([math.prod(shape) for shape in SHAPES.values()])
    return {
        name: part.view(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


def torch_loss(model, batch):
    """`reference.loss` in PyTorch."""
    p, (x, y) = torch_leaves(model), batch
    hidden = (p["scale"] * (x @ p["conv"].reshape(4, 3))).tanh()
    error = hidden @ p["dense_kernel"] + p["dense_bias"] - y
    return 0.5 * (error**2).sum(dim=1).mean()


def theirs(make, one_leaf=False):
    """The trajectory of the peer `make(model)`, the parameters in one leaf or in several."""
    import torch

    params = {"flat": ravel(initial_params())} if one_leaf else initial_params()
    model = torch.nn.ParameterDict(
        {name: torch.nn.Parameter(torch.tensor(leaf)) for name, leaf in params.items()}
    )

    @torch.enable_grad()
    def backward(batch):
        model.zero_grad()
        loss = torch_loss(model, batch)
        loss.backward()
        return None, loss  # outputs and loss, as GSAM wants them

    def run():
        optimizer = make(model)
        for t in range(STEPS):
            closure = partial(backward, [torch.tensor(array) for array in make_batch(t)])
            closure()
            optimizer.step(closure)
            yield ravel({name: leaf.detach() for name, leaf in model.items()})

    return np.stack(list(run()))


@pytest.mark.peers
def test_sam_is_the_sam_of_pytorch_optimizer(peers):
    import torch

    peer = theirs(lambda model: peers.SAM(model.parameters(), torch.optim.SGD, rho=0.4, **SGD))
    assert_same(peer, ours(sam_optax.sam(0.4)))


@pytest.mark.peers
def test_gsam_is_the_gsam_of_pytorch_optimizer(peers):
    """With a radius that follows a falling learning rate."""
    import torch

    lr = optax.linear_schedule(LEARNING_RATE, 0.0, 16)
    rho = sam_optax.schedules.rho_from_learning_rate(
        lr, rho_max=0.4, rho_min=0.1, lr_max=LEARNING_RATE, lr_min=0.0
    )

    def make(model):
        base = torch.optim.SGD(model.parameters(), **SGD)
        schedule = torch.optim.lr_scheduler.LambdaLR(base, lambda t: 1 - t / 16)
        radius = peers.ProportionScheduler(schedule, LEARNING_RATE, max_value=0.4, min_value=0.1)
        peer = peers.GSAM(model.parameters(), base, model, radius, alpha=0.6)
        base.register_step_post_hook(lambda *_: (schedule.step(), peer.update_rho_t()))
        return peer

    tx = optax.chain(sam_optax.gsam(rho, alpha=0.6), optax.sgd(lr, momentum=0.9))
    assert_same(theirs(make), trajectory(tx))


@pytest.mark.peers
@pytest.mark.parametrize("decouple", [True, False], ids=["decoupled", "coupled"])
def test_wsam_is_the_wsam_of_pytorch_optimizer(peers, decouple):
    import torch

    def make(model):
        settings = {"rho": 0.4, "gamma": 0.8, "decouple": decouple, **SGD}
        return peers.WSAM(model, model.parameters(), torch.optim.SGD, **settings)

    if decouple:
        link = sam_optax.wsam(optax.trace(0.9), rho=0.4, gamma=0.8)
        tx = optax.chain(link, optax.scale_by_learning_rate(LEARNING_RATE))
    else:
        tx = optax.chain(sam_optax.coupled_wsam(rho=0.4, gamma=0.8), sgd())
    assert_same(theirs(make), trajectory(tx))


@pytest.mark.peers
def test_friendly_sam_is_the_friendly_sam_of_pytorch_optimizer(peers):
    """Its average is of raw gradients, as the paper's; up to 4.0 it was of residuals g − σ m."""
    import torch

    settings = {"rho": 0.4, "sigma": 0.7, "lmbda": 0.6, **SGD}
    peer = theirs(lambda model: peers.FriendlySAM(model.parameters(), torch.optim.SGD, **settings))
    assert_same(peer, ours(sam_optax.friendly_sam(0.4, sigma=0.7, decay=0.6)))


@pytest.mark.peers
def test_the_adaptive_sam_of_pytorch_optimizer_is_asam_without_eta_on_all_leaves(peers):
    """Its T is |w| in every tensor; ours is |w| + η in the weights and 1 in the biases."""
    import torch

    settings = {"rho": 0.4, "adaptive": True, **SGD}
    peer = theirs(lambda model: peers.SAM(model.parameters(), torch.optim.SGD, **settings))

    def step(w, gradient, t, state):
        g = gradient(w)
        return gradient(w + 0.4 * w**2 * g / norm(w * g)), state

    assert_same(peer, derived(step))
    assert_same(peer, ours(sam_optax.asam(0.4, eta=0.0, weights=lambda path: True)))
    assert_different(peer, ours(sam_optax.asam(0.4)))


def look_sam(peers):
    import torch

    settings = {"rho": 0.4, "alpha": 0.7, "k": 3, **SGD}
    return lambda model: peers.LookSAM(model.parameters(), torch.optim.SGD, **settings)


@pytest.mark.peers
def test_looksam_is_the_looksam_of_pytorch_optimizer_on_one_leaf(peers):
    """Its norms and projections are per tensor and ours global: on one tensor the same thing."""
    link = sam_optax.looksam(0.4, alpha=0.7, period=3)
    assert_same(theirs(look_sam(peers), one_leaf=True), ours(link))


@pytest.mark.peers
def test_the_looksam_of_pytorch_optimizer_projects_each_tensor_alone(peers):
    """Its v = reject(g', g) and its ‖g‖ v / ‖v‖ are per tensor, where ours are global."""

    def per_tensor(f, a, b):
        a, b = unravel(a), unravel(b)
        return ravel({name: f(a[name].ravel(), b[name].ravel()) for name in SHAPES})

    def step(w, gradient, t, state):
        g = gradient(w)
        if t % 3 == 0:
            second = gradient(w + 0.4 * unit(g))
            return second, {"v": per_tensor(reject, second, g)}
        # Its 1e-8 keeps the rounding in a v of one element, which is 0, from being magnified.
        reused = per_tensor(lambda g, v: norm(g) * v / (norm(v) + 1e-8), g, state["v"])
        return g + 0.7 * reused, state

    peer = theirs(look_sam(peers))
    assert_same(peer, derived(step))
    assert_different(peer, ours(sam_optax.looksam(0.4, alpha=0.7, period=3)))
