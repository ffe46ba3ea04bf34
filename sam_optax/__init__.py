"""Sharpness-aware optimization for JAX: each method one link of an Optax chain."""

from sam_optax import combine, perturb, schedules, start, when
from sam_optax._contracts import Combine, Start, When
from sam_optax._engine import SharpnessAwareState, average, gradient_point, sharpness_aware
from sam_optax.methods import (
    ae_looksam,
    ae_sam,
    coupled_wsam,
    gsam,
    le_sam,
    le_sam_plus,
    looksam,
    r_gsam,
    r_sam,
    sam,
    samar,
    wsam,
)

__version__ = "0.1.0"

__all__ = [
    "Combine",
    "SharpnessAwareState",
    "Start",
    "When",
    "ae_looksam",
    "ae_sam",
    "average",
    "combine",
    "coupled_wsam",
    "gradient_point",
    "gsam",
    "le_sam",
    "le_sam_plus",
    "looksam",
    "perturb",
    "r_gsam",
    "r_sam",
    "sam",
    "samar",
    "schedules",
    "sharpness_aware",
    "start",
    "when",
    "wsam",
]
