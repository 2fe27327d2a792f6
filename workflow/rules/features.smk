"""Stage 1, features computed elsewhere: take them in, in place of tiling and embedding.

in:  feature files of another program (no inputs, as users' files are none), and slides where there are any
out: encoders/{encoder}/card.json             what the features are, as the user and the files say
     tiles/given-{encoder}/{bucket}.json      slide -> key, tiles, um/px, status, reason
     features/{encoder}/{bucket}.json         slide -> key, tiles, status, reason
"""


rule describe_features:
    input:
        outdated=FILES.outdated("describe_features"),
    output:
        card=f"{RESULTS}/encoders/{{encoder}}/card.json",
        stamp=FILES.stamp("describe_features"),
    log:
        f"{RESULTS}/logs/describe_features/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/describe_features/{{encoder}}.tsv"
    wildcard_constraints:
        encoder=one_of(CONFIG.given),
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        spec=FILES.spec("describe_features"),
        slides=SLIDES,
        folders=FILES.given_folders,
        out=FILES.folder("encoders/{encoder}"),
    shell:
        "python -m her2 describe --spec {params.spec:q} {params.slides:q}"
        " --folders {params.folders:q} --out {params.out:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule take_features:
    input:
        FILES.files_of_cohort(lambda own, wildcards: own.drawn(own.tile_files(wildcards.bucket))),
        card=f"{RESULTS}/encoders/{{encoder}}/card.json",
        outdated=FILES.outdated("take_features"),
    output:
        tiles=f"{RESULTS}/{{cohort}}tiles/given-{{encoder}}/{{bucket}}.json",
        entries=f"{RESULTS}/{{cohort}}features/{{encoder}}/{{bucket}}.json",
        stamp=FILES.stamp("take_features"),
    log:
        f"{RESULTS}/logs/{{cohort}}take_features/{{encoder}}/{{bucket}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}take_features/{{encoder}}/{{bucket}}.tsv"
    wildcard_constraints:
        encoder=one_of(CONFIG.given),
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        spec=FILES.spec("take_features"),
        slides=SLIDES,
        cache=CACHE,
        folders=FILES.given_folders,
        encoder=FILES.folder("encoders/{encoder}"),
    shell:
        "python -m her2 take --spec {params.spec:q} {params.slides:q} --cache {params.cache:q}"
        " --folders {params.folders:q} --encoder {params.encoder:q} --tiles {output.tiles:q}"
        " --out {output.entries:q}"
        " --stamp {output.stamp:q} 2> {log:q}"
