"""The report: one safe, self-contained, reproducible page that says what the tables say."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from her2.config import parse_config
from her2.config.jobs import ReportSpec, dump, load
from her2.core.errors import UserError
from her2.core.tables import guard_cells
from her2.pretraining.overlap import Overlap
from her2.report import format
from her2.report.build import build_report
from her2.report.page import script
from her2.report.results import read_results
from her2.report.sections import (
    comparison,
    headline,
    licences,
    models,
    notices,
    overlap,
    pretraining,
)
from her2.report.sections.leakage import shared_tissue
from tests.unit.report_maker import HOSTILE, PRETRAINED, Cohort, build_page

HOSTILE_SITE = '<img src=x onerror="alert(2)">'


class Page(HTMLParser):
    """The elements of a page: (tag, attributes), its text, and the rows of its tables."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.in_cell = False
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.in_cell:
            self.rows[-1][-1] += f"{data} "

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def config(self) -> dict:
        """The config as a reader would copy it."""
        return yaml.safe_load(next(words for words in self.words if words.startswith("results:")))

    def row(self, start: str) -> list[str]:
        """The first row whose first cell begins like that."""
        return [
            " ".join(cell.split())
            for cell in next(row for row in self.rows if row and row[0].strip().startswith(start))
        ]


def report(tmp_path: Path, cohort: Cohort) -> Page:
    spec = cohort.write(tmp_path / "results")
    output = tmp_path / "report" / "report.html"
    build_page(spec, tmp_path / "results", output)
    return Page(output)


def table(tmp_path: Path, name: str) -> pl.DataFrame:
    return pl.read_csv(tmp_path / "report" / "tables" / f"{name}.csv")


def test_hostile_text_stays_text(tmp_path):
    page = report(
        tmp_path,
        Cohort(
            title=HOSTILE,
            sites=(HOSTILE_SITE, "south"),
            tile_reasons={0: ("failed", f"broken {HOSTILE}")},
            pretrained={"plain": {"classes": {HOSTILE_SITE: 5}}},
            overlaps={"plain": Overlap(True, (HOSTILE,), True)},
        ),
    )
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"iframe", "object", "embed", "form", "link", "base"}
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all(a["src"].startswith("data:image/") for tag, a in page.elements if tag == "img")
    assert HOSTILE in page.text
    assert HOSTILE_SITE in page.text
    assert HOSTILE not in page.source


def test_the_page_asks_nothing_of_any_network(tmp_path):
    page = report(tmp_path, Cohort(synthetic=True))
    links = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "poster", "action", "data", "xlink:href")
    ]
    assert links
    assert all(value.startswith(("#", "data:image/")) for value in links)
    assert not re.search(r"url\(|@import|http:|https:", page.source)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )


def test_the_only_script_is_our_own_and_the_policy_names_its_hash(tmp_path):
    """Even if hostile text were not escaped, the policy would keep it from running."""
    page = report(tmp_path, Cohort(title=HOSTILE))
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", page.source, flags=re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [""]
    digest = hashlib.sha256(scripts[0][1].encode()).digest()
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in page.source
    assert "</" not in script()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|Function", script()
    )


def test_every_link_of_the_page_has_its_target(tmp_path):
    page = report(tmp_path, Cohort(tile_reasons={1: ("excluded", "no tissue found")}))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"].removeprefix("#") for tag, a in page.elements if tag == "a"}
    assert targets <= set(ids)


def test_equal_results_give_equal_bytes(tmp_path):
    saw = Overlap(known=True, patients=("p1",), allowed=True)
    cohort = Cohort(
        synthetic=True, encoders=("one", "two"), pretrained={"two": {}}, overlaps={"two": saw}
    )
    spec = cohort.write(tmp_path / "results")
    cohort.write(tmp_path / "elsewhere" / "results")
    for where in ("results", "elsewhere/results"):
        build_report(spec, tmp_path / where, tmp_path / where / "report" / "report.html")
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / where / "report").rglob("*.*")}
        for where in ("results", "elsewhere/results")
    )
    assert set(first) >= {
        "report.html", "methods.txt", "checklist.csv", "headline.csv", "comparison.csv",
        "statement.csv", "covariates.csv", "localisation_summary.csv",
        "score.one.abmil.roc.svg", "score.two.abmil.reliability.pdf",
    }  # fmt: skip
    assert first == second
    assert b"<path" in first["score.one.abmil.roc.svg"]
    assert first["score.two.abmil.reliability.pdf"].startswith(b"%PDF-1")


