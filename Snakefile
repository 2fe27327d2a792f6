"""HER2 scores from H&E slides: tile, embed once, train, evaluate, report.

snakemake --cores 8                           the demo (config.yaml)
snakemake --cores 8 --configfile=mine.yaml    your slides
Targets: features, train, report (the default builds everything). They come first:
snakemake --cores 8 features --configfile mine.yaml
"""

from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


# Your own config file replaces the demo's instead of being merged into it. Single values given by
# --config are merged.
if not workflow.overwrite_configfiles and "cohort" not in config:

    configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/synthetic.smk"
include: "workflow/rules/tile.smk"
include: "workflow/rules/encoder.smk"
include: "workflow/rules/embed.smk"
include: "workflow/rules/features.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/robustness.smk"
include: "workflow/rules/control.smk"
include: "workflow/rules/explain.smk"
include: "workflow/rules/attention.smk"
include: "workflow/rules/validate.smk"
include: "workflow/rules/report.smk"


onstart:
    PROGRESS.begin(workflow)


onsuccess:
    PROGRESS.end(succeeded=True)


onerror:
    PROGRESS.end(succeeded=False)


rule all:
    default_target: True
    input:
        rules.build_report.output,


rule report:
    """Build everything, like the default."""
    input:
        rules.build_report.output,


rule features:
    """Run stage 1 only: tiles and embeddings of every slide."""
    input:
        FILES.each_cohort("features/{encoder}/{bucket}.json"),
        FILES.each_cohort("cohort/audited.parquet"),
        FILES.each_cohort("cohort/slides.parquet"),


rule train:
    """Run stage 2 up to the trained folds."""
    input:
        FILES.each_model(f"{RESULTS}/models/{{task}}/{{encoder}}/{{head}}/{{chunk}}.json"),
