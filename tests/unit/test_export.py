"""The folder of an export: what is written, kept, refused and left out."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

import her2.exchange.writers as writers
from her2.cli.main import app, main
from her2.config import EncoderSection
from her2.config.jobs import EncoderSpec
from her2.core.errors import UserError
from her2.core.files import write_json
from her2.encoders.card import GIVEN, write_card
from her2.exchange.export import export_features
from her2.exchange.record import JOURNAL_NAME, RECORD_NAME
from her2.exchange.writers import find_writer, writer_names
from her2.exchange.writers import stamp as stamp_writer
from her2.storage.entries import FeatureEntry
from tests.unit.export_makers import CARD, Made, make, matrix

FORMS = writer_names()
REPOSITORY = Path(__file__).parents[2]
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def record(out: Path) -> dict:
    return json.loads((out / RECORD_NAME).read_text())


def state(out: Path) -> dict[str, tuple[int, bytes]]:
    """Path -> inode and bytes of every file."""
    return {
        str(path.relative_to(out)): (path.stat().st_ino, path.read_bytes())
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def damage(path: Path) -> None:
    path = next(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else path
    path.write_bytes(path.read_bytes()[:-1] + b"?")


def files_of(out: Path, slide_id: str) -> list[Path]:
    return [out / name for name in record(out)["slides"][slide_id]["files"]]


# What is there already


@every_form
def test_a_second_export_writes_no_slide_again(made: Made, out: Path, form: str) -> None:
    assert export_features(made.root, out, form, slides=["A-1", "B-1"]).written == ("A-1", "B-1")
    before = state(out)
    again = export_features(made.root, out, form, slides=["A-1", "B-1"])
    assert (again.written, again.kept) == ((), ("A-1", "B-1"))
    after = state(out)
    assert {name: content for name, (_, content) in after.items()} == {
        name: content for name, (_, content) in before.items()
    }
    for name in again.kept:
        for path in files_of(out, name):
            inside = [item for item in after if (out / item).is_relative_to(path)]
            assert inside
            assert [after[item][0] for item in inside] == [before[item][0] for item in inside]


@every_form
def test_two_exports_are_the_same_bytes_and_name_no_place(tmp_path: Path, form: str) -> None:
    for name in ("one", "two"):
        results, out = make(tmp_path / name).root, tmp_path / name / "out"
        export_features(results, out, form, slides=["A-1"])
    first, second = (state(tmp_path / name / "out") for name in ("one", "two"))
    assert {name: content for name, (_, content) in first.items()} == {
        name: content for name, (_, content) in second.items()
    }
    assert not any(str(tmp_path).encode() in content for _, content in first.values())
    assert JOURNAL_NAME not in first


@pytest.mark.parametrize("form", ["clam", "spatialdata"])  # files, and a folder
@pytest.mark.parametrize("change", ["missing", "damaged", "other features"])
def test_only_what_is_not_as_it_was_made_is_written_again(
    made: Made, out: Path, form: str, change: str
) -> None:
    export_features(made.root, out, form, slides=["A-1", "B-1"])
    before = state(out)
    victim = files_of(out, "B-1")[0]
    if change == "other features":
        made.embed("B-1", matrix(9, 6))
    elif change == "damaged":
        damage(victim)
    else:
        damage(victim) if victim.is_dir() else victim.unlink()
    again = export_features(made.root, out, form, slides=["A-1"])
    assert (again.written, again.kept) == (("B-1",), ("A-1",))
    if change != "other features":
        contents = {name: content for name, (_, content) in state(out).items()}
        assert contents == {name: content for name, (_, content) in before.items()}


def test_files_of_an_older_version_of_the_form_are_written_again(
    made: Made, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_features(made.root, out, "stamp")
    newer = writers.Writer(
        **{name: getattr(stamp_writer.WRITER, name) for name in writers.Writer.__slots__}
        | {"version": 2}
    )
    monkeypatch.setattr(stamp_writer, "WRITER", newer)
    assert len(export_features(made.root, out, "stamp").written) == 3


@pytest.mark.parametrize("when", ["before the slide", "before it is noted"])
def test_an_export_that_was_stopped_goes_on(
    made: Made, out: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    target = "_write" if when == "before the slide" else "content_digest"
    original = getattr(sys.modules["her2.exchange.export"], target)
    calls = []

    def stop_at_the_second(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(f"her2.exchange.export.{target}", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            export_features(made.root, out, "stamp")
    assert not (out / RECORD_NAME).exists()
    with (out / JOURNAL_NAME).open("a") as stream:
        stream.write('{"slide": "B-1", "do')  # torn by a power cut
    again = export_features(made.root, out, "stamp")
    assert (again.written, again.kept) == (("A-2", "B-1"), ("A-1",))
    assert not [
        path for path in out.rglob("*") if ".tmp." in path.name or path.name == JOURNAL_NAME
    ]


KILLED = """
import os, sys
from dataclasses import replace
from pathlib import Path
import her2.exchange.export as module

