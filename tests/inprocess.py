"""Commands run in the process of the tests, and what they leave."""

import json
import signal
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import toy
from experiments.cli.command import run as run_command
from experiments.recipes import Recipe
from experiments.results import files, plots, sweep_plots, watch
from experiments.training.checkpoints import Checkpoints
from experiments.training.trainer import Trainer


def command(monkeypatch, module, *arguments):
    """Runs a command of the shell in this process."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    run_command(module.main, module.Options)


def undrawn(monkeypatch):
    """Texts in place of pictures, and no paths in the toy problem, where nobody looks at them.

    To draw a picture takes longer than many a test.
    """

    def write(path, *args, **kwargs):
        files.write_text(path, "a picture")

    for name in ("curves", "comparison", "robustness", "toy"):
        monkeypatch.setattr(plots, name, write)
    monkeypatch.setattr(sweep_plots, "picture", write)
    monkeypatch.setattr(toy, "path_of", lambda tx: np.array([toy.START, toy.START]))


def read(path):
    return json.loads(path.read_text())


def small_trainer(model, method, loaded, *, on_host, **settings):
    recipe = Recipe(dataset="digits", model=model, epochs=2, batch_size=16, learning_rate=0.1)
    return Trainer(recipe, method, settings, data=loaded, on_host=on_host)


def end(path):
    """The step of the last checkpoint and its leaves."""
    checkpoints = path.absolute() / "checkpoints"
    step = Checkpoints(checkpoints).steps()[-1]
    with ocp.StandardCheckpointer() as checkpointer:
        held = checkpointer.metadata(checkpoints / str(step) / "state").item_metadata.tree
        like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), held)
        state = checkpointer.restore(checkpoints / str(step) / "state", like)
    return step, jax.tree.leaves(state)


def assert_same_end(path, other):
    """Parameters, state and metrics, bit for bit."""
    (step, leaves), (other_step, other_leaves) = end(path), end(other)
    assert step == other_step
    for one, two in zip(leaves, other_leaves, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (path / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    summary, other_summary = (files.read_json(p / "summary.json") for p in (path, other))
    del summary["seconds"], other_summary["seconds"]
    assert summary == other_summary


def interrupt_at(monkeypatch, step, number=signal.SIGTERM):
    """Sends a signal when the run has reached a step."""
    reach = watch.Bar.reach

    def reach_and_send(self, done):
        reach(self, done)
        if done == step:
            signal.raise_signal(number)

    monkeypatch.setattr(watch.Bar, "reach", reach_and_send)
