"""External cohorts in the report: what the tables say, beside development, and never hidden."""

import base64
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from her2.config.jobs import ReportSpec, dump, load
from her2.core.errors import UserError
from her2.pretraining.overlap import Overlap
from her2.report.build import tables
from her2.report.external_results import ExternalCohort
from her2.report.results import Results, read_results
from her2.report.sections import external_checks, external_words, summary
from her2.report.sections.external import _figures
from tests.browser import browser
from tests.unit.external_report_maker import Outside, Validated
from tests.unit.report_maker import HOSTILE, Cohort, build_page
from tests.unit.test_report import Page

HOSTILE_SITE = '<img src=x onerror="alert(2)">'
STATUS = {
    "label": "status",
    "of": "score",
    "positive": ["2+"],
    "classes": {"negative": ["Negative"], "positive": ["Positive"]},
}
SECTION_TITLES = re.compile(r'<h2 id="([^"]+)"')

RUN = Validated(
    synthetic=True,
    encoders=("one", "two"),
    signal=0.5,
    external={
        "yale": Outside(
            labels=("0", "1", "2", "2") * 6 + (None, "9"),
            sites=(HOSTILE_SITE, "hill"),
            tile_reasons={1: ("excluded", f"no tissue {HOSTILE}"), 5: ("failed", "cut off")},
            embed_reasons={7: ("excluded", "7 of 20 tiles cannot be read")},
            overlaps={"one": Overlap(True, ("yale-p3",), True)},
            similar=(("yale-03", "slide-02", "yale-p2", "p2", 0.95, 0.62),),
        ),
        "herohe": Outside(
            labels=("Negative", "Positive", "Positive") * 6,
            column="status",
            section={"tasks": {"status": STATUS}, "final": "refit"},
            models=1,
            vendor=HOSTILE,
        ),
        "bare": Outside(labels=(None,) * 5, column=None),
        "single": Outside(labels=("2",) * 6),
        "empty": Outside(
            labels=("0", "2"), tile_reasons=dict.fromkeys(range(2), ("excluded", "blank"))
        ),
    },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("external")
    spec = RUN.write(found / "results")
    build_page(spec, found / "results", found / "report" / "report.html")
    return found


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "report" / "report.html")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    return read_results(RUN.spec(), folder / "results")


def part(page: Page, anchor: str = "external") -> str:
    """The source of one section of the page."""
    return next(text for text in page.source.split("<h2 id=")[1:] if text.startswith(f'"{anchor}"'))


def cohort(results: Results, name: str) -> ExternalCohort:
    return next(one for one in results.external if one.name == name)


def macro(results: Results, name: str, encoder: str) -> dict[str, Any]:
    model = next(one for one in cohort(results, name).models if one.encoder == encoder)
    row = external_words.internal_row(model)
    assert row is not None
    return row


@pytest.mark.parametrize("encoder", ["one", "two"])
def test_the_headline_has_a_row_a_cohort_under_each_model_with_the_figures_of_its_table(
    results: Results, page: Page, encoder: str
) -> None:
    heads = [" ".join(row[0].split()) for row in page.rows if row and "/ abmil" in row[0]]
    first = next(at for at, head in enumerate(heads) if head.startswith(f"{encoder} / abmil"))
    shown = [head.split("abmil")[1].split(" external")[0] for head in heads[first : first + 6]]
    assert shown[1:] == [" on yale", " on herohe (status)", " on bare", " on single", " on empty"]
    row, figure = page.row(f"{encoder} / abmil on yale"), macro(results, "yale", encoder)
    wanted = f"{figure['external']:.3f}{'‡' if encoder == 'one' else ''} "
    assert row[5].startswith(
        wanted + f"[{figure['external_low']:.3f}, {figure['external_high']:.3f}]"
    )


def test_a_cohort_of_two_sides_has_one_figure_and_no_figure_of_a_class(page: Page) -> None:
    row = page.row("one / abmil on herohe (status)")
    assert row[0].endswith("negative vs positive")
    assert row[2:5] == ["NA other classes"] * 3
    assert re.match(r"0\.\d{3} \[", row[5])
    assert "Observed / expected, out-of-fold" in part(page).split('id="external/herohe"')[0]
    own = part(page).split('id="external/herohe"')[1].split('id="external/bare"')[0]
    assert "Observed / expected, external" in own
    assert "out-of-fold</th>" not in own.split("Calibration of each score")[1].split("</table>")[0]


