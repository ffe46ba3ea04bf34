"""The notebooks run, hold what they claim, and are committed with what they show."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.ipynb"))
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


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(path, tmp_path):
    """What its text claims it asserts."""
    nbclient = pytest.importorskip("nbclient", reason="needs the extra docs")
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
