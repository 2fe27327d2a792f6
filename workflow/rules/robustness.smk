"""Stage 2, robustness: measure what the features of each encoder know beside the label.

in:  the table of the cohort, the folds (for the classes), the feature entries of all encoders
out: robustness/encoders.parquet, and the tables of probes, neighbours and similarity
     (docs/robustness.md), each also as CSV
"""


rule measure_robustness:
    input:
        cohort=f"{RESULTS}/cohort/slides.parquet",
        folds=expand(f"{RESULTS}/folds/{{task}}.parquet", task=CONFIG.tasks),
        features=expand(
            f"{RESULTS}/features/{{encoder}}/{{bucket}}.json",
            encoder=CONFIG.encoders,
            bucket=PLAN.buckets,
        ),
        outdated=FILES.outdated("measure_robustness"),
    output:
        f"{RESULTS}/robustness/encoders.parquet",
        encoders=FILES.robustness_table("encoders"),
        probes=FILES.robustness_table("probes"),
        neighbours=FILES.robustness_table("neighbours"),
        similarity=FILES.robustness_table("similarity"),
        stamp=FILES.stamp("measure_robustness"),
    log:
        f"{RESULTS}/logs/measure_robustness.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_robustness.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        spec=FILES.spec("measure_robustness"),
        cache=CACHE,
        cohort=FILES.folder("cohort"),
        folds=FILES.folder("folds"),
        features=FILES.folder("features"),
        out=FILES.folder("robustness"),
    shell:
        "python -m her2 robustness --spec {params.spec:q} --cache {params.cache:q}"
        " --cohort {params.cohort:q} --folds {params.folds:q} --features {params.features:q}"
        " --out {params.out:q} --stamp {output.stamp:q} 2> {log:q}"
