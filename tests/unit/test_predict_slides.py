"""`her2 predict`: slides become rows with the workflow's own tiles and features."""

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import her2
from her2.cli.main import app
from her2.cohort.manifest import Cohort, SlideRow
from her2.config.jobs import EmbedSpec, TileSpec
from her2.core import crashes
from her2.core.errors import UserError
from her2.core.files import file_digest
from her2.embedding.stage import embed_bucket
from her2.frozen.model import FrozenModel
from her2.mil.bags import Bag
from her2.prediction import predict
from her2.prediction.herohe import herohe_table
from her2.prediction.inputs import find_slides
from her2.prediction.options import (
    FIRST_COLUMNS,
    HEROHE_COLUMNS,
    Options,
    check_options,
    check_pictures,
    write_predictions,
)
from her2.prediction.predict import predict_raw_slides
from her2.prediction.predictor import Judgement, Predictor
from her2.prediction.progress import Progress
from her2.prediction.results import results_table
from her2.storage.cache import Cache
from her2.storage.features import open_store
from her2.tiling.stage import tile_bucket
from tests.conftest import WriteManifest
from tests.unit.predict_makers import MPP, SIZE, make_predictor

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return make_predictor(tmp_path_factory.mktemp("predictor"))


@pytest.fixture(scope="module")
def warm_cache(
    tmp_path_factory: pytest.TempPathFactory, predictor: Predictor, drawn_slide: Path
) -> Path:
    """A cache with the tiles and features of the drawn slide."""
    folder = tmp_path_factory.mktemp("warm")
    run(predictor, find_slides([drawn_slide]), folder, folder / "cache")
    return folder / "cache"


def run(
    predictor: Predictor, cohort: Cohort, folder: Path, cache: Path, **options: object
) -> tuple[pl.DataFrame, str]:
    """Predict slides, and return the table and what was said."""
    said = io.StringIO()
    given = Options(**{"output": folder / "out.csv", **options})
    return predict_raw_slides(
        predictor, cohort, Cache(cache), given, Progress(said)
    ), said.getvalue()


