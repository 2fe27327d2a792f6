"""Stage 2, explanation: measure the reliability of attention for each task, encoder and head.

in:  the folds, the entries of the trained folds and of the features, and ground truths, if any
out: attention/{task}/{encoder}/{head}/agreement.parquet, and the tables of localisation and
     faithfulness (docs/explanation.md), each also as CSV
"""


rule measure_attention:
    input:
        folds=f"{RESULTS}/folds/{{task}}.parquet",
        models=expand(
            f"{RESULTS}/models/{{{{task}}}}/{{{{encoder}}}}/{{{{head}}}}/{{chunk}}.json",
            chunk=PLAN.first_chunks,
        ),
        features=expand(f"{RESULTS}/features/{{{{encoder}}}}/{{bucket}}.json", bucket=PLAN.buckets),
        truths=lambda wildcards: PLAN.drawn(PLAN.truth_files),
        outdated=FILES.outdated("measure_attention"),
    output:
        f"{RESULTS}/attention/{{task}}/{{encoder}}/{{head}}/agreement.parquet",
        localisation=FILES.model_table("attention", "localisation"),
        localisation_summary=FILES.model_table("attention", "localisation_summary"),
        faithfulness=FILES.model_table("attention", "faithfulness"),
        faithfulness_summary=FILES.model_table("attention", "faithfulness_summary"),
        agreement=FILES.model_table("attention", "agreement"),
        stamp=FILES.stamp("measure_attention"),
    log:
        f"{RESULTS}/logs/measure_attention/{{task}}/{{encoder}}/{{head}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/measure_attention/{{task}}/{{encoder}}/{{head}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        spec=FILES.spec("measure_attention"),
        models=FILES.folder("models/{task}/{encoder}/{head}"),
        features=FILES.folder("features/{encoder}"),
        cache=CACHE,
        masks=option("--masks", CONFIG.cohort.masks),
        out=FILES.folder("attention/{task}/{encoder}/{head}"),
    shell:
        "python -m her2 attention --spec {params.spec:q} --folds {input.folds:q}"
        " --models {params.models:q} --features {params.features:q} --cache {params.cache:q}"
        " {params.masks:q} --threads {threads} --out {params.out:q}"
        " --stamp {output.stamp:q} 2> {log:q}"
