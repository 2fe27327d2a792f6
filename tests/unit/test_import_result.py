"""What an import writes runs, says what it is, and takes nothing of anybody's."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from her2.cli.imports import as_import
from her2.cohort.reading import configured_cohort
from her2.config import load_config
from her2.core.errors import UserError
from her2.core.files import file_digest
from her2.importing import result
from her2.importing.found import Found, ImportedSlide, LeftOut, Source
from her2.importing.run import Imported, import_cohort
from tests.unit.test_cli import command

SCORES = ("0", "1+", "2+", "3+")


@pytest.fixture
def folder(tmp_path, monkeypatch, write_slide) -> Path:
    """A folder of 20 slides of 0.5 um/px and the preset's patches, below the working folder."""
    monkeypatch.chdir(tmp_path)
    for patches in ("pcam", "bci/IHC"):
        (tmp_path / "data" / patches).mkdir(parents=True)
    for number in range(20):
        image = np.full((400, 400, 3), 10 * number, np.uint8)
        write_slide(tmp_path / "data" / f"{number:02}.tif", image, mpp=(0.5, 0.5))
    return Path("data")


def slides_of(folder: Path, **changed: Any) -> list[ImportedSlide]:
    return [
        ImportedSlide(
            slide_id=f"s-{path.stem}",
            path=path,
            patient_id=f"p-{path.stem}",
            labels={"her2": SCORES[number % 4]},
            **changed,
        )
        for number, path in enumerate(sorted(folder.glob("*.*")))
    ]


def source_of(found: Found | Callable[..., Found], preset: str = "paper.yaml") -> Source:
    read = (lambda folder, *, out, option=None: found) if isinstance(found, Found) else found
    return Source(name="mine", title="Mine", preset=preset, read=read)


def run(
    found: Found | Callable[..., Found],
    *,
    force: bool = False,
    external: bool = False,
    **options: Any,
) -> Imported:
    return import_cohort(
        source_of(found), Path("data"), Path("mine"), options, force=force, external=external
    )


def rows_of(path: Path = Path("mine/slides.csv")) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def record() -> dict[str, Any]:
    return json.loads(Path("mine/import.json").read_text())


# What is written


def test_what_is_written_is_a_manifest_and_config_that_pass_the_check(folder):
    done = run(Found(slides=tuple(slides_of(folder))))
    assert done.mends == ()
    config = load_config(Path("mine/mine.yaml"))
    assert (config.cohort.slides, config.cohort.root) == (Path("mine/slides.csv"), folder)
    assert config.results == Path("mine/results")
    cohort = configured_cohort(config, config.cohort.slides, config.cohort.root)
    assert [cohort.file(row).name for row in cohort.rows] == [f"{n:02}.tif" for n in range(20)]
    result = command("cohort", "check", "mine/slides.csv", "--config", "mine/mine.yaml")
    assert "20 slides of 20 patients, no problems found" in result.output


def test_the_same_import_writes_the_same_bytes(folder):
    found = Found(slides=tuple(slides_of(folder)), sheets={"ids.csv": "a\n"})
    run(found)
    before = {path.name: path.read_bytes() for path in Path("mine").iterdir()}
    assert sorted(before) == ["ids.csv", "import.json", "mine.yaml", "slides.csv"]
    run(found)
    assert {path.name: path.read_bytes() for path in Path("mine").iterdir()} == before


def test_columns_are_those_that_have_values_and_all_labels(folder):
    slides = slides_of(folder, site="north", mpp=0.25, further={"age": "50"})
    slides[0] = replace(slides[0], labels={"her2": "0", "fish": ""}, further={})
    run(Found(slides=tuple(slides)))
    row = rows_of()[0]
    assert list(row) == ["slide_id", "path", "patient_id", "her2", "fish", "site", "mpp", "age"]
    assert (row["path"], row["mpp"], row["age"]) == ("00.tif", "0.25", "")


