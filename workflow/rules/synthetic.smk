"""The demo cohort: draw its slides from the committed manifest, with one rule per bucket.

in:  nothing but the rows of the manifest
out: {root}/slides/{slide}.svs          pyramidal SVS
     {root}/masks/{slide}.png           the slide's planted signal
     {root}/patches/{kind}/labels.csv   labelled patches to pre-train on: he, ihc, natural
"""

if CONFIG.cohort.synthetic:

    # No wildcard pattern can express which slides belong to a bucket, so each has its own rule.
    for own, bucket, rows in [
        (own, *item) for own in PLAN.cohorts for item in own.by_bucket.items()
    ]:

        rule:
            name:
                re.sub(r"\W", "_", f"draw_slides_{own.part}{bucket}")
            input:
                outdated=FILES.outdated("draw_slides", cohort=own.part, bucket=bucket),
            output:
                slides=[f"{own.cohort.root}/slides/{row.slide_id}.svs" for row in rows],
                masks=[f"{own.cohort.root}/masks/{row.slide_id}.png" for row in rows],
                stamp=FILES.stamp("draw_slides", cohort=own.part, bucket=bucket),
            log:
                f"{RESULTS}/logs/{own.part}draw_slides/{bucket}.log",
            benchmark:
                f"{RESULTS}/benchmarks/{own.part}draw_slides/{bucket}.tsv"
            conda:
                "../../envs/her2.yaml"
            threads: 1
            resources:
                mem_mb=growing(1500),
                runtime=growing(30),
            params:
                spec=FILES.spec("draw_slides", cohort=own.part, bucket=bucket),
                root=untracked(own.cohort.root),
            shell:
                "python -m her2 synthetic slides --spec {params.spec:q} --root {params.root:q}"
                " --stamp {output.stamp:q} 2> {log:q}"

    rule draw_patches:
        input:
            outdated=FILES.outdated("draw_patches"),
        output:
            table=f"{ROOT}/patches/{{kind}}/labels.csv",
            stamp=FILES.stamp("draw_patches"),
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
            spec=FILES.spec("draw_patches"),
        shell:
            "python -m her2 synthetic patches --spec {params.spec:q} --out {output.table:q}"
            " --stamp {output.stamp:q} 2> {log:q}"
