"""What a number of patients gives: intervals and differences as the evaluation would find them."""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm
from typer.testing import CliRunner

from her2.cli.main import app, main
from her2.core.errors import UserError
from her2.core.types import Floats, Ints
from her2.evaluation.areas import HeldOut, class_area, combined
from her2.evaluation.intervals import SHARED_BY_DIFFERENCES, difference_estimate, useless
from her2.evaluation.power import CORRELATION, MACRO, POWER, Design, Precision, check, precision

FIXED = Design((60, 60), auc=0.75, folds=1)
"""A fixed test set, for which the variance of an AUC has a formula."""


def of(design: Design, figure: str = MACRO) -> Precision:
    return next(one for one in precision(design) if one.figure == figure)


def standard_error(auc: float, positive: int, negative: int) -> float:
    """Return that of the AUC of normal scores of equal variance.

    Two pairs that share a patient have differences of scores that correlate by 1/2.
    """
    shift = norm.ppf(auc)
    both = multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]]).cdf([shift, shift]) - auc**2
    single = auc * (1 - auc)
    rest = (positive - 1 + negative - 1) * both
    return float(np.sqrt((single + rest) / (positive * negative)))


@pytest.mark.parametrize("auc", [0.65, 0.75])
@pytest.mark.parametrize("sizes", [(60, 60), (150, 50)])
def test_the_width_is_that_of_the_formula_for_normal_scores(
    sizes: tuple[int, int], auc: float
) -> None:
    found = of(Design(sizes, auc=auc, folds=1))
    error = norm.ppf(0.975) * standard_error(auc, *sizes) / (auc * (1 - auc))
    low, high = (1 / (1 + np.exp(-(np.log(auc / (1 - auc)) + sign * error))) for sign in (-1, 1))
    assert found.width == pytest.approx(high - low, rel=0.06)


def test_the_smallest_difference_is_shown_with_the_stated_power() -> None:
    """Studies in which two models differ by it, a half up and a half down, simulated here."""
    gap = of(FIXED).difference
    generator = np.random.default_rng(5)
    target = np.repeat([0, 1], FIXED.sizes)
    shown = []
    for _ in range(300):
        common = generator.normal(size=len(target))
        areas = []
        for auc in (FIXED.auc + gap / 2, FIXED.auc - gap / 2):
            own = generator.normal(size=len(target))
            noise = np.sqrt(CORRELATION) * common + np.sqrt(1 - CORRELATION) * own
            scores = noise + np.sqrt(2) * norm.ppf(auc) * target
            areas.append(class_area(_rows(target, scores), 1))
        difference = combined(areas, [1, -1], groups=areas[0].groups)
        shown.append(difference_estimate(difference, FIXED.confidence).low > 0)
    # The standard error of a share of 300 is 0.023.
    assert np.mean(shown) == pytest.approx(POWER, abs=0.05)


def _rows(target: Ints, scores: Floats) -> HeldOut:
    patients = np.arange(len(target))
    return HeldOut(
        target=target,
        probabilities=np.stack([-scores, scores], axis=1),
        patients=patients,
        models=np.zeros_like(target),
        rounds=np.array([0]),
        folds=1,
        names=tuple(map(str, patients)),
        classes=target,
    )


def test_the_smallest_difference_falls_with_the_root_of_what_is_not_shared() -> None:
    """An AUC counts ranks, and ranks of normal scores correlate by 6 / pi asin(rho / 2)."""
    first, second = (of(Design((80, 80), auc=0.6, folds=1, correlation=own)).difference
                     for own in (0.0, 0.75))  # fmt: skip
    shared = 6 / np.pi * np.arcsin(0.75 / 2)
    assert second / first == pytest.approx(np.sqrt(1 - shared), rel=0.04)


def test_more_power_needs_a_larger_difference_as_normal_quantiles_say() -> None:
    first, second = (of(Design((150, 150), auc=0.7, folds=1, power=own)).difference
                     for own in (0.8, 0.9))  # fmt: skip
    expected = (norm.ppf(0.975) + norm.ppf(0.9)) / (norm.ppf(0.975) + norm.ppf(0.8))
    assert second / first == pytest.approx(expected, rel=0.02)


def test_cross_validation_costs_what_the_intervals_add_for_shared_patients() -> None:
    fixed, crossed = (of(Design((100, 100), auc=0.7, folds=folds)) for folds in (1, 2))
    part = useless(0.7)
    assert crossed.width / fixed.width == pytest.approx(np.sqrt(1 + part**2), rel=0.05)
    shared = SHARED_BY_DIFFERENCES * part
    assert crossed.difference / fixed.difference == pytest.approx(np.sqrt(1 + shared), rel=0.05)


