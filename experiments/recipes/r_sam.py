"""Liu et al., Random Sharpness-Aware Minimization (R-SAM): CIFAR-10 and CIFAR-100."""

# ruff: noqa: RUF009  (each call makes a field of its own)

import dataclasses

from experiments.recipes.base import Figures, Recipe, Settings, mapping


@dataclasses.dataclass(frozen=True)
class RSam(Recipe):
    """R-SAM's protocol (Sections 4.1 to 4.3).

    200 epochs, batch 128, basic augmentation; SGD with momentum behind LPF-SGD, SAM and R-SAM. Its
    other baselines are `--method sgd` with `--momentum 0`, `--optimizer rmsprop` or
    `--optimizer adamw`, each with a learning rate that is not published.

    Decisions, where the text refers to an appendix that is not available:
      Learning rate .1, momentum .9, weight decay 5e-4 and a cosine, usual for SAM on CIFAR.
      ρ = .05 on CIFAR-10 and .1 on CIFAR-100, for SAM and R-SAM alike.
      γ = .002 and one sample, published for LPF-SGD on CIFAR ResNets, for LPF-SGD and R-SAM. The
        noise in a kernel of 3 × 3 × 512 weights is then .14 of the kernel's norm; the paper's
        figures have γ² of .0075 to .0125, which as a share of the norm is .09 to .11.
      λ = 100, so that the gradient outweighs the noise, whose norm is over all weights.
    """

    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.1
    method: str = "r_sam"
    augmentation: tuple[str, ...] = ("crop", "flip")


def _settings(rho):
    """The methods of Tables 1 and 2 at SAM's radius."""
    return mapping(
        lpf_sgd={"gamma": 0.002, "samples": 1},
        sam={"rho": rho},
        r_sam={"rho": rho, "gamma": 0.002, "lambda_": 100.0},
    )


@dataclasses.dataclass(frozen=True)
class Cifar10Resnet18(RSam):
    """ResNet-18 on CIFAR-10.

    Run: `python -m experiments.train cifar10_resnet18_r_sam`

    Paper (Table 1): SGD 95.6 (with momentum), LPF-SGD 95.9, SAM 96.4, R-SAM 96.5.
    Other bases: SGD without momentum 95.4, RMSProp 95.4, AdamW 95.1.
    """

    dataset: str = "cifar10"
    model: str = "resnet18"
    settings: Settings = _settings(rho=0.05)
    paper: Figures = mapping(sgd=95.6, lpf_sgd=95.9, sam=96.4, r_sam=96.5)


@dataclasses.dataclass(frozen=True)
class Cifar10Resnet50(RSam):
    """ResNet-50 on CIFAR-10.

    Run: `python -m experiments.train cifar10_resnet50_r_sam`

    Paper (Table 1): SGD 95.7 (with momentum), LPF-SGD 96.3, SAM 96.7, R-SAM 96.9.
    Other bases: SGD without momentum 95.8, RMSProp 95.7, AdamW 96.0.
    """

    dataset: str = "cifar10"
    model: str = "resnet50"
    settings: Settings = _settings(rho=0.05)
    paper: Figures = mapping(sgd=95.7, lpf_sgd=96.3, sam=96.7, r_sam=96.9)


@dataclasses.dataclass(frozen=True)
class Cifar10Wrn28x10(RSam):
    """WRN-28-10 on CIFAR-10; the paper's text calls it WRN-28-20, its tables WRN-28-10.

    Run: `python -m experiments.train cifar10_wrn28_10_r_sam`

    Paper (Table 1): SGD 96.5 (with momentum), LPF-SGD 96.8, SAM 97.3, R-SAM 97.5.
    Other bases: SGD without momentum 96.4, RMSProp 96.4, AdamW 96.0.
    """

    dataset: str = "cifar10"
    model: str = "wrn28_10"
    settings: Settings = _settings(rho=0.05)
    paper: Figures = mapping(sgd=96.5, lpf_sgd=96.8, sam=97.3, r_sam=97.5)


@dataclasses.dataclass(frozen=True)
class Cifar100Resnet18(RSam):
    """ResNet-18 on CIFAR-100.

    Run: `python -m experiments.train cifar100_resnet18_r_sam`

    Paper (Table 2): SGD 78.9 (with momentum), LPF-SGD 80.2, SAM 80.9, R-SAM 81.4.
    Other bases: SGD without momentum 78.0, RMSProp 79.4, AdamW 77.7.
    """

    dataset: str = "cifar100"
    model: str = "resnet18"
    settings: Settings = _settings(rho=0.1)
    paper: Figures = mapping(sgd=78.9, lpf_sgd=80.2, sam=80.9, r_sam=81.4)


@dataclasses.dataclass(frozen=True)
class Cifar100Resnet50(RSam):
    """ResNet-50 on CIFAR-100.

    Run: `python -m experiments.train cifar100_resnet50_r_sam`

    Paper (Table 2): SGD 81.4 (with momentum), LPF-SGD 82.1, SAM 83.3, R-SAM 84.0.
    Other bases: SGD without momentum 80.9, RMSProp 81.4, AdamW 80.8.
    """

    dataset: str = "cifar100"
    model: str = "resnet50"
    settings: Settings = _settings(rho=0.1)
    paper: Figures = mapping(sgd=81.4, lpf_sgd=82.1, sam=83.3, r_sam=84.0)


@dataclasses.dataclass(frozen=True)
class Cifar100Wrn28x10(RSam):
    """WRN-28-10 on CIFAR-100; the paper's text calls it WRN-28-20, its tables WRN-28-10.

    Run: `python -m experiments.train cifar100_wrn28_10_r_sam`

    Paper (Table 2): SGD 81.7 (with momentum), LPF-SGD 82.6, SAM 84.6, R-SAM 85.2.
    Other bases: SGD without momentum 81.1, RMSProp 81.7, AdamW 80.1.
    """

    dataset: str = "cifar100"
    model: str = "wrn28_10"
    settings: Settings = _settings(rho=0.1)
    paper: Figures = mapping(sgd=81.7, lpf_sgd=82.6, sam=84.6, r_sam=85.2)


RECIPES = {
    "cifar10_resnet18_r_sam": Cifar10Resnet18(),
    "cifar10_resnet50_r_sam": Cifar10Resnet50(),
    "cifar10_wrn28_10_r_sam": Cifar10Wrn28x10(),
    "cifar100_resnet18_r_sam": Cifar100Resnet18(),
    "cifar100_resnet50_r_sam": Cifar100Resnet50(),
    "cifar100_wrn28_10_r_sam": Cifar100Wrn28x10(),
}