def copies(drawn_slide: Path, folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(drawn_slide, folder / name)
    return folder


def made(cache: Path) -> dict[Path, int]:
    """Return the products of a cache, with the times at which they were written."""
    return {one.path: one.path.stat().st_mtime_ns for one in Cache(cache).products()}


def test_a_second_call_embeds_nothing(
    predictor: Predictor, warm_cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    before = made(warm_cache)
    assert before
    first, _ = run(predictor, find_slides([drawn_slide]), tmp_path, warm_cache)
    again, _ = run(predictor, find_slides([drawn_slide]), tmp_path, warm_cache)
    assert made(warm_cache) == before
    assert again.equals(first)


def test_after_a_run_of_the_workflow_nothing_is_embedded(
    predictor: Predictor, drawn_slide: Path, tmp_path: Path
) -> None:
    """The stages of a run, in buckets and with other ids, make the same products."""
    row = SlideRow("other", drawn_slide.name, "p", {"her2": "0"})
    cohort, cache = Cohort((row,), drawn_slide.parent), Cache(tmp_path / "cache")
    bucket, tiles = "0000-of-0001", tmp_path / "tiles" / "b.json"
    tile_bucket(
        TileSpec(bucket=bucket, rows="x", mpp=MPP, size=SIZE, tiling=predictor.tiling),
        cohort, cache, tiles,
    )  # fmt: skip
    embed_bucket(
        EmbedSpec(bucket=bucket, rows="x", max_failed_tiles=0.2), cohort, cache, tiles=tiles,
        encoder=predictor.encoder, output=tmp_path / "features" / "b.json",
    )  # fmt: skip
    before = made(cache.root)
    table, _ = run(predictor, find_slides([drawn_slide]), tmp_path, cache.root)
    assert made(cache.root) == before
    assert table["status"].to_list() == ["ok", "ok"]


def test_a_row_says_what_the_frozen_model_says(
    predictor: Predictor, warm_cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    table, _ = run(predictor, find_slides([drawn_slide]), tmp_path, warm_cache)
    (store,) = (warm_cache / "features").rglob("*.zarr.zip")
    expected = predictor.model.predict(Bag("drawn", "", "", open_store(store), None))
    slide, patient = table.rows(named=True)
    for row in (slide, patient):
        found = [row["prob_low"], row["prob_high"]]
        np.testing.assert_allclose(found, expected.each.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(row["spread_high"], expected.each[:, 1].std(), rtol=1e-12)
        assert row["score_low vs high"] == pytest.approx(row["prob_high"])
        assert row["at_specificity_low vs high"] == "negative"  # the threshold is 1
        assert row["at_sensitivity_low vs high"] == "positive"  # the threshold is 0
        assert row["tiles"] == len(open_store(store))
        assert row["models"] == 2
    assert (slide["level"], patient["level"]) == ("slide", "patient")
    assert (slide["slide_id"], patient["slide_id"]) == ("drawn", None)


def test_bad_slides_do_not_stop_the_good_ones(
    predictor: Predictor, warm_cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    folder = copies(drawn_slide, tmp_path / "slides", "good.svs")
    (folder / "text.svs").write_text("no slide")
    data = drawn_slide.read_bytes()
    (folder / "cut.svs").write_bytes(data[: len(data) // 3])
    table, said = run(predictor, find_slides([folder]), tmp_path, warm_cache)
    slides = table.filter(level="slide")
    assert dict(slides.select("slide_id", "status").iter_rows()) == {
        "cut": "failed", "good": "ok", "text": "failed",
    }  # fmt: skip
    lost = slides.filter(pl.col("status") != "ok")
    assert lost["reason"].str.contains("not a slide that OpenSlide or Pillow can open").all()
    assert lost["prob_high"].null_count() == 2
    assert "slides predicted: 1 of 3; table:" in said
    assert "text: not predicted: not a slide" in said


def test_without_a_usable_slide_the_table_has_the_reasons(
    predictor: Predictor, tmp_path: Path
) -> None:
    (tmp_path / "a.svs").write_text("no slide")
    with pytest.raises(UserError, match=r"(?s)no slide could be predicted.*- a: not a slide"):
        run(predictor, find_slides([tmp_path / "a.svs"]), tmp_path, tmp_path / "cache")
    written = pl.read_csv(tmp_path / "out.csv")
    assert written["status"].to_list() == ["failed", "failed"]
    assert written["reason"].str.contains("not a slide").all()
    assert json.loads((tmp_path / "out.json").read_text())["slides"]["failed"] == 1


def test_the_record_says_what_made_the_table(
    predictor: Predictor, warm_cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    given = replace(predictor, made_of={"bundle": "abc"})
    run(given, find_slides([drawn_slide]), tmp_path, warm_cache)
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["her2"] == her2.__version__
    assert record["model"]["bundle"] == "abc"
    assert record["model"]["name"] == "score / tiny / abmil"
    assert record["table"]["sha256"] == file_digest(tmp_path / "out.csv")
    assert record["slides"] == {"ok": 1, "excluded": 0, "failed": 0}


def test_another_precision_than_in_development_is_said(
    predictor: Predictor, warm_cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    (store,) = (warm_cache / "features").rglob("*.zarr.zip")
    own = open_store(store).attributes["precision"]
    for ran_in, said in (((own, "other"), False), (("other",), True)):
        given = replace(predictor, ran_in=ran_in)
        _, words = run(given, find_slides([drawn_slide]), tmp_path, warm_cache)
        assert (f"computed in {own}, those of development in other" in words) is said
        record = json.loads((tmp_path / "out.json").read_text())
        assert record["precisions"] == {"here": [own], "development": list(ran_in)}


def test_csv_and_parquet_say_the_same(
    predictor: Predictor, warm_cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    cohort = find_slides([drawn_slide])
    table, _ = run(predictor, cohort, tmp_path, warm_cache)
    run(predictor, cohort, tmp_path, warm_cache, output=tmp_path / "out.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet").equals(table)
    assert pl.read_csv(tmp_path / "out.csv")["prob_high"].to_list() == table["prob_high"].to_list()


def test_another_encoder_is_refused(
    predictor: Predictor, drawn_slide: Path, tmp_path: Path
) -> None:
    model = predictor.model
    saved = replace(model.folds[0].saved, card={**model.first.card, "encoder_digest": "f" * 64})
    other = replace(model, folds=(replace(model.folds[0], saved=saved),))
    with pytest.raises(UserError, match="the models were trained with ffffffffffff"):
        run(replace(predictor, model=other), find_slides([drawn_slide]), tmp_path, tmp_path / "c")


def test_cautions_and_percentiles_are_in_the_rows(
    predictor: Predictor, warm_cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    said = Judgement(("Its um/px is far outside.", "It has few tiles."), {"mpp": 99.0})
    given = replace(predictor, judge=lambda row, tiled, store: said)
    table, words = run(given, find_slides([drawn_slide]), tmp_path, warm_cache)
    assert table["cautions"].to_list() == ["Its um/px is far outside. It has few tiles."] * 2
    assert table["percentile_mpp"].to_list() == [99.0, None]
    assert "with cautions: 1" in words


def test_what_cannot_be_written_is_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    options = Options(
        tmp_path / "file" / "out.xlsx", heatmaps=tmp_path / "file", scratch=str(tmp_path / "no")
    )
    with pytest.raises(UserError) as caught:
        check_options(options, tmp_path / "file" / "cache")
    text = str(caught.value)
    for words in ("out.xlsx: the file must be a .csv or .parquet", "--heatmaps", "--cache",
                  "--scratch", "is not a writable folder"):  # fmt: skip
        assert words in text
    with pytest.raises(UserError, match=r"must be a \.csv$"):
        check_options(Options(tmp_path / "out.parquet", form="herohe"), tmp_path)
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        check_options(Options(tmp_path / "out.csv"), tmp_path)


def test_nothing_is_left_in_the_cache_but_products(predictor: Predictor, warm_cache: Path) -> None:
    assert not list(warm_cache.glob(".*"))


def test_pictures_are_for_people_and_for_qupath(
    predictor: Predictor, warm_cache: Path, drawn_slide: Path, tmp_path: Path
) -> None:
    """Attention of the tiles is that of the frozen model, in the order of the store."""
    folder = copies(drawn_slide, tmp_path / "slides", "good.svs")
    (folder / "text.svs").write_text("no slide")
    run(predictor, find_slides([folder]), tmp_path, warm_cache, heatmaps=tmp_path / "maps")
    assert (tmp_path / "maps/slides/good.png").read_bytes().startswith(b"\x89PNG")
    drawn = json.loads((tmp_path / "maps/slides/good.geojson").read_text())
    (store,) = (warm_cache / "features").rglob("*.zarr.zip")
    expected = predictor.model.predict(Bag("good", "", "", open_store(store), None)).attention
    found = [one["properties"]["measurements"]["attention"] for one in drawn["features"]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert drawn["her2"]["label"] is None
    (row,) = json.loads((tmp_path / "out.json").read_text())["pictures"]
    assert row["slide_id"] == "good"
    assert not list((tmp_path / "maps").rglob("text*"))


def test_a_slide_that_crashes_a_library_is_a_row_with_the_reason(
    predictor: Predictor,
    warm_cache: Path,
    drawn_slide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a crash `her2` begins again and refuses the slide (`her2.core.crashes`)."""
    folder = copies(drawn_slide, tmp_path / "slides", "bad.svs", "good.svs")
    monkeypatch.setitem(crashes._refused, b"bad", "crashes the library that reads it")
    table, _ = run(predictor, find_slides([folder]), tmp_path, warm_cache)
    slides = table.filter(level="slide").select("slide_id", "status", "reason")
    assert slides.rows() == [
        ("bad", "failed", "crashes the library that reads it"), ("good", "ok", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a.svs"], "predict slides with --bundle BUNDLE, or features"),
        (["a.svs", "--bundle", "b", "--features", "f"], "predict slides with --bundle BUNDLE, or"),
        (["r0f0", "--features", "f", "--heatmaps", "h", "--format", "herohe"],
         "with --features these options have no meaning\n  - --heatmaps\n  - --format"),
        (["a.svs", "--bundle", "b", "--priors", "p"],
         "with --bundle these options have no meaning\n  - --priors"),
    ],
)  # fmt: skip
def test_options_of_two_ways_to_predict_are_refused(
    tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = CliRunner().invoke(app, ["predict", *arguments, "--out", str(tmp_path / "out.csv")])
    assert isinstance(done.exception, UserError)
    assert words in str(done.exception)


def test_nothing_of_the_user_is_replaced(tmp_path: Path) -> None:
    manifest, record = tmp_path / "slides.csv", tmp_path / "out.json"
    with pytest.raises(UserError, match=r"slides.csv: would be replaced by a result"):
        check_options(Options(manifest), tmp_path, [manifest])
    with pytest.raises(UserError, match=r"a.json: would be replaced by a result"):
        check_options(Options(tmp_path / "a.csv"), tmp_path, [tmp_path / "a.json"])
    (tmp_path / "link.csv").symlink_to(manifest)
    for same in (tmp_path / "new" / ".." / "slides.csv", tmp_path / "link.csv"):
        with pytest.raises(UserError, match=r"slides.csv: would be replaced by a result"):
            check_options(Options(same), tmp_path, [manifest])
    for content in ("not JSON", "[]", '{"settings": 1}'):
        record.write_text(content)
        with pytest.raises(UserError, match=r"out.json: exists, and is no record"):
            check_options(Options(tmp_path / "out.csv"), tmp_path)
    record.write_text('{"her2": "1", "table": {}, "model": {}}')
    check_options(Options(tmp_path / "out.csv"), tmp_path)


@pytest.mark.parametrize("column", ["path", "annotation", "mask"])
@pytest.mark.parametrize("folder", ["slides", "strips"])
def test_no_picture_replaces_a_slide_or_its_regions(
    tmp_path: Path, write_csv: WriteManifest, folder: str, column: str
) -> None:
    """They are `slides/{slide_id}.png` and `.geojson`, which are also names of what is given."""
    (tmp_path / folder).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / folder)
    for place in (folder, "link"):
        row = {"slide_id": "a", "path": "elsewhere/a.svs", column: f"{place}/a.png"}
        manifest = write_csv([row])
        cohort = find_slides([manifest], root=tmp_path)
        with pytest.raises(UserError, match=rf"name another folder\n  - .*{folder}: has a.png"):
            check_pictures(Options(tmp_path / "out.csv", tmp_path), cohort)
        check_pictures(Options(tmp_path / "out.csv", tmp_path / "maps"), cohort)
        check_pictures(Options(tmp_path / "out.csv"), cohort)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_only_a_table_of_an_earlier_call_is_replaced(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"

    def earlier(columns: Sequence[str]) -> None:
        write_predictions(pl.DataFrame({name: ["x"] for name in columns}), out)

    for columns in ((*FIRST_COLUMNS, "predicted"), HEROHE_COLUMNS):
        earlier(columns)
        check_options(Options(out), tmp_path)
    earlier(("slide_id", "her2"))
    with pytest.raises(UserError, match="exists, and is no table of an earlier call"):
        check_options(Options(out), tmp_path)
    out.write_bytes(b"\x00\xff anything")
    with pytest.raises(UserError, match="exists, and is no table of an earlier call"):
        check_options(Options(out), tmp_path)
    out.write_bytes(b"")
    check_options(Options(out), tmp_path)


def test_what_may_be_replaced_is_what_is_written(predictor: Predictor) -> None:
    table = results_table(predictor, [])
    assert tuple(table.columns[: len(FIRST_COLUMNS)]) == FIRST_COLUMNS
    assert tuple(herohe_table(table, predictor.groupings[0]).columns) == HEROHE_COLUMNS


def test_an_output_without_a_name_is_refused(tmp_path: Path) -> None:
    for path in (Path(), Path("/"), tmp_path / ".."):
        with pytest.raises(UserError, match="is a folder; name a file in it"):
            check_options(Options(path), tmp_path)


@pytest.mark.parametrize("step", ["check_rooms", "predict_bag"])
def test_a_slide_that_the_model_cannot_predict_stops_no_other(
    predictor: Predictor,
    warm_cache: Path,
    drawn_slide: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """One is too large for the memory, or its probabilities are not finite."""
    real = getattr(predict, step)

    def refuse(model: FrozenModel, given: Bag | list[Bag]) -> object:
        bag = given if isinstance(given, Bag) else given[0]
        if bag.slide_id == "bad":
            raise UserError("bad: takes more memory than there is\n  - bad: 9 GB")
        return real(model, given)

    monkeypatch.setattr(predict, step, refuse)
    folder = copies(drawn_slide, tmp_path / "slides", "bad.svs", "good.svs")
    table, _ = run(predictor, find_slides([folder]), tmp_path, warm_cache)
    assert table.filter(level="slide").select("slide_id", "status", "reason").rows() == [
        ("bad", "failed", "bad: takes more memory than there is"), ("good", "ok", None),
    ]  # fmt: skip
