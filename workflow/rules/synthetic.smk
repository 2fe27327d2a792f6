"""The demo cohort: draw its slides from the committed manifest, with one rule per bucket.

in:  nothing but the rows of the manifest
out: {root}/slides/{slide}.svs          pyramidal SVS
     {root}/masks/{slide}.png           the slide's planted signal
     {root}/patches/{kind}/labels.csv   labelled patches to pre-train on: he, ihc, natural
"""

if CONFIG.cohort.synthetic:

    # No wildcard pattern can express which slides belong to a bucket, so each has its own rule.
    for bucket, rows in PLAN.by_bucket.items():

        rule:
            name:
                f"draw_slides_{bucket.replace('-', '_')}"
            output:
                slides=[f"{ROOT}/slides/{row.slide_id}.svs" for row in rows],
                masks=[f"{ROOT}/masks/{row.slide_id}.png" for row in rows],
            log:
                f"{RESULTS}/logs/draw_slides/{bucket}.log",
            benchmark:
                f"{RESULTS}/benchmarks/draw_slides/{bucket}.tsv"
            conda:
                "../../envs/her2.yaml"
            threads: 1
            resources:
                mem_mb=growing(1500),
                runtime=growing(30),
            params:
                spec=PLAN.synthetic_specs[bucket],
                root=untracked(ROOT),
            shell:
                "python -m her2 synthetic slides --spec {params.spec:q} --root {params.root:q}"
                " 2> {log:q}"

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
