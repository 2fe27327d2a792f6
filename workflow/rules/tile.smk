"""Stage 1, tile: find the tissue tiles of every cohort on each grid that an encoder asks for.

in:  the slides of a bucket, their annotations and tissue masks where they have any; the weights of
     the segmenters that the config names
out: segmenters/{segmenter}/card.json, weights.safetensors
     tiles/{grid}/{bucket}.json   slide -> key, tiles, um/px, status, reason
     cohort/audited.parquet    the slides; stops on duplicates and mass failure
     cohort/slides.parquet, .csv  one row per slide and grid, for people and the report
"""


rule fetch_segmenter:
    input:
        outdated=FILES.outdated("fetch_segmenter"),
    output:
        card=f"{RESULTS}/segmenters/{{segmenter}}/card.json",
        weights=f"{RESULTS}/segmenters/{{segmenter}}/weights.safetensors",
        stamp=FILES.stamp("fetch_segmenter"),
    log:
        f"{RESULTS}/logs/fetch_segmenter/{{segmenter}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/fetch_segmenter/{{segmenter}}.tsv"
    wildcard_constraints:
        segmenter=one_of(PLAN.segmenters),
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        spec=FILES.spec("fetch_segmenter"),
        out=FILES.folder("segmenters/{segmenter}"),
    shell:
        "python -m her2 segmenter --spec {params.spec:q} --out {params.out:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule tile_bucket:
    input:
        FILES.files_of_cohort(lambda own, wildcards: own.drawn(own.tile_files(wildcards.bucket))),
        segmenter=[f"{RESULTS}/segmenters/{name}/card.json" for name in PLAN.segmenters],
        outdated=FILES.outdated("tile_bucket"),
    output:
        entries=f"{RESULTS}/{{cohort}}tiles/{{grid}}/{{bucket}}.json",
        stamp=FILES.stamp("tile_bucket"),
    log:
        f"{RESULTS}/logs/{{cohort}}tile_bucket/{{grid}}/{{bucket}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}tile_bucket/{{grid}}/{{bucket}}.tsv"
    wildcard_constraints:
        grid=one_of(CONFIG.grids),
    conda:
        "../../envs/her2.yaml"
    threads: 2
    resources:
        mem_mb=growing(12000 if PLAN.segmenters else 4000),
        runtime=growing(480 if PLAN.segmenters else 60),
        # Of use to segmenters alone; it only counts as in embed.smk.
        gpu=1 if PLAN.segmenters else 0,
    params:
        spec=FILES.spec("tile_bucket"),
        slides=SLIDES,
        cache=CACHE,
        masks=FILES.cohort_option("--tissue-masks", lambda own: own.config.cohort.tissue_masks),
        segmenters=untracked(
            [
                word
                for name, one in PLAN.segmenters.items()
                for word in (one.flag, f"{RESULTS}/segmenters/{name}")
            ]
        ),
    shell:
        "python -m her2 tile --spec {params.spec:q} {params.slides:q} {params.masks:q}"
        " {params.segmenters:q}"
        " --cache {params.cache:q} --threads {threads} --out {output.entries:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule audit_cohort:
    input:
        FILES.each_bucket("tiles/{grid}/{bucket}.json"),
        outdated=FILES.outdated("audit_cohort"),
    output:
        table=f"{RESULTS}/{{cohort}}cohort/audited.parquet",
        stamp=FILES.stamp("audit_cohort"),
    log:
        f"{RESULTS}/logs/{{cohort}}audit_cohort.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}audit_cohort.tsv"
    # Before embedding goes on, since it and the folds find what would stop the run after it.
    priority: 20
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        spec=FILES.spec("audit_cohort"),
        slides=SLIDES,
        tiles=FILES.folder("{cohort}tiles"),
    shell:
        "python -m her2 audit --spec {params.spec:q} {params.slides:q}"
        " --tiles {params.tiles:q} --out {output.table:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule tabulate_cohort:
    input:
        FILES.each_bucket("tiles/{grid}/{bucket}.json"),
        outdated=FILES.outdated("tabulate_cohort"),
    output:
        table=f"{RESULTS}/{{cohort}}cohort/slides.parquet",
        csv=report(
            f"{RESULTS}/{{cohort}}cohort/slides.csv",
            caption="../report/slides_table.rst",
            category="Cohort",
            labels={"table": "slides"},
        ),
        stamp=FILES.stamp("tabulate_cohort"),
    log:
        f"{RESULTS}/logs/{{cohort}}tabulate_cohort.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}tabulate_cohort.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        spec=FILES.spec("tabulate_cohort"),
        slides=SLIDES,
        tiles=FILES.folder("{cohort}tiles"),
        out=FILES.folder("{cohort}cohort"),
    shell:
        "python -m her2 tabulate --spec {params.spec:q} {params.slides:q}"
        " --tiles {params.tiles:q} --out {params.out:q}"
        " --stamp {output.stamp:q} 2> {log:q}"
