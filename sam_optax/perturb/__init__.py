"""Where the second gradient is taken: first gradient ↦ ε, each an ordinary Optax transformation.

A direction in front of a ball is a chain, `optax.chain(ema(0.9), ball(0.05))`, and any Optax
transformation is a geometry. `update` gets the engine's extra arguments: `step` (the link's step
count), `offset` (δ0, or None where the first gradient is taken at the parameters) and `grad_fn`. ε
comes in float32 at least and is added in the parameters' dtype.
"""

from sam_optax.perturb._balls import LossBallState, ball, layer_ball, loss_ball, noisy_ball
from sam_optax.perturb._directions import (
    EmaState,
    PreviousState,
    RandomCoordinatesState,
    ema,
    noise,
    previous,
    random_coordinates,
    subtract_ema,
)
from sam_optax.perturb._eigen import EigenBallState, eigen_ball
from sam_optax.perturb._ellipsoids import adaptive_ball, fisher_ball, over_precision
from sam_optax.perturb._only import only

__all__ = [
    "EigenBallState",
    "EmaState",
    "LossBallState",
    "PreviousState",
    "RandomCoordinatesState",
    "adaptive_ball",
    "ball",
    "eigen_ball",
    "ema",
    "fisher_ball",
    "layer_ball",
    "loss_ball",
    "noise",
    "noisy_ball",
    "only",
    "over_precision",
    "previous",
    "random_coordinates",
    "subtract_ema",
]
