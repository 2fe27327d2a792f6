"""Encoders with `source: features`: what a user may write, and what is said before any job."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from her2.cohort.manifest import Cohort
from her2.cohort.reading import configured_cohort, read_labels, read_slides
from her2.config import Config, jobs, parse_config
from her2.core.errors import UserError
from her2.heads import discover
from her2.pipeline.inputs import check_inputs
from her2.pipeline.job_table import planned_jobs
from her2.pipeline.plan import Plan
from tests.unit.exchange_makers import features_of, write_npy, write_trident
from tests.unit.take_makers import row

UNI = {"source": "features", "path": "files", "mpp": 0.5, "size": 256, "identity": "UNI, TRIDENT"}
COMPUTED = {"source": "random", "model": "timm/resnet18", "mpp": 0.5, "size": 224}
VALUES: dict[str, Any] = {
    "cohort": {"slides": "slides.csv"},
    "tasks": {"score": {"label": "her2", "classes": {"0": ["0"], "3+": ["3+"]}}},
    "encoders": {"uni": UNI},
    "heads": {"mean": {}},
}


def config(**encoders: dict[str, Any]) -> Config:
    return parse_config({**copy.deepcopy(VALUES), "encoders": encoders or {"uni": UNI}})


def error_of(**changed: Any) -> str:
    with pytest.raises(UserError) as error:
        config(uni={**UNI, **changed})
    return str(error.value)


class TestSection:
    def test_a_folder_is_a_list_of_one(self) -> None:
        assert config().given["uni"].path == (Path("files"),)
        assert config(uni={**UNI, "path": ["a", "b"]}).given["uni"].path == (Path("a"), Path("b"))

    def test_its_grid_is_its_own_and_survives_a_spec(self) -> None:
        made = config(uni=UNI, fine=COMPUTED)
        assert made.all_grids == ("given-uni", "224px-0.5mpp")
        assert made.grids == {"224px-0.5mpp": (0.5, 224)}
        assert Config.model_validate_json(made.model_dump_json()).all_grids == made.all_grids

    def test_what_nobody_says_is_unknown(self) -> None:
        bare = {name: UNI[name] for name in ("source", "path", "identity")}
        section = config(uni=bare).given["uni"]
        assert (section.mpp, section.size, section.domain) == (None, None, "unknown")

    @pytest.mark.parametrize(
        ("key", "words"),
        [
            ("model", "say in `identity` which encoder computed the features"),
            ("checkpoint", "no weights are used here; name the folder"),
            ("init", "leave it out, since nothing is computed here"),
            ("precision", "leave it out, since nothing is computed here"),
            ("augmentations", "augmented views need the encoder itself"),
            ("storage", "leave it out: features keep the type that their files have"),
        ],
    )
    def test_keys_of_encoders_that_are_run_are_refused_with_what_to_write(
        self, key: str, words: str
    ) -> None:
        assert f"encoders.uni.{key}: not with `source: features`; {words}" in error_of(**{key: "x"})

    def test_all_problems_are_in_one_message(self) -> None:
        message = error_of(model="x", checkpoint="y")
        assert "encoders.uni.model" in message
        assert "encoders.uni.checkpoint" in message

    def test_a_mistyped_key_is_told_with_those_of_its_kind(self) -> None:
        assert "did you mean 'path'? the legal keys are domain, format" in error_of(pth=1)
        with pytest.raises(UserError, match="the legal keys are allow_overlap, augmentations"):
            config(fine={**COMPUTED, "identity": "x"})

    @pytest.mark.parametrize("name", ["path", "identity"])
    def test_what_nobody_else_can_know_is_required(self, name: str) -> None:
        with pytest.raises(UserError, match=f"encoders.uni.{name}: missing"):
            config(uni={key: value for key, value in UNI.items() if key != name})

    def test_an_unknown_source_is_told_with_features_among_the_others(self) -> None:
        with pytest.raises(UserError, match="'python' or 'features'"):
            config(uni={**COMPUTED, "source": "elsewhere"})


class TestManifest:
    def read(self, tmp_path: Path, text: str, made: Config) -> Cohort:
        path = tmp_path / "slides.csv"
        path.write_text(text)
        return configured_cohort(made, path, None)

    @pytest.mark.parametrize(
        "text",
        [
            "slide_id,patient_id,path,her2\na,p,,0\nb,q,,3+\n",
            "slide_id,patient_id,her2\na,p,0\nb,q,3+\n",
        ],
    )
    def test_slides_may_be_absent_where_no_encoder_reads_them(
        self, text: str, tmp_path: Path
    ) -> None:
        cohort = self.read(tmp_path, text, config())
        assert [cohort.present_file(one) for one in cohort.rows] == [None, None]
        assert sum("2 of 2 slides are absent" in text for text in cohort.cautions) == 1
        again = read_labels(tmp_path / "slides.csv", labels=["her2"])  # as a job reads it
        assert [one.path for one in again.rows] == ["", ""]

    def test_where_one_does_the_error_names_encoders_and_slides(self, tmp_path: Path) -> None:
        text = "slide_id,patient_id,path,her2\na,p,,0\nb,q,b.svs,3+\n"
        with pytest.raises(UserError) as error:
            self.read(tmp_path, text, config(uni=UNI, fine=COMPUTED))
        assert "is empty for 1 slide(s) (a), but the encoders fine read slides" in str(error.value)

    def test_without_such_an_encoder_a_path_is_required_as_before(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="enter the path of the slide's file"):
            self.read(tmp_path, "slide_id,patient_id,path,her2\na,p,,0\n", config(fine=COMPUTED))
        (tmp_path / "slides.csv").write_text("slide_id,path\na,\n")
        with pytest.raises(UserError, match="enter the path of the slide's file"):
            read_slides(tmp_path / "slides.csv")  # to predict them

    def test_nothing_opens_an_absent_slide(self, tmp_path: Path) -> None:
        cohort = self.read(tmp_path, "slide_id,patient_id,her2\na,p,0\nb,q,3+\n", config())
        with pytest.raises(UserError, match="slide 'a', column 'path': is empty"):
            cohort.file(cohort.rows[0])


class TestInputs:
    @pytest.fixture(autouse=True)
    def _here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def said(self, tmp_path: Path, made: Config | None = None, *names: str) -> str:
        rows = tuple(row(name) for name in names or ("a", "b"))
        with pytest.raises(UserError) as error:
            check_inputs(made or config(), Cohort(rows, tmp_path))
        return str(error.value)

    def test_a_folder_that_is_absent_or_none_is_named_by_its_key(self, tmp_path: Path) -> None:
        assert "encoders.uni.path: 'files' does not exist" in self.said(tmp_path)
        (tmp_path / "files").write_text("")
        assert "encoders.uni.path: 'files' is a file, not a folder" in self.said(tmp_path)

    def test_files_of_no_slide_are_shown_beside_the_slides(self, tmp_path: Path) -> None:
        (tmp_path / "files").mkdir()
        for number in range(4):
            write_trident(tmp_path / f"files/x-{number}.h5", features_of(3, 8))
        message = self.said(tmp_path, None, "a", "b", "c", "d")
        assert "is of any slide of cohort: the files are x-0.h5, x-1.h5, x-2.h5, ..., " in message
        assert "the slides a, b, c, ..." in message

    def test_an_empty_folder_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "files").mkdir()
        assert "no feature files are there" in self.said(tmp_path)

    def test_an_unknown_form_is_told_with_those_known(self, tmp_path: Path) -> None:
        (tmp_path / "files").mkdir()
        message = self.said(tmp_path, config(uni={**UNI, "format": "matlab"}))
        assert "encoders.uni.format: 'matlab' is no form of feature files; they are clam" in message

    def test_heads_that_weigh_tiles_refuse_slide_vectors_before_any_job(
        self, tmp_path: Path
    ) -> None:
        (tmp_path / "files").mkdir()
        write_npy(tmp_path / "files/a.npy", features_of(1, 8))
        values = {**VALUES, "heads": {"mean": {}, "abmil": {}, "clam_sb": {}}}
        message = self.said(tmp_path, parse_config(values))
        assert "one vector a slide (as a.npy), and the heads abmil, clam_sb weigh" in message
        assert message.endswith("logistic, mean, mlp")
        check_inputs(config(), Cohort((row("a"),), tmp_path))

    def test_every_cohort_has_to_have_files(self, tmp_path: Path) -> None:
        (tmp_path / "files").mkdir()
        write_trident(tmp_path / "files/a.h5", features_of(3, 8))
        own, other = (Cohort((row(name),), tmp_path) for name in "ab")
        made = config()
        with pytest.raises(UserError, match="of any slide of validation.east"):
            check_inputs(made, own, {"east": (made.cohort, other)})


def test_heads_say_whether_they_take_slide_vectors() -> None:
    assert {name for name, head in discover().items() if head.takes_vectors} == {
        "logistic", "mean", "mlp",
    }  # fmt: skip
    assert all(head.even for head in discover().values() if head.takes_vectors)


class TestPlan:
    def plan(self, tmp_path: Path, *, encoders: Any = None, **files: int) -> Plan:
        folder = tmp_path / "files"
        folder.mkdir(exist_ok=True)
        for name, seed in files.items():
            write_trident(folder / f"{name}.h5", features_of(3, 8, seed=seed))
        values = {"uni": {**UNI, "path": str(folder)}, **(encoders or {})}
        rows = tuple(row(f"s{n:02d}") for n in range(9))
        made = parse_config(
            {**VALUES, "encoders": values, "cohort": {"slides": "s.csv", "slides_per_bucket": 4}}
        )
        return Plan(made, Cohort(rows, tmp_path))

    def test_it_has_a_card_and_a_bucket_s_entries_in_place_of_weights_tiles_and_embedding(
        self, tmp_path: Path
    ) -> None:
        plan = self.plan(tmp_path, s00=1)
        rules = {job.rule for job in planned_jobs(plan)}
        assert {"describe_features", "take_features"} <= rules
        assert not {"materialise_encoder", "tile_bucket", "embed_bucket"} & rules

    def test_beside_one_that_is_run_both_have_their_jobs(self, tmp_path: Path) -> None:
        plan = self.plan(tmp_path, s00=1, encoders={"fine": COMPUTED})
        found = {(job.rule, job.values[1]) for job in planned_jobs(plan) if len(job.values) == 3}
        assert {("take_features", "uni"), ("embed_bucket", "fine")} <= found
        assert not {("take_features", "fine"), ("embed_bucket", "uni")} & found
        tiled = {job.values[1] for job in planned_jobs(plan) if job.rule == "tile_bucket"}
        assert tiled == {"224px-0.5mpp"}

    def test_specs_are_read_as_written_and_name_no_folder(self, tmp_path: Path) -> None:
        plan = self.plan(tmp_path, s00=1)
        for kind, text in (
            (jobs.DescribeSpec, plan.describe_spec("uni")),
            (jobs.TakeSpec, plan.take_spec("uni", plan.buckets[0])),
        ):
            assert jobs.dump(jobs.load(kind, text)) == text
            assert str(tmp_path) not in text
            assert json.loads(text)["version"] == 1

    def test_a_file_changes_the_spec_of_its_own_bucket_only(self, tmp_path: Path) -> None:
        plan = self.plan(tmp_path, s00=1, s01=1, s02=1)
        before = {bucket: plan.take_spec("uni", bucket) for bucket in plan.buckets}
        write_trident(tmp_path / "files/s01.h5", features_of(4, 8, seed=2))
        plan = self.plan(tmp_path)
        changed = [b for b in plan.buckets if plan.take_spec("uni", b) != before[b]]
        own = [b for b, rows in plan.by_bucket.items() if "s01" in {one.slide_id for one in rows}]
        assert len(plan.buckets) > 1
        assert changed == own

    def test_an_identity_changes_the_card_alone(self, tmp_path: Path) -> None:
        plan = self.plan(tmp_path, s00=1)
        other = self.plan(tmp_path, encoders={"uni": {
            **UNI, "path": str(tmp_path / "files"), "identity": "UNI 2",
        }})  # fmt: skip
        assert plan.describe_spec("uni") != other.describe_spec("uni")
        assert plan.take_spec("uni", plan.buckets[0]) == other.take_spec("uni", plan.buckets[0])
