"""Stage 2, evaluation of each task, encoder and head.

in:  the folds and the manifests of the trained folds
out: evaluation/{task}/{encoder}/{head}/predictions.parquet, and the tables of figures that are made
     of it (docs/statistics.md), each also as CSV
     evaluation/{task}/comparison.parquet   encoders and heads against each other, paired
     evaluation/{task}/statement.csv        H&E pre-training against the others, a line a head
"""


def statistics(name):
    """A table of one model, marked for Snakemake's own report."""
    return report(
        f"{RESULTS}/evaluation/{{task}}/{{encoder}}/{{head}}/{name}.csv",
        caption=f"../report/{name}.rst",
        category="Performance",
        labels={"task": "{task}", "encoder": "{encoder}", "head": "{head}", "table": name},
    )


def comparison(name):
    """A table of one task, marked likewise."""
    return report(
        f"{RESULTS}/evaluation/{{task}}/{name}.csv",
        caption=f"../report/{name}.rst",
        category="Performance",
        labels={"task": "{task}", "encoder": "all", "head": "all", "table": name},
    )


rule evaluate:
    input:
        folds=lambda wildcards: (
            f"{RESULTS}/folds/{folds_name(wildcards.task, wildcards.head)}.parquet"
        ),
        models=expand(
            f"{RESULTS}/models/{{{{task}}}}/{{{{encoder}}}}/{{{{head}}}}/{{chunk}}.json",
            chunk=PLAN.chunks,
        ),
    output:
        predictions=f"{RESULTS}/evaluation/{{task}}/{{encoder}}/{{head}}/predictions.parquet",
        metrics=statistics("metrics"),
        fold_metrics=statistics("fold_metrics"),
        confusion=statistics("confusion"),
        binary=statistics("binary"),
        temperatures=statistics("temperatures"),
        calibration=statistics("calibration"),
        reliability=statistics("reliability"),
        operating=statistics("operating"),
        decision=statistics("decision"),
    log:
        f"{RESULTS}/logs/evaluate/{{task}}/{{encoder}}/{{head}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/evaluate/{{task}}/{{encoder}}/{{head}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        spec=lambda wildcards: PLAN.evaluate_spec(wildcards.task, wildcards.head),
        models=folder("models/{task}/{encoder}/{head}"),
        cache=CACHE,
        out=folder("evaluation/{task}/{encoder}/{head}"),
    shell:
        "python -m her2 evaluate --spec {params.spec:q} --folds {input.folds:q}"
        " --models {params.models:q} --cache {params.cache:q}"
        " --out {params.out:q} 2> {log:q}"


rule compare_encoders:
    input:
        lambda wildcards: expand(
            f"{RESULTS}/evaluation/{wildcards.task}/{{encoder}}/{{head}}/predictions.parquet",
            encoder=CONFIG.encoders,
            head=CONFIG.heads,
        ),
    output:
        f"{RESULTS}/evaluation/{{task}}/comparison.parquet",
        table=comparison("comparison"),
        statement=comparison("statement"),
    log:
        f"{RESULTS}/logs/compare_encoders/{{task}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare_encoders/{{task}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        spec=lambda wildcards: PLAN.compare_spec(wildcards.task),
        evaluation=folder("evaluation/{task}"),
    shell:
        "python -m her2 compare --spec {params.spec:q}"
        " --evaluation {params.evaluation:q} --out {params.evaluation:q} 2> {log:q}"
