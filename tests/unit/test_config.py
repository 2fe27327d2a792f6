import datetime
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, get_args

import jsonschema
import pytest
import yaml
from pydantic import Field

from her2.config import (
    Config,
    EncoderSection,
    EvaluationSection,
    FoldsSection,
    GivenSection,
    Section,
    TilingSection,
    load_config,
    parse_config,
)
from her2.config.heads import HEADS
from her2.config.page import page
from her2.config.reserved import FILES
from her2.core.errors import UserError
from her2.core.section import Positive, Share, unbounded
from her2.filters.base import Option
from her2.heads import SearchSection
from her2.heads.abmil import AttentionSection


def put(values: dict, path: str, value: object) -> dict:
    """Set a nested value; `path` is separated by slashes."""
    *parents, last = path.split("/")
    section = values
    for name in parents:
        section = section.setdefault(name, {})
    section[last] = value
    return values


def refusal(values: dict) -> str:
    with pytest.raises(UserError) as error:
        parse_config(values, source="config.yaml")
    return str(error.value)


def test_the_least_config_is_complete(config_values):
    config = parse_config(config_values)
    assert config.tiling == TilingSection()
    assert config.heads["abmil"].head == "abmil"
    assert config.grids == {"224px-0.5mpp": (0.5, 224)}


