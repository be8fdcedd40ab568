"""The notebooks run from top to bottom, and what is committed is the output of such a run."""
import re
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="nbclient executes the notebooks: pip install nbclient ipykernel")
pytest.importorskip("ipykernel", reason="ipykernel runs the notebooks' cells: pip install ipykernel")
import nbformat
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
# /folder/ at the beginning of a path, or C:\: where somebody's machine shows. runs/world/... is relative and fine.
MACHINE_PATH = re.compile(r"(?<![\w.:)/])/[A-Za-z_][\w.-]*/|\b[A-Z]:\\\w")


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_runs_from_top_to_bottom(path, shared_runs, monkeypatch):
    """As it is, from the notebooks folder, as Jupyter starts it. A failing cell, its own asserts included, raises."""
    monkeypatch.setenv("NANOPREF_OUT", str(shared_runs))
    checkout_runs = path.parent.parent / "runs"
    before = sorted(checkout_runs.rglob("*"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert sorted(checkout_runs.rglob("*")) == before  # its runs went to the test's folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_is_committed_as_executed_in_one_go(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    for cell in cells:
        runs = re.sub(r"^def .*?(?=^\S|\Z)", "", cell.source, flags=re.M | re.S)  # what a cell only defines shows nothing
        if re.search(r"^\s*print\(|plt\.show\(\)", runs, re.M):
            assert cell.outputs, f"shows nothing, but should:\n{cell.source}"
    shown = [output.get("text", "") for output in outputs]
    shown += [v for output in outputs for kind, v in output.get("data", {}).items() if kind.startswith("text/")]
    assert not [text for text in shown if MACHINE_PATH.search(text)]
    assert path.stat().st_size < 600_000  # it stays viewable in a browser


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != "errata"], ids=lambda path: path.name)
def test_ends_with_exercises_that_are_still_open(path):
    cells = nbformat.read(path, as_version=4).cells
    start = next(i for i, cell in enumerate(cells) if "## Exercises" in cell.source)
    checks = [cell for cell in cells[start:] if cell.cell_type == "code" and "check(" in cell.source]
    assert len(checks) >= 3
    for cell in checks:
        shown = "".join(output.get("text", "") for output in cell.outputs).splitlines()
        assert shown and all(line.endswith("not answered yet") for line in shown), cell.source
