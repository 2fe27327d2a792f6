"""Adding an artefact filter means adding one file, and leaves other filters' output unchanged."""

import importlib
import json
import re
import subprocess
import sys
import textwrap
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from her2.filters.base import AreaFilter, TileFilter, Where
from her2.filters.registry import AREA_FILTERS, FILTERS, LISTED, TILE_FILTERS
from her2.storage.entries import TileEntry
from her2.storage.facts import SlideFacts, TileGrid
from her2.storage.tiles import read_table

ROOT = Path(__file__).parents[2]

SPECK = '''
"""Artefact filter: yellow specks."""

from her2.filters.base import AreaFilter, Option, Where


def _find(thumbnail, options):
    red, green, blue = (thumbnail.rgb[..., i].astype(int) for i in range(3))
    return (red - blue > options["speck_contrast"]) & (green - blue > options["speck_contrast"])


FILTER = AreaFilter(
    name="speck",
    limit=0.1,
    description="largest share of a tile under yellow specks; 1: rejects no tile",
    options={"speck_contrast": Option(60.0, "red and green above blue, in grey levels")},
    where=Where.OVER,
    find=_find,
    colour=(0, 90, 0),
    legend="yellow specks",
    methods="under yellow specks (Speck and Speck 1999)",
    references={"Speck and Speck 1999": "Journal of Specks 1"},
)
'''
DIM = '''
"""Artefact filter: tiles that are too dark."""

from her2.filters.base import Measured, TileFilter


def _measure(tiles, options):
    import numpy as np

    values = [1 - tiles.read(i, 16).mean() / 255 for i in range(len(tiles.centres_um))]
    return Measured(np.array(values, np.float32), np.ones(len(values), bool))


FILTER = TileFilter(
    name="dim",
    limit=0.5,
    description="largest mean darkness of a tile; 1: not measured",
    measure=_measure,
    colour=(0, 90, 0),
    legend="too dark",
    methods=lambda options: (
        f"its mean darkness (Speck and Speck 1999) was at most {options['max_dim']:g}"
    ),
    references={"Speck and Speck 1999": "Journal of Specks 1"},
)
'''
METHODS = {
    "speck": "10\N{NO-BREAK SPACE}% under yellow specks (Speck and Speck 1999)",
    "dim": "and its mean darkness (Speck and Speck 1999) was at most 0.5",
}

RUN = """
import json, shutil, sys
from pathlib import Path

import her2.filters

folder, name = Path(sys.argv[1]), sys.argv[2]
her2.filters.__path__.append(str(folder / "filters"))

import cv2
import numpy as np
import polars as pl

from her2.cohort.audit import tabulate_cohort
from her2.cohort.manifest import Cohort, SlideRow
from her2.config import TilingSection
from her2.config.jobs import CohortSpec, TileSpec
from her2.report.build import build_report
from her2.storage.cache import Cache
from her2.tiling.stage import tile_bucket
from tests.unit.report_maker import Cohort as Made

BUCKET, GRID = "0000-of-0001", "96px-0.5mpp"
cohort = Cohort((SlideRow("a", "a.tif", "p", {"her2": "0"}),), folder)
spec = TileSpec(bucket=BUCKET, rows="", mpp=0.5, size=96, tiling=TilingSection())
output = folder / "results" / "tiles" / GRID / f"{BUCKET}.json"
tile_bucket(spec, cohort, Cache(folder / "cache"), output)
spec = CohortSpec(rows="", buckets=(BUCKET,), grids=(GRID,), labels=("her2",))
table = tabulate_cohort(spec, cohort, output.parents[1], folder / "results" / "cohort")
picture = cv2.cvtColor(cv2.imread(str(output.with_name("a.qc.jpg"))), cv2.COLOR_BGR2RGB)
coloured = np.abs(picture.astype(int) - (0, 90, 0)).max(axis=2) < 40

# The report of a finished run in which one slide is this one.
made = Made()
report_spec = made.write(folder / "report")
path = folder / "report" / "cohort" / "slides.parquet"
records = pl.read_parquet(path).to_dicts()
records[3] |= {key: table[key][0] for key in table.columns if key in records[3]
               and key not in ("slide_id", "patient_id", "label_her2", "site", "split", "grid")}
pl.DataFrame(records, infer_schema_length=None).write_parquet(path)
build_report(report_spec, folder / "report", folder / "report.html")
print(json.dumps({
    "options": sorted(key for key in TilingSection.model_fields if name in key),
    "entry": json.loads(output.read_text())["a"],
    "table": table.row(0, named=True),
    "coloured": int(coloured.sum()),
}))
"""


