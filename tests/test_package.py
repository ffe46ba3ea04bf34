"""The package's promises about itself: names, signatures, docstrings, README, citation."""

import inspect
from pathlib import Path
import re

import pytest
from reference import METHODS
from test_gradient_counts import COUNTS
import yaml

import sam_optax
from sam_optax import methods

TESTS = Path(__file__).parent
ROOT = TESTS.parent
README = (ROOT / "README.md").read_text()
SIGNATURES = {
    "sam": "(rho=0.05)",
    "asam": "(rho=0.5, eta=0.01, weights=None)",
    "fisher_sam": "(rho=0.1, eta=1.0)",
    "gsam": "(rho=0.05, alpha=0.4)",
    "ssam": "(rho=0.05)",
    "looksam": "(rho=0.05, alpha=0.7, period=5)",
    "ss_sam": "(rho=0.05, probability=0.5, *, key=0)",
    "esam": "(rho=0.05, beta=0.6, gamma=0.5, *, key=0, mask='coordinate')",
    "ae_sam": "(rho=0.05, *, total_steps, lambda_1=-1.0, lambda_2=1.0, decay=0.9, "
    "initial_variance=4.5399929762484854e-05)",
    "ae_looksam": "(rho=0.05, alpha=0.3, *, total_steps, lambda_1=0.0, lambda_2=2.0, decay=0.9, "
    "initial_variance=4.5399929762484854e-05)",
    "samar": "(rho=0.1, gamma=1.4, chi=1.05, lambda_0=1.0, delta=0.01, ratio='clean')",
    "vasso": "(rho=0.05, theta=0.9)",
    "friendly_sam": "(rho=0.05, sigma=1.0, decay=0.9)",
    "eigen_sam": "(rho=0.05, alpha=0.2, period=100, power_iterations=5, *, key=0)",
    "le_sam": "(budget=0.35, rho_max=None)",
    "le_sam_plus": "(budget=0.15, alpha=0.5, rho_max=None)",
    "r_sam": "(rho=0.05, gamma=0.1, lambda_=1.0, *, key=0, noise_scale='std', "
    "normalize_gradient=False, updates_at='params')",
    "r_gsam": "(rho=0.05, gamma=0.1, lambda_=1.0, alpha=0.4, *, key=0, noise_scale='std', "
    "normalize_gradient=False, updates_at='params')",
    "lpf_sgd": "(gamma=0.001, samples=1, *, key=0, updates_at='params')",
    "msam": "(rho=0.3, decay=0.9, *, updates_at='params')",
    "s2_sam": "(rho=0.05, *, updates_at='params')",
    "coupled_wsam": "(rho=0.05, gamma=0.9)",
    "wsam": "(base, rho=0.05, gamma=0.9, *, perturb=None)",
}
PARTS = (sam_optax.start, sam_optax.perturb, sam_optax.when, sam_optax.combine, sam_optax.schedules)
PUBLIC = [
    *(getattr(sam_optax, name) for name in SIGNATURES),
    sam_optax.sharpness_aware,
    sam_optax.gradient_point,
    sam_optax.average,
    sam_optax.select_examples,
    *(
        f
        for module in PARTS
        for name, f in inspect.getmembers(module, inspect.isfunction)
        if f.__module__ == module.__name__ and not name.startswith("_")
    ),
]


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_method_has_its_published_signature(name):
    signature = inspect.signature(getattr(sam_optax, name))
    plain = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(plain)) == SIGNATURES[name]


def test_every_method_is_exported():
    """A function of methods.py is public, and has a row in the table above."""
    defined = {
        name
        for name, f in inspect.getmembers(methods, inspect.isfunction)
        if f.__module__ == methods.__name__ and not name.startswith("_")
    }
    assert defined == set(SIGNATURES) == set(METHODS)
    assert len(defined) == 23
    assert defined <= set(sam_optax.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_method_has_its_tests(name):
    """A closed form, a reduction, a count of gradients and an example beside its reference."""
    for file in ("closed_forms", "reductions"):
        assert f"sam_optax.{name}(" in (TESTS / f"test_{file}.py").read_text()
    assert name in COUNTS
    assert ">>> " in inspect.getdoc(getattr(sam_optax, name))


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__qualname__)
def test_a_public_docstring_is_complete(function):
    """It explains each argument, what is returned, and the source of a formula."""
    doc = inspect.getdoc(function)
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^  {argument}: ", doc, re.MULTILINE), argument
    assert "Returns:" in doc
    if function.__module__ == methods.__name__:
        assert "References:" in doc
        assert "Raises:" in doc
        assert re.search("radients? a step", " ".join(doc.split()))


def test_the_citation_has_the_packages_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == sam_optax.__version__
    assert len(citation["references"]) == 5
    assert all(reference["authors"] for reference in citation["references"])


def test_the_changelog_has_the_packages_version():
    assert f"## [{sam_optax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_has_two_commands():
    """One under Run, one under Test, and no third."""
    assert README.count("```bash") == 2
    for heading in ("Run", "Test"):
        assert re.search(rf"^## {heading}\n[^#]*?```bash\n[^\n]+\n```", README, re.MULTILINE)


def test_the_readme_tells_each_method_in_six_words():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", README, re.MULTILINE))
    assert set(rows) == set(SIGNATURES)
    assert {name: len(words.split()) for name, words in rows.items()} == dict.fromkeys(rows, 6)


def test_the_links_inside_the_repository_resolve():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
