"""The report in a real browser: sorting, enlarging, a phone, print, under its own policy."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from her2.report.build import build_report
from tests.browser import Tab, browser
from tests.unit.report_maker import Cohort

SITES = ('<img src=x onerror="window.broken=1">', "=1+1")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    cohort = Cohort(
        encoders=("one", "two", "six"), sites=SITES, signal=0.3, synthetic=True,
        tile_reasons={4: ("excluded", "no tissue found")},
        pretrained={"six": {"settings": {f"option_{index}": 0.125 for index in range(12)}}},
    )  # fmt: skip
    build_report(cohort.write(folder / "results"), folder / "results", folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


COLUMN = """[...document.querySelector('#headline ~ .scroll table').tBodies[0].rows]
    .map((row) => row.cells[6 - 1].querySelector('.value').textContent)"""
HEAD = "document.querySelector('#headline ~ .scroll table').tHead.rows[0].cells[6 - 1]"


def test_a_click_and_a_key_sort_a_table_and_say_so(tab: Tab, page: Path) -> None:
    tab.open(page)
    original = tab.run(COLUMN)
    assert len(set(original)) == 3
    tab.run(f"{HEAD}.querySelector('button').click()")
    assert tab.run(COLUMN) == sorted(original, key=float)
    assert tab.run(f"{HEAD}.getAttribute('aria-sort')") == "ascending"
    tab.run(f"{HEAD}.querySelector('button').focus()")
    tab.press("Enter")
    assert tab.run(COLUMN) == sorted(original, key=float, reverse=True)
    assert tab.run(f"{HEAD}.getAttribute('aria-sort')") == "descending"
    tab.press("Enter")
    assert tab.run(COLUMN) == original
    assert tab.run(f"{HEAD}.getAttribute('aria-sort')") is None


def test_a_picture_enlarges_by_key_and_gives_the_focus_back(tab: Tab, page: Path) -> None:
    tab.open(page)
    tab.run("document.querySelector('#models ~ article img').focus()")
    tab.press("Enter")
    assert tab.run("document.querySelector('.enlarged').open") is True
    assert tab.run("document.querySelector('.enlarged img').alt").startswith("ROC curves of")
    tab.press("Escape")
    assert tab.run("document.querySelector('.enlarged').open") is False
    assert tab.run("document.activeElement.alt").startswith("ROC curves of")


@pytest.mark.parametrize("width_px", [390, 768, 1280])
def test_the_page_itself_never_scrolls_sideways(tab: Tab, page: Path, width_px: int) -> None:
    tab.open(page, size_px=(width_px, 844))
    for opened in (False, True):
        if opened:
            tab.run("for (const part of document.querySelectorAll('details')) part.open = true")
        assert tab.run("document.documentElement.scrollWidth") <= width_px
    hidden = "[...document.querySelectorAll('.scroll')].some((e) => e.scrollWidth > e.clientWidth)"
    if width_px == 390:
        assert tab.run(hidden) is True  # wide tables scroll in their own frames


def test_hostile_text_runs_nowhere(tab: Tab, page: Path) -> None:
    tab.open(page)
    assert tab.run("window.broken") is None
    assert tab.run("document.body.innerText.includes('onerror=')") is True
    assert tab.run("document.querySelectorAll('img[onerror]').length") == 0


def test_the_page_asks_for_nothing_but_itself(tab: Tab, page: Path) -> None:
    tab.open(page)
    asked = tab.run("performance.getEntriesByType('resource').map((e) => e.name)")
    assert [name for name in asked if not name.startswith("data:")] == []


def test_a_link_to_a_picture_opens_the_part_that_holds_it(tab: Tab, page: Path) -> None:
    tab.open(page)
    ids = tab.run("[...document.querySelectorAll('[id^=\"picture/\"]')].map((e) => e.id)")
    assert len(ids) == 3
    shown = f"document.getElementById({json.dumps(ids[-1])}).closest('details').open"
    assert tab.run(shown) is False
    tab.run(f"location.hash = {json.dumps('#' + ids[-1])}")
    assert tab.run(shown) is True


def test_print_opens_every_part(tab: Tab, page: Path) -> None:
    tab.open(page)
    closed = "document.querySelectorAll('details:not([open])').length"
    before = tab.run(closed)
    assert before > 3
    tab.run("window.dispatchEvent(new Event('beforeprint'))")
    assert tab.run(closed) == 0
    tab.run("window.dispatchEvent(new Event('afterprint'))")
    assert tab.run(closed) == before


def test_headings_are_in_order_and_pictures_have_words(tab: Tab, page: Path) -> None:
    tab.open(page)
    levels = tab.run("[...document.querySelectorAll('h1,h2,h3,h4')].map((h) => +h.tagName[1])")
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    nameless = "[...document.querySelectorAll('main img')].filter((i) => !i.alt).length"
    assert tab.run(nameless) == tab.run("document.querySelectorAll('main dialog img').length")
    assert tab.run("[...document.querySelectorAll('main table')].every((t) => t.caption)") is True


def test_every_caption_of_drawn_slides_says_synthetic(tab: Tab, page: Path) -> None:
    tab.open(page)
    captions = tab.run(
        "[...document.querySelectorAll('caption, figcaption')].map((c) => c.textContent.trim())"
    )
    silent = [text for text in captions if "synthetic" not in text.lower()]
    assert len(captions) > 30
    assert all(text.startswith("Skeleton of the TRIPOD+AI checklist") for text in silent)


def test_each_region_has_a_name_of_its_own(tab: Tab, page: Path) -> None:
    tab.open(page)
    names = tab.run(
        "[...document.querySelectorAll('[role=region]')].map((e) => e.getAttribute('aria-label'))"
    )
    assert len(names) > 30
    assert len(set(names)) == len(names)


def test_intervals_and_small_numbers_sort_by_their_size(tab: Tab, page: Path) -> None:
    tab.open(page)
    cells = ["[0.9, 1.0]", "5e-05", "[0.2, 0.4]", "1,200", "\u22120.3", "< 0.001"]
    ordered = tab.run(
        f"""(() => {{
          const table = document.querySelector('#models ~ article details table');
          const column = (row) => row.cells[1];
          [...table.tBodies[0].rows].forEach((row, i) => {{
            column(row).textContent = {json.dumps(cells)}[i] ?? 'NA';
          }});
          column(table.tHead.rows[0]).querySelector('button').click();
          return [...table.tBodies[0].rows].map((row) => column(row).textContent);
        }})()"""
    )
    assert ordered[:6] == ["\u22120.3", "5e-05", "< 0.001", "[0.2, 0.4]", "[0.9, 1.0]", "1,200"]
    assert set(ordered[6:]) == {"NA"}


def test_on_a_phone_the_first_column_leaves_room_for_figures(tab: Tab, page: Path) -> None:
    tab.open(page, size_px=(390, 844))
    tab.run("for (const part of document.querySelectorAll('details')) part.open = true")
    widths = tab.run(
        "[...document.querySelectorAll('tbody tr:first-child th')]"
        ".filter((c) => !c.textContent.includes('onerror'))"
        ".map((c) => c.getBoundingClientRect().width)"
    )
    assert 0 < max(widths) <= 390 / 2


def test_no_table_is_cut_on_paper(tab: Tab, page: Path) -> None:
    # A4 without its margins, at 96 px an inch
    tab.open(page, size_px=(718, 1040), media="print")
    tab.run("for (const part of document.querySelectorAll('details')) part.open = true")
    ends = tab.run(
        "[...document.querySelectorAll('table')].map((t) => t.getBoundingClientRect().right)"
    )
    assert 0 < max(ends) <= 718
