"""`her2 heatmaps`: attention to chosen slides of a finished run, resumed, and never in the way."""

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import shapely
from typer.testing import CliRunner

from her2.cli.main import app
from her2.core.errors import UserError
from her2.explanation import drawing, listed
from her2.explanation.chosen import Wish, draw_chosen
from tests.workflow.conftest import copy
from tests.workflow.project import Project

pytestmark = pytest.mark.xdist_group("changes")

ALL = ("all",)
TEXT = ("geojson", "parquet")
"""Formats that take no time to draw."""


@pytest.fixture(scope="module")
def own(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy(finished, tmp_path_factory.mktemp("heatmaps") / "project").folder


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["slide_id"]: row for row in json.loads((folder / "heatmaps.json").read_text())}


def draw(own: Path, out: Path, slides: tuple[str, ...] = ALL, **options: Any) -> dict[str, Any]:
    formats = options.pop("formats", TEXT)
    cohort = options.pop("cohort", None)
    rows = draw_chosen(own / "results", Wish(slides, formats, cohort), out, **options)
    return {str(row["slide_id"]): row for row in rows}


def test_every_slide_is_drawn_by_the_model_that_never_saw_it(own: Path, tmp_path: Path) -> None:
    said: list[str] = []
    rows = draw(own, tmp_path, say=said.append)
    folds = pl.read_parquet(own / "results/folds/score.parquet")
    tested = folds.filter(pl.col("role") == "test").select("slide_id", "fold")
    assert {name: row["fold"] for name, row in rows.items()} == dict(tested.iter_rows())
    for name, row in rows.items():
        own_run = own / f"results/models/score/tiny/abmil/r0f{row['fold']}"
        stored = pl.read_parquet(own_run / "attention.parquet").filter(slide_id=name)
        drawn = pl.read_parquet(tmp_path / "slides" / f"{name}.parquet")
        assert drawn["attention"].to_list() == stored["attention"][0].to_list()
        assert not (tmp_path / "slides" / f"{name}.png").exists()  # nobody asked for it
    assert said == [f"slides drawn: 12 of 12; list: {tmp_path / 'heatmaps.json'}"]


def test_geojson_opens_in_shapely(own: Path, tmp_path: Path) -> None:
    draw(own, tmp_path, ("demo-004-a",))
    path = tmp_path / "slides" / "demo-004-a.geojson"
    found = shapely.from_geojson(path.read_text())
    table = pl.read_parquet(path.with_suffix(".parquet"))
    assert len(found.geoms) == len(table) == 18
    assert all(one.is_valid and one.area == 128 * 128 for one in found.geoms)
    corners = [one.bounds[:2] for one in found.geoms]
    assert corners == list(table.select("x_level0_px", "y_level0_px").iter_rows())


def test_the_picture_is_that_of_the_run(own: Path, tmp_path: Path) -> None:
    draw(own, tmp_path, ("demo-004-a",), formats=("png",))
    theirs = own / "results/heatmaps/score/tiny/abmil"
    for name in ("slides/demo-004-a.png", "strips/demo-004-a.png"):
        assert (tmp_path / name).read_bytes() == (theirs / name).read_bytes()


