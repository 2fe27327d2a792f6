"""Stage 2, report: the TRIPOD+AI checklist, filled where the pipeline knows the answer.

Source: Collins et al., BMJ 2024;385:e078378 (27 items). Topics are in short words of our own: the
published wording is what a journal wants.
"""

from dataclasses import dataclass

import polars as pl

from her2.report import flow, methods
from her2.report.controls import SUBGROUPS
from her2.report.performance import protocol
from her2.report.read import Results
from her2.report.text import count, listed, plural


@dataclass(frozen=True, slots=True)
class Item:
    """One item; `anchor` is the section of the page with the details, where there is one."""

    number: str
    section: str
    topic: str
    content: str
    anchor: str = ""
    by_author: bool = False


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
    """The same as a table: `item, section, topic, content, filled_by`."""
    return pl.DataFrame(
        [
            {
                "item": item.number,
                "section": item.section,
                "topic": item.topic,
                "content": item.content,
                "filled_by": "author" if item.by_author else "pipeline",
            }
            for item in checklist(results)
        ]
    )


def _known(results: Results) -> dict[str, tuple[str, str]]:
    """Item -> what the run says of it, and where."""
    config = results.config
    flows = flow.flows(results)
    first = flows[0] if flows else None
    people = (
        f"{plural(first.tested_patients, 'patient')}, {plural(first.tested_slides, 'slide')} "
        "evaluated"
        if first
        else "none evaluated"
    )
    tasks = "; ".join(
        f"{name}: {', '.join(task.class_names)} from the column {task.label}"
        for name, task in config.tasks.items()
    )
    parts = _parts(results)
    return {
        "5b": ("Synthetic slides, drawn by a program." if results.synthetic else "", "cohort"),
        "7": (methods.tiles(results), "cohort"),
        "8a": (f"Tasks: {tasks}.", "cohort"),
        "9a": ("Images alone: features of tiles by frozen encoders. "
               + ", ".join(config.encoders) + ".", "provenance"),
        "11": ("Slides without a label were predicted and not evaluated; slides that could not be "
               "read or had too little tissue were excluded, each with its reason.", "excluded"),
        "12a": (f"{protocol(results)[:1].upper() + protocol(results)[1:]}.", "models"),
        "12c": (f"Heads: {', '.join(config.heads)}; all settings in the full config.",
                "provenance"),
        "12d": (f"AUC by {parts}." if parts else "", "models"),
        "12e": (f"AUC, AUPRC, calibration, net benefit; intervals from "
                f"{count(config.evaluation.bootstrap)} resamples of patients.", "headline"),
        "12f": ("A temperature from the tune part of each fold, reported before and after.",
                "models"),
        "12g": ("Out-of-fold probabilities, averaged over a patient's slides.", "headline"),
        "13": (f"Balance of classes in training: {config.training.balance}; probabilities were not "
               "corrected for it but by the temperature.", "models"),
        "15": ("A probability for each score; thresholds at fixed sensitivity and specificity.",
               "models"),
        "16": (_parts_of_one_cohort(results), "cohort"),
        "20a": (f"{people}; the flow with reasons is drawn.", "cohort"),
        "20b": ("Patients of each class, by site.", "cohort"),
        "21": ("Slides of each fold's train, tune and test part.", "models"),
        "22": ("Trained folds are stored with their cards; `her2 predict` applies them.",
               "provenance"),
        "23a": ("Figures with intervals, pooled and by fold.", "headline"),
        "23b": (f"AUC by {parts}." if parts else "", "models"),
    }  # fmt: skip


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
    ("12b", "Methods", "Handling of predictors", "scaling of features, see the config"),
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
    ("21", "Results", "Numbers in each analysis", ""),
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
