"""The parts of an analysis: what is measured on a run, as numbers for a file and for pictures."""

from collections.abc import Callable, Sequence
import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.analysis import gradients, hessian, landscape, sharpness
from experiments.analysis.objective import AnalysisError, Objective
from experiments.analysis.replay import replay
from experiments.analysis.trained import Trained
from sam_optax import perturb

# At most so many checkpoints of a run have their gradients drawn, or an epoch replayed.
SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Measures:
    """How closely to look."""

    examples: int | None = None
    """Training images to look at, drawn from the run's seed; all where left out. Those of a
    streamed set are decoded into memory."""
    batch_size: int = 500
    """Images at a time; batch norm in training mode takes its statistics of them."""
    modes: tuple[Literal["evaluation", "training"], ...] = ("evaluation", "training")
    """Whether batch norm uses its running statistics, or those of the images at a time; one and the
    same without batch norm. Landscapes and gradients are looked at in the last, the table has the
    first."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of parameters and computations."""
    k: int = 10
    """Hessian: largest eigenvalues."""
    basis: int | None = None
    """Hessian: vectors of the size of the parameters that the eigenvalues may keep."""
    steps: int = 40
    """Hessian: products a probe for the density; twice as many vectors are held."""
    probes: int = 4
    """Hessian: random vectors for the density."""
    samples: int = 32
    """Random draws for the trace, and pairs of draws for the average case."""
    radii: tuple[float, ...] = (0.05, 0.1, 0.2, 0.5, 1.0)
    """Sharpness and turning of the gradient: the radii ρ."""
    adaptive_radii: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0)
    """Sharpness: the radii of ASAM's ball."""
    sigmas: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05)
    """Sharpness: the standard deviations of the average case."""
    ascent_steps: int = 20
    """Sharpness: steps of the worst case."""
    m: int = 64
    """Sharpness: examples that share a perturbation in m-sharpness."""
    parts_of_m: int = 8
    """Sharpness: how many such parts."""
    gammas_squared: tuple[float, ...] = (0.0, 0.0075, 0.01, 0.0125)
    """Gradients: variances of the noise, as in the figures of R-SAM."""
    draws: int = 3
    """Gradients: draws of that noise."""
    grid: int = 15
    """Landscape: points along each side of a plane."""
    span: float = 1.0
    """Landscape: half a side, in lengths of the parameters' filters or, along gradient and
    eigenvector, in units of the parameters."""
    seed: int = 0
    """Draws all random directions."""


