"""`her2 cohort check` finds before a run what the run would reject, a test for each kind."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner, Result

from her2.cli.main import app
from her2.core.errors import UserError

Change = Callable[[Path, dict[str, Any], list[dict[str, object]]], None]


@pytest.fixture
def check(
    tmp_path: Path,
    config_values: dict[str, Any],
    write_csv: Any,
    drawn_slide: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Result]:
    """Check 12 sound slides of three patients per class, changed by a function, and a config."""
    monkeypatch.chdir(tmp_path)
    whole = drawn_slide.read_bytes()

    def rows_of(prefix: str) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for n in range(12):
            (tmp_path / f"{prefix}{n}.svs").write_bytes(whole + b" " * (n + 20 * (prefix != "s")))
            rows.append(
                {
                    **{"slide_id": f"{prefix}{n}", "path": f"{prefix}{n}.svs"},
                    **{"patient_id": f"p{prefix}{n}", "her2": ("0", "1+", "2+", "3+")[n % 4]},
                    **dict.fromkeys(("mpp", "annotation", "mask"), ""),
                }
            )
        return rows

    def run(change: Change | None = None, *options: str, external: bool = False) -> Result:
        values, rows = config_values | {"folds": {"number": 3}}, rows_of("s")
        values["encoders"]["tiny"]["size"] = 64
        if external:
            values["validation"] = {"yale": {"slides": "yale.csv"}}
            others = rows_of("y")[:3]
        else:
            others = []
        if change:
            change(tmp_path, values, others or rows)
        if others:
            write_csv(others, "yale.csv")
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        write_csv(rows)
        return CliRunner().invoke(
            app, ["cohort", "check", "slides.csv", "--config", "mine.yaml", *options]
        )

    return run


def cells(number: int, **changed: object) -> Change:
    return lambda folder, values, rows: rows[number].update(changed)


def too_coarse(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
    rows[2]["mpp"] = "0.9"


def too_small(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
    values["encoders"]["tiny"]["size"] = 512
    values["tiling"] = {"min_tiles": 2}


def too_large(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
    rows[2]["mpp"] = "20"
    values["tiling"] = {"max_enlargement": 1000, "thumbnail_mpp": 0.05}
    values["encoders"]["tiny"]["mpp"] = 2


def empty_mask(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
    Image.new("L", (50, 50), 0).save(folder / "m.png")
    rows[2]["mask"] = "m.png"


def annotated(x: int, name: str = "Tumour") -> Change:
    def change(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
        ring = [[x, 10], [x + 90, 10], [x + 90, 90], [x, 90], [x, 10]]
        feature = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": name}},
        }
        (folder / "r.geojson").write_text(json.dumps([feature]))
        rows[2]["annotation"] = "r.geojson"
        values["tiling"] = {"annotation_classes": ["Tumour"]}

    return change


def no_folder(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
    values["cohort"]["masks"] = "truths"


def no_masks(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
    values["cohort"]["tissue_masks"] = "tissue"
    (folder / "tissue").mkdir(exist_ok=True)


def no_patches(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
    values["patches"] = {"bci": {"format": "folders", "path": "absent"}}
    values["encoders"]["own"] = {
        **{"source": "pretrain", "data": "bci", "init": "random", "model": "timm/resnet18"},
        **{"mpp": 0.5, "size": 64, "domain": "ihc"},
    }


def no_weights(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
    values["encoders"]["own"] = {
        **{"source": "checkpoint", "model": "timm/resnet18", "checkpoint": "w.safetensors"},
        **{"mpp": 0.5, "size": 64, "domain": "ihc"},
    }


def results_in_a_file(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
    (folder / "file").touch()
    values["results"] = "file/results"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (too_coarse, "slide 's2'.* its 0.9 um/px is 1.80 times coarser than the target 0.5"),
        (too_small, r"slide 's2'.* hold 1 tile\(s\) of 256 um, fewer than tiling.min_tiles 2"),
        (too_large, "slide 's2'.* too large to be searched for tissue; is the um/px right"),
        (empty_mask, "slide 's2'.* m.png has no px that is not zero, so no tissue would be found"),
        (annotated(9000), "slide 's2'.* r.geojson lies outside of its 768 x 768 px"),
        (annotated(100, "Stroma"), "slide 's2'.* has no region of class Tumour"),
        (no_folder, "cohort.masks: 'truths' does not exist"),
        (no_masks, "slide 's11'.* tissue mask s11.png does not exist"),
        (no_patches, "patches.bci.path: 'absent' does not exist"),
        (no_weights, "encoders.own.checkpoint: 'w.safetensors' does not exist"),
        (results_in_a_file, "results: 'file/results' "),
    ],
)
def test_what_a_run_rejects_or_leaves_out_is_found_before_it(check, change, words):
    for options in ((), ("--open",)):
        done = check(change, *options)
        assert isinstance(done.exception, UserError), done.output
        assert re.search(words, str(done.exception)), str(done.exception)


def of_development(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
    rows[2]["patient_id"] = "ps1"


def same_content(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
    shutil.copy(folder / "s1.svs", folder / "y2.svs")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (cells(2, path="gone.svs"), "slide 'y2' of validation.yale: .*gone.svs"),
        (cells(2, her2="high"), "column 'her2': 'high' is in no task's classes"),
        (too_coarse, "slide 'y2' of validation.yale.*coarser than the target"),
        (of_development, "ps1"),
        (same_content, "slides s1, y2 of validation.yale are the same file; an external cohort"),
    ],
)
def test_external_cohorts_of_the_config_are_checked_with_it(check, change, words):
    done = check(change, external=True)
    assert isinstance(done.exception, UserError), done.output
    assert re.search(words, str(done.exception)), str(done.exception)


def test_sound_cohorts_have_no_problems(check):
    done = check(annotated(100), "--open", external=True)
    assert done.exit_code == 0, done.exception
    assert "12 slides of 12 patients, no problems found" in done.output
    assert "validation.yale: 3 slides, no problems found" in done.output


def test_all_problems_are_told_at_once(check):
    def change(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
        no_folder(folder, values, rows)
        too_coarse(folder, values, rows)
        rows[3]["path"] = "gone.svs"
        values["folds"] = {"number": 4}

    said = str(check(change, "--open").exception)
    for words in ("cohort.masks", "slide 's2'", "slide 's3'", "folds.number 4"):
        assert words in said


def test_a_wrong_label_does_not_hide_what_is_wrong_with_the_slides(check):
    def change(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
        too_coarse(folder, values, rows)
        no_folder(folder, values, rows)
        rows[5]["her2"] = "high"

    said = str(check(change, "--open").exception)
    for words in ("row 7, column 'her2': 'high'", "slide 's2'", "cohort.masks"):
        assert words in said
    assert "folds" not in said

    said = str(check(cells(5, slide_id="a b", her2="high"), "--open").exception)
    assert "'a b' is not a legal id" in said
    assert "'high' is in no task's classes" in said


def test_opening_tells_of_every_slide_what_its_file_says(check):
    def change(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
        rows[2]["mpp"] = "0.9"
        rows[3]["path"] = "gone.svs"
        Image.new("RGB", (800, 700), (230, 180, 200)).save(folder / "flat.jpg")
        rows[4] |= {"path": "flat.jpg", "mpp": "0.5"}

    lines = check(change, "--open").output.splitlines()
    told = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line.startswith("s")}
    assert told["s1"] == "OpenSlide 768 x 768 3 0.5 (metadata) 0% used"
    assert told["s2"] == "OpenSlide 768 x 768 3 0.9 (manifest) - left out"
    assert told["s3"] == "- - - - - cannot be read"
    assert told["s4"] == "Pillow 800 x 700 1 0.5 (manifest) - used"


def test_opening_does_not_decode_flat_images_and_the_plain_check_does(check):
    def change(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (700, 800, 3), np.uint8)
        Image.fromarray(noise).save(folder / "flat.jpg")
        whole = (folder / "flat.jpg").read_bytes()
        (folder / "flat.jpg").write_bytes(whole[: len(whole) // 2])
        rows[4] |= {"path": "flat.jpg", "mpp": "0.5"}

    assert check(change, "--open").exit_code == 0
    assert "truncated" in str(check(change).exception)


def test_a_ground_truth_that_cannot_be_compared_is_a_caution(check):
    def change(folder: Path, values: dict[str, Any], rows: list[dict[str, object]]) -> None:
        (folder / "truths").mkdir(exist_ok=True)
        values["cohort"] |= {"masks": "truths", "mask_classes": ["DCIS"]}
        annotated(100)(folder, values, rows)
        rows[2]["annotation"] = ""
        shutil.move(folder / "r.geojson", folder / "truths/s2.geojson")
        Image.new("L", (50, 90), 255).save(folder / "truths/s3.png")

    done = check(change)
    assert done.exit_code == 0, done.exception
    words = "its attention will not be compared with its ground truth: "
    assert f"slide 's2': {words}its annotation s2.geojson has no region of class DCIS" in (
        done.output
    )
    assert f"slide 's3': {words}its ground truth s3.png (50 x 90 px) has another aspect" in (
        done.output
    )
