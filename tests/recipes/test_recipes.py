"""The recipes: their names, the papers' figures, settings that construct, and their listing."""

import dataclasses
import inspect
import json
from pathlib import Path
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest
from reference import METHODS
import test_models

from experiments import models
from experiments.recipes import RECIPES, Recipe, __main__, cost, small
from experiments.training.optimizers import optimizer
import sam_optax

RESULTS = Path(__file__).parents[2] / "docs" / "results"

MODELS = {
    "mlp", "cnn", "small_cnn", "small_resnet", "resnet18", "resnet34", "resnet50", "resnet32",
    "wrn28_10", "wrn34_10", "pyramidnet110", "vit_small", "imagenet_resnet18", "imagenet_resnet50",
    "imagenet_resnet101", "vit_s16", "vit_b16", "vit_b16_original",
}  # fmt: skip

LABELS = {
    "sgd": "SGD", "sam": "SAM", "asam": "ASAM", "fisher_sam": "Fisher SAM", "gsam": "GSAM",
    "esam": "ESAM", "ss_sam": "SS-SAM", "looksam": "LookSAM", "ae_sam": "AE-SAM",
    "ae_looksam": "AE-LookSAM", "vasso": "VaSSO", "samar": "SAMAR", "le_sam": "LE-SAM",
    "le_sam_plus": "LE-SAM+", "lpf_sgd": "LPF-SGD", "r_sam": "R-SAM", "wsam": "WSAM",
    "coupled_wsam": "Coupled WSAM", "friendly_sam": "F-SAM", "eigen_sam": "Eigen-SAM",
    "r_gsam": "R-GSAM",
}  # fmt: skip

AE_SAM = ("sgd", "sam", "esam", "ss_sam", "looksam", "ae_sam", "ae_looksam")
SAMAR = ("sgd", "sam", "vasso", "samar")
LE_SAM = ("sam", "le_sam", "le_sam_plus")
R_SAM = ("sgd", "sam", "lpf_sgd", "r_sam")
IMAGENET = ("sgd", "eigen_sam", "asam", "esam", "friendly_sam", "sam", "le_sam")
VIT, R_GSAM = ("sgd", "sam", "r_sam"), ("sgd", "sam", "gsam", "r_sam", "r_gsam")
TRANSFER = ("sgd", "sam", "le_sam")  # Section 5.2 and 6.2
GLMC = ("sgd", "le_sam")
WSAM = ("sgd", "sam", "esam", "gsam", "coupled_wsam", "wsam")  # errors
WSAM_NOISE = ("sgd", "sam", "gsam", "wsam")
WSAM_DEIT = ("sgd", "sam", "gsam", "wsam")

