"""Stage 2, train: CLAM-SB, one map for all outputs; equations and sources in `clam`."""

from functools import partial

from her2.mil.heads.clam import Clam

HEAD = partial(Clam, shared=True)
