"""What is handed on: with a second gradient (`fresh`), and without one (`stale`).

g is the first gradient, g' the second. Sums and norms are taken in float32 at least; the engine
returns the direction in the dtype of the gradient.
"""

from sam_optax.combine._mix import MixState, mix
from sam_optax.combine._newton import MomentState, newton_hessian, newton_precision
from sam_optax.combine._plain import extrapolate, interpolate, perturbed, slerp, stateless
from sam_optax.combine._projected import ReuseState, renormalize, reuse, surrogate_gap
from sam_optax.combine._weigh import WeighState, weigh

__all__ = [
    "MixState",
    "MomentState",
    "ReuseState",
    "WeighState",
    "extrapolate",
    "interpolate",
    "mix",
    "newton_hessian",
    "newton_precision",
    "perturbed",
    "renormalize",
    "reuse",
    "slerp",
    "stateless",
    "surrogate_gap",
    "weigh",
]
