"""The notebooks run, hold what they claim, and are committed with what they show."""

import json
from pathlib import Path
import re

import pytest
import run_notebooks

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert {path.stem for path in NOTEBOOKS} == {"label_noise", "toy"}


@each_notebook
def test_a_notebook_is_committed_as_it_ran(path):
    """From top to bottom in a fresh kernel, without an error, and with a picture."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert all(output.get("name", "stdout") == "stdout" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(line.startswith("assert ") for cell in cells for line in cell["source"])


@each_notebook
def test_a_notebook_holds_nothing_of_the_machine_it_ran_on(path):
    """No times, paths and versions, and cells of fixed names, as run_notebooks.py writes it."""
    notebook = json.loads(path.read_text())
    assert notebook["metadata"] == run_notebooks.METADATA
    assert not any(cell["metadata"] for cell in notebook["cells"])
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    assert path.stat().st_size < 400_000


def words_printed(notebook):
    """What the cells print, without figures, which may differ a little on another machine."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    text = "".join("".join(output.get("text", ())) for output in outputs)
    return re.sub(r"-?[\d.]+", "", text).split()


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(path):
    """What its text claims it asserts, and what it prints is what is committed."""
    pytest.importorskip("nbclient", reason="needs the extra docs")
    again = run_notebooks.executed(path)
    assert words_printed(again) == words_printed(json.loads(path.read_text()))