@pytest.mark.parametrize("synthetic", [True, False])
def test_the_synthetic_banner_is_shown_if_and_only_if_the_slides_are_drawn(tmp_path, synthetic):
    page = report(tmp_path, Cohort(synthetic=synthetic))
    sentence = "every result on this page comes from slides drawn by a program, not from patients"
    assert (f"Synthetic data: {sentence}" in page.text) is synthetic
    parts = {part.split('"')[1]: part for part in page.source.split("<h2 id=")[1:]}
    for name in ("headline", "cohort", "models", "attention", "controls"):
        part = parts[name]
        assert ("Synthetic data" in part) is synthetic
    alts = [attributes["alt"] for tag, attributes in page.elements if tag == "img"]
    assert any("synthetic data" in alt for alt in alts) is synthetic


def test_headline_figures_are_those_of_the_metrics_table(tmp_path):
    page = report(tmp_path, Cohort(encoders=("one", "two"), signal=0.3))
    folder = tmp_path / "results" / "evaluation" / "score"
    for encoder in ("one", "two"):
        metrics = pl.read_parquet(folder / encoder / "abmil" / "metrics.parquet")
        rows = metrics.filter(
            (pl.col("level") == "patient")
            & (pl.col("metric") == "auc")
            & (pl.col("class") != "weighted")
        )
        for cell, figure in zip(page.row(f"{encoder} / abmil")[2:6], rows.to_dicts(), strict=True):
            wanted = f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
            assert cell.startswith(wanted)


def test_rows_keep_the_order_of_the_config_and_say_what_encoders_were_trained_on(tmp_path):
    cohort = Cohort(encoders=("zebra", "mid", "ant"), pretrained={"mid": {}})
    cohort.write(tmp_path / "results")
    spec = load(ReportSpec, dump(cohort.spec()))
    build_page(spec, tmp_path / "results", tmp_path / "report" / "report.html")
    page = Page(tmp_path / "report" / "report.html")
    first = next(index for index, row in enumerate(page.rows) if row[0].startswith("Encoder"))
    rows = [row[:2] for row in page.rows[first + 1 : first + 4]]
    assert [name.split()[0] for name, _ in rows] == ["zebra", "mid", "ant"]
    assert [domain.strip() for _, domain in rows] == ["none (random)", "H&E", "none (random)"]
    assert "pre-trained here on pcam, from random" in rows[1][0]
    assert table(tmp_path, "headline")["domain"].to_list()[4] == "H&E"


def test_each_pair_of_encoders_is_compared_as_in_the_table(tmp_path):
    page = report(tmp_path, Cohort(encoders=("one", "two", "six"), signal=0.3))
    path = tmp_path / "results" / "evaluation" / "comparison.parquet"
    every = pl.read_parquet(path)
    rows = every.filter(pl.col("grouping") == "").to_dicts()
    shown = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    for row in rows:
        names = [row["first"], row["second"]] + [row["class"]] * (row["class"] != "macro")
        cells = next(cells for cells in shown if cells[: len(names)] == names)[len(names) :]
        held = row["p_holm"] >= 0.05
        difference = format.signed(row["difference"])
        words = f"{difference} [{row['low']:.3f}, {row['high']:.3f}]"
        assert cells == [
            f"{row['first_value']:.3f}",
            f"{row['second_value']:.3f}",
            words + " no difference shown" * held,
            format.p_value(row["p"]),
            f"{format.p_value(row['p_holm'])} of {row['family_size']}",
            "18",
        ]
    assert "corrected for the number of tests in the family" in page.text
    found = table(tmp_path, "comparison")
    assert found["difference"].to_list() == pytest.approx(every["difference"].to_list())
    assert set(found["overlap"]) == {None}


@pytest.mark.parametrize("cohort", [Cohort(), Cohort(encoders=("one", "two"), compared=False)])
def test_without_a_comparison_the_page_has_no_such_section(tmp_path, cohort):
    page = report(tmp_path, cohort)
    assert "Comparison" not in page.text
    assert not (tmp_path / "report" / "tables" / "comparison.csv").exists()


def test_a_difference_that_is_not_defined_is_na_with_its_reason(tmp_path):
    page = report(tmp_path, Cohort(encoders=("one", "two"), labels=("0", "1") * 8))
    row = next(row for row in page.rows if [cell.strip() for cell in row[:2]] == ["one", "two"])
    assert " ".join(row[4].split()) == "NA not defined: a class is absent"


