"""Jiang et al., An Adaptive Policy to Employ SAM (AE-SAM): CIFAR-10, CIFAR-100 and ImageNet."""

# ruff: noqa: RUF009  (each call makes a field of its own)

import dataclasses

from experiments.recipes.base import Figures, Recipe, Settings, mapping


@dataclasses.dataclass(frozen=True)
class AeSam(Recipe):
    """AE-SAM's protocol (Section 4.1).

    Batch 128, SGD with momentum .9 and weight decay 1e-4, learning rate .1, cosine; a tenth of the
    training set is held out. λ1 = -1 and λ2 = 1 for AE-SAM, 0 and 2 for AE-LookSAM; p = .5 for
    SS-SAM; k = 5 for LookSAM. The figures are means of 5 runs; "% SAM" is the share of steps that
    take the second gradient, and ESAM's and SAM's is 100.

    Decisions, where the paper has a grid or is silent:
      ρ = .05 on CIFAR-10 and .1 on CIFAR-100, of the grid {.01, .02, .05, .1, .2, .5}.
      α = .6, of the grid {.1, .3, .6, .9}, the nearest to the .7 of LookSAM's own paper.
      ESAM has β = .6 for ResNets and .5 for the others, and γ = .5, as its authors run the
        convolutional ones.
      Images are cropped at random and flipped.
    """

    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.1
    method: str = "ae_sam"
    weight_decay: float = 1e-4
    augmentation: tuple[str, ...] = ("crop", "flip")
    validation: float = 0.1


def _settings(rho, beta, *, period=5, lambda_1=0.0, lambda_2=2.0, **others):
    """The methods of Tables 1 and 3; λ1 and λ2 are of AE-LookSAM."""
    return mapping(
        sam={"rho": rho},
        esam={"rho": rho, "beta": beta, "gamma": 0.5},
        ss_sam={"rho": rho, "probability": 0.5},
        ae_sam={"rho": rho, "lambda_1": -1.0, "lambda_2": 1.0},
        looksam={"rho": rho, "alpha": 0.6, "period": period},
        ae_looksam={"rho": rho, "alpha": 0.6, "lambda_1": lambda_1, "lambda_2": lambda_2},
        **others,
    )


def _figures(sgd, sam, esam, ss_sam, ae_sam, looksam, ae_looksam):
    """A column of Tables 1 and 3."""
    return mapping(
        sgd=sgd,
        sam=sam,
        esam=esam,
        ss_sam=ss_sam,
        ae_sam=ae_sam,
        looksam=looksam,
        ae_looksam=ae_looksam,
    )


@dataclasses.dataclass(frozen=True)
class Cifar10Resnet18(AeSam):
    """ResNet-18 on CIFAR-10.

    Run: `python -m experiments.train cifar10_resnet18_ae_sam`

    Paper (Table 1, mean of 5): SGD 95.41, SAM 96.52, ESAM 96.56, SS-SAM 96.40 (50.0 % SAM),
    AE-SAM 96.63 (50.1 % SAM), LookSAM 96.32 (20.0 % SAM), AE-LookSAM 96.56 (20.0 % SAM).
    """

    dataset: str = "cifar10"
    model: str = "resnet18"
    settings: Settings = _settings(rho=0.05, beta=0.6)
    paper: Figures = _figures(95.41, 96.52, 96.56, 96.40, 96.63, 96.32, 96.56)


@dataclasses.dataclass(frozen=True)
class Cifar10Wrn28x10(AeSam):
    """WRN-28-10 on CIFAR-10.

    Run: `python -m experiments.train cifar10_wrn28_10_ae_sam`

    Paper (Table 1, mean of 5): SGD 96.34, SAM 97.27, ESAM 97.29, SS-SAM 97.09 (50.0 % SAM),
    AE-SAM 97.30 (49.5 % SAM), LookSAM 97.02 (20.0 % SAM), AE-LookSAM 97.15 (20.0 % SAM).
    """

    dataset: str = "cifar10"
    model: str = "wrn28_10"
    settings: Settings = _settings(rho=0.05, beta=0.5)
    paper: Figures = _figures(96.34, 97.27, 97.29, 97.09, 97.30, 97.02, 97.15)