def test_the_record_has_inputs_options_rules_and_reasons_without_paths_of_the_machine(
    folder, tmp_path
):
    (folder.parent / "labels.csv").write_text("a,b\n")
    found = Found(
        slides=tuple(slides_of(folder)[:-1]),
        rules=("3+ is positive",),
        conflicts=("p-1: 3+ yet negative",),
        left_out=(LeftOut("19.tif", "is a frozen section"),),
        inputs=(Path("labels.csv"), folder / "00.tif"),
    )
    run(lambda folder, *, out, labels, limit: found, labels=Path("labels.csv"), limit=None)
    kept = record()
    assert kept["options"] == {"labels": "labels.csv", "limit": None}
    assert kept["inputs"][0] == {
        "path": "labels.csv", "bytes": 4, "sha256": file_digest(Path("labels.csv")),
    }  # fmt: skip
    assert kept["inputs"][1]["path"] == "00.tif"
    assert kept["rules"] == ["3+ is positive"]
    assert kept["conflicts"] == ["p-1: 3+ yet negative"]
    assert kept["left_out"] == [{"name": "19.tif", "reason": "is a frozen section"}]
    assert (kept["n_slides"], kept["n_patients"]) == (19, 19)
    assert kept["labels"] == {"her2": {"0": 5, "1+": 5, "2+": 5, "3+": 4}}
    assert kept["slides"]["s-00"]["size_px"] == [400, 400]
    assert kept["slides"]["s-00"]["mpp"] == pytest.approx([0.5, 0.5])
    assert set(kept["files"]) == {"slides.csv", "mine.yaml"}
    for path in Path("mine").iterdir():
        assert str(tmp_path) not in path.read_text()


def test_the_table_has_scales_sites_labels_conflicts_and_what_is_left_out(folder):
    slides = slides_of(folder, site="north")
    slides[1] = replace(slides[1], site="", mpp=0.25)
    done = run(
        Found(
            slides=tuple(slides),
            conflicts=("p: two results",),
            left_out=(LeftOut("x.svs", "has no label"),),
        )
    )
    shown = "\n".join(done.lines)
    assert "mine: 20 slides of 20 patients" in shown
    assert "um/px   0.5 (metadata): 19, 0.25 (manifest): 1" in shown
    assert "site    north: 19, no value: 1" in shown
    assert "her2    0: 5, 1+: 5, 2+: 5, 3+: 5" in shown
    assert "1 conflict:\n  - p: two results" in shown
    assert "1 left out:\n  - x.svs: has no label" in shown
    assert "written: mine/slides.csv, mine/mine.yaml, mine/import.json" in shown


def test_slides_that_the_config_would_leave_out_are_named_and_stay(folder):
    slides = slides_of(folder)
    slides[0] = replace(slides[0], mpp=2.0)  # the preset's tiles have 1 um/px
    Image.new("RGB", (60, 40)).save(folder / "flat.png")
    slides.append(ImportedSlide(slide_id="f", path=folder / "flat.png", patient_id="f"))
    done = run(Found(slides=tuple(slides)))
    shown = "\n".join(done.lines)
    assert "2 slides that a run with this config leaves out" in shown
    assert "s-00: its 2 um/px is 2.00 times coarser than the target 1 um/px" in shown
    assert "2 cautions:" in shown
    assert "by more than 5%: s-00 (2 um/px in the manifest, 0.5 in its file)" in shown
    assert "f: no um/px in its metadata; set it in the manifest's column 'mpp'" in shown
    assert len(rows_of()) == 21
    assert record()["slides"]["f"]["mpp"] is None


def test_a_slide_that_cannot_be_read_is_left_out_with_the_reason_and_stops_no_other(folder):
    whole = (folder / "00.tif").read_bytes()
    (folder / "00.tif").write_bytes(whole[:200])
    (folder / "01.tif").write_bytes(b"")
    slides = slides_of(folder)
    done = run(Found(slides=tuple(slides)))
    assert len(rows_of()) == 18
    shown = "\n".join(done.lines)
    assert "s-00 (data/00.tif): not a slide that OpenSlide or Pillow can open" in shown
    assert "s-01 (data/01.tif): the file is empty (0 bytes); copy it again" in shown


