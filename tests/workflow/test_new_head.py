"""A head is one file: once it lies in the package, everything else finds it."""

import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl

from tests.workflow.changes import clone
from tests.workflow.project import REPOSITORY, Project

SHARP = '''
"""Attention sharpened by a factor s: a = softmax(s w^T h). Source: Doe, Sharp MIL, 2031."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from her2.core.section import Count, Positive
from her2.heads import Projected, Words, named

if TYPE_CHECKING:
    from her2.heads.layers import Head


class SharpSection(Projected):
    """Sharpened attention (Doe 2031)."""

    head: Literal["sharp"] = named("sharp")
    label = "sharpened attention"
    citations: ClassVar = {"Doe et al. 2031": "Journal of Sharp Results 7"}
    factor: Annotated[Positive, Words("sharpness")] = Field(3.0, description="of the scores")
    activation: Literal["tanh", "relu"] = Field("tanh", description="of the hidden layer")
    widths: tuple[Count, ...] = Field((16, 8), description="of the hidden layers")


def network(options: SharpSection, dimension: int, outputs: int) -> "Head":
    """Build it."""
    import torch
    from torch import Tensor, nn

    from her2.heads.layers import Head, Output, masked_softmax

    class Sharp(Head):
        def __init__(self) -> None:
            super().__init__(options, dimension)
            activation = {"tanh": nn.Tanh, "relu": nn.ReLU}[options.activation]
            layers, width = [], self.width
            for wider in options.widths:
                layers += [nn.Linear(width, wider), activation()]
                width = wider
            self.score = nn.Sequential(*layers, nn.Linear(width, 1, bias=False))
            self.classifier = nn.Linear(self.width, outputs)

        def encode(self, bag: Tensor) -> tuple[Tensor, ...]:
            h = self.project(self.dropout(bag))  # (b, n, width)
            return h, options.factor * self.score(h)

        def pool(self, parts: tuple[Tensor, ...], mask: Tensor) -> Output:
            weights = masked_softmax(parts[1], mask)  # (b, n, 1)
            z = torch.einsum("bnm,bnw->bw", weights, parts[0].to(weights.dtype))
            return Output(self.classifier(z), weights.squeeze(2))

    return Sharp()
'''


def add_sharp(project: Project) -> Project:
    """Make the project a clone of the repository, with the one new file."""
    clone(project)
    (project.folder / "her2/heads/sharp.py").write_text(SHARP.lstrip())
    return project


def test_a_new_file_is_configured_trained_evaluated_and_reported(project: Project) -> None:
    add_sharp(project).edit(heads={"sharp": {"factor": 5}})
    run = project.snakemake()
    assert run.code == 0, run.output
    assert run.work == {"tiled": [], "embedded": [], "trained": ["r0f0", "r0f1"]}
    results = project.folder / "results"
    metrics = pl.read_parquet(results / "evaluation/score/tiny/sharp/metrics.parquet")
    assert metrics.filter(level="patient", metric="auc", **{"class": "macro"})["value"].item() >= 0
    assert len(list((results / "heatmaps/score/tiny/sharp/slides").glob("*.png"))) == 2
    methods = (results / "report/methods.txt").read_text()
    assert (
        "sharp (sharpened attention, Doe et al. 2031; dropout 0.25, sharpness 5, activation tanh, "
        "widths 16 and 8)"
    ) in methods
    assert "Doe et al. 2031, Journal of Sharp Results 7" in methods.rpartition("References. ")[2]


def test_a_new_file_is_in_the_page_and_the_schema_of_the_config(tmp_path: Path) -> None:
    add_sharp(Project(tmp_path))
    for command, words in {"page": "## `heads`: `sharp`", "schema": '"SharpSection"'}.items():
        done = subprocess.run(
            [sys.executable, "-m", "her2", "config", command],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert words in done.stdout


def test_a_new_file_is_tested_like_the_others(tmp_path: Path) -> None:
    add_sharp(Project(tmp_path))
    for name in (
        "pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/unit/test_head_zoo.py",
    ):  # fmt: skip
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, target)
    arguments = ["-v", "-p", "no:cacheprovider", "-k", "[sharp]", "tests/unit/test_head_zoo.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *arguments],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for claim in (
        "the_order_of_instances_changes_no_logit",
        "padding_with_masked_instances_changes_nothing",
        "attention_sums_to_one_and_is_zero_where_masked",
        "a_key_instance_is_found_where_the_mean_tells_nothing",
    ):
        assert f"test_{claim}[sharp] PASSED" in done.stdout
