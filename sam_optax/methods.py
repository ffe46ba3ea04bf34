"""The named methods: each is a choice of parts.

They stand on one page, long as it is, so that each can be read beside those that it differs from.

Every method returns one link of an Optax chain, `update(updates, state, params, *, grad_fn)`; see
`sam_optax.sharpness_aware` for that contract, for the dtypes and for the errors of the update.
Notation: w the parameters, g the gradient at w (at w + δ0 in the methods that have a δ0), ε the
perturbation, g' the gradient at w + ε on the same batch, d the direction handed on. Norms and inner
products are global over the whole tree, in float32 at least; unit(x) = x / max(‖x‖, 1e-12). A
radius, budget, weight or threshold may be an Optax schedule of the link's own step count, where its
type says so.
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import optax

from sam_optax import _checks, schedules
from sam_optax._axes import AxisName
from sam_optax._contracts import Schedulable
from sam_optax._engine import sharpness_aware
from sam_optax._examples import select_examples
from sam_optax._kernels import Kernels
from sam_optax._purity import ours
from sam_optax._random import Key
from sam_optax.combine import (
    extrapolate,
    mix,
    newton_hessian,
    newton_precision,
    renormalize,
    reuse,
    surrogate_gap,
    weigh,
)
from sam_optax.perturb import (
    adaptive_ball,
    ball,
    eigen_ball,
    ema,
    fisher_ball,
    loss_ball,
    noisy_ball,
    over_precision,
    random_coordinates,
    subtract_ema,
)
from sam_optax.start import hessian, momentum, noise, precision, previous
from sam_optax.when import adaptive, bernoulli, every

__all__ = [
    "ae_looksam",
    "ae_sam",
    "asam",
    "bsam",
    "coupled_wsam",
    "eigen_sam",
    "esam",
    "fisher_sam",
    "friendly_sam",
    "gsam",
    "ivon",
    "le_sam",
    "le_sam_plus",
    "looksam",
    "lpf_sgd",
    "msam",
    "r_gsam",
    "r_sam",
    "s2_sam",
    "sam",
    "samar",
    "ss_sam",
    "ssam",
    "vasso",
    "wsam",
]


def sam(rho: Schedulable = 0.05) -> optax.GradientTransformationExtraArgs:
    r"""Sharpness-aware minimization.

    .. math::
      \epsilon = \rho \, g / \|g\|, \qquad d = \nabla L(w + \epsilon)

    Two gradients a step. All parameters are perturbed, biases and normalisation layers too.

    Args:
      rho: the radius ρ ≥ 0, in the units of the parameters. 0 is the base optimizer.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho is negative.
      TypeError: rho is neither a number nor a schedule.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> tx = optax.chain(sam_optax.sam(rho=0.1), optax.sgd(0.5))
      >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2))
      >>> w = jnp.array([3.0, 4.0])
      >>> updates, _ = tx.update(grad_fn(w), tx.init(w), w, grad_fn=grad_fn)
      >>> print(jnp.round(w + updates, 2))  # w − 0.5 · 2 (w + ε), ε = 0.1 · (0.6, 0.8)
      [-0.06 -0.08]

    References:
      Foret et al., `Sharpness-Aware Minimization for Efficiently Improving Generalization
      <https://arxiv.org/abs/2010.01412>`_, 2021, Equations 2 and 3.
    """
    return sharpness_aware(ball(rho))


def asam(
    rho: Schedulable = 0.5,
    eta: Schedulable = 0.01,
    weights: Callable[[tuple[Any, ...]], bool] | Any = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adaptive SAM: a radius relative to the size of each weight.

    .. math::
      T = |w| + \eta \text{ in the weights, } 1 \text{ elsewhere}, \qquad
      \epsilon = \rho \, \frac{T^2 g}{\|T g\|}, \qquad d = \nabla L(w + \epsilon)

    Two gradients a step.

    Args:
      rho: the radius ρ ≥ 0, relative to the weights. 0 is the base optimizer.
      eta: η ≥ 0, in the units of the parameters.
      weights: which leaves are weights: a function of a leaf's key path, or a tree of booleans that
        is a prefix of the parameters. By default the leaves with two or more axes that are no
        biases (named "b" or "offset", or with "bias" at the beginning or end), and those named
        "scale" or "weight" (normalisation layers); the name is the last on the key path, behind
        boxes, list indices, dots and slashes. Where no leaf has a name that Flax, Equinox, PyTorch
        or Haiku give, it has to be told.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho or eta is negative; at the update, weights is no prefix of the parameters, or
        None where no leaf has a known name.
      TypeError: rho or eta is neither a number nor a schedule; at the update, weights returns no
        boolean.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> link = sam_optax.asam(rho=0.5, eta=0.0)
      >>> w = {"kernel": jnp.array([[3.0]]), "bias": jnp.array([1.0])}
      >>> grads = {"kernel": jnp.array([[1.0]]), "bias": jnp.array([4.0])}
      >>> point, _ = link.update(grads, link.init(w), w, grad_fn=lambda p: p)  # hands on w + ε
      >>> print(point)  # w + 0.5 · (3² · 1 | 4) / ‖(3 · 1 | 4)‖
      {'bias': Array([1.4], dtype=float32), 'kernel': Array([[3.9]], dtype=float32)}

    References:
      Kwon et al., `ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep
      Neural Networks <https://arxiv.org/abs/2102.11600>`_, 2021. The paper's T covers the weights
      alone; which leaves those are follows the authors' code, which goes by names.
    """
    return sharpness_aware(adaptive_ball(rho, eta, weights))


def fisher_sam(
    rho: Schedulable = 0.1, eta: Schedulable = 1.0
) -> optax.GradientTransformationExtraArgs:
    r"""Fisher SAM: a ball of the diagonal Fisher metric.

    .. math::
      F^{-1} = \frac{1}{1 + \eta g^2}, \qquad
      \epsilon = \rho \, \frac{F^{-1} g}{\sqrt{\langle g, F^{-1} g \rangle}}, \qquad
      d = \nabla L(w + \epsilon)

    Two gradients a step. It depends on the scale of the loss: unscale losses first.

    Args:
      rho: the radius ρ ≥ 0. 0 is the base optimizer.
      eta: η ≥ 0. 0 is `sam`.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho or eta is negative.
      TypeError: one of them is neither a number nor a schedule.

    Example:
      >>> import jax.numpy as jnp, sam_optax
      >>> link = sam_optax.fisher_sam(rho=1.0, eta=1.0)
      >>> w, grads = jnp.zeros(2), jnp.array([1.0, 2.0])
      >>> point, _ = link.update(grads, link.init(w), w, grad_fn=lambda p: p)  # hands on w + ε
      >>> print(jnp.round(point**2 * 1.3, 2))  # (1/2, 2/5) / √1.3, squared
      [0.25 0.16]

    References:
      Kim et al., `Fisher SAM: Information Geometry and Sharpness Aware Minimisation
      <https://arxiv.org/abs/2206.04920>`_, 2022.
    """
    return sharpness_aware(fisher_ball(rho, eta))


