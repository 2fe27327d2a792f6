"""Array types and ranges that several stages share."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

RGB = NDArray[np.uint8]
"""An image (height, width, 3)."""

Density = NDArray[np.float32]
"""(height, width, 3): natural-log optical density of R, G and B; glass is 0."""

Mask = NDArray[np.bool_]
"""(height, width), True on tissue."""

Labels = NDArray[np.uint8]
"""(height, width) or more of them: what a segmenter takes each px for."""

NOTHING = 0
"""Label of a px in which a segmenter finds nothing that it is asked for."""

Feature = Literal["pooled", "class_token", "class_and_mean", "flattened"]
"""The part of an encoder's output that is kept as features."""

Domain = Literal["he", "ihc", "he_ihc", "natural", "none", "unknown"]
"""An encoder's training images: H&E, IHC, H&E with some IHC, photographs, none, not known."""

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of RGB in [0, 1], three values each."""

MPP_RANGE = (0.05, 20.0)
"""um/px that a scan or a flat image of tissue can have."""
