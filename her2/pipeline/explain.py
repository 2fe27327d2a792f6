"""Beside every stage: the products of one slide, their keys, and what would run again and why.

It shows side by side what the cache holds for the slide as it is now, and what Snakemake itself
says it would run.
"""

import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake.api import SnakemakeApi
from snakemake.cli import parse_args
from snakemake.exceptions import RuleException, WorkflowError
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    Quietness,
    ResourceSettings,
)

from her2.cohort.manifest import SlideRow
from her2.config import GivenSection
from her2.config.jobs import EmbedSpec, TakeSpec, TileSpec, load
from her2.config.names import DEVELOPMENT
from her2.core.errors import SlideError, UserError
from her2.core.files import digest
from her2.core.hardware import auto_precision
from her2.embedding.identity import feature_key, find_features
from her2.embedding.views import lacking_views, view_keys
from her2.encoders.card import CARD_NAME, read_card
from her2.exchange.take import key_now
from her2.pipeline.current import Currency, Outdated
from her2.pipeline.job_table import COHORT, RULES, planned_job
from her2.pipeline.plan import Plan
from her2.slides.fingerprint import fingerprint
from her2.storage.cache import Cache
from her2.storage.entries import Entry, FeatureEntry, TileEntry, read_entries
from her2.storage.features import read_attributes
from her2.storage.products import intact
from her2.storage.tiles import read_table
from her2.tiling.segmenter_card import read_segmenter_card
from her2.tiling.stage import find_tiles, tile_identity

_SHOWN = 12
"""Number of digits of a digest that are shown."""
_LONG = 160
"""Maximum number of characters of a reason, since a list of inputs can have thousands."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A job that Snakemake would run, with its reason."""

    rule: str
    wildcards: dict[str, str]
    reason: str


def explain(
    plan: Plan, slide_id: str, jobs: list[Planned], *, part: str = DEVELOPMENT
) -> Iterator[str]:
    """Yield the lines of the explanation of a slide of the manifest.

    `plan` is that of the config and the manifests as they are now, `jobs` are those that Snakemake
    would run, and `part` is the folder of the slide's cohort in the results.

    Raises:
        UserError: the manifest has no such slide, or an entries file is broken.
    """
    own = plan.of(part)
    if slide_id not in own.slides:
        raise UserError(f"{slide_id}: is not in {own.config.cohort.slides}.")
    row = own.slides[slide_id]
    bucket = next(name for name, rows in own.by_bucket.items() if row in rows)
    yield (
        f"{slide_id}: patient {row.patient_id}, bucket {bucket}, "
        f"{own.cohort.present_file(row) or 'no slide, only features'}"
    )
    keys = {}
    for grid in plan.config.grids:
        yield f"tiles {grid}"
        keys[grid] = yield from _tiles(own, row, bucket, grid)
    for encoder, section in plan.config.encoders.items():
        yield f"features {encoder}"
        if isinstance(section, GivenSection):
            yield from _taken(own, row, bucket, encoder, section)
            continue
        yield from _features(own, row, bucket, encoder, keys[section.grid])
    mine: dict[str, list[Planned]] = {}
    for job in jobs:
        same = job.wildcards.get(COHORT, DEVELOPMENT) == own.part
        if same and job.wildcards.get("bucket", bucket) == bucket:
            mine.setdefault(job.rule, []).append(job)
    check = Currency(plan)
    yield "Snakemake would run" if mine else "Snakemake would run nothing for it."
    for rule, (first, *others) in mine.items():
        which = ", ".join(f"{name}={value}" for name, value in first.wildcards.items() if value)
        more = f" and {len(others)} more" if others else ""
        yield f"    {rule} {which}".rstrip() + more
        found = outdated_job(check, first)
        forced = first.reason.replace("Forced execution", found.reason) if found else first.reason
        yield from (f"        {line}" for line in (forced, *(found.changes if found else ())))