def gsam(
    rho: Schedulable = 0.05, alpha: Schedulable = 0.4
) -> optax.GradientTransformationExtraArgs:
    r"""Surrogate gap guided SAM.

    .. math::
      \epsilon = \rho_t \, g / \|g\|, \qquad
      d = g' - \alpha \left(g - \frac{\langle g, g' \rangle}{\|g'\|^2} g'\right)

    Two gradients a step. The paper's radius follows the learning rate:
    `sam_optax.schedules.rho_from_learning_rate`.

    Args:
      rho: the radius ρ ≥ 0.
      alpha: the weight α ≥ 0 of the part of g orthogonal to g'. 0 is `sam`.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho or alpha is negative.
      TypeError: one of them is neither a number nor a schedule.

    Example:
      >>> import optax, sam_optax
      >>> lr = optax.cosine_decay_schedule(0.1, 10_000)
      >>> rho = sam_optax.schedules.rho_from_learning_rate(
      ...     lr, rho_max=0.6, rho_min=0.2, lr_max=0.1, lr_min=0.0)
      >>> tx = optax.chain(sam_optax.gsam(rho, alpha=0.4), optax.sgd(lr, momentum=0.9))

    References:
      Zhuang et al., `Surrogate Gap Minimization Improves Sharpness-Aware Training
      <https://arxiv.org/abs/2203.08065>`_, 2022, Algorithm 1.
    """
    return sharpness_aware(ball(rho), combine=surrogate_gap(alpha))


def ssam(rho: Schedulable = 0.05) -> optax.GradientTransformationExtraArgs:
    r"""Stable SAM: the perturbed gradient at the norm of the clean one.

    .. math:: \epsilon = \rho \, g / \|g\|, \qquad d = \frac{\|g\|}{\|g'\|} \, g'

    Two gradients a step. It scales up and down; g' = 0 gives d = 0.

    Args:
      rho: the radius ρ ≥ 0. 0 is the base optimizer.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho is negative.
      TypeError: rho is neither a number nor a schedule.

    Example:
      >>> import jax.numpy as jnp, sam_optax
      >>> link = sam_optax.ssam(rho=0.1)
      >>> w = jnp.array([3.0, 4.0])
      >>> direction, _ = link.update(w, link.init(w), w, grad_fn=lambda p: 10 * p)
      >>> print(jnp.round(direction, 2))
      [3. 4.]

    References:
      Tan et al., `Stabilizing Sharpness-Aware Minimization Through A Simple Renormalization
      Strategy <https://arxiv.org/abs/2401.07250>`_, 2024.
    """
    return sharpness_aware(ball(rho), combine=renormalize())


def looksam(
    rho: Schedulable = 0.05, alpha: Schedulable = 0.7, period: int = 5
) -> optax.GradientTransformationExtraArgs:
    r"""LookSAM: a second gradient every few steps, its sharp part reused in between.

    At every `period`-th step, step 0 included, d = g' and v = reject(g', g); at the others

    .. math:: d = g + \alpha \, \|g\| \, v / \|v\|

    1 + 1/period gradients a step, and one copy of the parameters as state (`v`). v starts at 0.

    Args:
      rho: the radius ρ ≥ 0.
      alpha: the weight α ≥ 0 of the reused direction.
      period: the period k ≥ 1. 1 is `sam`.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho or alpha is negative, or period is less than 1.
      TypeError: rho or alpha is neither a number nor a schedule, or period no integer.

    Example:
      >>> import jax.numpy as jnp, optax, sam_optax
      >>> link = sam_optax.looksam(period=3)
      >>> w = jnp.ones(2)
      >>> state = link.init(w)
      >>> for _ in range(7):
      ...     _, state = link.update(w, state, w, grad_fn=lambda p: p)
      >>> print(sam_optax.read(state, "ascents"))  # at steps 0, 3 and 6
      3

    References:
      Liu et al., `Towards Efficient and Scalable Sharpness-Aware Minimization
      <https://arxiv.org/abs/2203.02714>`_, 2022, Algorithm 1. Deviation: norms and projections are
      those of the whole parameter vector, as the paper writes them, not per tensor.
    """
    return sharpness_aware(ball(rho), when=every(period), combine=reuse(alpha))


def ss_sam(
    rho: Schedulable = 0.05, probability: Schedulable = 0.5, *, key: Key = 0
) -> optax.GradientTransformationExtraArgs:
    r"""SS-SAM: a coin decides between SAM and the base optimizer.

    .. math::
      d = \begin{cases} \nabla L(w + \rho \, g / \|g\|) & \text{with probability } p \\
                        g & \text{otherwise} \end{cases}

    1 + p gradients a step, p the probability. One coin serves all devices.

    Args:
      rho: the radius ρ ≥ 0.
      probability: p in [0, 1], or a schedule of it: constant, piecewise, linear or trigonometric in
        the paper. 1 is `sam`, 0 the base optimizer.
      key: an int or a `jax.random.key`.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho is negative, or probability outside [0, 1].
      TypeError: an argument is no number, or key no int or key.

    Example:
      >>> import optax, sam_optax
      >>> rising = optax.linear_schedule(0.0, 1.0, transition_steps=10_000)
      >>> tx = optax.chain(sam_optax.ss_sam(probability=rising), optax.sgd(0.1))

    References:
      Zhao et al., `SS-SAM: Stochastic Scheduled Sharpness-Aware Minimization for Efficiently
      Training Deep Neural Networks <https://arxiv.org/abs/2203.09962>`_, 2022.
    """
    return sharpness_aware(ball(rho), when=bernoulli(probability, key=key))


