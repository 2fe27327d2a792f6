"""`her2 doctor`: what a check is, what it finds, and what it may ask.

A check is a file of her2/cli/doctor/checks that ends with `CHECK = Check(...)`; being there is
enough. It returns findings, each with its mend, and never raises for what it finds.
"""

import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from her2.config import Config
from her2.core.errors import UserError, first_line
from her2.core.paths import user_path

if TYPE_CHECKING:
    from her2.pipeline.plan import Plan

T = TypeVar("T")
Level = Literal["ok", "note", "bad"]

HUB_SECONDS = 4.0
"""How long the hub may take to answer at all; it is asked once."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the screen: `bad` keeps a run from beginning, a `note` does not.

    `mend` says what to do, in a sentence or a command.
    """

    level: Level
    text: str
    mend: str = ""


@dataclass(frozen=True)
class Situation:
    """What is to be run here: a config, if there is one that can be read, and its folders."""

    path: Path | None
    config: Config | None

    @property
    def results(self) -> Path:
        """Return the folder of the results."""
        return Path("results") if self.config is None else self.config.results

    @property
    def cache(self) -> Path:
        """Return the folder of the cache.

        Raises:
            UserError: HER2_CACHE is not a usable path.
        """
        if self.config is not None:
            return self.config.cache_folder
        shared = os.environ.get("HER2_CACHE", "")
        try:
            return user_path(shared) if shared.strip() else Path("cache")
        except ValueError as problem:
            raise UserError(f"the environment variable HER2_CACHE: {problem}") from None

    @cached_property
    def plan(self) -> "Plan":
        """Return the plan of the run: the config with its manifests, read and checked.

        Raises:
            UserError: a manifest cannot be used.
        """
        from her2.pipeline.external import configured_plan

        assert self.config is not None
        return configured_plan(self.config)

    @cached_property
    def hub(self) -> str:
        """Return "" if the Hugging Face hub answers, else why not; asked once, within seconds."""
        import huggingface_hub.constants as hub

        if hub.HF_HUB_OFFLINE:
            return "HF_HUB_OFFLINE is set"
        try:
            within(HUB_SECONDS, lambda: _answer(hub.ENDPOINT))
        except Exception as error:
            return first_line(getattr(error, "reason", error)) or type(error).__name__
        return ""


@dataclass(frozen=True, slots=True)
class Check:
    """A subject of the screen; checks run in their `order`."""

    title: str
    order: int
    find: Callable[[Situation], Iterable[Finding]]


def findings(check: Check, situation: Situation) -> list[Finding]:
    """Return what a check finds; one that fails says so and stops no other."""
    try:
        return list(check.find(situation))
    except Exception as error:
        why = first_line(error) or type(error).__name__
        return [Finding("note", f"could not be checked ({why})")]


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return what a call returns within this time, e.g. from a network or a disk that hangs.

    Raises:
        TimeoutError: it has not returned; its thread is left behind and ends with the process.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]


def _answer(endpoint: str) -> int:
    """Return the status of the hub's answer; any answer will do.

    Raises:
        OSError: there is none.
    """
    import urllib.error
    import urllib.request

    request = urllib.request.Request(endpoint, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:  # it answers, if not kindly
        return error.code
