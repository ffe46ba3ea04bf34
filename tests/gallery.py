"""The methods of docs/gallery.md in plain NumPy float64, from their formulas.

A step is as in `reference`: `step(w, gradient, t, state)` on one flat vector, which returns the
direction and the state. Random numbers alone are drawn with JAX.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from reference import (
    SHAPES,
    Gradient,
    bsam,
    draw,
    ivon,
    make_batch,
    norm,
    output_error,
    pull_back,
    ravel,
    reject,
    stream,
    unit,
    unravel,
)


def by_leaf(function, *vectors):
    """function(name, leaf, ...) of each leaf of vectors."""
    trees = [unravel(vector) for vector in vectors]
    return ravel({name: function(name, *[tree[name] for tree in trees]) for name in SHAPES})


def is_matrix(name):
    return len(SHAPES[name]) > 1


def inside(x):
    """The axes of a kernel: all but that of the outputs, the last."""
    return tuple(range(x.ndim - 1))


def sam_with(sum_of, ascent=unit, rho=0.1):
    """SAM with another sum of the two gradients."""

    def step(w, gradient, t, state):
        g = gradient(w)
        return sum_of(g, gradient(w + rho * ascent(g))), state

    return step


def sam_at(epsilon):
    """The gradient at w + ε(g, w, t)."""

    def step(w, gradient, t, state):
        return gradient(w + epsilon(gradient(w), w, t)), state

    return step


def sam_where(fires, rho=0.1, fired=lambda g, h: h):
    def step(w, gradient, t, state):
        g = gradient(w)
        return fired(g, gradient(w + rho * unit(g))) if fires(t) else g, state

    return step


def awp(g, w, t):
    def of(name, g, w):
        return 0.01 * norm(w) * unit(g) if is_matrix(name) else 0 * g

    return by_leaf(of, g, w)


def unified(g, w, t):
    share = 1 / (t + 1)
    return 0.1 * (1 - share + share / norm(g)) * g


def gcsam(g, w, t):
    def of(name, g):
        return g - g.mean(axis=inside(g), keepdims=True) if is_matrix(name) else g

    return 0.05 / norm(g) * by_leaf(of, g)


def zsharp(g, w, t):
    size = norm(g)

    def of(name, g):
        if not is_matrix(name):
            return 0.05 * g / size
        z = np.abs((g - g.mean()) / g.std(ddof=1))
        kept = np.where(z > np.quantile(z, 0.95), g, 0)
        return 0.05 * unit(kept)

    return by_leaf(of, g)


def preconditioned(w, gradient, t, state):
    g = gradient(w)
    v = 0.9 * state.get("nu", 0.0) + 0.1 * g**2
    return gradient(w + 0.1 * unit(g / np.sqrt(v + 1e-8))), {"nu": v}


def light_sam(w, gradient, t, state):
    g = gradient(w)
    u = state.get("u", 1e-16) + g**2
    h = gradient(w + 0.05 * g / np.sqrt(u))
    v = state.get("v", 1e-16) + h**2
    return h / np.sqrt(v), {"u": u, "v": v}


def cram(w, gradient, t, state):
    g = gradient(w)
    ascended = w + 0.05 * g
    matrices = np.concatenate(
        [leaf.ravel() for name, leaf in unravel(ascended).items() if is_matrix(name)]
    )
    least = np.sort(np.abs(matrices))[len(matrices) // 2]
    kept = by_leaf(
        lambda name, x: np.where(np.abs(x) >= least, 1, 0) if is_matrix(name) else 1 + 0 * x,
        ascended,
    )
    return kept * gradient(kept * ascended) + g, state


def filter_noise(w, t, sigma=0.01, key=3, part=None):
    noise = draw(jax.random.normal, key, t, unravel(w), part)

    def of(name, w, z):
        axes = inside(w) if is_matrix(name) else None
        return (
            sigma
            * np.sqrt(np.sum(w**2, axis=axes, keepdims=True)).reshape(
                w.shape if axes is None and w.ndim == 0 else [*([1] * (w.ndim - 1)), -1]
            )
            * z
        )

    return by_leaf(of, w, ravel(noise))


def m_rwp(w, gradient, t, state):
    other = Gradient(make_batch(t + 50))
    gradient.calls += 1
    return 0.5 * other(w + filter_noise(w, t, part=4)) + 0.5 * gradient(w), state


def rwp(w, gradient, t, state):
    return gradient(w + filter_noise(w, t)), state


def arwp(w, gradient, t, state):
    fisher = state.get("fisher", 0 * w)

    def of(name, f):
        return f.sum(axis=inside(f), keepdims=True) + 0 * f if is_matrix(name) else f

    g = gradient(w + filter_noise(w, t) / np.sqrt(1 + 1.0 * by_leaf(of, fisher)))
    return g, {"fisher": 0.9 * fisher + g**2}


def async_sam(w, gradient, t, state):
    g = gradient(w)
    before = state.get("previous", 0 * w)
    return gradient(w + 0.1 * unit(before)), {"previous": g}


def dp_sat(w, gradient, t, state):
    """Each example's gradient is clipped to 0.5; the noise of privacy is left out."""
    point = w + 0.05 * unit(state.get("previous", 0 * w))
    each = [gradient(point, slice(i, i + 1)) for i in range(6)]
    gradient.calls = 1
    direction = np.mean([g * min(1, 0.5 / norm(g)) for g in each], axis=0)
    return direction, {"previous": direction}