def test_both_figures_and_their_difference_stand_side_by_side(results: Results, page: Page) -> None:
    figure = macro(results, "yale", "two")
    wanted = [f"{figure[name]:.3f}" for name in ("internal", "external")]
    rows = [row for row in page.rows if row and row[0].strip() == "two / abmil" and len(row) == 9]
    cells = [" ".join(cell.split()) for cell in rows[0]]
    assert [cells[2].split()[0], cells[3].split()[0]] == wanted
    assert cells[4].startswith(f"{figure['difference']:+.3f}")
    assert cells[6].startswith(f"{figure['single_difference']:+.3f}")
    assert cells[8] == f"{figure['n_internal']} / {figure['n_external']}"


CHANGES = {
    "drop": ((-0.3, -0.5, -0.1), ": the figure drops."),
    "rise": ((0.2, 0.1, 0.3), ": the figure rises."),
    "unclear": ((-0.1, -0.3, 0.1), "No change is shown, nor that there is none."),
    "unknown": ((-0.1, None, None), "Whether it changed is not known (too few)."),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_the_summary_says_what_became_of_the_figure(results: Results, kind: str) -> None:
    (difference, low, high), words = CHANGES[kind]
    values = {"single_difference": difference, "single_low": low, "single_high": high}
    changed = [pl.lit(value, pl.Float64).alias(name) for name, value in values.items()]
    changed.append(pl.lit("too few").alias("note"))
    own = cohort(results, "yale")
    models = tuple(
        replace(
            one,
            tables={**one.tables, "internal": one.tables["internal"].with_columns(changed)},
        )
        for one in own.models
    )
    (text,) = external_words.sentences(
        replace(results, external=(replace(own, models=models),)), "score"
    )
    assert words in text
    assert text.startswith("External cohort yale, task score, ")
    assert "the best of development" in text
    assert ("2 of 2 models are lower there" in text) is (kind == "drop")
    assert f"like for like, of single models, {difference:+.3f}" in text


def test_the_sentence_is_about_the_model_that_development_would_have_chosen(
    results: Results,
) -> None:
    best = max(("one", "two"), key=lambda name: macro(results, "yale", name)["internal"])
    text = next(text for text in summary.sentences(results) if "cohort yale" in text)
    assert f": {best} / abmil, the best of development" in text
    figure = macro(results, "yale", best)
    assert f"against {figure['internal']:.3f} [" in text


def test_no_other_model_becomes_the_best_of_development_where_that_has_no_figure(
    results: Results,
) -> None:
    best = max(("one", "two"), key=lambda name: macro(results, "yale", name)["internal"])
    own = cohort(results, "yale")
    gone = [pl.lit(None, pl.Float64).alias("external"), pl.lit("no slide").alias("note")]
    models = tuple(
        replace(one, tables={**one.tables, "internal": one.tables["internal"].with_columns(gone)})
        if one.encoder == best
        else one
        for one in own.models
    )
    (text,) = external_words.sentences(
        replace(results, external=(replace(own, models=models),)), "score"
    )
    words = f"{best} / abmil, the best of development, has no macro AUC there (no slide)"
    assert words in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bare", "the cohort's manifest has no column 'her2'"),
        ("empty", "no slide of the cohort is usable"),
    ],
)
def test_a_cohort_that_nobody_is_evaluated_in_says_why(
    results: Results, page: Page, name: str, words: str
) -> None:
    assert not any(model.evaluated for model in cohort(results, name).models)
    own = next(text for text in summary.sentences(results) if f"cohort {name}" in text)
    assert f"none evaluated ({words})" in own
    assert f"{name} / score / one / abmil: predicted, not evaluated ({words})." in page.text
    assert page.row(f"one / abmil on {name}")[5] == "NA no labels"


def test_a_cohort_of_one_class_has_na_with_the_reason(results: Results, page: Page) -> None:
    assert cohort(results, "single").models[0].evaluated
    cell = page.row("one / abmil on single")[5]
    assert cell.startswith("NA not defined: ")


def test_slides_that_were_lost_are_listed_and_warned_of(folder: Path, page: Page) -> None:
    lost = pl.read_csv(folder / "report" / "tables" / "external_excluded.csv")
    own = lost.filter(pl.col("cohort") == "yale")
    assert set(own["slide_id"]) == {"yale-01", "yale-05", "yale-07"}
    assert "7 of 20 tiles cannot be read" in set(own["reason"])
    for name in ("yale-01", "yale-05", "yale-07"):
        assert name in part(page)
    assert "yale: 1 slide failed at the tile stage (224px-0.5mpp)." in page.text
    assert "3 slides not used" in " ".join(re.sub(r"<[^>]+>", " ", part(page, "cohort")).split())


