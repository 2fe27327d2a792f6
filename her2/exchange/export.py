"""Features out: the features of an encoder, in the form that another program reads."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from her2.core.errors import SlideError, UserError, blamed_on, first_line, problem_list
from her2.core.files import atomic_path
from her2.exchange.outgoing import Outgoing, open_slide_features, read_outgoing
from her2.exchange.record import (
    SCHEMA_VERSION,
    Done,
    Record,
    content_digest,
    open_record,
    publishing,
)
from her2.exchange.slide_features import SlideFeatures
from her2.exchange.writers import Writer, find_writer
from her2.storage.entries import FeatureEntry
from her2.storage.features import is_sealed, seal_holds

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export did.

    Attributes:
        encoder: the encoder whose features were exported.
        written, kept: slides that were written now, and that were there already.
        removed: slides of an earlier export without features now; their files are deleted.
        left_out: slide id -> why it has no features.
        failed: slide id -> why it has features that could not be exported, or was asked for and
            has none.
        losses: what the other program does not get, and for how many slides.
        advice: what the other program then needs, line by line.
        caution: what the licence of the encoder's weights may mean for features; None: nothing.
    """

    encoder: str
    written: tuple[str, ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]
    left_out: Mapping[str, str]
    failed: Mapping[str, str]
    losses: Mapping[str, int]
    advice: tuple[str, ...]
    caution: str | None


def export_features(
    results: Path,
    out: Path,
    form: str,
    *,
    encoder: str | None = None,
    slides: Sequence[str] | None = None,
    cohort: str = "",
) -> Exported:
    """Write the features of an encoder in the form of another program.

    A folder of an earlier export of the same is brought up to date: only what is missing, was
    damaged or was made from another store is written. Slides that it has stay in it.

    Args:
        results: the results folder of a run.
        out: the folder to write, new, empty or of an earlier export.
        form: one of `her2.exchange.writers.writer_names()`.
        encoder: its name in the config; None: the only one that has features.
        slides: ids of the slides; None: all.
        cohort: name of an external cohort; empty: the development cohort.

    Raises:
        UserError: there is nothing to export, `out` is in the results or is not a folder of such an
            export, a slide is in no entries file, or the disk is full.
    """
    writer = find_writer(form)
    outgoing = read_outgoing(results, encoder, cohort)
    if out.absolute().resolve().is_relative_to(results.absolute().resolve()):
        raise UserError(f"--out {out}: is in the results, whose files the run owns.")
    if slides is not None and (unknown := sorted(set(slides) - set(outgoing.entries))):
        raise problem_list(
            f"--slides: {outgoing.features} has no such slide; ids are those of the manifest",
            unknown,
        )
    about = {"to": form, "encoder": outgoing.encoder, "cohort": cohort}
    with open_record(out, about) as record:
        return _export(writer, outgoing, record, about, slides)


def _export(
    writer: Writer,
    outgoing: Outgoing,
    record: Record,
    about: Mapping[str, Any],
    asked: Sequence[str] | None,
) -> Exported:
    chosen = set(outgoing.entries if asked is None else asked) | set(record.slides)
    written: list[str] = []
    kept: list[str] = []
    removed: list[str] = []
    left_out: dict[str, str] = {}
    failed: dict[str, str] = {}
    losses: Counter[str] = Counter()
    for slide_id in sorted(chosen):
        entry = outgoing.entries.get(slide_id, FeatureEntry("excluded", "not in the cohort"))
        if entry.status != "ok" or entry.key is None:
            (failed if asked and slide_id in asked else left_out)[slide_id] = (
                entry.reason or f"{entry.status}, without a reason"
            )
            removed += _remove(record, slide_id)
            continue
        try:
            features = open_slide_features(outgoing, slide_id, entry.key)
            for fact in writer.needs:
                getattr(features, fact)
            names = writer.files(outgoing, features)
            current = record.current(slide_id, entry.key, features.seal, writer.version)
            if not current and is_sealed(features.store) and not seal_holds(features.store):
                raise SlideError(f"{features.store.path} was edited after it was made")
        except (UserError, SlideError) as error:
            failed[slide_id] = first_line(error)
            if slide_id in record.slides and record.slides[slide_id].key != entry.key:
                removed += _remove(record, slide_id)
            continue
        if not current:
            _write(writer, outgoing, record, features, names)
        (kept if current else written).append(slide_id)
        losses.update(writer.losses(outgoing, features))
    if not record.slides:
        raise problem_list(
            f"{outgoing.features}: no slide could be exported",
            [f"{name}: {why}" for name, why in sorted((left_out | failed).items())],
        )
    done = Exported(
        encoder=outgoing.encoder,
        written=tuple(written),
        kept=tuple(kept),
        removed=tuple(removed),
        left_out=left_out,
        failed=failed,
        losses=dict(losses),
        advice=tuple(writer.advice(outgoing, sorted(record.slides), record.out)),
        caution=outgoing.caution,
    )
    tables = _write_tables(writer, outgoing, record)
    record.finish(
        {
            "schema_version": SCHEMA_VERSION,
            "about": dict(about),
            **outgoing.provenance(),
            "form": writer.words,
            "tables": tables,
            "left_out": left_out,
            "failed": failed,
            "losses": [{"what": what, "slides": n} for what, n in sorted(losses.items())],
        }
    )
    return done


def _write(
    writer: Writer,
    outgoing: Outgoing,
    record: Record,
    features: SlideFeatures,
    names: Mapping[str, str],
) -> None:
    record.begin(names.values())
    with blamed_on(features.slide_id), publishing(record.out, names) as paths:
        writer.write(outgoing, features, paths)
    files = {name: content_digest(record.out / name) or "" for name in sorted(names.values())}
    key = str(features.store.attributes["key"])
    record.end(
        features.slide_id, Done(key, features.seal, len(features.store), writer.version, files)
    )
    log.info("%s: %d tiles", features.slide_id, len(features.store))


def _remove(record: Record, slide_id: str) -> list[str]:
    """Delete what an earlier export wrote of a slide; return the slide, if there was anything."""
    if slide_id not in record.slides:
        return []
    for name in record.remove(slide_id):
        log.warning("%s: %s was changed since it was written, and stays", slide_id, name)
    return [slide_id]


def _write_tables(writer: Writer, outgoing: Outgoing, record: Record) -> dict[str, str]:
    """Write the tables of the slides in the folder; return name -> digest."""
    found = {}
    tables = writer.tables(outgoing, sorted(record.slides))
    record.begin(tables)
    for name, table in tables.items():
        with atomic_path(record.out / name) as temporary:
            # As it is: a quote that guards a spreadsheet would change an id or a class.
            if name.endswith(".csv"):
                table.write_csv(temporary)
            else:
                table.write_parquet(temporary)
        found[name] = content_digest(record.out / name) or ""
    return found