def test_copies_of_one_slide_are_one_slide_and_of_two_patients_none(folder):
    slides = slides_of(folder)
    for number, copied in ((0, "copy"), (1, "other")):
        shutil.copy(folder / f"{number:02}.tif", folder / f"{copied}.tif")
    same = replace(slides[0], slide_id="copy", path=folder / "copy.tif")
    other = replace(slides[1], slide_id="o", path=folder / "other.tif", patient_id="o")
    done = run(Found(slides=(*slides, same, other)))
    ids = [row["slide_id"] for row in rows_of()]
    assert len(ids) == 19
    assert {"copy", "s-00", "s-01", "o"} & set(ids) == {"s-00"}
    shown = "\n".join(done.lines)
    assert "copy (data/copy.tif): is a copy of s-00" in shown
    assert "slides s-01 (patient p-01), o (patient o) are one file" in shown


# Folders


def test_paths_start_at_the_folder_of_converted_slides_where_all_are_there(folder):
    def read(folder: Path, *, out: Path) -> Found:
        shutil.copytree(folder, out / "converted")
        return Found(slides=tuple(slides_of(out / "converted")))

    run(read)
    assert load_config(Path("mine/mine.yaml")).cohort.root == Path("mine")
    assert rows_of()[0]["path"] == "converted/00.tif"


def test_a_file_outside_the_folder_is_named_in_full(folder, tmp_path):
    shutil.move(folder / "00.tif", "00.tif")
    slides = slides_of(folder)
    moved = ImportedSlide(slide_id="m", path=Path("00.tif"), patient_id="m", labels={"her2": "0"})
    run(Found(slides=(moved, *slides)))
    assert [row["path"] for row in rows_of()[:2]] == [str(tmp_path / "00.tif"), "01.tif"]


def test_the_root_may_be_another_folder_than_what_was_imported(folder):
    Path("cases.csv").write_text("x")
    found = Found(slides=tuple(slides_of(folder)), root=folder)
    import_cohort(source_of(found), Path("cases.csv"), Path("mine"), {})
    assert load_config(Path("mine/mine.yaml")).cohort.root == folder


def test_dollars_and_tildes_in_names_stay_what_they_are(folder):
    odd = folder.rename("~da$ta")
    for patches in ("pcam", "bci/IHC"):
        (folder / patches).mkdir(parents=True)
    slides = slides_of(odd)
    slides[0] = replace(slides[0], path=slides[0].path.rename(odd / "~$00.tif"))
    done = import_cohort(source_of(Found(slides=tuple(slides))), odd, Path("~o$ut"), {})
    assert done.mends == ()
    config = load_config(Path("~o$ut/mine.yaml"))
    assert config.cohort.root == Path("./~da$ta")
    cohort = configured_cohort(config, Path("~o$ut/slides.csv"), config.cohort.root)
    assert all(cohort.file(row).is_file() for row in cohort.rows)


ODD = (" a.tif", "\u00a0a.tif", "a .tif", "~a.tif", "$HOME.tif", "=1+1.tif", "'a\".tif", "a,;b.tif",
       "#a.tif", "-a.tif", " /a.tif", "a /b.tif", "日本.tif", "NA.tif")  # fmt: skip


def test_a_manifest_leads_to_every_file_whatever_its_name(folder):
    slides = slides_of(folder)
    for number, name in enumerate(ODD):
        (folder / name).parent.mkdir(exist_ok=True)
        slides[number] = replace(slides[number], path=slides[number].path.rename(folder / name))
    run(Found(slides=tuple(slides)))
    cohort = configured_cohort(load_config(Path("mine/mine.yaml")), Path("mine/slides.csv"), folder)
    assert [cohort.file(row) for row in cohort.rows] == [one.path for one in slides]


@pytest.mark.parametrize("out", ["data", "data/mine", "link/mine"])
def test_nothing_is_written_into_the_data(out, folder):
    Path("link").symlink_to("data")
    with pytest.raises(UserError, match="whose files are only read"):
        import_cohort(source_of(Found(slides=())), folder, Path(out), {})


def test_an_absent_folder_and_a_closed_one_are_refused_before_anything_is_read(folder):
    with pytest.raises(UserError, match="none: does not exist"):
        import_cohort(source_of(Found(slides=())), Path("none"), Path("mine"), {})
    Path("mine").write_text("a file")
    with pytest.raises(UserError, match="--out mine: cannot be written: mine is not a folder"):
        import_cohort(source_of(Found(slides=())), folder, Path("mine"), {})


