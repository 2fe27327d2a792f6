"""Every preset is an experiment that begins, on its cohort as it is published.

The cohorts are imported by the commands of docs/cohorts.md, as they are written there.
"""

import csv
import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from her2.config import Config, load_config
from her2.config.catalogue import row
from her2.core.settings import parse_yaml
from her2.importing.preset import FOLDER
from her2.importing.registry import find_source, source_names
from her2.pipeline.external import configured_plan
from her2.pipeline.inputs import check_inputs
from her2.pipeline.trial import plan_problems
from tests.unit import published
from tests.unit.test_cli import command

REPOSITORY = FOLDER.parents[1]
PAGE = (REPOSITORY / "docs/cohorts.md").read_text()
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
COHORTS = sorted({*PRESETS} - {"paper"})  # paper.yaml is for a cohort that was never published
OFFERED = re.compile(r"^ *# (?=[\w-]+: \{ source: catalogue)", re.MULTILINE)


def commands() -> list[str]:
    """The lines of all blocks of the page, with what a user has to fill in."""
    blocks = re.findall(r"(?ms)^```bash\n(.*?)^```", PAGE)
    return [line.replace("MPP", "0.5") for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folder: all cohorts in `data`, the presets, and everything imported."""
    folder = tmp_path_factory.mktemp("user")
    published.write_all(folder / "data", published.plain)
    (folder / "workflow").symlink_to(REPOSITORY / "workflow")
    with chdir(folder):
        for line in commands():
            name, *arguments = shlex.split(line)
            if name != "her2":
                continue
            done = command(*arguments)
            if arguments[1] == "table":
                assert "labels.csv" in str(done.exception)
                confirm(Path("table/labels.csv"))
                done = command(*arguments)
            assert done.exit_code == 0, f"{line}\n{done.output}{done.exception}"
        yield folder


def confirm(labels: Path) -> None:
    """Confirm all proposals, as a person does in a spreadsheet."""
    with labels.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with labels.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({**one, "confirmed": "yes"} for one in rows)


def config_of(preset: str) -> Path:
    """The config that the page runs for a preset."""
    found = [one for line in commands() for one in re.findall(r"--configfile=(\S+)", line)]
    return next(Path(one) for one in found if Path(one).stem == preset)


def test_every_source_and_preset_is_on_the_page() -> None:
    lines = commands()
    for name in source_names():
        assert any(line.startswith(f"her2 import {name} ") for line in lines), name
        assert find_source(name).preset.removesuffix(".yaml") in PRESETS
    assert sorted({config_of(name).stem for name in COHORTS}) == COHORTS


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_legal_config_of_the_schema(preset: str) -> None:
    text = (FOLDER / f"{preset}.yaml").read_text()
    schema = json.loads((REPOSITORY / "workflow/schemas/config.schema.json").read_text())
    jsonschema.validate(yaml.safe_load(text), schema)
    load_config(FOLDER / f"{preset}.yaml")


@pytest.mark.parametrize("preset", COHORTS)
def test_a_preset_begins_on_its_cohort_as_published(here: Path, preset: str) -> None:
    config = load_config(config_of(preset))
    plan = configured_plan(config)
    assert plan_problems(plan) == []
    external = {name: (one.config.cohort, one.cohort) for name, one in plan.external.items()}
    check_inputs(config, plan.cohort, external)
    assert plan.cohort.cautions == ()
    for own in (plan, *plan.external.values()):
        assert own.cohort.rows


@pytest.mark.parametrize("preset", COHORTS)
def test_every_class_of_a_preset_has_slides_in_every_cohort(here: Path, preset: str) -> None:
    plan = configured_plan(load_config(config_of(preset)))
    for own in (plan, *plan.external.values()):
        for name, task in own.config.tasks.items():
            labels = {one.labels.get(task.label) for one in own.cohort.rows}
            for values in task.classes.values():
                assert labels & set(values), name


@pytest.mark.parametrize("preset", COHORTS)
def test_a_preset_runs_without_a_token(preset: str) -> None:
    config = load_config(FOLDER / f"{preset}.yaml")
    models = [one.model for one in config.encoders.values() if one.source == "catalogue"]
    assert models
    assert not [model for model in models if row(model).gated]


@pytest.mark.parametrize("preset", COHORTS)
def test_the_encoders_that_a_preset_offers_in_comments_can_be_used(preset: str) -> None:
    text = (FOLDER / f"{preset}.yaml").read_text()
    offered, count = OFFERED.subn("  ", text)
    assert count, "no encoder is offered"
    more = parsed(offered).encoders.keys() - parsed(text).encoders.keys()
    assert len(more) == count


@pytest.mark.parametrize("preset", sorted({*COHORTS} & {*source_names()}))
def test_a_config_that_an_import_wrote_is_the_preset_with_other_places(
    here: Path, preset: str
) -> None:
    own, given = (parsed_values(path) for path in (config_of(preset), FOLDER / f"{preset}.yaml"))
    for values in (own, given):
        values.pop("results")
        values["cohort"] = {k: v for k, v in values["cohort"].items() if k not in PLACES}
    assert own == given


PLACES = ("slides", "root", "masks")


def parsed(text: str) -> Config:
    path = Path(os.devnull)
    return Config.model_validate(parse_yaml(text, source=str(path)))


def parsed_values(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found