@pytest.mark.parametrize(
    ("wrong", "right", "another"),
    [
        ("tilling", "tiling", "encoders"),
        ("tiling/min_tisue", "min_tissue", "overlap"),
        ("cohort/slide", "slides", "max_excluded"),
        ("encoders/tiny/modle", "model", "checkpoint"),
        ("tasks/score/lable", "label", "classes"),
        ("heads/abmil/atention", "attention", "gated"),
        ("training/learningrate", "learning_rate", "bag_size"),
        ("folds/nummber", "number", "repeats"),
        ("evaluation/boostrap", "bootstrap", "confidence"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_right_one_and_all_legal_ones(
    config_values, wrong, right, another
):
    message = refusal(put(config_values, wrong, 1))
    assert wrong.replace("/", ".") in message
    assert f"did you mean {right!r}" in message
    legal = message.split("the legal keys are ")[1].splitlines()[0].split(", ")
    assert {right, another} <= set(legal)
    assert wrong.split("/")[-1] not in legal


def test_a_key_like_no_other_is_answered_with_the_legal_ones(config_values):
    message = refusal(put(config_values, "tiling/zzzzzz", 1))
    assert "did you mean" not in message
    assert ", ".join(sorted(TilingSection.model_fields)) in message


def test_all_problems_of_a_config_are_in_one_message(config_values):
    put(config_values, "tiling/min_tisue", 1)
    put(config_values, "encoders/tiny/mpp", 0)
    put(config_values, "seed", -1)
    del config_values["tasks"]
    message = refusal(config_values)
    assert message.startswith("config.yaml: 4 problem(s)")
    for key in ("tiling.min_tisue", "encoders.tiny.mpp", "seed", "tasks: missing"):
        assert f"  - {key}" in message


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("tiling/min_tissue", 1.5, "less than or equal to 1"),
        ("tiling/overlap", 0.9, "less than 0.9"),
        ("tiling/thumbnail_mpp", float("inf"), "finite"),
        ("tiling/min_tissue", float("nan"), "finite"),
        ("encoders/tiny/mpp", 0.01, "greater than or equal to 0.05"),
        ("encoders/tiny/size", 0, "greater than or equal to 16"),
        ("cohort/slides_per_bucket", 0, "greater than or equal to 1"),
        ("folds/number", 1, "greater than or equal to 2"),
        ("encoders/tiny/source", "hub", "'checkpoint'"),
    ],
)
def test_an_illegal_value_is_named_with_its_limit(config_values, key, value, limit):
    message = refusal(put(config_values, key, value))
    assert f"{key.replace('/', '.')}: {value!r}" in message
    assert limit in message


@pytest.mark.parametrize("name", ["../up", "a b", "<script>", ".hidden", "a/b", "", "a\n"])
@pytest.mark.parametrize("section", ["tasks", "encoders", "heads"])
def test_a_name_that_cannot_be_part_of_a_path_is_refused(config_values, section, name):
    first = next(iter(config_values[section].values()))
    message = refusal(put(config_values, section, {name: first}))
    assert f"{name!r} is not a legal name" in message


def test_a_class_without_quotes_is_answered_with_how_to_write_it(config_values):
    """YAML reads `0: [0]` as numbers."""
    read = yaml.safe_load("{0: [0], 1+: [1+]}")
    message = refusal(put(config_values, "tasks/score/classes", read))
    assert "tasks.score.classes.0: YAML does not read 0 as text; put it in quotes" in message
    assert "constrained-str" not in message


@pytest.mark.parametrize(
    ("classes", "complaint"),
    [
        ({"low": ["0", "1+"], "high": ["1+", "3+"]}, "'1+' is in 'low' and 'high'"),
        ({"low": ["0"], "high": []}, "'high' lists no label value"),
        ({"low": ["0"]}, "at least 2"),
    ],
)
def test_classes_part_the_label_values(config_values, classes, complaint):
    assert complaint in refusal(put(config_values, "tasks/score/classes", classes))


@pytest.mark.parametrize("name", ["macro", "weighted", "all"])
def test_a_class_does_not_have_the_name_of_a_mean(config_values, name):
    classes = {name: ["0"], "high": ["1+"]}
    complaint = f"class '{name}': the tables have a mean of this name"
    assert complaint in refusal(put(config_values, "tasks/score/classes", classes))


def test_a_task_maps_label_values_to_classes(config_values):
    classes = {"negative": ["0", "1+"], "positive": ["2+", "3+"]}
    task = parse_config(put(config_values, "tasks/score/classes", classes)).tasks["score"]
    assert task.class_names == ("negative", "positive")
    assert [task.class_index(v) for v in ("0", "1+", "2+", "3+", "4")] == [0, 0, 1, 1, None]


def test_encoders_that_agree_share_a_grid(config_values):
    first = config_values["encoders"]["tiny"]
    config_values["encoders"] |= {
        "other": first | {"model": "timm/resnet34"},
        "coarse": first | {"mpp": 1.0, "size": 96},
    }
    grids = parse_config(config_values).grids
    assert grids == {"224px-0.5mpp": (0.5, 224), "96px-1mpp": (1.0, 96)}


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"model": "resnet18"}, "timm/resnet18 or torchvision/resnet18"),
        ({"source": "checkpoint"}, "needs `checkpoint: PATH`"),
        ({"checkpoint": "x.safetensors"}, "needs `checkpoint: PATH`"),
        ({"source": "torchvision"}, "torchvision cannot load timm/resnet18"),
        ({"model": "timm/../x"}, "does not match"),
        ({"mean": [0.5, 0.5, 0.5]}, "`mean` and `std` must be given together"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.5, 0]}, "greater than 0"),
        (
            {"source": "catalogue", "model": "uni", "mean": [0.5] * 3, "std": [0.5] * 3},
            "source catalogue has its own `mean` and `std`",
        ),
    ],
)
def test_an_encoder_says_where_its_weights_come_from(config_values, changed, complaint):
    config_values["encoders"]["tiny"] |= changed
    assert complaint in refusal(config_values)


def test_an_encoder_that_states_no_normalisation_is_the_job_it_was(config_values):
    section = parse_config(config_values).encoders["tiny"]
    assert not {"mean", "std"} & section.model_dump(mode="json").keys()
    stated = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 1.0)}
    config_values["encoders"]["tiny"] |= stated
    dumped = parse_config(config_values).encoders["tiny"].model_dump()
    assert {name: dumped[name] for name in stated} == stated


def test_a_head_is_named_by_its_key_or_by_itself(config_values):
    config_values["heads"] = {"abmil": None, "wide": {"head": "abmil", "attention": 512}}
    heads = parse_config(config_values).heads
    assert heads["abmil"].head == heads["wide"].head == "abmil"
    assert heads["wide"].model_dump()["attention"] == 512


