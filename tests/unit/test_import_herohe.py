"""HEROHE as it was published: MIRAX slides, two ground truths, and what goes wrong in the wild."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from her2.importing.run import import_cohort
from her2.importing.sources.herohe import SOURCE, _part_of
from tests.mirax import write_mirax
from tests.unit.sheet_makers import write_xlsx
from tests.unit.test_cli import command, failing

HEADER = (
    "Case", "Immunohistochemistry (0-3)", "ISH Group",
    "Final Result (Ground truth) (Negative/Positive)", "Age", "Laboratory",
)  # fmt: skip
TRAIN = range(1, 21)
TEST = range(1, 9)  # numbers of the training set once more
TRUTHS = ("Training (ground truth).csv", "Test (ground truth).xlsx")


def truth_of(case: int) -> list[Any]:
    score = case % 4
    positive = score == 3 or (score == 2 and case % 8 == 2)
    return [case, score, 5 - 4 * positive, "Positive" if positive else "Negative", 40 + case,
            f"Lab {case % 2}"]  # fmt: skip


def write_csv(path: Path, rows: list[list[Any]], header: tuple[str, ...] = HEADER) -> None:
    lines = [";".join(map(str, row)) for row in (header, *rows)]
    path.write_text("\r\n".join(lines) + "\r\n", encoding="cp1252")


def write_case(folder: Path, case: int, shade: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_mirax(
        folder / f"{case}.mrxs", np.full((1024, 1024, 3), shade, np.uint8), mpp=0.2425
    )


@pytest.fixture
def herohe(tmp_path, monkeypatch) -> Path:
    """The folder as it is downloaded; the working folder is the one above."""
    monkeypatch.chdir(tmp_path)
    for case in TRAIN:
        write_case(Path("HEROHE/Training"), case, case)
    for case in TEST:
        write_case(Path("HEROHE/Test"), case, 100 + case)
    write_csv(Path("HEROHE", TRUTHS[0]), [truth_of(case) for case in TRAIN])
    write_xlsx(Path("HEROHE", TRUTHS[1]), {"Sheet1": [HEADER, *map(truth_of, TEST)]})
    return Path("HEROHE")


def rows_of(path: Path = Path("herohe/slides.csv")) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("herohe/import.json").read_text())
    return found


def left_out() -> dict[str, str]:
    return {one["name"]: one["reason"] for one in record()["left_out"]}


def test_the_published_form_becomes_a_manifest_that_the_check_accepts(herohe):
    result = command("import", "herohe", "HEROHE")
    assert result.exit_code == 0, result.output
    score = {0: "0", 1: "1+", 2: "2+", 3: "3+"}
    expected = [
        {
            "slide_id": f"{part}-{case}",
            "path": f"{folder}/{case}.mrxs",
            "patient_id": f"{part}-{case}",
            "her2": score[truth[1]],
            "her2_status": truth[3].lower(),
            "site": truth[5],
            "split": part,
            "ish_group": str(truth[2]),
            "age": str(truth[4]),
        }
        for part, folder, cases in (("train", "Training", TRAIN), ("test", "Test", TEST))
        for case in cases
        for truth in [truth_of(case)]
    ]
    assert rows_of() == expected
    assert "herohe: 28 slides of 28 patients" in result.output
    assert "um/px        0.2425 (metadata): 28" in result.output
    assert "split        train: 20, test: 8" in result.output
    assert [one["path"] for one in record()["inputs"]] == sorted(TRUTHS)
    checked = command("cohort", "check", "herohe/slides.csv", "--config", "herohe/herohe.yaml")
    assert "28 slides of 28 patients, no problems found" in checked.output


def test_the_sheet_of_the_challenge_has_the_status_alone(herohe):
    for name in TRUTHS:
        (herohe / name).unlink()
    shutil.rmtree(herohe / "Test")
    rows = [(case, truth_of(case)[3]) for case in TRAIN]
    write_xlsx(herohe / "HEROHE_HER2_STATUS.xlsx", {"A": [("Case ID", "HER2 status"), *rows]})
    result = command("import", "herohe", "HEROHE")
    assert result.exit_code == 0, result.output
    assert "task 'score' is a comment in the config" in result.output
    assert [row["her2_status"] for row in rows_of()] == [truth_of(n)[3].lower() for n in TRAIN]
    # With one part alone, its slides are cross-validated.
    assert "split" not in rows_of()[0]
    checked = command("cohort", "check", "herohe/slides.csv", "--config", "herohe/herohe.yaml")
    assert "20 slides of 20 patients, no problems found" in checked.output


def test_folders_may_be_links_and_a_workbook_may_be_open_and_have_other_sheets(herohe):
    (herohe / "Training").rename("elsewhere")
    (herohe / "Training").symlink_to(Path("elsewhere").absolute())
    (herohe / "Training/again").symlink_to(Path("elsewhere").absolute())
    (herohe / f"~${TRUTHS[1]}").write_bytes(b"somebody")
    notes = [("Note",), ("sent by e-mail",)]
    rows = [("Cases of the test set",), HEADER, *map(truth_of, TEST)]
    write_xlsx(herohe / TRUTHS[1], {"Notes": notes, "Truth": rows})
    assert command("import", "herohe", "HEROHE").exit_code == 0
    assert len(rows_of()) == 28
    assert rows_of()[-1]["her2_status"] == truth_of(8)[3].lower()


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("Training", "train"), ("HEROHE_TrainSet/mrxs", "train"), ("train/test-scans/..", "test"),
        ("Test", "test"), ("testing data", "test"), ("HEROHE_test_dataset", "test"),
        ("latest", None), ("contest", None), ("trainee", None), ("train-test", None), ("", None),
    ],
)  # fmt: skip
def test_the_part_is_what_the_last_telling_name_tells(path, part):
    assert _part_of(Path(path)) == part


def test_case_325_of_the_training_set_is_left_out_and_said(herohe):
    write_case(herohe / "Training", 325, 200)
    write_case(herohe / "Test", 325, 201)
    result = command("import", "herohe", "HEROHE")
    assert "Training/325.mrxs: shows no tumour" in result.output
    ids = {row["slide_id"] for row in rows_of()}
    assert "train-325" not in ids
    assert "test-325" in ids


def test_broken_slides_are_named_with_what_they_lack(herohe):
    training = herohe / "Training"
    shutil.rmtree(training / "1")
    (training / "2.mrxs").unlink()
    (training / "3.mrxs").rename(training / "3/3.mrxs")
    (training / "4.mrxs").unlink()
    for path in [*(training / "4").rglob("*.dat")]:
        path.unlink()
    for path in [*(training / "5").rglob("*.dat")]:
        path.unlink()
    (training / "30.mrxs.crdownload").write_bytes(b"half")
    result = command("import", "herohe", "HEROHE")
    assert len(rows_of()) == 23
    reasons = left_out()
    assert "lacks the folder 1 with its px" in reasons["Training/1.mrxs"]
    assert "lacks 2.mrxs beside it" in reasons["Training/2"]
    assert "lies in its folder; move it out" in reasons["Training/3/3.mrxs"]
    assert "lacks 4.mrxs beside it, and holds Slidedat.ini without the px" in reasons["Training/4"]
    assert "missing in its folder" in reasons["train-5 (HEROHE/Training/5.mrxs)"]
    assert "has not finished" in reasons["Training/30.mrxs.crdownload"]
    assert "6 left out" in result.output


def test_the_advice_for_a_lost_file_opens_the_slide(herohe):
    """OpenSlide reads nothing of an .mrxs, so that another case's does."""
    (herohe / "Training/2.mrxs").unlink()
    shutil.copy(herohe / "Training/6.mrxs", herohe / "Training/2.mrxs")
    assert command("import", "herohe", "HEROHE").exit_code == 0
    assert "train-2" in {row["slide_id"] for row in rows_of()}


