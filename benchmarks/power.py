"""How much the scores of two trained models correlate within a class, in simulated studies.

    python benchmarks/power.py             40 studies (half a minute)

Each study has 100 patients, 40 / 30 / 20 / 10 in four classes, in 5 folds. Two sets of 20 features
share a part of their noise, as two encoders share what they see in the same slides. On each set a
logistic regression is trained, with its own random four fifths of the training patients. The
correlation is that of the log probabilities of the test patients, less their mean per class and
fold. `her2 power --correlation` asks for this number.
"""

import argparse

import numpy as np
from sklearn.linear_model import LogisticRegression

from her2.core.types import Floats, Ints

SIZES = (40, 30, 20, 10)
FOLDS = 5
FEATURES = 20
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


def correlation(shared: float, *, studies: int, seed: int) -> float:
    """Return the mean correlation for a share of the noise's variance that both sets have."""
    found = []
    for study in range(studies):
        generator = np.random.default_rng([seed, study])
        target = np.repeat(np.arange(len(SIZES)), SIZES)
        place = np.empty(len(target), np.int64)
        place[np.lexsort([generator.random(len(target)), target])] = np.arange(len(target)) % FOLDS
        signal = generator.normal(scale=0.45, size=(len(SIZES), FEATURES))[target]
        common = generator.normal(size=signal.shape)
        scores = []
        for _ in range(2):
            own = generator.normal(size=signal.shape)
            features = signal + np.sqrt(shared) * common + np.sqrt(1 - shared) * own
            scores.append(_centred(_predicted(features, target, place, generator), target, place))
        found += [
            np.corrcoef(scores[0][:, index], scores[1][:, index])[0, 1]
            for index in range(len(SIZES))
        ]
    return float(np.mean(found))


def _predicted(
    features: Floats, target: Ints, place: Ints, generator: np.random.Generator
) -> Floats:
    """Return the log probabilities (n, c) of the patients, each of its fold's model."""
    found = np.empty((len(target), len(SIZES)))
    for fold in range(FOLDS):
        train = np.flatnonzero(place != fold)
        train = generator.choice(train, 4 * len(train) // 5, replace=False)
        model = LogisticRegression(C=0.1, max_iter=300).fit(features[train], target[train])
        found[place == fold] = model.predict_log_proba(features[place == fold])
    return found


def _centred(scores: Floats, target: Ints, place: Ints) -> Floats:
    """Return the scores less their mean over the patients of the same class and fold."""
    centred = scores.copy()
    for group in np.unique(target * FOLDS + place):
        own = target * FOLDS + place == group
        centred[own] -= scores[own].mean(axis=0)
    return centred


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--seed", type=int, default=3)
    options = vars(parser.parse_args())
    print("| shared noise of the features | correlation of the scores |\n| --- | --- |")
    for shared in SHARES:
        print(f"| {shared:.0%} | {correlation(shared, **options):.2f} |")


if __name__ == "__main__":
    main()
