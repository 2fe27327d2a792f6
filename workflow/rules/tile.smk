"""Stage 1, tile: find the tissue tiles on each grid that an encoder asks for.

in:  the slides of a bucket, their annotations and tissue masks where they have any
out: tiles/{grid}/{bucket}.json   slide -> key, tiles, um/px, status, reason
     cohort/audited.parquet    the slides; stops on duplicates and mass failure
     cohort/slides.parquet, .csv  one row per slide and grid, for people and the report
"""


rule tile_bucket:
    input:
        # A newer mtime triggers the job, which finds unchanged contents quickly.
        files=lambda wildcards: PLAN.tile_files(wildcards.bucket),
    output:
        f"{RESULTS}/tiles/{{grid}}/{{bucket}}.json",
    log:
        f"{RESULTS}/logs/tile_bucket/{{grid}}/{{bucket}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tile_bucket/{{grid}}/{{bucket}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 2
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        spec=lambda wildcards: PLAN.tile_spec(wildcards.grid, wildcards.bucket),
        slides=SLIDES,
        cache=CACHE,
        masks=option("--tissue-masks", CONFIG.cohort.tissue_masks),
    shell:
        "python -m her2 tile --spec {params.spec:q} {params.slides:q} {params.masks:q}"
        " --cache {params.cache:q} --threads {threads} --out {output:q} 2> {log:q}"


rule audit_cohort:
    input:
        expand(
            f"{RESULTS}/tiles/{{grid}}/{{bucket}}.json",
            grid=CONFIG.grids,
            bucket=PLAN.buckets,
        ),
    output:
        f"{RESULTS}/cohort/audited.parquet",
    log:
        f"{RESULTS}/logs/audit_cohort.log",
    benchmark:
        f"{RESULTS}/benchmarks/audit_cohort.tsv"
    # Before embedding goes on, since it and the folds find what would stop the run after it.
    priority: 20
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        spec=lambda wildcards: PLAN.audit_spec(),
        slides=SLIDES,
        tiles=FILES.folder("tiles"),
    shell:
        "python -m her2 audit --spec {params.spec:q} {params.slides:q}"
        " --tiles {params.tiles:q} --out {output:q} 2> {log:q}"


rule tabulate_cohort:
    input:
        expand(
            f"{RESULTS}/tiles/{{grid}}/{{bucket}}.json",
            grid=CONFIG.grids,
            bucket=PLAN.buckets,
        ),
    output:
        table=f"{RESULTS}/cohort/slides.parquet",
        csv=report(
            f"{RESULTS}/cohort/slides.csv",
            caption="../report/slides_table.rst",
            category="Cohort",
            labels={"table": "slides"},
        ),
    log:
        f"{RESULTS}/logs/tabulate_cohort.log",
    benchmark:
        f"{RESULTS}/benchmarks/tabulate_cohort.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        spec=lambda wildcards: PLAN.cohort_spec(),
        slides=SLIDES,
        tiles=FILES.folder("tiles"),
        out=FILES.folder("cohort"),
    shell:
        "python -m her2 tabulate --spec {params.spec:q} {params.slides:q}"
        " --tiles {params.tiles:q} --out {params.out:q} 2> {log:q}"