@pytest.mark.parametrize(("name", "module"), [("speck", SPECK), ("dim", DIM)])
def test_a_filter_costs_one_file(tmp_path, write_slide, name, module):
    """One module in the package's path provides everything from the config key to the report."""
    generator = np.random.default_rng(1)
    image = np.full((1200, 1200, 3), (205, 135, 180), float)
    image[generator.random((1200, 1200)) < 0.3] = (95, 60, 140)
    spoilt = np.zeros((1200, 1200), bool)
    if name == "speck":  # a square of 60 px in each of nine tiles: 0.39 of the tile
        for x, y in np.ndindex(3, 3):
            spoilt[18 + 192 * y :, 18 + 192 * x :][:60, :60] = True
        image[spoilt] = (250, 230, 60)
    else:
        spoilt[480:960, 480:960] = True
        image[spoilt] *= 0.65
    (tmp_path / "filters").mkdir()
    (tmp_path / "filters" / f"{name}.py").write_text(module)
    write_slide(tmp_path / "a.tif", image.clip(0, 255).astype(np.uint8), mpp=(0.5, 0.5))
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), name],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found["options"] == [f"max_{name}", *(["speck_contrast"] if name == "speck" else [])]
    entry = found["entry"]
    rejected = {key: value for key, value in entry.items() if key.startswith("rejected_")}
    number = {"speck": 9, "dim": 25}[name]
    assert rejected == {f"rejected_{one.name}": 0 for one in LISTED} | {f"rejected_{name}": number}
    assert entry["tiles"] == 144 - number
    assert found["table"][f"rejected_{name}"] == number
    if name == "speck":
        assert found["table"]["speck"] == entry["speck"] == pytest.approx(spoilt.mean(), rel=0.15)
    assert found["coloured"] > 100

    page = (tmp_path / "report.html").read_text()
    legend = {"speck": "yellow specks", "dim": "too dark"}[name]
    assert f'<span style="border-color: rgb(0 90 0)"></span>{legend}</li>' in page
    assert f'<option value="rejected_{name} down">most {legend}</option>' in page
    pattern = r'<div class="card [^>]*data-id="slide-03"[^>]*>.*?</template>'
    card = re.search(pattern, page, re.DOTALL)
    assert f'data-rejected_{name}="{number / 144:.4f}"' in card[0]
    assert f"{number} for {name}" in card[0]
    methods = (tmp_path / "methods.txt").read_text()
    assert METHODS[name] in methods
    assert "Speck and Speck 1999, Journal of Specks 1" in methods

    # Its tile table is read where the filter is not installed.
    table = read_table(tmp_path / "results" / "tiles" / "96px-0.5mpp" / "a.parquet")
    assert table.facts.rejected[name] == number
    assert name in table.quality
    assert (table.reads, "dim_read" in table.quality) == (
        {"blur": table.reads["blur"]} | ({"dim": 144} if name == "dim" else {}), name == "dim",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "her2.filters.unfinished does not define FILTER"),
        (SPECK, "her2.filters.unfinished: the filter's name 'speck' must be its module's"),
    ],
)
def test_a_module_that_is_no_filter_is_named(tmp_path, text, problem):
    (tmp_path / "unfinished.py").write_text(text)
    code = "import sys, her2.filters; her2.filters.__path__.append(sys.argv[1]); import her2.config"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    assert problem in done.stderr


def test_a_config_is_parsed_without_cv2_and_scipy():
    code = "import sys, her2.config; print(*{'cv2', 'scipy'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == []


def test_filters_run_from_the_coarse_to_the_fine():
    """Unscanned glass is found before ink, ink before tissue, and areas before tiles are read."""
    assert [one.where for one in AREA_FILTERS] == sorted(one.where for one in AREA_FILTERS)
    assert (*AREA_FILTERS, *TILE_FILTERS) == FILTERS
    first = ["border", "pen", "fold", "blur"]
    assert [one.name for one in FILTERS if one.name in first] == first
    assert sorted(FILTERS, key=LISTED.index) == list(LISTED)
    assert {Where.OUTSIDE, Where.OVER, Where.WITHIN} == {one.where for one in AREA_FILTERS}


@pytest.mark.parametrize("one", LISTED, ids=lambda one: one.name)
def test_a_filter_s_names_are_its_own(one):
    """Its columns, keys and colour are unique, and its citations are listed."""
    plain = {item.name for kind in (SlideFacts, TileGrid, TileEntry) for item in fields(kind)}
    columns = {"x", "y", "tissue", "annotated", "slide_id", "patient_id", "site", "scanner",
               "split", "annotation", "mask", "grid"}  # fmt: skip
    assert one.name not in plain | columns
    assert not one.name.startswith(("label_", "rejected_"))
    assert not one.name.endswith(("_read", "_reads"))
    others = [other for other in LISTED if other is not one]
    assert not set(one.keys) & {key for other in others for key in other.keys}
    shades = {(0, 150, 90), (40, 90, 200), (0, 0, 0), *(other.colour for other in others)}
    assert one.colour not in shades
    assert 0 <= one.limit <= 1
    for option in one.keys.values():
        assert option.at_least <= option.default <= (option.at_most or np.inf)
    options = {key: option.default for key, option in one.keys.items()}
    words = one.methods if isinstance(one, AreaFilter) else one.methods(options)
    assert isinstance(one, AreaFilter | TileFilter)
    for work in re.findall(r"\(([A-Z][^()]*? (?:19|20)\d\d)", words):
        assert work in one.references
    module = importlib.import_module(f"her2.filters.{one.name}")
    assert module.__doc__.startswith("Artefact filter: ")


def test_the_example_of_the_contributing_page_is_a_filter():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    (example,) = re.findall(r"```python\n(.*?AreaFilter.*?)```", page, re.DOTALL)
    names = {"find": lambda thumbnail, options: thumbnail.outside}
    exec(textwrap.dedent(example), names)
    assert isinstance(names["FILTER"], AreaFilter)
    assert list(names["FILTER"].keys) == ["max_mine", "mine_um"]