def test_a_config_does_not_change_once_read(config_values):
    with pytest.raises(ValueError, match="frozen"):
        parse_config(config_values).tiling.overlap = 0.5


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "has no settings"),
        (b"- a\n- b\n", "has no settings"),
        (b"cohort: {slides: [", "is not valid YAML"),
        (b"title: \xff\xfe", "is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, complaint):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=complaint) as error:
        load_config(path)
    assert str(error.value).startswith(str(path))


def test_a_config_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: does not exist"):
        load_config(tmp_path / "nowhere.yaml")


def test_a_file_says_what_its_values_say(tmp_path, config_values):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_values))
    assert load_config(path) == parse_config(config_values)


def test_the_json_schema_agrees_on_the_least_config_and_on_a_misspelt_key(config_values):
    schema = Config.model_json_schema()
    jsonschema.validate(config_values, schema)
    with pytest.raises(jsonschema.ValidationError, match="min_tisue"):
        jsonschema.validate(put(config_values, "tiling/min_tisue", 0.5), schema)


def test_every_key_of_a_section_is_described():
    schema = Config.model_json_schema()
    bare = [
        f"{name}.{key}"
        for name, section in schema["$defs"].items()
        for key, field in section["properties"].items()
        if "description" not in field
    ]
    assert bare == []


PRESETS = Path(__file__).parents[2] / "workflow" / "presets"


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_preset_is_legal(path):
    load_config(path)


def test_the_paper_preset_has_the_paper_s_settings():
    """The settings of arXiv 2411.05028: AlexNet features, 96 px, ungated attention, 64 x 100."""
    config = load_config(PRESETS / "paper.yaml")
    for encoder in config.encoders.values():
        assert (encoder.library, encoder.architecture) == ("torchvision", "alexnet")
        assert (encoder.size, encoder.mpp, encoder.feature) == (96, 1.0, "flattened")
    head, training = config.heads["abmil"], config.training
    assert isinstance(head, AttentionSection)
    assert (head.attention, head.gated, head.hidden) == (256, False, 0)
    assert (training.bag_size, training.bags_per_batch) == (100, 64)
    assert (training.epochs, training.steps_per_epoch) == (50, 100)
    assert (training.learning_rate, training.weight_decay) == (1e-3, 1e-7)
    assert config.published_protocol


def test_the_committed_schema_is_that_of_the_models():
    """`her2 config schema > workflow/schemas/config.schema.json` renews it."""
    committed = PRESETS.parent / "schemas" / "config.schema.json"
    assert json.loads(committed.read_text()) == Config.model_json_schema()


def test_the_committed_page_is_that_of_the_models():
    """`her2 config page > docs/config.md` renews it."""
    assert (PRESETS.parents[1] / "docs" / "config.md").read_text() == page()


def test_the_page_has_every_key_of_every_section():
    schema, text = Config.model_json_schema(), page()
    for section in (schema, *schema["$defs"].values()):
        for key, value in section.get("properties", {}).items():
            assert f"| `{key}` |" in text or "const" in value


def test_an_unknown_key_of_a_search_is_answered_with_those_of_a_search(config_values):
    config_values["heads"] = {"abmil": {"search": {"trial": 3, "options": {"attention": [1]}}}}
    with pytest.raises(
        UserError, match=r"unknown key; did you mean 'trials'\? the legal keys are options"
    ):
        parse_config(config_values)


def test_an_illegal_value_of_a_search_names_the_head(config_values):
    options = {"trials": 2, "options": {"dropout": [0.1, 2.0]}}
    config_values["heads"] = {"abmil": {"search": options}}
    with pytest.raises(UserError, match=r"heads.abmil: search.options.dropout: 2.0: .* than 1"):
        parse_config(config_values)


def test_kappa_picks_no_epoch_where_classes_have_no_order(config_values):
    config_values["training"] = {"select": "quadratic_kappa"}
    with pytest.raises(UserError, match="needs ordered classes; set `ordinal: true` in the task"):
        parse_config(config_values)


