"""Before every stage: helpers for the inputs, outputs and parameters of the rules.

`common.smk` reads the plan and gives these names to the rule files, which only combine them.
Snakemake calls the functions that are returned here and passes their arguments by name.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from snakemake.io import directory, expand, report
from snakemake.logging import logger

from her2.config import parse_config
from her2.config.names import DEVELOPMENT, cohort_folder
from her2.core.stamps import FOLDER
from her2.pipeline.current import Currency
from her2.pipeline.external import configured_plan, truths
from her2.pipeline.inputs import check_arguments, check_config_files, check_inputs
from her2.pipeline.job_table import COHORT, RULES, PlannedJob, planned_job, stamp_name
from her2.pipeline.plan import Plan

Wildcards = Mapping[str, str]

CATEGORIES = {
    "evaluation": "Performance",
    "controls": "Controls",
    "robustness": "Robustness",
    "attention": "Explanation",
    "heatmaps": "Explanation",
    "validation": "External validation",
}
"""Folder of the results -> category of its tables and pictures in Snakemake's own report."""
EXTERNAL_MODEL: dict[str, Any] = {name: f"{{{name}}}" for name in ("cohort", "encoder", "head")}
"""Labels, there, of a model on an external cohort."""


def read_plan(
    values: Mapping[str, Any], *, check_files: bool, configfiles: Iterable[Path | str] = ()
) -> Plan:
    """Read the manifest that Snakemake's config names, check both, and return the plan.

    `check_files` looks up every file that the jobs will read, reads `configfiles`, from which
    Snakemake made `values`, once more, and says how the manifest was read. The first process of a
    run does so, so that the thousands of later ones need not.

    Raises:
        UserError: all problems of the first of these that has any: the config files, the config,
            the manifests, files that cannot be read and folders that cannot be written, the folds.
    """
    if check_files:
        check_arguments(sys.argv)
        # A wrong value of the config is an error of its own, below.
        check_config_files(configfiles, Path(str(values.get("results", "results"))))
    config = parse_config(values)
    plan = configured_plan(config)
    if check_files:
        for name, own in (("", plan), *plan.external.items()):
            for text in (*own.cohort.remarks, *own.cohort.cautions):
                logger.warning(f"validation.{name}: {text}" if name else text)
        others = {name: (own.config.cohort, own.cohort) for name, own in plan.external.items()}
        check_inputs(config, plan.cohort, others)
    # Evaluated here to report mistakes before anything runs, and without a traceback.
    _ = plan.local_weights, plan.chunks
    if config.cohort.synthetic:
        _ = [own.synthetic_specs for own in plan.cohorts]  # fails for slides without a score
    return plan


