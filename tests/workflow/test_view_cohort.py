"""`her2 view`: the page of all slides in a browser, on a finished run with hostile names in it."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest

from tests.browser import Tab
from tests.viewing import Viewing, viewing
from tests.workflow.conftest import copy
from tests.workflow.project import Project

SITES = ('<img src=x onerror="window.broken=1">', "=1+1", "north & south", None)
ABMIL, TURNED = "score/tiny/abmil", "score/tiny/turned"
READY = "document.documentElement.dataset.ready === 'cohort'"
SHOWN = "[...document.querySelectorAll('.card .id')].map((one) => one.textContent)"
COUNT = "document.querySelector('#count').textContent"
HERE = "document.activeElement.querySelector('.id')?.textContent"


@pytest.fixture(scope="module")
def hostile(validated: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run with names from anywhere, a slide that was excluded, and a model of the opposite."""
    project = copy(validated, tmp_path_factory.mktemp("cohort") / "project")
    path = project.folder / "results/cohort/slides.parquet"
    table = pl.read_parquet(path)
    number = pl.int_range(len(table))
    last = number == len(table) - 1
    table.with_columns(
        site=pl.Series([SITES[i % len(SITES)] for i in range(len(table))]),
        scanner=pl.when(number % 2 == 0).then(pl.lit("<b>S</b>")),
        status=pl.when(last).then(pl.lit("excluded")).otherwise("status"),
        reason=pl.when(last).then(pl.lit("</ul><script>window.broken=1</script> 3 tiles")),
        rejected_pen=pl.when(number == 1).then(20).otherwise(0),
    ).write_parquet(path)
    last_id = table["slide_id"][-1]
    for folder in ("results", "results/validation/east"):
        own = project.folder / folder / "evaluation/score/tiny"
        (own / "turned").mkdir()
        for name in ("slides", "predictions"):
            rows = pl.read_parquet(own / f"abmil/{name}.parquet")
            rows = rows.filter(pl.col("slide_id") != last_id)
            rows.write_parquet(own / f"abmil/{name}.parquet")
            turned = {"prob_low": "prob_high", "prob_high": "prob_low"}
            rows.rename(turned).with_columns(
                **({"predicted": 1 - pl.col("predicted")} if name == "slides" else {})
            ).select(rows.columns).write_parquet(own / f"turned/{name}.parquet")
    return project


@pytest.fixture(scope="module")
def view(hostile: Project) -> Iterator[Viewing]:
    with viewing(hostile.folder) as found:
        yield found


@pytest.fixture(scope="module")
def expected(hostile: Project) -> pl.DataFrame:
    return expectation(hostile, "abmil")


def expectation(project: Project, model: str) -> pl.DataFrame:
    """What the page should know of each slide, from the files."""
    results = project.folder / "results"
    own = f"evaluation/score/tiny/{model}/slides.parquet"
    parts = []
    for cohort, folder in (
        ("development", results),
        ("external:east", results / "validation/east"),
    ):
        numbers = pl.read_parquet(folder / own)
        table = pl.read_parquet(folder / "cohort/slides.parquet").select(
            "slide_id", "patient_id", "status", "tiles",
            *(pl.col(name).cast(pl.String) for name in ("site", "scanner", "reason")),
        )  # fmt: skip
        parts.append(
            table.join(numbers.drop("patient_id"), on="slide_id", how="left").with_columns(
                cohort=pl.lit(cohort)
            )
        )
    return pl.concat(parts).with_columns(
        result=pl.when(pl.col("predicted").is_null())
        .then(pl.lit("no prediction"))
        .when(pl.col("predicted") == pl.col("target"))
        .then(pl.lit("correct"))
        .otherwise(pl.lit("wrong")),
        confidence=pl.max_horizontal("prob_low", "prob_high"),
    )


def opened(view: Viewing, path: str = "/", **look: Any) -> Tab:
    tab = view.open(path, **look)
    tab.wait_for(READY)
    return tab