def test_a_stopped_command_goes_on_where_it_was(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    real = drawing.draw_slide

    def count(tiles: Any, *arguments: Any) -> Any:
        drawn.append(tiles.of.slide_id)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return real(tiles, *arguments)

    monkeypatch.setattr(listed, "draw_slide", count)
    with pytest.raises(KeyboardInterrupt):
        draw(own, tmp_path)
    assert len(rows_of(tmp_path)) == 3
    draw(own, tmp_path)
    assert len(drawn) == 4 + 9
    (tmp_path / "slides" / "demo-005-a.geojson").unlink()
    draw(own, tmp_path)
    assert drawn[13:] == ["demo-005-a"]
    draw(own, tmp_path, ("demo-006-a",), formats=("geojson",))
    assert drawn[14:] == ["demo-006-a"]
    assert len(rows_of(tmp_path)) == 12  # those of others stay


def test_bad_slides_are_named_and_stop_no_other(own: Path, tmp_path: Path) -> None:
    broken = copy(Project(own), tmp_path / "broken").folder
    (broken / "slides/demo-001-a.svs").write_bytes(b"no slide")
    (broken / "slides/demo-002-a.svs").unlink()
    store = broken / "results/features/tiny/demo-003-a.zarr.zip"
    store.unlink()
    shutil.rmtree(broken / "cache")
    manifest = broken / "slides.csv"
    rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join(row for row in rows if "demo-005-a" not in row) + "\n")
    found = draw(broken, tmp_path / "out")
    reasons = {name: row["reason"] for name, row in found.items() if "reason" in row}
    assert set(reasons) == {"demo-001-a", "demo-002-a", "demo-003-a", "demo-005-a"}
    assert "not a slide" in reasons["demo-001-a"]
    assert "does not exist" in reasons["demo-002-a"]
    assert "its product (features" in reasons["demo-003-a"]
    assert "not in the manifest any more" in reasons["demo-005-a"]
    assert not (broken / "cache").exists()  # it was not here, and is not made
    assert not list((tmp_path / "out").glob(".her2*"))


def test_an_external_cohort_is_drawn_by_all_models(validated: Project, tmp_path: Path) -> None:
    rows = draw(validated.folder, tmp_path, cohort="east")
    assert {row["models"] for row in rows.values()} == {2}
    part = validated.folder / "results/validation/east/predictions/score/tiny/abmil"
    stored = pl.read_parquet(part / "attention.parquet")
    for name, attention in stored.iter_rows():
        drawn = pl.read_parquet(tmp_path / "slides" / f"{name}.parquet")
        assert drawn["attention"].to_list() == attention
    with pytest.raises(UserError, match="the external cohorts of this run are east"):
        draw(validated.folder, tmp_path, cohort="west")


@pytest.mark.parametrize(
    ("slides", "out", "options", "words"),
    [
        (("demo-04-a", "x"), "out", {}, "2 of these are no slides.*do you mean demo-0.*\n  - x"),
        (("../demo-004-a",), "out", {}, "are no slides of the run"),
        (ALL, "project/results/heatmaps", {}, "is in the results"),
        (ALL, "out", {"head": "clam"}, "no evaluated model is --head clam"),
        (ALL, "out", {"cohort": "east"}, "the external cohorts of this run are none"),
    ],
)
def test_a_mistake_is_refused_before_anything_is_written(
    own: Path, slides: tuple[str, ...], out: str, options: Any, words: str
) -> None:
    with pytest.raises(UserError, match=f"(?s){words}"):
        draw(own, own.parent / out, slides, **options)
    assert not (own.parent / "out").exists()


def test_a_list_of_another_program_is_not_written_over(own: Path, tmp_path: Path) -> None:
    (tmp_path / "heatmaps.json").write_text('{"mine": 1}')
    with pytest.raises(UserError, match="is no list of `her2 heatmaps`"):
        draw(own, tmp_path)
    assert (tmp_path / "heatmaps.json").read_text() == '{"mine": 1}'


def test_the_command_draws_what_its_options_say(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own)
    options = ["--slides", "demo-004-a,demo-001-a", "--formats", "ome-tiff", "--out"]
    done = CliRunner().invoke(app, ["heatmaps", "results", *options, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    files = {path.name for path in (tmp_path / "out" / "slides").iterdir()}
    assert files == {"demo-001-a.ome.tiff", "demo-004-a.ome.tiff"}
    assert "slides drawn: 2 of 2" in done.stderr
    with pytest.raises(UserError, match="formats: 'pgn'; give some of png, parquet"):
        CliRunner().invoke(app, ["heatmaps", "results", "--formats", "pgn", "--out", "out"],
                           catch_exceptions=False)  # fmt: skip
