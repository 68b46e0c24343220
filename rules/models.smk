# Models that are converted into the format of transformers; the same in all runs.
#
# The sources are no inputs: they may be removed once the model is written. A source with another name is another param.


rule converted_model:
    output:
        directory(f"{MODELS}/{{converted}}"),
    log:
        "resources/logs/converted_model/{converted}.log",
    benchmark:
        "resources/benchmarks/converted_model/{converted}.tsv"
    wildcard_constraints:
        converted="|".join(map(re.escape, ANY_RUN.converted_models)) or "-",
    conda:
        "../envs/extraction.yaml"
    envmodules:
        *MODULES.extraction,
    threads: job_threads("converted_model")
    resources:
        **job_needs("converted_model"),
    params:
        version=VERSIONS["converted_model"],
        model=lambda wildcards: ANY_RUN.converted_models[
            wildcards.converted
        ].results_depend_on("converted_model"),
    script:
        "../workflow_scripts/converted_model.py"
