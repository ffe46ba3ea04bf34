"""Sharpness-aware optimization for JAX: each method one link of an Optax chain."""

from sam_optax import combine, perturb, schedules, start, when
from sam_optax._ahead import decisions
from sam_optax._aux import keep_aux
from sam_optax._average import average
from sam_optax._contracts import Combine, Start, When
from sam_optax._engine import sharpness_aware
from sam_optax._examples import select_examples
from sam_optax._functional import functional_grad_fn
from sam_optax._masked import masked
from sam_optax._parts import MaskedState
from sam_optax._point import gradient_point
from sam_optax._read import read
from sam_optax._sample import posterior_sample
from sam_optax._states import SharpnessAwareState
from sam_optax.methods import (
    ae_looksam,
    ae_sam,
    asam,
    bsam,
    coupled_wsam,
    eigen_sam,
    esam,
    fisher_sam,
    friendly_sam,
    gsam,
    ivon,
    le_sam,
    le_sam_plus,
    looksam,
    lpf_sgd,
    msam,
    r_gsam,
    r_sam,
    s2_sam,
    sam,
    samar,
    ss_sam,
    ssam,
    vasso,
    wsam,
)

__version__ = "0.2.0"

__all__ = [
    "Combine",
    "MaskedState",
    "SharpnessAwareState",
    "Start",
    "When",
    "ae_looksam",
    "ae_sam",
    "asam",
    "average",
    "bsam",
    "combine",
    "coupled_wsam",
    "decisions",
    "eigen_sam",
    "esam",
    "fisher_sam",
    "friendly_sam",
    "functional_grad_fn",
    "gradient_point",
    "gsam",
    "ivon",
    "keep_aux",
    "le_sam",
    "le_sam_plus",
    "looksam",
    "lpf_sgd",
    "masked",
    "msam",
    "perturb",
    "posterior_sample",
    "r_gsam",
    "r_sam",
    "read",
    "s2_sam",
    "sam",
    "samar",
    "schedules",
    "select_examples",
    "sharpness_aware",
    "ss_sam",
    "ssam",
    "start",
    "vasso",
    "when",
    "wsam",
]