def test_a_score_that_speaks_against_the_final_result_is_listed_and_both_stay(herohe):
    rows = [truth_of(case) for case in TRAIN]
    rows[2][3] = "Negative"  # case 3, 3+
    rows[4][3] = "Positive"  # case 5, 1+
    write_csv(herohe / TRUTHS[0], rows)
    result = command("import", "herohe", "HEROHE")
    assert record()["conflicts"] == [
        "train-3: immunohistochemistry 3+ yet the final result is negative (ISH group 1); both "
        "were kept",
        "train-5: immunohistochemistry 1+ yet the final result is positive (ISH group 5); both "
        "were kept",
    ]
    assert "2 conflicts" in result.output
    assert (rows_of()[2]["her2"], rows_of()[2]["her2_status"]) == ("3+", "negative")


def test_sheets_that_contradict_each_other_leave_the_label_empty(herohe):
    rows = [(case, truth_of(case)[3]) for case in TRAIN]
    rows[0] = (1, "Positive")
    write_xlsx(herohe / "HEROHE_HER2_STATUS.xlsx", {"A": [("Case", "HER2"), *rows]})
    command("import", "herohe", "HEROHE")
    assert rows_of()[0]["her2_status"] == ""
    assert (
        "train-1: her2_status is positive and negative; it was left empty" in record()["conflicts"]
    )


