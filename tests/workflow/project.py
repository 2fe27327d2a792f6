"""A project folder as a user has one, and what a run of snakemake in it really did."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from her2.core.events import Event, read_events

REPOSITORY = Path(__file__).resolve().parents[2]

CONFIG: dict[str, Any] = {
    "results": "results",
    "cache": "cache",
    "seed": 1,
    "cohort": {"slides": "slides.csv", "slides_per_bucket": 8, "max_excluded": 0.5},
    "tasks": {"score": {"label": "her2", "classes": {"low": ["0", "1+"], "high": ["2+", "3+"]}}},
    "tiling": {"min_tissue": 0.3, "min_tiles": 2},
    "encoders": {"tiny": {"source": "random", "model": "timm/resnet10t", "mpp": 1.0, "size": 64}},
    "heads": {"abmil": {"attention": 16}},
    "training": {"bag_size": 16, "epochs": 3, "patience": 2},
    "folds": {"number": 2},
    "evaluation": {"bootstrap": 200, "permutations": 100},
    "heatmaps": {"slides": 2, "formats": ["png"]},
    "report": {"title": "A small cohort"},
}

WEIGHTS: dict[str, Any] = {
    "source": "checkpoint",
    "model": "timm/resnet10t",
    "checkpoint": "weights.safetensors",
    "domain": "none",
    "mpp": 1.0,
    "size": 64,
}
"""The encoder of the finished project: a local file, so that a test can change its weights."""

WORK = ("tiled", "embedded", "trained")
"""Events of slides and folds on which work was done, unless the cache had them."""


@dataclass(frozen=True)
class Run:
    """One call of snakemake: its exit code, all it printed, the rules that ran, their work.

    `patches` is how many of them were embedded.
    """

    code: int
    output: str
    rules: Counter[str]
    work: dict[str, list[str]]
    patches: int

    @property
    def planned(self) -> dict[str, int]:
        """The rules whose jobs Snakemake planned, and how many, from its own table."""
        table = self.output.partition("\nJob stats:\n")[2].partition("\ntotal ")[0]
        counts = dict(re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE))
        targets = ("all", "report", "features", "train")
        return {rule: int(n) for rule, n in counts.items() if rule not in targets}

    @property
    def idle(self) -> bool:
        """Snakemake itself said that nothing is to be done."""
        return "Nothing to be done" in self.output


@dataclass(frozen=True)
class Project:
    """A folder with `config.yaml`, `slides.csv` and `slides/`."""

    folder: Path
    warm: Path | None = None
    """Stands first on the PATH of jobs, see `tests.workflow.warm`; None: each is a new process."""

    @property
    def snakefile(self) -> Path:
        """The folder's own, where it is a clone; else this repository's."""
        own = self.folder / "Snakefile"
        return own if own.exists() else REPOSITORY / "Snakefile"

    def snakemake(
        self, *arguments: str, config: str | None = "config.yaml", prefix: tuple[str, ...] = ()
    ) -> Run:
        """Run the workflow here, as the README says, and see what it did."""
        if not prefix:
            self.remove_logs()
        command = self._command(*arguments, config=config)
        if self.warm and not prefix and self.snakefile == REPOSITORY / "Snakefile":
            command[0] = str(self.warm / "snakemake")
        done = subprocess.run(
            [*prefix, *command],
            cwd=self.folder, env=self._environment(warm=not prefix), capture_output=True, text=True,
            timeout=1500,
        )  # fmt: skip
        output = done.stdout + done.stderr
        patches = sum(event.tiles for event in self.events() if event.kind == "embedded")
        return Run(done.returncode, output, _rules(output), self.work(), patches)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin to run the workflow, as the leader of a process group of its own."""
        self.remove_logs()
        return subprocess.Popen(
            self._command(*arguments), cwd=self.folder, env=self._environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def her2(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line here."""
        command = [str(self.warm / "her2")] if self.warm else [sys.executable, "-m", "her2"]
        return subprocess.run(
            [*command, *arguments], cwd=self.folder, text=True,
            env={**self._environment(), "PYTHONPATH": str(REPOSITORY)}, capture_output=True,
        )  # fmt: skip

    def edit(self, **sections: Any) -> None:
        """Change keys of the config: a dict goes into its section, None removes a key."""
        path = self.folder / "config.yaml"
        config = yaml.safe_load(path.read_text())
        for name, value in sections.items():
            if isinstance(value, dict):
                config.setdefault(name, {}).update(value)
            elif value is None:
                config.pop(name)
            else:
                config[name] = value
        path.write_text(yaml.safe_dump(config, sort_keys=False))

    def rows(self, name: str = "slides.csv") -> list[str]:
        """The manifest's lines below its header."""
        return (self.folder / name).read_text().splitlines()[1:]

    def write_rows(self, rows: list[str], name: str = "slides.csv") -> None:
        """Write the manifest."""
        text = "\n".join(["slide_id,path,patient_id,her2,site", *rows])
        (self.folder / name).write_text(text + "\n")

    def remove_logs(self) -> None:
        """So that the logs found afterwards are of the next run."""
        shutil.rmtree(self.folder / "results" / "logs", ignore_errors=True)

    def work(self) -> dict[str, list[str]]:
        """What the jobs whose logs are here did: slides tiled and embedded, folds trained."""
        found = self.events()
        return {kind: sorted(event.name for event in found if event.kind == kind) for kind in WORK}

    def events(self) -> list[Event]:
        """What the jobs whose logs are here reported, without what came from the cache."""
        paths = sorted(self.folder.glob("results/logs/**/*.jsonl"))
        return [event for path in paths for event in read_events(path)[0] if not event.cached]

    def log_text(self) -> str:
        """All logs of all jobs."""
        logs = sorted(self.folder.glob("results/logs/**/*.log"))
        return "\n".join(path.read_text() for path in logs)

    def features(self) -> Counter[str]:
        """Slide of any cohort -> its tiles that have features of the config's last encoder."""
        encoder = list(yaml.safe_load((self.folder / "config.yaml").read_text())["encoders"])[-1]
        paths = (self.folder / "results").glob(f"**/features/{encoder}/*-of-*.json")
        entries = (json.loads(path.read_text()) for path in paths)
        return Counter({slide: e["tiles"] for part in entries for slide, e in part.items()})

    def _command(self, *arguments: str, config: str | None = "config.yaml") -> list[str]:
        return [
            str(Path(sys.executable).with_name("snakemake")),
            "--snakefile", str(self.snakefile),
            "--cores", "2",
            *arguments,
            *(("--configfile", config) if config else ()),  # last: it takes all that follows
        ]  # fmt: skip

    def _environment(self, *, warm: bool = False) -> dict[str, str]:
        first = f"{self.warm}:" if warm and self.warm else ""
        return {
            "PATH": f"{first}{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
        }


def _rules(output: str) -> Counter[str]:
    """Rules whose jobs finished, from Snakemake's own lines."""
    finished = re.findall(r"Finished jobid: \d+ \(Rule: (\w+)\)", output)
    return Counter(name for name in finished if name != "all")
