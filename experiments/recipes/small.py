"""Recipes for a CPU: no paper has them."""

# ruff: noqa: RUF009  (each call makes a field of its own)

import dataclasses

from experiments.recipes.base import Recipe, Settings, mapping


@dataclasses.dataclass(frozen=True)
class Digits(Recipe):
    """A perceptron on scikit-learn's digits.

    Run: `python -m experiments.train digits`

    The settings are the best of a grid on a held-out fifth of the training set, with 40 % of its
    labels flipped, the held-out ones too: docs/results/digits.md has the grids.
    """

    dataset: str = "digits"
    model: str = "mlp"
    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 0.02
    settings: Settings = mapping(
        sam={"rho": 0.5},
        gsam={"rho": 0.3, "alpha": 0.4},
        looksam={"rho": 0.4, "alpha": 1.0, "period": 2},
        ae_sam={"rho": 0.8, "lambda_1": -1.0, "lambda_2": 0.0},
        ae_looksam={"rho": 0.5, "alpha": 0.9, "lambda_1": -1.0, "lambda_2": 1.0},
        samar={"rho": 0.8, "gamma": 1.2, "chi": 1.0},
        le_sam={"budget": 0.35, "rho_max": 0.5},
        le_sam_plus={"budget": 0.2, "alpha": 0.3, "rho_max": 0.4},
        r_sam={"rho": 0.6, "gamma": 0.02, "lambda_": 100.0},
        r_gsam={"rho": 0.4, "gamma": 0.02, "lambda_": 100.0, "alpha": 0.4},
        wsam={"rho": 0.6, "gamma": 0.9},
        coupled_wsam={"rho": 0.2, "gamma": 0.7},
        asam={"rho": 4.0, "eta": 0.01},
        fisher_sam={"rho": 0.5, "eta": 0.01},
        ssam={"rho": 0.5},
        ss_sam={"rho": 0.8, "probability": 0.5},
        esam={"rho": 0.5, "beta": 0.6, "gamma": 0.5},
        vasso={"rho": 0.8, "theta": 0.2},
        friendly_sam={"rho": 0.8, "sigma": 1.0, "decay": 0.9},
        eigen_sam={"rho": 0.5, "alpha": 0.2},
        lpf_sgd={"gamma": 0.1},
        msam={"rho": 2.0},
        s2_sam={"rho": 0.5},
        bsam={"rho": 0.1, "initial_precision": 0.3},
        ivon={"initial_hessian": 0.1, "rescale": False},
    )


@dataclasses.dataclass(frozen=True)
class DigitsCnn(Recipe):
    """A convolutional network on scikit-learn's digits.

    Run: `python -m experiments.train digits_cnn`
    """

    dataset: str = "digits"
    model: str = "cnn"
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.1


@dataclasses.dataclass(frozen=True)
class MnistNoise40(Recipe):
    """A small convolutional network on 2,000 images of MNIST, 40 % of their labels flipped.

    Run: `python -m experiments.train mnist_noise40`

    So few images and so many epochs that SGD learns the flipped labels by heart. The settings are
    the best of small grids on held-out training images: docs/results/mnist.md.
    """

    dataset: str = "mnist"
    model: str = "small_cnn"
    epochs: int = 50
    batch_size: int = 64
    learning_rate: float = 0.1
    label_noise: float = 0.4
    noise: str = "flip"
    train_examples: int | None = 2_000
    settings: Settings = mapping(
        sam={"rho": 0.3},
        ae_sam={"rho": 0.5, "lambda_1": -1.0, "lambda_2": 0.0},
        ae_looksam={"rho": 0.3, "alpha": 0.3, "lambda_1": -1.0, "lambda_2": 0.0},
        samar={"rho": 1.2, "chi": 1.0},
        le_sam={"budget": 0.1, "rho_max": 0.8},
        r_sam={"rho": 0.3, "gamma": 0.02, "lambda_": 100.0},
        wsam={"rho": 0.2, "gamma": 0.95},
    )


RECIPES = {
    "digits": Digits(),
    "digits_cnn": DigitsCnn(),
    "mnist_noise40": MnistNoise40(),
}
