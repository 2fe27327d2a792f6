"""Stage 2, folds: each patient's role (train, tune or test).

Sites: `stratified` spreads the patients of each score and site evenly over the test sets;
`preserved` and `leave_one_out` keep each site in one test set, so that a model is tested on unseen
sites. Source: Howard et al., The impact of site-specific digital histology signatures on deep
learning model accuracy and bias, Nature Communications 12, 2021 (scikit-learn's
StratifiedGroupKFold replaces its quadratic programme).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from her2.cohort.fixed_split import SPLIT_RULE, split_roles
from her2.cohort.manifest import SlideRow
from her2.config import Task
from her2.config.jobs import Sites
from her2.core.errors import UserError, problem_list

Roles = dict[tuple[int, int], dict[str, str]]
"""(repeat, fold) -> patient -> train, tune or test."""


def assign_roles(
    patients: Mapping[str, int],
    task: Task,
    *,
    folds: int,
    repeats: int,
    tune: float,
    seed: int,
    sites: Mapping[str, str] | None = None,
    scheme: Sites = "ignored",
) -> Roles:
    """Return (repeat, fold) -> patient -> train, tune or test.

    Each patient is in the test set of exactly one fold per repeat. The tuning set is a stratified
    share of the others.

    Args:
        patients: patient -> class index.
        task: task whose classes errors name.
        folds: number of test sets per repeat.
        repeats: number of complete cross-validations.
        tune: share of the non-test patients in the tuning set.
        seed: random seed; each repeat has its own stream.
        sites: patient -> site, for the schemes that use sites.
        scheme: how sites are handled.

    Raises:
        UserError: there are too few patients; the message says for what, and what would work.
    """
    names = np.array(sorted(patients))
    labels = np.array([patients[name] for name in names], int)
    places = np.array([(sites or {}).get(name, "") for name in names])
    if scheme in ("preserved", "leave_one_out"):
        _check_sites(places, task, folds, scheme)
    else:
        _check_counts(labels, task, folds)
    result: Roles = {}
    for repeat in range(repeats):
        state = np.random.SeedSequence([seed, repeat]).generate_state(2)
        tests = _draw_test_sets(labels, places, folds, scheme, int(state[0]))
        for fold, test in enumerate(tests):
            rest = np.setdiff1d(np.arange(len(names)), test)
            if scheme in ("preserved", "leave_one_out"):
                _check_rest(labels, places, rest, test, task, scheme)
            inner = _draw_tuning_set(labels[rest], tune, int(state[1]) ^ fold)
            roles = dict.fromkeys(names[test].tolist(), "test")
            roles |= dict.fromkeys(names[rest[~inner]].tolist(), "train")
            roles |= dict.fromkeys(names[rest[inner]].tolist(), "tune")
            result[repeat, fold] = roles
    return result


def patient_sites(rows: Sequence[SlideRow], scheme: Sites) -> dict[str, str]:
    """Return patient -> site for the labelled rows.

    Raises:
        UserError: sites must be kept together, and a patient has none or several.
    """
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.patient_id, set()).update({row.site} if row.site else set())
    if scheme in ("preserved", "leave_one_out"):
        problems = [
            f"patient {name}: " + (f"has sites {' and '.join(sorted(of))}" if of else "has no site")
            for name, of in sorted(found.items())
            if len(of) != 1
        ]
        if problems:
            raise problem_list(
                f"folds.sites {scheme} needs exactly one site per patient; fill the manifest's "
                "column 'site', or set `folds.sites` to stratified or ignored",
                problems,
            )
    return {name: "+".join(sorted(of)) for name, of in found.items()}


def fixed_roles(
    rows: Sequence[SlideRow], patients: Mapping[str, int], task: Task, *, tune: float, seed: int
) -> Roles:
    """Return the manifest's column `split` as the only fold of one repeat.

    Args:
        rows: the labelled slides.
        patients: patient -> class index.
        task: task whose classes errors name.
        tune: share of the training patients that becomes the tuning set if the column names none.
        seed: random seed of that draw.

    Raises:
        UserError: a value is missing or illegal, a patient has several roles, or a class is missing
            from a set.
    """
    roles, problems = split_roles(rows)
    if problems:
        raise problem_list(SPLIT_RULE, problems)
    if "tune" not in roles.values():
        train = np.array(sorted(name for name, role in roles.items() if role == "train"))
        labels = np.array([patients[name] for name in train], int)
        _check_split(roles, patients, task, least=2)
        chosen = _draw_tuning_set(
            labels, tune, int(np.random.SeedSequence(seed).generate_state(1)[0])
        )
        roles |= dict.fromkeys(train[chosen].tolist(), "tune")
    _check_split(roles, patients, task, least=1)
    return {(0, 0): roles}


def _draw_test_sets(
    labels: np.ndarray, sites: np.ndarray, folds: int, scheme: Sites, seed: int
) -> list[np.ndarray]:
    """Return the indices of the patients in each test set."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # slow to import

    everyone = np.arange(len(labels))
    if scheme == "ignored":
        outer = StratifiedKFold(folds, shuffle=True, random_state=seed)
        return [test for _, test in outer.split(everyone, labels)]
    if scheme == "preserved":
        grouped = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        return [test for _, test in grouped.split(everyone, labels, groups=sites)]
    if scheme == "leave_one_out":
        return [everyone[sites == site] for site in np.unique(sites)]
    # Sorted by class and site, patients are dealt to the folds in turn: each kind spreads evenly.
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    dealt = shuffled[np.lexsort((sites[shuffled], labels[shuffled]))]
    return [np.sort(dealt[fold::folds]) for fold in range(folds)]