def test_pairs_say_whether_they_read_the_same_tiles(tmp_path):
    cohort = Cohort(encoders=("one", "two", "six"))
    cohort.write(tmp_path)
    results = read_results(cohort.spec(), tmp_path)
    six = results.config.encoders["six"].model_copy(update={"mpp": 1.0})
    config = results.config.model_copy(update={"encoders": results.config.encoders | {"six": six}})
    cards = {**results.cards, "six": replace(results.cards["six"], mpp=1.0)}
    found = comparison.shared_tiles(replace(results, config=config, cards=cards))
    assert [(row.encoder, row.other, row.same) for row in found] == [
        ("one", "two", True), ("one", "six", False), ("two", "six", False),
    ]  # fmt: skip
    assert found[0].tiles == "224 px at 0.5 um/px"
    assert found[1].tiles == "224 px at 0.5 um/px; 224 px at 1 um/px"


def test_pretraining_shows_its_data_its_split_and_its_best_epoch(tmp_path):
    unknown = {"split_by": "patch (cases unknown)", "cases": []}
    page = report(
        tmp_path,
        Cohort(encoders=("known", "blind", "plain"), pretrained={"known": {}, "blind": unknown}),
    )
    rows = {
        row[0].strip(): [" ".join(cell.split()) for cell in row]
        for row in page.rows
        if len(row) == 10 and row[0].strip() in ("known", "blind", "plain")
    }
    assert set(rows) == {"known", "blind"}
    assert rows["known"][1:] == [
        "H&E", "pcam normal 1,200, tumour 800 (train 1,600, validation 400)",
        "by case: no patient is on both sides", "random", "3", "2", "0.812", "0.875", "3",
    ]  # fmt: skip
    assert "cases unknown: patches of one patient may be on both sides" in rows["blind"][3]
    assert sum("best: epoch 2" in (a.get("alt") or "") for _, a in page.elements) == 2
    assert "cases (40)" in page.text
    assert len(table(tmp_path, "pretraining")) == 6


def test_pretraining_figures_that_are_not_finite_are_na(tmp_path):
    best = {"epoch": 0, "balanced_accuracy": float("nan"), "mean_auc": None}
    cohort = Cohort(pretrained={"plain": {}})
    cohort.write(tmp_path)
    results = read_results(cohort.spec(), tmp_path)
    facts = PRETRAINED | {"best": best, "test": {"balanced_accuracy": 0.75, "mean_auc": None}}
    card = replace(results.cards["plain"], provenance=facts)
    row = pretraining.pretraining(replace(results, cards={"plain": card}))[0]
    assert (row.balanced_accuracy, row.mean_auc, row.best_epoch) == ("NA", "NA", 1)
    assert row.test == "test set: 0.750, NA"


def test_every_figure_of_an_encoder_that_saw_the_patients_is_marked(tmp_path):
    saw = Overlap(known=True, patients=tuple(f"p{index:02d}" for index in range(12)), allowed=True)
    clean = Overlap(known=True, patients=(), allowed=False)
    page = report(
        tmp_path,
        Cohort(
            encoders=("clean", "leaky"),
            pretrained={"leaky": {}},
            overlaps={"clean": clean, "leaky": saw},
        ),
    )
    words = "† leaky: pre-trained on 12 patients of this cohort (p00, p01, p02, p03, p04, "
    assert (
        page.text.count(f"{words}p05, p06, p07, p08, p09, ...), so its results are optimistic") == 4
    )
    marked = page.row("leaky† / abmil")
    titles = page.row("Encoder / head")
    controls = [title.startswith(("Covariates", "Chance", "Within")) for title in titles]
    assert ["†" in cell for cell in marked[2:]] == [not control for control in controls[2:]]
    assert not any("†" in cell for cell in page.row("clean / abmil"))
    pair = next(row for row in page.rows if row[:2] == ["clean ", "leaky† "])
    assert ["†" in cell for cell in pair[2:5]] == [False, True, True]
    alts = [a["alt"] for tag, a in page.elements if tag == "img" and "ROC" in (a["alt"] or "")]
    assert ["†" in (alt or "") for alt in alts] == [False, True]
    assert page.row("clean / abmil")[0].startswith("clean")
    for name in ("headline", "metrics", "folds"):
        found = table(tmp_path, name).select("encoder", "overlap").unique().sort("encoder")
        assert found.rows() == [("clean", 0), ("leaky", 12)]
    assert set(table(tmp_path, "comparison")["other_overlap"]) == {12}