def bilateral(w, gradient, t, state):
    g = gradient(w)
    h, behind = gradient(w + 0.05 * unit(g)), gradient(w - 0.05 * unit(g))
    return h + g - norm(h) / norm(behind) * behind, state


def cr_sam(w, gradient, t, state):
    g = gradient(w)
    h, behind = gradient(w + 0.1 * unit(g)), gradient(w - 0.1 * unit(g))
    return h + 0.1 * (h + behind - 2 * g) + 0.01 * (h - behind), state


def lookbehind(w, gradient, t, state):
    point, g, total = w, gradient(w), 0
    for _ in range(3):
        point = point + 0.05 * unit(g)
        g = gradient(point)
        total = total + g
    return 0.5 * total, state


def multi_step(w, gradient, t, state):
    point, g = w, gradient(w)
    for _ in range(3):
        point = point + 0.1 / 3 * unit(g)
        g = gradient(point)
    return g, state


def gam(w, gradient, t, state):
    g = gradient(w)
    g_1 = gradient(w + 0.02 * unit(g))
    w_2 = w + 0.2 * unit(g_1 - g)
    g_2 = gradient(w_2)
    g_3 = gradient(w_2 + 0.02 * unit(g_2))
    p, q = 0.6 * g_1 + 0.4 * g_3, 0.5 * g + 0.5 * g_2
    return p - 0.03 * reject(q, p), state


def c_flat(w, gradient, t, state):
    g = gradient(w)
    g_1 = gradient(w + 0.2 * unit(g))
    w_2 = w + 0.2 * unit(g_1 - g)
    g_2 = gradient(w_2)
    return g_1 + 0.2 * (gradient(w_2 + 0.2 * unit(g_2)) - g_2), state


def sampa(w, gradient, t, state):
    p = state.get("p", 0 * w)
    ahead = gradient(w - 0.1 * p)
    return 0.8 * gradient(w + 0.1 * unit(p)) + 0.2 * ahead, {"p": ahead}


def xsam(w, gradient, t, state):
    g = gradient(w)
    h = gradient(w + 0.15 * unit(g))
    angle = math.acos(np.dot(unit(g), unit(h)))
    arc = math.sin(-0.4 * angle) * unit(g) + math.sin(1.4 * angle) * unit(h)
    return norm(h) * arc / math.sin(angle), state


def polyak(w, gradient, t, state):
    g = gradient(w)
    epsilon = 0.1 * unit(g)
    h = gradient(w + epsilon)
    gap = max(np.mean(gradient.losses(w + epsilon)) - np.dot(h, epsilon), 0)
    return min(gap / norm(h) ** 2, 1.0) * h, state


def sassha(w, gradient, t, state):
    g = gradient(w)
    point = w + 0.2 * unit(g)
    h = gradient(point)
    m = 0.9 * state.get("m", 0 * w) + 0.1 * h
    d, correction = state.get("d", 0 * w), state.get("correction", 1.0)
    if t % 2 == 0:
        like = jax.tree.map(jnp.asarray, unravel(w))
        key = jax.random.fold_in(jax.random.key(5), t)
        z = ravel(optax.tree.random_like(key, like, jax.random.rademacher))
        d = 0.99 * d + 0.01 * np.abs(z * gradient.hessian(point, z))
        correction = 1 - 0.99 ** (t + 1)
    direction = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(d / correction) + 1e-4)
    return direction, {"m": m, "d": d, "correction": correction}


def functional(w, gradient, t, state):
    g = gradient(w)
    (x, _), error = gradient.batch, output_error(w, gradient.batch)
    gradient.calls += 1
    return pull_back(w + 0.1 * unit(g), x, error / len(x)), state


def j_sam(w, gradient, t, state):
    (x, y), each = gradient.batch, []
    for i in range(len(x)):
        one = x[i : i + 1], y[i : i + 1]
        g = pull_back(w, one[0], output_error(w, one))
        each.append(pull_back(w + 0.1 * unit(g), one[0], output_error(w, one)))
    gradient.calls = 2
    return np.mean(each, axis=0), state


