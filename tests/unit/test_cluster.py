"""The tests' own SLURM cluster takes nothing away from the machine that it runs on."""

import os
import shutil
from pathlib import Path

import pytest

from tests.workflow import cluster
from tests.workflow.cluster import BACKUP, MARK

OWN = "ClusterName=the-sites-own\n"


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the place of /etc/slurm, with a configuration in it."""
    monkeypatch.setattr(cluster, "CONFIG", tmp_path)
    (tmp_path / "slurm.conf").write_text(OWN)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_configured_is_put_back_and_what_was_not_is_removed(etc: Path) -> None:
    with cluster._borrowed({"slurm.conf": "a\n", "gres.conf": "b\n"}):
        assert (etc / "slurm.conf").read_text() == MARK + "a\n"
        assert (etc / "gres.conf").read_text() == MARK + "b\n"
    assert names(etc) == ["slurm.conf"]
    assert (etc / "slurm.conf").read_text() == OWN


def test_it_is_put_back_after_an_error_and_after_a_killed_test(etc: Path) -> None:
    with pytest.raises(RuntimeError), cluster._borrowed({"slurm.conf": "a\n"}):
        raise RuntimeError
    assert (etc / "slurm.conf").read_text() == OWN
    # A killed test leaves both its own file and the backup.
    (etc / "slurm.conf").rename(etc / f"slurm.conf{BACKUP}")
    (etc / "slurm.conf").write_text(MARK + "old\n")
    with cluster._borrowed({"slurm.conf": "a\n"}):
        pass
    assert names(etc) == ["slurm.conf"]
    assert (etc / "slurm.conf").read_text() == OWN


def test_a_controller_of_the_sites_is_left_alone(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: f"/usr/sbin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cluster, "_answers", lambda: True)
    assert "not the tests' own answers" in str(cluster.why_not())
    monkeypatch.setattr(cluster, "_answers", lambda: False)
    assert cluster.why_not() is None


@pytest.mark.parametrize(("user", "there", "words"), [(0, False, "slurmctld"), (7, True, "root")])
def test_why_there_is_no_cluster_is_said(
    etc: Path, monkeypatch: pytest.MonkeyPatch, user: int, there: bool, words: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(shutil, "which", lambda name, **_: name if there else None)
    assert words in str(cluster.why_not())
