r"""How far a slide's tiles lie from those of development, by the features of the encoder.

A slide's mean embedding x is standardised by the development slides and cut off at `LIMIT`,
z = clip((x - mean) / scale), and split into its part in their first k principal components and the
rest. With the component scores c_j and their variances v_j,

    inside  = sum_j c_j^2 / v_j              squared Mahalanobis distance in the components
    outside = |z|^2 - sum_j c_j^2            squared length of what they do not explain

    distance = sqrt((inside / median(inside) + outside / median(outside)) / 2)

The medians are those of development, so that a distance of 1 is typical there. Both parts count
alike: a slide can be unusual within what varied in development, or differ in what did not vary.

A model describes the slides that it was fitted to too well, most of all with more features than
slides: by their distances every new slide would be far away. So the medians and quantiles are of
distances of slides whose patient was left out of the fit (cross-fitting). The stored fit is on all
slides.

Sources: Jackson and Mudholkar, Control procedures for residuals associated with principal component
analysis, Technometrics 21, 1979, for both parts; Yue and Qin, Reconstruction-based fault
identification using a combined index, Ind. Eng. Chem. Res. 40, 2001, for their sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from her2.cohort.similar import SAMPLE, spaced
from her2.core.section import Section
from her2.core.types import Floats
from her2.frozen.distribution import Distribution, distribution, rounded
from her2.storage.features import FeatureStore

COMPONENTS = 32
"""Most principal components. Fewer than a third of the slides, since variances of more are mostly
those of single slides."""
PARTS = 10
"""Parts that the patients are divided into for cross-fitting."""
LEAST_PATIENTS = 20
"""With fewer there is no reference: a new slide of the same kind lies beyond all of n with a
probability of 1 / (n + 1), which is below 5 % from 20 on."""
LIMIT = 5.0
"""Standard deviations at which a feature is cut off. A feature that is 0 on nearly all slides, as
after a ReLU, is thousands of them away on the next one; without the cut one slide of the demo was
54 times as far away as a typical one, and nothing could be farther. No feature of a normal
distribution is affected."""
_PERCENTS = tuple(float(percent) for percent in range(101))
_TINY = 1e-9


class EmbeddingReference(Section):
    """The mean embeddings of the development slides, as a distribution without single slides.

    Attributes:
        slides, patients: number of them.
        mean, scale: of each feature over the slides (d,).
        components: principal components of the standardised means (k, d).
        variances: of the slides' scores in the components (k,).
        inside, outside: medians of both parts of the squared distance.
        distances: of development slides whose patient was left out.
    """

    slides: int
    patients: int
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    components: tuple[tuple[float, ...], ...]
    variances: tuple[float, ...]
    inside: float
    outside: float
    distances: Distribution

    def distance(self, means: Floats) -> Floats:
        """Return the distances (n,) of mean embeddings (n, d); 1 is typical of development."""
        fit = _Fit(
            np.array(self.mean),
            np.array(self.scale),
            np.array(self.components).reshape(-1, len(self.mean)),
            np.array(self.variances),
        )
        return _combined(fit.parts(means), self.inside, self.outside)


@dataclass(frozen=True, slots=True)
class _Fit:
    """Mean and scale (d,), components (k, d) and their variances (k,)."""

    mean: Floats
    scale: Floats
    components: Floats
    variances: Floats

    @classmethod
    def of(cls, means: Floats, count: int) -> "_Fit":
        """Fit at most `count` components to mean embeddings (n, d)."""
        from sklearn.decomposition import PCA

        mean, scale = means.mean(axis=0), means.std(axis=0, ddof=1)
        scale[scale < _TINY * np.maximum(1.0, np.abs(mean))] = 1.0
        n, d = means.shape
        solver = "covariance_eigh" if n > d else "full"
        with np.errstate(invalid="ignore"):  # shares of a variance of zero, which nobody reads
            found = PCA(count, svd_solver=solver).fit(_standardised(means, mean, scale))
        varies = found.explained_variance_ > _TINY * d
        return cls(mean, scale, found.components_[varies], found.explained_variance_[varies])

    def parts(self, means: Floats) -> Floats:
        """Return the squared lengths inside and outside of the components (2, n)."""
        z = _standardised(means, self.mean, self.scale)
        scores = z @ self.components.T
        inside = (scores**2 / self.variances).sum(axis=1)
        outside = np.maximum((z**2).sum(axis=1) - (scores**2).sum(axis=1), 0)
        return np.stack([inside, outside])


def mean_embedding(store: FeatureStore) -> Floats:
    """Return the mean (d,) of up to `SAMPLE` evenly spaced tiles of a slide."""
    rows = store.gather(spaced(len(store), SAMPLE)).astype(np.float64)
    mean: Floats = rows.mean(axis=0)
    return mean


def mean_embeddings(stores: Sequence[FeatureStore]) -> Floats:
    """Return the mean embeddings of slides (n, d)."""
    return np.stack([mean_embedding(store) for store in stores])


def embedding_reference(
    stores: Mapping[str, FeatureStore], patients: Mapping[str, str]
) -> EmbeddingReference | None:
    """Return the reference of development slides.

    Args:
        stores: slide -> its features.
        patients: slide -> its patient.

    Returns:
        The reference; None for fewer patients than `LEAST_PATIENTS`, and if no feature varies.
    """
    names = sorted(stores)
    owners = np.array([patients[name] for name in names])
    if len(np.unique(owners)) < LEAST_PATIENTS:
        return None
    return reference_of(mean_embeddings([stores[name] for name in names]), owners)


def reference_of(means: Floats, owners: np.ndarray) -> EmbeddingReference | None:
    """Return the reference of mean embeddings (n, d) of the slides of patients `owners` (n,)."""
    from sklearn.model_selection import GroupKFold

    if not (means.std(axis=0) > _TINY * np.maximum(1.0, np.abs(means.mean(axis=0)))).any():
        return None
    splits = list(GroupKFold(PARTS).split(means, groups=owners))
    fewest = min(len(learnt) for learnt, _ in splits)
    count = min(COMPONENTS, (fewest - 1) // 3, means.shape[1] - 1)
    held_out = np.empty((2, len(means)))
    for learnt, left in splits:
        held_out[:, left] = _Fit.of(means[learnt], count).parts(means[left])
    inside, outside = (rounded(float(np.median(part))) for part in held_out)
    fit = _Fit.of(means, count)
    return EmbeddingReference(
        slides=len(means),
        patients=len(np.unique(owners)),
        mean=_all_rounded(fit.mean),
        scale=_all_rounded(fit.scale),
        components=tuple(_all_rounded(row) for row in fit.components),
        variances=_all_rounded(fit.variances),
        inside=inside,
        outside=outside,
        distances=distribution(_combined(held_out, inside, outside), percents=_PERCENTS),
    )


def _combined(parts: Floats, inside: float, outside: float) -> Floats:
    """Return distances (n,) from both parts (2, n).

    A part that does not vary in development has no scale. It adds its own length: nothing, except
    for slides that differ in it.
    """
    typical = np.array([[inside], [outside]])
    scaled = typical > _TINY
    found: Floats = np.sqrt(
        (parts / np.where(scaled, typical, 1.0)).sum(axis=0) / max(1, np.count_nonzero(scaled))
    )
    return found


def _standardised(means: Floats, mean: Floats, scale: Floats) -> Floats:
    found: Floats = np.clip((means - mean) / scale, -LIMIT, LIMIT)
    return found


def _all_rounded(values: Floats) -> tuple[float, ...]:
    return tuple(rounded(float(value)) for value in values)
