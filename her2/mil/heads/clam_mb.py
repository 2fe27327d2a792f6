"""Stage 2, train: CLAM-MB, one map an output; equations and sources in `clam`."""

from functools import partial

from her2.mil.heads.clam import Clam

HEAD = partial(Clam, shared=False)
