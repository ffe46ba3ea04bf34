"""The documentation: what its blocks are, its commands, and that its tables are the results."""

import functools
import importlib
import json
import operator
from pathlib import Path
import re
import shlex
import statistics
import subprocess
import sys
import tomllib

import pytest
from reference import METHODS
import tyro

from experiments import sweep, train
from experiments.recipes import __main__ as recipes
import sam_optax
import sam_optax.flax

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(set(DOCS.glob("**/*.md")) - set(DOCS.glob("_build/**/*")))]
PACKAGE = sorted((ROOT / "sam_optax").rglob("*.py"))
# Pages that tell commands with options, so that a pattern that finds none is noticed.
TELLING = {"analysis", "benchmarks", "evaluation", "experiments", "robustness", "tables"}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@functools.cache
def blocks(page):
    """The fenced blocks of a page: their language or directive, and their lines."""
    fenced = r"^ *(?:```|~~~)(\S*)[^\n]*\n(.*?)^ *(?:```|~~~)$"
    found = re.findall(fenced, page.read_text(), re.MULTILINE | re.DOTALL)
    return [(language, block.splitlines()) for language, block in found]


@each_page
def test_every_block_is_executed_or_understood(page):
    """Python blocks are doctests, and shell blocks hold the commands of the tests below."""
    for language, lines in blocks(page):
        if language == "python" and page.name == "gallery.md":
            continue  # methods/test_gallery.py runs them
        if language == "python":
            assert all(re.match(r">>> |\.\.\. |[^>]|$", line) for line in lines), lines
            assert lines[0].startswith(">>> ")
            assert not lines[-1], "doctest takes the fence for output where no empty line ends it"
        elif language == "bash":
            assert all(re.match(r"(\S+ )?(\S*python3? -m|\S+ && )", line) for line in lines), lines
        else:
            assert language in ("bibtex", "{eval-rst}", "{toctree}", "{image}", "{include}")


@pytest.mark.parametrize("page", [*PAGES, *PACKAGE], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_names_told_exist(page):
    """Of the package, in pages and docstrings; the site is silent where it cannot link one."""
    told = re.findall(r"`sam_optax\.(\w+(?:\.\w+)*)", page.read_text())
    assert told or page.stem not in {"recipes", "methods"}
    for name in told:
        operator.attrgetter(name)(sam_optax)  # raises where there is none


def commands(page):
    """The commands of the experiments that a page tells: the module, and what follows it."""
    found = re.findall(r"python -m experiments\.([\w.]+)((?:\\\n|[^`\n])*)", page.read_text())
    lines = [(name.rstrip("."), line.replace("\\\n", " ")) for name, line in found]
    # Behind spaces stands a remark. A name alone is no command, nor is what leaves … open.
    lines = [(name, line.split("   ")[0].strip()) for name, line in lines]
    return [(name, line) for name, line in lines if line and not re.search(r"…|\[|NAME", line)]


@each_page
def test_the_commands_are_understood(page):
    """Their options, and of train and sweep the recipes, the methods and the settings."""
    lines = commands(page)
    text = page.read_text()
    lines += [("sweep", line) for line in re.findall(r"`(\w+ --method \w+ --over [^`]+)`", text)]
    assert lines or page.stem not in TELLING
    for name, line in lines:
        arguments = shlex.split(line.replace("METHOD", "sam"))
        if name == "recipes":
            recipes.main(arguments)
            continue
        module = importlib.import_module(f"experiments.{name}")
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"experiments.{name}.__main__")
        asked = tyro.cli(module.Options, args=arguments)
        if name == "train":
            train._plan(asked, None)
        elif name == "sweep":
            for axis, values in sweep._axes([a for axes in asked.over for a in axes]).items():
                for value in values:
                    sweep._apply(asked.resolve(), asked.method, [f"{axis}={value}"])


def test_every_command_has_a_row_and_stands_in_the_first_layer():
    modules = [path.stem for path in Path(train.__file__).parent.glob("*.py")]
    commands = set(modules) - {"__init__"}
    page = (DOCS / "experiments.md").read_text()
    rows = re.findall(r"^\| `python -m experiments\.(\w+)`", page, re.MULTILINE)
    assert set(rows) == commands | {"recipes", "benchmark"}
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    first, *_ = layers["contracts"][0]["layers"]
    assert set(first.split(" | ")) == commands


@pytest.mark.slow
@pytest.mark.parametrize("page", ["start.md", "experiments.md"])
def test_the_commands_on_digits_run(tmp_path, page):
    """As a new user types them, in the order of the page."""
    lines = [
        line for language, block in blocks(DOCS / page) if language == "bash" for line in block
    ]
    lines = [line for line in lines if "experiments" in line and " digits " in line]
    assert lines
    for line in lines:
        command = [sys.executable, *shlex.split(line)[1:], "--out", str(tmp_path)]
        subprocess.run(command, check=True, cwd=ROOT, timeout=600)
    assert list(tmp_path.iterdir())


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "index.md"], ids=lambda p: p.stem)
def test_the_first_picture_is_told_by_the_figures_that_it_shows(page):
    """By those of the script that draws it, which reads the results."""
    sys.path.insert(0, str(DOCS))
    import first_picture

    said = dict(re.findall(r"([\w-]+) ([\d.]+) %[,\]]", page.read_text()))
    shown = {
        first_picture.SHOWN[name]: f"{mean:.1f}"
        for name, (_, mean, _) in first_picture.bars().items()
    }
    assert said == shown


