"""Stage 2, controls of each task, encoder and head: test other explanations of the results.

in:  its predictions, the folds, the table of the cohort
out: controls/{task}/{encoder}/{head}/covariates.parquet, and the tables of shuffled labels, of
     subgroups and within sites (docs/controls.md), each also as CSV
"""


rule control:
    input:
        predictions=f"{RESULTS}/evaluation/{{task}}/{{encoder}}/{{head}}/predictions.parquet",
        folds=f"{RESULTS}/folds/{{task}}.parquet",
        cohort=f"{RESULTS}/cohort/slides.parquet",
        outdated=FILES.outdated("control"),
    output:
        f"{RESULTS}/controls/{{task}}/{{encoder}}/{{head}}/covariates.parquet",
        covariates=FILES.model_table("controls", "covariates"),
        inputs=FILES.model_table("controls", "inputs"),
        shuffled=FILES.model_table("controls", "shuffled"),
        subgroups=FILES.model_table("controls", "subgroups"),
        interactions=FILES.model_table("controls", "interactions"),
        within=FILES.model_table("controls", "within"),
        stamp=FILES.stamp("control"),
    log:
        f"{RESULTS}/logs/control/{{task}}/{{encoder}}/{{head}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/control/{{task}}/{{encoder}}/{{head}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        spec=FILES.spec("control"),
        out=FILES.folder("controls/{task}/{encoder}/{head}"),
    shell:
        "python -m her2 control --spec {params.spec:q} --predictions {input.predictions:q}"
        " --folds {input.folds:q} --cohort {input.cohort:q} --out {params.out:q}"
        " --stamp {output.stamp:q} 2> {log:q}"