def outdated_job(check: Currency, job: Planned) -> Outdated | None:
    """Return why what a job made is not current, or None if it is or the rule is not ours."""
    if job.rule not in RULES:
        return None
    return check.outdated(planned_job(job.rule, job.wildcards))


def planned_jobs(snakefile: Path, config: Path) -> list[Planned]:
    """Return the jobs that Snakemake would run, in the order of the stages, without targets.

    Snakemake plans in this process, as for a dry run, which takes no lock and changes no output.

    Raises:
        UserError: Snakemake cannot plan; the message includes its own.
    """
    # Only the command line's parser reads the profile, which sets the rerun triggers.
    _, arguments = parse_args(["--snakefile", str(snakefile), "--configfile", str(config), "-n"])
    # With these settings, a dry run ends as soon as the jobs are known.
    quietness = {Quietness.RULES, Quietness.PROGRESS}
    output = OutputSettings(dryrun=True, quiet=quietness, log_level_override=logging.CRITICAL)
    try:
        with SnakemakeApi(output) as api:
            loaded = api.workflow(
                ResourceSettings(cores=1),
                ConfigSettings(configfiles=[config.absolute()]),
                snakefile=snakefile,
            )
            settings = DAGSettings(
                rerun_triggers=arguments.rerun_triggers, force_incomplete=arguments.rerun_incomplete
            )
            loaded.dag(settings).execute_workflow("dryrun")
            # Public functions only print the jobs, and none returns them.
            workflow = loaded._workflow
    except (WorkflowError, RuleException) as error:
        raise UserError(f"snakemake cannot plan:\n{error}") from None
    stages = {rule.name: place for place, rule in enumerate(workflow.rules)}
    found = [
        _planned(job, workflow.dag.reason(job))
        for job in workflow.dag.needrun_jobs()
        if not job.rule.norun
    ]
    return sorted(found, key=lambda job: (stages[job.rule], [*job.wildcards.items()]))


def _planned(job: Any, reason: Any) -> Planned:
    """Return a Snakemake job and its `Reason` as plain data."""
    params = reason.params_changed
    text = str(reason).replace(f": {params}", "") if params else str(reason)
    if len(text) > _LONG:
        text = f"{text[:_LONG]}..."
    return Planned(
        rule=job.rule.name,
        wildcards=dict(job.wildcards_dict),
        reason=text,
    )


def _tiles(plan: Plan, row: SlideRow, bucket: str, grid: str) -> Generator[str, None, str | None]:
    """Yield lines on the tiles as made and as they would be; return the key of the latter."""
    entry = _recorded(plan, "tiles", grid, bucket, row, TileEntry)
    yield from _made(entry)
    if entry is not None and entry.facts is not None:
        facts = entry.facts
        content = facts.fingerprint[:_SHOWN]
        if facts.mpp is not None:
            yield f"          of {facts.mpp[0]:g} um/px ({facts.mpp_source}), content {content}"
    spec, masks = load(TileSpec, plan.tile_spec(grid, bucket)), plan.config.cohort.tissue_masks
    try:
        content = fingerprint(plan.cohort.file(row))
        identity = tile_identity(
            spec, plan.cohort, row, masks, content=content, networks=_segmenters(plan)
        )
        cache = Cache(plan.config.cache_folder)
        identity, table = find_tiles(cache, plan.cohort.file(row), identity, intact)
    except (SlideError, UserError) as error:
        yield f"    now   {error}"
        return None
    key, made = digest(identity), entry.key if entry else None
    yield f"    now   {_now(key, made, table is not None, 'cut')}"
    return key


def _segmenters(plan: Plan) -> dict[str, dict[str, Any]]:
    """Return the identities of the segmenters that the config names, by their keys.

    Raises:
        UserError: the weights of one are not there (yet).
    """
    found = {}
    for name, one in plan.segmenters.items():
        folder = plan.config.results / "segmenters" / name
        if not (folder / CARD_NAME).is_file():
            raise UserError(f"not known until the weights of the segmenter {name} are there")
        found[one.key] = one.identity(read_segmenter_card(folder, one).weights_sha256)
    return found


