"""Stage 1, embed: compute the features of every tile of every cohort with a frozen encoder, once.

in:  the tile entries of a bucket (and the slides they name), the encoder's card
out: features/{encoder}/{bucket}.json   slide -> key, tiles, failed tiles, status, reason
"""


rule embed_bucket:
    input:
        # Slides are not listed: a changed slide has another key in the tile entries.
        tiles=FILES.tile_entries,
        card=f"{RESULTS}/encoders/{{encoder}}/card.json",
        # The card holds the digest of the weights, which decides instead of the file's time.
        weights=ancient(f"{RESULTS}/encoders/{{encoder}}/weights.safetensors"),
        outdated=FILES.outdated("embed_bucket"),
    output:
        entries=f"{RESULTS}/{{cohort}}features/{{encoder}}/{{bucket}}.json",
        stamp=FILES.stamp("embed_bucket"),
    log:
        f"{RESULTS}/logs/{{cohort}}embed_bucket/{{encoder}}/{{bucket}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}embed_bucket/{{encoder}}/{{bucket}}.tsv"
    wildcard_constraints:
        encoder=one_of(n for n in CONFIG.encoders if n not in CONFIG.given),
    conda:
        "../../envs/her2.yaml"
    threads: 8
    resources:
        mem_mb=growing(8000),
        runtime=growing(120),
        # Requested from a cluster; on one machine it only counts with `--resources gpu=1`.
        gpu=1,
    params:
        spec=FILES.spec("embed_bucket"),
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
        " --out {output.entries:q}"
        " --stamp {output.stamp:q} 2> {log:q}"
