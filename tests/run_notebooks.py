"""Executes notebooks and writes anew what they show: `python tests/run_notebooks.py NOTEBOOK ...`.

What would differ from one machine to the next is left out: times, paths, the version of Python.
"""

from pathlib import Path
import sys
import tempfile

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path):
    """The notebook as it comes from a fresh kernel, in an empty folder; an error in it raises."""
    import nbclient  # the extra docs, which the collection of the tests does not need
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            notebook,
            timeout=600,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()
    notebook.metadata = METADATA
    return notebook


if __name__ == "__main__":
    import nbformat

    for argument in sys.argv[1:]:
        path = Path(argument)
        nbformat.write(executed(path), path)