def test_the_mark_passes_to_encoders_that_begin_from_a_marked_one(tmp_path):
    saw = Overlap(known=True, patients=("p1",), allowed=True)
    clean = Overlap(known=True, patients=(), allowed=False)
    cohort = Cohort(
        encoders=("first", "second"),
        pretrained={"first": {}, "second": {}},
        overlaps={"first": saw, "second": clean},
    )
    cohort.write(tmp_path)
    results = read_results(cohort.spec(), tmp_path)
    encoders = dict(results.config.encoders)
    assert overlap.mark(results, "second") == ""
    encoders["second"] = encoders["second"].model_copy(update={"init": "first"})
    config = results.config.model_copy(update={"encoders": encoders})
    assert overlap.mark(replace(results, config=config), "second") == overlap.MARK


def test_an_unknown_overlap_gives_a_warning(tmp_path):
    cohort = Cohort(
        pretrained={"plain": {"cases": []}}, overlaps={"plain": Overlap(False, (), False)}
    )
    page = report(tmp_path, cohort)
    assert "plain: it is unknown whether its pre-training saw patients of this cohort" in page.text
    assert "†" not in page.source
    assert table(tmp_path, "headline")["overlap"].to_list() == [None] * 4


@pytest.mark.parametrize(("mpp", "warned"), [(0.5, False), (0.6, False), (0.65, True), (1.0, True)])
def test_published_encoders_at_another_scale_are_warned_of(tmp_path, mpp, warned):
    values = {"encoders": {"plain": {"source": "catalogue", "model": "uni", "mpp": mpp}}}
    cohort = Cohort()
    cohort.write(tmp_path)
    results = read_results(cohort.spec(), tmp_path)
    results = replace(results, config=Cohort(values=values).config())
    found = [n.text for n in notices.notices(results, [], []) if "trained at" in n.text]
    assert bool(found) is warned
    assert all(words.startswith("plain: uni was trained at 0.5 um/px") for words in found)


def licence_cautions(tmp_path, encoders, licence="", **values):
    cohort = Cohort()
    cohort.write(tmp_path)
    results = read_results(cohort.spec(), tmp_path)
    config = Cohort(values={"encoders": encoders, **values}).config()
    cards = {"plain": replace(results.cards["plain"], licence=licence)}
    results = replace(results, config=config, cards={**results.cards, **cards})
    found = licences.cautions(results)
    shown = [one for one in notices.notices(results, [], []) if one.text in found]
    assert [(one.text, one.anchor) for one in shown] == [(text, "provenance") for text in found]
    return found


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("uni", "the licence of its weights (CC-BY-NC-ND-4.0) allows no commercial use"),
        ("virchow", "commercial use of its weights (Apache-2.0) has conditions: attribution"),
        ("h-optimus-0", ""),
    ],
)
def test_the_page_says_what_a_licence_does_not_allow(tmp_path, model, said):
    values = {"plain": {"source": "catalogue", "model": model}}
    found = licence_cautions(tmp_path, values)
    assert len(found) == bool(said)
    assert all(text.startswith(f"plain: {said}") for text in found)


@pytest.mark.parametrize("segmenter", ["hest", "grandqc"])
def test_the_page_says_what_the_licence_of_a_segmenter_does_not_allow(tmp_path, segmenter):
    values = {"plain": {"source": "catalogue", "model": "h-optimus-0"}}
    (said,) = licence_cautions(tmp_path, values, tiling={"segmenter": segmenter})
    assert said.startswith(
        f"tiling.segmenter: {segmenter}: the licence of its weights (CC-BY-NC-SA-4.0) allows no "
        "commercial use"
    )


