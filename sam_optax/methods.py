"""The named methods: each is a choice of parts.

Every method returns one link of an Optax chain, `update(updates, state, params, *, grad_fn)`; see
`sam_optax.sharpness_aware` for that contract, for the dtypes and for the errors of the update.
Notation: w the parameters, g the gradient at w (at w + δ0 in r_sam and r_gsam), ε the perturbation,
g' the gradient at w + ε on the same batch, d the direction handed on. Norms and inner products are
global over the whole tree, in float32 at least; unit(x) = x / max(‖x‖, 1e-12). A radius, budget,
weight or threshold may be an Optax schedule of the link's own step count, where its type says so.
"""

import math

import optax

from sam_optax import schedules
from sam_optax._contracts import Schedulable
from sam_optax._engine import sharpness_aware
from sam_optax._random import Key
from sam_optax.combine import extrapolate, mix, reuse, surrogate_gap, weigh
from sam_optax.perturb import ball, loss_ball, noisy_ball
from sam_optax.start import noise
from sam_optax.when import adaptive, every


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

    References:
      Zhuang et al., `Surrogate Gap Minimization Improves Sharpness-Aware Training
      <https://arxiv.org/abs/2203.08065>`_, 2022, Algorithm 1.
    """
    return sharpness_aware(ball(rho), combine=surrogate_gap(alpha))


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

    References:
      Liu et al., `Towards Efficient and Scalable Sharpness-Aware Minimization
      <https://arxiv.org/abs/2203.02714>`_, 2022, Algorithm 1. Deviation: norms and projections are
      those of the whole parameter vector, as the paper writes them, not per tensor.
    """
    return sharpness_aware(ball(rho), when=every(period), combine=reuse(alpha))