def _draw_tuning_set(labels: np.ndarray, tune: float, seed: int) -> np.ndarray:
    """Draw the tuning set, bool (n,): a share of each class, at least one and never all."""
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(tune * len(members))), len(members) - 1)
        chosen[members[:count]] = True
    return chosen


def _check_counts(labels: np.ndarray, task: Task, folds: int) -> None:
    counts = {
        name: int(np.count_nonzero(labels == index)) for index, name in enumerate(task.class_names)
    }
    # One patient per fold for testing, and besides the largest test set two to train and tune on.
    least = max(folds, 4 if folds == 2 else 3)
    scarce = {name: count for name, count in counts.items() if count < least}
    if not scarce:
        return
    smallest = min(counts.values())
    fix = (
        f"Set folds.number to {smallest}, or merge classes in `tasks`"
        if smallest >= 3
        else "Merge classes in `tasks`, or add patients (at least three per class)"
    )
    raise UserError(
        f"folds.number {folds} needs {least} patients in each class of {task.label!r}; there are "
        "too few in "
        + ", ".join(f"{name!r} ({count})" for name, count in scarce.items())
        + f". {fix}."
    )


def _check_sites(sites: np.ndarray, task: Task, folds: int, scheme: Sites) -> None:
    names = np.unique(sites).tolist()
    enough = len(names) == folds if scheme == "leave_one_out" else len(names) >= folds
    if enough and len(names) > 1:
        return
    fix = f"Set folds.number to {len(names)}, or use" if len(names) > 1 else "Use"
    raise UserError(
        f"folds.number {folds} with folds.sites {scheme}: the patients with a label of "
        f"{task.label!r} come from {len(names)} site{'s' * (len(names) != 1)} "
        f"({', '.join(names)}). {fix} `folds.sites: stratified`."
    )


def _check_rest(
    labels: np.ndarray,
    sites: np.ndarray,
    rest: np.ndarray,
    test: np.ndarray,
    task: Task,
    scheme: Sites,
) -> None:
    """Check that outside a test set, each class has a patient to train and one to tune on."""
    tested = ", ".join(np.unique(sites[test]).tolist())
    if len(test) == 0:
        raise UserError(f"folds.sites {scheme}: a fold is left without a site; lower folds.number.")
    for index, name in enumerate(task.class_names):
        left = int(np.count_nonzero(labels[rest] == index))
        if left < 2:
            raise UserError(
                f"folds.sites {scheme}: with {tested} held out, class {name!r} of {task.label!r} "
                f"has {left} patient{'s' * (left != 1)} left to train and tune on, and needs two. "
                "Set `folds.sites: stratified`, or merge classes in `tasks`."
            )


def _check_split(
    roles: Mapping[str, str], patients: Mapping[str, int], task: Task, *, least: int
) -> None:
    if "test" not in roles.values():
        raise UserError(
            "the manifest's column 'split' has no test patient. Fill it, or set `folds.split: "
            "ignore` for cross-validation."
        )
    for index, name in enumerate(task.class_names):
        count = sum(r == "train" and patients[p] == index for p, r in roles.items())
        if count < least:
            raise UserError(
                f"the manifest's column 'split' leaves {count} training patient"
                f"{'s' * (count != 1)} of class {name!r} of {task.label!r} (at least {least} needed"
                f"{', one of them to tune on' * (least > 1)}). Correct it, or set `folds.split: "
                "ignore` for cross-validation."
            )