def counts(tab: Tab, facet: str) -> dict[str, int]:
    """The number beside each value of a filter, by value; "" is no value."""
    found = tab.run(
        f"[...document.querySelectorAll('[data-facet={facet}] .value')].map((one) =>"
        "[one.querySelector('input').value, one.querySelector('.number').textContent])"
    )
    return {name: int(number) for name, number in found}


def counted(table: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(table[column].fill_null("").value_counts().iter_rows())


def test_all_slides_are_there_and_nothing_of_a_manifest_is_run(
    view: Viewing, expected: pl.DataFrame
) -> None:
    tab = opened(view)
    assert tab.run(COUNT) == f"{len(expected)} slides"
    assert tab.run(SHOWN)[:3] == expected["slide_id"].sort()[:3].to_list()
    for column in ("cohort", "result", "site", "scanner"):
        assert counts(tab, column) == counted(expected, column), column
    tab.run("document.querySelector('.card.unusable').scrollIntoView()")
    words = tab.run("document.querySelector('.card.unusable .remarks').textContent")
    assert words == "excluded: </ul><script>window.broken=1</script> 3 tiles"
    tab.wait_for("document.querySelectorAll('.picture.there').length > 3")
    assert tab.run("window.broken") is None
    assert tab.run("document.querySelectorAll('.card b, .card script, .filters img').length") == 0
    assert (tab.errors, tab.failures) == ([], [])
    assert view.get("/favicon.ico").status == 204  # browsers ask for it now and then


def test_the_numbers_on_cards_are_the_evaluations(view: Viewing, expected: pl.DataFrame) -> None:
    tab = opened(view, f"/?model={ABMIL}", size_px=(1280, 3000))
    own = expected.filter(pl.col("slide_id") == "demo-003-a").row(0, named=True)
    card = "document.querySelector('.card:has([title=demo-003-a])')"
    values = tab.run(f"[...{card}.querySelectorAll('.bars .value')].map((one) => one.textContent)")
    assert values == [f"{own[name]:.3f}" for name in ("prob_low", "prob_high")]
    assert tab.run(f"{card}.querySelector('.verdict').textContent").endswith(own["result"])


def test_counts_beside_a_filter_are_those_given_the_others(
    view: Viewing, expected: pl.DataFrame
) -> None:
    tab = opened(view, "/?result=wrong&scanner=%3Cb%3ES%3C/b%3E&confidence=0.5-1&q=E")
    is_wrong, scanner = pl.col("result") == "wrong", pl.col("scanner") == "<b>S</b>"
    table = expected.filter(
        pl.col("confidence") >= 0.5,
        pl.col("slide_id").str.contains("(?i)e") | pl.col("patient_id").str.contains("(?i)e"),
    )
    shown = table.filter(is_wrong, scanner)
    assert tab.run(COUNT) == f"{len(shown)} of {len(expected)} slides"
    assert 0 < len(shown) < len(table)
    for column, rows in (
        ("result", table.filter(scanner)),
        ("scanner", table.filter(is_wrong)),
        ("site", shown),
        ("cohort", shown),
    ):
        found = counts(tab, column)
        assert {name: number for name, number in found.items() if number} == counted(rows, column)


def test_keys_search_filter_and_walk_and_enter_opens_the_slide(
    view: Viewing, expected: pl.DataFrame
) -> None:
    tab = opened(view)
    tab.press("/")
    tab.type("demo-00")
    wanted = expected.filter(pl.col("slide_id").str.contains("demo-00"))["slide_id"].to_list()
    assert tab.run(COUNT) == f"{len(wanted)} of {len(expected)} slides"
    assert tab.run(SHOWN) == wanted
    tab.press("Enter")
    assert tab.run(HERE) == wanted[0]
    walked = []
    for key in ("ArrowRight", "End", "ArrowLeft", "Home", "ArrowDown", "ArrowUp", "ArrowLeft"):
        tab.press(key)
        walked.append(tab.run(HERE))
    columns = tab.run("Number(document.querySelector('[role=grid]').getAttribute('aria-colcount'))")
    assert walked == [wanted[i] for i in (1, -1, -2, 0, columns, 0, 0)]
    tab.run("document.querySelector('[data-facet=result] input[value=wrong]').focus()")
    tab.press(" ")
    wrong = expected.filter(pl.col("slide_id").is_in(wanted), pl.col("result") == "wrong")[
        "slide_id"
    ].to_list()
    assert tab.run(SHOWN) == wrong
    tab.press("/")
    tab.press("Escape")
    tab.press("End")
    tab.press("Enter")
    tab.wait_for("location.pathname.startsWith('/slides/')")
    assert tab.run("location.pathname") == f"/slides/development/{wrong[-1]}"
    kept = json.loads(tab.run("sessionStorage.getItem('her2-view-list')"))
    assert kept["slides"] == [["development", name] for name in wrong]

    tab.wait_for("document.querySelector('#panes') !== null")
    tab.run("history.back()")
    tab.wait_for(f"{READY} && {HERE}")
    assert tab.run(HERE) == wrong[-1]
    assert tab.run(SHOWN) == wrong
    query = tab.run("location.search.slice(1)")
    assert query == kept["query"]
    assert tab.run("document.querySelector('#search').value") == "demo-00"
    assert tab.run("document.querySelector('[value=wrong]').checked") is True


def test_an_address_says_the_order_and_the_model(
    view: Viewing, hostile: Project, expected: pl.DataFrame
) -> None:
    other = expectation(hostile, "turned")
    for model, table in ((ABMIL, expected), (TURNED, other)):
        tab = opened(view, f"/?model={model}&sort=-confidence", size_px=(1280, 3000))
        order = table.sort("confidence", descending=True, nulls_last=True)["slide_id"].to_list()
        assert tab.run(SHOWN) == order
        assert tab.run("document.querySelector('#model').value") == model
        tab.run("document.querySelector('#direction').click()")
        up = table.sort("confidence", nulls_last=True)["slide_id"].to_list()
        assert tab.run(SHOWN) == up
    tab = opened(view, "/?site=north %26 south&at=development/demo-007-a")
    assert tab.run(HERE) == "demo-007-a"
    assert tab.run("document.querySelector('[value=\"north & south\"]').checked") is True
    tab = opened(view, "/?model=score/none/none&sort=p:none&site=gone&at=development/none")
    assert tab.run(COUNT) == f"0 of {len(expected)} slides"
    assert counts(tab, "site")["gone"] == 0
    tab.click_on("#clear")
    assert tab.run(COUNT) == f"{len(expected)} slides"
    assert "there is no model" in tab.run("document.querySelector('#status').textContent")


def test_the_table_has_the_same_slides_and_sorts_by_its_headings(
    view: Viewing, expected: pl.DataFrame
) -> None:
    tab = opened(view, "/?view=table")
    lines = "[...document.querySelectorAll('.lines .row a')].map((one) => one.textContent)"
    assert tab.run(lines) == expected["slide_id"].sort().to_list()
    heads = "[...document.querySelectorAll('.head button')]"
    tab.run(f"{heads}.find((one) => one.textContent === 'Tiles').focus()")
    tab.press("Enter")
    assert tab.run("document.querySelector('[aria-sort=ascending]').textContent").startswith(
        "Tiles"
    )
    assert tab.run(lines) == expected.sort("tiles", maintain_order=True)["slide_id"].to_list()
    rows = [name for role, name in tab.spoken() if role == "row"]
    assert len(rows) == len(expected) + 1


def test_the_list_as_csv_is_safe_to_open_in_a_spreadsheet(
    view: Viewing, expected: pl.DataFrame
) -> None:
    tab = opened(view, "/?result=no prediction&result=correct&sort=tiles")
    tab.run(
        "void (window.made = new Promise((done) => { const make = URL.createObjectURL;"
        "URL.createObjectURL = (blob) => {"
        "if (blob.type.startsWith('text/csv')) done(blob.text()); return make(blob); }; }))"
    )
    tab.run("document.querySelector('#download').click()")
    text = tab.run("window.made")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    wanted = expected.filter(pl.col("result") != "wrong").sort("tiles", maintain_order=True)
    assert [row["slide_id"] for row in rows] == wanted["slide_id"].to_list()
    for row, own in zip(rows, wanted.iter_rows(named=True), strict=True):
        assert row["site"].removeprefix("'") == (own["site"] or "")
        assert not row["site"].startswith("=")
        if own["prob_low"] is not None:
            assert float(row["prob_low"]) == own["prob_low"]
        else:
            assert (row["prob_low"], row["status"]) == ("", "excluded")


@pytest.mark.parametrize("width_px", [390, 1280, 2560])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_every_width_and_is_heard_in_full(view: Viewing, width_px: int, dark: bool) -> None:
    tab = opened(view, size_px=(width_px, 900), dark=dark)
    assert tab.run("document.documentElement.scrollWidth") <= width_px
    heard = tab.spoken()
    cells = [name for role, name in heard if role == "gridcell"]
    assert any(name.startswith("demo-001-a, patient demo-001, truth high") for name in cells)
    nameless = [role for role, name in heard
                if role in ("button", "combobox", "searchbox", "checkbox", "link", "spinbutton")
                and not name]  # fmt: skip
    assert nameless == []


def test_of_many_slides_only_those_in_sight_are_elements_and_keys_reach_all(view: Viewing) -> None:
    tab = opened(view)
    tab.run("""(async () => {
        const { List } = await import('/static/cohort_list.js');
        const root = document.querySelector('#slides');
        const make = (item) => {
            const one = document.createElement('div');
            one.textContent = item;
            return [one];
        };
        window.list = new List(root, { label: 'Many', least_px: 200, make, drop: () => {} });
        window.list.show(Uint32Array.from({ length: 20000 }, (_, index) => index), 10000);
        window.list.go(10000);
    })()""")
    here, rows = "document.activeElement.textContent", "document.querySelectorAll('.row').length"
    columns = tab.run("Number(document.querySelector('.grid').getAttribute('aria-colcount'))")
    seen = []
    for key in ("Enter", "End", "ArrowRight", "Home", "ArrowLeft", "PageDown", "ArrowDown"):
        tab.press(key)
        seen.append(int(tab.run(here)))
        assert tab.run(rows) < 14
    screen = seen[5]
    assert seen == [10000, 19999, 19999, 0, 0, screen, screen + columns]
    assert screen % columns == 0
    assert tab.run("document.activeElement.parentElement.getAttribute('aria-rowindex')") == str(
        (screen + columns) // columns + 1
    )
    # The window changes and the place stays.
    tab.look(size_px=(800, 700))
    tab.wait_for("document.querySelector('.grid').getAttribute('aria-colcount') === '2'")
    assert int(tab.run(here)) == screen + columns
    # Who scrolls away with the mouse comes back with a key.
    tab.run("document.querySelector('#slides').scrollTop = 1e6")
    tab.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert int(tab.run(here)) == screen + columns
    assert tab.run(rows) < 14
    tab.press("ArrowRight")
    assert int(tab.run(here)) == screen + columns + 1


def test_pictures_are_asked_for_few_at_a_time_and_not_once_they_are_past(view: Viewing) -> None:
    tab = opened(view)
    asked, running, stopped = tab.run("""(async () => {
        const { Thumbnails } = await import('/static/cohort_thumbnails.js');
        const asked = [], stopped = [], real = window.fetch;
        window.fetch = (address, { signal }) => new Promise((_, fail) => {
            if (address.startsWith('/')) return; // the page's own
            asked.push(address);
            signal.addEventListener('abort', () => {
                stopped.push(address);
                fail(new DOMException('stopped', 'AbortError'));
            });
        });
        const rows = Array.from({ length: 8 }, () => {
            const row = document.createElement('div');
            row.innerHTML = '<span class="picture"><img alt=""></span>';
            return row;
        });
        const thumbnails = new Thumbnails();
        rows.forEach((row, index) => thumbnails.want(row.firstChild, `x${index}`));
        const pause = () => new Promise((done) => setTimeout(done, 150));
        await pause();
        const running = asked.length;
        thumbnails.drop(rows[3]);
        thumbnails.drop(rows[7]);
        await pause();
        window.fetch = real;
        return [asked, running, stopped];
    })()""")
    assert running == 4
    assert asked == ["x7", "x6", "x5", "x4", "x2"]
    assert stopped == ["x7"]
