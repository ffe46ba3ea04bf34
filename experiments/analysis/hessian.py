"""The Hessian of a loss over a set: its largest eigenvalues, its density, its trace."""

from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
from matfree import decomp, stochtrace
import numpy as np
import optax
import scipy.sparse.linalg

from experiments.analysis.objective import AnalysisError, Objective


class Estimate(NamedTuple):
    """A mean over random draws, and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, draws: Any) -> "Estimate":
        """From independent draws, two at least; the deviation is that of a sample."""
        draws = np.asarray(draws, np.float64)
        return cls(float(draws.mean()), float(draws.std(ddof=1) / len(draws) ** 0.5))


class Eigenpairs(NamedTuple):
    """The largest eigenvalues and their eigenvectors.

    Attributes:
      values: [k], descending.
      vectors: for each a pytree like the parameters, of Euclidean length 1.
    """

    values: np.ndarray
    vectors: list[Any]


def top(
    objective: Objective,
    params: optax.Params,
    k: int,
    *,
    key: jax.Array,
    tolerance: float = 1e-5,
    basis: int | None = None,
    restarts: int = 100,
) -> Eigenpairs:
    """The k largest eigenvalues, by Lanczos with implicit restarts.

    The restarts bound the memory: `basis` vectors of the size of the parameters and what one
    product with the Hessian takes. ARPACK, through SciPy, iterates until each eigenvalue has
    converged; Lanczos as in matfree would need a basis as long as the iteration.

    Args:
      objective: the loss.
      params: where.
      k: how many, at most the number of parameters.
      key: draws the first vector.
      tolerance: relative, of each eigenvalue.
      basis: vectors kept, more than k; max(2 k + 1, 20) where left out. Where that is all of the
        space, the Hessian is made whole.
      restarts: at most.

    Returns:
      The eigenpairs; the vectors in the dtype of the parameters.

    Raises:
      AnalysisError: k is not between 1 and the number of parameters, basis is not greater, the
        Hessian is zero or not finite, or the iteration has not converged.
    """
    flat, unravel = ravel_pytree(params)
    size, basis = flat.size, max(2 * k + 1, 20) if basis is None else basis
    dtype = np.promote_types(flat.dtype, np.float32)  # ARPACK has no smaller one
    if not 0 < k <= size:
        raise AnalysisError(
            f"k must lie between 1 and the {size} parameters of the model, got {k}."
        )
    if basis <= k:
        raise AnalysisError(f"basis must be greater than k = {k}, got {basis}.")

    def product(vector):
        vector = unravel(jnp.asarray(vector.ravel(), flat.dtype))
        found = np.asarray(ravel_pytree(objective.product(params, vector))[0], dtype)
        if not np.isfinite(found).all():
            raise AnalysisError(
                "the Hessian is not finite at these parameters: the run may have diverged, or try "
                "float64."
            )
        return found

    if basis >= size:
        matrix = np.stack([product(row) for row in np.eye(size, dtype=dtype)])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    else:
        operator = scipy.sparse.linalg.LinearOperator((size, size), product, dtype=dtype)
        first = np.asarray(jax.random.normal(key, (size,), dtype))
        try:
            values, vectors = scipy.sparse.linalg.eigsh(
                operator, k, which="LA", v0=first, ncv=basis, tol=tolerance, maxiter=restarts
            )
        except scipy.sparse.linalg.ArpackNoConvergence as error:
            raise AnalysisError(
                f"{len(error.eigenvalues)} of {k} eigenvalues have converged after {restarts} "
                f"restarts: pass a larger basis than {basis}, or a tolerance above {tolerance:g}."
            ) from error
        except scipy.sparse.linalg.ArpackError as error:
            raise AnalysisError(
                f"the iteration broke down, as where the Hessian is zero ({error})."
            ) from error
    order = np.argsort(values)[::-1][:k]
    return Eigenpairs(
        values[order], [unravel(jnp.asarray(vectors[:, i], flat.dtype)) for i in order]
    )


class Density(NamedTuple):
    """The spectrum as weighted points, one row a probe.

    Attributes:
      values: [probes, steps], eigenvalues of the probes' tridiagonal matrices.
      weights: [probes, steps], ≥ 0, each row with sum 1.
    """

    values: np.ndarray
    weights: np.ndarray

    def smooth(self, grid: np.ndarray, width: float) -> np.ndarray:
        """The density on a grid, each point a normal of this standard deviation."""
        distance = (grid[:, None] - self.values.ravel()) / width
        normal = np.exp(-(distance**2) / 2) / (width * np.sqrt(2 * np.pi))
        return normal @ self.weights.ravel() / len(self.weights)


def density(
    objective: Objective,
    params: optax.Params,
    *,
    key: jax.Array,
    steps: int = 40,
    probes: int = 4,
) -> Density:
    """The density of eigenvalues, by stochastic Lanczos quadrature.

    The moments of each probe up to 2 steps − 1 are exact: Σ weight · valueᵖ = vᵀ Hᵖ v for a random
    unit vector v, whose expectation is tr Hᵖ / n. Without reorthogonalisation: an eigenvalue may
    come several times, and share its weight among them, which leaves the density as it is.

    Args:
      objective: the loss.
      params: where.
      key: draws the probes.
      steps: of Lanczos; a basis of so many vectors is held twice. At most the number of
        parameters.
      probes: random vectors.

    Raises:
      AnalysisError: steps or probes are less than 1, steps exceed the number of parameters, or the
        Hessian is zero or not finite.

    References:
      Ghorbani, Krishnan and Xiao, An Investigation into Neural Net Optimization via Hessian
      Eigenvalue Density, ICML 2019.
    """
    flat, unravel = ravel_pytree(params)
    if not 0 < steps <= flat.size or probes < 1:
        raise AnalysisError(
            f"steps must lie between 1 and the {flat.size} parameters of the model, and probes be "
            f"at least 1, got {steps} and {probes}."
        )

    @_once
    def product(vector):
        with jax.disable_jit(False):
            return ravel_pytree(objective.product(params, unravel(vector)))[0]

    lanczos = decomp.tridiag_sym(steps, materialize=True, reortho="none", custom_vjp=False)
    values, weights = [], []
    for probe in jax.random.split(key, probes):
        first = jax.random.normal(probe, flat.shape, flat.dtype)
        # Its loop runs in Python and calls the compiled product: in a compiled loop convolutions
        # would be slow on CPU, and all batches part of one program.
        with jax.disable_jit():
            tridiagonal = lanczos(product, first).J_small
        if not np.isfinite(tridiagonal).all():
            raise AnalysisError(
                "the Hessian is zero or not finite at these parameters, or the steps exceed its "
                f"rank: pass fewer than {steps}."
            )
        found, vectors = np.linalg.eigh(np.asarray(tridiagonal, np.float64))
        values.append(found)
        weights.append(vectors[0] ** 2)
    return Density(np.stack(values), np.stack(weights))


def trace(
    objective: Objective, params: optax.Params, *, key: jax.Array, samples: int = 32
) -> Estimate:
    """The trace, by Hutchinson's estimator with random signs.

    Args:
      objective: the loss.
      params: where.
      key: draws the signs.
      samples: products with the Hessian, two at least.

    Returns:
      The mean of vᵀ H v and its standard error.

    Raises:
      AnalysisError: samples are less than 2.

    References:
      Hutchinson, A stochastic estimator of the trace of the influence matrix, 1990.
    """
    if samples < 2:
        raise AnalysisError(f"samples must be at least 2 for a standard error, got {samples}.")
    quadratic_form = stochtrace.monte_carlo_trace()
    draw = stochtrace.sampler_signs(params, num=1)

    def one(sample):
        signs = jax.tree.map(lambda leaf: leaf[0], draw(sample))
        return float(quadratic_form(lambda v: objective.product(params, v), signs))

    return Estimate.of([one(sample) for sample in jax.random.split(key, samples)])


def _once(function):
    """The function, not called again for the argument of its last call: matfree asks twice."""
    last = []

    def call(argument):
        if not last or not np.array_equal(last[0], argument):
            last[:] = argument, function(argument)
        return last[1]

    return call
