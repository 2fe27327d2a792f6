"""A preset becomes the config of a cohort without losing a comment."""

from pathlib import Path

import pytest
import yaml

from her2.config import parse_config
from her2.importing.preset import FOLDER, read_preset, with_values, without_tasks

PRESETS = sorted(path.name for path in FOLDER.glob("*.yaml"))
TEXT = """\
# The whole.
results: results/x # where
cohort: # the slides
  # first
  slides: slides.csv # all
  masks:
tasks:
  # of scores
  score: # four
    label: her2
    classes: {"0": ["0"], "1+": ["1+"]} # each
    ordinal: true

  status:
    label: her2_status
    classes:
      negative: [negative] # no
      positive:
        - positive
  # of others
  response: {label: response, classes: {a: [a], b: [b]}}
# after tasks
heads: {abmil: {}} # one
"""


def comments(text: str) -> list[str]:
    return [line.partition("#")[2].strip() for line in text.splitlines() if "#" in line]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("results", Path("out/results"), "out/results"),
        ("results", Path("~a/$b"), "./~a/$$b"),
        ("cohort.slides", Path("a: b, {x}.csv"), "a: b, {x}.csv"),
        ("cohort.masks", Path("masks"), "masks"),
        ("cohort.root", Path("data"), "data"),
        ("cohort.max_excluded", 0.5, 0.5),
        ("tasks.score.classes", {"low": ["0", "1+"]}, {"low": ["0", "1+"]}),
        ("tasks.status.classes", {"b": ["x"], "a": []}, {"b": ["x"], "a": []}),
        ("tasks.response.ordinal", True, True),
        ("heads.abmil", {"gated": True}, {"gated": True}),
        ("heads.mean", {}, {}),
        ("seed", 1, 1),
    ],
)
def test_a_key_gets_its_value_and_nothing_else_changes(key, value, expected):
    before, changed = yaml.safe_load(TEXT), with_values(TEXT, {key: value})
    after = yaml.safe_load(changed)
    *above, last = key.split(".")
    place = before
    for name in above:
        place = place[name]
    place[last] = expected
    assert after == before
    lost = {"no"} if key == "tasks.status.classes" else set()
    assert set(comments(TEXT)) - set(comments(changed)) == lost


def test_a_section_that_is_not_there_is_a_mistake_of_the_source():
    with pytest.raises(KeyError, match="no section 'folds'"):
        with_values(TEXT, {"folds.split": "use"})


@pytest.mark.parametrize(
    ("labels", "left"),
    [
        (["her2", "her2_status", "response"], ["score", "status", "response"]),
        (["her2"], ["score"]),
        (["her2_status"], ["status"]),
        (["response"], ["response"]),
        (["her2", "response"], ["score", "response"]),
    ],
)
def test_tasks_without_labels_become_comments_that_can_be_taken_back(labels, left):
    text, dropped = without_tasks(TEXT, labels)
    before, after = yaml.safe_load(TEXT), yaml.safe_load(text)
    assert list(after["tasks"]) == left
    assert dropped == [name for name in before["tasks"] if name not in left]
    assert after == before | {"tasks": {name: before["tasks"][name] for name in left}}
    kept = [line.removeprefix("# ") for line in text.splitlines() if "No slide" not in line]
    assert kept == [line.removeprefix("# ") for line in TEXT.splitlines()]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_given_the_places_of_a_cohort(name):
    """What a source needs of a preset, whichever it is."""
    preset = read_preset(name)
    places = {"results": Path("o/results"), "cohort.slides": Path("o/s.csv"), "cohort.root": "d"}
    text = with_values(preset, places)
    assert set(comments(preset)) <= set(comments(text))
    config = parse_config(yaml.safe_load(text))
    assert (config.results, config.cohort.slides) == (Path("o/results"), Path("o/s.csv"))
    assert config.cohort.root == Path("d")
    for task in config.tasks.values():
        shortened, _ = without_tasks(text, {task.label})
        kept = [name for name, one in config.tasks.items() if one.label == task.label]
        assert list(yaml.safe_load(shortened)["tasks"]) == kept
