"""The config and the cohort, read and checked once; names and specs come from `her2.pipeline.plan`.

Parse time reads `config.yaml` and the manifest, and writes nothing.
"""

import os
import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# Of this workflow, also where another one uses it as a module. From a repository on the web no
# package comes along: then it has to be installed.
HERE = Path(str(workflow.current_basedir)).parent.parent
if (HERE / "her2").is_dir():
    sys.path.insert(0, str(HERE))
    # Jobs find it in every kind of environment (conda unsets PYTHONPATH before this).
    shell.prefix(f"set -euo pipefail; export PYTHONPATH={shlex.quote(str(HERE))}; ")

from her2 import __version__
from her2.cohort.manifest import missing_files, read_cohort
from her2.config import parse_config
from her2.core.errors import UserError
from her2.pipeline.plan import Plan
from her2.pipeline.progress import Watch
from her2.config.names import folds_name


def read_plan():
    """The plan of this run; a mistake of the user ends it in one message."""
    try:
        settings = parse_config(config)
        section = settings.cohort
        cohort = read_cohort(section.slides, root=section.root, tasks=settings.tasks)
        # The demo's slides are made by rules, and only the first process asks the file system.
        absent = None
        if not section.synthetic and workflow.is_main_process:
            absent = missing_files(cohort, section.tissue_masks)
        if absent:
            raise absent
        for folder in (settings.results, settings.cache_folder):
            writable(folder)
        plan = Plan(settings, cohort)
        plan.local_weights  # asked here, where a file that is missing is named without a traceback
        if section.synthetic:
            _ = plan.synthetic_specs  # likewise a slide without a score
        _ = plan.chunks  # folds that this cohort cannot have are refused before anything runs
    except UserError as error:
        raise WorkflowError(str(error)) from None
    return plan


def writable(folder):
    """Raise unless the folder, or the nearest one above it that exists, can be written."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK) or not nearest.is_dir():
        raise UserError(
            f"{folder}: cannot be written (look at {nearest}); name another folder in the config "
            "(`results`, `cache`) or mend its permissions."
        )


PLAN = read_plan()
WATCH = Watch(PLAN)
CONFIG = PLAN.config
RESULTS = str(CONFIG.results)
ROOT = str(PLAN.cohort.root)


# On a cluster these run where Snakemake does: the first may need a network, and the others take
# seconds, less than a place in the queue.
localrules:
    materialise_encoder,
    audit_cohort,
    tabulate_cohort,
    audit_overlap,
    compare_encoders,


wildcard_constraints:
    slide=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    grid=r"[0-9]+px-[0-9.e+-]+mpp",
    bucket=r"[0-9]+-of-[0-9]+",
    task=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    encoder=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    head=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    chunk=r"r[0-9]+f[0-9]+-r[0-9]+f[0-9]+",


def one_of(names):
    """A wildcard's pattern that matches these names alone (nothing, when there are none)."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def untracked(value):
    """A parameter that re-runs nothing when it changes, for folders and speed.

    Snakemake leaves what is a function of `input` out of the comparison with earlier runs.
    """
    return lambda wildcards, input: value


def folder(pattern):
    """A folder of the results, with the job's wildcards filled in."""
    return lambda wildcards, input: f"{RESULTS}/{pattern.format(**wildcards)}"


def option(flag, value):
    """A flag and its value, or nothing when there is no value."""
    return untracked([flag, str(value)] if value else [])


CACHE = untracked(str(CONFIG.cache_folder))
SLIDES = untracked(["--slides", str(CONFIG.cohort.slides), "--root", ROOT])


def growing(first):
    """A resource that a job's every further attempt gets once more: MB or minutes."""
    return lambda wildcards, attempt: first * attempt


def slide_files(bucket):
    """The slides of a bucket; judged by mtime, and cheaply found unchanged by their content."""
    return [str(PLAN.cohort.file(row)) for row in PLAN.by_bucket[bucket]]


def tile_manifest(encoder, bucket):
    """What an encoder's tiles of a bucket are."""
    return f"{RESULTS}/tiles/{CONFIG.encoders[encoder].grid}/{bucket}.json"


def each_model(pattern, heads=None):
    """The pattern for every task, encoder, head and (where it has one) chunk of folds."""
    heads = PLAN.models if heads is None else heads
    values = {"task": CONFIG.tasks, "encoder": CONFIG.encoders, "head": heads}
    if "{chunk}" in pattern:
        values["chunk"] = PLAN.chunks
    return expand(pattern, **values)


CATEGORIES = {
    "evaluation": "Performance",
    "controls": "Controls",
    "attention": "Explanation",
}
"""Of the folders of tables, in Snakemake's own report."""


def model_table(folder, name):
    """A table of one model, marked for Snakemake's own report."""
    return report(
        f"{RESULTS}/{folder}/{{task}}/{{encoder}}/{{head}}/{name}.csv",
        caption=f"../report/{name}.rst",
        category=CATEGORIES[folder],
        labels={"task": "{task}", "encoder": "{encoder}", "head": "{head}", "table": name},
    )


def task_table(name):
    """A table over all models of a task, marked likewise."""
    return report(
        f"{RESULTS}/evaluation/{{task}}/{name}.csv",
        caption=f"../report/{name}.rst",
        category=CATEGORIES["evaluation"],
        labels={"task": "{task}", "encoder": "all", "head": "all", "table": name},
    )


def model_pictures(name):
    """A folder of pictures of one model, each of them marked likewise."""
    return report(
        directory(f"{RESULTS}/heatmaps/{{task}}/{{encoder}}/{{head}}/{name}"),
        patterns=["{picture}.png"],
        caption=f"../report/{name}.rst",
        category=CATEGORIES["attention"],
        labels={
            "task": "{task}",
            "encoder": "{encoder}",
            "head": "{head}",
            "kind": name,
            "picture": "{picture}",
        },
    )
