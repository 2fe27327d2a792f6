import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

import her2
from her2.cli.main import app, main
from her2.cli.stages import STAGES
from her2.config import jobs, parse_config
from her2.core.files import digest, link
from her2.storage.cache import Cache
from her2.storage.entries import FeatureEntry, TileEntry, read_entries, write_entries
from tests.unit.products import write_store

ROOT = Path(__file__).parents[2]
QUESTIONS = ["status", "explain", "power", "predict", "export", "heatmaps", "cohort", "import",
             "config", "cache", "synthetic", "bundle"]  # fmt: skip
HEAVY = {"torch", "torchvision", "timm", "polars", "zarr", "sklearn", "matplotlib", "pyarrow"}


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failing(monkeypatch, capsys, *arguments: object) -> str:
    """Return the output that a user sees after a mistake, through the real entry point."""
    monkeypatch.setattr(sys, "argv", ["her2", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    return capsys.readouterr().err


# Imports


@pytest.mark.parametrize(
    "module", ["her2", "her2.cli.main", "her2.pipeline.plan", "her2.config", "her2.cohort.manifest"]
)
def test_importing_is_light(module):
    """Snakemake reads these in every job."""
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


MAY_LOAD = {
    "torch": {
        *("segmenter", "encoder", "pretrain", "train", "attention", "refit", "apply"),
        "external-attention",
    },
    "torch._dynamo": set(),
    "timm": set(),
    "torchvision": set(),
    "matplotlib": {"heatmap", "external-heatmap"},
    "sklearn": set(),
    "scipy": {
        *("evaluate", "compare", "robustness", "control", "heatmap", "attention"),
        *("apply", "validate", "external", "external-heatmap", "external-attention"),
    },
    "statsmodels": set(),
    "zarr": set(),
}


def may_load(stage: str) -> frozenset[str]:
    return frozenset(name for name, stages in MAY_LOAD.items() if stage in stages)


@pytest.mark.parametrize("allowed", {may_load(stage) for stage in STAGES}, ids=sorted)
def test_stages_load_only_what_they_work_with(allowed):
    stages = [stage for stage in STAGES if may_load(stage) == allowed]
    modules = ", ".join(STAGES[stage][0].partition(":")[0] for stage in stages)
    code = f"import sys, her2.cli.main, {modules}; print(*set(sys.modules) & {set(MAY_LOAD)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert set(done.stdout.split()) <= allowed, stages


def test_help_lists_the_stages_and_is_light():
    code = (
        "import sys; sys.argv = ['her2', '--help']\n"
        "from her2.cli.main import main\n"
        "try:\n    main()\nfinally:\n"
        f"    print(*sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    listed = {line.strip(" │").split(" ")[0] for line in done.stdout.splitlines()}
    assert set(STAGES) | set(QUESTIONS) <= listed
    assert done.stderr.split() == []


def test_listing_the_sources_is_light():
    code = (
        "import sys; from typer.testing import CliRunner; from her2.cli.main import app\n"
        "assert CliRunner().invoke(app, ['import']).exit_code == 0\n"
        f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_the_module_runs_as_the_command_does():
    done = subprocess.run(
        [sys.executable, "-m", "her2", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == her2.__version__


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_says_what_it_does(stage):
    result = command(stage, "--help")
    assert result.exit_code == 0
    assert "--spec" in result.output
    assert "Stage" in result.output or "After tile" in result.output


@pytest.mark.parametrize("stage", STAGES)
def test_every_option_of_a_stage_is_explained(stage):
    made = typer.main.get_group(app).commands[stage]
    options = made.get_params(typer.Context(made, info_name=stage))
    assert [option.name for option in options if not getattr(option, "help", None)] == []


NEW_STAGE = '''
from pathlib import Path
from her2.config.jobs import SimilarSpec

def count(spec: SimilarSpec, *, words: Path, limit: int = 3, output: Path) -> None:
    """Count words.

    Args:
        spec: the job.
        words: the text that
            is counted.
        limit: words at most.
        output: the number.
    """
    output.write_text(str(min(limit, len(words.read_text().split()))))
'''


@pytest.fixture
def new_stage(tmp_path, monkeypatch) -> str:
    (tmp_path / "counting.py").write_text(NEW_STAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STAGES, "count", ("counting:count", "Stage 9: count words."))
    (tmp_path / "words.txt").write_text("one two three four")
    return jobs.dump(jobs.SimilarSpec(buckets=(), max_shared_tiles=0.5))


def test_a_row_of_the_table_makes_a_function_a_command(new_stage, tmp_path):
    out = tmp_path / "number"
    given = ["--spec", new_stage, "--words", tmp_path / "words.txt", "--out", out]
    assert command("count", *given).exit_code == 0
    assert out.read_text() == "3"
    assert command("count", *given, "--limit", 2).exit_code == 0
    assert out.read_text() == "2"


def test_a_command_s_help_is_its_function_s_docstring(new_stage):
    assert "Stage 9: count words." in command("--help").output
    shown = " ".join(command("count", "--help").output.replace("│", " ").split())
    assert "the text that is counted [required]" in shown
    assert "[default: 3]" in shown


def test_options_that_are_lacking_or_out_of_range_are_named(new_stage, tmp_path):
    lacking = command("count", "--spec", new_stage, "--out", tmp_path / "n")
    assert (lacking.exit_code, "--words" in lacking.output) == (2, True)
    wrong = command("count", "--spec", new_stage, "--words", "w", "--out", "n", "--limit", 0)
    assert (wrong.exit_code, "--limit" in wrong.output) == (2, True)


@pytest.mark.parametrize("rules", sorted((ROOT / "workflow/rules").glob("*.smk")), ids=str)
def test_rules_give_only_options_that_their_commands_have(rules):
    for call in rules.read_text().split("python -m her2 ")[1:]:
        name, given = call.split()[0], call.partition("2> {log:q}")[0]
        if name in STAGES:
            known = command(name, "--help").output
            assert set(re.findall(r"--[a-z-]+", given)) <= set(re.findall(r"--[a-z-]+", known))


# Stages


def tile_spec(**changed: object) -> str:
    fields = {"bucket": "0000-of-0001", "rows": "", "mpp": 0.5, "size": 96, "tiling": {}}
    return jobs.dump(jobs.TileSpec(**(fields | changed)))


def test_tile_writes_a_manifest_from_a_spec_and_a_csv(tmp_path, write_csv, drawn_slide):
    shutil.copyfile(drawn_slide, tmp_path / "s1.svs")
    slides = write_csv([{"slide_id": "s1", "path": "s1.svs", "patient_id": "p1"}])
    out = tmp_path / "results" / "0000-of-0001.json"
    result = command(
        "tile", "--spec", tile_spec(), "--slides", slides, "--cache", tmp_path / "c", "--out", out
    )
    assert result.exit_code == 0, result.output
    entry = read_entries(out, TileEntry)["s1"]
    assert entry.status == "ok"
    assert Cache(tmp_path / "c").find("tiles", entry.key)


def test_the_cache_may_come_from_the_environment(tmp_path, write_csv, drawn_slide, monkeypatch):
    monkeypatch.setenv("HER2_CACHE", str(tmp_path / "shared"))
    slides = write_csv([{"slide_id": "s1", "path": str(drawn_slide), "patient_id": "p1"}])
    out = tmp_path / "m.json"
    assert command("tile", "--spec", tile_spec(), "--slides", slides, "--out", out).exit_code == 0
    assert [product.kind for product in Cache(tmp_path / "shared").products()] == ["tiles", "qc"]


@pytest.mark.parametrize(("value", "folder"), [("~/shared", "shared"), ("$DISK/c", "c"), ("", "")])
def test_the_cache_of_the_environment_is_read_as_a_run_reads_it(
    tmp_path, monkeypatch, value, folder
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DISK", str(tmp_path))
    monkeypatch.setenv("HER2_CACHE", value)
    kept = tmp_path / (folder or "cache") / "tiles/00"  # empty means unset
    kept.mkdir(parents=True)
    (kept / ("0" * 64 + ".parquet")).write_bytes(b"x")
    assert "0" * 64 in command("cache", "ls").output


def test_a_user_s_mistake_is_its_message_without_a_traceback(tmp_path, monkeypatch, capsys):
    shown = failing(
        monkeypatch, capsys, "tile", "--spec", tile_spec(), "--slides", tmp_path / "no.csv",
        "--cache", tmp_path, "--out", tmp_path / "m.json",
    )  # fmt: skip
    assert shown.startswith(f"her2: {tmp_path}/no.csv: does not exist")
    assert "Traceback" not in shown


def test_a_spec_of_another_version_is_refused(tmp_path, monkeypatch, capsys):
    values = json.loads(tile_spec()) | {"version": 999}
    shown = failing(
        monkeypatch, capsys, "tile", "--spec", json.dumps(values), "--slides", "x.csv",
        "--cache", tmp_path, "--out", tmp_path / "m.json",
    )  # fmt: skip
    assert "version 999" in shown
    assert "Run snakemake again" in shown


def test_an_error_of_the_machine_ends_with_the_slide_that_was_at_work(
    tmp_path, monkeypatch, capsys
):
    def broken(path: Path) -> str:
        raise MemoryError("nothing left")

    monkeypatch.setattr("her2.tiling.stage.fingerprint", broken)
    values = json.loads(tile_spec()) | {"bucket": "0000-of-0001"}
    slides = tmp_path / "slides.csv"
    slides.write_text("slide_id,path,patient_id\nslide-7,7.svs,p\n")
    shown = failing(
        monkeypatch, capsys, "tile", "--spec", json.dumps(values), "--slides", slides,
        "--cache", tmp_path, "--out", tmp_path / "m.json",
    )  # fmt: skip
    assert "Traceback" in shown
    assert shown.splitlines()[-1] == "her2: slide-7: MemoryError: nothing left"


# Questions


@pytest.fixture
def config(tmp_path, config_values) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_values))
    return path


def test_a_sound_config_is_said_to_be_sound(config):
    result = command("config", "check", config)
    assert result.exit_code == 0
    assert "no problems found" in result.output


def test_a_misspelt_key_is_shown(config, config_values, monkeypatch, capsys):
    config.write_text(yaml.safe_dump(config_values | {"tilling": {}}))
    shown = failing(monkeypatch, capsys, "config", "check", config)
    assert f"her2: {config}: 1 problem(s)" in shown
    assert "did you mean 'tiling'" in shown


def test_the_printed_schema_accepts_the_default_config():
    schema = json.loads(command("config", "schema").stdout)
    values = yaml.safe_load((ROOT / "config.yaml").read_text(encoding="utf-8"))
    parse_config(values)
    jsonschema.validate(values, schema)


def rows_of(number: int, **changed: object) -> dict[str, object]:
    cells = {"slide_id": f"s{number}", "path": f"s{number}.svs", "patient_id": f"p{number}"}
    return cells | {"her2": "0"} | changed


@pytest.fixture
def twelve(tmp_path, config, config_values, drawn_slide) -> list[dict[str, object]]:
    """Rows of slides that exist: three patients of each class, enough for three folds."""
    config.write_text(yaml.safe_dump(config_values | {"folds": {"number": 3}}))
    for number in range(12):
        whole = drawn_slide.read_bytes()
        (tmp_path / f"s{number}.svs").write_bytes(whole + b" " * number)
    return [rows_of(n, her2=("0", "1+", "2+", "3+")[n % 4]) for n in range(12)]


def test_a_sound_manifest_is_counted_with_what_was_read_of_it(config, write_csv, twelve):
    rows = [row | {"MPP": ""} for row in twelve]
    slides = write_csv([*rows, dict.fromkeys(rows[0], "")])
    result = command("cohort", "check", slides, "--config", config)
    assert result.exit_code == 0, result.output
    assert "12 slides of 12 patients, no problems found" in result.output
    assert "1 empty row left out" in result.output
    assert "column 'MPP' is not read. If it is meant to be 'mpp', rename it" in result.output


def test_the_check_tells_which_class_patients_with_two_labels_have(
    config, config_values, write_csv, twelve
):
    twelve[11]["patient_id"] = "p4"
    tasks = {"score": {"label": "her2", "ordinal": True, "classes": {
        "low": ["0", "1+"], "high": ["2+", "3+"]}}}  # fmt: skip
    section = config_values["cohort"] | {"patient_label": "worst"}
    changed = {"tasks": tasks, "cohort": section, "folds": {"number": 3}}
    config.write_text(yaml.safe_dump(config_values | changed, sort_keys=False))
    result = command("cohort", "check", write_csv(twelve), "--config", config)
    assert result.exit_code == 0, result.output
    assert (
        "task score: 1 patient with slides of different classes, the highest class counts "
        "(cohort.patient_label: worst): p4 ('0': s4, '3+': s11): high" in result.output
    )


@pytest.mark.parametrize(
    ("changed", "sites", "words"),
    [
        ({"number": 4}, "ab", "the folds of task 'score' cannot be drawn: folds.number 4 needs 4"),
        ({"number": 3, "sites": "preserved"}, "ab", "come from 2 sites (a, b)"),
        ({"number": 3, "sites": "leave_one_out"}, "ab", "set folds.number to 2"),
        ({"number": 3, "sites": "preserved"}, ("a", ""), "patient p1: has no site"),
    ],
)
def test_folds_that_the_run_would_refuse_are_refused_beside_files(
    tmp_path, config, config_values, write_csv, twelve, monkeypatch, capsys, changed, sites, words
):
    (tmp_path / "s3.svs").write_text("this is no slide")
    config.write_text(yaml.safe_dump(config_values | {"folds": changed}))
    slides = write_csv([row | {"site": sites[n % 2]} for n, row in enumerate(twelve)])
    shown = failing(monkeypatch, capsys, "cohort", "check", slides, "--config", config)
    assert words in shown
    assert "slide 's3'" in shown
    assert "not a slide that OpenSlide or Pillow can open" in shown


def test_a_bad_split_column_is_refused_with_the_rest_of_the_manifest(
    config, config_values, write_csv, twelve, monkeypatch, capsys
):
    parts = ("train", "Test", "tune", "fold1")
    rows = [row | {"split": parts[n % 4]} for n, row in enumerate(twelve)]
    slides = write_csv([*rows, rows_of(12, patient_id="nan", split="train")])
    shown = failing(monkeypatch, capsys, "cohort", "check", slides, "--config", config)
    assert "slide s3, column 'split': 'fold1'; slide s7, column 'split': 'fold1'" in shown
    assert "row 14: column 'patient_id': 'nan' means a missing value" in shown
    config.write_text(yaml.safe_dump(config_values | {"folds": {"number": 3, "split": "ignore"}}))
    result = command("cohort", "check", write_csv(rows), "--config", config)
    assert result.exit_code == 0, result.output


def test_files_that_are_one_or_none_are_named(
    tmp_path, config, write_csv, drawn_slide, monkeypatch, capsys
):
    for name in ("s1", "s2"):
        shutil.copyfile(drawn_slide, tmp_path / f"{name}.svs")
    slides = write_csv([rows_of(1), rows_of(2), rows_of(3)])
    shown = failing(monkeypatch, capsys, "cohort", "check", slides, "--config", config)
    assert "slides s1, s2 are the same file" in shown
    assert "slide 's3'" in shown


def test_labels_that_no_task_knows_are_named(config, write_csv, monkeypatch, capsys):
    slides = write_csv([rows_of(1, her2="high")])
    shown = failing(monkeypatch, capsys, "cohort", "check", slides, "--config", config)
    assert "row 2, column 'her2': 'high' is in no task's classes" in shown


def test_the_demo_manifest_is_legal(tmp_path, config_values):
    from her2.cohort.reading import read_cohort

    result = command("synthetic", "manifest", "--patients", 8)
    (tmp_path / "demo.csv").write_text(result.stdout)
    cohort = read_cohort(tmp_path / "demo.csv", tasks=parse_config(config_values).tasks)
    assert len({row.patient_id for row in cohort.rows}) == 8
    assert len(list(csv.DictReader(io.StringIO(result.stdout)))) == len(cohort.rows)


def test_demo_slides_are_drawn_from_their_spec(tmp_path):
    from her2.slides.slide import Slide

    slides = tuple(
        jobs.SyntheticSlide(slide_id=name, patient_id="p", her2="3+", site="south")
        for name in ("a", "b")
    )
    spec = jobs.SyntheticSpec(slides=slides, side_px=256, seed=1)
    result = command("synthetic", "slides", "--spec", jobs.dump(spec), "--root", tmp_path)
    assert result.exit_code == 0, result.output
    for name in ("a", "b"):
        with Slide(tmp_path / "slides" / f"{name}.svs") as opened:
            assert (opened.width_px, opened.vendor) == (256, "aperio")
        assert (tmp_path / "masks" / f"{name}.png").read_bytes()[1:4] == b"PNG"


# The cache


@pytest.fixture
def cache(tmp_path) -> Cache:
    """Two feature stores: `kept`, which a manifest names, and `unused`; and an old leftover."""
    cache = Cache(tmp_path / "cache")
    for name in ("kept", "unused"):
        with cache.publish("features", digest(name)) as path:
            write_store(
                path,
                np.zeros((3, 4), np.float16),
                np.zeros((3, 2), np.int32),
                {"key": digest(name)},
            )
    entries = {"s1": FeatureEntry(status="ok", key=digest("kept"), tiles=3)}
    write_entries(tmp_path / "results" / "features" / "e" / "0000-of-0001.json", entries)
    for name, days in (("old", 8), ("young", 1)):
        path = cache.path("features", digest("kept")).with_name(f".{name}.tmp.x")
        path.touch()
        os.utime(path, (time.time() - days * 86400,) * 2)
    return cache


def stored(cache: Cache) -> set[str]:
    return {product.key for product in cache.products()}


def test_products_are_listed(cache):
    result = command("cache", "ls", "--cache", cache.root)
    assert {line.split()[1] for line in result.stdout.splitlines()} == stored(cache)
    assert "features: 2 products" in result.stderr


def test_a_sound_cache_verifies(cache):
    result = command("cache", "verify", "--cache", cache.root)
    assert result.exit_code == 0
    assert "2 products read, 0 broken" in result.stderr


def test_a_broken_product_is_named_and_fails_the_command(cache):
    path = cache.path("features", digest("unused"))
    path.write_bytes(path.read_bytes()[:100])
    result = command("cache", "verify", "--cache", cache.root)
    assert result.exit_code == 1
    assert result.stdout.startswith(f"{path}: cannot be read")
    assert len(result.stdout.splitlines()) == 1
    assert "2 products read, 1 broken" in result.stderr


def test_quarantine_moves_the_broken_aside_and_says_how_to_make_them_again(cache, tmp_path):
    path = cache.path("features", digest("kept"))
    path.write_bytes(path.read_bytes()[:100])
    manifest = tmp_path / "results" / "features" / "e" / "0000-of-0001.json"
    result = command(
        "cache", "verify", "--cache", cache.root, "--quarantine", "--results", tmp_path / "results"
    )
    assert result.exit_code == 1
    assert f"{manifest} named one of them" in result.stderr
    assert f"snakemake --cores 1 {manifest} --configfile CONFIG" in result.stderr
    assert not manifest.exists()
    assert stored(cache) == {digest("unused")}
    assert [item.name for item in cache.quarantined()] == [path.name]
    again = command("cache", "verify", "--cache", cache.root)
    assert again.exit_code == 0


@pytest.mark.parametrize("question", [["ls"], ["verify"], ["prune", "--keep", "."]])
def test_a_cache_that_is_none_is_refused(tmp_path, question, monkeypatch, capsys):
    (tmp_path / "notes.txt").touch()
    for folder, problem in ((tmp_path / "absent", "no such folder"), (tmp_path, "is not a cache")):
        shown = failing(monkeypatch, capsys, "cache", *question, "--cache", folder)
        assert f"--cache {folder}" in shown
        assert problem in shown


@pytest.fixture
def run_config(cache, tmp_path, config_values, monkeypatch) -> Path:
    """The config of a run with this cache."""
    monkeypatch.delenv("HER2_CACHE", raising=False)
    path = tmp_path / "run.yaml"
    folders = {"results": str(tmp_path / "results"), "cache": str(cache.root)}
    path.write_text(yaml.safe_dump({**config_values, **folders}))
    return path


@pytest.mark.parametrize("question", [["ls"], ["verify"], ["prune"]])
def test_the_cache_may_be_named_by_the_config(run_config, tmp_path, question, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    result = command("cache", *question, "--config", run_config)
    assert result.exit_code == 0
    assert {"ls": "2 products", "verify": "2 products read", "prune": "1 products"}[
        question[0]
    ] in result.stderr


def test_configs_with_several_caches_are_refused(run_config, tmp_path, monkeypatch, capsys):
    other = tmp_path / "other.yaml"
    other.write_text(run_config.read_text().replace(str(tmp_path / "cache"), "elsewhere"))
    shown = failing(
        monkeypatch, capsys, "cache", "verify", "--config", run_config, "--config", other
    )
    assert "several caches" in shown


def test_what_is_quarantined_does_not_take_its_neighbours_with_it(cache, tmp_path, run_config):
    """While the entries file of its job is absent, the links name the other products of the job."""
    folder = tmp_path / "results" / "features" / "e"
    for name in ("kept", "unused"):
        link(cache.path("features", digest(name)), folder / f"{name}.zarr.zip")
    entries = {n: FeatureEntry("ok", None, digest(n), tiles=3) for n in ("kept", "unused")}
    write_entries(folder / "0000-of-0001.json", entries)
    path = cache.path("features", digest("unused"))
    path.write_bytes(path.read_bytes()[:100])
    assert command("cache", "verify", "--config", run_config, "--quarantine").exit_code == 1
    assert not (folder / "0000-of-0001.json").exists()
    result = command("cache", "prune", "--config", run_config, "--yes")
    assert result.exit_code == 0, result.stderr
    assert stored(cache) == {digest("kept")}


def test_a_slide_is_forgotten_with_its_jobs(cache, tmp_path, run_config):
    entries = tmp_path / "results" / "features" / "e" / "0000-of-0001.json"
    result = command("cache", "forget", "s1", "--config", run_config)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [str(cache.path("features", digest("kept")))]
    assert f"snakemake --cores 1 {entries} --configfile CONFIG" in result.stderr
    assert stored(cache) == {digest("unused")}
    assert not entries.exists()


def test_forget_wants_to_know_the_run(cache):
    assert command("cache", "forget", "s1", "--cache", cache.root).exit_code == 2
    assert len(stored(cache)) == 2


def test_prune_keeps_what_a_config_s_results_name(cache, tmp_path, config_values):
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({**config_values, "results": str(tmp_path / "results")}))
    result = command("cache", "prune", "--cache", cache.root, "--config", config)
    assert result.exit_code == 0
    assert digest("unused") in result.stdout
    assert digest("kept") not in result.stdout
    assert "features: 1, " in result.stderr


def test_prune_says_what_it_would_free_and_deletes_nothing(cache, tmp_path):
    before = sorted(cache.root.rglob("*"))
    result = command("cache", "prune", "--cache", cache.root, "--keep", tmp_path / "results")
    assert result.exit_code == 0
    assert digest("unused") in result.stdout
    assert digest("kept") not in result.stdout
    size = cache.path("features", digest("unused")).stat().st_size
    assert f"1 products ({size / 1e6:.1f} MB) and 1 leftovers would be deleted" in result.stderr
    assert "--yes" in result.stderr
    assert sorted(cache.root.rglob("*")) == before


def test_prune_deletes_what_nobody_names_when_told_to(cache, tmp_path):
    result = command(
        "cache", "prune", "--cache", cache.root, "--keep", tmp_path / "results", "--yes"
    )
    assert result.exit_code == 0
    assert "deleted" in result.stderr
    assert stored(cache) == {digest("kept")}
    left = {path.name for path in cache.root.rglob(".*")}
    assert left == {".young.tmp.x"}


def test_prune_refuses_a_folder_that_names_nothing(cache, tmp_path, monkeypatch, capsys):
    (tmp_path / "wrong").mkdir()
    shown = failing(
        monkeypatch, capsys, "cache", "prune", "--cache", cache.root,
        "--keep", tmp_path / "wrong", "--yes",
    )  # fmt: skip
    assert "has no entries files" in shown
    assert len(stored(cache)) == 2


def test_prune_wants_to_know_what_to_keep(cache):
    result = command("cache", "prune", "--cache", cache.root, "--yes")
    assert result.exit_code == 2
    assert len(stored(cache)) == 2