def numbers(schema: object, way: str = "") -> Iterator[tuple[str, dict]]:
    """Every number that the schema describes, and where."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            yield way, schema
        for key, part in schema.items():
            yield from numbers(part, f"{way}/{key}")
    elif isinstance(schema, list):
        for number, part in enumerate(schema):
            yield from numbers(part, f"{way}/{number}")


def test_every_number_of_the_config_has_limits():
    """Also those of heads and filters; 10^10 of anything would be killed without a word."""
    found = dict(numbers(Config.model_json_schema()))
    assert len(found) > 60
    for way, schema in found.items():
        assert {"minimum", "exclusiveMinimum"} & schema.keys(), way
        assert {"maximum", "exclusiveMaximum"} & schema.keys(), way
        most = schema.get("maximum", schema.get("exclusiveMaximum"))
        assert most <= 2**31, way
        assert (schema.get("default") or 0) <= most, way


def parts_of(annotation: object) -> list[object]:
    """All types in an annotation, at any depth."""
    return [annotation] + [part for one in get_args(annotation) for part in parts_of(one)]


def test_no_section_has_a_number_without_limits():
    sections = {*HEADS.values(), SearchSection}
    for field in Config.model_fields.values():
        sections |= {part for part in parts_of(field.annotation) if isinstance(part, type)}
        sections |= {field.annotation} if isinstance(field.annotation, type) else set()
    sections = {part for part in sections if issubclass(part, Section)}
    assert {
        TilingSection, FoldsSection, EncoderSection, GivenSection, EvaluationSection
    } < sections  # fmt: skip
    assert {section: found for section in sections if (found := unbounded(section))} == {}


def test_a_number_without_limits_is_found_wherever_it_is():
    class Odd(Section):
        bare: int = 1
        least: int = Field(1, ge=0)
        listed: tuple[float, ...] = ()
        named: dict[str, Positive | float]
        fine: Annotated[int, Field(ge=0, lt=5)] | None = None
        shares: dict[str, Share]
        either: int | None = Field(None, gt=0, le=9)
        flag: bool = False

    assert unbounded(Odd) == ["bare", "least", "listed", "named"]


def test_a_filter_s_option_has_a_limit_unless_it_states_another():
    assert Option(1.0, "").at_most == 1_000_000


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("folds/number", 1000), ("folds/repeats", 1000), ("evaluation/bootstrap", 100_000),
        ("training/bag_size", 100_000), ("heads/abmil/attention", 16_384),
        ("cohort/slides_per_bucket", 1_000_000), ("training/epochs", 100_000),
        ("pretraining/batch_size", 16_384), ("tiling/blur_step_um", 1_000_000),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [10**9, 10**10, 10**400], ids=["10^9", "10^10", "10^400"])
def test_a_number_beyond_reason_is_refused_at_once(config_values, key, most, value):
    message = refusal(put(config_values, key, value))
    assert re.search(
        rf"- {key.replace('/', '.')}: .*(than or equal to {most}|finite|not a number)", message
    )


def test_more_tiles_than_a_step_can_hold_are_refused(config_values):
    config_values["training"] = {"bag_size": 100_000, "bags_per_batch": 41}
    assert "training: `bag_size` 100000 x `bags_per_batch` 41 are 4,100,000 tiles" in (
        refusal(config_values)
    )
    config_values["training"]["bags_per_batch"] = 40
    parse_config(config_values)


def test_more_models_than_can_be_named_are_refused(config_values):
    config_values |= {"folds": {"number": 1000, "repeats": 500}, "training": {"seeds": 2}}
    assert "folds.repeats: 1000 folds x 500 repeats x 2 training seeds are 1,000,000 models" in (
        refusal(config_values)
    )


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("training/seeds", True, "'true' is not a whole number"),
        ("seed", False, "'false' is not a whole number"),
        ("encoders/tiny/mpp", True, "'true' is not a number"),
        ("encoders/tiny/mean", [True, 0.5, 0.5], "'true' is not a number"),
        ("evaluation/prevalence", {"0 vs 1+": True}, "'true' is not a number"),
        ("heads/abmil/hidden", True, "'true' is not a whole number"),
        ("tiling/max_blur", True, "'true' is not a number"),
        ("folds/number", "five", "'five' is not a whole number"),
        ("folds/number", 2.5, "2.5 is not a whole number"),
        ("folds/number", None, "null is not a whole number"),
        ("heads/abmil/gated", "maybe", "'maybe' is neither true nor false"),
        ("evaluation/subgroups", "year", r"'year' is not a list; write \[year\]"),
        ("cohort/mask_classes", "tumour", r"'tumour' is not a list; write \[tumour\]"),
        ("tasks/score/classes/0", "0", r"'0' is not a list; write \[0\]"),
        ("encoders/tiny/source", [], r"\[\]: must be 'timm'"),
        ("encoders/tiny/source", {}, r"\{\}: must be 'timm'"),
        ("encoders/tiny", "resnet", "'resnet' is not a section; write lines of `key: value`"),
        ("encoders/tiny", None, "null is not a section"),
        ("encoders", ["tiny"], r"\['tiny'\] is not a mapping; write lines of `name: value`"),
        ("tasks", 5, "5 is not a mapping"),
        ("results", 5, "5 is not a path; write it as text"),
        ("cohort/slides", ["a.csv"], r"\['a.csv'\] is not a path"),
        ("report/title", datetime.date(2024, 1, 1), "YAML does not read 2024-01-01 as text; put"),
        ("tasks/score/label", True, "YAML reads yes, no, on, off, true and false as no text; put"),
        ("results", None, "is empty .YAML reads a bare ~ so, too.; name a file or folder"),
        ("report/title", "a\ud800", "'a.ud800' contains what is no character"),
        ("heads", {"abmil": 3}, "unknown or missing head; set `head:`|3 is not a section"),
    ],
)
def test_an_odd_value_is_answered_with_what_is_legal(config_values, key, value, problem):
    message = refusal(put(config_values, key, value))
    assert re.search(rf"- {key.replace('/', '.')}(\.[^:]+)?: ({problem})", message), message


def test_a_value_that_no_search_takes_has_one_problem(config_values):
    options = {"trials": 2, "options": {"dropout": [0.1, ["a"]]}}
    config_values["heads"] = {"abmil": {"search": options}}
    message = refusal(config_values)
    assert message.startswith("config.yaml: 1 problem(s)")
    assert "heads.abmil.search.options.dropout.1: ['a'] is not a number" in message


def test_a_config_of_nothing_but_mistakes_is_refused_at_once(config_values):
    began = time.process_time()
    config_values |= {f"key {number}": 1 for number in range(20_000)}
    message = refusal(config_values)
    assert len(message) < 100_000
    assert time.process_time() - began < 2


SECTIONS = ("tasks", "encoders", "heads", "patches")


def renamed(values: dict, section: str, *names: str) -> dict:
    """Give copies of a section's first entry these names."""
    values["patches"] = {"set": {"format": "csv", "path": "a.csv"}}
    values["heads"] = {"mine": {"head": "abmil"}}
    first = next(iter(values[section].values()))
    return values | {section: dict.fromkeys(names, first)}


