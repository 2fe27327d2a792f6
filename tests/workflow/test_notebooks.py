"""docs/python.md and the notebooks run as they are written, on a finished run."""

import re
from pathlib import Path

import nbclient
import nbformat
import pytest
import shapely

from tests.workflow.conftest import copy
from tests.workflow.project import REPOSITORY, Project

pytestmark = pytest.mark.xdist_group("workflow")

NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))
LARGEST_BYTES = 100_000


@pytest.fixture(scope="module")
def opened(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(finished, tmp_path_factory.mktemp("notebooks") / "project").folder


def blocks() -> list[str]:
    page = (REPOSITORY / "docs" / "python.md").read_text()
    return re.findall(r"(?ms)^```python\n(.*?)^```", page)


def test_the_page_runs_from_its_first_block_to_its_last(
    opened: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(opened)
    monkeypatch.delenv("HER2_CACHE", raising=False)
    space: dict[str, object] = {}
    for number, block in enumerate(blocks()):
        exec(compile(block, f"docs/python.md, block {number + 1}", "exec"), space)
    assert len(blocks()) == 11
    assert "row 1: 1.7 is no probability from 0 to 1" in capsys.readouterr().out


def test_from_a_slide_to_its_heatmap_takes_fewer_than_15_lines() -> None:
    of_page = [line for line in blocks()[0].splitlines() if line]
    assert len(of_page) < 15
    cells = nbformat.read(REPOSITORY / "docs/notebooks/one-slide.ipynb", as_version=4).cells
    (cell,) = (one.source for one in cells if "draw_heatmap" in one.source)
    for part in (blocks()[0], cell):
        order = [part.index(name) for name in ("open_slide", "tile(", "embed(", "predict(", "draw")]
        assert order == sorted(order)
    assert len(cell.splitlines()) < 15


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_stored_without_its_output(
    path: Path, opened: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert path.stat().st_size < LARGEST_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # of the kernel
    monkeypatch.setenv("IPYTHONDIR", str(opened / ".ipython"))
    monkeypatch.delenv("HER2_CACHE", raising=False)
    context = {"metadata": {"path": str(opened)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=context).execute()
    last = [cell.outputs[-1] for cell in code if cell.outputs]
    pictures = [one for one in last if "image/png" in one.get("data", {})]
    assert len(pictures) == {"one-slide": 2, "finished-run": 1}[path.stem]
    if path.stem == "one-slide":
        (found,) = opened.glob("pictures/slides/demo-001-a.geojson")
        assert shapely.from_geojson(found.read_text()).geoms


def test_the_package_has_both_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["finished-run", "one-slide"]
