"""A section of the report is two files: one more, in a copy of the package, reaches the page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import her2
from her2.config.jobs import dump
from tests.unit.report_maker import Cohort

MODULE = '''
"""How many slides each site sent."""

from dataclasses import dataclass

import polars as pl

from her2.report.results import Results
from her2.report.section import Section


@dataclass(frozen=True, slots=True)
class SiteRow:
    site: str
    slides: int


def site_rows(results: Results) -> list[SiteRow]:
    table = results.cohort.group_by("site").len().sort("site")
    return [SiteRow(*row) for row in table.iter_rows()]


SECTION = Section(
    anchor="sites",
    title="Sites",
    order=35,
    collect=site_rows,
    is_shown=bool,
    tables={"sites": lambda results: pl.DataFrame(site_rows(results))},
)
'''
TEMPLATE = """
<ul>{% for row in data %}<li>{{ row.site }}: {{ row.slides|plural("slide") }}</li>{% endfor %}</ul>
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to add to."""
    source = Path(her2.__file__).parent
    return shutil.copytree(
        source, tmp_path / "copy" / "her2", ignore=shutil.ignore_patterns("__pycache__")
    )


def build(tmp_path: Path, package: Path) -> "subprocess.CompletedProcess[str]":
    """Build the report with the copy, as the rule does."""
    spec = Cohort(sites=("north", "<b>south</b>")).write(tmp_path / "results")
    return subprocess.run(
        [
            sys.executable, "-m", "her2", "report", "--spec", dump(spec),
            "--results", str(tmp_path / "results"), "--out", str(tmp_path / "report.html"),
        ],
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_two_files_add_a_section_with_its_navigation_and_its_table(
    tmp_path: Path, package: Path
) -> None:
    report = package / "report"
    (report / "sections" / "sites.py").write_text(MODULE)
    (report / "templates" / "sections" / "sites.html.j2").write_text(TEMPLATE)
    done = build(tmp_path, package)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    entries = re.findall(r'<li><a href="#([^"]*)">', page[: page.index("<main>")])
    assert entries[entries.index("cohort") + 1] == "sites"
    assert '<h2 id="sites">Sites</h2>' in page
    assert "<li>north: 9 slides</li>" in page
    assert "<li>&lt;b&gt;south&lt;/b&gt;: 9 slides</li>" in page
    table = pl.read_csv(tmp_path / "tables" / "sites.csv")
    assert table.rows() == [("<b>south</b>", 9), ("north", 9)]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"sections/sites.py": MODULE}, "sites: a section is a module"),
        ({"templates/sections/sites.html.j2": TEMPLATE}, "sites: a section is a module"),
        (
            {
                "sections/sites.py": MODULE.replace("35", "30"),
                "templates/sections/sites.html.j2": TEMPLATE,
            },
            "more than one section has order 30",
        ),
    ],
)
def test_half_a_section_is_an_error_that_names_it(
    tmp_path: Path, package: Path, files: dict[str, str], words: str
) -> None:
    for name, text in files.items():
        (package / "report" / name).write_text(text)
    code = "from her2.report.page import find_sections; find_sections()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "LookupError" in done.stderr
    assert words in done.stderr


def test_the_stage_starts_without_the_libraries_that_draw_and_fit() -> None:
    code = (
        "import sys, her2.report.build;"
        "print(*{'matplotlib', 'sklearn', 'scipy', 'torch', 'cv2', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "")
