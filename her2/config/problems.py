"""Config: several problems that one check of a section finds."""


class Problems(ValueError):
    """Several problems that one check of a section finds, each with its key below the section's.

    Args:
        found: pairs of a key ("" for the section itself) and the problem.
    """

    def __init__(self, found: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{key}: {problem}" for key, problem in found))
        self.found = found
