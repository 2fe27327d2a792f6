"""`her2 view` as a process: how it begins, who is let in, and how it ends."""

from collections.abc import Iterator

import pytest

from tests.viewing import Viewing, viewing
from tests.workflow.project import Project


@pytest.fixture(scope="module")
def view(validated: Project) -> Iterator[Viewing]:
    with viewing(validated.folder) as found:
        yield found


def test_a_page_opens_without_errors_and_asks_nobody_else(view: Viewing) -> None:
    tab = view.open("/slides/development/demo-001-a")
    tab.wait_for("document.querySelectorAll('.leaflet-tile-loaded').length > 0")
    assert (tab.errors, tab.failures) == ([], [])
    assert {address.startswith(view.url("/")) for address in tab.requests} == {True}


def test_the_browser_that_tests_use_sees_what_a_page_does_wrong(view: Viewing) -> None:
    tab = view.open("/slides/development/demo-001-a")
    tab.run("import('/static/none.js').catch(() => null)")
    tab.run(
        "(() => { const one = document.createElement('script'); one.textContent = 'window.x = 1';"
        "document.body.append(one); })()"
    )
    tab.run("new Promise((done) => { const one = new Image(); one.onerror = () => done();"
            "one.src = 'https://elsewhere.example/x.png'; })")  # fmt: skip
    tab.wait_for("window.x === undefined")
    assert any("inline script violates" in error for error in tab.errors)
    assert any(found.endswith("/static/none.js: 404") for found in tab.failures)
    assert "https://elsewhere.example/x.png: csp" in tab.failures