@pytest.mark.parametrize("licence", ["cc-by-nc-4.0", "cc-by-nc-nd-4.0", "apache-2.0"])
def test_a_licence_follows_the_weights_into_what_was_trained_from_them(tmp_path, licence):
    """Of weights that a library publishes, or that a file holds, only the licence is known."""
    own = {"model": "timm/test_vit", "mpp": 0.5, "size": 32, "domain": "he"}
    tuned = {**own, "source": "pretrain", "data": "own", "init": "plain"}
    encoders = {
        "plain": {**own, "source": "timm"},
        "tuned": tuned,
        "second": tuned | {"init": "tuned"},
        "apart": tuned | {"init": "published"},
    }
    patches = {"own": {"format": "folders", "path": "own"}}
    found = licence_cautions(tmp_path, encoders, licence, patches=patches)
    from_plain = " (its first weights were those of plain)"
    named = ["plain", f"tuned{from_plain}", f"second{from_plain}"]
    assert [text.partition(":")[0] for text in found] == (named if "nc" in licence else [])
    passed_on = ["may not be passed on" in text for text in found]
    assert passed_on == {"cc-by-nc-4.0": [False] * 3, "cc-by-nc-nd-4.0": [False, True, True]}.get(
        licence, []
    )


def test_auc_of_the_page_agrees_with_scikit_learn(tmp_path):
    cohort = Cohort(signal=0.3)
    page = report(tmp_path, cohort)
    model = read_results(cohort.spec(), tmp_path / "results").models[0]
    tested = model.predictions.filter(pl.col("role") == "test")
    areas, pooled = [], []
    for index, name in enumerate(model.task.class_names):
        each = [
            roc_auc_score(own["target"].to_numpy() == index, own[f"prob_{name}"])
            for _, own in tested.group_by("fold")
        ]
        areas.append(np.mean(each))  # every test set has as many pairs
        pooled.append(roc_auc_score(tested["target"].to_numpy() == index, tested[f"prob_{name}"]))
    cells = page.row("plain / abmil")[2:6]
    assert [cell[:5] for cell in cells] == [f"{a:.3f}" for a in [*areas, np.mean(areas)]]
    for curve, area in zip(models.roc_curves(model), pooled, strict=True):
        assert np.trapezoid(curve.y, curve.x) == pytest.approx(area)


def test_confusion_shares_are_of_the_true_class(tmp_path):
    cohort = Cohort(signal=0.3)
    cohort.write(tmp_path)
    model = read_results(cohort.spec(), tmp_path).models[0]
    for row in models.confusion_rows(model):
        assert row.total == 6
        assert sum(count for count, _, _ in row.cells) == 6
        assert sum(share for _, share, _ in row.cells) == pytest.approx(1)


def test_an_absent_class_is_na_with_its_reason_and_never_a_half(tmp_path):
    page = report(tmp_path, Cohort(labels=("0", "1") * 8))
    absent, macro = page.row("plain / abmil")[4:6]
    assert absent == "NA not defined: a class is absent"
    assert macro == "NA not defined: a class is absent"
    assert "AUC 2+ (patient and slide level) is NA: not defined: a class is absent" in page.text
    assert table(tmp_path, "headline").filter(pl.col("class") == "2+")["auc"].to_list() == [None]


@pytest.mark.parametrize(
    ("low", "high", "mean", "p_worse", "words"),
    [
        (0.41, 0.63, 0.5, 0.6, "not distinguishable from chance"),
        (0.5, 0.7, 0.5, 0.9, "not distinguishable from chance"),
        (0.3, 0.49, 0.5, 0.2, "not distinguishable from chance"),
        (0.3, 0.49, 0.5, 0.001, "worse than chance"),
        (0.3, 0.49, 0.45, 0.001, "not distinguishable from chance"),
        (0.45, 0.6, 0.42, 0.9, ""),
        (
            0.45,
            0.8,
            0.5,
            0.99,
            "interval reaches chance, which shuffled labels seldom do (p 0.010)",
        ),
        (0.51, 0.7, 0.5, 0.99, ""),
        (None, None, 0.5, 0.5, ""),
    ],
)
def test_chance_is_that_of_the_shuffled_labels(low, high, mean, p_worse, words, tmp_path):
    """Neither an interval below 0.5 nor a low figure alone is worse than chance."""
    cohort = Cohort()
    cohort.write(tmp_path)
    model = read_results(cohort.spec(), tmp_path).models[0]
    shuffled = model.controls["shuffled"].with_columns(
        mean=pl.lit(mean), p_worse=pl.lit(p_worse), p_better=pl.lit(1 - p_worse)
    )
    shown = replace(model, controls={**model.controls, "shuffled": shuffled})
    assert headline.verdict(shown, {"low": low, "high": high}) == words


