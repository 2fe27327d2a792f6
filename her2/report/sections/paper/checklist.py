"""Stage 2, report: the TRIPOD+AI checklist, filled where the pipeline knows the answer.

Source: Collins et al., BMJ 2024;385:e078378 (27 items). Topics are in short words of our own: the
published wording is what a journal wants.
"""

from dataclasses import dataclass

import polars as pl

from her2.evaluation.groupings import groupings_of
from her2.report.format import count, listed, percent, plural
from her2.report.results import Results
from her2.report.sections import cohort, flow, summary
from her2.report.sections.controls import SUBGROUPS
from her2.report.sections.paper import methods, methods_models


@dataclass(frozen=True, slots=True)
class Item:
    """One item; `anchor` is the section of the page with the details, where there is one."""

    number: str
    section: str
    topic: str
    content: str
    anchor: str = ""
    by_author: bool = False

    @property
    def filled_by(self) -> str:
        """`pipeline`, `author`, or both where the author has to add to what is there."""
        if self.by_author:
            return "author"
        return "pipeline, author" if "[author: " in self.content else "pipeline"


def checklist(results: Results) -> tuple[Item, ...]:
    """All items in order."""
    known = _known(results)
    items = []
    for number, section, topic, prompt in _ITEMS:
        content, anchor = known.get(number, ("", ""))
        if content:
            items.append(Item(number, section, topic, content, anchor))
        else:
            items.append(Item(number, section, topic, f"[author: {prompt}]", anchor, True))
    return tuple(items)


def checklist_table(results: Results) -> pl.DataFrame:
    """The same as a table: `item, section, topic, content, anchor, filled_by`."""
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


def _known(results: Results) -> dict[str, tuple[str, str]]:
    """Item -> what the run says of it, and where."""
    config = results.config
    flows = flow.flows(results)
    people = " ".join(methods.who_is_in(results, item) for item in flows)
    tasks = "; ".join(
        f"{name}: {', '.join(task.class_names)} from the column {task.label}"
        for name, task in config.tasks.items()
    )
    parts = _parts(results)
    grouped = any(groupings_of(task, config.evaluation) for task in config.tasks.values())
    baselines = all(head.head == "logistic" for head in config.heads.values())
    scaled = config.training.standardise or baselines
    return {
        "5b": ("Synthetic slides, drawn by a program." if results.synthetic else "", "cohort"),
        "7": (_bare(methods.tiles(results)), "cohort"),
        "8a": (f"Tasks: {tasks}. [author: how and when HER2 was scored]", "cohort"),
        "9a": (f"Images alone: features of tiles by {plural(len(config.encoders), 'encoder')} "
               f"({', '.join(config.encoders)}).", "provenance"),
        "11": ("No label was imputed: slides without a label, or with one of no class, were "
               f"predicted and not evaluated. {people}", "excluded"),
        "12a": (_bare(methods_models.folds(results)), "models"),
        "12b": (f"Features of tiles as the encoders give them"
                f"{', standardised by the train part' if scaled else ''}.", "provenance"),
        "12c": (_bare(methods_models.models(results)), "provenance"),
        "12d": (f"AUC by {parts}." if parts else "", "models"),
        "12e": (f"AUC, AUPRC, calibration{', net benefit' if grouped else ''}; intervals from "
                f"{count(config.evaluation.bootstrap)} resamples of patients.", "headline"),
        "12f": ("No model was changed after its evaluation; a temperature from the tune part "
                "stands beside, before and after.", "models"),
        "12g": ("Probabilities of held-out slides, averaged over a patient's cohort.", "headline"),
        "13": (f"Evaluated: {_classes(results, flows)}. In training "
               f"{methods_models.balance(results)}; calibration is given before and after a "
               "temperature.", "models"),
        "15": ("A probability for each score; the most probable is the predicted one"
               f"{'; ' + _thresholds(results) if grouped else ''}.", "models"),
        "16": (_parts_of_one_cohort(results), "cohort"),
        "20a": (people, "cohort"),
        "20b": (_characteristics(results), "cohort"),
        "21": (f"Labelled patients of the parts: {methods_models.parts(results)}. Evaluated: "
               f"{_classes(results, flows)}." if results.folds else "", "models"),
        "22": (f"{plural(sum(len(model.folds) for model in results.models), 'trained model')} of "
               "folds, each stored with its card; `her2 predict` applies them.", "provenance"),
        "23a": (" ".join(summary.sentences(results)), "headline"),
        "23b": (f"AUC by {parts}." if parts else "", "models"),
    }  # fmt: skip


def _bare(paragraph: str) -> str:
    """A paragraph of the methods without the word that it begins with."""
    return paragraph.partition(". ")[2]


def _classes(results: Results, flows: list[flow.Flow]) -> str:
    return "; ".join(f"{item.task_name}: {methods.evaluated(results, item)}" for item in flows)


def _thresholds(results: Results) -> str:
    section = results.config.evaluation
    return (
        f"for two groups of scores thresholds for a sensitivity of {percent(section.sensitivity)} "
        f"and a specificity of {percent(section.specificity)}, from the tune parts"
    )


