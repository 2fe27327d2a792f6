"""The README of a bundle: a model card that the hub reads, and that nothing in it can break."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, metadata_load
from markdown_it import MarkdownIt

from her2.frozen.bundle.model_card import escaped, model_card
from her2.frozen.bundle.schema import README_NAME
from tests.unit.bundle_makers import Parts, figure, parts

HOSTILE = (
    "<script>alert(1)</script>", "![x](http://evil)", "[x](javascript:alert(1))", "`code`",
    "a | b |", "# heading", "***bold***", "<!-- gone", "&lt;b&gt;", "~~x~~", "---", "\\", "$x$",
    "http://evil.example", "--- \nlicense: mit\n---",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return parts(tmp_path_factory.mktemp("parts"))


def data(made: Parts, **changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = ModelCard(model_card(made.with_body(**changed).body)).data.to_dict()
    return found


def text(made: Parts, **changed: Any) -> str:
    return " ".join(model_card(made.with_body(**changed).body).split())


def test_the_hub_reads_it(made: Parts, tmp_path: Path) -> None:
    path = made.write(tmp_path / "a.bundle") / README_NAME
    values = metadata_load(path)
    assert values["license"] == "apache-2.0"
    assert values["library_name"] == "her2"
    assert {"her2", "synthetic"} <= set(values["tags"])
    assert values["metrics"] == ["roc_auc"]
    card = ModelCard.load(path)
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("roc_auc", 0.8)
    assert result.metric_args == {"low": 0.6, "high": 0.9, "n": 12, "confidence": 0.95}
    assert "synthetic" in result.dataset_name


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("mit", ("mit", None)), ("", ("other", "not-stated")),
        ("Ask the clinic: x", ("other", "Ask the clinic: x")),
    ],
)  # fmt: skip
def test_the_licence_is_the_stated_one(
    made: Parts, licence: str, expected: tuple[str, Any]
) -> None:
    values = data(made, licence=licence)
    assert (values["license"], values.get("license_name")) == expected


def test_a_figure_that_is_not_defined_is_na_and_no_result(made: Parts) -> None:
    nothing = [figure("metrics", metric="auc", of="low", value=None).model_dump()]
    values = data(made, figures=nothing)
    assert "model-index" not in values
    assert "| AUC | low | | NA | | 12 |" in text(made, figures=nothing)


def test_all_that_a_reader_must_know_is_said(made: Parts) -> None:
    said = text(made)
    for words in ("Not a medical device", "## Intended use", "## Out of scope",
                  "## Training data", "## Limitations", "3 of the patients trained or tuned",
                  "low, high",
                  "`bundle.json` has salted hashes", "models of a cross-validation"):  # fmt: skip
        assert words in said
    assert "trained on all patients" in text(made, final="refit")


def test_what_came_before_the_model_is_said(made: Parts) -> None:
    assert "pre-trained" not in text(made)
    assert "drawn regions" not in text(made)
    assert "Tiles were chosen with" not in text(made)
    encoder = {**made.body.encoder.model_dump(), "source": "pretrain",
               "provenance": {"patches": {"train": 720}}}  # fmt: skip
    tiling = {**made.body.tiling.model_dump(), "tissue": {"mask": 2, "detected": 1}, "annotated": 2}
    said = text(made, encoder=encoder, tiling=tiling)
    assert "pre-trained on 720 patches of 1 cases" in said
    assert "2 by mask" in said
    assert "2 slides were used within drawn regions only" in said


def test_synthetic_slides_are_said_to_be_synthetic_and_others_are_not(made: Parts) -> None:
    assert text(made).count("ynthetic") >= 4
    assert "ynthetic" not in text(made, synthetic=False)


def test_figures_of_slides_are_shown_where_there_are_no_others(made: Parts) -> None:
    own = [figure("metrics", metric="auc", of="low", level="slide", value=0.7).model_dump()]
    assert "| slides |" in text(made, figures=own)
    (result,) = data(made, figures=own)["model-index"][0]["results"]
    assert result["metrics"][0]["name"] == "AUC, low, by slide"


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_becomes_markup(value: str) -> None:
    """In a sentence, a list and a table, as a renderer reads it."""
    renderer = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    table = "| a | b |\n| --- | --- |\n| "
    for before, after, cells in (("Words: ", ".", 0), ("- item ", ".", 0), (table, " | x |", 4)):
        tokens = renderer.parse(f"{before}{escaped(value)}{after}")
        inline = [child for one in tokens for child in one.children or []]
        assert {one.type for one in inline} <= {"text", "text_special"}
        assert "html_block" not in {one.type for one in tokens}
        assert not {"heading_open", "hr"} & {one.type for one in tokens}
        assert sum(one.type in ("td_open", "th_open") for one in tokens) == cells
        shown = "".join(one.content for one in inline)
        assert " ".join(value.split()) in shown


@pytest.mark.parametrize("value", [one for one in HOSTILE if "\n" not in one])
def test_no_value_of_a_config_changes_the_front_matter(made: Parts, value: str) -> None:
    values = data(
        made,
        licence=value,
        encoder={**made.body.encoder.model_dump(), "why": value},
        figures=[figure("metrics", metric="auc", of=value, note=value, value=0.5).model_dump()],
    )
    assert values["license"] == "other"
    assert values["license_name"] == value
    (result,) = values["model-index"][0]["results"]
    assert result["metrics"][0]["name"] == f"AUC, {value}, by patient"
    assert result["metrics"][0]["args"]["note"] == value
