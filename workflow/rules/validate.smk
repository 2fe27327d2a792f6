"""Stage 2, validation: the models of the development cohort on each external cohort.

in:  the tiles and features of an external cohort, made by the rules of stage 1; the trained folds and
     their evaluation. No job of the development cohort depends on anything here.
out: below validation/{cohort}/, for each task, encoder and head:
       cohort/apart.json, features/{encoder}/similar.parquet   nothing is in both cohorts
       predictions/{task}/{encoder}/{head}/predictions.parquet  by the frozen models
       evaluation/{task}/{encoder}/{head}/metrics.parquet       figures, and internal beside external
       heatmaps/, attention/                                    as those of the development cohort
       evaluation/comparison.parquet, case_mix.parquet          all models, and both cohorts
     models/{task}/{encoder}/{head}/refit.json   a model of all patients, if asked for
A task of an external cohort is a key of `validation.NAME.tasks`, but that of predictions/.
"""


rule check_apart:
    input:
        cohort=f"{RESULTS}/{{cohort}}cohort/audited.parquet",
        development=f"{RESULTS}/cohort/audited.parquet",
        outdated=FILES.outdated("check_apart"),
    output:
        table=f"{RESULTS}/{{cohort}}cohort/apart.json",
        stamp=FILES.stamp("check_apart"),
    log:
        f"{RESULTS}/logs/{{cohort}}check_apart.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}check_apart.tsv"
    wildcard_constraints:
        cohort=EXTERNAL,
    # Stops the run if a patient is in both cohorts, while embedding has only begun.
    priority: 20
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        spec=FILES.spec("check_apart"),
    shell:
        "python -m her2 apart --spec {params.spec:q} --cohort {input.cohort:q}"
        " --development {input.development:q} --out {output.table:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule find_similar_across:
    input:
        cohort=f"{RESULTS}/{{cohort}}cohort/audited.parquet",
        development=f"{RESULTS}/cohort/audited.parquet",
        features=FILES.each_bucket("features/{encoder}/{bucket}.json"),
        development_features=expand(
            f"{RESULTS}/features/{{{{encoder}}}}/{{bucket}}.json", bucket=PLAN.buckets
        ),
        outdated=FILES.outdated("find_similar_across"),
    output:
        pairs=f"{RESULTS}/{{cohort}}features/{{encoder}}/similar.parquet",
        stamp=FILES.stamp("find_similar_across"),
    log:
        f"{RESULTS}/logs/{{cohort}}find_similar_across/{{encoder}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}find_similar_across/{{encoder}}.tsv"
    wildcard_constraints:
        cohort=EXTERNAL,
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        spec=FILES.spec("find_similar_across"),
        features=FILES.folder("{cohort}features/{encoder}"),
        development_features=FILES.folder("features/{encoder}"),
        cache=CACHE,
    shell:
        "python -m her2 similar-across --spec {params.spec:q} --cohort {input.cohort:q}"
        " --development-cohort {input.development:q} --cache {params.cache:q}"
        " --features {params.features:q} --development-features {params.development_features:q}"
        " --out {output.pairs:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule refit_model:
    input:
        folds=f"{RESULTS}/folds/{{task}}.parquet",
        models=expand(
            f"{RESULTS}/models/{{{{task}}}}/{{{{encoder}}}}/{{{{head}}}}/{{chunk}}.json",
            chunk=PLAN.chunks,
        ),
        features=expand(f"{RESULTS}/features/{{{{encoder}}}}/{{bucket}}.json", bucket=PLAN.buckets),
        outdated=FILES.outdated("refit_model"),
    output:
        entries=f"{RESULTS}/models/{{task}}/{{encoder}}/{{head}}/refit.json",
        stamp=FILES.stamp("refit_model"),
    log:
        f"{RESULTS}/logs/refit_model/{{task}}/{{encoder}}/{{head}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/refit_model/{{task}}/{{encoder}}/{{head}}.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        spec=FILES.spec("refit_model"),
        models=FILES.folder("models/{task}/{encoder}/{head}"),
        features=FILES.folder("features/{encoder}"),
        cache=CACHE,
    shell:
        "python -m her2 refit --spec {params.spec:q} --folds {input.folds:q}"
        " --models {params.models:q} --features {params.features:q} --cache {params.cache:q}"
        " --threads {threads} --out {output.entries:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule apply_models:
    input:
        models=expand(
            f"{RESULTS}/models/{{{{task}}}}/{{{{encoder}}}}/{{{{head}}}}/{{chunk}}.json",
            chunk=PLAN.chunks,
        ),
        refit=FILES.refit,
        evaluation=f"{RESULTS}/evaluation/{{task}}/{{encoder}}/{{head}}/predictions.parquet",
        folds=f"{RESULTS}/folds/{{task}}.parquet",
        features=FILES.each_bucket("features/{encoder}/{bucket}.json"),
        development=expand(
            f"{RESULTS}/features/{{{{encoder}}}}/{{bucket}}.json", bucket=PLAN.buckets
        ),
        # Not read, but a patient, slide or tissue that is in both cohorts stops the run here.
        apart=f"{RESULTS}/{{cohort}}cohort/apart.json",
        similar=f"{RESULTS}/{{cohort}}features/{{encoder}}/similar.parquet",
        overlap=f"{RESULTS}/{{cohort}}encoders/{{encoder}}/overlap.json",
        outdated=FILES.outdated("apply_models"),
    output:
        predictions=f"{RESULTS}/{{cohort}}predictions/{{task}}/{{encoder}}/{{head}}/predictions.parquet",
        each=f"{RESULTS}/{{cohort}}predictions/{{task}}/{{encoder}}/{{head}}/each.parquet",
        attention=f"{RESULTS}/{{cohort}}predictions/{{task}}/{{encoder}}/{{head}}/attention.parquet",
        stamp=FILES.stamp("apply_models"),
    log:
        f"{RESULTS}/logs/{{cohort}}apply_models/{{task}}/{{encoder}}/{{head}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}apply_models/{{task}}/{{encoder}}/{{head}}.tsv"
    wildcard_constraints:
        cohort=EXTERNAL,
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        spec=FILES.spec("apply_models"),
        models=FILES.folder("models/{task}/{encoder}/{head}"),
        evaluation=FILES.folder("evaluation/{task}/{encoder}/{head}"),
        features=FILES.folder("{cohort}features/{encoder}"),
        development=FILES.folder("features/{encoder}"),
        cache=CACHE,
        out=FILES.folder("{cohort}predictions/{task}/{encoder}/{head}"),
    shell:
        "python -m her2 apply --spec {params.spec:q} --models {params.models:q}"
        " --evaluation {params.evaluation:q} --folds {input.folds:q} --features {params.features:q}"
        " --development {params.development:q} --cache {params.cache:q} --threads {threads}"
        " --out {params.out:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule validate:
    input:
        predictions=FILES.of_truth("{cohort}predictions/{of}/{encoder}/{head}/predictions.parquet"),
        each=FILES.of_truth("{cohort}predictions/{of}/{encoder}/{head}/each.parquet"),
        cohort=f"{RESULTS}/{{cohort}}cohort/slides.parquet",
        development=FILES.of_truth("evaluation/{of}/{encoder}/{head}/predictions.parquet"),
        temperatures=FILES.of_truth("evaluation/{of}/{encoder}/{head}/temperatures.csv"),
        folds=FILES.of_truth("folds/{of}.parquet"),
        development_cohort=f"{RESULTS}/cohort/slides.parquet",
        outdated=FILES.outdated("validate"),
    output:
        predictions=f"{RESULTS}/{{cohort}}evaluation/{{task}}/{{encoder}}/{{head}}/predictions.parquet",
        metrics=FILES.external_table("metrics"),
        internal=FILES.external_table("internal"),
        sites=FILES.external_table("sites"),
        confusion=FILES.external_table("confusion"),
        binary=FILES.external_table("binary"),
        calibration=FILES.external_table("calibration"),
        reliability=FILES.external_table("reliability"),
        operating=FILES.external_table("operating"),
        decision=FILES.external_table("decision"),
        covariates=FILES.external_table("covariates"),
        stamp=FILES.stamp("validate"),
    log:
        f"{RESULTS}/logs/{{cohort}}validate/{{task}}/{{encoder}}/{{head}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}validate/{{task}}/{{encoder}}/{{head}}.tsv"
    wildcard_constraints:
        cohort=EXTERNAL,
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        spec=FILES.spec("validate"),
        development=lambda wildcards, input: str(Path(input.development).parent),
        out=FILES.folder("{cohort}evaluation/{task}/{encoder}/{head}"),
    shell:
        "python -m her2 validate --spec {params.spec:q} --predictions {input.predictions:q}"
        " --each {input.each:q} --cohort {input.cohort:q} --development {params.development:q} --folds {input.folds:q}"
        " --development-cohort {input.development_cohort:q} --out {params.out:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule compare_external:
    input:
        FILES.each_truth("evaluation/{task}/{encoder}/{head}/predictions.parquet"),
        cohort=f"{RESULTS}/{{cohort}}cohort/slides.parquet",
        development_cohort=f"{RESULTS}/cohort/slides.parquet",
        folds=expand(f"{RESULTS}/folds/{{task}}.parquet", task=CONFIG.tasks),
        outdated=FILES.outdated("compare_external"),
    output:
        f"{RESULTS}/{{cohort}}evaluation/comparison.parquet",
        f"{RESULTS}/{{cohort}}evaluation/case_mix.parquet",
        comparison=FILES.external_run_table("comparison"),
        case_mix=FILES.external_run_table("case_mix"),
        stamp=FILES.stamp("compare_external"),
    log:
        f"{RESULTS}/logs/{{cohort}}compare_external.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}compare_external.tsv"
    wildcard_constraints:
        cohort=EXTERNAL,
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        spec=FILES.spec("compare_external"),
        evaluation=FILES.folder("{cohort}evaluation"),
        folds=FILES.folder("folds"),
    shell:
        "python -m her2 external --spec {params.spec:q} --evaluation {params.evaluation:q}"
        " --cohort {input.cohort:q} --development-cohort {input.development_cohort:q}"
        " --folds {params.folds:q} --out {params.evaluation:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule draw_external_heatmaps:
    input:
        predictions=FILES.of_truth("{cohort}predictions/{of}/{encoder}/{head}/predictions.parquet"),
        cohort=f"{RESULTS}/{{cohort}}cohort/slides.parquet",
        features=FILES.each_bucket("features/{encoder}/{bucket}.json"),
        truths=FILES.files_of_cohort(lambda own, wildcards: own.drawn(own.truth_files)),
        outdated=FILES.outdated("draw_external_heatmaps"),
    output:
        table=f"{RESULTS}/{{cohort}}heatmaps/{{task}}/{{encoder}}/{{head}}/heatmaps.json",
        tiles=f"{RESULTS}/{{cohort}}heatmaps/{{task}}/{{encoder}}/{{head}}/tiles.json",
        slides=FILES.external_pictures("slides"),
        strips=FILES.external_pictures("strips"),
        scores=FILES.external_pictures("scores"),
        stamp=FILES.stamp("draw_external_heatmaps"),
    log:
        f"{RESULTS}/logs/{{cohort}}draw_external_heatmaps/{{task}}/{{encoder}}/{{head}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}draw_external_heatmaps/{{task}}/{{encoder}}/{{head}}.tsv"
    wildcard_constraints:
        cohort=EXTERNAL,
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        spec=FILES.spec("draw_external_heatmaps"),
        manifest=SLIDES,
        predictions=lambda wildcards, input: str(Path(input.predictions).parent),
        features=FILES.folder("{cohort}features/{encoder}"),
        cache=CACHE,
        masks=FILES.cohort_option("--masks", lambda own: own.config.cohort.masks),
    shell:
        "python -m her2 external-heatmap --spec {params.spec:q} {params.manifest:q}"
        " --predictions {params.predictions:q} --table {input.cohort:q}"
        " --features {params.features:q} --cache {params.cache:q} {params.masks:q}"
        " --out {output.table:q}"
        " --stamp {output.stamp:q} 2> {log:q}"


