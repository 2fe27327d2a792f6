"""Write envs/her2.yaml, the conda environment, from envs/lock.txt, so that both have the same pins.

Python and pip come from conda-forge. The `pip:` section repeats the pins of the lock file, because
Snakemake copies the environment file elsewhere, where a relative path to the lock would break. The
hashes are left out: conda has no documented place for them.
"""

from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHON_VERSION = "3.11"  # the oldest that pyproject.toml allows, and the one that CI tests

HEAD = f"""\
# Made by `make lock` from envs/lock.txt; change pyproject.toml, not this file.
name: her2
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python={PYTHON_VERSION}
  - pip
  - pip:
"""


def requirements(lock: str) -> list[str]:
    """Return the requirements of a lock file, without comments, blank lines and hashes."""
    lines = (line.strip().removesuffix("\\").rstrip() for line in lock.splitlines())
    return [line for line in lines if line and not line.startswith(("#", "--hash="))]


def conda_environment(lock: str) -> str:
    """Return the text of the conda environment file that installs the versions in `lock`."""
    return HEAD + "".join(f'      - "{line}"\n' for line in requirements(lock))


if __name__ == "__main__":
    lock = (HERE / "lock.txt").read_text(encoding="utf-8")
    (HERE / "her2.yaml").write_text(conda_environment(lock), encoding="utf-8")
