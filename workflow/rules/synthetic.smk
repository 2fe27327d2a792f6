"""The demo cohort: one drawn slide a rule, from the committed manifest.

in:  nothing but the row of the manifest
out: {root}/slides/{slide}.svs   pyramidal SVS, and {root}/masks/{slide}.png, its planted signal
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
            mem_mb=1500,
            runtime=5,
        params:
            spec=lambda wildcards: PLAN.synthetic_spec(wildcards.slide),
        shell:
            "python -m her2 synthetic slide --spec {params.spec:q}"
            " --slide {output.slide:q} --mask {output.mask:q} 2> {log:q}"
