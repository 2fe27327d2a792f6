"""The pages that describe the code say what is there."""

import re
import tomllib
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