class Look:
    """One run, looked at with some measures."""

    def __init__(self, trained: Trained, measures: Measures, on_pass: Callable[[], None]):
        """Reads the last checkpoint.

        Raises:
          AnalysisError: its parameters are not finite.
          UserError: it cannot be read.
        """
        self.trained, self.measures, self._on_pass = trained, measures, on_pass
        self._key = jax.random.key(measures.seed)
        self.params, self.model_state = self._cast(trained.last_weights())

    @property
    def modes(self) -> list[str]:
        """Those asked for; evaluation alone where no batch norm makes another loss of training."""
        return list(self.measures.modes) if self.model_state else ["evaluation"]

    def hessian(self) -> dict[str, Any]:
        """Eigenvalues, density and trace, in each mode."""
        return {mode: self._hessian(self._objective(mode)) for mode in self.modes}

    def _hessian(self, objective):
        m = self.measures
        keys = jax.random.split(self._key, 3)
        pairs = hessian.top(objective, self.params, m.k, key=keys[0], basis=m.basis)
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        found = hessian.density(
            objective, self.params, key=keys[1], steps=min(m.steps, size), probes=m.probes
        )
        mean, error = hessian.trace(objective, self.params, key=keys[2], samples=m.samples)
        return {
            "eigenvalues": pairs.values.tolist(),
            "trace": mean,
            "trace_error": error,
            "density": {"values": found.values.tolist(), "weights": found.weights.tolist()},
            "parameters": size,
        }

    def sharpness(self) -> dict[str, Any]:
        """Increases of the loss along ascents, at worst and on average, in each mode."""
        return {mode: self._sharpness(self._objective(mode)) for mode in self.modes}

    def _sharpness(self, objective):
        m, params = self.measures, self.params
        worst = {"steps": m.ascent_steps}
        averages = [
            sharpness.average_case(objective, params, s, key=self._key, samples=m.samples)
            for s in m.sigmas
        ]
        parts = [
            sharpness.m_sharpness(objective, params, r, m.m, parts=m.parts_of_m, **worst)
            for r in m.radii
        ]
        return {
            "loss": objective.loss(params),
            "ascent": sharpness.increases(objective, params, m.radii),
            "adaptive": sharpness.increases(
                objective, params, m.adaptive_radii, perturb.adaptive_ball
            ),
            "worst": [sharpness.worst_case(objective, params, r, **worst) for r in m.radii],
            "parts": [mean for mean, _ in parts],
            "parts_error": [error for _, error in parts],
            "average": [mean for mean, _ in averages],
            "average_error": [error for _, error in averages],
        }

    def gradients(self) -> dict[str, Any]:
        """Norms of the batches' gradients at each checkpoint, and how the gradient turns."""
        m, mode = self.measures, self.modes[-1]
        at = []
        for step, epoch in self.trained.epochs.items():
            params, model_state = self._cast(self.trained.weights(step))
            objective = self._objective(mode, model_state, size=self.trained.recipe.batch_size)
            whole = Objective(objective.loss_fn, _full(objective), self._on_pass)
            found = gradients.norms(whole, params)
            at.append(
                {
                    "epoch": epoch,
                    "squared_norms": found.squared.tolist(),
                    "whole": found.whole,
                    "mean": found.mean,
                    "variance": found.variance,
                }
            )
        turning = gradients.turning(
            self._objective(mode),
            self.params,
            m.radii,
            [g**0.5 for g in m.gammas_squared],
            key=self._key,
            draws=m.draws,
        )
        return {
            "mode": mode,
            "batch_size": self.trained.recipe.batch_size,
            "checkpoints": at,
            "cosines": turning.cosines.tolist(),
            "losses": turning.losses.tolist(),
        }

    def landscape(self) -> dict[str, Any]:
        """The loss on two planes: random directions, and gradient and top eigenvector."""
        m, objective = self.measures, self._objective(self.modes[-1])
        first, second, eigen = jax.random.split(self._key, 3)
        pairs = hessian.top(objective, self.params, 1, key=eigen)
        random = tuple(landscape.filter_normalized(self.params, key) for key in (first, second))
        steepest = landscape.orthonormal(objective.gradient(self.params), pairs.vectors[0])
        ticks = np.linspace(-m.span, m.span, m.grid)
        return {
            "mode": self.modes[-1],
            "ticks": ticks.tolist(),
            **{
                name: landscape.plane(objective, self.params, plane, ticks, ticks).tolist()
                for name, plane in (("random", random), ("steepest", steepest))
            },
        }

    def steps(self) -> dict[str, Any]:
        """Some epochs once more, step by step."""
        before_the_end = self.trained.steps[:-1]
        return {
            "epochs": [
                {"epoch": self.trained.epochs[step], "rows": replay(self.trained, step)}
                for step in spread(before_the_end, SHOWN)
            ]
        }

    def line_to(self, other: "Look") -> dict[str, Any]:
        """The loss on the line to another run's parameters, on this one's training set."""
        mode = self.modes[-1]
        at = np.linspace(-0.25, 1.25, 6 * math.ceil(self.measures.grid / 3) + 1)  # with 0 and 1
        losses = landscape.line(self._objective(mode), self.params, other.params, at)
        return {"mode": mode, "at": at.tolist(), "losses": losses}

    def _cast(self, weights):
        params, model_state = weights
        return optax.tree.cast(params, jnp.dtype(self.measures.dtype)), model_state

    def _objective(self, mode, model_state=None, size=None):
        m = self.measures
        return self.trained.objective(
            self.model_state if model_state is None else model_state,
            training=mode == "training",
            size=size or m.batch_size,
            examples=m.examples,
            dtype=jnp.dtype(m.dtype),
            on_pass=self._on_pass,
        )


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of them, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int)]


def _full(objective):
    """The batches but a shorter last one, whose gradient is of another distribution."""
    size = len(jax.tree.leaves(objective.batches[0])[0])
    full = [b for b in objective.batches if len(jax.tree.leaves(b)[0]) == size]
    if len(full) < 2:
        raise AnalysisError(
            f"there must be two batches of {size} examples, the batch size of the run, to compare "
            "gradients: look at more examples."
        )
    return full