def esam(
    rho: Schedulable = 0.05,
    beta: float = 0.6,
    gamma: float = 0.5,
    *,
    key: Key = 0,
    mask: str = "coordinate",
) -> optax.GradientTransformationExtraArgs:
    r"""Efficient SAM: a random part of the weights perturbed, a sensitive part of the batch used.

    .. math::
      m \sim \mathrm{Bernoulli}(\beta), \qquad \epsilon = \frac{\rho}{\beta} \,
      \frac{m \, g}{\|g\|}, \qquad d = \nabla \, \frac{1}{K} \sum_{i \in S} \ell_i(w + \epsilon)

    S holds the K = max(1, ⌊γB⌋) examples with the largest ℓ_i(w + ε) − ℓ_i(w). One gradient, one
    forward pass and γ gradients a step, where the update is given the losses at w as
    `example_losses`; otherwise another forward pass. Where γ < 1, grad_fn takes the indices of the
    examples to keep, and the update needs the loss of each example; see
    `sam_optax.select_examples`, also for losses that depend on other examples.

    Args:
      rho: the radius ρ ≥ 0. 0 perturbs nothing.
      beta: the probability β in (0, 1] with which a coordinate is perturbed.
      gamma: the share γ in (0, 1] of the examples in the second gradient. β = γ = 1 is `sam`. Under
        `optax.inject_hyperparams` it belongs to static_args: it sets a shape.
      key: an int or a `jax.random.key`.
      mask: "coordinate", the paper's, or "tensor", as the authors' code: one draw for each leaf,
        and ‖m g‖ in place of ‖g‖.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho is negative, beta or gamma outside (0, 1], or mask none of the named; at the
        update, example_loss_fn or grad_fn is missing.
      TypeError: an argument is no number, or key no int or key; at the update, grad_fn does not
        take indices.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> tx = optax.chain(sam_optax.esam(rho=0.1), optax.sgd(0.1))
      >>> w, batch = jnp.array([1.0, -1.0]), jnp.eye(4, 2)
      >>> losses = lambda w, x: (x @ w - 1) ** 2
      >>> grad = jax.grad(lambda w, x: losses(w, x).mean())
      >>> updates, state = tx.update(
      ...     grad(w, batch), tx.init(w), w,
      ...     grad_fn=lambda w, indices: grad(w, batch[indices]),
      ...     example_loss_fn=lambda w: losses(w, batch),
      ...     example_losses=losses(w, batch))  # better: the aux of the first gradient

    References:
      Du et al., `Efficient Sharpness-aware Minimization for Improved Training of Neural Networks
      <https://arxiv.org/abs/2110.03141>`_, 2022. Deviations: the authors' code keeps K − 1
      examples, and masks as mask="tensor" does.
    """
    masked = random_coordinates(beta, key=key, mask=mask)
    if mask == "coordinate":
        perturb = optax.chain(ball(rho), masked)
    else:
        scale = optax.scale(1 / beta)
        scale = optax.GradientTransformation(scale.init, ours()(scale.update))
        perturb = optax.chain(masked, ball(rho), scale)
    return select_examples(sharpness_aware(perturb), gamma)


