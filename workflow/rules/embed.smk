"""Stage 1, embed: every tile through a frozen encoder, once.

in:  the tile manifest of a bucket (and the slides it names), the encoder's card
out: features/{encoder}/{bucket}.json   slide -> key, tiles, failed tiles, status, reason
"""


rule embed_bucket:
    input:
        # Not the slides: another file of a slide has another key in the tile manifest.
        tiles=lambda wildcards: FILES.tile_manifest(wildcards.encoder, wildcards.bucket),
        card=f"{RESULTS}/encoders/{{encoder}}/card.json",
        # The card holds the weights' digest: it decides, not the time of a large file.
        weights=ancient(f"{RESULTS}/encoders/{{encoder}}/weights.safetensors"),
    output:
        f"{RESULTS}/features/{{encoder}}/{{bucket}}.json",
    log:
        f"{RESULTS}/logs/embed_bucket/{{encoder}}/{{bucket}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/embed_bucket/{{encoder}}/{{bucket}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 8
    resources:
        mem_mb=growing(8000),
        runtime=growing(120),
        # Asked of a cluster; on one machine it counts when capped: `--resources gpu=1`.
        gpu=1,
    params:
        spec=lambda wildcards: PLAN.embed_spec(wildcards.bucket),
        slides=SLIDES,
        cache=CACHE,
        encoder=FILES.folder("encoders/{encoder}"),
        batch_size=untracked(CONFIG.embedding.batch_size),
        compiling=untracked(CONFIG.embedding.compile),
        scratch=option("--scratch", CONFIG.embedding.scratch),
    shell:
        "python -m her2 embed --spec {params.spec:q} {params.slides:q}"
        " --cache {params.cache:q} --tiles {input.tiles:q} --encoder {params.encoder:q}"
        " --batch-size {params.batch_size} --compile {params.compiling} --threads {threads} {params.scratch:q}"
        " --out {output:q} 2> {log:q}"