def one_of(names: Iterable[str]) -> str:
    """Return a wildcard pattern that matches only these names, and nothing if there are none."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def growing(first: int) -> Callable[[Wildcards, int], int]:
    """Return a resource (MB or minutes) that grows by `first` with each attempt of a job."""
    return lambda wildcards, attempt: first * attempt


def untracked(value: object) -> Callable[[Wildcards, object], object]:
    """Return a parameter that triggers no rerun when it changes, for folders and speed.

    Snakemake does not compare parameters that are functions of `input` with earlier runs.
    """
    return lambda wildcards, input: value


def option(flag: str, value: object) -> Callable[[Wildcards, object], object]:
    """Return an untracked flag with its value, or nothing without a value."""
    return untracked([flag, str(value)] if value else [])


class ResultFiles:
    """The names of files in the results folder of a plan."""

    def __init__(self, plan: Plan, workflow: Any) -> None:
        self._plan = plan
        self._workflow = workflow
        self.root = str(plan.config.results)
        self._currency = Currency(plan)

    def stamp(self, rule: str, **values: str) -> str:
        """Return the pattern of a rule's stamps, with the given wildcards filled in."""
        names = (values.get(name, f"{{{name}}}") for name in RULES[rule].wildcards)
        return f"{self.root}/{FOLDER}/{stamp_name(rule, names)}"

    def spec(self, rule: str, **values: str) -> Callable[[Wildcards], str]:
        """Return the parameter `spec` of a rule."""
        return lambda wildcards: planned_job(rule, {**wildcards, **values}).spec(self._plan)

    def outdated(self, rule: str, **values: str) -> Callable[[Wildcards], list[str]]:
        """Return an input function that adds no files, but makes Snakemake run outdated jobs.

        Snakemake calls it for every job that it may plan, before it decides which ones have to run.
        Only the first process of a run decides that.
        """

        def force(wildcards: Wildcards) -> list[str]:
            job = planned_job(rule, {**wildcards, **values})
            if self._workflow.is_main_process and self._is_outdated(job):
                # As a setting (--forcerun), the file would become a target as well.
                self._workflow.dag.forcefiles.add(str(job.stamp(Path(self.root))))
            return []

        return force

    def _is_outdated(self, job: PlannedJob) -> bool:
        try:
            return self._currency.outdated(job) is not None
        except Exception as error:
            # Snakemake would drop the job, and take its old file for one that needs no job.
            logger.warning(f"{job.name}: cannot be checked ({error}), so it runs again.")
            return True

    def folder(self, pattern: str) -> Callable[[Wildcards, object], str]:
        """Return an untracked parameter: a folder, with the job's wildcards filled in."""
        return lambda wildcards, input: f"{self.root}/{pattern.format(**wildcards)}"

    def of_cohort(self, values: Callable[[Plan], object]) -> Callable[[Wildcards, object], object]:
        """Return an untracked parameter: what `values` gives for the plan of the job's cohort."""
        return lambda wildcards, input: values(self._own(wildcards))

    def cohort_option(
        self, flag: str, value: Callable[[Plan], object]
    ) -> Callable[[Wildcards, object], object]:
        """Return an untracked flag with a value of the job's cohort, or nothing without a value."""

        def found(plan: Plan) -> list[str]:
            own = value(plan)
            return [flag, str(own)] if own else []

        return self.of_cohort(found)

    def files_of_cohort(
        self, files: Callable[[Plan, Wildcards], list[str]]
    ) -> Callable[[Wildcards], list[str]]:
        """Return an input function: the files that `files` gives for the plan of a job's cohort."""
        return lambda wildcards: files(self._own(wildcards), wildcards)

    def each_bucket(self, pattern: str) -> Callable[[Wildcards], list[str]]:
        """Return an input function: a pattern in the folder of a job's cohort, for each bucket.

        `{grid}` stands for every grid; the job's own wildcards are filled in.
        """

        def found(wildcards: Wildcards) -> list[str]:
            own = self._own(wildcards)
            grids = self._plan.config.all_grids if "{grid}" in pattern else ("",)
            return [
                f"{self.root}/{own.part}"
                + pattern.format(**{**wildcards, "grid": grid, "bucket": bucket})
                for grid in grids
                for bucket in own.buckets
            ]

        return found

    def _own(self, wildcards: Wildcards) -> Plan:
        return self._plan.of(dict(wildcards.items()).get(COHORT, DEVELOPMENT))

    def each_cohort(self, pattern: str) -> list[str]:
        """Return a pattern in the folder of every cohort, for its buckets and all encoders."""
        return [
            path
            for own in self._plan.cohorts
            for path in expand(
                f"{self.root}/{own.part}{pattern}",
                encoder=self._plan.config.encoders,
                bucket=own.buckets,
            )
        ]

    def each_external(self, *patterns: str) -> list[str]:
        """Return patterns in the folder of every external cohort, for its truths and all models."""
        return [path for name in self._plan.external for path in self._truths(name, patterns)]

    def each_truth(self, *patterns: str) -> Callable[[Wildcards], list[str]]:
        """Return an input function: patterns in the folder of a job's cohort, for its truths."""
        return lambda wildcards: self._truths(_name(wildcards), patterns)

    def of_truth(self, pattern: str) -> Callable[[Wildcards], str]:
        """Return an input function: a pattern with `{of}`, the task of which `task` is a truth."""
        return lambda wildcards: (
            f"{self.root}/" + pattern.format(**wildcards, of=self._of(wildcards))
        )

    def chunks_of_truth(self, pattern: str) -> Callable[[Wildcards], list[str]]:
        """Return an input function: a pattern as in `of_truth`, for every chunk of folds."""
        names = self._plan.chunks
        return lambda wildcards: [
            f"{self.root}/" + pattern.format(**wildcards, of=self._of(wildcards), chunk=chunk)
            for chunk in names
        ]

    def truth_folder(self, pattern: str) -> Callable[[Wildcards, object], str]:
        """Return an untracked parameter: a folder by a pattern with `{of}`, as in `of_truth`."""
        return lambda wildcards, input: self.of_truth(pattern)(wildcards)

    def refit(self, wildcards: Wildcards) -> list[str]:
        """Return the entries of the model of all patients, if a job's cohort asks for it."""
        if self._plan.config.validation[_name(wildcards)].final != "refit":
            return []
        return [f"{self.root}/models/{{task}}/{{encoder}}/{{head}}/refit.json".format(**wildcards)]

    def refit_of_truth(self, wildcards: Wildcards) -> list[str]:
        """Return the same for a job whose `task` is the name of a truth."""
        return self.refit({**wildcards, "task": self._of(wildcards)})

    def _of(self, wildcards: Wildcards) -> str:
        return truths(self._plan.config, _name(wildcards))[wildcards["task"]].of

    def _truths(self, name: str, patterns: Iterable[str]) -> list[str]:
        return list(
            expand(
                [f"{self.root}/{cohort_folder(name)}{pattern}" for pattern in patterns],
                task=truths(self._plan.config, name),
                encoder=self._plan.config.encoders,
                head=self._plan.config.heads,
            )
        )

    def given_folders(self, wildcards: Wildcards, input: object) -> str:
        """Return an untracked parameter: the folders of an encoder's feature files, as JSON."""
        folders = self._plan.config.given[wildcards["encoder"]].path
        return json.dumps([str(folder) for folder in folders])

    def tile_entries(self, wildcards: Wildcards) -> str:
        """Return the entries file of the tiles that a job embeds, on its encoder's grid."""
        own = self._own(wildcards)
        grid = self._plan.config.encoders[wildcards["encoder"]].grid
        return f"{self.root}/{own.part}tiles/{grid}/{wildcards['bucket']}.json"

    def each_model(self, pattern: str, heads: Iterable[str] | None = None) -> list[str]:
        """Return a pattern filled in for every task, encoder, head and (if named) chunk."""
        values: dict[str, Iterable[str]] = {
            "task": self._plan.config.tasks,
            "encoder": self._plan.config.encoders,
            "head": self._plan.models if heads is None else heads,
        }
        if "{chunk}" in pattern:
            values["chunk"] = self._plan.chunks
        return list(expand(pattern, **values))

    def model_table(self, folder: str, name: str) -> Any:
        """Return a table of one model, marked for inclusion in Snakemake's own report."""
        path = f"{self.root}/{folder}/{{task}}/{{encoder}}/{{head}}/{name}.csv"
        return _shown(path, folder, name, encoder="{encoder}", head="{head}", table=name)

    def run_table(self, name: str) -> Any:
        """Return a table over all tasks and models, marked for Snakemake's own report."""
        path = f"{self.root}/evaluation/{name}.csv"
        return _shown(path, "evaluation", name, task="all", encoder="all", head="all", table=name)

    def robustness_table(self, name: str) -> Any:
        """Return a table of what all encoders know, marked for Snakemake's own report."""
        path = f"{self.root}/robustness/{name}.csv"
        caption = f"robustness_{name}"
        return _shown(path, "robustness", caption, task="all", encoder="all", table=name)

    def external_table(self, name: str) -> Any:
        """Return a table of one model on an external cohort, marked likewise."""
        path = f"{self.root}/{{cohort}}evaluation/{{task}}/{{encoder}}/{{head}}/{name}.csv"
        return _shown(path, "validation", "external", table=name, **EXTERNAL_MODEL)

    def external_run_table(self, name: str) -> Any:
        """Return a table over all models on an external cohort, marked likewise."""
        path = f"{self.root}/{{cohort}}evaluation/{name}.csv"
        return _shown(path, "validation", "external", task="all", cohort="{cohort}", table=name)

    def external_pictures(self, name: str) -> Any:
        """Return a folder of pictures of one model on an external cohort, marked likewise."""
        path = directory(f"{self.root}/{{cohort}}heatmaps/{{task}}/{{encoder}}/{{head}}/{name}")
        return _shown(
            path,
            "validation",
            "external",
            patterns=["{picture}.png"],
            kind=name,
            picture="{picture}",
            **EXTERNAL_MODEL,
        )

    def model_pictures(self, name: str) -> Any:
        """Return a folder of pictures of one model, each marked for Snakemake's own report."""
        path = directory(f"{self.root}/heatmaps/{{task}}/{{encoder}}/{{head}}/{name}")
        labels = {"encoder": "{encoder}", "head": "{head}", "kind": name, "picture": "{picture}"}
        return _shown(path, "heatmaps", name, patterns=["{picture}.png"], **labels)


def _name(wildcards: Wildcards) -> str:
    """Return the name of a job's external cohort."""
    return Path(wildcards[COHORT]).name


def _shown(
    path: Any, folder: str, caption: str, *, patterns: list[str] | None = None, **labels: str
) -> Any:
    return report(
        path,
        caption=f"../report/{caption}.rst",  # beside the rule files
        category=CATEGORIES[folder],
        labels={"task": "{task}", **labels},
        **({"patterns": patterns} if patterns else {}),
    )
