"""Beside every stage: how long something will still take, in words."""


def duration(seconds: float) -> str:
    """Return `40 s`, `8 min` or `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def seconds_left(elapsed: float, done: float, total: float) -> float | None:
    """Return the time left at the pace of what is done; None before anything is."""
    return max(0.0, elapsed) * (total - done) / done if done else None