@dataclasses.dataclass(frozen=True)
class Cifar10Pyramidnet110(AeSam):
    """PyramidNet-110 on CIFAR-10.

    Run: `python -m experiments.train cifar10_pyramidnet110_ae_sam`

    Paper (Table 1, mean of 5): SGD 96.62, SAM 97.30, ESAM 97.81, SS-SAM 97.22 (50.0 % SAM),
    AE-SAM 97.90 (50.2 % SAM), LookSAM 97.10 (20.0 % SAM), AE-LookSAM 97.22 (20.3 % SAM).
    """

    dataset: str = "cifar10"
    model: str = "pyramidnet110"
    epochs: int = 300
    settings: Settings = _settings(rho=0.05, beta=0.5)
    paper: Figures = _figures(96.62, 97.30, 97.81, 97.22, 97.90, 97.10, 97.22)


@dataclasses.dataclass(frozen=True)
class Cifar10VitSmall(AeSam):
    """ViT-S/16 on CIFAR-10.

    Run: `python -m experiments.train cifar10_vit_small_ae_sam`

    Paper (Table 1, mean of 5): SGD 86.69, SAM 87.37, ESAM 84.27, SS-SAM 87.38 (50.0 % SAM),
    AE-SAM 87.77 (49.7 % SAM), LookSAM 87.12 (20.0 % SAM), AE-LookSAM 87.32 (20.2 % SAM).
    """

    dataset: str = "cifar10"
    model: str = "vit_small"
    epochs: int = 1200
    settings: Settings = _settings(rho=0.05, beta=0.5)
    paper: Figures = _figures(86.69, 87.37, 84.27, 87.38, 87.77, 87.12, 87.32)


@dataclasses.dataclass(frozen=True)
class Cifar100Resnet18(AeSam):
    """ResNet-18 on CIFAR-100.

    Run: `python -m experiments.train cifar100_resnet18_ae_sam`

    Paper (Table 1, mean of 5): SGD 78.17, SAM 80.17, ESAM 80.41, SS-SAM 80.10 (50.0 % SAM),
    AE-SAM 80.48 (49.8 % SAM), LookSAM 79.89 (20.0 % SAM), AE-LookSAM 80.29 (20.0 % SAM).
    """

    dataset: str = "cifar100"
    model: str = "resnet18"
    settings: Settings = _settings(rho=0.1, beta=0.6)
    paper: Figures = _figures(78.17, 80.17, 80.41, 80.10, 80.48, 79.89, 80.29)


@dataclasses.dataclass(frozen=True)
class Cifar100Wrn28x10(AeSam):
    """WRN-28-10 on CIFAR-100.

    Run: `python -m experiments.train cifar100_wrn28_10_ae_sam`

    Paper (Table 1, mean of 5): SGD 81.56, SAM 83.42, ESAM 84.51, SS-SAM 82.89 (50.0 % SAM),
    AE-SAM 84.51 (49.6 % SAM), LookSAM 83.70 (20.0 % SAM), AE-LookSAM 83.92 (20.2 % SAM).
    """

    dataset: str = "cifar100"
    model: str = "wrn28_10"
    settings: Settings = _settings(rho=0.1, beta=0.5)
    paper: Figures = _figures(81.56, 83.42, 84.51, 82.89, 84.51, 83.70, 83.92)