def _features(
    plan: Plan, row: SlideRow, bucket: str, encoder: str, tiles: str | None
) -> Iterator[str]:
    entry = _recorded(plan, "features", encoder, bucket, row, FeatureEntry)
    yield from _made(entry)
    cache = Cache(plan.config.cache_folder)
    folder = plan.config.results / "encoders" / encoder
    table = intact(cache, "tiles", tiles) if tiles else None
    if table is None or not (folder / CARD_NAME).exists():
        yield "    now   not known until its tiles are cut and the encoder's weights are there"
        return
    card = read_card(folder)
    made = entry.key if entry else None
    store = intact(cache, "features", made) if made else None
    # Existing features record the precision of the embedding machine, which may not be this one.
    precision = card.precision if card.precision != "auto" else auto_precision() or "float32"
    if store is not None and card.precision == "auto":
        precision = read_attributes(store)["precision"]
    spec = load(EmbedSpec, plan.embed_spec(encoder, bucket))
    asked, found = find_features(spec, cache, read_table(table), card, precision, intact)
    key = feature_key(spec, asked, card, precision)
    yield f"    now   {_now(key, made, found is not None, 'embedded')}"
    if spec.views:
        keys = view_keys(spec, asked, card, precision)
        lacking = list(keys) if found is None else lacking_views(cache, keys, key, found, intact)
        yield f"          {views_now(len(keys), len(lacking))}"


def views_now(wanted: int, lacking: int) -> str:
    """Return the words on the augmented views of a slide, and on their cost."""
    views = f"{wanted} augmented view{'' if wanted == 1 else 's'} for training"
    if not lacking:
        return f"and {views}, in the cache"
    return f"and {views}: {lacking} would be embedded, each at the cost of the features"


def _taken(
    plan: Plan, row: SlideRow, bucket: str, encoder: str, section: GivenSection
) -> Iterator[str]:
    """Yield lines on features that another program computed."""
    entry = _recorded(plan, "features", encoder, bucket, row, FeatureEntry)
    yield from _made(entry)
    path = plan.matched[encoder].files.get(row.slide_id)
    if path is not None:
        yield f"          of {path}, {section.identity}, not computed here"
    folder = plan.config.results / "encoders" / encoder
    if not (folder / CARD_NAME).exists():
        yield "    now   not known until the encoder's card is there"
        return
    cache = Cache(plan.config.cache_folder)
    spec = load(TakeSpec, plan.take_spec(encoder, bucket))
    folders = list(section.path)
    try:
        key = key_now(spec, plan.cohort, cache, row, folders=folders, card=folder)
    except SlideError as error:
        yield f"    now   {error}"
        return
    there = intact(cache, "features", key) is not None
    yield f"    now   {_now(key, entry.key if entry else None, there, 'taken in')}"


def _recorded(
    plan: Plan, stage: str, name: str, bucket: str, row: SlideRow, kind: type[Entry]
) -> Entry | None:
    path = plan.folder / stage / name / f"{bucket}.json"
    return read_entries(path, kind).get(row.slide_id) if path.exists() else None


def _made(entry: TileEntry | FeatureEntry | None) -> Iterator[str]:
    if entry is None:
        yield "    made  nothing"
    elif entry.key is None:
        yield f"    made  {entry.status}: {entry.reason}"
    else:
        left_out = f", {entry.status}: {entry.reason}" if entry.reason else ""
        yield f"    made  {entry.tiles} tiles, key {entry.key[:_SHOWN]}{left_out}"


def _now(key: str, made: str | None, cached: bool, verb: str) -> str:
    which = "the same key" if key == made else f"key {key[:_SHOWN]}"
    return f"{which}, {'in the cache' if cached else f'not in the cache: it would be {verb}'}"