# Files of others


def test_files_of_others_are_never_written_over_without_force(folder):
    Path("mine").mkdir()
    Path("mine/slides.csv").write_text("my own\n")
    found = Found(slides=tuple(slides_of(folder)))
    with pytest.raises(UserError, match="slides.csv: was not written by an import"):
        run(found)
    assert [path.name for path in Path("mine").iterdir()] == ["slides.csv"]
    run(found, force=True)
    assert len(rows_of()) == 20


@pytest.mark.parametrize("name", ["slides.csv", "mine.yaml", "ids.csv"])
def test_a_file_that_was_changed_since_is_not_written_over(name, folder):
    run(Found(slides=tuple(slides_of(folder)), sheets={"ids.csv": "a\n"}))
    with Path("mine", name).open("a") as stream:
        stream.write("# mine\n")
    changed = Found(slides=tuple(slides_of(folder)[1:]), sheets={"ids.csv": "b\n"})
    with pytest.raises(UserError, match=f"{name}: was changed since it was written by an import"):
        run(changed)
    assert Path("mine", name).read_text().endswith("# mine\n")
    assert len(rows_of()) == 20 + (name == "slides.csv")


def test_an_unchanged_file_of_an_earlier_import_is_replaced(folder):
    run(Found(slides=tuple(slides_of(folder))))
    run(Found(slides=tuple(slides_of(folder)[:-1])))
    assert len(rows_of()) == 19


def test_an_import_that_was_stopped_while_it_wrote_can_be_repeated(folder, monkeypatch):
    run(Found(slides=tuple(slides_of(folder))))

    def stopped(path: Path, text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(result, "write_text", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(Found(slides=tuple(slides_of(folder)[:-1])))
    run(Found(slides=tuple(slides_of(folder)[:-2])))
    assert len(rows_of()) == 18


def test_a_record_that_is_not_ours_is_a_file_of_others(folder):
    Path("mine").mkdir()
    Path("mine/import.json").write_text("{}")
    with pytest.raises(UserError, match="import.json: was not written by `her2 import`"):
        run(Found(slides=tuple(slides_of(folder))))


# A person is asked


def test_a_source_that_waits_for_a_person_writes_its_sheets_alone(folder):
    asked = Found(
        slides=tuple(slides_of(folder)),
        sheets={"labels.csv": "value,her2\nScore 1,\n"},
        stops="Fill in labels.csv.",
    )
    with pytest.raises(UserError, match="Fill in labels.csv.\nWritten: mine/labels.csv"):
        run(asked)
    assert {path.name for path in Path("mine").iterdir()} == {"labels.csv", "import.json"}
    assert record()["stops"] == "Fill in labels.csv."
    Path("mine/labels.csv").write_text("value,her2\nScore 1,1+\n")
    with pytest.raises(UserError, match="labels.csv: was changed"):
        run(asked)
    extended = replace(asked, inputs=(Path("mine/labels.csv"),), sheets={"labels.csv": "more\n"})
    with pytest.raises(UserError, match="Fill in"):  # its text is known to the source
        run(extended)
    run(replace(asked, stops="", sheets={}))
    assert len(rows_of()) == 20
    assert "stops" not in record()


# What cannot be


def test_all_that_no_manifest_can_hold_is_named_at_once(folder):
    good = slides_of(folder)
    slides = [
        replace(good[0], slide_id="s 0"),
        replace(good[1], patient_id=""),
        replace(good[2], slide_id="S-03"),
        good[3],
        replace(good[4], path=good[5].path),
        good[5],
        replace(good[6], labels={"her2": "0\n1+"}),
        replace(good[7], further={"mpp": "1"}),
        replace(good[8], annotation=Path("absent.xml")),
    ]
    with pytest.raises(UserError) as told:
        run(Found(slides=tuple(slides)))
    for words in (
        "data: 7 problem(s)",
        "slide 'data/00.tif': slide_id 's 0' is not a legal id",
        "slide 'data/01.tif': patient_id is empty",
        "slide_id 's-03' is that of 2 files: data/02.tif, data/03.tif",
        "slide 'data/05.tif' is listed 2 times, as s-04, s-05",
        r"slide 'data/06.tif': column 'her2': '0\n1+' has a line break",
        "slide 'data/07.tif': mpp cannot be the name of a further column",
        "slide 'data/08.tif': annotation 'absent.xml' does not exist",
    ):
        assert words in str(told.value)
    assert not Path("mine").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("a{1}.tif", "contains { }"), ("a<1>.tif", "contains < >"), ("a\nb.tif", "U+000A"),
     ("a\udce4.tif", "U+DCE4"), ("a.tif ", "ends with a space")],
)  # fmt: skip
def test_names_that_no_manifest_can_hold_are_told_before_any_slide_is_opened(
    name, words, folder, monkeypatch
):
    monkeypatch.setattr("her2.importing.run.open_slides", None)
    slides = slides_of(folder)
    slides[0] = replace(slides[0], path=slides[0].path.rename(folder / name))
    slides[1] = replace(slides[1], annotation=slides[0].path)
    with pytest.raises(UserError, match="data: 2 problem") as told:
        run(Found(slides=tuple(slides)))
    assert str(told.value).count(words) == 2
    str(told.value).encode()