def test_hostile_text_of_a_cohort_stays_text(page: Page) -> None:
    assert HOSTILE not in page.source
    assert HOSTILE_SITE not in page.source
    assert page.text.count(HOSTILE) > 3
    assert HOSTILE_SITE in page.text
    assert "/data/secret" not in page.source
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_every_caption_and_figure_of_the_section_says_synthetic(page: Page) -> None:
    captions = re.findall(r"<(?:caption|figcaption)>(.*?)</", part(page), flags=re.DOTALL)
    assert len(captions) > 30
    assert all("Synthetic" in text for text in captions)
    drawn = re.findall(r'alt="([^"]*)"', part(page))
    assert sum("on synthetic data" in text for text in drawn) > 5
    assert not [text for text in drawn if text.startswith(("Macro", "Reliab", "Net"))
                and "on synthetic data" not in text]  # fmt: skip


def test_every_link_and_name_of_the_page_is_unique_and_has_its_target(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {a["href"].removeprefix("#") for tag, a in page.elements if tag == "a"}
    assert targets <= set(ids)
    regions = [a["aria-label"] for _, a in page.elements if a.get("role") == "region"]
    assert len(regions) == len(set(regions))


def test_the_section_follows_the_headline(page: Page) -> None:
    assert SECTION_TITLES.findall(page.source)[:3] == ["headline", "external", "notices"]


def test_an_encoder_that_saw_external_patients_is_marked_there_and_nowhere_else(
    page: Page,
) -> None:
    assert "‡ one: pre-trained on 1 patient of yale (yale-p3)" in page.text
    assert "‡" in page.row("one / abmil on yale")[5]
    assert "‡" not in "".join(page.row("two / abmil on yale"))
    assert "‡" not in "".join(page.row("one / abmil on herohe"))
    assert "‡" not in "".join(page.row("one / abmil"))


def test_tissue_that_both_cohorts_may_share_is_a_warning(page: Page) -> None:
    words = "yale, one: yale-03 and slide-02 of development share 62% of their tiles"
    assert words in part(page, "notices")
    assert "1 (most tiles shared: 0.62)" in part(page)


def outside(results: Results, name: str) -> dict[tuple[str, str], external_checks.Caution]:
    found = external_checks.cautions(results, cohort(results, name))
    return {(one.what, one.where): one for one in found}


def test_the_slides_outside_of_development_are_counted_by_kind(
    results: Results, folder: Path
) -> None:
    found = outside(results, "yale")
    usable = cohort(results, "yale").slides.filter(pl.col("status") == "ok")
    assert len(found["um/px", ""].slides) == len(found["vendor", ""].slides) == len(usable)
    assert found["um/px", ""].known == "0.25 to 0.25"
    assert len(found["tiles", "224px-0.5mpp"].slides) == usable.filter(pl.col("tiles") != 20).height
    assert [len(found["appearance", name].slides) for name in ("one", "two")] == [
        3,
        3,
    ]
    table = pl.read_csv(folder / "report" / "tables" / "external_cautions.csv")
    assert len(table.filter(pl.col("cohort") == "yale")) == sum(
        len(one.slides) for one in found.values()
    )


@pytest.mark.parametrize(("scale", "far"), [(0.2545, 0), (0.2460, 0), (0.26, 1), (0.2, 1)])
def test_a_um_px_that_is_rounded_otherwise_is_not_outside(
    results: Results, scale: float, far: int
) -> None:
    own = cohort(results, "yale")
    slides = own.slides.filter(pl.col("status") == "ok").head(1)
    slides = slides.with_columns(pl.lit(scale).alias(name) for name in ("mpp_x", "mpp_y"))
    changed = replace(results, external=(replace(own, slides=slides),))
    assert len(outside(changed, "yale")["um/px", ""].slides) == far


def test_without_a_distance_the_reason_stands_in_its_place(results: Results) -> None:
    own = cohort(results, "yale")
    models = tuple(
        replace(one, applied=one.applied.with_columns(
            pl.lit(None, pl.Float64).alias(name) for name in ("distance", "distance_percentile")
        ))
        for one in own.models
    )  # fmt: skip
    changed = replace(results, external=(replace(own, models=models),))
    found = outside(changed, "yale")["appearance", "one"]
    assert found.slides == ()
    shown = external_checks.cautions_page_table(own, (found,))
    assert shown.rows[0][2].value == "NA"
    assert shown.rows[0][2].note == "development has too few patients to tell"


def test_what_all_slides_of_a_cohort_share_has_no_standardised_difference(
    results: Results,
) -> None:
    """The logarithms of equal um/px are equal, and so is their mean but for its last digit."""
    table = cohort(results, "yale").case_mix
    row = table.row(by_predicate=pl.col("what") == "um/px", named=True)
    assert (row["development_median"], row["external_median"]) == pytest.approx((0.25, 0.3))
    assert row["difference"] is None
    assert row["note"] == "no difference: all cases of a cohort are alike"


def test_the_tables_beside_the_page_have_every_cohort_and_model(
    results: Results, folder: Path
) -> None:
    beside = {path.stem for path in (folder / "report" / "tables").glob("external_*.csv")}
    assert beside == {name for name in tables(results) if name.startswith("external_")}
    for name in ("metrics", "internal", "counts", "operating", "calibration", "predictions"):
        table = pl.read_csv(folder / "report" / "tables" / f"external_{name}.csv")
        made = table.select("cohort", "truth", "encoder", "head").unique().rows()
        wanted = {(one.name, model.truth.name, model.encoder, model.head)
                  for one in results.external for model in one.models}  # fmt: skip
        assert set(made) == (wanted if name != "predictions" else
                             {one for one in wanted if one[0] != "empty"})  # fmt: skip


def test_every_figure_that_is_drawn_of_a_cohort_is_on_the_page(folder: Path, page: Page) -> None:
    drawn = {path.stem for path in (folder / "report" / "figures").glob("yale.*.svg")}
    assert {name.split(".")[-1] for name in drawn} == {
        "external", "reliability", "benefit", "faithfulness"
    }  # fmt: skip
    uris = [a["src"] or "" for tag, a in page.elements if tag == "img"]
    shown = [base64.b64decode(uri.split(",")[1]).decode() for uri in uris if "svg+xml" in uri]
    assert drawn <= {text.split("<!-- ")[1].split(" -->")[0] for text in shown}


def test_calibration_and_net_benefit_of_both_cohorts_are_in_one_figure(results: Results) -> None:
    model = cohort(results, "yale").models[0]
    (reliability, _), (benefit, _) = _figures(results, model)
    assert reliability.name == "yale.score.one.abmil.reliability"
    assert "out-of-fold, external: yale" in reliability.alt
    assert benefit.name == "yale.score.one.abmil.benefit"


@pytest.mark.parametrize("name", ["internal", "covariates", "counts", "case_mix", "apart"])
def test_a_table_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    run = Validated(external={"yale": Outside()})
    spec = run.write(tmp_path)
    folder = tmp_path / "validation" / "yale"
    paths = list(folder.rglob(f"{name}.parquet")) + list(folder.rglob(f"{name}.json"))
    paths[0].unlink()
    with pytest.raises(UserError, match=re.escape(name)):
        read_results(spec, tmp_path)


def test_in_a_browser_nothing_scrolls_sideways_or_runs_and_headings_are_in_order(
    folder: Path, tmp_path: Path
) -> None:
    with browser(tmp_path) as tab:
        for width_px in (390, 1280):
            tab.open(folder / "report" / "report.html", size_px=(width_px, 844))
            tab.run("for (const part of document.querySelectorAll('details')) part.open = true")
            assert tab.run("document.documentElement.scrollWidth") <= width_px
        assert tab.run("document.querySelectorAll('img[onerror]').length") == 0
        levels = tab.run("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => +h.tagName[1])")
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_a_run_without_external_cohorts_has_no_trace_of_them(tmp_path: Path) -> None:
    spec = Cohort().write(tmp_path / "results")
    assert "external" not in dump(spec)
    build_page(spec, tmp_path / "results", tmp_path / "report" / "report.html")
    text = (tmp_path / "report" / "report.html").read_text()
    methods = (tmp_path / "report" / "methods.txt").read_text()
    assert "xternal valid" not in text + methods
    assert not list((tmp_path / "report" / "tables").glob("external_*"))


def test_the_spec_names_the_buckets_of_each_cohort() -> None:
    spec = RUN.spec()
    assert load(ReportSpec, dump(spec)) == spec
    assert spec.external["yale"] == ("0000-of-0001",)