def ae_sam(
    rho: Schedulable = 0.05,
    *,
    total_steps: int,
    lambda_1: float = -1.0,
    lambda_2: float = 1.0,
    decay: float = 0.9,
    initial_variance: float = math.exp(-10),
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

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho or initial_variance is negative, total_steps is less than 1, decay is outside
        [0, 1], or a threshold is NaN or infinite against the other.
      TypeError: an argument is no number.

    References:
      Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, 2023, Algorithm 1.
      Deviation: ε is normalised, as in the paper's Equation 2; Algorithm 1 prints ε = ρ g.
    """
    threshold = schedules.linear_threshold(lambda_1, lambda_2, total_steps)
    policy = adaptive(threshold, decay=decay, initial_variance=initial_variance)
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

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: as `ae_sam`, or alpha is negative.
      TypeError: an argument is no number.

    References:
      Jiang et al., An Adaptive Policy to Employ Sharpness-Aware Minimization, 2023, Algorithm 1.
      Deviation: ε is normalised, as in `ae_sam`.
    """
    threshold = schedules.linear_threshold(lambda_1, lambda_2, total_steps)
    policy = adaptive(threshold, decay=decay, initial_variance=initial_variance)
    return sharpness_aware(ball(rho), when=policy, combine=reuse(alpha))


def samar(
    rho: Schedulable = 0.1,
    gamma: Schedulable = 1.4,
    chi: Schedulable = 1.05,
    lambda_0: float = 1.0,
    delta: float = 0.01,
    ratio: str = "clean",
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

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: an argument is out of its range.
      TypeError: an argument is no number.

    References:
      Zou et al., `Sharpness-Aware Minimization with Adaptive Regularization for Training Deep
      Neural Networks <https://arxiv.org/abs/2412.16854>`_, 2024, Algorithm 1. The authors' code
      leaves λ unchanged where it should clip below; that is not reproduced.
    """
    return sharpness_aware(ball(rho), combine=mix(gamma, chi, lambda_0, delta, ratio=ratio))


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
    is not used, and costs what XLA cannot remove of it. A kernel is a slice along the last axis of
    a leaf with two or more axes; a leaf with fewer axes is one kernel. δ0 is redrawn from a
    counter, never stored.

    Args:
      rho: the radius ρ ≥ 0.
      gamma: the relative scale γ ≥ 0 of the noise. 0 is `sam`. The paper's figures have γ² of .0075
        to .0125. Under `optax.inject_hyperparams` a changed γ takes effect one step later.
      lambda_: the weight λ ≥ 0 of the gradient against the noise.
      key: an int or a `jax.random.key`.
      noise_scale: "std", a standard deviation of γ ‖w_j‖, or "variance", a variance of γ² ‖w_j‖ as
        Algorithm 1 prints it.
      normalize_gradient: whether λ weighs unit(g) in place of g, the reading of Section 4.6.
      updates_at: "params" or "gradient_point".

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho, gamma or lambda_ is negative, or noise_scale or updates_at is none of the
        named.
      TypeError: an argument is no number, or key no int or key.

    References:
      Liu et al., Random Sharpness-Aware Minimization, 2022, Equation 7 and Algorithm 1. Deviation:
      noise_scale is "std" by default, as in the code of LPF-SGD, whose notation the paper uses.
    """
    return sharpness_aware(
        noisy_ball(rho, lambda_, normalize_gradient=normalize_gradient),
        start=noise(gamma, key=key, power=_kernel_power(noise_scale)),
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
    updates_at: str = "params",
) -> optax.GradientTransformationExtraArgs:
    r"""R-GSAM: the perturbation of `r_sam`, the direction of `gsam`.

    .. math:: d = g' - \alpha \left(g - \frac{\langle g, g' \rangle}{\|g'\|^2} g'\right), \qquad
      g = \nabla L(w + \delta_0)

    Two gradients a step with updates_at="gradient_point", as in `r_sam`.

    Args:
      rho: the radius ρ ≥ 0.
      gamma: the relative scale γ ≥ 0 of the noise. 0 is `gsam`. Under `optax.inject_hyperparams` a
        changed γ takes effect one step later.
      lambda_: the weight λ ≥ 0 of the gradient against the noise.
      alpha: the weight α ≥ 0 of the part of g orthogonal to g'. 0 is `r_sam`.
      key: an int or a `jax.random.key`.
      noise_scale: "std" or "variance", as in `r_sam`.
      normalize_gradient: whether λ weighs unit(g) in place of g.
      updates_at: "params" or "gradient_point".

    Returns:
      A link of an Optax chain.

    Raises:
      ValueError: rho, gamma, lambda_ or alpha is negative, or noise_scale or updates_at is none of
        the named.
      TypeError: an argument is no number, or key no int or key.

    References:
      Liu et al., Random Sharpness-Aware Minimization, 2022, Section 4.5. Deviation: the paper does
      not say which gradient is projected; here it is the smoothed g, so that two gradients suffice.
    """
    return sharpness_aware(
        noisy_ball(rho, lambda_, normalize_gradient=normalize_gradient),
        start=noise(gamma, key=key, power=_kernel_power(noise_scale)),
        combine=surrogate_gap(alpha),
        updates_at=updates_at,
    )


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

    References:
      Yue et al., Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term, 2023, Algorithm 4.
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
      ValueError: rho is negative, or gamma outside [0, 1).
      TypeError: rho or gamma is neither a number nor a schedule, or base or perturb no Optax
        transformation.

    Example:
      >>> import optax, sam_optax
      >>> tx = optax.chain(
      ...     sam_optax.wsam(optax.trace(0.9), rho=0.2, gamma=0.88),
      ...     optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.05, 1000)),
      ... )

    References:
      Yue et al., Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
      Term, 2023, Algorithm 2. Deviation: ‖g‖ is bounded below by 1e-12 in place of an added ϵ.
    """
    if base is None:
        raise TypeError("base must be an Optax transformation; for the identity use coupled_wsam.")
    if perturb is None:
        perturb = ball(rho)
    return sharpness_aware(perturb, combine=weigh(gamma, base))


def _kernel_power(noise_scale):
    """The exponent of the kernel norm in the standard deviation."""
    powers = {"std": 1.0, "variance": 0.5}
    if noise_scale not in powers:
        raise ValueError(f"noise_scale must be 'std' or 'variance', got {noise_scale!r}.")
    return powers[noise_scale]