@pytest.mark.parametrize("odd", ["{x}", "a<b", "a\tb", "a\udce4"])
@pytest.mark.parametrize("is_out", [True, False])
def test_folders_that_no_config_can_hold_are_told_before_anything_is_read(odd, is_out, folder):
    def read(folder: Path, *, out: Path) -> Found:
        raise AssertionError("it was read")

    data, out = (folder, Path(odd)) if is_out else (folder.rename(odd), Path("mine"))
    with pytest.raises(UserError, match="contains") as told:
        import_cohort(source_of(read), data, out, {})
    assert not out.exists()
    str(told.value).encode()


def test_names_that_are_no_utf8_are_told_as_the_shell_shows_them(folder):
    odd = "uml\udce4ut"
    found = Found(
        slides=tuple(slides_of(folder)),
        left_out=(LeftOut(odd, f"is {odd}"),),
        conflicts=(odd,),
        rules=(odd,),
        sheets={"ids.csv": odd},
    )
    done = run(found, option=[odd])
    "\n".join(done.lines).encode()
    shown = r"uml\udce4ut"
    assert record()["left_out"] == [{"name": shown, "reason": f"is {shown}"}]
    assert record()["options"] == {"option": [shown]}
    assert Path("mine/ids.csv").read_text() == shown


def test_sites_that_differ_in_spelling_alone_are_refused_before_anything_is_written(folder):
    slides = slides_of(folder, site="Nord")
    slides[0] = replace(slides[0], site="nord")
    with pytest.raises(UserError, match=r"(?s)was not written; .*'site': 'nord' and 'Nord'"):
        run(Found(slides=tuple(slides)))
    assert not Path("mine").exists()


@pytest.mark.parametrize(
    ("left_out", "words"),
    [((), "nothing in it looks like a slide"), ((LeftOut("1.svs", "is IHC"),), "1.svs: is IHC")],
)
def test_a_cohort_without_slides_is_refused_with_the_reasons(left_out, words, folder):
    with pytest.raises(UserError, match=f"no slide is left to import\n  - {words}"):
        run(Found(slides=(), left_out=left_out))


def test_a_preset_that_is_not_there_is_named(folder):
    with pytest.raises(UserError, match=r"presets/none.yaml: does not exist"):
        import_cohort(
            source_of(Found(slides=tuple(slides_of(folder))), "none.yaml"), folder, Path("m"), {}
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": {"her2": "equivocal"}}, "'equivocal' is in no task's classes"),
        ({"patient_id": "p-01"}, "slides of different classes"),
    ],
)
def test_what_a_run_would_refuse_is_told_after_writing_since_the_config_can_mend_it(
    change, words, folder
):
    slides = slides_of(folder)
    done = run(Found(slides=(replace(slides[0], **change), *slides[1:])))
    assert len(done.mends) >= 1
    assert words in done.mends[0]
    assert "mine/slides.csv" in done.mends[0]
    assert len(rows_of()) == 20
    assert record()["mends"] == list(done.mends)


