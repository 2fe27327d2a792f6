"""The `her2` command: the precision that a number of patients gives."""

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from her2.core.errors import UserError

if TYPE_CHECKING:
    from her2.evaluation.power import Design, Precision


def show_power(
    classes: Annotated[
        str, typer.Option(help="number of patients in each class, such as 40,30,20,10")
    ],
    auc: Annotated[float, typer.Option(help="assumed true AUC of each class against the rest")],
    folds: Annotated[
        int, typer.Option(min=1, help="folds of the cross-validation; 1: a fixed test set")
    ] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="complete cross-validations")] = 1,
    confidence: Annotated[float, typer.Option(help="confidence level of the intervals")] = 0.95,
    correlation: Annotated[
        float, typer.Option(help="correlation of the scores of two encoders within a class")
    ] = 0.5,
    power: Annotated[float, typer.Option(help="probability that a difference is shown")] = 0.8,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON instead of a table")] = False,
) -> None:
    """Show how precise the AUCs and comparisons of so many patients will be."""
    from her2.evaluation.power import Design, precision

    design = Design(_numbers(classes), auc, folds, repeats, confidence, correlation, power)
    found = precision(design)
    if as_json:
        print(json.dumps(_values(design, found), indent=2))
    else:
        print("\n".join(_lines(design, found)))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--classes: {text!r} is not a list of whole numbers, such as 40,30,20,10."
        ) from None


def _values(design: "Design", found: "tuple[Precision, ...]") -> dict[str, Any]:
    from dataclasses import asdict

    figures = []
    for one in found:
        numbers = {"low": one.low, "high": one.high, "width": one.width,
                   "difference": one.difference}  # fmt: skip
        figures.append(
            {"figure": one.figure, "n": one.n}
            | {name: None if math.isnan(value) else value for name, value in numbers.items()}
            | {"note": one.note}
        )
    return {"design": asdict(design), "figures": figures}


def _lines(design: "Design", found: "tuple[Precision, ...]") -> list[str]:
    set_words = "a fixed test set" if design.folds == 1 else f"{design.folds} folds"
    if design.repeats > 1:
        set_words += f", {design.repeats} repeats"
    percent = f"{100 * design.confidence:g} %"
    lines = [
        f"{sum(design.sizes)} patients, {set_words}, assumed AUC {design.auc:g}",
        "",
        f"{'AUC':10}{'patients':>9}{f'expected {percent} interval':>27}{'width':>8}"
        f"{'difference':>12}",
    ]
    for one in found:
        name = "macro" if one.figure == "macro" else f"class {one.figure}"
        ends = "-" if math.isnan(one.low) else f"{one.low:.3f} to {one.high:.3f}"
        lines.append(
            f"{name:10}{one.n:>9,}{ends:>27}{_number(one.width):>8}{_number(one.difference):>12}"
        )
        if one.note:
            lines.append(f"    {one.note}")
    return [
        *lines,
        "",
        f"difference: the smallest between two encoders that is shown with {100 * design.power:g} %"
        " power by one",
        f"comparison, if their scores correlate by {design.correlation:g}. Simulated; see"
        " docs/power.md.",
    ]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
