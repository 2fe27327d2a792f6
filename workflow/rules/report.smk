"""The report: build one self-contained HTML page, and every table beside it.

in:  the tables of all stages
out: report/report.html, methods.txt, checklist.csv, tables/*.csv, figures/*.svg and *.pdf
"""


rule build_report:
    input:
        cohort=f"{RESULTS}/cohort/slides.parquet",
        evaluation=FILES.each_model(
            f"{RESULTS}/evaluation/{{task}}/{{encoder}}/{{head}}/predictions.parquet"
        ),
        overlap=expand(f"{RESULTS}/encoders/{{encoder}}/overlap.json", encoder=CONFIG.encoders),
        comparison=f"{RESULTS}/evaluation/comparison.parquet",
        robustness=f"{RESULTS}/robustness/encoders.parquet",
        controls=FILES.each_model(
            f"{RESULTS}/controls/{{task}}/{{encoder}}/{{head}}/covariates.parquet",
            heads=CONFIG.heads,
        ),
        heatmaps=FILES.each_model(
            f"{RESULTS}/heatmaps/{{task}}/{{encoder}}/{{head}}/heatmaps.json", heads=CONFIG.heads
        ),
        attention=FILES.each_model(
            f"{RESULTS}/attention/{{task}}/{{encoder}}/{{head}}/agreement.parquet",
            heads=CONFIG.heads,
        ),
        external=FILES.each_external(
            "cohort/slides.parquet",
            "cohort/apart.json",
            "evaluation/case_mix.parquet",
            "evaluation/{task}/{encoder}/{head}/predictions.parquet",
            "heatmaps/{task}/{encoder}/{head}/heatmaps.json",
            "attention/{task}/{encoder}/{head}/agreement.parquet",
        ),
        outdated=FILES.outdated("build_report"),
    output:
        page=report(
            f"{RESULTS}/report/report.html",
            caption="../report/report.rst",
            category="Report",
            labels={"page": "report"},
        ),
        methods=report(
            f"{RESULTS}/report/methods.txt",
            caption="../report/methods.rst",
            category="Report",
            labels={"page": "methods"},
        ),
        checklist=report(
            f"{RESULTS}/report/checklist.csv",
            caption="../report/checklist.rst",
            category="Report",
            labels={"page": "checklist"},
        ),
        stamp=FILES.stamp("build_report"),
    log:
        f"{RESULTS}/logs/build_report.log",
    benchmark:
        f"{RESULTS}/benchmarks/build_report.tsv"
    conda:
        "../../envs/her2.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=growing(30),
    params:
        spec=FILES.spec("build_report"),
        results=untracked(RESULTS),
    shell:
        "python -m her2 report --spec {params.spec:q} --results {params.results:q}"
        " --out {output.page:q}"
        " --stamp {output.stamp:q} 2> {log:q}"