def test_cells_that_mean_nothing_known_stay_empty_and_are_said(herohe):
    rows = [truth_of(case) for case in TRAIN]
    rows[0][1], rows[1][3], rows[2][5] = "1+ to 2+", "equivocal", "n/a"
    write_csv(herohe / TRUTHS[0], rows)
    command("import", "herohe", "HEROHE")
    first, second, third = rows_of()[:3]
    assert (first["her2"], second["her2_status"], third["site"]) == ("", "", "")
    said = " ".join(record()["conflicts"])
    assert "'1+ to 2+' of case 1" in said
    assert "'equivocal' of case 2" in said
    assert "n/a" not in said


def test_cases_without_a_slide_and_slides_without_a_case_are_counted(herohe):
    shutil.rmtree(herohe / "Training/1")
    (herohe / "Training/1.mrxs").unlink()
    write_case(herohe / "Training", 77, 201)
    write_case(herohe / "Training", 78, 202).rename(herohe / "Training/overview.mrxs")
    (herohe / "Training/78").rename(herohe / "Training/overview")
    command("import", "herohe", "HEROHE")
    assert left_out()["1 cases with a label"] == "have no slide here: train-1"
    assert "is not the number of a case" in left_out()["Training/overview.mrxs"]
    assert any(
        "1 slides have no label" in one and "train-77" in one for one in record()["conflicts"]
    )


def test_the_part_is_asked_for_where_no_name_tells_it(herohe, monkeypatch, capsys):
    shutil.rmtree(herohe / "Test")
    (herohe / "Training").rename(herohe / "slides")
    said = failing(monkeypatch, capsys, "import", "herohe", "HEROHE")
    assert "20 slides, such as slides/1.mrxs" in said
    assert "--part train or --part test" in said
    assert command("import", "herohe", "HEROHE", "--part", "train").exit_code == 0
    assert len(rows_of()) == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: [(folder / name).unlink() for name in TRUTHS], "holds no file with labels"),
        (lambda folder: write_csv(folder / TRUTHS[0], [[1, 2]], ("Case", "Age")),
         "needs a column `Case` and one of `Immunohistochemistry`"),
        (lambda folder: (folder / TRUTHS[0]).rename(folder / "ground truth.csv"),
         "its name does not tell whether"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_read_stop_the_import(herohe, monkeypatch, capsys, change, said):
    change(herohe)
    assert said in failing(monkeypatch, capsys, "import", "herohe", "HEROHE")
    assert not Path("herohe").exists()


def test_the_challenge_takes_both_parts_as_manifests_of_their_own(herohe):
    from her2.cohort.reading import configured_cohort
    from her2.config import load_config
    from her2.importing.preset import read_preset, with_values

    for part, folder, name in (("train", "Training", TRUTHS[0]), ("test", "Test", TRUTHS[1])):
        options = {"part": part, "truth": [str(herohe / name)]}
        import_cohort(SOURCE, herohe / folder, Path(f"herohe-{part}"), options)
    text = with_values(
        read_preset("herohe-challenge.yaml"),
        {"cohort.root": herohe / "Training", "validation.test.root": herohe / "Test"},
    )
    Path("mine.yaml").write_text(text)
    config = load_config(Path("mine.yaml"))
    checked = command("cohort", "check", config.cohort.slides, "--config", "mine.yaml")
    assert "20 slides of 20 patients, no problems found" in checked.output
    external = config.validation["test"]
    checked = command(
        "cohort", "check", external.slides, "--config", "mine.yaml", "--validation", "test"
    )
    assert "8 slides of 8 patients" in checked.output, checked.output
    assert checked.exit_code == 0
    assert configured_cohort(config, config.cohort.slides, config.cohort.root).rows
