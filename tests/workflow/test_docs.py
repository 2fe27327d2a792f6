"""Every command that the README and the documentation give is run as it is written.

Commands in blocks run in a folder as a user has it: a clone, a manifest, a finished run. Of what
would install something or take hours, the tool itself is asked whether it takes the line. A command
named in a sentence (`her2 status`) must exist.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.viewing import viewing
from tests.workflow.conftest import elsewhere
from tests.workflow.project import CONFIG, REPOSITORY, Project

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
PLACEHOLDERS = {"RESULTS": "results", "FILE": "mine.yaml", "SLIDE": "A-001", "FOLDER": "results"}
ELSEWHERE = {
    r"(squeue|scancel|sinfo|sacctmgr|scontrol)\b|.*profiles/slurm": "tests/workflow/test_slurm.py",
    r"pip (install|download)|\. \.venv|export PATH": "the Makefile, which made this environment",
    r".*--use-conda": "needs conda; tests/unit/test_environment.py compares its file with the lock",
    r"pre-commit": "tests/unit/test_environment.py",
    r"pytest -m slurm": "the nightly tests, which are these; collecting all others takes long",
    r"python -m tests\.unit\.test_golden": "rewrites the file that it is compared with",
    r"her2 import [\w-]+ \S": "tests/unit/test_presets.py, and that of each source",
    r".*\b(tcga-brca|bcnb|herohe|yale|warwick|table)/": "tests/unit/test_presets.py imports these",
    r".*workflow/presets/": "tests/unit/test_presets.py; test_published.py runs two of them",
    r".*\bcount\b": "tests/unit/test_cli.py, with a stage that it adds",
    r".*\bfeatures\.yaml": "tests/workflow/test_features.py, with features it draws",
    r"her2 import \S+ \S": "tests/unit/test_import_*.py, with a cohort of each source",
}
ASKED = {
    r"(\w+=\S+ )?make\b": " --dry-run",
    r"python benchmarks/": " --help",
    # "-k mine" selects nothing before the reader has added anything.
    r"pytest": " --collect-only -q -p no:cacheprovider || [ $? = 5 ]",
}
GENERATED = ("docs/config.md", "docs/metrics.md", "workflow/schemas/config.schema.json")


def blocks() -> list[str]:
    """Lines of all bash blocks, without comments, in the order of the pages."""
    found: list[str] = []
    for page in PAGES:
        for block in re.findall(r"(?ms)^ *```bash\n(.*?)^ *```", page.read_text()):
            joined = re.sub(r"(?m)(\s+# .*)?$", "", block).replace("\\\n", " ")
            lines = (" ".join(line.split()) for line in joined.splitlines())
            found += [line for line in lines if line and not line.startswith("#")]
    return list(dict.fromkeys(found))


def mentions() -> list[str]:
    """Commands in backticks outside of blocks."""
    found: list[str] = []
    for page in PAGES:
        prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        spans = re.findall(r"`((?:her2|snakemake|make|python|pytest) [^`]*)`", prose)
        found += [" ".join(span.split()) for span in spans if "<" not in span]
    return list(dict.fromkeys(found))


def as_run(command: str, *, mentioned: bool) -> str | None:
    """The line to run for a command; None where another test runs it."""
    if any(re.match(pattern, command) for pattern in ELSEWHERE):
        return None
    for pattern, addition in ASKED.items():
        if re.match(pattern, command):
            return command + addition
    for name, value in PLACEHOLDERS.items():
        command = re.sub(rf"\b{name}\b", value, command)
    if mentioned and re.fullmatch(r"(her2|snakemake)( [a-z-]+){1,2}", command):
        return f"{command} --help"
    # The blocks run the whole workflow. Of what sentences name, only stage 1 runs.
    if mentioned and re.match(r"snakemake .*--cores", command) and "features" not in command:
        return f"{command} --dry-run"
    return command


@pytest.fixture(scope="module")
def clone(finished: Project, warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with the names that the pages use: slide A-001, encoder uni2, head abmil."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("docs", "workflow"):  # the commands that renew generated files write there
        shutil.copytree(REPOSITORY / name, folder / name)
    left_out = {"config.yaml", "results", "cache", "her2-cache", "resources", ".snakemake", ".git"}
    for path in REPOSITORY.iterdir():
        if path.name not in left_out and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    for name in ("slides", "masks", "cache", "weights.safetensors"):
        (folder / name).symlink_to(finished.folder / name)
    project = Project(folder, warm)
    rows = finished.rows()
    first = rows[0].split(",")
    project.write_rows([",".join(["A-001", *first[1:]]), *rows[1:]])
    config = yaml.safe_load((finished.folder / "config.yaml").read_text())
    # Random weights may be given away in a bundle, as those of a file without a licence may not.
    config["encoders"] = {"uni2": CONFIG["encoders"]["tiny"]}
    config["validation"] = {"yale": {"slides": "yale.csv"}}
    project.write_rows([",".join(row.values()) for row in elsewhere()[:2]], "yale.csv")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "elsewhere/features").mkdir(parents=True)
    (folder / "elsewhere/features/uni2").symlink_to(folder / "results/features/uni2")
    (folder / "elsewhere/slides").mkdir()
    for path in sorted((finished.folder / "slides").glob("*.svs"))[:2]:
        (folder / "elsewhere/slides" / path.name).symlink_to(path)
    return folder


def run(command: str, folder: Path, warm: Path) -> subprocess.CompletedProcess[str]:
    if command.startswith("her2 view ") and "--help" not in command:  # which only Ctrl-C ends
        with viewing(folder, *shlex.split(command)[2:]) as found:
            return subprocess.CompletedProcess(command, found.end(), found.log, "")
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={
            "PATH": f"{warm}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_every_command_of_every_block_works_as_written(clone: Path, warm: Path) -> None:
    commands = [line for c in blocks() if (line := as_run(c, mentioned=False))]
    assert "snakemake --cores 8 --configfile=mine.yaml" in commands
    for command in commands:
        done = run(command, clone, warm)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_every_command_that_a_sentence_names_exists(clone: Path, warm: Path) -> None:
    if not (clone / "mine.yaml").exists():
        assert run("cp config.yaml mine.yaml", clone, warm).returncode == 0
    commands = [line for c in mentions() if (line := as_run(c, mentioned=True))]
    assert "her2 status --help" in commands
    for command in commands:
        done = run(command, clone, warm)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    for name in GENERATED:
        assert (clone / name).read_text() == (REPOSITORY / name).read_text(), name


def test_what_is_left_to_other_tests_is_nothing_else() -> None:
    left = [command for command in blocks() if as_run(command, mentioned=False) is None]
    her2 = r"her2 (import|cohort check (table/|.*features\.yaml))"
    known = rf"squeue|scancel|sinfo|sacctmgr|scontrol|snakemake|pip|{her2}"
    assert all(re.match(known, command) for command in left)