def ae_sam(
    rho: Schedulable = 0.05,
    *,
    total_steps: int,
    lambda_1: float = -1.0,
    lambda_2: float = 1.0,
    decay: float = 0.9,
    initial_variance: float = math.exp(-10),
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AE-SAM: SAM where the gradient is large for its recent course, else the base optimizer.

    With s = ‖g‖², its moving mean μ_t and moving variance σ_t² (decay δ, the variance around the
    new mean, no bias correction):

    .. math::
      c_t = \tfrac{t}{T} \lambda_1 + (1 - \tfrac{t}{T}) \lambda_2, \qquad
      d = \begin{cases} \nabla L(w + \rho \, g / \|g\|) & s \ge \mu_t + c_t \sigma_t \\
                        g & \text{otherwise} \end{cases}

    1 + ζ gradients a step, ζ about one half. State: `mean`, `variance`.

    Args:
      rho: the radius ρ ≥ 0.
      total_steps: T ≥ 1, the length of the training in steps; c_t stays at λ1 after it.
      lambda_1: λ1, the threshold at the end.
      lambda_2: λ2, the threshold at the start. λ1 = λ2 = −inf is `sam`, inf the base optimizer.
      decay: δ in [0, 1].
      initial_variance: σ² before the first step, e^(−10) as the paper prints it (1e-10 may have
        been meant).
      axis_name: the mapped axes over which s is averaged; needed where each device feeds its own
        gradient, so that all decide alike.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho or initial_variance is negative, total_steps is less than 1, decay is outside
        [0, 1], or a threshold is NaN or infinite against the other.
      TypeError: an argument is no number.

    Example:
      >>> import jax.numpy as jnp, optax, sam_optax
      >>> link = sam_optax.ae_sam(total_steps=100, lambda_1=1.0)
      >>> w = jnp.ones(2)
      >>> state = link.init(w)
      >>> for scale in (1.0, 0.1, 2.0, 0.1):  # an unusually large gradient is worth a second one
      ...     _, state = link.update(scale * w, state, w, grad_fn=lambda p: p)
      >>> print(sam_optax.read(state, "ascents"))
      2

    References:
      Jiang et al., `An Adaptive Policy to Employ Sharpness-Aware Minimization
      <https://arxiv.org/abs/2304.14647>`_, 2023, Algorithm 1.
      Deviation: ε is normalised, as in the paper's Equation 2; Algorithm 1 prints ε = ρ g.
    """
    threshold = schedules.linear_threshold(lambda_1, lambda_2, total_steps)
    policy = adaptive(
        threshold, decay=decay, initial_variance=initial_variance, axis_name=axis_name
    )
    return sharpness_aware(ball(rho), when=policy)


def ae_looksam(
    rho: Schedulable = 0.05,
    alpha: Schedulable = 0.3,
    *,
    total_steps: int,
    lambda_1: float = 0.0,
    lambda_2: float = 2.0,
    decay: float = 0.9,
    initial_variance: float = math.exp(-10),
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""AE-LookSAM: the test of `ae_sam`, and between its second gradients the reuse of `looksam`.

    Where s = ‖g‖² ≥ μ_t + c_t σ_t: d = g' and v = reject(g', g). Otherwise

    .. math:: d = g + \alpha \, \|g\| \, v / \|v\|

    1 + ζ gradients a step, ζ about one fifth. State: `mean`, `variance`, and `v`, one copy of the
    parameters, which starts at 0. With label noise the paper takes λ1 = −1, λ2 = 1.

    Args:
      rho: the radius ρ ≥ 0.
      alpha: the weight α ≥ 0 of the reused direction; the paper's grid is .1, .3, .6, .9.
      total_steps: T ≥ 1, the length of the training in steps.
      lambda_1: λ1, the threshold at the end.
      lambda_2: λ2, the threshold at the start. λ1 = λ2 = −inf is `sam`.
      decay: δ in [0, 1].
      initial_variance: σ² before the first step.
      axis_name: the mapped axes over which s is averaged; needed where each device feeds its own
        gradient, so that all decide alike.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: as `ae_sam`, or alpha is negative.
      TypeError: an argument is no number.

    Example:
      >>> import optax, sam_optax
      >>> link = sam_optax.ae_looksam(rho=0.1, total_steps=10_000, lambda_1=-1.0, lambda_2=1.0)
      >>> tx = optax.chain(link, optax.sgd(0.1, momentum=0.9))

    References:
      Jiang et al., `An Adaptive Policy to Employ Sharpness-Aware Minimization
      <https://arxiv.org/abs/2304.14647>`_, 2023, Algorithm 1.
      Deviation: ε is normalised, as in `ae_sam`.
    """
    threshold = schedules.linear_threshold(lambda_1, lambda_2, total_steps)
    policy = adaptive(
        threshold, decay=decay, initial_variance=initial_variance, axis_name=axis_name
    )
    return sharpness_aware(ball(rho), when=policy, combine=reuse(alpha))


def samar(
    rho: Schedulable = 0.1,
    gamma: Schedulable = 1.4,
    chi: Schedulable = 1.05,
    lambda_0: float = 1.0,
    delta: float = 0.01,
    ratio: str = "clean",
    *,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SAMAR: SAM with an adaptive weight of the sharpness.

    .. math::
      d_k = (1 - \lambda_k) \, g + \lambda_k \, g', \qquad \epsilon = \rho \, g / \|g\|, \qquad
      r_k = \|g_k\| / \|g_{k-1}\|

    λ_{k+1} = clip(γ λ_k, δ, 1 − δ) if k = 0 or r_k ≥ χ, else clip(λ_k / γ, δ, 1 − δ). Two gradients
    a step. State: `lambda_k`, `previous_norm`.

    Args:
      rho: the radius ρ ≥ 0.
      gamma: the factor γ > 1 by which λ grows and shrinks.
      chi: the threshold χ ≥ 0 of the ratio r_k.
      lambda_0: λ_0 in [0, 1], not clipped: with 1 the first step is `sam`.
      delta: δ in [0, 0.5], the distance that λ keeps from 0 and 1.
      ratio: "clean", the paper's ratio of clean gradient norms, or "perturbed", the ratio of
        perturbed ones in the authors' code.
      axis_name: the mapped axes over which the norms are averaged, so that λ is equal on all
        devices where each feeds its own gradient.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: an argument is out of its range.
      TypeError: an argument is no number.

    Example:
      >>> import jax.numpy as jnp, optax, sam_optax
      >>> link = sam_optax.samar(gamma=2.0, lambda_0=0.25)
      >>> w = jnp.ones(2)
      >>> state = link.init(w)
      >>> for scale in (1.0, 0.5):  # λ grows at the first step, and shrinks with the gradient
      ...     _, state = link.update(scale * w, state, w, grad_fn=lambda p: p)
      ...     print(sam_optax.read(state, "lambda_k"))
      0.5
      0.25

    References:
      Zou et al., `Sharpness-Aware Minimization with Adaptive Regularization for Training Deep
      Neural Networks <https://arxiv.org/abs/2412.16854>`_, 2024, Algorithm 1. The authors' code
      leaves λ unchanged where it should clip below; that is not reproduced.
    """
    weight = mix(gamma, chi, lambda_0, delta, ratio=ratio, axis_name=axis_name)
    return sharpness_aware(ball(rho), combine=weight)


def vasso(
    rho: Schedulable = 0.05, theta: Schedulable = 0.9
) -> optax.GradientTransformationExtraArgs:
    r"""VaSSO: the ascent follows a moving average of the gradient.

    .. math::
      m_0 = g, \qquad m \leftarrow (1 - \theta) \, m + \theta \, g, \qquad
      \epsilon = \rho \, m / \|m\|, \qquad d = \nabla L(w + \epsilon)

    Two gradients a step. State: `m`, one copy of the parameters.

    Args:
      rho: the radius ρ ≥ 0. 0 is the base optimizer.
      theta: the weight θ in [0, 1] of the new gradient. 1 is `sam`.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho is negative, or theta outside [0, 1].
      TypeError: one of them is neither a number nor a schedule.

    Example:
      >>> import jax.numpy as jnp, optax, sam_optax
      >>> link = sam_optax.vasso(theta=0.5)
      >>> w = jnp.zeros(2)
      >>> state = link.init(w)
      >>> for grads in (jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0])):
      ...     _, state = link.update(grads, state, w, grad_fn=lambda p: p)
      >>> print(sam_optax.read(state, "m"))
      [1. 1.]

    References:
      Li and Giannakis, `Enhancing Sharpness-Aware Optimization Through Variance Suppression
      <https://arxiv.org/abs/2309.15639>`_, 2023.
    """
    return sharpness_aware(optax.chain(ema(theta), ball(rho)))


def friendly_sam(
    rho: Schedulable = 0.05, sigma: Schedulable = 1.0, decay: Schedulable = 0.9
) -> optax.GradientTransformationExtraArgs:
    r"""Friendly SAM: the ascent follows the noise of the batch.

    .. math::
      \epsilon = \rho \, \frac{g - \sigma m}{\|g - \sigma m\|}, \qquad
      m \leftarrow \beta m + (1 - \beta) g, \qquad d = \nabla L(w + \epsilon)

    ε takes the m of the step before, β is the decay; at step 0 the direction is g, and m = g after
    it. Two gradients a step. State: `m`, one copy of the parameters.

    Args:
      rho: the radius ρ ≥ 0. 0 is the base optimizer.
      sigma: the weight σ ≥ 0 of the moving average. 0 is `sam`.
      decay: β in [0, 1], of the moving average of the raw gradients.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho or sigma is negative, or decay outside [0, 1].
      TypeError: one of them is neither a number nor a schedule.

    Example:
      >>> import jax.numpy as jnp, sam_optax
      >>> link = sam_optax.friendly_sam(rho=1.0)
      >>> w = jnp.zeros(2)
      >>> state = link.init(w)
      >>> for grads in (jnp.array([3.0, 0.0]), jnp.array([3.0, 4.0])):
      ...     point, state = link.update(grads, state, w, grad_fn=lambda p: p)  # hands on ε
      >>> print(point)
      [0. 1.]

    References:
      Li et al., `Friendly Sharpness-Aware Minimization <https://arxiv.org/abs/2403.12350>`_, 2024.
      The paper subtracts the new m; for σ = 1 the direction is the same.
    """
    return sharpness_aware(optax.chain(subtract_ema(sigma, decay), ball(rho)))


def eigen_sam(
    rho: Schedulable = 0.05,
    alpha: Schedulable = 0.2,
    period: int = 100,
    power_iterations: int = 5,
    *,
    products: str = "exact",
    key: Key = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Eigen-SAM: the ascent leans towards the Hessian's top eigenvector.

    .. math::
      \hat g = g / \|g\|, \qquad
      \epsilon = \rho \, \bigl(\hat g + \alpha \, \mathrm{sign} \langle g, v \rangle \,
      (v - \langle v, \hat g \rangle \hat g)\bigr), \qquad d = \nabla L(w + \epsilon)

    v is estimated every `period` steps, step 0 excluded, by so many power iterations from the last
    estimate. Two gradients a step, and every `period` steps the Hessian-vector products, about two
    gradients each: exact ones, for which grad_fn must be differentiable in forward mode, or
    differences of gradients at either side of w, which need the memory of `sam`, work wherever
    `sam` does and are less accurate (`perturb.eigen_ball` says how far). Before the first estimate
    it is `sam`. State: `v`, one copy of the parameters.

    Args:
      rho: the radius ρ ≥ 0. 0 is the base optimizer.
      alpha: the weight α ≥ 0 of the eigenvector. 0 is `sam`.
      period: the steps between two estimates, ≥ 1.
      power_iterations: the products of an estimate, ≥ 1. Under `optax.inject_hyperparams` it
        belongs to static_args: it is the length of a loop.
      products: "exact", or "differences" where a `jax.custom_vjp` (a fused kernel, a quantiser,
        float8) is in grad_fn, or memory is short.
      key: an int or a `jax.random.key`, of the first start.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho or alpha is negative, a count is less than 1, or products is neither of the
        two.
      TypeError: an argument is no number, a count no integer, or key no int or key; at step 0,
        outside jit, a `jax.custom_vjp` in grad_fn is in the way of exact products. (JAX's own
        errors tell of it inside jit, and of other functions without forward mode.)

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> link = sam_optax.eigen_sam(period=1, power_iterations=20)
      >>> w, grad_fn = jnp.ones(2), jax.grad(lambda w: w[0] ** 2 + 3 * w[1] ** 2)
      >>> state = link.init(w)
      >>> for _ in range(2):
      ...     _, state = link.update(grad_fn(w), state, w, grad_fn=grad_fn)
      >>> print(jnp.abs(sam_optax.read(state, "v")).round(3))
      [0. 1.]

    References:
      Luo et al., `Explicit Eigenvalue Regularization Improves Sharpness-Aware Minimization
      <https://arxiv.org/abs/2501.12666>`_, 2024. ε is not renormalised.
    """
    return sharpness_aware(
        eigen_ball(rho, alpha, period, power_iterations, products=products, key=key)
    )


