"""The same methods in PyTorch, by pytorch_optimizer, on the same models and batches."""

from collections.abc import Callable
import functools
import itertools
import os
import time

# Before torch is imported: its idle threads would take the cores from the step that comes next.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pytorch_optimizer
import torch
from torch import nn

from experiments.benchmark.contestants import LEARNING_RATE, MOMENTUM, RHO
from experiments.benchmark.measure import Turn
from experiments.benchmark.problems import Problem

BASE = {"lr": LEARNING_RATE, "momentum": MOMENTUM}


def _mlp():
    hidden = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, 10))


def _cnn():
    layers, channels = [], 1
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        layers.append(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


# As `experiments.models`; padding differs by a pixel where a stride meets an even size.
MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": _mlp, "small_cnn": _cnn}


def _gsam(model):
    base = torch.optim.SGD(model.parameters(), **BASE)
    schedule = torch.optim.lr_scheduler.LambdaLR(base, lambda t: 1.0)
    radius = pytorch_optimizer.ProportionScheduler(schedule, LEARNING_RATE, max_value=RHO)
    return pytorch_optimizer.GSAM(model.parameters(), base, model, radius, alpha=0.4)


def _wrapped(name, **settings):
    def make(model):
        function, sgd = getattr(pytorch_optimizer, name), torch.optim.SGD
        first = (model,) if name == "WSAM" else ()
        return function(*first, model.parameters(), sgd, rho=RHO, **settings, **BASE)

    return make


# By the names in `sam_optax`, with its settings.
PEERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), **BASE),
    "sam": _wrapped("SAM"),
    "gsam": _gsam,
    "wsam": _wrapped("WSAM", gamma=0.9),
    "looksam": _wrapped("LookSAM", k=5),
    "friendly_sam": _wrapped("FriendlySAM"),
}
# Their `step` takes the first gradient too; that of the others finds it. LookSAM's asks for a
# gradient at every step, also where it does not climb.
BOTH_GRADIENTS = ("gsam", "wsam")


class TorchProgram:
    """A peer on a problem, as `measure.Program`; it is not compiled."""

    flops = temp_bytes = state_bytes = compile_seconds = None
    cycle = 10

    def __init__(self, problem: Problem, name: str):
        """Makes the model and the batch."""
        batches = [
            (torch.tensor(np.array(x)), torch.tensor(np.array(y))) for x, y in problem.batches
        ]
        batches = [(x.permute(0, 3, 1, 2).contiguous(), y.long()) for x, y in batches]
        self._batches = itertools.cycle(batches)
        self._model = MODELS[problem.name]()
        self._optimizer = PEERS[name](self._model)
        self._loss = nn.CrossEntropyLoss()
        self._name = name

    def run(self, steps: int) -> Turn:
        """Takes so many steps."""
        self._gradients = 0
        start = time.perf_counter()
        for batch in itertools.islice(self._batches, steps):
            closure = functools.partial(self._backward, *batch)
            if self._name not in BOTH_GRADIENTS:
                closure()
            self._optimizer.step(*(() if self._name == "sgd" else (closure,)))
        seconds = time.perf_counter() - start
        return Turn(seconds / steps, self._gradients / steps - 1)

    @torch.enable_grad()
    def _backward(self, images, labels):
        self._gradients += 1
        self._model.zero_grad()
        loss = self._loss(self._model(images), labels)
        loss.backward()
        return None, loss  # outputs and loss, as GSAM wants them