rule measure_external_attention:
    input:
        predictions=FILES.of_truth("{cohort}predictions/{of}/{encoder}/{head}/predictions.parquet"),
        evaluation=FILES.of_truth("evaluation/{of}/{encoder}/{head}/predictions.parquet"),
        refit=FILES.refit_of_truth,
        models=FILES.chunks_of_truth("models/{of}/{encoder}/{head}/{chunk}.json"),
        cohort=f"{RESULTS}/{{cohort}}cohort/slides.parquet",
        features=FILES.each_bucket("features/{encoder}/{bucket}.json"),
        truths=FILES.files_of_cohort(lambda own, wildcards: own.drawn(own.truth_files)),
        outdated=FILES.outdated("measure_external_attention"),
    output:
        f"{RESULTS}/{{cohort}}attention/{{task}}/{{encoder}}/{{head}}/agreement.parquet",
        stamp=FILES.stamp("measure_external_attention"),
    log:
        f"{RESULTS}/logs/{{cohort}}measure_external_attention/{{task}}/{{encoder}}/{{head}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/{{cohort}}measure_external_attention/{{task}}/{{encoder}}/{{head}}.tsv"
    wildcard_constraints:
        cohort=EXTERNAL,
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        spec=FILES.spec("measure_external_attention"),
        predictions=lambda wildcards, input: str(Path(input.predictions).parent),
        evaluation=FILES.truth_folder("evaluation/{of}/{encoder}/{head}"),
        models=FILES.truth_folder("models/{of}/{encoder}/{head}"),
        features=FILES.folder("{cohort}features/{encoder}"),
        cache=CACHE,
        masks=FILES.cohort_option("--masks", lambda own: own.config.cohort.masks),
        out=FILES.folder("{cohort}attention/{task}/{encoder}/{head}"),
    shell:
        "python -m her2 external-attention --spec {params.spec:q}"
        " --predictions {params.predictions:q} --table {input.cohort:q}"
        " --evaluation {params.evaluation:q} --models {params.models:q}"
        " --features {params.features:q} --cache {params.cache:q} {params.masks:q}"
        " --threads {threads} --out {params.out:q}"
        " --stamp {output.stamp:q} 2> {log:q}"
