"""Before any job begins, every file of a run has been looked at, and all problems are named."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from her2.cohort.reading import read_cohort
from her2.config import parse_config
from her2.core.errors import UserError
from her2.pipeline.inputs import (
    check_arguments,
    check_config_files,
    check_folders,
    check_inputs,
)
from her2.pipeline.wiring import read_plan

WEIGHTS = {"source": "checkpoint", "model": "timm/resnet18", "domain": "he", "mpp": 1.0, "size": 96}
TRAINED = {"source": "pretrain", "model": "timm/resnet18", "domain": "he", "mpp": 1.0, "size": 96,
           "data": "set", "init": "random"}  # fmt: skip


@pytest.fixture
def project(
    tmp_path: Path, config_values: dict[str, Any], write_csv: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:  # fmt: skip
    """A config, in the working folder, whose files are all there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HER2_CACHE", raising=False)
    rows = [
        {"slide_id": "s1", "path": "s1.svs", "patient_id": "p1", "her2": "0", "mask": "own.png",
         "annotation": ""},
        {"slide_id": "s2", "path": "s2.svs", "patient_id": "p2", "her2": "0", "mask": "",
         "annotation": "s2.geojson"},
    ]  # fmt: skip
    write_csv(rows)
    for name in ("patches", "truths", "masks"):
        (tmp_path / name).mkdir()
    for name in ("s1.svs", "s2.svs", "own.png", "s2.geojson", "masks/s2.tif", "w.pt", "l.csv"):
        (tmp_path / name).touch()
    config_values["cohort"] |= {"root": ".", "masks": "truths", "tissue_masks": "masks"}
    config_values["encoders"]["own"] = {**WEIGHTS, "checkpoint": "w.pt"}
    config_values["encoders"]["trained"] = TRAINED
    files = {"labels": "l.csv", "slides": "l.csv"}
    config_values["patches"] = {"set": {"format": "ihc4bc", "path": "patches", **files}}
    return config_values


def refusal(values: dict[str, Any]) -> str:
    config = parse_config(values)
    cohort = read_cohort(config.cohort.slides, root=config.cohort.root, tasks=config.tasks)
    with pytest.raises(UserError) as error:
        check_inputs(config, cohort)
    return str(error.value)


def test_a_run_whose_files_are_there_begins(project: dict[str, Any]) -> None:
    read_plan(project, check_files=True)
    assert not Path("results").exists()


PLACES = {
    "s1.svs": "slide 's1', column 'path': '{}'",
    "own.png": "slide 's1', column 'mask': '{}'",
    "s2.geojson": "slide 's2', column 'annotation': '{}'",
    "masks/s2.tif": "slide 's2', `cohort.tissue_masks`: '{}'",
    "w.pt": "encoders.own.checkpoint: '{}'",
    "l.csv": "patches.set.labels: '{}'",
    "patches": "patches.set.path: '{}'",
    "truths": "cohort.masks: '{}'",
}
"""File or folder of the project -> how a problem with it begins."""


@pytest.mark.parametrize("name", PLACES)
def test_a_file_that_is_absent_or_none_is_named_before_anything_runs(
    project: dict[str, Any], name: str
) -> None:
    path = Path(name)
    folder = path.is_dir()
    said = PLACES[name].format(name)
    path.rmdir() if folder else path.unlink()
    absent = refusal(project)
    if name == "masks/s2.tif":  # any suffix would do, and the first is asked for
        assert "`cohort.tissue_masks`: 'masks/s2.png' does not exist" in absent
    else:
        assert f"{said} does not exist" in absent
    os.mkfifo(path)  # opening it would wait for ever
    assert f"{said} is a named pipe, not a {'folder' if folder else 'file'}" in refusal(project)
    path.unlink()
    path.touch() if folder else path.mkdir()
    problem = refusal(project) if name != "w.pt" else refusal(project).replace(" without", ", not")
    assert re.search(f"{said} is a (folder|file), not", problem)