def le_sam(
    budget: Schedulable = 0.35, rho_max: Schedulable | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""LE-SAM: the perturbation has a fixed loss budget in place of a fixed radius.

    .. math::
      N = \sqrt{\|g\|^2 + 10^{-12}}, \qquad \rho_t = \min(b_t / N, \rho_{max}), \qquad
      \epsilon = \rho_t \, g / N, \qquad d = \nabla L(w + \epsilon)

    Two gradients a step. Where ρ_max does not bind, ⟨g, ε⟩ is the budget b_t. It depends on the
    scale of the loss: unscale losses first. State: `rho`, the ρ_t in force.

    Args:
      budget: the loss budget ≥ 0, in the units of the loss; anneal it by
        `sam_optax.schedules.budget_annealing`. 0 is the base optimizer.
      rho_max: the largest radius, or None. With a huge budget it is `sam` of that radius.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: budget or rho_max is negative.
      TypeError: one of them is neither a number nor a schedule.

    Example:
      >>> import jax.numpy as jnp, optax, sam_optax
      >>> budget = sam_optax.schedules.budget_annealing(0.35, anneal_from=160, total=200)
      >>> link = sam_optax.le_sam(budget, rho_max=0.4)
      >>> w, grads = jnp.zeros(2), jnp.array([3.0, 4.0])
      >>> _, state = link.update(grads, link.init(w), w, grad_fn=lambda p: p)
      >>> print(f"{sam_optax.read(state, 'rho'):.2f}")  # 0.35 / 5
      0.07

    References:
      Wang et al., `Fix the Loss, Not the Radius <https://arxiv.org/abs/2605.10183>`_, 2026,
      Algorithm 1. Where the text lost its symbols, N and the clip are those of the authors' code.
    """
    return sharpness_aware(loss_ball(budget, rho_max))


def le_sam_plus(
    budget: Schedulable = 0.15, alpha: Schedulable = 0.5, rho_max: Schedulable | None = None
) -> optax.GradientTransformationExtraArgs:
    r"""LE-SAM+: the perturbation of `le_sam`, less a share of the clean gradient.

    .. math:: d = \nabla L(w + \epsilon) - \alpha \, g

    Two gradients a step. The direction is not rescaled, so the effective learning rate shrinks by
    about 1 − α. State: `rho`, the ρ_t in force.

    Args:
      budget: the loss budget ≥ 0, in the units of the loss.
      alpha: the weight α ≥ 0 of the clean gradient. 0 is `le_sam`.
      rho_max: the largest radius, or None.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: an argument is negative.
      TypeError: an argument is neither a number nor a schedule.

    Example:
      >>> import jax.numpy as jnp, optax, sam_optax
      >>> link = sam_optax.le_sam_plus(budget=25.0, alpha=0.5)
      >>> w, grads = jnp.zeros(2), jnp.array([3.0, 4.0])
      >>> direction, _ = link.update(grads, link.init(w), w, grad_fn=lambda p: 2 * p)
      >>> print(direction)  # 2 · 25 / 5 · (0.6, 0.8) − 0.5 · (3, 4)
      [4.5 6. ]

    References:
      Wang et al., `Fix the Loss, Not the Radius <https://arxiv.org/abs/2605.10183>`_, 2026, Section
      6.1.
    """
    return sharpness_aware(loss_ball(budget, rho_max), combine=extrapolate(alpha))


def r_sam(
    rho: Schedulable = 0.05,
    gamma: Schedulable = 0.1,
    lambda_: Schedulable = 1.0,
    *,
    key: Key = 0,
    noise_scale: str = "std",
    normalize_gradient: bool = False,
    kernels: Kernels = None,
    updates_at: str = "params",
) -> optax.GradientTransformationExtraArgs:
    r"""Random SAM: the ascent starts from a random point near the parameters.

    .. math::
      \delta_0 \sim \mathcal{N}(0, \gamma^2 \|w_j\|^2) \text{ in kernel } j, \qquad
      g = \nabla L(w + \delta_0), \qquad
      \epsilon = \rho \, \frac{\delta_0 + \lambda g}{\|\delta_0 + \lambda g\|}, \qquad
      d = \nabla L(w + \epsilon)

    ε is added to w, not to w + δ0. Two gradients a step with updates_at="gradient_point", where the
    caller takes the first one at `sam_optax.gradient_point(opt_state, params)`; otherwise `updates`
    is one more, which a step falls back on where its own is not finite. A kernel of n numbers, its
    fan-in, is moved by about γ √n times its norm; which axes make one, kernels says. δ0 is redrawn
    from a counter, never stored.

    Args:
      rho: the radius ρ ≥ 0.
      gamma: the scale γ ≥ 0 of the noise; r / √n moves a kernel of n numbers by a share r. 0 is
        `sam`. The paper's figures have γ² of .0075 to .0125. Under `optax.inject_hyperparams` a
        changed γ takes effect one step later.
      lambda_: the weight λ ≥ 0 of the gradient against the noise.
      key: an int or a `jax.random.key`.
      noise_scale: "std", a standard deviation of γ ‖w_j‖, or "variance", a variance of γ² ‖w_j‖ as
        Algorithm 1 prints it.
      normalize_gradient: whether λ weighs unit(g) in place of g, the reading of Section 4.6.
      kernels: which axes of a leaf make one kernel: a function (key path, leaf) ↦ axes, such as
        `sam_optax.start.kernel_axes` makes, or a tree of such functions that is a prefix of the
        parameters. By default the paper's kernels in the layout of Flax: a slice along the last
        axis of a leaf with two or more axes, and a leaf with fewer axes whole. Layouts (out, in),
        stacked layers, embeddings and attention have to be told. Under `optax.inject_hyperparams` a
        function belongs to static_args.
      updates_at: "params" or "gradient_point".

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho, gamma or `lambda_` is negative, or noise_scale or updates_at is none of the
        named; at init, kernels is no prefix of the parameters, or returns axes that a leaf lacks.
      TypeError: an argument is no number, key no int or key, or kernels no function or tree of
        functions.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> tx = optax.chain(sam_optax.r_sam(updates_at="gradient_point"), optax.sgd(0.1))
      >>> w, grad_fn = jnp.ones(3), jax.grad(lambda w: jnp.sum(w**4))
      >>> state = tx.init(w)
      >>> grads = grad_fn(sam_optax.gradient_point(state, w))
      >>> updates, state = tx.update(grads, state, w, grad_fn=grad_fn)

    References:
      Liu et al., Random Sharpness-Aware Minimization, 2022, Equation 7 and Algorithm 1. Deviation:
      noise_scale is "std" by default, as in the code of LPF-SGD, whose notation the paper uses.
    """
    return sharpness_aware(
        noisy_ball(rho, lambda_, normalize_gradient=normalize_gradient),
        start=noise(gamma, key=key, power=_kernel_power(noise_scale), kernels=kernels),
        updates_at=updates_at,
    )


def r_gsam(
    rho: Schedulable = 0.05,
    gamma: Schedulable = 0.1,
    lambda_: Schedulable = 1.0,
    alpha: Schedulable = 0.4,
    *,
    key: Key = 0,
    noise_scale: str = "std",
    normalize_gradient: bool = False,
    kernels: Kernels = None,
    updates_at: str = "params",
) -> optax.GradientTransformationExtraArgs:
    r"""R-GSAM: the perturbation of `r_sam`, the direction of `gsam`.

    .. math:: d = g' - \alpha \left(g - \frac{\langle g, g' \rangle}{\|g'\|^2} g'\right), \qquad
      g = \nabla L(w + \delta_0)

    Two gradients a step with updates_at="gradient_point", as in `r_sam`.

    Args:
      rho: the radius ρ ≥ 0.
      gamma: the scale γ ≥ 0 of the noise, as in `r_sam`. 0 is `gsam`. Under
        `optax.inject_hyperparams` a changed γ takes effect one step later.
      lambda_: the weight λ ≥ 0 of the gradient against the noise.
      alpha: the weight α ≥ 0 of the part of g orthogonal to g'. 0 is `r_sam`.
      key: an int or a `jax.random.key`.
      noise_scale: "std" or "variance", as in `r_sam`.
      normalize_gradient: whether λ weighs unit(g) in place of g.
      kernels: which axes of a leaf make one kernel, as in `r_sam`.
      updates_at: "params" or "gradient_point".

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho, gamma, `lambda_` or alpha is negative, or noise_scale or updates_at is none
        of the named; at init, kernels is no prefix of the parameters, or returns axes that a leaf
        lacks.
      TypeError: an argument is no number, key no int or key, or kernels no function or tree of
        functions.

    Example:
      >>> import optax, sam_optax
      >>> tx = optax.chain(sam_optax.r_gsam(rho=0.1, key=1), optax.sgd(0.1, momentum=0.9))

    References:
      Liu et al., Random Sharpness-Aware Minimization, 2022, Section 4.5. Deviation: the paper does
      not say which gradient is projected; here it is the smoothed g, so that two gradients suffice.
    """
    return sharpness_aware(
        noisy_ball(rho, lambda_, normalize_gradient=normalize_gradient),
        start=noise(gamma, key=key, power=_kernel_power(noise_scale), kernels=kernels),
        combine=surrogate_gap(alpha),
        updates_at=updates_at,
    )


def lpf_sgd(
    gamma: Schedulable = 0.001,
    samples: int = 1,
    *,
    key: Key = 0,
    kernels: Kernels = None,
    updates_at: str = "params",
) -> optax.GradientTransformationExtraArgs:
    r"""LPF-SGD: the gradient of the loss smoothed by a Gaussian.

    .. math::
      \delta_0 \sim \mathcal{N}(0, \gamma^2 \|w_j\|^2) \text{ in kernel } j, \qquad
      d = \nabla L(w + \delta_0)

    d is the mean over the samples. As many gradients a step as samples, with
    updates_at="gradient_point", where the caller takes the first one at
    `sam_optax.gradient_point(opt_state, params)`; otherwise `updates` is one more, which a step
    falls back on where its own is not finite.

    Args:
      gamma: the scale γ ≥ 0 of the noise, as in `r_sam`; the paper lets it grow, as the schedule
        γ (1 + (c − 1)(1 − cos(πt/T)) / 2) for a c of its own. 0 is the base optimizer. Under
        `optax.inject_hyperparams` a changed γ takes effect one step later.
      samples: the draws that are averaged, ≥ 1. Under `optax.inject_hyperparams` it belongs to
        static_args: the program grows with it.
      key: an int or a `jax.random.key`.
      kernels: which axes of a leaf make one kernel, as in `r_sam`.
      updates_at: "params" or "gradient_point".

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: gamma is negative, samples less than 1, or updates_at none of the two; at init,
        kernels is no prefix of the parameters, or returns axes that a leaf lacks.
      TypeError: gamma is no number or schedule, samples no Python integer, key no int or key, or
        kernels no function or tree of functions.

    Example:
      >>> import jax, jax.numpy as jnp, optax, sam_optax
      >>> link = sam_optax.lpf_sgd(gamma=0.1, updates_at="gradient_point")
      >>> w = jnp.ones(3)
      >>> state = link.init(w)
      >>> grads = jax.grad(lambda w: jnp.sum(w**4))(sam_optax.gradient_point(state, w))
      >>> direction, state = link.update(grads, state, w)

    References:
      Bisla et al., `Low-Pass Filtering SGD for Recovering Flat Optima in the Deep Learning
      Optimization Landscape <https://arxiv.org/abs/2201.08025>`_, 2022.
    """
    return sharpness_aware(
        start=noise(gamma, key=key, samples=samples, kernels=kernels), updates_at=updates_at
    )


def msam(
    rho: Schedulable = 0.3, decay: float = 0.9, *, updates_at: str = "params"
) -> optax.GradientTransformationExtraArgs:
    r"""Momentum-SAM: the momentum is the ascent, at no second gradient.

    .. math::
      \delta_0 = -\rho \, v / \|v\|, \qquad d = \nabla L(w + \delta_0), \qquad
      v \leftarrow \beta v + d

    β is the decay, which should be that of the optimizer's momentum; δ0 lies along its last update.
    Step 0 is unperturbed. One gradient a step with updates_at="gradient_point", as in `lpf_sgd`.
    State: `velocity`, one copy of the parameters, and `rho`.

    Args:
      rho: the radius ρ ≥ 0. 0 is the base optimizer. Under `optax.inject_hyperparams` a changed ρ
        takes effect one step later.
      decay: β in [0, 1).
      updates_at: "params" or "gradient_point".

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho is negative, decay outside [0, 1), or updates_at none of the two.
      TypeError: rho is neither a number nor a schedule, or decay no number.

    Example:
      >>> import jax.numpy as jnp, optax, sam_optax
      >>> tx = optax.chain(sam_optax.msam(rho=0.5), optax.sgd(0.1, momentum=0.9))
      >>> w = jnp.array([3.0, 4.0])
      >>> state = tx.init(w)
      >>> updates, state = tx.update(w, state, w, grad_fn=lambda p: p)
      >>> print(sam_optax.gradient_point(state, w))  # along the update
      [2.7 3.6]

    References:
      Becker et al., `Momentum-SAM: Sharpness Aware Minimization without Computational Overhead
      <https://arxiv.org/abs/2401.12033>`_, 2024.
    """
    return sharpness_aware(start=momentum(rho, decay), updates_at=updates_at)


def s2_sam(
    rho: Schedulable = 0.05, *, updates_at: str = "params"
) -> optax.GradientTransformationExtraArgs:
    r"""S²-SAM: the previous step's gradient is the ascent, at no second gradient.

    .. math:: \delta_0 = \rho \, d_{t-1} / \|d_{t-1}\|, \qquad d_t = \nabla L(w + \delta_0)

    Step 0 is unperturbed. One gradient a step with updates_at="gradient_point", as in `lpf_sgd`.
    State: `previous`, one copy of the parameters, and `rho`.

    Args:
      rho: the radius ρ ≥ 0. 0 is the base optimizer. Under `optax.inject_hyperparams` a changed ρ
        takes effect one step later.
      updates_at: "params" or "gradient_point".

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho is negative, or updates_at none of the two.
      TypeError: rho is neither a number nor a schedule.

    Example:
      >>> import jax.numpy as jnp, optax, sam_optax
      >>> link = sam_optax.s2_sam(rho=0.5)
      >>> w = jnp.array([3.0, 4.0])
      >>> _, state = link.update(w, link.init(w), w, grad_fn=lambda p: p)
      >>> print(sam_optax.gradient_point(state, w))
      [3.3 4.4]

    References:
      Ji et al., A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve Efficient
      and Accurate Sparse Training, 2024.
    """
    return sharpness_aware(start=previous(rho), updates_at=updates_at)


def coupled_wsam(
    rho: Schedulable = 0.05, gamma: Schedulable = 0.9
) -> optax.GradientTransformationExtraArgs:
    r"""Coupled WSAM: a weighted sharpness term inside the gradient.

    .. math::
      d = g + \frac{\gamma}{1 - \gamma} \left(\nabla L(w + \epsilon) - g\right), \qquad
      \epsilon = \rho \, g / \|g\|

    Two gradients a step. The optimizer behind it sees the whole of d; `wsam` is the decoupled form.

    Args:
      rho: the radius ρ ≥ 0.
      gamma: the weight γ in [0, 1). ½ is `sam`, 0 the base optimizer.

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho is negative, or gamma outside [0, 1).
      TypeError: one of them is neither a number nor a schedule.

    Example:
      >>> import jax.numpy as jnp, sam_optax
      >>> link = sam_optax.coupled_wsam(rho=5.0, gamma=0.75)
      >>> w, grads = jnp.zeros(2), jnp.array([3.0, 4.0])
      >>> print(link.update(grads, link.init(w), w, grad_fn=lambda p: 2 * p)[0])  # g + 3 (2ε − g)
      [12. 16.]

    References:
      Yue et al., `Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term <https://arxiv.org/abs/2305.15817>`_, 2023, Algorithm 4.
    """
    return sharpness_aware(ball(rho), combine=weigh(gamma))


def wsam(
    base: optax.GradientTransformation,
    rho: Schedulable = 0.05,
    gamma: Schedulable = 0.9,
    *,
    perturb: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""WSAM: a weighted sharpness term beside the base optimizer (weight decouple).

    .. math::
      d = \mathrm{base}(g) + \frac{\gamma}{1 - \gamma} \left(\nabla L(w + \epsilon) - g\right),
      \qquad \epsilon = \rho \, g / \|g\|

    Two gradients a step. `base` is fed the clean gradient alone, and the learning rate follows in
    the chain, so that the sharpness term has the step's learning rate and no momentum,
    preconditioner or weight decay. Equal to `coupled_wsam` only for the identity as base.

    Args:
      base: an Optax transformation that gives a direction, without the learning rate:
        `optax.trace(0.9)`, `optax.scale_by_adam()`, with weight decay inside where wanted.
      rho: the radius ρ ≥ 0; not used where perturb is given.
      gamma: the weight γ in [0, 1). 0 is the base optimizer.
      perturb: another geometry, a transformation from gradient to ε (`sam_optax.perturb`).

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho is negative, or gamma outside [0, 1); at init, base hands on the negative of a
        direction in some leaf, as `optax.sgd(0.1)` does, as far as its first steps show.
      TypeError: rho or gamma is neither a number nor a schedule, or base or perturb no Optax
        transformation.

    Example:
      >>> import optax, sam_optax
      >>> tx = optax.chain(
      ...     sam_optax.wsam(optax.trace(0.9), rho=0.2, gamma=0.88),
      ...     optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.05, 1000)),
      ... )

    References:
      Yue et al., `Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term <https://arxiv.org/abs/2305.15817>`_, 2023, Algorithm 2. Deviation: ‖g‖ is bounded below
      by 1e-12 in place of an added ϵ.
    """
    if base is None:
        raise TypeError("base must be an Optax transformation; for the identity use coupled_wsam.")
    if perturb is None:
        perturb = ball(rho)
    return sharpness_aware(perturb, combine=weigh(gamma, base))