def test_every_slide_that_is_not_used_is_listed_with_stage_and_reason(tmp_path):
    page = report(
        tmp_path,
        Cohort(
            encoders=("one", "two"),
            tile_reasons={2: ("failed", "cut off: /home/someone/slides/slide-02.svs")},
            embed_reasons={5: ("excluded", "7 of 20 tiles cannot be read")},
            failed_tiles=3,
        ),
    )
    assert page.row("slide-02")[2:] == [
        "tile", "224px-0.5mpp", "", "failed", "cut off: .../slide-02.svs",
    ]  # fmt: skip
    assert page.row("slide-05")[2:] == [
        "embed", "224px-0.5mpp", "one", "excluded", "7 of 20 tiles cannot be read",
    ]  # fmt: skip
    rows = table(tmp_path, "excluded")
    assert rows["slide_id"].to_list() == ["slide-02", "slide-05", "slide-05"]
    assert "1 slide failed at the tile stage (224px-0.5mpp)." in page.text
    assert "1 slide excluded at the embed stage (two)." in page.text
    assert "one: 54 tiles could not be read." in page.text


def test_a_run_without_trouble_has_no_warnings(tmp_path):
    cohort = Cohort(labels=("0", "1", "2") * 10, pictures=False, signal=0.3)
    page = report(tmp_path, cohort)
    assert "None: no slide was left out, and every figure is defined." in page.text
    assert "Warnings (0)" in page.text
    assert "No pictures." in page.text


def test_classes_of_few_patients_are_warned_of(tmp_path):
    page = report(tmp_path, Cohort())
    assert "fewer than 10 patients of class 0 (6), 1+ (6), 2+ (6)" in page.text


def test_encoders_that_lost_different_slides_show_their_own_counts(tmp_path):
    cohort = Cohort(encoders=("one", "two"))
    spec = cohort.write(tmp_path / "results")
    replace(cohort, encoders=("two",), embed_reasons={0: ("excluded", "x")}).write(tmp_path / "b")
    old = tmp_path / "results" / "evaluation" / "score" / "two" / "abmil" / "metrics.parquet"
    new = tmp_path / "b" / "evaluation" / "score" / "two" / "abmil" / "metrics.parquet"
    old.write_bytes(new.read_bytes())
    build_page(spec, tmp_path / "results", tmp_path / "report" / "report.html")
    page = Page(tmp_path / "report" / "report.html")
    assert page.row("one / abmil")[2].endswith("6 of 18")
    assert page.row("two / abmil")[2].endswith("5 of 17")


def test_unlabelled_slides_are_counted_and_their_predictions_averaged(tmp_path):
    cohort = Cohort(labels=("0", "1", "2") * 6 + (None,) * 60)
    page = report(tmp_path, cohort)
    assert "60 slides without a label. These slides are predicted, not trained on." in page.text
    assert "the first 50 of 60" in page.text
    rows = table(tmp_path, "unlabelled")
    assert len(rows) == 60
    assert set(rows["models"]) == {3}
    assert page.row("slide-18")[1] == "p18"
    shown = [float(cell) for cell in page.row("slide-18")[3:6]]
    assert shown == pytest.approx(rows.row(0)[6:9], abs=6e-4)


def test_a_cohort_without_sites_has_one_row(tmp_path):
    page = report(tmp_path, Cohort(sites=(None,)))
    assert page.row("all") == ["all", "6 (6)", "6 (6)", "6 (6)", "0 (0)", "18 (18)"]
    assert "Site" not in [cell.strip() for row in page.rows for cell in row][:20]


def test_sites_add_up_to_all(tmp_path):
    page = report(tmp_path, Cohort(sites=("north", "south", None)))
    found = [page.row(site)[5] for site in ("north", "south", "(no site)", "all")]
    assert found == ["6 (6)", "6 (6)", "6 (6)", "18 (18)"]


def test_attention_pictures_say_what_they_are_and_missing_ones_why(tmp_path):
    page = report(tmp_path, Cohort(synthetic=True))
    assert "Attention is from the model of the fold that never saw the patient." in page.text
    assert "Attention is not HER2 staining." in page.text
    assert "planted HER2-positive morphology" in page.text
    assert page.row("slide-99") == ["slide-99", f"{HOSTILE} in .../slide-99.svs"]
    assert "1 slide without a picture." in page.text


def test_a_broken_picture_is_listed_and_stops_nothing(tmp_path):
    cohort = Cohort()
    spec = cohort.write(tmp_path / "results")
    next((tmp_path / "results" / "heatmaps").rglob("*.png")).write_bytes(b"not a picture")
    build_page(spec, tmp_path / "results", tmp_path / "report.html")
    assert "its picture cannot be read" in Page(tmp_path / "report.html").text