def test_all_problems_of_files_are_in_one_message(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in PLACES:
        Path(name).rmdir() if Path(name).is_dir() else Path(name).unlink()
    Path("cache").touch()
    message = refusal(project)
    # The table l.csv is named under two keys.
    assert message.startswith(
        "10 file(s) or folder(s) cannot be used, of 2 of 2 slides; correct the paths, or "
        "`cohort.root` (now '.')"
    )
    assert len(message.splitlines()) == 11
    assert "cache: 'cache' cannot be written" in message
    Path("cache").unlink()
    monkeypatch.setenv("HER2_CACHE", "s2.svs/cache")
    assert "HER2_CACHE: 's2.svs/cache' cannot be written" in refusal(project)


def test_no_file_may_be_unreadable(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root, whom permissions do not bind, this asks through a stand-in."""
    ask = os.access
    closed = {str(Path(name)) for name in PLACES} - {"patches", "truths"}
    monkeypatch.setattr(
        os, "access", lambda path, mode: str(path) not in closed and ask(path, mode)
    )
    message = refusal(project)
    for name in closed:
        assert f"{PLACES[name].format(name)} may not be read" in message
    closed = {"slides.csv"}
    with pytest.raises(UserError, match=r"slides\.csv: may not be read"):
        read_plan(project, check_files=True)


@pytest.mark.parametrize("name", ["x" * 250 + ".svs", "s1.svs/x.svs"])
def test_a_slide_that_cannot_be_looked_up_has_its_id_named(
    project: dict[str, Any], write_csv: Callable[..., Path], name: str
) -> None:
    write_csv([{"slide_id": "s1", "path": name, "patient_id": "p1", "her2": "0"}])
    project["cohort"]["root"] = "a" * 250 + "/" + "b" * 250
    project["cohort"].pop("tissue_masks")
    assert re.search("slide 's1', column 'path': '.*' does not exist", refusal(project))


def test_the_files_of_a_slide_of_several_are_asked_for(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("part.dat").symlink_to("nowhere")
    monkeypatch.setattr(
        "her2.pipeline.inputs.planned_files", lambda path: [path, path.parent / "part.dat"]
    )
    assert "slide 's1', column 'path': 'part.dat' is a link to 'nowhere'" in refusal(project)


def test_a_folder_without_weights_says_what_they_are_called(project: dict[str, Any]) -> None:
    Path("w.pt").unlink()
    Path("w.pt").mkdir()
    assert "'w.pt' is a folder without weights.safetensors or model.saf" in refusal(project)
    (Path("w.pt") / "model.safetensors").mkdir()
    assert "is a folder without" in refusal(project)


def test_the_demo_draws_its_files_itself(project: dict[str, Any]) -> None:
    for name in ("s1.svs", "patches", "truths"):
        Path(name).rmdir() if Path(name).is_dir() else Path(name).unlink()
    project["cohort"]["synthetic"] = True
    read_plan(project, check_files=True)


def test_a_manifest_that_is_a_pipe_is_not_waited_for(project: dict[str, Any]) -> None:
    Path("slides.csv").unlink()
    os.mkfifo("slides.csv")
    with pytest.raises(UserError, match=r"slides\.csv: is a named pipe, not a file\. Check `cohor"):
        read_plan(project, check_files=True)


def test_snakemake_s_config_files_are_read_again_for_what_it_drops(
    project: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text("heads: {abmil: {}}\nheads: {mean: {}}\n")
    (tmp_path / "b.json").write_text('{"seed": 1, "seed": 2}')
    (tmp_path / "c.yaml").write_text("seed: 1")
    files = [tmp_path / "a.yaml", str(tmp_path / "b.json"), tmp_path / "c.yaml"]
    with pytest.raises(UserError) as error:
        read_plan(project, check_files=True, configfiles=files)
    assert "a.yaml: is not valid YAML: line 2, column 1: the key 'heads'" in str(error.value)
    assert "b.json: is not valid JSON: the key 'seed'" in str(error.value)
    read_plan(project, check_files=False, configfiles=files)  # the first process has done so
    check_config_files(files[2:])


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("target", ["features", "report", "out/tiles/g/0000-of-0001.json"])
def test_a_target_that_snakemake_took_for_a_config_file_is_explained(
    project: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str,
    absolute: bool,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
    for name in ("mine.yaml", target):
        (tmp_path / name).write_text("{}")
    files = [Path(name).absolute() if absolute else Path(name) for name in ("mine.yaml", target)]
    with pytest.raises(UserError) as error:
        read_plan(project | {"results": "out"}, check_files=True, configfiles=files)
    assert f"`snakemake --cores all {target} --configfile mine.yaml`" in str(error.value)
    assert target not in ("features", "report") or str(error.value).startswith(f"{target}: ")
    check_config_files(files[:1])


def test_no_page_puts_a_target_after_the_config_file() -> None:
    root = Path(__file__).parents[2]
    pages = [
        root / "README.md",
        root / "Snakefile",
        *root.glob("docs/*.md"),
        *root.rglob("her2/**/*.py"),
    ]
    wrong = re.compile(r"--configfile[ =]\S+ +(features|train|report|all|results/)")
    found = [f"{page.name}: {hit[0]}" for page in pages for hit in wrong.finditer(page.read_text())]
    # The page on failures shows what happens, and the form with `=`.
    assert {line.split(":")[0] for line in found} == {"failures.md"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--config", "seed=1", "seed=2"], "--config seed: is there twice"),
        (["--config", "seed=1", "-n", "--config", "results=x"], ""),
        (["--config=seed=1", "-C", "x=2", "seed=3"], ""),  # the last --config counts alone
        (["-C", "heads={mean: {}, mean: {hidden: 3}}"], "--config heads: .* 'mean' is there twice"),
        (["--configfile", "seed=1", "seed=1"], ""),
        (["target", "--cores", "1"], ""),
    ],
)
def test_a_value_twice_on_the_command_line_is_an_error(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["snakemake", *arguments])
    if not problem:
        check_arguments(sys.argv)
        return
    with pytest.raises(UserError, match=problem):
        check_arguments(sys.argv)


@pytest.mark.parametrize("name", ["a{x}", "a<x>", "a}"])
def test_a_project_does_not_lie_where_snakemake_would_see_a_pattern(name: str) -> None:
    with pytest.raises(UserError, match="the folder of this project: '/data/.* rename it"):
        check_folders(Path("/data/a b"), Path("/data") / name)
