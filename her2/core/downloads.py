"""Downloaded files whose name states their digest, as the Hugging Face hub and torch.hub keep them.

Neither compares a file that is there already, so that half a file, e.g. of a copied folder, would
be read again and again.
"""

import re
from pathlib import Path

from her2.core.files import file_digest

_TORCH = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
"""What torch.hub compares a download with, at the end of its name."""
_HUB = re.compile(r"^[0-9a-f]{64}$")


def stated_digest(path: Path) -> str | None:
    """Return the SHA-256 (hex), or its beginning, that a file's name states; None if it has none.

    A file in the hub's cache is a link to one of that name.
    """
    kept = path.resolve()
    if kept.parent.name == "blobs":
        return kept.name if _HUB.match(kept.name) else None
    found = _TORCH.search(path.name)
    return found[1] if found and path.parent.name == "checkpoints" else None


def kept_at(path: Path) -> Path | None:
    """Return what to delete so that a program fetches a file again; None for a user's own file."""
    return None if stated_digest(path) is None else path.resolve()


def damage(path: Path) -> str | None:
    """Return what is wrong with a downloaded file, and the mend; None if it is what it was.

    Raises:
        OSError: it cannot be read.
    """
    stated = stated_digest(path)
    if stated is None or (digest := file_digest(path)).startswith(stated):
        return None
    return (
        f"is damaged: its SHA-256 is {digest}, and its name states {stated}. Delete "
        f"{kept_at(path)} and rerun the same command, which fetches it again"
    )
