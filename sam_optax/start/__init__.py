"""Where the first gradient is taken: at params + offset."""

from sam_optax.start._kernel_axes import kernel_axes
from sam_optax.start._moved import MomentumState, PreviousState, momentum, previous
from sam_optax.start._noise import KernelNoiseState, NoiseState, noise
from sam_optax.start._posterior import HessianState, PrecisionState, hessian, precision

__all__ = [
    "HessianState",
    "KernelNoiseState",
    "MomentumState",
    "NoiseState",
    "PrecisionState",
    "PreviousState",
    "hessian",
    "kernel_axes",
    "momentum",
    "noise",
    "precision",
    "previous",
]
