"""The methods in plain NumPy float64, from their formulas, with a problem to run them on.

Nothing of the library is used in a reference: a step is `step(w, gradient, t, state)` on one flat
vector w and returns the direction and the new state, a dictionary of the papers' quantities. Random
numbers alone are drawn with JAX, since only it can repeat them.
"""

from collections.abc import Callable
import inspect
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sam_optax

STEPS = 10
LEARNING_RATE = 0.1

# A small network with leaves of rank 4, 1, 2 and 0, in the order of `jax.tree.leaves`.
SHAPES = {"conv": (2, 2, 1, 3), "dense_bias": (2,), "dense_kernel": (3, 2), "scale": ()}


def ravel(tree):
    """The leaves of a tree as one NumPy vector."""
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)])


def unravel(flat):
    """The tree of NumPy arrays that `ravel` made flat."""
    ends = np.cumsum([math.prod(shape) for shape in SHAPES.values()])
    parts = np.split(np.asarray(flat), ends[:-1])
    return {
        name: part.reshape(shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


def initial_params():
    """Float64 parameters of ordinary size."""
    return unravel(np.random.default_rng(7).normal(size=21))


def make_batch(t, examples=6):
    """The batch of step t; its targets' size varies, and with it the gradient's."""
    rng = np.random.default_rng(100 + t)
    size = (1.0, 3.0, 0.3, 0.2, 2.5, 0.4, 0.3, 0.2, 0.1, 4.0)[t % 10]
    return rng.normal(size=(examples, 4)), size * rng.normal(size=(examples, 2))


def losses(params, batch):
    """The squared error on each example of a network with one layer of tanh: not quadratic."""
    x, y = batch
    hidden = jnp.tanh(params["scale"] * (x @ params["conv"].reshape(4, 3)))
    error = hidden @ params["dense_kernel"] + params["dense_bias"] - y
    return 0.5 * jnp.sum(error**2, axis=1)


def loss(params, batch):
    """The mean of `losses`."""
    return jnp.mean(losses(params, batch))


def output_error(flat, batch):
    """The outputs less the targets."""
    (x, y), p = batch, unravel(flat)
    hidden = np.tanh(p["scale"] * (x @ p["conv"].reshape(4, 3)))
    return hidden @ p["dense_kernel"] + p["dense_bias"] - y


def pull_back(flat, x, d_out):
    """The Jacobian of the outputs, transposed, times d_out."""
    p = unravel(flat)
    linear = x @ p["conv"].reshape(4, 3)
    hidden = np.tanh(p["scale"] * linear)
    d_linear = (d_out @ p["dense_kernel"].T) * (1 - hidden**2)
    d_conv = p["scale"] * x.T @ d_linear
    return np.concatenate(
        [
            d_conv.ravel(),
            d_out.sum(axis=0),
            (hidden.T @ d_out).ravel(),
            [np.sum(d_linear * linear)],
        ]
    )


def loss_gradient(flat, batch):
    """The gradient of `loss`, by hand."""
    return pull_back(flat, batch[0], output_error(flat, batch) / len(batch[0]))


# One layer with two leaves: a quarter of the time to compile, for what does not need the network.


def small_params():
    """Float64 parameters of ordinary size."""
    return {
        "kernel": np.random.default_rng(0).normal(size=(4, 2)),
        "bias": np.array([0.5, -0.3]),
    }


def small_loss(params, batch):
    """The squared error of a layer of tanh: not quadratic."""
    x, y = batch
    return jnp.mean((jnp.tanh(x @ params["kernel"] + params["bias"]) - y) ** 2)


class Gradient:
    """The gradient of the loss on one batch, counted; its Hessian; the losses of the examples."""

    def __init__(self, batch):
        self.batch, self.calls, self.points = batch, 0, []

    def __call__(self, w, indices=slice(None)):
        self.calls += 1
        self.points.append(w)
        x, y = self.batch
        return loss_gradient(w, (x[indices], y[indices]))

    def hessian(self, w, v):
        """The Hessian times v, by a complex step: exact to the last digits."""
        return loss_gradient(w + 1e-30j * v, self.batch).imag / 1e-30

    def mean(self, value):
        """Over the devices that decide together: here it is one."""
        return value

    def losses(self, w):
        return 0.5 * np.sum(output_error(w, self.batch) ** 2, axis=1)


# The formulas.


def at(hyperparameter, t):
    return hyperparameter(t) if callable(hyperparameter) else hyperparameter


def norm(x):
    return math.sqrt(np.sum(x * x))


def unit(x):
    return x / max(norm(x), 1e-12)


def reject(a, b):
    return a - np.dot(a, unit(b)) * unit(b)


def sam(rho):
    def step(w, gradient, t, state):
        g = gradient(w)
        return gradient(w + at(rho, t) * unit(g)), state

    return step


def asam(rho, eta, weights=None):
    def step(w, gradient, t, state):
        g, scales = gradient(w), {}
        for name, leaf in unravel(w).items():
            # Kernels, and the scale of a normalisation layer, which is a scalar here.
            named = name in ("conv", "dense_kernel", "scale")
            is_weight = named if weights is None else name == "dense_bias"
            scales[name] = np.abs(leaf) + at(eta, t) if is_weight else np.ones_like(leaf)
        scale = ravel(scales)
        return gradient(w + at(rho, t) * scale**2 * g / norm(scale * g)), state

    return step


def fisher_sam(rho, eta):
    def step(w, gradient, t, state):
        g = gradient(w)
        inverse = 1 / (1 + eta * g**2)
        return gradient(w + rho * inverse * g / math.sqrt(np.dot(g, inverse * g))), state

    return step


def ssam(rho):
    def step(w, gradient, t, state):
        g = gradient(w)
        second = gradient(w + rho * unit(g))
        return second * norm(g) / norm(second), state

    return step


def stream(key, t, part=None):
    """The key of step t, in a stream of its own for some parts."""
    start = jax.random.key(key, impl="threefry2x32")
    return jax.random.fold_in(start if part is None else jax.random.fold_in(start, part), t)


def draw(sampler, key, t, tree, part=None):
    """Random numbers shaped like a tree of NumPy arrays."""
    return optax.tree.random_like(stream(key, t, part), jax.tree.map(jnp.asarray, tree), sampler)


def ss_sam(rho, probability, key):
    def step(w, gradient, t, state):
        g = gradient(w)
        if jax.random.uniform(stream(key, t), (), jnp.float32) < at(probability, t):
            return gradient(w + rho * unit(g)), state
        return g, state

    return step


def esam(rho, beta, gamma, key, mask="coordinate"):
    def step(w, gradient, t, state):
        g, leaves = gradient(w), unravel(w)
        if mask == "coordinate":
            kept = ravel(draw(jax.random.uniform, key, t, leaves, part=2)) < beta
            epsilon = rho / beta * kept * g / norm(g)
        else:
            like = {name: np.zeros(()) for name in leaves}
            uniform = draw(jax.random.uniform, key, t, like, part=2)
            kept = ravel({n: np.full(leaves[n].shape, uniform[n] < beta) for n in leaves})
            epsilon = rho / beta * unit(kept * g)
        rise = gradient.losses(w + epsilon) - gradient.losses(w)
        share = max(1, int(gamma * len(rise)))
        return gradient(w + epsilon, np.argsort(-rise)[:share]), state

    return step


def vasso(rho, theta):
    def step(w, gradient, t, state):
        g = gradient(w)
        m = g if t == 0 else (1 - at(theta, t)) * state["m"] + at(theta, t) * g
        return gradient(w + rho * unit(m)), {"m": m}

    return step


def friendly_sam(rho, sigma, decay):
    def step(w, gradient, t, state):
        g = gradient(w)
        if t == 0:
            return gradient(w + rho * unit(g)), {"m": g}
        direction = g - sigma * state["m"]
        m = decay * state["m"] + (1 - decay) * g
        return gradient(w + rho * unit(direction)), {"m": m}

    return step


def eigen_sam(rho, alpha, period, power_iterations, key):
    def step(w, gradient, t, state):
        g = gradient(w)
        v = state.get("v", np.zeros_like(w))
        if t > 0 and t % period == 0:
            if not v.any():
                v = ravel(draw(jax.random.normal, key, t, unravel(w), part=1))
            for _ in range(power_iterations):
                v = unit(gradient.hessian(w, v))
        ascent = unit(g) + alpha * np.sign(np.dot(g, v)) * reject(v, unit(g))
        return gradient(w + rho * ascent), {"v": v}

    return step


def gsam(rho, alpha):
    def step(w, gradient, t, state):
        g = gradient(w)
        second = gradient(w + at(rho, t) * unit(g))
        return second - at(alpha, t) * reject(g, second), state

    return step


def looksam(rho, alpha, period):
    def step(w, gradient, t, state):
        g = gradient(w)
        if t % period == 0:
            second = gradient(w + rho * unit(g))
            return second, {"v": reject(second, g)}
        return g + alpha * norm(g) * unit(state["v"]), state

    return step


def adaptive(state, s, t, *, total_steps, lambda_1, lambda_2, decay, initial_variance):
    """Whether to take the second gradient, and the statistics."""
    mean = decay * state.get("mean", 0.0) + (1 - decay) * s
    variance = state.get("variance", initial_variance)
    variance = decay * variance + (1 - decay) * (s - mean) ** 2
    c = t / total_steps * lambda_1 + (1 - t / total_steps) * lambda_2
    return s >= mean + c * math.sqrt(variance), {"mean": mean, "variance": variance}


def ae_sam(rho, **policy):
    def step(w, gradient, t, state):
        g = gradient(w)
        fire, state = adaptive(state, gradient.mean(norm(g) ** 2), t, **policy)
        return (gradient(w + rho * unit(g)) if fire else g), state

    return step


def ae_looksam(rho, alpha, **policy):
    def step(w, gradient, t, state):
        g = gradient(w)
        fire, statistics = adaptive(state, gradient.mean(norm(g) ** 2), t, **policy)
        v = state.get("v", np.zeros_like(g))
        if fire:
            second = gradient(w + rho * unit(g))
            return second, {**statistics, "v": reject(second, g)}
        return g + alpha * norm(g) * unit(v), {**statistics, "v": v}

    return step


def samar(rho, gamma, chi, lambda_0, delta, ratio):
    def step(w, gradient, t, state):
        g = gradient(w)
        second = gradient(w + rho * unit(g))
        lambda_k = state.get("lambda_k", lambda_0)
        current = gradient.mean(norm(g) if ratio == "clean" else norm(second))
        grows = t == 0 or current / state["previous_norm"] >= chi
        moved = gamma * lambda_k if grows else lambda_k / gamma
        following = {"lambda_k": min(max(moved, delta), 1 - delta), "previous_norm": current}
        return (1 - lambda_k) * g + lambda_k * second, following

    return step


def le_sam_plus(budget, alpha, rho_max=None):
    def step(w, gradient, t, state):
        g = gradient(w)
        n = math.sqrt(norm(g) ** 2 + 1e-12)
        rho = at(budget, t) / n
        if rho_max is not None:
            rho = min(rho, at(rho_max, t))
        return gradient(w + rho * g / n) - alpha * g, {"rho": rho}

    return step


def le_sam(budget, rho_max=None):
    return le_sam_plus(budget, 0.0, rho_max)


def noise(w, t, gamma, power, key):
    """δ0 at draw t: standard deviation γ ‖w_j‖^power in kernel j, a slice along the last axis."""
    normals = draw(jax.random.normal, key, t, unravel(w))
    delta = {}
    for name, leaf in unravel(w).items():
        rows = leaf.reshape(-1, leaf.shape[-1]) if leaf.ndim >= 2 else leaf.reshape(-1, 1)
        kernels = np.array([norm(rows[:, j]) for j in range(rows.shape[1])])
        scale = gamma * kernels**power
        normal = np.asarray(normals[name]).reshape(rows.shape)
        delta[name] = (scale * normal).reshape(leaf.shape)
    return ravel(delta)


def r_gsam(
    rho,
    gamma,
    lambda_,
    alpha,
    key,
    noise_scale="std",
    normalize_gradient=False,
    updates_at="params",
):
    del updates_at  # where the caller takes the first gradient does not change the formula
    power = {"std": 1.0, "variance": 0.5}[noise_scale]

    def step(w, gradient, t, state):
        delta = noise(w, t, at(gamma, t), power, key)
        g = gradient(w + delta)
        weighed = lambda_ * (unit(g) if normalize_gradient else g)
        second = gradient(w + at(rho, t) * unit(delta + weighed))
        return second - alpha * reject(g, second), state

    return step


def r_sam(rho, gamma, lambda_, key, **settings):
    return r_gsam(rho, gamma, lambda_, 0.0, key, **settings)


def lpf_sgd(gamma, key, samples=1, updates_at="params"):
    del updates_at

    def step(w, gradient, t, state):
        draws = range(t * samples, (t + 1) * samples)
        gradients = [gradient(w + noise(w, i, at(gamma, t), 1.0, key)) for i in draws]
        return sum(gradients) / samples, state

    return step


def msam(rho, decay, updates_at="params"):
    del updates_at

    def step(w, gradient, t, state):
        velocity = state.get("velocity", np.zeros_like(w))
        d = gradient(w - at(rho, t) * unit(velocity))
        return d, {"velocity": decay * velocity + d}

    return step


def s2_sam(rho, updates_at="params"):
    del updates_at

    def step(w, gradient, t, state):
        d = gradient(w + at(rho, t) * unit(state.get("previous", np.zeros_like(w))))
        return d, {"previous": d}

    return step


def coupled_wsam(rho, gamma):
    def step(w, gradient, t, state):
        g = gradient(w)
        a = gamma / (1 - gamma)
        return a * gradient(w + rho * unit(g)) + (1 - a) * g, state

    return step


def wsam(decay, rho, gamma):
    """With heavy-ball momentum as the base optimizer."""

    def step(w, gradient, t, state):
        g = gradient(w)
        second = gradient(w + rho * unit(g))
        trace = g + decay * state.get("trace", 0.0)
        return trace + gamma / (1 - gamma) * (second - g), {"trace": trace}

    return step


# The table.


def noise_over(precision, key, t, w):
    """Normal numbers of this precision."""
    return ravel(draw(jax.random.normal, key, t, unravel(w))) / np.sqrt(precision)


def bsam(
    rho,
    ess,
    beta_1=0.9,
    beta_2=0.999,
    weight_decay=5e-4,
    damping=0.1,
    initial_precision=1.0,
    precision_at="updated",
    key=0,
    updates_at="params",
):
    def step(w, gradient, t, state):
        s, m = state.get("s", initial_precision + 0 * w), state.get("m", 0 * w)
        g = gradient(w + noise_over(ess * s, key, t, w))
        h = gradient(w + at(rho, t) * g / s)
        m = beta_1 * m + (1 - beta_1) * (h + weight_decay * w)
        after = beta_2 * s + (1 - beta_2) * (np.sqrt(s) * np.abs(g) + weight_decay + damping)
        return m / (s if precision_at == "previous" else after), {"s": after, "m": m}

    return step


def ivon(
    ess,
    beta_1=0.9,
    beta_2=0.99999,
    weight_decay=1e-4,
    initial_hessian=1.0,
    clip=math.inf,
    rescale=True,
    key=0,
    updates_at="params",
):
    def step(w, gradient, t, state):
        h, m = state.get("h", initial_hessian + 0 * w), state.get("m", 0 * w)
        precision = ess * (h + weight_decay)
        noise = noise_over(precision, key, t, w)
        g = gradient(w + noise)
        seen = precision * noise * g
        m = beta_1 * m + (1 - beta_1) * g
        correction = 0.5 * (1 - beta_2) ** 2 * (h - seen) ** 2 / (h + weight_decay)
        h = beta_2 * h + (1 - beta_2) * seen + correction
        d = (m / (1 - beta_1 ** (t + 1)) + weight_decay * w) / (h + weight_decay)
        scale = initial_hessian + weight_decay if rescale else 1
        return scale * np.clip(d, -clip, clip), {"h": h, "m": m}

    return step


class Row(NamedTuple):
    """One method with settings away from neutral: in the library, and as a reference.

    Attributes:
      factory: the library's function.
      settings: its keyword arguments.
      step: the reference with the same settings.
      momentum: of the SGD behind the link, None for none.
    """

    factory: Callable[..., optax.GradientTransformationExtraArgs]
    settings: dict[str, Any]
    step: Callable[..., Any]
    momentum: float | None = 0.9

    @property
    def call(self):
        """What the caller does for it: options of `make_step`, `run` and `trajectory`."""
        return {
            "at_point": self.settings.get("updates_at") == "gradient_point",
            "examples": self.factory is sam_optax.esam,
        }

    @property
    def static_args(self):
        """What `optax.inject_hyperparams` must leave alone."""
        static = {"samples", "power_iterations", "weights"}
        if self.factory is sam_optax.esam:
            static.add("gamma")
        return tuple(static & set(inspect.signature(self.factory).parameters))

    @property
    def required(self):
        """The settings of arguments that have no default."""
        parameters = inspect.signature(self.factory).parameters.values()
        return {p.name: self.settings[p.name] for p in parameters if p.default is p.empty}

    @property
    def firsts(self):
        """The gradients over which the first is averaged."""
        return self.settings.get("samples", 1)

    def link(self):
        link = self.factory(**self.settings)
        return whole_batch(link) if self.factory is sam_optax.esam else link

    def optimizer(self):
        return optax.chain(self.link(), sgd(self.momentum))

    @property
    def unnamed(self):
        """The row for parameters whose names say nothing of what weights are."""
        told = {"weights": True} if self.factory is sam_optax.asam else {}
        return self._replace(settings=self.settings | told)


def whole_batch(link):
    """A link that selects examples, for a grad_fn that knows of none."""

    def update(updates, state, params=None, *, grad_fn=None, **extra):
        if grad_fn is not None and "example_loss_fn" not in extra:
            extra["example_loss_fn"] = lambda p: jnp.arange(4.0) * optax.tree.sum(p)
            return link.update(updates, state, params, grad_fn=lambda p, i: grad_fn(p), **extra)
        return link.update(updates, state, params, grad_fn=grad_fn, **extra)

    return optax.GradientTransformationExtraArgs(link.init, update)


def row(name, **settings):
    return Row(getattr(sam_optax, name), settings, globals()[name](**settings))


def sgd(momentum=0.9):
    return optax.sgd(LEARNING_RATE, momentum=momentum)


AE = {"total_steps": STEPS, "lambda_1": -1.0, "lambda_2": 1.0, "decay": 0.5}
NOISY = {"rho": 0.4, "gamma": 0.3, "lambda_": 0.7, "key": 3}
POINT = {"updates_at": "gradient_point"}

# Powers of two, so that float32 schedules are exact.
LINEAR = {"rho_max": 0.5, "rho_min": 0.125, "lr_max": 1.0, "lr_min": 0.25}


def linear_rho(t):
    learning_rate = 1.0 - t / 16
    return 0.125 + (0.5 - 0.125) * (learning_rate - 0.25) / (1.0 - 0.25)


def annealed_budget(t):
    if t < 2:
        return 0.4 * t / 2
    tau = (t - 5) / (10 - 5 - 1)
    return 0.4 if t < 5 else 0.1 + 0.5 * (0.4 - 0.1) * (1 + math.cos(math.pi * tau))


POSTERIOR = {"ess": 30.0, "beta_1": 0.8, "beta_2": 0.9, "weight_decay": 0.05, "key": 3}

# Each method once, for properties that settings do not change.
METHODS = {
    "sam": row("sam", rho=0.4),
    "asam": row("asam", rho=0.4, eta=0.1),
    "fisher_sam": row("fisher_sam", rho=0.4, eta=2.0),
    "gsam": row("gsam", rho=0.4, alpha=0.6),
    "ssam": row("ssam", rho=0.4),
    "looksam": row("looksam", rho=0.4, alpha=0.7, period=3),
    "ss_sam": row("ss_sam", rho=0.4, probability=0.6, key=3),
    "esam": row("esam", rho=0.4, beta=0.5, gamma=0.5, key=3),
    "ae_sam": row("ae_sam", rho=0.4, initial_variance=0.5, **AE),
    "ae_looksam": row("ae_looksam", rho=0.4, alpha=0.3, initial_variance=0.5, **AE),
    "samar": row("samar", rho=0.4, gamma=3.0, chi=1.1, lambda_0=1.0, delta=0.1, ratio="clean"),
    "vasso": row("vasso", rho=0.4, theta=0.4),
    "friendly_sam": row("friendly_sam", rho=0.4, sigma=0.7, decay=0.6),
    "eigen_sam": row("eigen_sam", rho=0.4, alpha=0.5, period=3, power_iterations=4, key=3),
    "le_sam": row("le_sam", budget=0.8, rho_max=0.3),
    "le_sam_plus": row("le_sam_plus", budget=0.3, alpha=0.5, rho_max=0.12),
    "r_sam": row("r_sam", **NOISY),
    "r_gsam": row("r_gsam", alpha=0.6, **NOISY),
    "lpf_sgd": row("lpf_sgd", gamma=0.3, key=3),
    "msam": row("msam", rho=0.4, decay=0.8),
    "s2_sam": row("s2_sam", rho=0.4),
    "coupled_wsam": row("coupled_wsam", rho=0.4, gamma=0.8),
    "wsam": Row(
        sam_optax.wsam,
        {"base": optax.trace(0.9), "rho": 0.4, "gamma": 0.8},
        wsam(0.9, 0.4, 0.8),
        momentum=None,
    ),
}

METHODS |= {
    name: row(name, **settings)._replace(momentum=None)
    for name, settings in {
        "bsam": {"rho": 0.2, "damping": 0.2, "initial_precision": 0.8, **POSTERIOR},
        "ivon": {"initial_hessian": 0.7, **POSTERIOR},
    }.items()
}

NAMES = list(METHODS)
# Their first gradient is not at the parameters.
STARTS = [n for n in NAMES if "updates_at" in inspect.signature(METHODS[n].factory).parameters]

# One method for each kind of state and of call, where a test of all would take long.
KINDS = ["gsam", "ae_looksam", "le_sam", "esam", "eigen_sam", "msam", "wsam", "bsam"]


def few(*kept, names=NAMES):
    """All methods, or those named, as parameters of a test; those not kept are slow ones."""
    return [pytest.param(name, marks=() if name in kept else pytest.mark.slow) for name in names]


FEW = few(*KINDS)

# The same methods with other settings, schedules, and gradients at the gradient point.
VARIANTS = {
    "gsam_schedule": Row(
        sam_optax.gsam,
        {
            "rho": sam_optax.schedules.rho_from_learning_rate(
                optax.linear_schedule(1.0, 0.0, 16), **LINEAR
            ),
            "alpha": lambda t: 0.25 * (t + 1),
        },
        gsam(linear_rho, lambda t: 0.25 * (t + 1)),
    ),
    "asam_weights": row(
        "asam", rho=0.4, eta=lambda t: 0.1 * t, weights=lambda path: path[-1].key == "dense_bias"
    ),
    "asam_mask": row(
        "asam",
        rho=0.4,
        eta=0.3,
        weights={"conv": False, "dense_bias": True, "dense_kernel": False, "scale": False},
    ),
    "ss_sam_schedule": row("ss_sam", rho=0.4, probability=lambda t: 0.125 * t, key=1),
    "esam_tensor": row("esam", rho=0.4, beta=0.5, gamma=0.7, key=3, mask="tensor"),
    "esam_all": row("esam", rho=0.4, beta=0.7, gamma=1, key=2),
    "vasso_schedule": row("vasso", rho=0.4, theta=lambda t: 0.125 * t),
    "samar_perturbed": row(
        "samar", rho=0.4, gamma=2.0, chi=0.9, lambda_0=0.6, delta=0.2, ratio="perturbed"
    ),
    "le_sam_schedule": Row(
        sam_optax.le_sam,
        {"budget": sam_optax.schedules.budget_annealing(0.4, 5, 10, final=0.1, warmup=2)},
        le_sam(annealed_budget),
    ),
    "r_sam_variance": row("r_sam", noise_scale="variance", **NOISY),
    "r_sam_normalized": row("r_sam", normalize_gradient=True, **NOISY),
    "r_sam_point": row("r_sam", **NOISY, **POINT),
    "r_sam_schedule": row(
        "r_sam", **{**NOISY, "gamma": lambda t: 0.125 * (t + 1), "rho": lambda t: 0.25 * (t + 1)}
    ),
    "r_gsam_point": row(
        "r_gsam", alpha=0.6, noise_scale="variance", normalize_gradient=True, **NOISY, **POINT
    ),
    "lpf_sgd_point": row("lpf_sgd", gamma=lambda t: 0.125 * (t + 1), key=3, **POINT),
    "lpf_sgd_samples": row("lpf_sgd", gamma=0.3, key=3, samples=3),
    "lpf_sgd_samples_point": row("lpf_sgd", gamma=0.3, key=3, samples=2, **POINT),
    "msam_point": row("msam", rho=0.3, decay=0.9, **POINT),
    "msam_schedule": row("msam", rho=lambda t: 0.25 * (t + 1), decay=0.7),
    "bsam_previous": row(
        "bsam", rho=lambda t: 0.125 * t, precision_at="previous", **POSTERIOR, **POINT
    )._replace(momentum=None),
    "ivon_clip": row("ivon", clip=0.5, rescale=False, **POSTERIOR, **POINT)._replace(momentum=None),
    "s2_sam_point": row("s2_sam", rho=0.3, **POINT),
    "s2_sam_schedule": row("s2_sam", rho=lambda t: 0.25 * (t + 1)),
}

ROWS = METHODS | VARIANTS


# Running them.


def run_reference(row):
    """(w, state) after each step of SGD, with or without momentum, on the reference directions."""
    w, state, trace, ascents, rise = ravel(initial_params()), {}, 0.0, 0, 0.0
    for t in range(STEPS):
        gradient = Gradient(make_batch(t))
        direction, state = row.step(w, gradient, t, state)
        if gradient.calls > row.firsts:
            second = gradient.points[row.firsts]
            rise = float(np.mean(gradient.losses(second) - gradient.losses(w)))
        trace = direction + (row.momentum or 0.0) * trace
        w = w - LEARNING_RATE * trace
        ascents += gradient.calls > row.firsts
        yield w, {**state, "ascents": ascents, "steps": t + 1, "rise": rise}


def make_step(
    tx,
    *,
    at_point=False,
    examples=False,
    valued=False,
    compiled=True,
    grad_loss=None,
    gradient=lambda f: f,
):
    """step(params, opt_state, batch), with `gradient` around each gradient function.

    The loss at the parameters, and at the second point, is handed over where valued is true.
    """
    grad_loss = grad_loss or jax.grad(loss)

    def step(params, opt_state, batch):
        def kept(indices=slice(None)):
            return jax.tree.map(lambda x: x[indices], batch)

        def on(p, *indices):
            return grad_loss(p, kept(*indices))

        def both(p, *indices):
            return loss(p, kept(*indices)), grad_fn(p, *indices)

        extra = {"example_loss_fn": lambda p: losses(p, batch)} if examples else {}
        grad_fn = gradient(on)
        if valued:
            extra |= {"value": loss(params, batch), "value_and_grad_fn": both}
        else:
            extra |= {"grad_fn": grad_fn}
        point = sam_optax.gradient_point(opt_state, params) if at_point else params
        updates, opt_state = tx.update(grad_fn(point), opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    return jax.jit(step) if compiled else step


def run(tx, step=None, *, steps=STEPS, params=None, **call):
    """(params, opt_state) after each step of an optimizer of the library."""
    step = step or make_step(tx, **call)
    params = jax.tree.map(jnp.asarray, params or initial_params())
    opt_state = tx.init(params)
    for t in range(steps):
        params, opt_state = step(params, opt_state, jax.tree.map(jnp.asarray, make_batch(t)))
        yield params, opt_state


def trajectory(tx, step=None, **options):
    """The parameters after each step as rows of one matrix."""
    return np.stack([ravel(params) for params, _ in run(tx, step, **options)])
