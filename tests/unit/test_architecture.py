"""The pages that describe the code say what is there."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
PACKAGES = "her2|workflow|tests|benchmarks|envs|profiles|docs"


def test_the_layers_on_the_page_are_those_that_are_checked() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    checked = next(c["layers"] for c in linter["contracts"] if c["type"] == "layers")
    page = (ROOT / "docs/architecture.md").read_text()
    table = page.split("## Layers")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == checked


@pytest.mark.parametrize("name", PAGES)
def test_every_file_that_a_page_names_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    named = re.findall(rf"`((?:{PACKAGES})/[\w./-]*\w/?)`", text)
    named += re.findall(r"`(\w+/\w+\.py)`", text)
    absent = [
        path
        for path in dict.fromkeys(named)
        if not (ROOT / path).exists()
        and not (ROOT / "her2" / path).exists()
        # The steps for adding something name files that the reader is about to write.
        and not (name == "CONTRIBUTING.md" and re.search(r"mine|count", path))
    ]
    assert absent == []


@pytest.mark.parametrize("name", PAGES)
def test_every_link_of_a_page_leads_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / name).parent / target).exists(), target


@pytest.mark.parametrize("name", [*PAGES, "CHANGELOG.md"])
def test_no_page_says_a_thing_twice(name: str) -> None:
    """As it does after two versions of a paragraph were both kept in a merge."""
    text = re.sub(r"^ *```.*?^ *```", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    items = [
        " ".join(item.split())
        for item in re.split(r"\n\s*\n|^(?=- |\d+\. )", text, flags=re.MULTILINE)
    ]
    said = [item for item in items if len(item) > 60 and not item.startswith("|")]
    said += re.findall(r"^(?:- )?(\*\*[^*\n]+\*\*)", text, re.MULTILINE)
    assert [item for item, times in Counter(said).items() if times > 1] == []
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
        rows = [row for row in section.splitlines() if row.startswith("|") and "---" not in row]
        assert [row for row, times in Counter(rows).items() if times > 1] == []


def test_a_term_has_one_meaning() -> None:
    glossary = (ROOT / "docs/architecture.md").read_text().split("## Glossary")[1].split("\n## ")[0]
    terms = re.findall(r"^\| ([^|]+) \|", glossary, re.MULTILINE)
    assert len(terms) > 50
    assert [term for term, times in Counter(terms).items() if times > 1] == []