@dataclasses.dataclass(frozen=True)
class Cifar100Pyramidnet110(AeSam):
    """PyramidNet-110 on CIFAR-100.

    Run: `python -m experiments.train cifar100_pyramidnet110_ae_sam`

    Paper (Table 1, mean of 5): SGD 81.89, SAM 84.46, ESAM 85.56, SS-SAM 84.90 (50.0 % SAM),
    AE-SAM 85.58 (49.8 % SAM), LookSAM 84.01 (20.0 % SAM), AE-LookSAM 84.80 (20.2 % SAM).
    """

    dataset: str = "cifar100"
    model: str = "pyramidnet110"
    epochs: int = 300
    settings: Settings = _settings(rho=0.1, beta=0.5)
    paper: Figures = _figures(81.89, 84.46, 85.56, 84.90, 85.58, 84.01, 84.80)


@dataclasses.dataclass(frozen=True)
class Cifar100VitSmall(AeSam):
    """ViT-S/16 on CIFAR-100.

    Run: `python -m experiments.train cifar100_vit_small_ae_sam`

    Paper (Table 1, mean of 5): SGD 62.42, SAM 63.23, ESAM 62.11, SS-SAM 63.18 (50.0 % SAM),
    AE-SAM 63.68 (49.5 % SAM), LookSAM 63.52 (20.0 % SAM), AE-LookSAM 64.16 (20.3 % SAM).
    """

    dataset: str = "cifar100"
    model: str = "vit_small"
    epochs: int = 1200
    settings: Settings = _settings(rho=0.1, beta=0.5)
    paper: Figures = _figures(62.42, 63.23, 62.11, 63.18, 63.68, 63.52, 64.16)


@dataclasses.dataclass(frozen=True)
class AeSamNoise(AeSam):
    """AE-SAM's protocol for label noise (Section 4.3).

    CIFAR-10 with labels flipped, 200 epochs, the optimizer as without noise; k = 2 for LookSAM, and
    λ1 = -1 and λ2 = 1 for AE-LookSAM too, so that about half of the steps are of SAM.

    Decisions: a tenth of the training set is held out as without noise; ρ is .1, of the same grid,
    and .05 at 80 % of noise.
    """

    dataset: str = "cifar10"
    model: str = "resnet18"
    noise: str = "flip"


def _noise_settings(rho):
    """The methods of Table 3."""
    return _settings(rho, beta=0.6, period=2, lambda_1=-1.0, lambda_2=1.0)


@dataclasses.dataclass(frozen=True)
class Cifar10Resnet18Noise20(AeSamNoise):
    """ResNet-18 on CIFAR-10, 20 % of the labels flipped.

    Run: `python -m experiments.train cifar10_resnet18_noise20_ae_sam`

    Paper (Table 3, mean of 5): SGD 87.92, SAM 94.80, ESAM 94.19, SS-SAM 90.62 (50.0 % SAM),
    AE-SAM 92.84 (50.0 % SAM), LookSAM 92.72 (50.0 % SAM), AE-LookSAM 94.34 (49.9 % SAM).
    """

    label_noise: float = 0.2
    settings: Settings = _noise_settings(rho=0.1)
    paper: Figures = _figures(87.92, 94.80, 94.19, 90.62, 92.84, 92.72, 94.34)


@dataclasses.dataclass(frozen=True)
class Cifar10Resnet18Noise40(AeSamNoise):
    """ResNet-18 on CIFAR-10, 40 % of the labels flipped.

    Run: `python -m experiments.train cifar10_resnet18_noise40_ae_sam`

    Paper (Table 3, mean of 5): SGD 70.82, SAM 91.50, ESAM 91.46, SS-SAM 77.84 (50.0 % SAM),
    AE-SAM 84.17 (50.0 % SAM), LookSAM 88.04 (50.0 % SAM), AE-LookSAM 91.58 (50.0 % SAM).
    """

    label_noise: float = 0.4
    settings: Settings = _noise_settings(rho=0.1)
    paper: Figures = _figures(70.82, 91.50, 91.46, 77.84, 84.17, 88.04, 91.58)