# The headline figures of the five papers, to two decimals.
HEADLINES = {
    "cifar10_resnet18_ae_sam": (AE_SAM, "95.41 96.52 96.56 96.40 96.32 96.63 96.56"),
    "cifar100_resnet18_ae_sam": (AE_SAM, "78.17 80.17 80.41 80.10 79.89 80.48 80.29"),
    "cifar10_wrn28_10_ae_sam": (AE_SAM, "96.34 97.27 97.29 97.09 97.02 97.30 97.15"),
    "cifar100_wrn28_10_ae_sam": (AE_SAM, "81.56 83.42 84.51 82.89 83.70 84.51 83.92"),
    "cifar10_pyramidnet110_ae_sam": (AE_SAM, "96.62 97.30 97.81 97.22 97.10 97.90 97.22"),
    "cifar100_pyramidnet110_ae_sam": (AE_SAM, "81.89 84.46 85.56 84.90 84.01 85.58 84.80"),
    "cifar10_vit_small_ae_sam": (AE_SAM, "86.69 87.37 84.27 87.38 87.12 87.77 87.32"),
    "cifar100_vit_small_ae_sam": (AE_SAM, "62.42 63.23 62.11 63.18 63.52 63.68 64.16"),
    "cifar10_resnet18_noise20_ae_sam": (AE_SAM, "87.92 94.80 94.19 90.62 92.72 92.84 94.34"),
    "cifar10_resnet18_noise40_ae_sam": (AE_SAM, "70.82 91.50 91.46 77.84 88.04 84.17 91.58"),
    "cifar10_resnet18_noise60_ae_sam": (AE_SAM, "49.61 88.15 81.30 61.18 72.26 73.54 87.85"),
    "cifar10_resnet18_noise80_ae_sam": (AE_SAM, "28.23 77.40 15.00 47.32 69.72 65.00 76.90"),
    "cifar10_resnet32_noise20_ae_sam": (AE_SAM, "87.43 95.08 93.42 89.63 92.49 92.87 94.70"),
    "cifar10_resnet32_noise40_ae_sam": (AE_SAM, "70.82 91.01 91.63 74.17 86.56 82.85 91.80"),
    "cifar10_resnet32_noise60_ae_sam": (AE_SAM, "46.26 88.90 82.73 58.40 63.35 71.50 88.22"),
    "cifar10_resnet32_noise80_ae_sam": (AE_SAM, "29.00 77.32 10.09 59.53 68.01 65.43 77.03"),
    "cifar10_resnet34_samar": (SAMAR, "95.64 96.15 96.32 96.30"),
    "cifar100_resnet34_samar": (SAMAR, "77.71 79.03 79.35 79.63"),
    "cifar10_wrn34_10_samar": (SAMAR, "96.53 96.84 96.91 96.96"),
    "cifar100_wrn34_10_samar": (SAMAR, "82.02 82.98 82.98 83.75"),
    "cifar100_resnet18_le_sam": (LE_SAM, "80.17 81.51 82.01"),
    "cifar100_wrn28_10_le_sam": (LE_SAM, "83.42 84.91 85.06"),
    "cifar100_pyramidnet110_le_sam": (LE_SAM, "84.46 85.91 86.19"),
    "cifar10_resnet18_r_sam": (R_SAM, "95.6 96.4 95.9 96.5"),
    "cifar10_resnet50_r_sam": (R_SAM, "95.7 96.7 96.3 96.9"),
    "cifar10_wrn28_10_r_sam": (R_SAM, "96.5 97.3 96.8 97.5"),
    "cifar100_resnet18_r_sam": (R_SAM, "78.9 80.9 80.2 81.4"),
    "cifar100_resnet50_r_sam": (R_SAM, "81.4 83.3 82.1 84.0"),
    "cifar100_wrn28_10_r_sam": (R_SAM, "81.7 84.6 82.6 85.2"),
    "cifar100_resnet32_lt100_le_sam": (GLMC, "55.9 58.65"),
    "cifar100_resnet32_lt50_le_sam": (GLMC, "61.1 63.67"),
    "imagenet_resnet50_ae_sam": (AE_SAM, "77.11 77.47 77.25 77.38 77.13 77.43 77.29"),
    "imagenet_resnet50_le_sam": (IMAGENET, "76.02 76.94 76.68 77.02 76.93 76.70 77.41"),
    "imagenet_resnet101_le_sam": (IMAGENET, "77.81 78.96 78.43 79.10 78.72 78.54 79.31"),
    "cifar10_vit_b16_le_sam": (TRANSFER, "98.08 98.28 98.72"),
    "cifar100_vit_b16_le_sam": (TRANSFER, "88.31 89.34 89.65"),
    "pacs_photo_le_sam": (TRANSFER, "43.82 44.87 46.77"),
    "pacs_art_painting_le_sam": (TRANSFER, "65.60 65.09 67.76"),
    "pacs_cartoon_le_sam": (TRANSFER, "74.32 74.11 75.22"),
    "pacs_sketch_le_sam": (TRANSFER, "35.38 38.69 41.71"),
    "vlcs_voc2007_le_sam": (TRANSFER, "62.52 62.27 62.39"),
    "vlcs_labelme_le_sam": (TRANSFER, "47.54 47.32 48.30"),
    "vlcs_caltech101_le_sam": (TRANSFER, "38.17 46.97 47.65"),
    "vlcs_sun09_le_sam": (TRANSFER, "54.80 53.94 55.54"),
    "imagenet_vit_b16_r_sam": (R_GSAM, "74.7 79.8 80.8 80.7 81.2"),
    "imagenet_vit_s16_r_sam": (VIT, "74.9 77.9 78.7"),
    "imagenet_vit_b16_mixup_r_sam": (VIT, "75.7 80.4 81.1"),
    "imagenet_vit_b16_randaug_r_sam": (VIT, "79.6 80.8 81.6"),
    "cifar10_resnet18_wsam": (WSAM, "4.32 3.68 3.83 3.71 3.58 3.62"),
    "cifar100_resnet18_wsam": (WSAM, "20.51 19.97 20.67 19.84 19.49 19.42"),
    "cifar10_wrn28_10_wsam": (WSAM, "3.73 2.94 2.99 2.91 2.91 2.74"),
    "cifar100_wrn28_10_wsam": (WSAM, "19.27 16.49 16.52 16.36 16.49 16.33"),
    "imagenet_deit_b_wsam": (WSAM_DEIT, "18.17 18.01 18.01 18.01"),
    "cifar10_resnet18_noise20_wsam": (WSAM_NOISE, "88.06 94.99 95.11 95.18"),
    "cifar10_resnet18_noise40_wsam": (WSAM_NOISE, "84.11 93.28 93.25 93.33"),
    "cifar10_resnet18_noise60_wsam": (WSAM_NOISE, "79.15 88.32 89.90 89.95"),
    "cifar10_resnet18_noise80_wsam": (WSAM_NOISE, "69.07 77.57 79.09 78.30"),
}

