"""What a dry run of Snakemake says, read."""

from her2.pipeline.explain import parse_dry_run

DRY_RUN = """\
Building DAG of jobs...
[Wed Nov 25 08:04:39 2026]
rule tile_bucket:
    input: slides/a.svs, slides/b.svs
    output: results/tiles/64px-1mpp/0000-of-0002.json
    log: results/logs/tile_bucket/64px-1mpp/0000-of-0002.log
    jobid: 3
    reason: Params have changed since last execution: Union of exclusive params before and now \
across all output: before: '{"rows":"aa","tiling":{"min_tissue":0.3,"overlap":0.0},"version":1}' \
now: '{"rows":"bb","tiling":{"min_tissue":0.31,"overlap":0.0},"version":2}'\x20
    wildcards: grid=64px-1mpp, bucket=0000-of-0002
    threads: 2

[Wed Nov 25 08:04:39 2026]
localrule materialise_encoder:
    input: weights.safetensors
    output: results/encoders/tiny/card.json
    log: results/logs/materialise_encoder/tiny.log
    jobid: 5
    reason: Updated input files: weights.safetensors
    wildcards: encoder=tiny

localrule all:
    input: results/report/report.html
    jobid: 0
    reason: Input files updated by another job: results/report/report.html

Job stats:
"""


def test_jobs_come_with_their_reasons_and_targets_are_left_out() -> None:
    tile, encoder = parse_dry_run(DRY_RUN)
    assert (tile.rule, tile.wildcards) == ("tile_bucket", "grid=64px-1mpp, bucket=0000-of-0002")
    assert tile.reason == "Params have changed since last execution"
    assert (encoder.rule, encoder.reason) == (
        "materialise_encoder", "Updated input files: weights.safetensors",
    )  # fmt: skip


def test_a_changed_spec_is_said_key_by_key() -> None:
    assert parse_dry_run(DRY_RUN)[0].changes == (
        "rows of the manifest: others, or other values in them",
        "tiling.min_tissue: 0.3 -> 0.31",
        "version: 1 -> 2",
    )


def test_parameters_that_are_no_specs_are_left_as_they_are() -> None:
    other = DRY_RUN.replace("before: '{", "before: 'x{")
    assert parse_dry_run(other)[0].changes == ()


def test_a_long_reason_is_cut() -> None:
    long = DRY_RUN.replace("weights.safetensors\n    wildcards", f"{'w' * 900}\n    wildcards")
    assert len(parse_dry_run(long)[1].reason) < 200


def test_a_run_with_nothing_to_do_has_no_jobs() -> None:
    assert parse_dry_run("Building DAG of jobs...\nNothing to be done.\n") == []
