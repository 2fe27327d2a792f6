import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from her2.heads.logistic import LogisticSection
from her2.mil.baseline import Baseline, fit_baseline

D = 5


def logistic(*strengths: float) -> LogisticSection:
    return LogisticSection(strengths=strengths)


def slides(count: int, classes: int, seed: int, shift: float = 1.5) -> tuple[np.ndarray, ...]:
    """Return bags (count, 7, d) whose mean depends on the class, and class indices (count,)."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    bags = generator.normal(size=(count, 7, D))
    bags[:, :, 0] += shift * labels[:, None]
    return (3 + 10 * bags).astype(np.float32), labels


def parts(classes: int, **options: float) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    return tuple(
        (bags.mean(axis=1), labels)
        for bags, labels in (slides(60, classes, seed, **options) for seed in (0, 1))
    )


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_the_head_predicts_from_tiles_what_scikit_learn_predicts_from_means(classes: int) -> None:
    train, tune = parts(classes)
    fit = fit_baseline(train, tune, classes=classes, head=logistic(0.1), balanced=False)
    bags, labels = slides(60, classes, seed=1)
    standardised = (torch.from_numpy(bags) - fit.mean) / fit.std
    logits = fit.head(standardised, torch.ones(60, 7, dtype=torch.bool)).logits.detach().double()
    losses = -logits.log_softmax(1)[range(60), labels]
    assert losses.mean().item() == pytest.approx(fit.candidates[0].tune.loss, rel=1e-4)
    accuracy = (logits.argmax(1).numpy() == labels).mean()
    assert accuracy == fit.candidates[0].tune.accuracy > 1.5 / classes


def test_the_fit_minimises_the_penalised_likelihood_of_the_formula() -> None:
    (x, y), tune = parts(3)
    strength = 0.05
    fit = fit_baseline((x, y), tune, classes=3, head=logistic(strength), balanced=False)
    z = (x - x.mean(0)) / x.std(0)

    def objective(flat: np.ndarray) -> float:
        w, b = flat[: 3 * D].reshape(3, D), flat[3 * D :]
        logits = z @ w.T + b
        top = logits.max(axis=1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        return -log_p[np.arange(len(y)), y].sum() + (w**2).sum() / (2 * strength)

    weight = fit.head.classifier.weight.detach().double().numpy()
    bias = fit.head.classifier.bias.detach().double().numpy()
    found = objective(np.append(weight.ravel(), bias))
    assert found == pytest.approx(minimize(objective, np.zeros(3 * D + 3)).fun, rel=1e-5)


def test_the_strength_with_the_least_tune_loss_is_kept() -> None:
    train, tune = parts(3)
    fit = fit_baseline(train, tune, classes=3, head=logistic(1e-4, 1e-2, 1.0, 100.0), balanced=True)
    losses = [candidate.tune.loss for candidate in fit.candidates]
    assert fit.best == int(np.argmin(losses))
    train_losses = [candidate.train_loss for candidate in fit.candidates]
    assert train_losses == sorted(train_losses, reverse=True)


def test_balance_makes_a_rare_class_count_as_much() -> None:
    generator = np.random.default_rng(0)
    labels = np.array([0] * 90 + [1] * 10)
    x = generator.normal(size=(100, D)) + 0.5 * labels[:, None]
    plain, balanced = (
        fit_baseline((x, labels), (x, labels), classes=2, head=logistic(0.1), balanced=b)
        for b in (False, True)
    )

    def called_rare(fit: Baseline) -> int:
        z = (torch.from_numpy(x).float() - fit.mean) / fit.std
        logits = fit.head(z[:, None], torch.ones(100, 1, dtype=torch.bool)).logits
        return int(logits.argmax(1).sum())

    assert called_rare(plain) < 10 < called_rare(balanced)


def test_the_same_data_give_the_same_bits() -> None:
    train, tune = parts(3)
    one, two = (
        fit_baseline(train, tune, classes=3, head=logistic(0.1), balanced=True) for _ in range(2)
    )
    assert torch.equal(one.head.classifier.weight, two.head.classifier.weight)


def test_labels_shuffled_among_slides_are_not_learned() -> None:
    train, tune = parts(2, shift=0.0)
    fit = fit_baseline(train, tune, classes=2, head=logistic(1e-3, 1.0), balanced=True)
    assert fit.candidates[fit.best].tune.accuracy < 0.75


def test_a_feature_that_never_varies_does_no_harm() -> None:
    (x, y), (x_tune, y_tune) = parts(2)
    x[:, 1] = x_tune[:, 1] = 7.0
    fit = fit_baseline((x, y), (x_tune, y_tune), classes=2, head=logistic(0.1), balanced=True)
    assert torch.isfinite(fit.head.classifier.weight).all()
    assert (fit.std > 0).all()


def test_a_class_without_a_train_slide_is_refused() -> None:
    (x, y), tune = parts(3)
    with pytest.raises(ValueError, match=r"class \[1\]"):
        fit_baseline((x[y != 1], y[y != 1]), tune, classes=3, head=logistic(1.0), balanced=True)
