"""What an importer found: slides with their labels, and what it left out or decided."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedSlide:
    """A row of the manifest that is to be written.

    Attributes:
        slide_id: a legal id (`her2.cohort.columns.identifier`).
        path: the slide's file.
        patient_id: a legal id.
        site, scanner, split: columns of the manifest, "" where not known.
        mpp: um/px for the manifest, None where the file's own counts.
        annotation: file of regions that tiles are restricted to.
        labels: label column -> value; "" where not known.
        further: other columns, for subgroups and covariates.
    """

    slide_id: str
    path: Path
    patient_id: str
    site: str = ""
    scanner: str = ""
    split: str = ""
    mpp: float | None = None
    annotation: Path | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    further: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A slide, case or row of a sheet that is not in the manifest, and why; with the fix."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """All that an importer found.

    Attributes:
        slides: the rows of the manifest.
        left_out: what is not among them.
        conflicts: sentences on sources that contradict each other, and what was made of it.
        rules: sentences on what was decided, such as how a status follows from IHC and FISH.
        inputs: files that labels and splits were read from.
        sheets: texts of further files to write beside the manifest, by name (`ids.csv`). One that
            is also among the inputs, as a sheet that a person filled in, is written over.
        root: folder in which the manifest's relative paths start; default: the one imported.
        config: key -> value of the starter config that differs from the preset's, such as
            `cohort.masks`; paths as `Path`. The key's section must be in the preset.
        stops: why the manifest must not be written yet, such as labels that nobody confirmed; ""
            if it may.
    """

    slides: tuple[ImportedSlide, ...]
    left_out: tuple[LeftOut, ...] = ()
    conflicts: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    sheets: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    stops: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source of cohorts: `SOURCE` of a module in `her2.importing.sources`.

    Attributes:
        name: as `her2 import NAME`; the module's, with dashes.
        title: what it is, for the list of sources.
        preset: file of `workflow/presets` that the starter config is made from.
        read: `read(folder: Path, *, out: Path, option: ... = ...) -> Found`. Its first argument,
            whatever its name, becomes the command's argument, its keyword arguments the options
            (`Path`, `str`, `int`, `float`, `bool`, `Literal`, each also `| None = None`, and
            `list[str] | None`), and the `Args:` of its docstring their help. `out` is where
            converted files go, `threads: int` the command's own. It never writes into `folder`.
    """

    name: str
    title: str
    preset: str
    read: Callable[..., Found]
