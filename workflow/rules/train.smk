"""Stage 2, folds and training: make folds and train on the feature stores.

in:  the manifest's labels; the feature entries of an encoder
out: folds/{task}.parquet                          slide, repeat, fold -> role
     features/{encoder}/similar.parquet            similar slides of different patients
     models/{task}/{encoder}/{head}/{chunk}.json   fold -> key, epochs, tuning loss
"""


rule make_folds:
    input:
        # Has the slides that cannot be used; duplicates and mass failure stop the run there.
        # Not ancient(), as Snakemake would overlook a changed spec whenever the audit itself runs.
        audit=f"{RESULTS}/cohort/audited.parquet",
        outdated=FILES.outdated("make_folds"),
    output:
        folds=f"{RESULTS}/folds/{{task}}.parquet",
        stamp=FILES.stamp("make_folds"),
    log:
        f"{RESULTS}/logs/make_folds/{{task}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/make_folds/{{task}}.tsv"
    # Stops the run if a class has too few usable patients, while embedding has only begun.
    priority: 20
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        spec=FILES.spec("make_folds"),
        slides=SLIDES,
    shell:
        "python -m her2 folds --spec {params.spec:q} {params.slides:q}"
        " --audited {input.audit:q} --out {output.folds:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule find_similar_slides:
    input:
        cohort=f"{RESULTS}/cohort/audited.parquet",
        features=expand(f"{RESULTS}/features/{{{{encoder}}}}/{{bucket}}.json", bucket=PLAN.buckets),
        outdated=FILES.outdated("find_similar_slides"),
    output:
        pairs=f"{RESULTS}/features/{{encoder}}/similar.parquet",
        stamp=FILES.stamp("find_similar_slides"),
    log:
        f"{RESULTS}/logs/find_similar_slides/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/find_similar_slides/{{encoder}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        spec=FILES.spec("find_similar_slides"),
        features=FILES.folder("features/{encoder}"),
        cache=CACHE,
    shell:
        "python -m her2 similar --spec {params.spec:q} --cohort {input.cohort:q}"
        " --features {params.features:q} --cache {params.cache:q}"
        " --out {output.pairs:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule train_folds:
    input:
        # Not read, but copies under the names of two patients stop the run here.
        similar=f"{RESULTS}/features/{{encoder}}/similar.parquet",
        folds=lambda wildcards: (
            f"{RESULTS}/folds/{folds_name(wildcards.task, wildcards.head)}.parquet"
        ),
        # Not read, but an encoder that saw the cohort's patients stops the run here.
        overlap=f"{RESULTS}/encoders/{{encoder}}/overlap.json",
        features=expand(f"{RESULTS}/features/{{{{encoder}}}}/{{bucket}}.json", bucket=PLAN.buckets),
        outdated=FILES.outdated("train_folds"),
    output:
        entries=f"{RESULTS}/models/{{task}}/{{encoder}}/{{head}}/{{chunk}}.json",
        stamp=FILES.stamp("train_folds"),
    log:
        f"{RESULTS}/logs/train_folds/{{task}}/{{encoder}}/{{head}}/{{chunk}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_folds/{{task}}/{{encoder}}/{{head}}/{{chunk}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(120),
    params:
        spec=FILES.spec("train_folds"),
        features=FILES.folder("features/{encoder}"),
        cache=CACHE,
    shell:
        "python -m her2 train --spec {params.spec:q} --folds {input.folds:q}"
        " --features {params.features:q} --cache {params.cache:q}"
        " --threads {threads} --out {output.entries:q}"
        " --stamp {output.stamp:q} 2> {log:q}"
