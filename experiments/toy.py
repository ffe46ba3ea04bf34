"""The two-dimensional problem of the WSAM paper: a sharp and a flat minimum.

    python -m experiments.toy [--out DIR]

Writes toy.json, a list of {method, gamma, w: [μ, σ], loss} at the last step, and toy.png, the loss
surface with the paths of SGD, SAM, WSAM and coupled WSAM.
"""

from collections.abc import Mapping
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
from rich.table import Table

from experiments.cli import command
from experiments.results import files, folders, numerics, plots
import sam_optax

START, STEPS, LEARNING_RATE, MOMENTUM, RHO = (-6.0, 10.0), 150, 5.0, 0.9, 2.0
GAMMAS = (0.6, 0.95)
MINIMA = {"sharp": (-16.8, 12.8), "flat": (19.8, 29.9)}
NOTE = (
    "The paper reports that WSAM with γ = 0.95 ends in the flat minimum, the others in the sharp "
    "one.\nFrom its own settings only coupled WSAM does; decoupled WSAM, the paper's method, stays "
    "in the sharp one."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """The toy problem of the WSAM paper."""

    out: Path = Path("runs/toy")
    """The folder for toy.json and toy.png."""


def loss(w: jax.Array) -> jax.Array:
    """−log(0.7 exp(−K1/1.8²) + 0.3 exp(−K2/1.2²)) at w = (μ, σ), K_i = KL(N(μ, σ²) ‖ N_i)."""
    mu, sigma = w

    def kl(mu_i, sigma_i):
        squares = sigma**2 + (mu - mu_i) ** 2
        return jnp.log(sigma_i / sigma) + squares / (2 * sigma_i**2) - 0.5

    return -jnp.log(
        0.7 * jnp.exp(-kl(20.0, 30.0) / 1.8**2) + 0.3 * jnp.exp(-kl(-20.0, 10.0) / 1.2**2)
    )


def optimizers() -> dict[tuple[str, float | None], optax.GradientTransformationExtraArgs]:
    """The optimizers of the figure by method and γ, each with momentum."""
    momentum = optax.sgd(LEARNING_RATE, MOMENTUM)
    descent = optax.scale_by_learning_rate(LEARNING_RATE)
    chosen: dict[Any, Any] = {
        ("sgd", None): optax.with_extra_args_support(momentum),
        ("sam", None): optax.chain(sam_optax.sam(RHO), momentum),
    }
    for gamma in GAMMAS:
        decoupled = sam_optax.wsam(optax.trace(MOMENTUM), RHO, gamma)
        chosen["wsam", gamma] = optax.chain(decoupled, descent)
        chosen["coupled_wsam", gamma] = optax.chain(sam_optax.coupled_wsam(RHO, gamma), momentum)
    return chosen


def path_of(tx: optax.GradientTransformationExtraArgs) -> np.ndarray:
    """The points float64 [STEPS + 1, 2] from the start on."""

    @jax.jit
    def step(carry, _):
        w, state = carry
        grad_fn = jax.grad(loss)
        updates, state = tx.update(grad_fn(w), state, w, grad_fn=grad_fn)
        w = optax.apply_updates(w, updates)
        return (w, state), w

    start = jnp.array(START)
    _, points = jax.lax.scan(step, (start, tx.init(start)), length=STEPS)
    return np.concatenate([[START], points])


def main(options: Options) -> None:
    """Runs the command."""
    config = {"steps": STEPS, "jax": numerics.recorded()}
    with folders.anew(options.out, "toy", config) as folder, jax.enable_x64(True):
        paths = {key: path_of(tx) for key, tx in optimizers().items()}
        ends = [
            {
                "method": method,
                "gamma": gamma,
                "w": path[-1].tolist(),
                "loss": float(loss(path[-1])),
            }
            for (method, gamma), path in paths.items()
        ]
        plots.toy(folder.file("toy.png"), loss, paths, ends, MINIMA, note=NOTE)
        files.write_json(folder.file("toy.json"), ends)
    rich.print(_table(ends), NOTE)
    print(f"written to {options.out}/")


def nearest_minimum(w: Any) -> str:
    """Which minimum a point is nearer to."""
    return min(MINIMA, key=lambda name: np.hypot(*np.subtract(w, MINIMA[name])))


def _table(ends: list[Mapping[str, Any]]) -> Table:
    table = Table("method", "γ", "μ", "σ", "loss", "minimum", title=f"after {STEPS} steps")
    for end in ends:
        mu, sigma = end["w"]
        table.add_row(
            end["method"],
            "" if end["gamma"] is None else f"{end['gamma']}",
            f"{mu:.2f}",
            f"{sigma:.2f}",
            f"{end['loss']:.4f}",
            nearest_minimum(end["w"]),
        )
    return table


if __name__ == "__main__":
    command.run(main, Options)
