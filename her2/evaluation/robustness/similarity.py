r"""Stage 2, robustness: how many directions features use, and how alike two encoders are.

Both rest on the squared length of a cross-covariance, estimated without bias from n rows. With the
rows x_i and y_i centred, k_i = |x_i|^2 and l_i = |y_i|^2,

    |cov(X, Y)|^2 ~ (|X'Y|^2 - n/(n-2) sum k_i l_i + sum k_i sum l_i / ((n-1)(n-2))) / (n (n-3))

which is the unbiased HSIC of Song et al. (Journal of Machine Learning Research 13, 2012, equation
5) for linear kernels, without the (n, n) matrices. Then

    CKA(X, Y) = |cov(X, Y)|^2 / (|cov(X)| |cov(Y)|)        1: alike but for rotation and scale
    participation ratio = (trace cov(X))^2 / |cov(X)|^2    1 to d: how many directions vary

CKA is that of Kornblith et al. (ICML, PMLR 97, 2019). With the plain estimate, features of more
dimensions than rows look alike whatever they are (Murphy et al., arXiv 2405.01012).
"""

import numpy as np
from numpy.typing import NDArray

from her2.core.types import Floats

LEAST = 4
"""Rows that the estimate needs."""
_BLOCK = 2048


def covariance_length(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Return the unbiased estimate of the squared length of the cross-covariance of two tables.

    Args:
        x: (n, d), n >= `LEAST`.
        y: (n, e), of the same rows.
    """
    n, middle_x, middle_y = len(x), x.mean(axis=0, dtype=float), y.mean(axis=0, dtype=float)
    cross = np.zeros((x.shape[1], y.shape[1]))
    k, l = np.empty(n), np.empty(n)  # noqa: E741 as in the equation
    for start in range(0, n, _BLOCK):
        part = slice(start, start + _BLOCK)
        a, b = x[part] - middle_x, y[part] - middle_y
        cross += a.T @ b
        k[part], l[part] = (a**2).sum(axis=1), (b**2).sum(axis=1)
    total = (cross**2).sum() - n / (n - 2) * (k @ l) + k.sum() * l.sum() / ((n - 1) * (n - 2))
    return float(total / (n * (n - 3)))


def linear_cka(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    """Return the debiased linear CKA of two tables of the same rows, NaN if one does not vary.

    About 0 for unrelated tables, also slightly below; 1 for tables that differ by a rotation and a
    scale.
    """
    if len(x) < LEAST:
        return float("nan")
    own = covariance_length(x, x) * covariance_length(y, y)
    return covariance_length(x, y) / np.sqrt(own) if own > 0 else float("nan")


def participation_ratio(x: NDArray[np.floating]) -> float:
    """Return the participation ratio of the covariance of a table (n, d), NaN if none varies."""
    if len(x) < LEAST:
        return float("nan")
    variances: Floats = x.var(axis=0, ddof=1, dtype=float)
    length = covariance_length(x, x)
    return float(variances.sum() ** 2 / length) if length > 0 else float("nan")
