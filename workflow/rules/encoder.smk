"""Stage 1, encoder: make one folder of weights and a card, whatever the source.

in:  published weights, or a local file of them; for `source: pretrain` a labelled patch set
out: encoders/{encoder}/card.json, weights.safetensors
     encoders/{encoder}/overlap.json   patients its pre-training shares with the cohort, if allowed
"""


rule materialise_encoder:
    input:
        lambda wildcards: PLAN.drawn(PLAN.encoder_files(wildcards.encoder)),
        outdated=FILES.outdated("materialise_encoder"),
    output:
        card=f"{RESULTS}/encoders/{{encoder}}/card.json",
        weights=f"{RESULTS}/encoders/{{encoder}}/weights.safetensors",
        stamp=FILES.stamp("materialise_encoder"),
    log:
        f"{RESULTS}/logs/materialise_encoder/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/materialise_encoder/{{encoder}}.tsv"
    wildcard_constraints:
        encoder=one_of(
            n for n, e in CONFIG.encoders.items() if e.source not in ("pretrain", "features")
        ),
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(8000),
        runtime=growing(60),
    params:
        spec=FILES.spec("materialise_encoder"),
        out=FILES.folder("encoders/{encoder}"),
    shell:
        "python -m her2 encoder --spec {params.spec:q} --out {params.out:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule pretrain_encoder:
    input:
        patches=lambda wildcards: PLAN.drawn(PLAN.encoder_files(wildcards.encoder)),
        init=lambda wildcards: [
            f"{RESULTS}/encoders/{name}/card.json" for name in PLAN.starts_from(wildcards.encoder)
        ],
        outdated=FILES.outdated("pretrain_encoder"),
    output:
        card=f"{RESULTS}/encoders/{{encoder}}/card.json",
        weights=f"{RESULTS}/encoders/{{encoder}}/weights.safetensors",
        history=f"{RESULTS}/encoders/{{encoder}}/history.parquet",
        stamp=FILES.stamp("pretrain_encoder"),
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
        spec=FILES.spec("pretrain_encoder"),
        cache=CACHE,
        out=FILES.folder("encoders/{encoder}"),
    shell:
        "init=({input.init:q});"
        " python -m her2 pretrain --spec {params.spec:q} --cache {params.cache:q} --threads {threads}"
        ' ${{init:+--init "${{init%/*}}"}}'
        " --out {params.out:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule audit_overlap:
    input:
        card=f"{RESULTS}/encoders/{{encoder}}/card.json",
        cohort=f"{RESULTS}/{{cohort}}cohort/audited.parquet",
        outdated=FILES.outdated("audit_overlap"),
    output:
        table=f"{RESULTS}/{{cohort}}encoders/{{encoder}}/overlap.json",
        stamp=FILES.stamp("audit_overlap"),
    log:
        f"{RESULTS}/logs/{{cohort}}audit_overlap/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}audit_overlap/{{encoder}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        spec=FILES.spec("audit_overlap"),
        encoder=FILES.folder("encoders/{encoder}"),
    shell:
        "python -m her2 overlap --spec {params.spec:q} --cohort {input.cohort:q}"
        " --encoder {params.encoder:q} --out {output.table:q}"
        " --stamp {output.stamp:q} 2> {log:q}"