def test_folds_that_cannot_be_drawn_are_told(folder):
    done = run(Found(slides=tuple(slides_of(folder)[:8])))
    assert any("the folds of task 'score' cannot be drawn" in one for one in done.mends)


@pytest.mark.parametrize("n_small", [4, 5])
def test_more_slides_than_a_run_may_leave_out_are_told(n_small, folder, write_slide):
    for number in range(n_small):  # of 20; cohort.max_excluded is 0.2
        image = np.full((50, 50, 3), number, np.uint8)
        write_slide(folder / f"{number:02}.tif", image, mpp=(0.5, 0.5))
    done = run(Found(slides=tuple(slides_of(folder))))
    told = [one for one in done.mends if "more than cohort.max_excluded 0.2; such as s-00" in one]
    assert len(told) == (n_small > 4)
    assert any(line.startswith("run it: snakemake ") for line in done.lines) is not bool(done.mends)


def test_files_and_folders_that_the_config_names_and_are_not_there_are_told(folder):
    (folder / "bci/IHC").rmdir()
    done = run(Found(slides=tuple(slides_of(folder))))
    assert done.mends == ("patches.ihc.path: 'data/bci/IHC' does not exist",)


@pytest.mark.parametrize("scores", [("3+",), ("",)])
def test_a_cohort_to_test_models_on_may_have_few_patients_and_no_labels(scores, folder):
    slides = [replace(one, labels={"her2": scores[0]}) for one in slides_of(folder)[:2]]
    done = run(Found(slides=tuple(slides)), external=True)
    assert done.mends == ()
    assert len(rows_of()) == 2
    assert not Path("mine/mine.yaml").exists()
    assert record()["external"] is True
    section = "\n".join(done.lines[done.lines.index("validation:") :])
    assert yaml.safe_load(section) == {
        "validation": {"mine": {"slides": "mine/slides.csv", "root": "data"}}
    }


def test_too_few_patients_for_folds_may_still_test_models_of_others(folder):
    source = source_of(Found(slides=tuple(slides_of(folder)[:3])))
    app = typer.Typer()
    app.command()(as_import(source))
    done = CliRunner().invoke(app, ["data"])
    assert done.exit_code == 1
    assert "add --external if models of another cohort" in str(done.exception)
    done = CliRunner().invoke(app, ["data", "--external"])
    assert done.exit_code == 0, done.exception


@pytest.mark.parametrize(
    ("further", "columns"),
    [({}, []), ({"age": ""}, []), ({"age": "", "er": "pos"}, ["er"])],
)
def test_a_further_column_is_there_if_any_slide_has_a_value(further, columns, folder):
    slides = slides_of(folder, further={})
    slides[0] = replace(slides[0], further=further)
    assert run(Found(slides=tuple(slides))).mends == ()
    assert [*rows_of()[0]] == ["slide_id", "path", "patient_id", "her2", *columns]


def test_tasks_without_a_label_become_comments(folder):
    slides = [replace(one, labels={"her2": "", "response": "yes"}) for one in slides_of(folder)]
    done = run(Found(slides=tuple(slides)))
    assert "no slide has a label for the tasks score, binary" in done.mends[0]
    assert "#   score:" in Path("mine/mine.yaml").read_text()


def test_a_source_sets_further_keys_of_the_config(folder):
    found = Found(
        slides=tuple(slides_of(folder)),
        config={"cohort.masks": folder, "folds.split": "use", "tiling.min_tissue": 0.25},
    )
    assert run(found).mends == ()
    config = load_config(Path("mine/mine.yaml"))
    assert (config.cohort.masks, config.folds.split) == (folder, "use")
    assert config.tiling.min_tissue == 0.25
    assert yaml.safe_load(Path("mine/mine.yaml").read_text())["folds"]["number"] == 5


@pytest.mark.parametrize("name", ["slides.csv", "mine.yaml", "import.json", "a/b.csv", "../b.csv"])
def test_a_source_cannot_write_over_the_manifest_or_elsewhere(name, folder):
    with pytest.raises(ValueError, match="source 'mine': no sheet can be called"):
        run(Found(slides=tuple(slides_of(folder)), sheets={name: "x"}))
