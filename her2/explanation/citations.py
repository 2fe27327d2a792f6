"""Stage 2, explanation: the works that its measures come from."""

from her2.core.citations import cite

DELETION = cite("Petsiuk et al. 2018", "BMVC")
POINTING_GAME = cite("Zhang et al. 2016", "ECCV")
