"""Stage 1, encode and embed: weights into one folder, then every tile through them, once.

in:  the slides of a bucket, its tile manifest, the encoder's card
out: encoders/{encoder}/card.json, weights.safetensors
     features/{encoder}/{bucket}.json   slide -> key, tiles, failed tiles, status, reason
"""


# The only rule that may need a network; it runs where Snakemake does.
localrules:
    materialise_encoder,


rule materialise_encoder:
    output:
        card=f"{RESULTS}/encoders/{{encoder}}/card.json",
        weights=f"{RESULTS}/encoders/{{encoder}}/weights.safetensors",
    log:
        f"{RESULTS}/logs/materialise_encoder/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/materialise_encoder/{{encoder}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=8000,
        runtime=60,
    params:
        spec=lambda wildcards: PLAN.encoder_spec(wildcards.encoder),
    shell:
        "python -m her2 encoder --spec {params.spec:q} --out {RESULTS:q}/encoders/{wildcards.encoder} 2> {log:q}"


rule embed_bucket:
    input:
        slides=lambda wildcards: slide_files(wildcards.bucket),
        tiles=lambda wildcards: (
            f"{RESULTS}/tiles/{CONFIG.encoders[wildcards.encoder].grid}"
            f"/{wildcards.bucket}.json"
        ),
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
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=lambda wildcards, attempt: 120 * attempt,
    params:
        spec=lambda wildcards: PLAN.embed_spec(wildcards.bucket),
    shell:
        "python -m her2 embed --spec {params.spec:q} --slides {SLIDES:q} --root {ROOT:q}"
        " --cache {CACHE:q} --tiles {input.tiles:q} --encoder {RESULTS:q}/encoders/{wildcards.encoder}"
        " --batch-size {CONFIG.embedding.batch_size} --threads {threads}"
        " --out {output:q} 2> {log:q}"
