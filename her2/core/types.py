"""Array types and ranges that several stages share."""

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

MPP_RANGE = (0.05, 20.0)
"""um/px that a scan or a flat image of tissue can have."""
