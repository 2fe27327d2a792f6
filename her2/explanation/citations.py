"""Stage 2, explanation: the works that its measures are based on."""

DELETION = "Petsiuk et al. 2018"
POINTING_GAME = "Zhang et al. 2016"
REFERENCES = {DELETION: "BMVC", POINTING_GAME: "ECCV"}
"""Authors and year, as the methods cite a work -> where it appeared."""
