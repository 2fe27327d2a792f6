"""Consent to run code that a config names.

A config may come from anybody, so it alone never runs code: whoever starts the run consents in the
environment, which a config cannot set.
"""

import os

VARIABLE = "HER2_ALLOW_CODE"


def consent_problem() -> str | None:
    """Return why code that a config names may not be run, with what to do, or None if it may."""
    if os.environ.get(VARIABLE) == "1":
        return None
    return (
        "is Python code, which would be run; a config alone cannot allow that. Read the file, then "
        f"start the run with {VARIABLE}=1 in its environment (`export {VARIABLE}=1`)"
    )