each_recipe = pytest.mark.parametrize(("name", "recipe"), RECIPES.items(), ids=[*RECIPES])


# The recipes


@each_recipe
def test_the_docstring_has_the_command(name, recipe):
    commands = re.findall(r"Run: `python -m experiments\.train (\w+)`", type(recipe).__doc__)
    assert commands == [name]


@each_recipe
def test_the_docstring_has_the_published_figures(name, recipe):
    del name
    sentence = re.search(r"Paper \((.*?)\.(?:\s|\Z)", type(recipe).__doc__, re.DOTALL)
    pairs = re.findall(r"[:,]\s+([A-Z][\w +-]*?) (\d+\.\d+)", sentence[1]) if sentence else []
    printed = {label: float(figure) for label, figure in pairs if label in LABELS.values()}
    assert printed == {LABELS[method]: figure for method, figure in recipe.paper.items()}


@pytest.mark.parametrize(("name", "headline"), HEADLINES.items(), ids=[*HEADLINES])
def test_the_figures_are_the_headlines(name, headline):
    methods, figures = headline
    expected = dict(zip(methods, map(float, figures.split()), strict=True))
    if methods in (WSAM, WSAM_DEIT) and "noise" not in name:
        expected = {method: round(100 - error, 2) for method, error in expected.items()}
    paper = {method: round(RECIPES[name].paper[method], 2) for method in methods}
    assert paper == pytest.approx(expected, abs=1e-9)


def test_all_other_recipes_have_no_figures():
    assert all(not recipe.paper for name, recipe in RECIPES.items() if name not in HEADLINES)


