"""The draft of the methods, for many kinds of runs: each number of a table, nothing invented."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from her2.config import Config, parse_config
from her2.config.heads import HEADS
from her2.pretraining.overlap import Overlap
from her2.report.format import count
from her2.report.results import Results, read_results
from her2.report.sections import published_protocol
from her2.report.sections.paper import checklist, methods, methods_models
from her2.report.sections.paper.methods_models import (
    BALANCE,
    FIT_BALANCE,
    LOSSES,
    OPTIMISERS,
)
from her2.report.sections.paper.references import known_works, references
from tests.unit.report_maker import HOSTILE, Cohort, build_page

CITATION = re.compile(r"[A-Z]\w+(?: et al\.| and [A-Z]\w+)? (?:19|20)\d\d")
SLIPS = re.compile(
    r"\b(None|nan|True|False)\b|\b1 (slides|patients|encoders|tiles|epochs|trials|heads)\b"
    r"|  | [.,;)]|\(\)|(?<!\.)\.\.(?!\.)|\bnone \(random\) images"
)
ZOO = {name: {"head": name} for name in HEADS}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("methods")
    cohort = Cohort(
        encoders=("one", "two"),
        labels=("0", "1", "2") * 8 + (None, "9"),
        tile_reasons={0: ("excluded", "no tissue"), 1: ("failed", "cut off")},
        embed_reasons={5: ("excluded", "7 of 20 tiles cannot be read")},
        pretrained={"two": {}},
        signal=0.3,
    )
    return read_results(cohort.write(folder), folder)


def configured(results: Results, **values: Any) -> Results:
    """The same run, had its config said something else."""
    whole = results.config.model_dump(mode="json") | values
    return replace(results, config=parse_config(whole))


def text(results: Results) -> str:
    return "\n".join(methods.methods(results))


def test_numbers_of_the_cohort_are_those_of_the_tables(results: Results) -> None:
    words = text(results)
    model = results.models[0]
    evaluated = model.patients["target"].value_counts().sort("target")["count"].to_list()
    assert f"{evaluated[0]} patients of 0, {evaluated[1]} of 1+ and {evaluated[2]} of 2+" in words
    usable = results.cohort.filter(pl.col("status") == "ok")
    assert f"This gave {count(usable['tiles'].sum())} tiles on {len(usable)} slides" in words
    assert f"The slides are from {results.cohort['site'].n_unique()} sites" in words
    for name, card in results.cards.items():
        assert re.search(rf"{name} \(resnet18 of timm, {card.dimension} features per tile", words)
        assert card.weights_sha256[:12] in words


def test_numbers_of_the_parts_are_those_of_the_folds(results: Results) -> None:
    table = results.folds["score"].filter(pl.col("role") == "test")
    sizes = table.group_by("fold").len()["len"].unique().sort().to_list()
    assert f"and {' to '.join(map(str, sizes))} test patients per fold" in text(results)


def test_uneven_parts_are_given_as_a_range() -> None:
    rows = [
        ("a", 0, "train"), ("b", 0, "test"), ("c", 0, "tune"),
        ("a", 1, "test"), ("b", 1, "test"), ("c", 1, "tune"), ("d", 1, "train"),
    ]  # fmt: skip
    table = pl.DataFrame(
        [(patient, 0, fold, role) for patient, fold, role in rows],
        schema=["patient_id", "repeat", "fold", "role"],
        orient="row",
    )
    assert methods_models._sizes(table) == "1 training, 1 tuning and 1 to 2 test patients per fold"


def test_every_kind_of_head_is_described_and_its_source_listed(results: Results) -> None:
    words = text(configured(results, heads=ZOO))
    listed = words.rpartition("\nReferences. ")[2]
    for name, section in HEADS.items():
        assert f"{name} ({section.label}" in words
        for work, where in section.citations.items():
            assert f"{work}, {where}" in listed


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"heads": ZOO},
        {"heads": {"logistic": {"head": "logistic"}}},
        {"heads": {"abmil": {"search": {"trials": 2, "options": {"gated": [True, False]}}}}},
        {"training": {"warmup_epochs": 0, "schedule": "cosine", "label_smoothing": 0.1}},
        {"training": {"loss": "ordinal", "balance": "none", "clip_norm": None, "patience": 1}},
        {"folds": {"number": 3, "repeats": 2, "sites": "preserved", "max_shared_tiles": 1}},
        {"folds": {"number": 2, "sites": "leave_one_out", "seed": 9}},
        {"training": {"seeds": 3}},
        {"tiling": {"max_tiles": 1, "min_tiles": 1, "max_pen": 1, "max_blur": 1, "overlap": 0.5}},
        {"tiling": {"blur_step_um": 0, "max_fold": 1, "max_border": 1, "max_pen": 1}},
        {"evaluation": {"bootstrap": 100, "groupings": {}}},
    ],
)
def test_whatever_is_configured_the_words_are_in_order(
    results: Results, values: dict[str, Any]
) -> None:
    changed = configured(results, **values)
    words = text(changed)
    assert not SLIPS.search(words), SLIPS.search(words)
    filled = [item.content for item in checklist.checklist(changed)]
    assert all(filled)
    assert not SLIPS.search("\n".join(filled)), SLIPS.search("\n".join(filled))
    body, _, listed = words.rpartition("\nReferences. ")
    for work in CITATION.findall(body):
        assert f"{work}, {known_works()[work]}" in listed


def test_several_trainings_of_a_fold_are_described_and_a_single_one_is_not(
    results: Results,
) -> None:
    words = text(configured(results, training={"seeds": 3}))
    assert "Each fold was trained 3 times, with other seeds" in words
    assert "never saw its patient, trained with the first of 3 seeds." in words
    assert "the mean over the repeats and training seeds" in words
    assert "seeds" not in text(configured(results, training={"seeds": 1}))


def test_only_what_is_named_is_in_the_list_of_references() -> None:
    assert references(["(Guo et al. 2017)"]) == "References. Guo et al. 2017, ICML, PMLR 70."
    for name in known_works():
        assert CITATION.fullmatch(name)


def test_every_choice_of_the_config_has_its_words() -> None:
    fields = Config.model_fields["training"].annotation.model_fields
    for name, words in {"balance": BALANCE, "loss": LOSSES, "optimiser": OPTIMISERS}.items():
        assert set(fields[name].annotation.__args__) == set(words)
    assert BALANCE.keys() == FIT_BALANCE.keys()


def test_a_baseline_has_no_epochs_and_no_steps(results: Results) -> None:
    words = text(configured(results, heads={"logistic": {"head": "logistic"}}))
    assert "inverse strength of the penalty was chosen" in words
    assert "The tuning set was used to choose the strength of the penalty" in words
    assert "epoch without" not in words
    assert "AdamW" not in methods_models.models(
        configured(results, heads={"logistic": {"head": "logistic"}})
    )


def test_a_local_file_of_an_untrained_encoder_is_not_called_published(results: Results) -> None:
    section = {
        "source": "checkpoint", "model": "timm/resnet18", "checkpoint": "w.safetensors",
        "domain": "none", "mpp": 0.5, "size": 224,
    }  # fmt: skip
    encoders = results.config.model_dump(mode="json")["encoders"] | {"one": section}
    words = text(configured(results, encoders=encoders))
    assert "weights from a local file, not trained on any image" in words
    assert "published" not in words


def test_an_encoder_made_here_has_its_patches_and_epoch(results: Results) -> None:
    words = text(results)
    assert (
        "two was trained on 1,200 normal and 800 tumour patches, starting from random weights"
        in words
    )
    assert "by case: no patient is on both sides. Epoch 2 of 3 was kept" in words


def test_searched_options_are_not_given_as_set(results: Results) -> None:
    search = {"trials": 2, "options": {"attention": [32, 64]}}
    changed = configured(results, heads={"abmil": {"attention": 99, "search": search}})
    words = methods_models.models(changed)
    assert "attention from 32 and 64" in words
    assert "99" not in words


def test_patients_that_an_encoder_saw_are_said(results: Results) -> None:
    saw = replace(results, overlaps={"two": Overlap(True, ("p1",), True)})
    assert "its training included 1 patient of this cohort" in text(saw)
    unknown = replace(results, overlaps={"two": Overlap(False, (), False)})
    assert "whether its training included patients of this cohort is unknown" in text(unknown)


@pytest.mark.parametrize(("value", "drawn"), [("train", True), ("Validation", False)])
def test_a_fixed_split_is_not_called_cross_validation(
    results: Results, value: str, drawn: bool
) -> None:
    cohort = results.cohort.with_columns(split=pl.lit(value))
    words = text(replace(results, split=True, cohort=cohort))
    assert "The manifest's fixed split (column 'split') was used." in words
    assert "cross-validation" not in words
    assert ("The column names no tuning set: 20" in words) is drawn


def test_the_published_protocol_is_named_only_where_it_ran(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "as published" not in text(results)
    monkeypatch.setattr(methods_models, "protocols", lambda _: [object()])
    words = text(results)
    assert "trained and evaluated as published (Abdulsadig et al. 2024)" in words
    assert "tiles were embedded once and not changed at random in training" in words
    assert published_protocol.protocols(results) == []


def test_augmented_views_are_described_only_where_there_are_some(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "augmented" not in text(results)
    monkeypatch.setattr(methods_models, "protocols", lambda _: [object()])
    name, section = next(iter(results.config.encoders.items()))
    viewed = {**results.config.encoders, name: section.model_copy(update={"augmentations": 3})}
    words = text(configured(results, encoders=viewed))
    assert f"By {name}, every tile was also embedded in 3 augmented views: brightness" in words
    assert "all predictions are of plain features" in words
    assert "tiles were not changed at random whenever they were drawn" in words


def test_tissue_of_mask_files_is_not_called_detected(results: Results) -> None:
    cohort = results.cohort.with_columns(tissue_source=pl.lit("mask file"), regions=pl.lit(2))
    words = methods.tiles(replace(results, cohort=cohort))
    assert "Tissue was taken from mask files made by another program." in words
    assert "only annotated regions were used" in words


@pytest.mark.parametrize(
    ("name", "said", "where"),
    [
        ("hest", "DeepLabV3 with a ResNet-50, of HEST-1k (Jaume et al. 2024)", "HEST-1k: a"),
        ("grandqc", "UNet++ with an EfficientNet-B0, of GrandQC (Weng et al. 2024)", "GrandQC: a"),
    ],
)
def test_tissue_of_a_segmenter_is_cited(results: Results, name: str, said: str, where: str) -> None:
    source = pl.lit(f"segmenter {name}, weights 0123456789ab")
    own = replace(results, cohort=results.cohort.with_columns(tissue_source=source))
    words = methods.tiles(own)
    assert f"Tissue was found by {said} without further training." in words
    assert where in text(own)
    masked = pl.when(pl.int_range(pl.len()) == 0).then(pl.lit("mask file")).otherwise(source)
    mixed = replace(results, cohort=results.cohort.with_columns(tissue_source=masked))
    expected = "without further training or taken from mask files made by another program."
    assert expected in methods.tiles(mixed)


def test_two_tasks_have_their_own_numbers(results: Results) -> None:
    whole = results.config.model_dump(mode="json")["tasks"]
    low = {"label": "her2", "classes": {"low": ["0", "1"], "high": ["2"]}}
    words = text(configured(results, tasks=whole | {"low": low}))
    assert "Before exclusions, the column her2 gave 16 patients of low and 8 of high" in words
    assert "low vs high" in words


def test_hostile_names_are_plain_in_the_text_and_harmless_on_the_page(tmp_path: Path) -> None:
    grouping = {HOSTILE: {"negative": ["0"], "positive": ["2+"]}}
    cohort = Cohort(
        values={"evaluation": {"bootstrap": 100, "groupings": grouping}}, sites=("=1+1", "b")
    )
    spec = cohort.write(tmp_path / "results")
    build_page(spec, tmp_path / "results", tmp_path / "report.html")
    assert HOSTILE in (tmp_path / "methods.txt").read_text(encoding="utf-8")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_checklist_names_sections_that_the_page_has(tmp_path: Path) -> None:
    cohort = Cohort()
    spec = cohort.write(tmp_path / "results")
    build_page(spec, tmp_path / "results", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    table = pl.read_csv(tmp_path / "checklist.csv", infer_schema=False)
    anchors = [name for name in table["anchor"] if name]
    assert len(anchors) > 15
    assert all(f'id="{name}"' in page for name in anchors)
    assert set(table["filled_by"]) == {"author", "pipeline", "pipeline, author"}
    outcome = table.filter(pl.col("item") == "8a")["content"].item()
    assert outcome.endswith("[author: how and when HER2 was scored]")


def test_figures_of_a_model_that_is_gone_are_removed_and_other_files_stay(tmp_path: Path) -> None:
    page = tmp_path / "report" / "report.html"
    for number, encoders in enumerate([("one", "two"), ("one",)]):
        folder = tmp_path / f"results{number}"
        build_page(Cohort(encoders=encoders).write(folder), folder, page)
        (page.parent / "figures" / "mine.svg").touch()
    names = {path.name for path in (page.parent / "figures").iterdir()}
    assert "score.one.abmil.roc.svg" in names
    assert "mine.svg" in names
    assert not any(".two." in name for name in names)