@pytest.mark.parametrize("section", SECTIONS)
def test_no_name_is_that_of_a_file_of_ours_or_differs_only_by_case(config_values, section):
    names = (
        "comparison.csv",
        "x.JSON",
        "Stamps",
        "a.as-published",
        "uni",
        "UNI",
        "nul",
        "com1.x",
        "dot.",
    )
    message = refusal(renamed(config_values, section, *names, "resnet50.a1_in1k"))
    for name in (
        "comparison.csv",
        "x.JSON",
        "Stamps",
        "a.as-published",
        "UNI",
        "nul",
        "com1.x",
        "dot.",
    ):
        assert f"- {section}.{name}: " in message
    assert message.startswith("config.yaml: 8 problem(s)")
    assert "differs from 'uni' only by case" in message


def test_the_endings_of_our_files_are_those_that_the_rules_write():
    """A name with such an ending could be a folder where a job writes a file."""
    rules = "".join(path.read_text() for path in (PRESETS.parent / "rules").glob("*.smk"))
    wiring = (PRESETS.parents[1] / "her2" / "pipeline" / "wiring.py").read_text()
    written = set(re.findall(r"\w(\.(?:[a-z]{3,11}))\"", rules + wiring))
    assert {".csv", ".parquet", ".json", ".tsv", ".log", ".html", ".safetensors"} < written
    assert written - {".smk", ".yaml", ".rst", ".svs"} <= FILES
