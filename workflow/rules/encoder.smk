"""Stage 1, encoder: make one folder of weights and a card, whatever the source.

in:  published weights, or a local file of them; for `source: pretrain` a labelled patch set
out: encoders/{encoder}/card.json, weights.safetensors
     encoders/{encoder}/overlap.json   patients its pre-training shares with the cohort, if allowed
"""


rule materialise_encoder:
    input:
        lambda wildcards: PLAN.local_weights[wildcards.encoder],
    output:
        card=f"{RESULTS}/encoders/{{encoder}}/card.json",
        weights=f"{RESULTS}/encoders/{{encoder}}/weights.safetensors",
    log:
        f"{RESULTS}/logs/materialise_encoder/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/materialise_encoder/{{encoder}}.tsv"
    wildcard_constraints:
        encoder=one_of(n for n, e in CONFIG.encoders.items() if e.source != "pretrain"),
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(8000),
        runtime=growing(60),
    params:
        spec=lambda wildcards: PLAN.encoder_spec(wildcards.encoder),
        out=FILES.folder("encoders/{encoder}"),
    shell:
        "python -m her2 encoder --spec {params.spec:q} --out {params.out:q} 2> {log:q}"


rule pretrain_encoder:
    input:
        patches=lambda wildcards: PLAN.patch_source(wildcards.encoder),
        init=lambda wildcards: [
            f"{RESULTS}/encoders/{name}/card.json" for name in PLAN.starts_from(wildcards.encoder)
        ],
    output:
        card=f"{RESULTS}/encoders/{{encoder}}/card.json",
        weights=f"{RESULTS}/encoders/{{encoder}}/weights.safetensors",
        history=f"{RESULTS}/encoders/{{encoder}}/history.parquet",
    log:
        f"{RESULTS}/logs/pretrain_encoder/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/pretrain_encoder/{{encoder}}.tsv"
    wildcard_constraints:
        encoder=one_of(n for n, e in CONFIG.encoders.items() if e.source == "pretrain"),
    # It takes hours and all jobs of its encoder wait for it, so it runs before other ready jobs.
    priority: 10
    conda:
        "../../envs/her2.yaml"
    # With the demo's few small patches, threads mostly wait for each other: its four encoders are
    # trained side by side instead, and come out the same on every number of cores.
    threads: 1 if CONFIG.cohort.synthetic else 8
    resources:
        mem_mb=growing(16000),
        runtime=growing(480),
        gpu=1,
    params:
        spec=lambda wildcards: PLAN.encoder_spec(wildcards.encoder),
        cache=CACHE,
        out=FILES.folder("encoders/{encoder}"),
    shell:
        "init=({input.init:q});"
        " python -m her2 pretrain --spec {params.spec:q} --cache {params.cache:q} --threads {threads}"
        ' ${{init:+--init "${{init%/*}}"}}'
        " --out {params.out:q} 2> {log:q}"


rule audit_overlap:
    input:
        card=f"{RESULTS}/encoders/{{encoder}}/card.json",
        cohort=f"{RESULTS}/cohort/audited.parquet",
    output:
        f"{RESULTS}/encoders/{{encoder}}/overlap.json",
    log:
        f"{RESULTS}/logs/audit_overlap/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/audit_overlap/{{encoder}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        spec=lambda wildcards: PLAN.overlap_spec(wildcards.encoder),
        encoder=FILES.folder("encoders/{encoder}"),
    shell:
        "python -m her2 overlap --spec {params.spec:q} --cohort {input.cohort:q}"
        " --encoder {params.encoder:q} --out {output:q} 2> {log:q}"
