# The datasets and small models that the default config builds for itself; the same in all runs.


rule mini_mix:
    output:
        train=f"{MINI_MIX}/train.json",
        pretrain=f"{MINI_MIX}/pretrain.json",
        images=directory(f"{MINI_MIX}/images"),
        evaluation=directory(f"{MINI_MIX}/evaluation"),
        validation=directory(f"{MINI_MIX}/validation"),
    log:
        "resources/logs/mini_mix.log",
    benchmark:
        "resources/benchmarks/mini_mix.tsv"
    conda:
        "../envs/dataset.yaml"
    envmodules:
        *MODULES.dataset,
    params:
        version=VERSIONS["mini_mix"],
        mini_mix=ANY_RUN.mini_mix.results_depend_on("mini_mix"),
    script:
        "../workflow_scripts/mini_mix.py"


rule even_mix:
    output:
        train=f"{EVEN_MIX}/train.json",
        images=directory(f"{EVEN_MIX}/images"),
        evaluation=directory(f"{EVEN_MIX}/evaluation"),
        validation=directory(f"{EVEN_MIX}/validation"),
    log:
        "resources/logs/even_mix.log",
    benchmark:
        "resources/benchmarks/even_mix.tsv"
    conda:
        "../envs/dataset.yaml"
    envmodules:
        *MODULES.dataset,
    params:
        version=VERSIONS["even_mix"],
        even_mix=ANY_RUN.even_mix.results_depend_on("even_mix"),
    script:
        "../workflow_scripts/even_mix.py"


rule tiny_model:
    input:
        records=f"{MINI_MIX}/pretrain.json",
        images=f"{MINI_MIX}/images",
    output:
        directory("resources/models/{model}"),
    log:
        "resources/logs/tiny_model/{model}.log",
    benchmark:
        "resources/benchmarks/tiny_model/{model}.tsv"
    conda:
        "../envs/training.yaml"
    envmodules:
        *MODULES.training,
    threads: job_threads("tiny_model")
    resources:
        **job_needs("tiny_model"),
    params:
        version=VERSIONS["tiny_model"],
        model=lambda wildcards: ANY_RUN.tiny_models[wildcards.model].results_depend_on(
            "tiny_model"
        ),
        checkpoints="resources/models/.checkpoints",
    script:
        "../workflow_scripts/tiny_model.py"