results, out, form = sys.argv[1:]
writer = module.find_writer(form)
begun = []

def write(outgoing, slide, paths):
    writer.write(outgoing, slide, paths)
    begun.append(slide)
    if len(begun) == 2:
        os._exit(9)

module.find_writer = lambda name: replace(writer, write=write)
module.export_features(Path(results), Path(out), form)
"""


@pytest.mark.parametrize("form", ["trident", "spatialdata"])
def test_what_a_killed_export_leaves_half_written_is_no_slide_for_a_reader(
    made: Made, out: Path, form: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, made.root, out, form], cwd=REPOSITORY, check=False
    )
    assert done.returncode == 9
    temporary = [path for path in out.rglob(".*") if ".tmp." in path.name]
    assert temporary
    (stays := temporary[0].with_name(".0123456789ab.tmp.theirs")).write_text("not ours")
    assert export_features(made.root, out, form).kept == ("A-1",)
    assert [path for path in out.rglob(".*") if ".tmp." in path.name] == [stays]


def test_slides_of_another_call_stay_and_are_in_the_tables(made: Made, out: Path) -> None:
    export_features(made.root, out, "stamp", slides=["B-1"])
    assert export_features(made.root, out, "stamp", slides=["A-1"]).kept == ("B-1",)
    assert pl.read_csv(out / "slide.csv")["FILENAME"].to_list() == ["A-1.h5", "B-1.h5"]


def test_a_slide_without_features_any_more_loses_its_files_unless_they_were_changed(
    made: Made, out: Path
) -> None:
    export_features(made.root, out, "clam")
    h5, patches, pt = sorted(files_of(out, "B-1"))
    damage(pt)
    made.enter("B-1", FeatureEntry("excluded", "out of focus"))
    again = export_features(made.root, out, "clam")
    assert (again.removed, again.left_out["B-1"]) == (("B-1",), "out of focus")
    assert (h5.exists(), patches.exists(), pt.exists()) == (False, False, True)
    assert "B-1" not in record(out)["slides"]


# What is somebody else's


def test_a_folder_that_no_export_wrote_is_refused_and_stays(made: Made, out: Path) -> None:
    out.mkdir()
    (out / "thesis.doc").write_text("mine")
    with pytest.raises(UserError, match=r"has thesis.doc, and no export.json"):
        export_features(made.root, out, "clam")
    assert state(out).keys() == {"thesis.doc"}


@pytest.mark.parametrize("form", ["clam", "spatialdata"])
def test_a_file_that_no_export_wrote_is_never_replaced(made: Made, out: Path, form: str) -> None:
    export_features(made.root, out, form, slides=["A-1"])
    name = next(iter(record(out)["slides"]["A-1"]["files"])).replace("A-1", "B-1")
    (out / name).write_text("mine")
    with pytest.raises(UserError, match="files that no export wrote") as caught:
        export_features(made.root, out, form, slides=["B-1"])
    assert name in str(caught.value)
    assert (out / name).read_text() == "mine"
    (out / name).unlink()
    assert export_features(made.root, out, form, slides=["B-1"]).written == ("B-1",)


def test_a_table_that_no_export_wrote_is_never_replaced(made: Made, out: Path) -> None:
    export_features(made.root, out, "trident")
    assert record(out)["tables"] == {}
    export_features(made.root, out.with_name("s"), "stamp", slides=["A-1"])
    (found := record(out.with_name("s")))["tables"] = {}
    (out.with_name("s") / RECORD_NAME).write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"(?s)files that no export wrote.*clini.csv"):
        export_features(made.root, out.with_name("s"), "stamp")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"form": "stamp"}, "to trident, not stamp"),
        ({"cohort": "yale"}, "cohort none, not yale"),
    ],
)
def test_an_export_of_something_else_is_refused(
    made: Made, out: Path, tmp_path: Path, change: dict, words: str
) -> None:
    make(tmp_path, part="validation/yale")
    export_features(made.root, out, "trident")
    before = state(out)
    given = {"form": "trident", **change}
    with pytest.raises(UserError, match=f"export of something else.*{words}"):
        export_features(made.root, out, given.pop("form"), **given)
    assert state(out) == before


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 99}', '{"schema_version": 1}'])
def test_a_damaged_record_is_refused_by_name(made: Made, out: Path, text: str) -> None:
    export_features(made.root, out, "trident")
    (out / RECORD_NAME).write_text(text)
    with pytest.raises(UserError, match=r"export\.json: is not the record of an export"):
        export_features(made.root, out, "trident")


def test_two_exports_do_not_write_into_one_folder(
    made: Made, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*arguments):
        export_features(made.root, out, "stamp")

    monkeypatch.setattr("her2.exchange.export._write", meanwhile)
    with pytest.raises(UserError, match="another export is writing there"):
        export_features(made.root, out, "stamp")


# Slides that cannot be exported


def _delete(made: Made) -> None:
    made.store("A-2").unlink()


def _edit(made: Made) -> None:
    path = made.store("A-2")
    content, values = path.read_bytes(), made.features["A-2"].tobytes()
    assert values in content
    path.write_bytes(content.replace(values, values[::-1]))


def _swap(made: Made) -> None:
    made.store("A-2").write_bytes(made.store("B-1").read_bytes())


def _of_another_encoder(made: Made) -> None:
    made.embed("A-2", matrix(2, 7), encoder="f" * 64)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_delete, "does not exist"),
        (_edit, "was edited"),
        (_swap, "features of another key"),
        (_of_another_encoder, "is of the encoder ffffffffffff"),
    ],
)
def test_a_bad_store_is_named_and_stops_no_other(
    made: Made, out: Path, spoil: Callable[[Made], None], words: str
) -> None:
    spoil(made)
    done = export_features(made.root, out, "stamp")
    assert done.written == ("A-1", "B-1")
    assert words in done.failed["A-2"]
    assert record(out)["failed"] == dict(done.failed)
    assert pl.read_csv(out / "slide.csv")["FILENAME"].to_list() == ["A-1.h5", "B-1.h5"]


def test_slides_without_features_are_listed_with_the_reason(made: Made, out: Path) -> None:
    done = export_features(made.root, out, "trident")
    assert done.left_out == record(out)["left_out"] == {"C-1": "too little tissue"}
    assert done.failed == {}
    asked = export_features(made.root, out, "trident", slides=["A-1", "C-1"])
    assert (asked.left_out, asked.failed) == ({}, {"C-1": "too little tissue"})


def test_where_nothing_can_be_exported_every_reason_is_given(made: Made, out: Path) -> None:
    for name in made.features:
        made.enter(name, FeatureEntry("failed", f"{name} burnt"))
    with pytest.raises(UserError, match=r"(?s)no slide could be exported.*A-1 burnt.*C-1: too"):
        export_features(made.root, out, "trident")


# What is asked for


def test_what_is_not_there_is_refused_with_what_is(made: Made, out: Path, tmp_path: Path) -> None:
    make(tmp_path, part="validation/yale")
    for given, words in (
        ({"encoder": "theirs"}, "no features of 'theirs'; give --encoder with one of mine"),
        ({"slides": ["A-1", "Z-9", "Z-8"]}, r"(?s)has no such slide.*Z-8.*Z-9"),
        ({"cohort": "harvard"}, "no such external cohort; it has yale"),
        ({"form": "word"}, "is no form; give one of anndata, clam"),
    ):
        options = {"form": "trident", **given}
        with pytest.raises(UserError, match=words):
            export_features(made.root, out, options.pop("form"), **options)
    with pytest.raises(UserError, match="is in the results, whose files the run owns"):
        export_features(made.root, made.root / "exports", "trident")
    assert not (made.root / "exports").exists()
    with pytest.raises(UserError, match="is no folder; give the results"):
        export_features(tmp_path / "nowhere", out, "trident")
    with pytest.raises(UserError, match="no encoder has features"):
        export_features(tmp_path, out, "trident")
    assert not out.exists()


def test_the_features_of_an_external_cohort_are_its_own(
    made: Made, out: Path, tmp_path: Path
) -> None:
    theirs = make(tmp_path, part="validation/yale")
    theirs.embed("Y-1", matrix(5, 4))
    theirs.tabulate({"Y-1": ("P9", "1+")})
    export_features(made.root, out, "clam", cohort="yale", slides=["Y-1"])
    assert record(out)["about"] == {"to": "clam", "encoder": "mine", "cohort": "yale"}
    assert pl.read_csv(out / "dataset_her2.csv").rows() == [("P9", "Y-1", "1+")]


def test_results_that_only_have_features_are_exported_but_not_for_stamp(
    made: Made, out: Path
) -> None:
    (made.root / "cohort" / "slides.parquet").unlink()
    assert len(export_features(made.root, out, "clam").written) == 3
    with pytest.raises(UserError, match="no table of the cohort"):
        export_features(made.root, out.with_name("stamp"), "stamp")


def test_a_licence_that_may_bind_features_is_a_caution(made: Made, out: Path) -> None:
    gated = replace(CARD, source="catalogue", licence="CC-BY-NC-ND-4.0")
    write_card(made.root / "encoders" / "mine", gated)
    section = EncoderSection.model_validate({"source": "catalogue", "model": "uni2-h"})
    spec = EncoderSpec(encoder=section, seed=1)
    stamp = {"job": "materialise_encoder/mine", "spec": spec.model_dump(mode="json"),
             "read": {}, "made": {}}  # fmt: skip
    write_json(made.root / "stamps" / "materialise_encoder" / "mine.json", stamp)
    done = export_features(made.root, out, "parquet")
    assert "access must be asked for; licence: CC-BY-NC-ND-4.0" in (done.caution or "")
    assert record(out)["licence_caution"] == done.caution
    assert record(out)["encoder"]["licence"] == "CC-BY-NC-ND-4.0"


def test_features_that_were_not_computed_here_are_marked(made: Made, out: Path) -> None:
    elsewhere = replace(CARD, source=GIVEN, size=None, mpp=None, mean=None, std=None)
    write_card(made.root / "encoders" / "mine", elsewhere)
    for slide_id, values in made.features.items():
        made.embed(slide_id, values, encoder=elsewhere.digest)
    done = export_features(made.root, out, "parquet")
    assert record(out)["encoder"]["computed"] == "elsewhere"
    assert "were not computed here" in (done.caution or "")


# The command


def command(monkeypatch, capsys, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["her2", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    shown = capsys.readouterr()
    return int(exit_.value.code or 0), shown.out, shown.err


def test_the_command_says_what_was_written_left_out_lost_and_comes_next(
    made: Made, out: Path, monkeypatch, capsys
) -> None:
    code, shown, _ = command(monkeypatch, capsys, made.root, "--to", "stamp", "--out", out)
    assert code == 0
    assert f"{out}: 3 slides written, 0 were there already" in shown
    assert "C-1: left out, it has no features: too little tissue" in shown
    assert "Note, for 3 of 3 slides: STAMP's coordinates are um" in shown
    assert f'feature_dir: "{out}/her2-mine-{CARD.digest[:8]}"' in shown
    labels = pl.read_csv(out / "clini.csv", infer_schema=False)
    (label,) = re.findall(r'ground_truth_label: "(.*?)"', shown)
    (classes,) = re.findall(r"categories: (.*)", shown)
    assert json.loads(classes) == sorted(set(labels[label].drop_nulls())) != []


def test_the_categories_are_those_of_the_patients_that_go_out(
    made: Made, out: Path, monkeypatch, capsys
) -> None:
    """STAMP divides by the patients of each category, and its loss is NaN where there is none."""
    _, shown, _ = command(
        monkeypatch, capsys, made.root, "--to", "stamp", "--out", out, "--slides", "B-1"
    )
    (classes,) = re.findall(r"categories: (\[.*?\])", shown)
    assert (
        json.loads(classes) == pl.read_csv(out / "clini.csv", infer_schema=False)["her2"].to_list()
    )
    assert "STAMP needs patients of two" in shown


def test_the_command_fails_after_the_good_slides(
    made: Made, out: Path, monkeypatch, capsys
) -> None:
    made.store("A-1").unlink()
    code, shown, errors = command(
        monkeypatch, capsys, made.root, "--to", "stamp", "--out", out, "--slides", "A-1, B-1"
    )
    assert (code, "1 slides written" in shown) == (1, True)
    assert "1 slides could not be exported; all others are" in errors
    assert "  - A-1: " in errors


def test_an_option_without_any_slide_is_no_export(
    made: Made, out: Path, monkeypatch, capsys
) -> None:
    code, _, errors = command(
        monkeypatch, capsys, made.root, "--to", "stamp", "--out", out, "--slides", " ,"
    )
    assert (code, "--slides ' ,': names nothing" in errors, out.exists()) == (1, True, False)


def test_the_help_names_every_form() -> None:
    from typer.testing import CliRunner

    shown = CliRunner().invoke(app, ["export", "--help"], env={"COLUMNS": "200"}).output
    assert [name for name in FORMS if name not in shown] == []


# A form of one's own

MINE = '''"""Features out: text."""
from her2.exchange.writers import Writer

WRITER = Writer(
    name="{name}", words="text", files=lambda outgoing, slide: {{"all": slide.slide_id + ".txt"}},
    write=lambda outgoing, slide, paths: paths["all"].write_text(str(len(slide.store))),
    losses=lambda outgoing, slide: ["almost everything"],
)
'''


def test_a_file_in_the_package_is_a_form(
    made: Made, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    package.mkdir()
    monkeypatch.setattr(writers, "__path__", [*writers.__path__, str(package)])
    (package / "mine.py").write_text(MINE.format(name="mine"))
    (package / "misnamed.py").write_text(MINE.format(name="other"))
    assert writer_names() == sorted([*FORMS, "mine", "misnamed"])
    done = export_features(made.root, out, "mine")
    assert (out / "A-1.txt").read_text() == "5"
    assert done.losses == {"almost everything": 3}
    with pytest.raises(TypeError, match="misnamed does not define WRITER"):
        find_writer("misnamed")


def test_a_form_whose_package_is_absent_says_how_to_install_it(
    made: Made, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "anndata", None)
    for form in ("anndata", "spatialdata"):
        with pytest.raises(UserError, match=r"pip install '.\[exchange\]'"):
            export_features(made.root, out, form)
    assert not out.exists()