SHARES = np.array([0.9, 0.2, 0.5, 0.7, 0.1, 0.4])  # c_y of each example
RARE = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 1.0])


def weighed(shares, rho):
    def step(w, gradient, t, state):
        (x, _), n = gradient.batch, len(shares)

        def of(point, weights):
            return pull_back(point, x, weights[:, None] * output_error(point, gradient.batch) / n)

        g = of(w, shares)
        gradient.calls = 2
        return of(w, 1 - shares) + of(w + rho * unit(g), shares), state

    return step


class Case(NamedTuple):
    """What a block is compared with.

    Attributes:
      step: the reference.
      momentum: of the SGD behind the link.
      base: what stands behind the link in its place, for a block that makes a whole optimizer.
      gradients: a step, where each step takes as many; None where they vary.
    """

    step: Callable[..., Any]
    momentum: float | None = 0.9
    base: Any = None
    gradients: int | None = 2


PLAIN = sam_at(lambda g, w, t: 0.05 * unit(g))


def coin(key, t, probability):
    return jax.random.uniform(stream(key, t), (), jnp.float32) < probability


CASES = {
    "PGN": Case(sam_with(lambda g, h: 0.2 * g + 0.8 * h)),
    "SAGM": Case(
        lambda w, gradient, t, state: (
            0.5 * (g := gradient(w)) + 0.5 * gradient(w + (0.05 / norm(g) - 0.001) * g),
            state,
        )
    ),
    "Factor SAM": Case(
        sam_where(lambda t: t % 3 == 0, fired=lambda g, h: g + 1.5 * (h - g)), gradients=None
    ),
    "RST": Case(
        sam_where(lambda t: coin(1, t, 0.5 + 0.5 * np.cos(np.pi * t / 10))), gradients=None
    ),
    "Late-phase SAM": Case(sam_where(lambda t: t >= 6), gradients=None),
    "Early SAM": Case(sam_where(lambda t: t < 4), gradients=None),
    "A coin inside a window": Case(
        sam_where(lambda t: coin(2, t, 0.6) and 2 <= t < 9), gradients=None
    ),
    "SAM with a ramp": Case(sam_at(lambda g, w, t: 0.25 * min(t / 4, 1) * unit(g))),
    "AWP": Case(sam_at(awp)),
    "USAM": Case(sam_at(lambda g, w, t: 0.05 * g)),
    "Unified SAM": Case(sam_at(unified)),
    "Preconditioned SAM": Case(preconditioned),
    "LightSAM-II": Case(light_sam),
    "GCSAM": Case(sam_at(gcsam)),
    "ZSharp": Case(sam_at(zsharp)),
    "CrAM": Case(cram),
    "m-RWP": Case(m_rwp),
    "RWP": Case(rwp, gradients=1),
    "ARWP": Case(arwp, gradients=1),
    "AsyncSAM": Case(async_sam),
    "DP-SAT": Case(dp_sat, gradients=1),
    "Bilateral SAM": Case(bilateral, gradients=3),
    "CR-SAM": Case(cr_sam, gradients=3),
    "Lookbehind-SAM": Case(lookbehind, gradients=4),
    "Multi-step SAM": Case(multi_step, gradients=4),
    "GAM": Case(gam, gradients=4),
    "C-Flat": Case(c_flat, gradients=4),
    "SAMPa": Case(sampa, momentum=None),
    "XSAM": Case(xsam),
    "SAM-SPS": Case(polyak, momentum=None, base=optax.scale(-1.0)),
    "bSAM": Case(bsam(0.01, 50.0, beta_2=0.9, weight_decay=1e-3), momentum=None),
    "IVON": Case(ivon(50.0, beta_2=0.9, weight_decay=1e-3), momentum=None, gradients=1),
    "SASSHA": Case(sassha, momentum=None),
    "Functional SAM": Case(functional),
    "J-SAM": Case(j_sam),
    "Focal-SAM": Case(weighed(SHARES, 0.2)),
    "ImbSAM": Case(weighed(RARE, 0.05)),
    "SAM behind Lion": Case(PLAIN, base=optax.lion(0.01)),
    "SAM behind Muon": Case(PLAIN, base=optax.contrib.muon(0.02)),
    "SAM behind Schedule-Free": Case(
        PLAIN, base=optax.contrib.schedule_free(optax.sgd(0.1), learning_rate=0.1, b1=0.9)
    ),
    "SAM behind Prodigy": Case(PLAIN, base=optax.contrib.prodigy(1.0)),
    "AdaSAM": Case(PLAIN, base=optax.amsgrad(0.01)),
}
