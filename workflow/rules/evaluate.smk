"""Stage 2, evaluation: compute the metrics of each task, encoder and head, and compare them.

in:  the folds and the entries of the trained folds
out: evaluation/{task}/{encoder}/{head}/predictions.parquet, and the tables that are computed from
     it (docs/statistics.md), each also as CSV
     evaluation/comparison.parquet          encoders and heads against each other, paired
     evaluation/statement.csv               H&E pre-training against the others, per task and head
     evaluation/selection.csv               what the best of all models is worth, per task
     evaluation/picks.csv                   the model that each fold's tuning set picks, if asked
"""


rule evaluate:
    input:
        folds=lambda wildcards: (
            f"{RESULTS}/folds/{folds_name(wildcards.task, wildcards.head)}.parquet"
        ),
        models=expand(
            f"{RESULTS}/models/{{{{task}}}}/{{{{encoder}}}}/{{{{head}}}}/{{chunk}}.json",
            chunk=PLAN.chunks,
        ),
        outdated=FILES.outdated("evaluate"),
    output:
        predictions=f"{RESULTS}/evaluation/{{task}}/{{encoder}}/{{head}}/predictions.parquet",
        metrics=FILES.model_table("evaluation", "metrics"),
        fold_metrics=FILES.model_table("evaluation", "fold_metrics"),
        confusion=FILES.model_table("evaluation", "confusion"),
        binary=FILES.model_table("evaluation", "binary"),
        priors=FILES.model_table("evaluation", "priors"),
        seeds=FILES.model_table("evaluation", "seeds"),
        temperatures=FILES.model_table("evaluation", "temperatures"),
        calibration=FILES.model_table("evaluation", "calibration"),
        reliability=FILES.model_table("evaluation", "reliability"),
        operating=FILES.model_table("evaluation", "operating"),
        decision=FILES.model_table("evaluation", "decision"),
        stamp=FILES.stamp("evaluate"),
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
        spec=FILES.spec("evaluate"),
        models=FILES.folder("models/{task}/{encoder}/{head}"),
        cache=CACHE,
        out=FILES.folder("evaluation/{task}/{encoder}/{head}"),
    shell:
        "python -m her2 evaluate --spec {params.spec:q} --folds {input.folds:q}"
        " --models {params.models:q} --cache {params.cache:q}"
        " --out {params.out:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule compare_encoders:
    input:
        expand(
            f"{RESULTS}/evaluation/{{task}}/{{encoder}}/{{head}}/predictions.parquet",
            task=CONFIG.tasks,
            encoder=CONFIG.encoders,
            head=CONFIG.heads,
        ),
        outdated=FILES.outdated("compare_encoders"),
    output:
        f"{RESULTS}/evaluation/comparison.parquet",
        table=FILES.run_table("comparison"),
        statement=FILES.run_table("statement"),
        selection=FILES.run_table("selection"),
        picks=FILES.run_table("picks"),
        stamp=FILES.stamp("compare_encoders"),
    log:
        f"{RESULTS}/logs/compare_encoders.log",
    benchmark:
        f"{RESULTS}/benchmarks/compare_encoders.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        spec=FILES.spec("compare_encoders"),
        evaluation=FILES.folder("evaluation"),
    shell:
        "python -m her2 compare --spec {params.spec:q}"
        " --evaluation {params.evaluation:q} --out {params.evaluation:q}"
        " --stamp {output.stamp:q} 2> {log:q}"