def _characteristics(results: Results) -> str:
    """Patients and slides by class, and how many sites; before exclusions."""
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
    return f"Before exclusions: {', '.join(texts)}. [author: age, treatment and what else is known]"


def _sites(made: cohort.Composition) -> int:
    return sum(row.site not in ("all", "(no site)") for row in made.rows)


def _parts(results: Results) -> str:
    """The parts of the cohort with an AUC of their own, `site and amount of tissue`, or empty."""
    found = {by for model in results.models for by in model.controls["subgroups"]["by"]}
    return listed(tuple(words for by, words in SUBGROUPS.items() if by in found))


def _parts_of_one_cohort(results: Results) -> str:
    """How train and test parts differ; empty for a fixed split, of which the run knows nothing."""
    if results.split:
        return ""
    sites = {
        "preserved": "no site is in both the train and the test part",
        "leave_one_out": "the test part is a site that the train part lacks",
        "stratified": "train and test parts are alike in sites",
    }
    differ = sites.get(results.config.folds.sites, "sites were not looked at in dividing patients")
    return f"Folds of one cohort: {differ}."


_ITEMS = (
    ("1", "Title", "Kind of study", "name the model, the patients and the outcome"),
    ("2", "Abstract", "Structured summary", "see the checklist for abstracts"),
    ("3a", "Introduction", "Clinical context", "why HER2 from H&E, and existing models"),
    ("3b", "Introduction", "Intended use and users", "who would use it, and where in the pathway"),
    ("3c", "Introduction", "Known inequalities", "between groups of patients"),
    ("4", "Introduction", "Aims", "development, evaluation or both"),
    ("5a", "Methods", "Sources of data", "where the slides come from, and how representative"),
    ("5b", "Methods", "Dates", "of accrual and follow-up"),
    ("6a", "Methods", "Setting", "hospitals, countries"),
    ("6b", "Methods", "Eligibility", "who was included"),
    ("6c", "Methods", "Treatments", "received before the specimen, if any"),
    ("7", "Methods", "Preparation of data", ""),
    ("8a", "Methods", "Outcome", ""),
    ("8b", "Methods", "Assessors of the outcome", "who scored HER2, and their training"),
    ("8c", "Methods", "Blinding of the outcome", "to the H&E slide and to predictions"),
    ("9a", "Methods", "Predictors", ""),
    ("9b", "Methods", "Definition of predictors", "staining, scanner, magnification"),
    ("9c", "Methods", "Assessors of predictors", "none: predictors are computed; confirm"),
    ("10", "Methods", "Sample size", "how it was arrived at, and whether it is enough"),
    ("11", "Methods", "Missing data", ""),
    ("12a", "Methods", "Use of the data", ""),
    ("12b", "Methods", "Handling of predictors", ""),
    ("12c", "Methods", "Type of model", ""),
    ("12d", "Methods", "Heterogeneity between sources", "the cohort names no parts to compare"),
    ("12e", "Methods", "Measures of performance", ""),
    ("12f", "Methods", "Updating after evaluation", ""),
    ("12g", "Methods", "How predictions were made", ""),
    ("13", "Methods", "Class imbalance", ""),
    ("14", "Methods", "Fairness", "which groups of patients, why, and what was done"),
    ("15", "Methods", "Output of the model", ""),
    ("16", "Methods", "Train against evaluation data", "how the parts of the split differ"),
    ("17", "Methods", "Ethical approval", "committee, number, consent"),
    ("18a", "Open science", "Funding", "and the role of funders"),
    ("18b", "Open science", "Conflicts of interest", "of all authors"),
    ("18c", "Open science", "Protocol", "where it is, or that there is none"),
    ("18d", "Open science", "Registration", "number, or that there is none"),
    ("18e", "Open science", "Sharing of data", "where the slides and labels are, on which terms"),
    (
        "18f",
        "Open science",
        "Sharing of code",
        "where; versions, seed and config are in provenance",
    ),
    ("19", "Patients and public", "Involvement", "in design, conduct, reporting"),
    ("20a", "Results", "Flow of participants", ""),
    ("20b", "Results", "Characteristics", ""),
    ("20c", "Results", "Development against evaluation", "differences between the data sets"),
    ("21", "Results", "Numbers in each analysis", "patients and events of each part"),
    ("22", "Results", "The full model", ""),
    ("23a", "Results", "Performance", ""),
    ("23b", "Results", "Heterogeneity", "the cohort names no parts to compare"),
    ("24", "Results", "Updating", "results of an updated model, if any"),
    ("25", "Discussion", "Interpretation", "of the main results, with fairness"),
    ("26", "Discussion", "Limitations", "of data, sample size, labels, generalisation"),
    ("27a", "Discussion", "Poor or missing input", "how it would be handled in use"),
    ("27b", "Discussion", "Needs of users", "expertise and interaction with the model"),
    ("27c", "Discussion", "Next steps", "for research and use"),
)
"""Number, section, topic, and what the author has to say where the pipeline cannot."""
