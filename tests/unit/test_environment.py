"""Pip and conda install the same pinned versions, which are the tested ones."""

import ast
import re
import runpy
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
ENVS = ROOT / "envs"
LOCKS = ["lock.txt", "lock-test.txt"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

make_conda_env = runpy.run_path(str(ENVS / "make_conda_env.py"))


def read(name: str) -> str:
    return (ENVS / name).read_text(encoding="utf-8")


def lines(name: str) -> list[str]:
    return make_conda_env["requirements"](read(name))


def pins(name: str) -> dict[str, Requirement]:
    """Return package -> its line in the lock, for this interpreter and platform."""
    wanted = [Requirement(line) for line in lines(name)]
    here = [pin for pin in wanted if pin.marker is None or pin.marker.evaluate()]
    assert len({canonicalize_name(pin.name) for pin in here}) == len(here)
    return {canonicalize_name(pin.name): pin for pin in here}


def version(pin: Requirement) -> str:
    return next(iter(pin.specifier)).version


def conda_environment() -> dict[str, list]:
    return yaml.safe_load(read("her2.yaml"))


def test_the_conda_environment_is_made_from_the_lock():
    assert make_conda_env["conda_environment"](read("lock.txt")) == read("her2.yaml"), (
        "run `make lock`"
    )


def test_conda_installs_exactly_what_pip_installs():
    *from_conda, pip = conda_environment()["dependencies"]
    assert [entry.partition("=")[0] for entry in from_conda] == ["python", "pip"]
    assert pip == {"pip": lines("lock.txt")}


def test_conda_brings_a_python_that_the_package_accepts():
    python = next(d for d in conda_environment()["dependencies"] if d.startswith("python="))
    assert python == f"python={PROJECT['requires-python'].removeprefix('>=')}"


def test_no_pin_file_makes_snakemake_skip_the_pip_section():
    assert not list(ENVS.glob("*.pin.txt"))


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_of_a_lock_is_one_exact_version_from_no_named_place(name):
    for line in lines(name):
        pin = Requirement(line)  # an option such as --index-url or -e does not parse
        assert pin.url is None, line
        assert [s.operator for s in pin.specifier] == ["=="], line
        assert "*" not in version(pin), line
    assert not re.search(r"://|file:|/[A-Za-z]+/|@", read(name))


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_of_a_lock_has_hashes_and_pip_must_compare_them(name):
    blocks = re.split(r"\n(?=[^ #\n])", read(name))[1:]
    assert len(blocks) == len(lines(name))
    for block in blocks:
        pin, *hashes = block.strip().split(" \\\n    ")
        assert hashes, f"{pin} has no hash: run `make lock`"
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", one) for one in hashes), pin
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"$(call install_locked,envs/{name})" in makefile
    installing = [line for line in makefile.splitlines() if "/dev/stdin" in line]
    assert ["--require-hashes" in line for line in installing] == [True, False]
    assert "torch" in installing[1]  # the two that PyTorch's own index has


@pytest.mark.parametrize("cpu", [False, True])
def test_without_a_gpu_only_pytorch_is_installed_without_hashes(tmp_path, cpu):
    """Run make with a pip that only shows what it is asked for."""
    fake = tmp_path / "bin/python"
    fake.parent.mkdir()
    fake.write_text("""#!/bin/sh
shift
case "$*" in
pip*stdin*) echo "# $*"; cat;;
compileall*) echo "# $*";;
esac
""")
    fake.chmod(0o755)
    (tmp_path / "bin/pip").touch()
    done = subprocess.run(
        ["make", "-s", "-C", ROOT, f"VENV={tmp_path}", f"{tmp_path}/installed-lock.txt",
         *(["CPU=1"] if cpu else [])],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    installed, _, compiled = done.stdout.partition("# compileall ")
    assert compiled.split() == ["-qq", "-j", "0", f"{tmp_path}/lib"]
    hashed, _, apart = installed.partition("# pip install --no-compile --no-deps --requirement")
    assert "# pip install --no-compile --no-deps --require-hashes" in hashed
    asked = {line.split("==")[0] for line in re.findall(r"^[a-z].*==", hashed, re.MULTILINE)}
    every = {canonicalize_name(Requirement(line).name) for line in lines("lock.txt")}
    cuda = {name for name in every if re.match("nvidia-|cuda-|triton$", name)}
    assert cuda
    assert asked == (every - cuda - {"torch", "torchvision"} if cpu else every)
    wanted = [line for line in lines("lock.txt") if re.match("torch(vision)?==", line)]
    assert apart.split()[1:] == (wanted if cpu else [])


def test_the_test_lock_repeats_the_run_lock_and_adds_to_it():
    assert set(lines("lock.txt")) < set(lines("lock-test.txt"))


@pytest.mark.parametrize(
    ("lock", "declared"),
    [
        ("lock.txt", PROJECT["dependencies"]),
        ("lock.txt", EXTRAS["slurm"]),
        ("lock-test.txt", EXTRAS["test"]),
    ],
    ids=["run", "slurm", "test"],
)
def test_every_direct_dependency_is_pinned_within_its_declared_range(lock, declared):
    locked = pins(lock)
    for wanted in map(Requirement, declared):
        pin = locked.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{wanted} is not in envs/{lock}: run `make lock`"
        assert wanted.specifier.contains(version(pin)), f"{pin} is outside {wanted.specifier}"


def imported_packages() -> dict[str, Path]:
    """Return top-level module (not in the standard library) -> a file of her2 that imports it."""
    found: dict[str, Path] = {}
    for path in sorted((ROOT / "her2").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            found |= {name.partition(".")[0]: path for name in names}
    ours = {"her2", "_typeshed", *sys.stdlib_module_names}  # `_typeshed`: for type checkers only
    return {module: path for module, path in found.items() if module not in ours}


def test_every_package_that_her2_imports_is_a_declared_dependency():
    # What these extras bring is imported by functions that say how to install it.
    wanted = [*PROJECT["dependencies"], *EXTRAS["exchange"], *EXTRAS["segmenter"]]
    declared = {canonicalize_name(Requirement(d).name) for d in wanted}
    providers = metadata.packages_distributions()
    for module, path in imported_packages().items():
        owners = {canonicalize_name(name) for name in providers.get(module, [module])}
        assert owners & declared, (
            f"{path.relative_to(ROOT)} imports {module}, not in pyproject.toml"
        )


def test_the_installed_versions_are_those_of_the_lock():
    stamp = Path(sys.prefix) / "installed-lock-test.txt"
    if not stamp.exists():
        pytest.skip("`make test` did not make this environment, so it may hold other versions")
    assert stamp.read_text(encoding="utf-8") == read("lock-test.txt"), "run `make test`"
    differing = {}
    for name, pin in pins("lock-test.txt").items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed = "missing"
        if not pin.specifier.contains(installed, prereleases=True):
            differing[str(pin)] = installed
    assert not differing, "another version is installed; `make clean test` starts anew"


def test_one_version_number_everywhere():
    import her2

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.search(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert latest is not None
    assert her2.__version__ == str(citation["version"]) == latest[1]
