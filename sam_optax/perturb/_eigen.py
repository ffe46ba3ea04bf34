"""A ball whose ascent leans towards the top eigenvector of the Hessian."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sam_optax import _checks, _decision, _finite, _parts, _random, _shards, _tree
from sam_optax._contracts import GradFn, Schedulable, Tree, transformation, value_at
from sam_optax._purity import ours
from sam_optax._random import Key


class EigenBallState(NamedTuple):
    """State of `eigen_ball`.

    Attributes:
      key_data: uint32[2], the key of the first start of the power iteration.
      v: the estimate of the Hessian's top eigenvector, of norm 1, or 0 before there is one; shaped
        and typed like the parameters.
    """

    key_data: jax.Array
    v: optax.Updates


def eigen_ball(
    rho: Schedulable,
    alpha: Schedulable = 0.2,
    period: int = 100,
    power_iterations: int = 5,
    *,
    products: str = "exact",
    key: Key = 0,
) -> optax.GradientTransformationExtraArgs:
    """ε = ρ (ĝ + α sign⟨g, v⟩ reject(v, ĝ)), ĝ = unit(g), v the top eigenvector of the Hessian.

    Every `period` steps, step 0 excluded, v ← unit(H v), `power_iterations` times, H the Hessian of
    the loss on the batch at the parameters; it starts from a normal draw, and later from the last
    v. ε is not renormalised.

    With products="exact" H v is the Jacobian-vector product of grad_fn, which costs about two
    gradients and the memory of two or more, and must be differentiable in forward mode; outside jit
    step 0 lowers it once to see that it is. With products="differences" it is two gradients, one
    after the other, in the memory of one::

        H v ≈ (g(w + h v) − g(w − h v)) / 2h,    √u ‖w‖ ≤ h = ρ ≤ ∛u ‖w‖,

    u the spacing at 1 of the parameters' numbers, the coarsest: the radius, held between the
    distances at which the errors of one-sided and of central differences are of the size of those
    of rounding (Nocedal and Wright, Numerical Optimization, 2006, section 8.1). They see the
    curvature over that distance, with ReLU its kinks too, and the noise of a loss that is computed
    in half precision: docs/benchmark.md has figures.

    Args:
      rho: the radius ρ ≥ 0, in the units of the parameters, or a schedule of it.
      alpha: the weight α ≥ 0 of the eigenvector, or a schedule of it. 0 is `ball`.
      period: the steps between two estimates, ≥ 1.
      power_iterations: the products of an estimate, ≥ 1. Not to be injected.
      products: "exact", or "differences" where a `jax.custom_vjp` (a fused kernel, a quantiser,
        float8) is in grad_fn, or memory is short.
      key: an int or a `jax.random.key`, of the first start.

    Returns:
      A transformation with state `EigenBallState`, one copy of the parameters; before the first
      estimate it is `ball`, and a zero gradient gives ε = 0. Inside jit, lowered for CPU with a
      convolution in grad_fn, it takes the products at every step, and warns.

    Raises:
      ValueError: rho or alpha is negative, a count is less than 1, or products is neither of the
        two; at the update, parameters are hidden from it by `optax.masked` or `optax.partition`.
      TypeError: rho or alpha is neither a number nor a schedule, a count no integer, or key no int
        or key; at step 0, outside jit, a `jax.custom_vjp` in grad_fn is in the way of exact
        products. (JAX's own errors tell of it inside jit, and of other functions without forward
        mode.)

    References:
      Luo et al., Explicit Eigenvalue Regularization Improves Sharpness-Aware Minimization
      (Eigen-SAM), 2024.
    """
    rho = _checks.interval("rho", rho, "[0, inf)")
    alpha = _checks.interval("alpha", alpha, "[0, inf)")
    _checks.whole("period", period, 1)
    _checks.static("power_iterations", power_iterations)
    _checks.whole("power_iterations", power_iterations, 1)
    _checks.choice("products", products, ("exact", "differences"))
    _random.check(key)

    @ours()
    def init(params: Tree) -> EigenBallState:
        return EigenBallState(_random.key_data(key, stream=1), optax.tree.zeros_like(params))

    @ours()
    def update(
        first: Tree,
        state: EigenBallState,
        params: Tree,
        *,
        step: jax.Array,
        grad_fn: GradFn,
        **extra: Any,
    ) -> tuple[Tree, EigenBallState]:
        del extra
        _check_whole(params)
        old = _tree.placed_like(state.v, params)

        def product_of(gradient: GradFn, repeat: _decision.Repeat, v: Tree) -> Tree:
            if products == "exact":
                return _hessian_product(gradient, params, v)
            return _difference(gradient, repeat, params, v, value_at(rho, step))

        def estimate(gradient: GradFn, repeat: _decision.Repeat) -> Tree:
            def iterate(v: Tree) -> Tree:
                product = product_of(gradient, repeat, v)
                return _tree.cast_like(_tree.towards(product, 1.0), v)

            normal = _random.draw_like(jax.random.normal, state.key_data, step, params)
            exists = _tree.norm(old) > 0
            v = _tree.combine(lambda v, z: jnp.where(exists, v, z), old, normal)
            found = repeat(power_iterations, iterate, _tree.cast_like(v, old))
            return _finite.choose(_finite.is_finite(found, params), lambda: found, lambda: old)

        due = (step > 0) & (step % period == 0)
        if isinstance(due, jax.core.Tracer):  # what waits for nothing XLA may take too early
            due &= _decision.known_after(first, step)
        at_first = step == 0  # traced, though step is not, inside another's conditional
        known = not isinstance(at_first, jax.core.Tracer)
        if products == "exact" and known and at_first:
            _check_forward(grad_fn, params)
        v = _decision.branch(due, estimate, lambda: old, grad_fn, params)
        epsilon = _lean(first, v, value_at(rho, step), value_at(alpha, step))
        return epsilon, state._replace(v=_tree.placed_like(v, state.v))

    return transformation(init, update)


def _check_whole(params: Tree) -> None:
    """Raises where parameters are hidden that grad_fn needs."""
    for path, node in jax.tree.leaves_with_path(params, is_leaf=_parts.is_masked):
        if _parts.is_masked(node):
            raise ValueError(
                f"eigen_ball needs the parameters that grad_fn takes, and its params"
                f"{jax.tree_util.keystr(path)} is an optax.MaskedNode: in place of optax.masked or "
                "optax.partition around it take sam_optax.perturb.only(mask, "
                "sam_optax.perturb.eigen_ball(...))."
            )


def _hessian_product(gradient: GradFn, params: Tree, v: Tree) -> Tree:
    """H v, the derivative of the gradient along v."""
    # v has the dtypes of the parameters that init saw, which these need not have any more.
    product: Tree = jax.jvp(gradient, (params,), (_tree.cast_like(v, params),))[1]
    return product


def _difference(
    gradient: GradFn, repeat: _decision.Repeat, params: Tree, v: Tree, rho: jax.typing.ArrayLike
) -> Tree:
    """H unit(v) = (g(w + h unit(v)) − g(w − h unit(v))) / 2h + O(h²), one gradient after the other.

    h is ρ, held between √u ‖w‖ and ∛u ‖w‖. 0 has no size, and counts as 1.
    """
    size = _tree.norm(params)
    size = jnp.where(size > 0, size, 1)
    units = [float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(v)]
    spacing = max(units, default=0.0)  # of no parameters, which need none
    h = jnp.clip(rho, spacing ** (1 / 2) * size, spacing ** (1 / 3) * size)
    offset = _tree.towards(v, h)

    def side(carry: tuple[jax.Array, Tree]) -> tuple[jax.Array, Tree]:
        sign, total = carry
        away = gradient(_tree.add(params, _tree.combine(lambda x: sign * x, offset)))
        return -sign, _tree.combine(lambda x, y: x + sign * y, total, away)

    zeros = _tree.placed_like(_tree.zeros_like(v), v)
    _, total = repeat(2, side, (jnp.ones([], jnp.float32), zeros))
    return _tree.combine(lambda x: x / (2 * h), total)


def _check_forward(grad_fn: GradFn, params: Tree) -> None:
    """Raises now, rather than a period of steps later, where grad_fn has no forward derivative."""
    try:
        # A custom_vjp that does not come to bear is no fault; what does, lowering tells.
        jax.jit(functools.partial(_hessian_product, grad_fn)).lower(params, params)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "eigen_ball with products='exact' needs a grad_fn that can be differentiated in "
            "forward mode, and there is a jax.custom_vjp in the way: pass "
            "products='differences', or define that derivative by jax.custom_jvp."
        ) from error


@_shards.compiled  # on the host path, where the rest runs op by op because of grad_fn
def _lean(first: Tree, v: Tree, rho: jax.typing.ArrayLike, alpha: jax.typing.ArrayLike) -> Tree:
    """ρ (ĝ + α sign⟨g, v⟩ reject(v, ĝ))."""
    ascent = _tree.towards(first, 1.0)
    weight = alpha * jnp.sign(_tree.along(v, first))
    rejected = _tree.reject(v, ascent)
    return _tree.combine(lambda a, r: rho * (a + weight * r), ascent, rejected)