def test_every_method_has_a_section_with_its_bibtex():
    text = (DOCS / "methods.md").read_text()
    assert sorted(re.findall(r"autofunction:: sam_optax\.(\w+)", text)) == sorted(METHODS)
    sections = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    keys = {}
    for section in sections:
        (name,) = re.findall(r"autofunction:: sam_optax\.(\w+)", section)
        if "BibTeX: that of [" in section:
            continue
        (entry,) = re.findall(r"```bibtex\n(.*?)```", section, re.DOTALL)
        assert entry.count("{") == entry.count("}")
        ((key, body),) = re.findall(r"@(?:inproceedings|article)\{(\w+),\n(.*)\}\n", entry, re.S)
        assert keys.setdefault(key, name) == name
        fields = dict(re.findall(r"^  (\w+) += \{(.*)\},$", body, re.MULTILINE))
        assert {"author", "title", "year"} < fields.keys()
        source = " ".join(getattr(sam_optax, name).__doc__.split("References:")[1].split())
        assert fields["year"] in source
        assert fields["author"].split(",")[0] in source
        assert fields.get("url", "") in source


def test_the_figures_of_choosing_are_those_of_the_results():
    """A row for every method, with its points over SGD where they were measured."""
    pattern = r"^\| \[`(\w+)`\]\(methods.md#\S+\) \|.*\| ([^|]*) \| ([^|]*) \|$"
    page = (DOCS / "choosing.md").read_text()
    rows = {name: fields for name, *fields in re.findall(pattern, page, re.MULTILINE)}
    assert rows.keys() == METHODS.keys()
    for column, result in enumerate(("digits", "mnist")):
        tables = json.loads((DOCS / "results" / f"{result}.json").read_text())["tables"]
        measured = {row["method"]: row for row in tables["equal epochs"]}
        for name in METHODS:
            row, expected = measured.get(name), ""
            if row is not None:
                expected = f"{row['difference_mean']:+.1f} ± {row['difference_error']:.1f}"
            assert rows[name][column] == expected, (name, result)


def test_the_house_is_drawn_as_it_stands():
    """By its script, with all commands and rooms in the order of the layers that may import."""
    sys.path.insert(0, str(DOCS))
    import house

    assert house.PICTURE.read_text() == house.drawn()
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    floors = [set(layer.split(" | ")) for layer in layers["contracts"][0]["layers"]]
    assert [set(rooms) for rooms in house.FLOORS[1:]] == floors[1:]
    assert set(house.COMMANDS.split(" · ")) == floors[0]


@pytest.mark.parametrize("kind", ["clean", "noisy"])
def test_the_page_on_calibration_has_the_numbers_of_its_files(kind):
    """Mean and deviation over the seeds, in the digits that the page has."""
    folder = DOCS / "results" / "calibration"
    found = {
        samples: json.loads((folder / f"{kind}{suffix}.json").read_text())["runs"]
        for samples, suffix in ((0, ""), (64, "-64"))
    }
    page = (DOCS / "results" / "calibration.md").read_text()
    table = page.split(f"(calibration/{kind}.png)")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\w* ?)\| (at|over) .*?\| (.*?) \| (.*?) \| (.*?) \|$", table, re.M)
    assert len(rows) == 6
    method = None
    for name, where, *cells in rows:
        method = name.strip() or method
        runs = [run for run in found[64 if where == "over" else 0] if run["method"] == method]
        figures = [run["evaluated"]["digits"] for run in runs]
        assert len(figures) == 10
        assert {one["samples"] for one in figures} == {64 if where == "over" else 0}
        for cell, (key, scale) in zip(
            cells, (("accuracy", 100), ("nll", 1), ("ece", 100)), strict=True
        ):
            values = [scale * one[key] for one in figures]
            numbers = statistics.fmean(values), statistics.stdev(values)
            for said, number in zip(cell.split(" ± "), numbers, strict=True):
                digits = len(said.partition(".")[2])
                assert float(said) == pytest.approx(number, abs=0.51 * 10**-digits), (method, key)


@pytest.fixture
def gpu_results():
    """The script that writes the page on GPUs."""
    sys.path.insert(0, str(DOCS))
    import gpu_results

    return gpu_results


def test_the_page_on_gpus_is_what_its_script_writes(gpu_results):
    assert gpu_results.PAGE.read_text() == gpu_results.page()


def test_the_table_of_precisions_is_that_of_its_file(gpu_results):
    assert "\n".join(gpu_results.precision()) in (DOCS / "choosing.md").read_text()
    lines = (DOCS / "results" / "gpu" / "h100" / "probe.jsonl").read_text().splitlines()
    (row,) = (
        row
        for row in map(json.loads, lines)
        if (row.get("when"), row.get("rho"), row.get("precision")) == ("init", 0.05, "bfloat16")
    )
    assert f"| 0.05 | 0.993 / 0.999 | {row['cos']:.3f} / 0.980 |" in gpu_results.precision()[3]


def test_the_page_on_gpus_tells_cards_that_come_later(gpu_results, tmp_path, monkeypatch):
    found = {**gpu_results.first(), "device": "another card", "steps": [], "epochs": []}
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "gpu_check.json").write_text(json.dumps(found))
    monkeypatch.setattr(gpu_results, "RESULTS", tmp_path)
    cards = re.findall(r"^## (.*), jax", gpu_results.page(), re.MULTILINE)
    assert cards == ["another card", "NVIDIA H100 80GB HBM3"]


def test_raw_figures_name_no_folder_of_a_machine():
    for file in (DOCS / "results" / "gpu").rglob("*.json*"):
        assert not re.search(r"[\"' (]/\w", file.read_text()), file
