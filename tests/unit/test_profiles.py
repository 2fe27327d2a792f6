import re
from pathlib import Path
from typing import Any

import yaml

PROFILES = Path(__file__).resolve().parents[2] / "profiles"


def profile(name: str) -> dict[str, Any]:
    return yaml.safe_load((PROFILES / name / "config.yaml").read_text())


def test_the_slurm_profile_repeats_what_it_replaces() -> None:
    # With --workflow-profile profiles/slurm Snakemake does not read profiles/default.
    default, slurm = profile("default"), profile("slurm")
    assert default
    assert {name: slurm.get(name) for name in default} == default


def test_every_line_that_a_site_edits_is_marked() -> None:
    lines = (PROFILES / "slurm" / "config.yaml").read_text().splitlines()
    marks = [re.findall(r"# \((\d)\)", line) for line in lines]
    assert {mark for found in marks for mark in found} == {"1", "2", "3", "4"}
    for line, found in zip(lines, marks, strict=True):
        if re.match(r"\s*(# )?(slurm_partition|slurm_account|gpu):", line):
            assert found, line


def test_rules_that_can_use_a_gpu_are_those_of_the_profile() -> None:
    text = "\n".join(
        path.read_text() for path in (PROFILES.parent / "workflow" / "rules").glob("*.smk")
    )
    bodies = re.findall(r"(?ms)^ *rule (\w+):\n(.*?)(?=^ *rule |\Z)", text)
    asking = {name for name, body in bodies if "gpu=1," in body}
    assert asking == set(profile("slurm")["set-resources"])
    on_request = {name for name, body in bodies if "gpu=1 if" in body}
    lines = (PROFILES / "slurm/config.yaml").read_text()
    named = set(re.findall(r"(?m)^  # (\w+): \{ slurm_partition: gpu, gpu: 1 \}$", lines))
    assert on_request == {"tile_bucket"}
    assert on_request < named