def test_a_broken_picture_of_tiles_is_said_and_stops_nothing(tmp_path):
    spec = Cohort().write(tmp_path / "results")
    folder = next((tmp_path / "results" / "heatmaps").rglob("tiles.json")).parent
    (folder / "broken.png").write_bytes(b"not a picture")
    listed = json.loads((folder / "heatmaps.json").read_text())
    listed[0]["tile_strip"] = "absent.png"
    (folder / "heatmaps.json").write_text(json.dumps(listed))
    score = {"label": "0", "slides": 3, "patients": 3, "picture": "broken.png"}
    (folder / "tiles.json").write_text(json.dumps([score]))
    build_page(spec, tmp_path / "results", tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "Score 0: 3 held-out slides of 3 patients; the picture of its tiles cannot" in page.text
    assert page.text.count("the picture of its tiles cannot be read") == 2
    assert f"{listed[0]['slide_id']} , true 0" in page.text  # its own picture is shown
    assert "its picture cannot be read" not in page.text


def test_the_config_on_the_page_makes_the_same_run(tmp_path):
    cohort = Cohort(title="Scores: 'a' & \"b\"")
    page = report(tmp_path, cohort)
    assert parse_config(page.config()) == cohort.config()


def test_no_folder_of_the_machine_is_on_the_page(tmp_path):
    values = {"cohort": {"slides": str(tmp_path / "private" / "slides.csv")}, "results": "/data/r"}
    page = report(tmp_path, Cohort(values=values))
    assert page.config()["cohort"]["slides"] == ".../slides.csv"
    assert page.config()["results"] == ".../r"
    assert str(tmp_path) not in page.source
    assert "/data/" not in page.source


def test_precision_is_what_the_features_were_computed_in(tmp_path):
    page = report(tmp_path, Cohort(precision="bfloat16"))
    assert "bfloat16 requested: auto on CPU (x86_64)" in page.text


@pytest.mark.parametrize(
    ("asked", "used", "words"),
    [
        ("auto", ("bfloat16", "float32"), "in more than one precision (bfloat16, float32)"),
        ("float16", ("float32",), "float16 was requested, but features were computed in float32"),
        ("auto", ("float32",), None),
        ("float32", ("float32",), None),
    ],
)
def test_a_precision_that_was_not_requested_gives_a_warning(tmp_path, asked, used, words):
    cohort = Cohort()
    cohort.write(tmp_path)
    results = read_results(cohort.spec(), tmp_path)
    card = replace(results.cards["plain"], precision=asked)
    results = replace(results, cards={"plain": card}, precisions={"plain": used})
    found = [n.text for n in notices.notices(results, [], []) if n.anchor == "provenance"]
    assert (words is None and not found) or words in found[0]


def test_a_column_that_may_have_been_meant_is_among_the_warnings(tmp_path):
    cohort = Cohort()
    cohort.write(tmp_path)
    text = "The manifest's column 'MPP' is not read. If it is meant to be 'mpp', rename it."
    spec = cohort.spec().model_copy(update={"cautions": (text,)})
    assert load(ReportSpec, dump(spec)) == spec
    assert "cautions" not in dump(cohort.spec())  # or every report would be made again
    results = read_results(spec, tmp_path)
    assert text in [found.text for found in notices.SECTION.collect(results)]


def test_features_of_more_than_one_kind_of_device_are_warned_of(tmp_path):
    cohort = Cohort()
    cohort.write(tmp_path)
    results = read_results(cohort.spec(), tmp_path)
    assert results.devices == {"plain": ("CPU (x86_64)",)}
    results = replace(results, devices={"plain": ("CPU (x86_64)", "NVIDIA A100")})
    (found,) = (n.text for n in notices.notices(results, [], []) if n.anchor == "provenance")
    assert (
        "plain: its features were computed on more than one kind of device (CPU (x86_64)," in found
    )


def test_cells_that_a_spreadsheet_would_run_are_quoted():
    frame = pl.DataFrame(
        {"a": ["=1+1", "+1", "-1", "@x", "1+", None], "b": [-1.0, 2.0, 0.0, 1.0, 1.0, 1.0]}
    )
    guarded = guard_cells(frame)
    assert guarded["a"].to_list() == ["'=1+1", "'+1", "'-1", "'@x", "1+", None]
    assert guarded["b"].to_list() == frame["b"].to_list()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("cannot open /home/me/a b.svs", "cannot open .../a b.svs"),
        ("('/mnt/x/y.svs')", "('.../y.svs')"),
        ("label 0/1+ of timm/resnet18", "label 0/1+ of timm/resnet18"),
        ("12 um/px, 3/4 tiles", "12 um/px, 3/4 tiles"),
    ],
)
def test_reasons_keep_names_and_lose_folders(said, shown):
    assert format.without_folders(said) == shown


