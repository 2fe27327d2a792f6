"""Stage 2, evaluation and attention pictures of each task, encoder and head.

in:  the folds and the manifests of the trained folds
out: evaluation/{task}/{encoder}/{head}/predictions.parquet (and slides, patients, metrics,
     confusion; each also as CSV)
     evaluation/{task}/comparison.parquet   encoders against each other, paired
     heatmaps/{task}/{encoder}/{head}/heatmaps.json, and the pictures it lists
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
    output:
        predictions=f"{RESULTS}/evaluation/{{task}}/{{encoder}}/{{head}}/predictions.parquet",
        metrics=report(
            f"{RESULTS}/evaluation/{{task}}/{{encoder}}/{{head}}/metrics.csv",
            category="Figures",
            labels={"task": "{task}", "encoder": "{encoder}", "head": "{head}"},
        ),
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


rule draw_heatmaps:
    input:
        folds=f"{RESULTS}/folds/{{task}}.parquet",
        models=expand(
            f"{RESULTS}/models/{{{{task}}}}/{{{{encoder}}}}/{{{{head}}}}/{{chunk}}.json",
            chunk=PLAN.chunks,
        ),
        features=expand(f"{RESULTS}/features/{{{{encoder}}}}/{{bucket}}.json", bucket=PLAN.buckets),
    output:
        f"{RESULTS}/heatmaps/{{task}}/{{encoder}}/{{head}}/heatmaps.json",
    log:
        f"{RESULTS}/logs/draw_heatmaps/{{task}}/{{encoder}}/{{head}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/draw_heatmaps/{{task}}/{{encoder}}/{{head}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        spec=lambda wildcards: PLAN.heatmap_spec(wildcards.task),
        slides=SLIDES,
        models=folder("models/{task}/{encoder}/{head}"),
        features=folder("features/{encoder}"),
        cache=CACHE,
        masks=option("--masks", CONFIG.cohort.masks),
    shell:
        "python -m her2 heatmap --spec {params.spec:q} {params.slides:q}"
        " --folds {input.folds:q} --models {params.models:q}"
        " --features {params.features:q} --cache {params.cache:q} {params.masks:q}"
        " --out {output:q} 2> {log:q}"