@dataclasses.dataclass(frozen=True)
class Cifar10Resnet18Noise60(AeSamNoise):
    """ResNet-18 on CIFAR-10, 60 % of the labels flipped.

    Run: `python -m experiments.train cifar10_resnet18_noise60_ae_sam`

    Paper (Table 3, mean of 5): SGD 49.61, SAM 88.15, ESAM 81.30, SS-SAM 61.18 (50.0 % SAM),
    AE-SAM 73.54 (49.9 % SAM), LookSAM 72.26 (50.0 % SAM), AE-LookSAM 87.85 (50.0 % SAM).
    """

    label_noise: float = 0.6
    settings: Settings = _noise_settings(rho=0.1)
    paper: Figures = _figures(49.61, 88.15, 81.30, 61.18, 73.54, 72.26, 87.85)


@dataclasses.dataclass(frozen=True)
class Cifar10Resnet18Noise80(AeSamNoise):
    """ResNet-18 on CIFAR-10, 80 % of the labels flipped.

    Run: `python -m experiments.train cifar10_resnet18_noise80_ae_sam`

    Paper (Table 3, mean of 5): SGD 28.23, SAM 77.40, ESAM 15.00, SS-SAM 47.32 (50.0 % SAM),
    AE-SAM 65.00 (50.0 % SAM), LookSAM 69.72 (50.0 % SAM), AE-LookSAM 76.90 (50.0 % SAM).
    """

    label_noise: float = 0.8
    settings: Settings = _noise_settings(rho=0.05)
    paper: Figures = _figures(28.23, 77.40, 15.00, 47.32, 65.00, 69.72, 76.90)


@dataclasses.dataclass(frozen=True)
class Cifar10Resnet32Noise20(AeSamNoise):
    """ResNet-32 on CIFAR-10, 20 % of the labels flipped.

    Run: `python -m experiments.train cifar10_resnet32_noise20_ae_sam`

    Paper (Table 3, mean of 5): SGD 87.43, SAM 95.08, ESAM 93.42, SS-SAM 89.63 (50.0 % SAM),
    AE-SAM 92.87 (50.0 % SAM), LookSAM 92.49 (50.0 % SAM), AE-LookSAM 94.70 (50.0 % SAM).
    """

    model: str = "resnet32"
    label_noise: float = 0.2
    settings: Settings = _noise_settings(rho=0.1)
    paper: Figures = _figures(87.43, 95.08, 93.42, 89.63, 92.87, 92.49, 94.70)


@dataclasses.dataclass(frozen=True)
class Cifar10Resnet32Noise40(AeSamNoise):
    """ResNet-32 on CIFAR-10, 40 % of the labels flipped.

    Run: `python -m experiments.train cifar10_resnet32_noise40_ae_sam`

    Paper (Table 3, mean of 5): SGD 70.82, SAM 91.01, ESAM 91.63, SS-SAM 74.17 (50.0 % SAM),
    AE-SAM 82.85 (50.0 % SAM), LookSAM 86.56 (50.0 % SAM), AE-LookSAM 91.80 (50.0 % SAM).

    SGD is printed with one figure for ResNet-18 and ResNet-32.
    """

    model: str = "resnet32"
    label_noise: float = 0.4
    settings: Settings = _noise_settings(rho=0.1)
    paper: Figures = _figures(70.82, 91.01, 91.63, 74.17, 82.85, 86.56, 91.80)


@dataclasses.dataclass(frozen=True)
class Cifar10Resnet32Noise60(AeSamNoise):
    """ResNet-32 on CIFAR-10, 60 % of the labels flipped.

    Run: `python -m experiments.train cifar10_resnet32_noise60_ae_sam`

    Paper (Table 3, mean of 5): SGD 46.26, SAM 88.90, ESAM 82.73, SS-SAM 58.40 (50.0 % SAM),
    AE-SAM 71.50 (50.0 % SAM), LookSAM 63.35 (50.0 % SAM), AE-LookSAM 88.22 (50.0 % SAM).
    """

    model: str = "resnet32"
    label_noise: float = 0.6
    settings: Settings = _noise_settings(rho=0.1)
    paper: Figures = _figures(46.26, 88.90, 82.73, 58.40, 71.50, 63.35, 88.22)


