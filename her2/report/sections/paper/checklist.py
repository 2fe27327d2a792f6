"""Stage 2, report: the TRIPOD+AI checklist, filled in where the pipeline knows the answer.

Its items and their wording are in `templates/methods/checklist.yaml`.
"""

from dataclasses import dataclass
from functools import cache

import polars as pl
import yaml

from her2.config import EvaluationSection
from her2.report.format import plural
from her2.report.results import Results
from her2.report.sections import cohort, flow, summary
from her2.report.sections.paper import (
    methods,
    methods_external,
    methods_figures,
    methods_given,
    methods_models,
)
from her2.report.sections.paper.prose import FOLDER, sentence
from her2.report.sections.paper.sample_size import sample_size


@dataclass(frozen=True, slots=True)
class Item:
    """One item; `anchor` is the section of the page with details, if any."""

    number: str
    section: str
    topic: str
    content: str
    anchor: str = ""
    by_author: bool = False

    @property
    def filled_by(self) -> str:
        """Return `pipeline`, `author`, or both where the author has to complete the text."""
        if self.by_author:
            return "author"
        return "pipeline, author" if "[author: " in self.content else "pipeline"


@dataclass(frozen=True, slots=True)
class _Prompt:
    """An item of the file; `author` is what the author is asked where all text stays empty.

    `text` is a template, and so is `external`, which is used where there are external cohorts.
    """

    item: str
    section: str
    topic: str
    author: str
    text: str = ""
    external: str = ""
    anchor: str = ""


@cache
def _prompts() -> tuple[_Prompt, ...]:
    text = (FOLDER / "checklist.yaml").read_text(encoding="utf-8")
    return tuple(_Prompt(**entry) for entry in yaml.safe_load(text))


def checklist(results: Results) -> tuple[Item, ...]:
    """Return all items in order."""
    facts = _facts(results)
    outside = methods_external.checklist_facts(results) if results.external else None
    items = []
    for prompt in _prompts():
        content, anchor = sentence(prompt.text, facts), prompt.anchor
        if outside is not None and prompt.external:
            content = f"{content} {sentence(prompt.external, outside)}".strip()
            anchor = anchor or "external"
        by_author = not content
        if by_author:
            content = f"[author: {prompt.author}]"
        items.append(Item(prompt.item, prompt.section, prompt.topic, content, anchor, by_author))
    return tuple(items)


def checklist_table(results: Results) -> pl.DataFrame:
    """Return the items as a table: `item, section, topic, content, anchor, filled_by`."""
    return pl.DataFrame(
        [
            {
                "item": item.number,
                "section": item.section,
                "topic": item.topic,
                "content": item.content,
                "anchor": item.anchor,
                "filled_by": item.filled_by,
            }
            for item in checklist(results)
        ]
    )


@dataclass(frozen=True, slots=True)
class _Facts:
    """Facts that the items may use; methods paragraphs come without their leading title."""

    synthetic: bool
    fixed_split: bool
    sites: str
    evaluation: EvaluationSection
    tasks: list[str]
    encoders: list[str]
    standardised: bool
    groupings: list[str]
    subgroups: list[str]
    sample_size: str
    tiles: str
    folds: str
    models: str
    parts: str
    balance: str
    who_is_in: str
    evaluated: str
    characteristics: list[str]
    trained_models: int
    summary: str


def _facts(results: Results) -> _Facts:
    config, flows = results.config, flow.flows(results)
    return _Facts(
        synthetic=results.synthetic,
        fixed_split=results.split,
        sites=config.folds.sites,
        evaluation=config.evaluation,
        tasks=[
            f"{name} ({', '.join(task.class_names)}, from the column {task.label})"
            for name, task in config.tasks.items()
        ],
        encoders=list(config.encoders),
        standardised=config.training.standardise
        or not any(head.trained_by_gradient for head in config.heads.values()),
        groupings=methods_figures.grouping_names(results),
        subgroups=methods_figures.subgroups(results),
        sample_size=_bare(sample_size(results)),
        tiles=_bare(methods.tiles(results) or methods_given.given(results)),
        folds=_bare(methods_models.folds(results)),
        models=_bare(methods_models.models(results)),
        parts=methods_models.parts(results),
        balance=methods_models.balance(results),
        who_is_in=" ".join(methods.who_is_in(results, item) for item in flows),
        evaluated="; ".join(
            f"{methods.evaluated(results, item)} (task {item.task_name})" for item in flows
        ),
        characteristics=_characteristics(results),
        trained_models=sum(len(model.folds) for model in results.models),
        summary=" ".join(summary.sentences(results)),
    )


def _bare(paragraph: str) -> str:
    """Return a paragraph of the methods without its leading title."""
    return paragraph.partition(". ")[2]


def _characteristics(results: Results) -> list[str]:
    """Return patients and slides by class, and the number of sites, before exclusions."""
    texts = []
    for task in results.config.tasks:
        made = cohort.composition(results, task)
        whole = made.rows[-1].cells
        counts = [
            f"{name}: {plural(patients, 'patient')}, {plural(number, 'slide')}"
            for name, (patients, number) in zip(
                (*made.classes, "no class"), whole[:-1], strict=True
            )
        ]
        sites = f"; {plural(sites, 'site')}" if (sites := _sites(made)) else ""
        texts.append(f"{task} ({'; '.join(counts)}{sites})")
    return texts


def _sites(made: cohort.Composition) -> int:
    return sum(row.site not in ("all", "(no site)") for row in made.rows)
