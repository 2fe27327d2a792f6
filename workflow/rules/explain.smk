"""Stage 2, explanation of each task, encoder and head: draw the models' attention.

in:  the folds, the entries of the trained folds and of the features, the slides themselves, and
     ground truths, if any
out: heatmaps/{task}/{encoder}/{head}/heatmaps.json   one row per drawn slide, and the files it lists:
       slides/   picture, and the tiles as Parquet, GeoJSON and OME-TIFF (docs/explanation.md)
       strips/   most and least attended tiles of a drawn slide
     heatmaps/{task}/{encoder}/{head}/tiles.json      the same for all held-out slides of a score:
       scores/   one picture per score
"""


rule draw_heatmaps:
    input:
        folds=f"{RESULTS}/folds/{{task}}.parquet",
        models=expand(
            f"{RESULTS}/models/{{{{task}}}}/{{{{encoder}}}}/{{{{head}}}}/{{chunk}}.json",
            chunk=PLAN.first_chunks,
        ),
        features=expand(f"{RESULTS}/features/{{{{encoder}}}}/{{bucket}}.json", bucket=PLAN.buckets),
        truths=lambda wildcards: PLAN.drawn(PLAN.truth_files),
        outdated=FILES.outdated("draw_heatmaps"),
    output:
        table=f"{RESULTS}/heatmaps/{{task}}/{{encoder}}/{{head}}/heatmaps.json",
        tiles=f"{RESULTS}/heatmaps/{{task}}/{{encoder}}/{{head}}/tiles.json",
        slides=FILES.model_pictures("slides"),
        strips=FILES.model_pictures("strips"),
        scores=FILES.model_pictures("scores"),
        stamp=FILES.stamp("draw_heatmaps"),
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
        spec=FILES.spec("draw_heatmaps"),
        slides=SLIDES,
        models=FILES.folder("models/{task}/{encoder}/{head}"),
        features=FILES.folder("features/{encoder}"),
        cache=CACHE,
        masks=option("--masks", CONFIG.cohort.masks),
    shell:
        "python -m her2 heatmap --spec {params.spec:q} {params.slides:q}"
        " --folds {input.folds:q} --models {params.models:q}"
        " --features {params.features:q} --cache {params.cache:q} {params.masks:q}"
        " --out {output.table:q}"
        " --stamp {output.stamp:q} 2> {log:q}"