@each_recipe
def test_the_name_tells_data_model_and_method(name, recipe):
    if name.startswith("cifar"):
        noise = f"_noise{recipe.label_noise:.0%}".rstrip("%") if recipe.label_noise else ""
        tail = f"_lt{recipe.imbalance:g}" if recipe.imbalance else ""
        assert name == f"{recipe.dataset}_{recipe.model}{noise}{tail}_{recipe.method}"
    assert recipe.model in MODELS
    assert recipe.method in {"sgd", *sam_optax.__all__}
    assert {*recipe.augmentation} <= {
        "crop", "flip", "cutout", "inception", "randaugment", "jitter", "grayscale",
    }  # fmt: skip
    assert recipe.normalization in {"data", "imagenet", "half"}
    assert recipe.schedule in {"cosine", "cosine_epoch", "linear", "constant"}
    assert recipe.noise in {"flip", "symmetric"}
    assert recipe.objective == ("glmc" if recipe.imbalance else "cross_entropy")


@each_recipe
def test_every_setting_constructs(name, recipe):
    if recipe.paper:
        assert recipe.method in recipe.settings
        assert {*recipe.paper} <= {"sgd", *recipe.settings}, name
    for method, settings in recipe.settings.items():
        assert method in sam_optax.__all__
        assert {*settings} <= {*inspect.signature(getattr(sam_optax, method)).parameters}
        built = optimizer(recipe, method, settings, epochs=recipe.epochs, steps_per_epoch=10)
        assert callable(built.method.update)


@pytest.mark.parametrize(("method", "budget"), [("le_sam", 0.35), ("le_sam_plus", 0.15)])
@pytest.mark.parametrize("epochs", [200, 20])
def test_budgets_anneal_over_the_last_fifth_of_the_run(method, budget, epochs):
    recipe = dataclasses.replace(RECIPES["cifar100_resnet18_le_sam"], epochs=epochs)
    settings = recipe.settings[method]
    link = optimizer(recipe, method, settings, epochs=epochs, steps_per_epoch=10).method
    grads = {"w": jnp.array([6.0, 8.0])}  # of norm 10, at which the largest radius does not bind
    radii = []
    for step in (0, 8 * epochs - 1, 10 * epochs - 1):
        state = link.init(grads)._replace(steps=jnp.int32(step))
        _, state = link.update(grads, state, grads, grad_fn=lambda w: w)
        radii.append(float(state.perturb.rho))
    assert radii == pytest.approx([budget / 10, budget / 10, 0])


@each_recipe
def test_recipes_are_frozen_and_share_nothing(name, recipe):
    assert isinstance(recipe, Recipe)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 1
    again = type(recipe)()
    assert again == recipe, name
    assert again.settings is not recipe.settings
    assert dataclasses.replace(recipe, epochs=1).epochs == 1


# Methods without settings for the digits.
NOT_MEASURED: set[str] = set()


def test_digits_have_the_settings_of_their_results():
    """And nothing else that is not every recipe's."""
    config = json.loads((RESULTS / "digits.json").read_text())["config"]
    settings = {name: given for name, given in config["methods"].items() if given}
    missing = METHODS.keys() - settings.keys()
    assert missing == NOT_MEASURED, "give it settings in recipes/small.py, or name it there"
    plain = Recipe(
        dataset="digits",
        model="mlp",
        epochs=100,
        batch_size=64,
        learning_rate=0.02,
        settings=settings,
    )
    assert dataclasses.asdict(RECIPES["digits"]) == dataclasses.asdict(plain)
    for name in ("epochs", "batch_size", "learning_rate", "momentum", "weight_decay"):
        assert config[name] == getattr(plain, name)
    plain = Recipe(dataset="digits", model="cnn", epochs=20, batch_size=64, learning_rate=0.1)
    assert dataclasses.asdict(RECIPES["digits_cnn"]) == dataclasses.asdict(plain)


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.domain])
def test_a_domain_has_about_5000_steps(name):
    assert cost.steps(RECIPES[name]) == pytest.approx(5_000, abs=50)


@pytest.mark.parametrize(("set_name", "columns", "averages"), [
    ("pacs", ("photo", "art_painting", "cartoon", "sketch"), (54.78, 55.69, 57.87)),
    ("vlcs", ("voc2007", "labelme", "caltech101", "sun09"), (50.76, 52.63, 53.47)),
])  # fmt: skip
def test_the_averages_over_domains_are_the_published_ones(set_name, columns, averages):
    for method, average in zip(TRANSFER, averages, strict=True):
        figures = [RECIPES[f"{set_name}_{column}_le_sam"].paper[method] for column in columns]
        assert sum(figures) / 4 == pytest.approx(average, abs=0.00501)