def _kernel_power(noise_scale: str) -> float:
    """The exponent of the kernel norm in the standard deviation."""
    _checks.choice("noise_scale", noise_scale, ("std", "variance"))
    return 1.0 if noise_scale == "std" else 0.5


def bsam(
    rho: Schedulable = 0.1,
    *,
    ess: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    weight_decay: float = 5e-4,
    damping: float = 0.1,
    initial_precision: float = 1.0,
    precision_at: str = "updated",
    key: Key = 0,
    updates_at: str = "params",
) -> optax.GradientTransformationExtraArgs:
    r"""Bayesian SAM: SAM as the relaxation of a Gaussian posterior, whose precision s it learns.

    .. math::
      g = \nabla L(w + \delta_0), \quad \delta_0 \sim \mathcal{N}(0, 1 / (N s)), \qquad
      \epsilon = \rho \, g / s, \qquad g' = \nabla L(w + \epsilon)

      m \leftarrow \beta_1 m + (1 - \beta_1)(g' + \delta w), \qquad
      s \leftarrow \beta_2 s + (1 - \beta_2)(\sqrt{s} \, |g| + \delta + \gamma), \qquad
      d = m / s

    It is an optimizer but for the learning rate: `optax.chain(bsam(ess=n), optax.sgd(lr))`, without
    momentum or weight decay behind it. Two gradients a step with updates_at="gradient_point", as in
    `r_sam`. State: `s` and `m`, two copies of the parameters in float32 at least. Predictions are
    those at w, or their mean over `posterior_sample`. Everything is for each coordinate, without a
    norm.

    Args:
      rho: ρ ≥ 0. 0 takes g' at w itself.
      ess: N > 0, the number of examples to train on, times a factor where they are augmented.
      beta_1: β₁ in [0, 1), of the momentum.
      beta_2: β₂ in [0, 1), of the precision.
      weight_decay: δ ≥ 0, the precision of the prior over N.
      damping: γ ≥ 0. With 0, δ has to be above 0.
      initial_precision: s before the first step, > 0.
      precision_at: "updated" divides by the s of the coming step, as the paper's algorithm does,
        "previous" by that of this step, as the authors' code does.
      key: an int or a `jax.random.key`.
      updates_at: "params" or "gradient_point".

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: an argument is out of its range, or none of the named.
      TypeError: an argument is no number, or key no int or key.

    Example:
      >>> import optax, sam_optax
      >>> tx = optax.chain(sam_optax.bsam(0.01, ess=50_000), optax.sgd(0.5))

    References:
      Möllenhoff and Khan, `SAM as an Optimal Relaxation of Bayes
      <https://arxiv.org/abs/2210.01620>`_, 2023, Algorithm 1. Deviation: one sub-batch, where the
      authors' code averages g' and the size of g over eight; no bias correction, as there.
    """
    return sharpness_aware(
        over_precision(rho),
        start=precision(
            ess,
            beta_2=beta_2,
            weight_decay=weight_decay,
            damping=damping,
            initial_precision=initial_precision,
            key=key,
        ),
        combine=newton_precision(beta_1, weight_decay=weight_decay, precision_at=precision_at),
        updates_at=updates_at,
    )


