"""The package's promises about itself: names, signatures, docstrings, README, citation."""

import ast
import inspect
import operator
from pathlib import Path
import re
import subprocess
import sys

import pytest
from reference import METHODS
from test_gradient_counts import COUNTS
from test_signatures import PARTS, public_functions
import yaml

import sam_optax
from sam_optax import methods

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
README = (ROOT / "README.md").read_text()
PUBLIC = [getattr(sam_optax, name) for name in METHODS]
PUBLIC += [operator.attrgetter(name)(sam_optax) for name in PARTS]


def test_every_method_is_exported():
    """A function of methods.py is public, and has a row in the table of references."""
    defined = public_functions(methods)
    assert defined == set(METHODS), "each has a row in METHODS of tests/reference.py"
    assert defined <= set(sam_optax.__all__)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_tests(name):
    """A closed form, a reduction, a count of gradients and an example beside its reference."""
    for file in ("closed_forms", "reductions"):
        (path,) = TESTS.glob(f"*/test_{file}.py")
        assert f"sam_optax.{name}(" in path.read_text(), f"it has none in {path.name}"
    assert name in COUNTS, "it has no row in COUNTS of test_gradient_counts.py"
    assert ">>> " in inspect.getdoc(getattr(sam_optax, name))


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f.__qualname__)
def test_a_public_docstring_is_complete(function):
    """It explains each argument, what is returned, and the source of a formula."""
    doc = inspect.getdoc(function)
    for argument in inspect.signature(function).parameters:
        assert re.search(rf"^  \*?{argument}: ", doc, re.MULTILINE), argument
    assert "Returns:" in doc
    if function.__module__ == methods.__name__:
        assert "References:" in doc
        assert "Raises:" in doc
        assert re.search("radients? a step", " ".join(doc.split()))


@pytest.mark.parametrize("folder", ["sam_optax", "experiments"])
def test_no_private_module_of_jax_is_imported(folder):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    for file in files:
        assert "jax._src" not in file.read_text(), file


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


def test_readme_and_landing_page_say_how_many_there_are():
    for page in (README, (ROOT / "docs" / "index.md").read_text()):
        assert f"SAM and {len(METHODS) - 1} of its kin" in page


def test_the_table_of_slots_names_every_part():
    page = (ROOT / "docs" / "concepts.md").read_text()
    for slot in ("start", "perturb", "when", "combine"):
        (row,) = re.findall(rf"^\| `{slot}` \|.*$", page, re.MULTILINE)
        parts = {name.removeprefix(f"{slot}.") for name in PARTS if name.startswith(f"{slot}.")}
        assert parts - {"kernel_axes"} <= set(re.findall(r"`(\w+)`", row))


def test_the_readme_tells_each_method_in_six_words():
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", README, re.MULTILINE))
    assert set(rows) == set(METHODS)
    assert {name: len(words.split()) for name, words in rows.items()} == dict.fromkeys(rows, 6)


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
PAGES += [ROOT / "tests" / "README.md", ROOT / "findings" / "README.md"]


def anchors(page):
    """Of its headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {word.strip().replace(" ", "-") for word in words}


def test_the_links_inside_the_repository_resolve():
    found = 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            if target.startswith(("http", "mailto:")):
                continue
            there = page.parent / path if path else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor and there.suffix == ".md":
                found += 1
                assert anchor in anchors(there), f"{page.name}: {target}"
    assert found > 20


def test_the_files_that_contributors_are_sent_to_are_there():
    """Those of CONTRIBUTING and tests/README that are written as paths, some from a room on."""
    for page, above in ((ROOT / "CONTRIBUTING.md", ROOT), (TESTS / "README.md", TESTS)):
        paths = re.findall(r"`((?:\w+/)+[\w./]*)`", page.read_text())
        assert len(paths) > 15
        for path in paths:
            roots = (above, ROOT, ROOT / "experiments", ROOT / "sam_optax")
            assert any((root / path).exists() for root in roots), f"{page.name}: {path}"


def test_the_package_imports_nothing_but_jax_optax_and_numpy():
    """And Flax in its module for it."""
    allowed = {*sys.stdlib_module_names, "jax", "numpy", "optax", "sam_optax"}
    files = list((ROOT / "sam_optax").rglob("*.py"))
    assert len(files) > 30
    for file in files:
        own = allowed | {"flax"} if file.name == "flax.py" else allowed
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, file
                names = [node.module]
            assert {name.split(".")[0] for name in names} <= own, file


def test_the_import_brings_in_nothing_that_jax_and_optax_have_not():
    """So that it takes milliseconds."""
    code = "import sys, jax, optax; have = set(sys.modules); import sam_optax"
    code += "; print(*sorted(set(sys.modules) - have))"
    brought = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert [name for name in brought.stdout.split() if not name.startswith("sam_optax")] == []


def test_the_workflows_run_what_is_run_by_hand():
    """The commands of the README, and sdist and wheel on both ends of the versions."""
    workflows = ROOT / ".github" / "workflows"
    jobs = {}
    for path in workflows.glob("*.yml"):
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            jobs[name] = [step["run"] for step in job["steps"] if "run" in step]
    assert "bash .ci/run" in jobs["run"]
    assert "bash .ci/run" in jobs["build"]  # of what is published
    assert any("bash .ci/release" in line for line in jobs["release"])
    built = "sphinx --fail-on-warning --keep-going docs docs/_build/html"
    assert any(built in line for line in jobs["docs"])
    assert built in (ROOT / ".ci" / "run").read_text().replace("--quiet ", "")