# What they cost


def test_steps_count_the_examples_that_are_left():
    assert cost.steps(RECIPES["cifar10_resnet18_ae_sam"]) == 200 * (45_000 // 128)
    assert cost.steps(RECIPES["cifar10_wrn28_10_le_sam"]) == 200 * (50_000 // 256)
    assert cost.steps(RECIPES["digits"]) == 100 * (1_437 // 64)
    assert cost.steps(RECIPES["mnist_noise40"]) == 50 * (2_000 // 64)
    assert cost.steps(RECIPES["cifar10_resnet18_wsam"].of("sgd")) == 400 * (50_000 // 128)
    assert cost.steps(RECIPES["imagenet_vit_b16_r_sam"]) == 300 * (1_281_167 // 4096)
    assert cost.steps(RECIPES["cifar10_vit_b16_le_sam"]) == 8_000
    assert cost.steps(RECIPES["pacs_photo_le_sam"]) == 122 * (1_336 // 32)
    # CIFAR-100-LT has 10,847 and 12,608 images
    assert cost.steps(RECIPES["cifar100_resnet32_lt100_le_sam"]) == 200 * (10_847 // 64)
    assert cost.steps(RECIPES["cifar100_resnet32_lt50_le_sam"]) == 200 * (12_608 // 64)


def test_gradients_per_step_are_those_of_the_methods():
    plain, noisy = RECIPES["cifar10_resnet18_ae_sam"], RECIPES["cifar10_resnet18_noise80_ae_sam"]
    expected = {
        "sgd": 1, "msam": 1, "s2_sam": 1, "lpf_sgd": 1, "sam": 2, "esam": 1.5, "ss_sam": 1.5,
        "looksam": 1.2, "ae_sam": 1.5,
    }  # fmt: skip
    for method, gradients in expected.items():
        assert cost.gradients_per_step(plain, method) == pytest.approx(gradients)
    # Table 1 has 20.0 % of SAM for AE-LookSAM, and Table 3 has 50.0 %
    assert cost.gradients_per_step(plain, "ae_looksam") == pytest.approx(1.2, abs=0.01)
    assert cost.gradients_per_step(noisy, "ae_looksam") == pytest.approx(1.5)
    assert cost.gradients_per_step(noisy, "looksam") == pytest.approx(1.5)


def test_the_adaptive_share_is_that_of_a_normal_variable():
    assert cost.share_above(0.0, 0.0) == pytest.approx(0.5)
    assert cost.share_above(1.0, 1.0) == pytest.approx(0.158655, abs=1e-6)
    assert cost.share_above(1.0 - 1e-4, 1.0 + 1e-4) == pytest.approx(0.158655, abs=1e-5)
    assert cost.share_above(-1.0, 0.0) + cost.share_above(0.0, 1.0) == pytest.approx(1)


@pytest.mark.parametrize("method", cost.DEFAULTS)
def test_the_defaults_are_those_of_the_library(method):
    parameters = inspect.signature(getattr(sam_optax, method)).parameters
    defaults = cost.DEFAULTS[method]
    assert {name: parameters[name].default for name in defaults} == defaults


# The command


def test_the_list_has_every_recipe_in_100_columns(capsys):
    __main__.main([])
    lines = capsys.readouterr().out.splitlines()
    listed = [line.split()[0] for line in lines if line.split() and line.split()[0] in RECIPES]
    assert listed == [*RECIPES]
    assert max(map(len, lines)) <= 100
    (line,) = (line for line in lines if line.startswith("cifar10_resnet18_ae_sam"))
    assert line.split()[1:] == [
        "resnet18", "200", "128", "95.41", "96.52", "96.63", "105.3k", "(1.5/step)",
    ]  # fmt: skip


@each_recipe
def test_a_name_shows_all_of_a_recipe(capsys, name, recipe):
    __main__.main([name])
    out = capsys.readouterr().out
    assert inspect.getdoc(recipe) in out
    assert max(map(len, out.splitlines())) <= 100
    words = " ".join(out.split())
    for field in dataclasses.fields(recipe):
        if field.name not in ("settings", "paper", "epochs_of"):
            assert f"{field.name} {getattr(recipe, field.name)}" in words
    for method, settings in recipe.settings.items():
        assert f"{method} " in words
        assert all(f"{setting}=" in words for setting in settings)


def test_the_page_of_benchmarks_has_the_tables_of_every_paper(capsys):
    __main__.main(["--markdown"])
    tables = capsys.readouterr().out
    page = (RESULTS.parent / "benchmarks.md").read_text()
    assert tables in page, "python -m experiments.recipes --markdown prints the new ones"
    for name, recipe in RECIPES.items():
        assert (f"| `{name}` | {recipe.dataset}" in tables) is (name not in small.RECIPES)


@each_recipe
def test_every_recipe_of_a_paper_has_hours(name, recipe):
    assert (cost.hours(recipe, recipe.method) is None) is (name in small.RECIPES)


@pytest.mark.parametrize(("model", "size", "width"), cost.MACS)
def test_multiply_adds_are_those_of_the_model(model, size, width):
    module = models.make(model, 10 if size == 32 else 1000, width=width)
    counted = sum(map(test_models.macs, test_models.products(module, (1, size, size, 3))))
    assert cost.MACS[model, size, width] == pytest.approx(counted, rel=0.01)


def test_hours_count_gradients_images_and_operations():
    recipe = RECIPES["cifar10_resnet18_wsam"]
    operations = 200 * 390 * 128 * 2 * 3 * 2 * 556e6
    assert cost.hours(recipe, "sam") == pytest.approx(operations / 40e12 / 3600)
    assert cost.hours(recipe, "sgd") == pytest.approx(operations / 40e12 / 3600)  # twice the epochs
    mixtures = dataclasses.replace(recipe, objective="glmc")
    assert cost.hours(mixtures, "sam") == pytest.approx(2 * operations / 40e12 / 3600)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("cifar100_resnet18_le_sam", 9.06),
        ("cifar100_wrn28_10_le_sam", 55.83),
        ("cifar100_pyramidnet110_le_sam", 88.82),
    ],
)
def test_hours_are_near_the_published_seconds_of_an_epoch(name, seconds):
    epoch = dataclasses.replace(RECIPES[name], epochs=1)
    assert 0.7 < 3600 * cost.hours(epoch, "sam") / seconds < 1.5


def test_a_recipe_shows_its_protocol_and_schedules(capsys):
    __main__.main(["cifar10_resnet18_noise20_ae_sam", "cifar100_resnet18_le_sam"])
    out = capsys.readouterr().out
    for protocol in ("AE-SAM's protocol for label noise", "AE-SAM's protocol (", "LE-SAM's prot"):
        assert protocol in out
    assert "budget=budget_annealing(budget=0.35, anneal_from=80%)" in " ".join(out.split())


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cifar10_resnet18_aesam", "cifar10_resnet18_ae_sam"), ("zzz", "without a name")],
)
def test_an_unknown_name_is_one_line_and_exit_2(capsys, name, hint):
    with pytest.raises(SystemExit) as error:
        __main__.main(["digits", name])
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: unknown recipe {name!r}: ")
    assert hint in captured.err
    assert captured.err.count("\n") == 1


def test_the_list_needs_no_jax():
    program = (
        "import sys; from experiments.recipes import __main__; __main__.main([]); "
        "sys.exit('jax' in sys.modules)"
    )
    listing = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=False
    )
    assert listing.returncode == 0
