"""ResNet-18 for small images in PyTorch, and its step by SGD and by SAM in the fewest lines."""

import contextlib
import time

import numpy as np
import torch
from torch import nn

from experiments.benchmark.gpu.loop import RHO
from experiments.benchmark.gpu.setup import Setup
from experiments.benchmark.measure import Turn
from experiments.training.optimizers import SGD

# What `torch.compile` is told; CUDA graphs are in its mode against overhead.
MODES = {"eager": None, "compiled": "default", "CUDA graphs": "reduce-overhead"}


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, before: int, channels: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Identity()
        if stride != 1 or before != channels:
            convolution = nn.Conv2d(before, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x):
        """From [B, C, H, W]."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(width: int) -> nn.Module:
    """As `experiments.models` has it."""
    layers = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    before = width
    for stage in range(4):
        channels = width * 2**stage
        layers += [Block(before, channels, 1 + (stage > 0)), Block(channels, channels, 1)]
        before = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


class Program:
    """A step on one batch that lies on the device, to be timed in turns."""

    cycle = 10

    def __init__(self, setup: Setup, method: str, mode: str):
        """Compiles nothing before the first step."""
        cuda = torch.cuda.is_available()
        self._device = torch.device("cuda" if cuda else "cpu")
        torch.backends.cudnn.benchmark = True
        rng = np.random.default_rng(0)
        images = rng.standard_normal((setup.batch_size, 3, 32, 32), np.float32)
        labels = rng.integers(0, 10, setup.batch_size)
        last = {"memory_format": torch.channels_last}
        self._images = torch.tensor(images, device=self._device).to(**last)
        self._labels = torch.tensor(labels, device=self._device)
        model = resnet18(setup.width or 64).to(self._device, **last)
        self._params = list(model.parameters())
        self._model = model if MODES[mode] is None else torch.compile(model, mode=MODES[mode])
        self._optimizer = torch.optim.SGD(self._params, 1e-6, momentum=0.9, foreach=True)
        self._step = self._sgd if method == SGD else self._sam
        self._ascents = float(method != SGD)
        self._low = setup.dtype == "bfloat16"

    def run(self, steps: int) -> Turn:
        """Takes so many steps."""
        self._wait()
        start = time.perf_counter()
        for _ in range(steps):
            self._step()
        self._wait()
        return Turn((time.perf_counter() - start) / steps, self._ascents)

    def _wait(self):
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _backward(self):
        torch.compiler.cudagraph_mark_step_begin()
        self._optimizer.zero_grad(set_to_none=True)
        low = torch.autocast(self._device.type, torch.bfloat16)
        with low if self._low else contextlib.nullcontext():
            loss = nn.functional.cross_entropy(self._model(self._images), self._labels)
        loss.backward()

    def _sgd(self):
        self._backward()
        self._optimizer.step()

    @torch.no_grad()
    def _sam(self):
        with torch.enable_grad():
            self._backward()
        grads = [param.grad for param in self._params]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        epsilon = torch._foreach_mul(grads, RHO / norm)
        torch._foreach_add_(self._params, epsilon)
        with torch.enable_grad():
            self._backward()
        torch._foreach_sub_(self._params, epsilon)
        self._optimizer.step()
