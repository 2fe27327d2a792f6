"""The demo cohort: one drawn slide a rule, from the committed manifest.

in:  nothing but the row of the manifest
out: {root}/slides/{slide}.svs          pyramidal SVS
     {root}/masks/{slide}.png           its planted signal
     {root}/patches/{kind}/labels.csv   labelled patches to pre-train on: he, ihc, natural
"""

if CONFIG.cohort.synthetic:

    rule draw_slide:
        output:
            slide=f"{ROOT}/slides/{{slide}}.svs",
            mask=f"{ROOT}/masks/{{slide}}.png",
        log:
            f"{RESULTS}/logs/draw_slide/{{slide}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/draw_slide/{{slide}}.tsv"
        conda:
            "../../envs/her2.yaml"
        threads: 1
        resources:
            mem_mb=growing(1500),
            runtime=growing(5),
        params:
            spec=lambda wildcards: PLAN.synthetic_spec(wildcards.slide),
        shell:
            "python -m her2 synthetic slide --spec {params.spec:q}"
            " --slide {output.slide:q} --mask {output.mask:q} 2> {log:q}"

    rule draw_patches:
        output:
            f"{ROOT}/patches/{{kind}}/labels.csv",
        log:
            f"{RESULTS}/logs/draw_patches/{{kind}}.log",
        benchmark:
            f"{RESULTS}/benchmarks/draw_patches/{{kind}}.tsv"
        wildcard_constraints:
            kind="he|ihc|natural",
        conda:
            "../../envs/her2.yaml"
        threads: 1
        resources:
            mem_mb=growing(1500),
            runtime=growing(10),
        params:
            spec=lambda wildcards: PLAN.patches_spec(wildcards.kind),
        shell:
            "python -m her2 synthetic patches --spec {params.spec:q} --out {output:q} 2> {log:q}"
