"""Every stage: the works that a method comes from, declared where the method lives.

The report cites a work by its authors and year and lists it once; a method that is added brings
its reference along.
"""

from collections.abc import Mapping
from types import MappingProxyType

_DECLARED: dict[str, str] = {}


def cite(work: str, where: str) -> str:
    """Declare a work, and return how prose names it.

    Args:
        work: authors and year, such as `Guo et al. 2017`.
        where: where it appeared, such as `ICML, PMLR 70`.

    Raises:
        ValueError: it was declared with another place.
    """
    if _DECLARED.setdefault(work, where) != where:
        raise ValueError(f"{work}: appeared in {_DECLARED[work]!r} or in {where!r}")
    return work


def declared() -> Mapping[str, str]:
    """Return the works that the modules imported so far declare: authors and year -> where."""
    return MappingProxyType(_DECLARED)