def ivon(
    ess: float,
    *,
    beta_1: float = 0.9,
    beta_2: float = 0.99999,
    weight_decay: float = 1e-4,
    initial_hessian: float = 1.0,
    clip: float = math.inf,
    rescale: bool = True,
    key: Key = 0,
    updates_at: str = "params",
) -> optax.GradientTransformationExtraArgs:
    r"""Improved variational online Newton: a Gaussian posterior at the cost of Adam.

    .. math::
      g = \nabla L(w + \delta_0), \quad \delta_0 \sim \mathcal{N}(0, 1 / (\lambda (h + \delta))),
      \qquad f = \lambda (h + \delta) \, \delta_0 \, g

      m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad h \leftarrow \beta_2 h + (1 - \beta_2) f
      + \tfrac{1}{2} (1 - \beta_2)^2 (h - f)^2 / (h + \delta)

      d = (h_0 + \delta) \, \mathrm{clip}\left(\frac{m / (1 - \beta_1^t) + \delta w}
      {h + \delta}\right)

    It is an optimizer but for the learning rate: `optax.chain(ivon(n), optax.sgd(lr))`, without
    momentum or weight decay behind it. One gradient a step with updates_at="gradient_point", as in
    `lpf_sgd`. State: `h` and `m`, two copies of the parameters in float32 at least. Predictions are
    those at w, or their mean over `posterior_sample`. Keep the parameters themselves in float32:
    with fewer bits most of a small noise is rounded away, and h learns from what is left.

    Args:
      ess: λ > 0, the effective sample size: the number of examples to train on. It has no neutral
        setting; the larger it is, the smaller the noise.
      beta_1: β₁ in [0, 1), of the momentum, whose bias is corrected.
      beta_2: β₂ in [0, 1), of the Hessian.
      weight_decay: δ ≥ 0, the precision of the prior over λ.
      initial_hessian: h₀, h before the first step, > 0.
      clip: the largest size of a number of the direction, before it is rescaled.
      rescale: whether the direction is multiplied by h₀ + δ, as in the authors' code, so that the
        learning rates of SGD are a beginning.
      key: an int or a `jax.random.key`.
      updates_at: "params" or "gradient_point".

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: an argument is out of its range, or none of the named.
      TypeError: an argument is no number, key no int or key, or rescale no boolean.

    Example:
      >>> import optax, sam_optax
      >>> tx = optax.chain(sam_optax.ivon(50_000, initial_hessian=0.5), optax.sgd(0.2))

    References:
      Shen et al., `Variational Learning is Effective for Large Deep Networks
      <https://arxiv.org/abs/2402.17641>`_, 2024, Algorithm 1. Deviation: one sample a step.
    """
    _checks.flag("rescale", rescale)
    return sharpness_aware(
        start=hessian(
            ess,
            beta_2=beta_2,
            weight_decay=weight_decay,
            initial_hessian=initial_hessian,
            key=key,
        ),
        combine=newton_hessian(
            beta_1, clip=clip, rescale=initial_hessian + weight_decay if rescale else 1.0
        ),
        updates_at=updates_at,
    )
