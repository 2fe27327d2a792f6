"""Stage 2, report: the page's only script, and what its security policy says of it."""

import base64
import hashlib
from pathlib import Path

_PARTS = ("page.js", "gallery.js")


def script() -> str:
    """Sorting, enlarging, the gallery's tools. Without it all is there to read."""
    folder = Path(__file__).parent
    return "".join((folder / name).read_text(encoding="utf-8") for name in _PARTS)


def script_hash() -> str:
    """What the policy allows: this script, and no other."""
    digest = hashlib.sha256(script().encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
