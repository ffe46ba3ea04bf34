"""Links inside `vmap`, `grad` and `jax.checkpoint`: members, radii, hypergradients, curvature."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import (
    METHODS,
    few,
    initial_params,
    loss,
    make_batch,
    make_step,
    ravel,
    sgd,
    trajectory,
)

import sam_optax

pytestmark = pytest.mark.usefixtures("x64")

STEPS = 3
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
WITH_RHO = [
    name for name, row in METHODS.items() if "rho" in inspect.signature(row.factory).parameters
]


def batches(steps=STEPS):
    """Of the first steps, stacked."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *map(make_batch, range(steps)))


def trained(tx, params, call, **options):
    """Parameters behind the steps, in one scan."""
    step = make_step(tx, compiled=False, **call, **options)

    def body(carry, batch):
        return step(*carry, batch), None

    return jax.lax.scan(body, (params, tx.init(params)), batches())[0][0]


@pytest.mark.parametrize("name", few("le_sam"))
def test_members_of_an_ensemble_are_each_for_themselves(name):
    """Norms, decisions and learned states are those of a member."""
    row = METHODS[name]
    members = [jax.tree.map(lambda w, c=c: c * w, initial_params()) for c in (1.0, 0.5, -0.7)]
    stacked = jax.tree.map(lambda *ws: jnp.stack(ws), *members)
    train = functools.partial(trained, row.optimizer(), call=row.call)
    together = jax.jit(jax.vmap(train))(stacked)
    for i, member in enumerate(members):
        alone = trajectory(row.optimizer(), steps=STEPS, params=member, **row.call)[-1]
        its = ravel(jax.tree.map(lambda w, i=i: w[i], together))
        np.testing.assert_allclose(its, alone, **CLOSE)


def with_radius(name, rho):
    row = METHODS[name]
    link = row._replace(settings=row.settings | {"rho": rho}).link()
    return optax.chain(link, sgd(row.momentum))


@pytest.mark.parametrize("name", few("wsam", names=WITH_RHO))
def test_radii_side_by_side_are_each_as_alone(name):
    """A sweep in one program: the radius is a number that `vmap` maps."""
    call, radii = METHODS[name].call, (0.1, 0.3)

    def last(rho):
        params = jax.tree.map(jnp.asarray, initial_params())
        return trained(with_radius(name, rho), params, call)

    together = jax.jit(jax.vmap(last))(jnp.array(radii))
    for i, rho in enumerate(radii):
        alone = trajectory(with_radius(name, rho), steps=STEPS, **call)[-1]
        its = ravel(jax.tree.map(lambda w, i=i: w[i], together))
        np.testing.assert_allclose(its, alone, **CLOSE)


@pytest.mark.parametrize("name", few("gsam", names=WITH_RHO))
def test_the_derivative_by_the_radius_is_a_central_difference(name):
    def meta_loss(rho):
        params = jax.tree.map(jnp.asarray, initial_params())
        last = trained(with_radius(name, rho), params, METHODS[name].call)
        return loss(last, make_batch(STEPS))

    h, rho = 1e-5, 0.3
    ends = jnp.array([rho - h, rho + h])
    (below, above), slope = jax.jit(
        lambda: (jax.lax.map(meta_loss, ends), jax.grad(meta_loss)(rho))
    )()
    assert float(slope) == pytest.approx(float(above - below) / (2 * h), rel=1e-5)
    assert abs(slope) > 1e-5


@pytest.mark.parametrize("name", few("gsam"))
def test_a_loss_that_is_rematerialized_changes_nothing(name):
    row = METHODS[name]
    kept, again = (
        trajectory(row.optimizer(), steps=STEPS, grad_loss=jax.grad(of), **row.call)
        for of in (loss, jax.checkpoint(loss))
    )
    np.testing.assert_allclose(again, kept, **CLOSE)


@pytest.mark.parametrize("name", few("gsam", names=["sam", "gsam", "friendly_sam", "bsam"]))
def test_the_curvature_of_a_meta_loss_is_a_central_difference_of_its_gradient(name):
    """Forward over reverse through a whole step: third derivatives of the loss."""
    row = METHODS[name]

    def meta_gradient(params):
        def meta_loss(params):
            return loss(trained(row.optimizer(), params, row.call), make_batch(STEPS))

        return jax.grad(meta_loss)(params)

    params = jax.tree.map(jnp.asarray, initial_params())
    along = jax.tree.map(lambda w: jnp.cos(7 * w), params)

    @jax.jit
    def both(params):
        product = jax.jvp(meta_gradient, (params,), (along,))[1]
        ends = [jax.tree.map(lambda w, d, h=h: w + h * d, params, along) for h in (-1e-5, 1e-5)]
        return product, *map(meta_gradient, ends)

    product, below, above = map(ravel, both(params))
    np.testing.assert_allclose(product, (above - below) / 2e-5, rtol=1e-4, atol=1e-5)
    assert np.abs(product).max() > 1e-2


def test_a_first_order_meta_gradient_drops_the_second_derivatives():
    """As first-order MAML does: with `stop_gradient` around every gradient a step is w − lr d."""
    params = jax.tree.map(jnp.asarray, initial_params())
    tx = optax.chain(sam_optax.sam(0.3), sgd(None))

    def meta_loss(params):
        return loss(
            trained(tx, params, {}, gradient=lambda f: lambda p: jax.lax.stop_gradient(f(p))),
            make_batch(STEPS),
        )

    last = trained(tx, params, {})
    expected = jax.grad(loss)(last, make_batch(STEPS))
    np.testing.assert_allclose(ravel(jax.grad(meta_loss)(params)), ravel(expected), **CLOSE)
