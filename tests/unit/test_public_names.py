"""`import her2` is cheap, and gives the names that a script needs."""

import subprocess
import sys
from importlib import resources

import pytest

import her2


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    code = "import sys, her2; print(*[name for name in sys.modules if name.startswith('her2')])"
    assert run(code).split() == ["her2"]


def test_importing_the_package_takes_under_50_ms_of_cpu_time() -> None:
    code = "import time; a = time.process_time(); import her2; print(time.process_time() - a)"
    assert min(float(run(code)) for _ in range(3)) < 0.05


@pytest.mark.parametrize("name", her2.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(her2, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(her2)


def test_another_name_is_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="module 'her2' has no attribute 'slide_opener'"):
        her2.slide_opener  # noqa: B018


def test_type_checkers_are_told_that_the_package_is_typed() -> None:
    assert resources.files("her2").joinpath("py.typed").is_file()