def test_a_missing_table_is_named(tmp_path):
    cohort = Cohort()
    spec = cohort.write(tmp_path / "results")
    next((tmp_path / "results" / "evaluation").rglob("metrics.parquet")).unlink()
    with pytest.raises(UserError, match=r"metrics\.parquet.*Run snakemake again"):
        build_page(spec, tmp_path / "results", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_slides_that_are_too_small_to_compare_are_not_said_to_share_nothing():
    words = {
        None: "not known: the slides have fewer than 36 tiles",
        0.17: "0 (most tiles shared: 0.17)",
        0.62: "1 (most tiles shared: 0.62)",
    }
    for shared, expected in words.items():
        table = pl.DataFrame({"shared": [None, shared]}, schema={"shared": pl.Float64})
        assert shared_tissue(table, 0.5) == expected
    assert shared_tissue(table.clear(), 0.5) == "0 (most tiles shared: NA)"


def test_the_audit_says_what_was_looked_for_and_found(tmp_path):
    similar = {"plain": [("slide-00", "slide-05", "p0", "p5", 0.9312, 0.1734)]}
    page = report(tmp_path, Cohort(similar=similar))
    assert page.row("Patients in two sets of the same fold")[1:] == [
        "task score: 18 patients, 3 folds", "0", "always",
    ]  # fmt: skip
    assert page.row("Slides with the same content as another")[1:] == ["18 slides", "0", "always"]
    assert page.row("Slides of two patients")[1:] == [
        "features of plain", "0 (most tiles shared: 0.17)", "above 0.5 of the tiles",
    ]  # fmt: skip
    assert ["plain", "slide-00, slide-05", "p0, p5", "0.93", "0.17"] in [
        [" ".join(cell.split()) for cell in row] for row in page.rows
    ]
    table = pl.read_csv(tmp_path / "report" / "tables" / "similar.csv")
    assert table.row(0) == ("plain", *similar["plain"][0])


def test_an_allowed_copy_gives_a_warning(tmp_path):
    similar = {"plain": [("slide-00", "slide-05", "p0", "p5", 0.99, 0.83)]}
    values = {"folds": {"number": 3, "max_shared_tiles": 0.9}}
    page = report(tmp_path, Cohort(similar=similar, values=values))
    assert (
        "plain: slide-00 and slide-05 belong to different patients but share 83% of their tiles "
        "according to their features. This is allowed by folds.max_shared_tiles: 0.9." in page.text
    )


def test_a_fixed_split_is_said_and_its_train_slides_are_not_missed(tmp_path):
    page = report(tmp_path, Cohort(split="train"))
    assert "never saw the patient: the manifest's fixed split (column 'split')." in page.text
    assert "folds.number, folds.repeats and folds.sites do not apply" in page.text
    assert "but no prediction" not in page.text


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        ("ignored", "cross-validation with 3 folds, grouped by patient."),
        ("preserved", "grouped by patient, each site in a single test set."),
        ("stratified", "grouped by patient, test sets with similar proportions of each site."),
    ],
)
def test_the_page_says_how_patients_were_divided(tmp_path, sites, words):
    page = report(tmp_path, Cohort(values={"folds": {"number": 3, "sites": sites}}))
    assert words in page.text


def test_the_metric_that_kept_the_epoch_is_stated(tmp_path):
    page = report(tmp_path, Cohort(values={"training": {"select": "macro_auc"}}))
    assert "The kept epoch had the highest macro AUC on the tuning set" in page.text
    assert "trials" not in page.text


def test_the_number_of_trials_of_a_search_is_stated_with_what_each_fold_chose(tmp_path):
    page = report(tmp_path, Cohort(trials=12))
    assert (
        "Options of the head were searched with 12 trials in each fold and chosen within the fold."
        in page.text
    )
    rows = [row for row in page.rows if row[0].strip() == "r0f0"]
    assert [cell.strip() for cell in rows[-1][-2:]] == ["12", "attention 64, gated True"]