def test_repeats_narrow_an_interval_a_little_and_never_below_that_of_one_fixed_set() -> None:
    once, often = (of(Design((30, 30), folds=2, repeats=repeats)).width
                   for repeats in (1, 5))  # fmt: skip
    assert of(Design((30, 30), folds=1)).width <= 1.01 * often
    assert often < once


def test_the_interval_is_around_the_assumed_auc() -> None:
    for one in precision(Design((80, 60, 60), auc=0.7)):
        assert (one.low + one.high) / 2 == pytest.approx(0.7, abs=0.02)


def test_a_smaller_class_is_known_less_well() -> None:
    widths = [one.width for one in precision(Design((40, 30, 20, 10)))[1:]]
    assert widths == sorted(widths)


def test_two_classes_have_one_auc() -> None:
    macro, first, second = precision(Design((30, 20)))
    assert macro.width == pytest.approx(first.width) == pytest.approx(second.width)


def test_the_same_design_gives_the_same_figures() -> None:
    design = Design((30, 30), folds=2)
    first = precision(design)
    precision.cache_clear()
    assert precision(design) == first


def test_a_class_too_small_to_be_compared_has_the_reason() -> None:
    found = of(Design((40, 4), auc=0.7))
    assert found.width > 0.4
    assert math.isnan(found.difference)
    assert found.note == "no interval or p value: fewer than 5 patients of a class or side"


def test_a_difference_that_no_two_aucs_can_have_is_not_promised() -> None:
    found = of(Design((40, 5), auc=0.9))
    assert math.isnan(found.difference)
    assert found.note == "no two encoders around this AUC differ so much that it would be shown"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sizes": (40,)}, "--classes: names one class"),
        ({"sizes": (40, 1)}, "--classes: the smallest class is of 1"),
        ({"sizes": (40, -3)}, "--classes: the smallest class is of -3"),
        ({"auc": 0.5}, "--auc: 0.5 is not between 0.5 and 1"),
        ({"auc": 1.0}, "--auc: 1 is not between"),
        ({"auc": float("nan")}, "--auc: nan is not between"),
        ({"folds": 0}, "--folds: 0 is not between 1 .* and 20"),
        ({"folds": 21}, "--folds: 21 is not between"),
        ({"repeats": 0}, "--repeats: 0"),
        ({"repeats": 10**9}, "--repeats: 1000000000 is not between 1 and 100"),
        ({"sizes": (10**11, 5)}, "--classes: 100000000005 patients are more than 100,000"),
        ({"sizes": (10**30, 5)}, "--classes: .* patients are more than 100,000"),
        ({"correlation": 1.0}, "--correlation: 1 is not"),
        ({"correlation": -0.1}, "--correlation: -0.1 is not"),
        ({"confidence": 95.0}, "--confidence: 95 is not between"),
        ({"power": 0.5}, "--power: 0.5 is not between"),
    ],
)
def test_an_impossible_design_names_the_option(values: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check(Design(**{"sizes": (20, 20), **values}))


# The command


def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["power", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_table_has_a_line_for_each_figure() -> None:
    lines = command("--classes", "40,4", "--auc", "0.7", "--folds", "2").splitlines()
    found = of(Design((40, 4), auc=0.7, folds=2))
    assert lines[0] == "44 patients, 2 folds, assumed AUC 0.7"
    assert lines[3].split() == ["macro", "44", f"{found.low:.3f}", "to", f"{found.high:.3f}",
                                f"{found.width:.3f}", "-"]  # fmt: skip
    assert lines[4].strip() == found.note
    assert [line.split()[:3] for line in lines if line.startswith("class")] == [
        ["class", "1", "40"],
        ["class", "2", "4"],
    ]


def test_json_has_the_same_figures_and_null_where_there_is_none() -> None:
    values = json.loads(command("--classes", "40, 4", "--auc", "0.7", "--folds", "2", "--json"))
    design = Design((40, 4), auc=0.7, folds=2)
    assert values["design"] == {
        "sizes": [40, 4], "auc": 0.7, "folds": 2, "repeats": 1, "confidence": 0.95,
        "correlation": CORRELATION, "power": POWER,
    }  # fmt: skip
    for one, figure in zip(precision(design), values["figures"], strict=True):
        assert figure["difference"] is None
        assert (figure["figure"], figure["n"], figure["note"]) == (one.figure, one.n, one.note)
        assert (figure["low"], figure["high"], figure["width"]) == (one.low, one.high, one.width)


def test_the_page_shows_what_the_command_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "power.md").read_text()
    line, shown = re.findall(r"```(?:bash\nher2 power |text\n)(.*?)\n```", page, re.DOTALL)
    assert f"{shown}\n" == command(*line.split()), "renew the example in docs/power.md"


def test_a_mistake_is_a_message_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["her2", "power", "--classes", "40;30", "--auc", "0.7"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert capsys.readouterr().err == (
        "her2: --classes: '40;30' is not a list of whole numbers, such as 40,30,20,10.\n"
    )
