"""The talk's recipe as a pipeline: dense, prune, retrain, quantize, then tables and a page."""

from snakemake.utils import min_version, validate

from workbench import dag, resolve

min_version("9.0")


configfile: "experiments/config.yaml"


validate(config, "experiments/config.schema.yaml")


report: "experiments/report/workflow.rst"


# stages fork from one process that has loaded the libraries (6 s of CPU time each otherwise)
shell.prefix(f"export WORKBENCH_SERVER={dag.SERVER}; ")


onstart:
    if config["preload"]:
        shell("mkdir -p logs; workbench serve $PPID > logs/serve.log 2>&1 &")


# only for `snakemake --sdm apptainer`; without it every rule runs in the active environment
container: "docker://python:3.11-bookworm"


wildcard_constraints:
    scale="|".join(resolve.names("scales")),
    network="|".join(resolve.names("networks")),
    treatment="|".join(resolve.names("treatments")),
    study="|".join(resolve.names("studies")),
    page="|".join(["report", *resolve.names("studies")]),
    bench="gemm|conv|throughput|network",
    seed=r"\d+",


rule all:
    input:
        expand(
            "results/{scale}/tables/{study}.csv",
            scale=config["scale"],
            study=dag.studies(config),
        ),
        f"results/{config['scale']}/report.html",
    localrule: True


# one network of each family
rule tour:
    input:
        f"results/{config['scale']}/tables/tour.csv",
        f"results/{config['scale']}/tour.html",
    localrule: True


for network in resolve.names("networks"):

    rule:
        name:
            network
        input:
            dag.network_records(config, network),
        localrule: True


# the MLflow store is made once, so that stages never race to create it
rule tracking:
    output:
        "results/{scale}/tracking.json",
    log:
        "logs/{scale}/tracking.log",
    localrule: True
    shell:
        "workbench track-init --scale {wildcards.scale} > {log} 2>&1"


# step 1 of the talk: train (or obtain) a dense network
rule dense:
    input:
        tracking=ancient("results/{scale}/tracking.json"),
    output:
        files=dag.outputs("dense"),
        record="results/{scale}/{network}/seed{seed}/dense/dense/record.json",
    log:
        "logs/{scale}/{network}/seed{seed}/dense/dense.log",
    threads: dag.resource("threads")
    resources:
        gpu=dag.resource("gpu"),
        mem_mb=dag.resource("mem_mb"),
        runtime=dag.resource("runtime"),
    params:
        spec=dag.stage_params("dense"),
    shell:
        "workbench dense {wildcards.network} --scale {wildcards.scale} --seed {wildcards.seed}"
        " --threads {threads} > {log} 2>&1"


# step 2: prune once, by magnitude
rule prune:
    input:
        unpack(dag.stage_inputs("prune")),
    output:
        files=dag.outputs("prune"),
        record="results/{scale}/{network}/seed{seed}/{treatment}/prune/record.json",
    log:
        "logs/{scale}/{network}/seed{seed}/{treatment}/prune.log",
    threads: dag.resource("threads")
    resources:
        gpu=dag.resource("gpu"),
        mem_mb=dag.resource("mem_mb"),
        runtime=dag.resource("runtime"),
    params:
        spec=dag.stage_params("prune"),
    shell:
        "workbench prune {wildcards.network} --treatment {wildcards.treatment}"
        " --scale {wildcards.scale} --seed {wildcards.seed} --threads {threads} > {log} 2>&1"


# step 3: repeat the training with the masks held
rule retrain:
    input:
        unpack(dag.stage_inputs("retrain")),
    output:
        files=dag.outputs("retrain"),
        record="results/{scale}/{network}/seed{seed}/{treatment}/retrain/record.json",
    log:
        "logs/{scale}/{network}/seed{seed}/{treatment}/retrain.log",
    threads: dag.resource("threads")
    resources:
        gpu=dag.resource("gpu"),
        mem_mb=dag.resource("mem_mb"),
        runtime=dag.resource("runtime"),
    params:
        spec=dag.stage_params("retrain"),
    shell:
        "workbench retrain {wildcards.network} --treatment {wildcards.treatment}"
        " --scale {wildcards.scale} --seed {wildcards.seed} --threads {threads} > {log} 2>&1"


# then INT8, by calibration
rule quantize:
    input:
        unpack(dag.stage_inputs("quantize")),
    output:
        files=dag.outputs("quantize"),
        record="results/{scale}/{network}/seed{seed}/{treatment}/quantize/record.json",
    log:
        "logs/{scale}/{network}/seed{seed}/{treatment}/quantize.log",
    threads: dag.resource("threads")
    resources:
        gpu=dag.resource("gpu"),
        mem_mb=dag.resource("mem_mb"),
        runtime=dag.resource("runtime"),
    params:
        spec=dag.stage_params("quantize"),
    shell:
        "workbench quantize {wildcards.network} --treatment {wildcards.treatment}"
        " --scale {wildcards.scale} --seed {wildcards.seed} --threads {threads} > {log} 2>&1"


rule table:
    input:
        dag.study_records(config),
    output:
        csv=report(
            "results/{scale}/tables/{study}.csv",
            caption="experiments/report/table.rst",
            category="Tables",
            labels={"study": "{study}", "scale": "{scale}"},
        ),
        md="results/{scale}/tables/{study}.md",
        tests="results/{scale}/tables/{study}_tests.csv",
    log:
        "logs/{scale}/table_{study}.log",
    localrule: True
    params:
        networks=",".join(dag.networks(config)),
        seeds=dag.study_seeds(config),
        study=dag.study_params,
    shell:
        "workbench table {wildcards.study} --scale {wildcards.scale} --networks {params.networks}"
        " --seeds {params.seeds} > {log} 2>&1"


# the kernels beside the best libraries; needs a GPU
rule bench:
    output:
        "results/{scale}/measurements/{bench}.json",
    log:
        "logs/{scale}/bench_{bench}.log",
    resources:
        gpu=1,
        runtime=60,
    params:
        shapes=dag.bench_params,
    shell:
        "workbench bench {wildcards.bench} --scale {wildcards.scale} > {log} 2>&1"


rule bench_table:
    input:
        "results/{scale}/measurements/{bench}.json",
    output:
        multiext("results/{scale}/tables/{bench}", ".csv", ".md"),
    log:
        "logs/{scale}/bench_table_{bench}.log",
    localrule: True
    shell:
        "workbench bench-table {wildcards.bench} --scale {wildcards.scale} > {log} 2>&1"


rule page:
    input:
        dag.page_tables(config),
    output:
        report(
            "results/{scale}/{page}.html",
            caption="experiments/report/page.rst",
            category="Report",
            labels={"page": "{page}", "scale": "{scale}"},
        ),
    log:
        "logs/{scale}/page_{page}.log",
    localrule: True
    params:
        networks=",".join(dag.networks(config)),
        studies=dag.page_studies(config),
    shell:
        "workbench report --scale {wildcards.scale} --networks {params.networks}"
        " --studies {params.studies} --name {wildcards.page} > {log} 2>&1"