@dataclasses.dataclass(frozen=True)
class Cifar10Resnet32Noise80(AeSamNoise):
    """ResNet-32 on CIFAR-10, 80 % of the labels flipped.

    Run: `python -m experiments.train cifar10_resnet32_noise80_ae_sam`

    Paper (Table 3, mean of 5): SGD 29.00, SAM 77.32, ESAM 10.09, SS-SAM 59.53 (50.0 % SAM),
    AE-SAM 65.43 (50.3 % SAM), LookSAM 68.01 (50.0 % SAM), AE-LookSAM 77.03 (49.8 % SAM).
    """

    model: str = "resnet32"
    label_noise: float = 0.8
    settings: Settings = _noise_settings(rho=0.05)
    paper: Figures = _figures(29.00, 77.32, 10.09, 59.53, 65.43, 68.01, 77.03)


@dataclasses.dataclass(frozen=True)
class ImageNetResnet50(AeSam):
    """ResNet-50 on ImageNet (Section 4.2).

    Run: `python -m experiments.train imagenet_resnet50_ae_sam`

    Paper (Table 2, mean of 3): SGD 77.11, SAM 77.47, ESAM 77.25, SS-SAM 77.38 (50.0 % SAM),
    AE-SAM 77.43 (49.4 % SAM), LookSAM 77.13 (20.0 % SAM), AE-LookSAM 77.29 (20.3 % SAM).

    Decisions: nothing is held out, the figures being those of the validation images; these are
    cropped centrally at 224, training images at random in the way of Inception and flipped; GSAM
    has its own paper's radius, .04 falling to .02 with the learning rate, and α .01.
    """

    dataset: str = "imagenet2012"
    model: str = "imagenet_resnet50"
    epochs: int = 90
    batch_size: int = 512
    augmentation: tuple[str, ...] = ("inception", "flip")
    image_size: int | None = 224
    normalization: str = "imagenet"
    validation: float = 0.0
    settings: Settings = _settings(
        rho=0.05,
        beta=0.6,
        gsam={
            "rho": {
                "schedule": "rho_from_learning_rate",
                "rho_max": 0.04,
                "rho_min": 0.02,
                "lr_max": 0.1,
                "lr_min": 0.0,
            },
            "alpha": 0.01,
        },
    )
    paper: Figures = _figures(77.11, 77.47, 77.25, 77.38, 77.43, 77.13, 77.29)


RECIPES = {
    "cifar10_resnet18_ae_sam": Cifar10Resnet18(),
    "cifar10_wrn28_10_ae_sam": Cifar10Wrn28x10(),
    "cifar10_pyramidnet110_ae_sam": Cifar10Pyramidnet110(),
    "cifar10_vit_small_ae_sam": Cifar10VitSmall(),
    "cifar100_resnet18_ae_sam": Cifar100Resnet18(),
    "cifar100_wrn28_10_ae_sam": Cifar100Wrn28x10(),
    "cifar100_pyramidnet110_ae_sam": Cifar100Pyramidnet110(),
    "cifar100_vit_small_ae_sam": Cifar100VitSmall(),
    "cifar10_resnet18_noise20_ae_sam": Cifar10Resnet18Noise20(),
    "cifar10_resnet18_noise40_ae_sam": Cifar10Resnet18Noise40(),
    "cifar10_resnet18_noise60_ae_sam": Cifar10Resnet18Noise60(),
    "cifar10_resnet18_noise80_ae_sam": Cifar10Resnet18Noise80(),
    "cifar10_resnet32_noise20_ae_sam": Cifar10Resnet32Noise20(),
    "cifar10_resnet32_noise40_ae_sam": Cifar10Resnet32Noise40(),
    "cifar10_resnet32_noise60_ae_sam": Cifar10Resnet32Noise60(),
    "cifar10_resnet32_noise80_ae_sam": Cifar10Resnet32Noise80(),
    "imagenet_resnet50_ae_sam": ImageNetResnet50(),
}
