# Paths and lookups that several rooms use. A lookup takes wildcards, or the name of a run.

ANY_RUN = next(iter(runs.configs.values()))  # for the sections that all runs share
MODULES = ANY_RUN.modules
# setting of the dataset -> rule that finds what it reports or drops
SCREENINGS = {"leaks": "leaks", "near_duplicates": "duplicates"}
FULL_DATA = ("full", "1")  # method and fraction of the coreset that is the full data


def settings(stage):
    """What changes a stage's results, as params: the version of its code, and section -> lookup of its settings."""

    def section(name):
        return lambda wildcards: section_settings(runs.configs[wildcards.run], stage)[
            name
        ]

    sections = {name: section(name) for name in section_settings(ANY_RUN, stage)}
    return {"version": VERSIONS[stage], **sections}


def annotation_files(wildcards):
    """The files and folders of the dataset, with globs expanded.

    Their modification times are not meaningful: the manifest depends on their content (`dataset_version`), and what
    reads the dataset depends on the manifest.
    """
    paths = expand_annotations(runs.setting(wildcards.run, "dataset.annotations"))
    return [ancient(path) for path in paths]


def changed_annotation_files(wildcards):
    """As `annotation_files`; with meaningful modification times if the content is not that of the manifest."""
    if compared_content(wildcards.run).is_recorded:
        return annotation_files(wildcards)
    return expand_annotations(runs.setting(wildcards.run, "dataset.annotations"))


def built_dataset(wildcards):
    """Another output of the job that builds the dataset, if one does; when it reruns, so does the manifest."""
    annotations = runs.setting(wildcards.run, "dataset.annotations")
    mixes = [mix for mix in (MINI_MIX, EVEN_MIX) if annotations == f"{mix}/train.json"]
    return [f"{mix}/validation" for mix in mixes]


@cache
def compared_content(run):
    """The content of the dataset's files, compared with that of the manifest."""
    annotations = runs.setting(run, "dataset.annotations")
    return dataset_content(annotations, content_record(run))


def content_record(run):
    return f"{runs.folder(run, 'manifest')}/samples/annotations.json"


def coreset_digest(wildcards):
    """The digest of a coreset.json, whose modification time is that of the last change of the coreset.

    As an input of a job, it makes Snakemake decide again, once the coreset is written, whether the job has to run.
    """
    return written_digest(wildcards.run, wildcards.method, wildcards.fraction)


def full_data_digest(wildcards):
    """As `coreset_digest`, of the full data."""
    return written_digest(wildcards.run, *FULL_DATA)


def written_digest(run, method, fraction):
    """The digest of a coreset.json that is written; Snakemake asks again after the job that writes it."""
    folder = runs.folder(run, "coreset_json", method=method)
    checkpoints.coreset_json.get(
        run=os.path.basename(folder), method=method, fraction=fraction
    )
    coreset = f"{folder}/coresets/{method}/{fraction}/coreset"
    digest = f"{coreset}.sha256"
    return digest if os.path.exists(digest) else f"{coreset}.json"


def image_folders(wildcards):
    """The folders of the images, whose modification times are not meaningful."""
    folders = runs.setting(wildcards.run, "dataset.image_folders")
    return [ancient(folder) for folder in folders]


def stage_output(stage, pattern, **values):
    """A file of a stage, in the folder of the run that computes it.

    With `values`, wildcard -> function of the run: all files, one per value.
    """

    def paths(wildcards):
        method, group = wildcards.get("method"), wildcards.get("group")
        folder = runs.folder(wildcards.run, stage, method=method, group=group)
        lists = {name: of(wildcards.run) for name, of in values.items()}
        expanded = expand(f"{folder}/{pattern}", **{**wildcards, **lists})
        return expanded if values else expanded[0]

    return paths


def screened(name):
    """A table of the samples that the workflow selects from, and of those that were rejected before extraction."""

    def path(wildcards):
        if runs.setting(wildcards.run, "dataset.is_screened"):
            return stage_output("screen", f"screen/{name}")(wildcards)
        return stage_output("manifest", f"samples/{name}")(wildcards)

    return path


def unless_ignored(setting, pattern):
    """A table of leaks or near-duplicates, none if the run does not look for them."""

    def path(wildcards):
        if runs.setting(wildcards.run, f"dataset.{setting}") == "ignore":
            return []
        return stage_output(SCREENINGS[setting], pattern)(wildcards)

    return path


def if_dropped(setting, pattern):
    """A table of leaks or near-duplicates, none if the run does not drop them."""

    def path(wildcards):
        if runs.setting(wildcards.run, f"dataset.{setting}") != "drop":
            return []
        return stage_output(SCREENINGS[setting], pattern)(wildcards)

    return path


def coreset_of_training(wildcards):
    """The coreset.json of a training without its modification time: the training depends on `coreset_digest`, too.

    Until the coreset is written, it is an input with a time, so that Snakemake plans the training.
    """
    coreset_digest(wildcards)
    path = stage_output("coreset_json", "coresets/{method}/{fraction}/coreset.json")
    return ancient(path(wildcards))


def checked(wildcards):
    """The result of the check before the first job, which jobs on GPUs wait for."""
    return ancient(f"{runs.folder(wildcards.run, PREFLIGHT)}/preflight.json")


def repeat_stale_checks():
    """Repeat the checks that jobs wait for, if what they depend on has changed."""
    to_run = list(workflow.dag.needrun_jobs())
    new = {str(path) for job in to_run for path in job.output}
    reports = {job.input.preflight for job in to_run if "preflight" in job.input.keys()}
    jobs = job_resources()
    repeat_checks(
        reports - new, runs.configs, local=jobs.local, overrides=profile_overrides()
    )


def if_constrained(paths):
    """The files, none if coresets are the methods' own choice."""
    return lambda wildcards: (
        paths(wildcards)
        if runs.setting(wildcards.run, "selection.is_constrained")
        else []
    )


def id_files(*keys):
    """Files of the ids of samples to keep or exclude; absolute, so that none is taken for an output of a rule."""

    def files(wildcards):
        values = [
            runs.setting(wildcards.run, f"selection.constraints.{key}") for key in keys
        ]
        return [os.path.abspath(value) for value in values if isinstance(value, str)]

    return files


def earlier_run(*names):
    """Files of the run that the dataset extends, none if it extends no run.

    Absolute, so that none is taken for an output of a rule, and without meaningful times: a finished run stays as it is.
    """

    def files(wildcards):
        folder = runs.setting(wildcards.run, "dataset.extends")
        if folder is None:
            return []
        return [ancient(os.path.abspath(f"{folder}/{name}")) for name in names]

    return files


def earlier_coreset(wildcards):
    """What a coreset takes over from the run that the dataset extends, none if it takes over nothing."""
    selection = runs.setting(wildcards.run, "selection")
    if not selection.takes_over:
        return []
    method = wildcards.get("method", "coincide")
    coreset = f"coresets/{method}/{wildcards.fraction}/coreset.parquet"
    return earlier_run("manifest.parquet", *[coreset] * selection.keep_earlier)(
        wildcards
    )


def earlier_results(wildcards):
    """What the summary compares a run with: samples of the run that it extends, clusters next to its centroids."""
    samples, clusters = (
        earlier_run("manifest.parquet"),
        earlier_clusters("clusters.parquet"),
    )
    return [*samples(wildcards), *clusters(wildcards)]


def earlier_clusters(*names):
    """Files next to the centroids that samples are assigned to, none if they are clustered."""

    def files(wildcards):
        centroids = runs.setting(wildcards.run, "clustering.centroids")
        if centroids is None:
            return []
        folder = os.path.dirname(os.path.abspath(centroids))
        return [ancient(f"{folder}/{name}") for name in names]

    return files


def if_assigned(paths):
    """The files, none if samples are clustered."""
    return lambda wildcards: (
        paths(wildcards) if runs.setting(wildcards.run, "clustering.centroids") else []
    )


def if_needed(artefact, paths):
    """The files of an artefact if the method of the wildcards needs it, else none."""
    return lambda wildcards: (
        paths(wildcards) if artefact in methods.needs(wildcards.method) else []
    )


def shards(run):
    return [f"{shard:05d}" for shard in range(runs.setting(run, "dataset.shards"))]


def cluster_groups(run):
    return [
        f"{group:03d}" for group in range(runs.setting(run, "selection.cluster_groups"))
    ]


def fractions(run):
    return [f"{fraction:g}" for fraction in runs.setting(run, "selection.fractions")]


def selections(run):
    """(method, fraction) of every coreset that is finetuned on."""
    return [
        (method, fraction)
        for method in runs.methods(run)
        for fraction in (["1"] if method == "full" else fractions(run))
    ]


def coresets(run, name, full=True):
    """A file of every coreset that is finetuned on; with `full` false, not of the full data."""
    return [
        f"{runs.folder(run, 'coreset_json', method=m)}/coresets/{m}/{f}/{name}"
        for m, f in selections(run)
        if full or m != "full"
    ]


def premise_check(wildcards):
    """The transfer check, if the budgets of the run go by it."""
    if runs.setting(wildcards.run, "selection.budget") != "premise":
        return []
    return stage_output("check_transfer", "transfer_check/transfer_check.json")(
        wildcards
    )


def full_data(wildcards):
    """The full data's coreset.json without its modification time, as `coreset_of_training`."""
    full_data_digest(wildcards)
    method, fraction = FULL_DATA
    folder = runs.folder(wildcards.run, "coreset_json", method=method)
    return ancient(f"{folder}/coresets/{method}/{fraction}/coreset.json")


def manifest_of_full_data(wildcards):
    """The manifest without its modification time: its samples are those of the full data."""
    return ancient(stage_output("merge", "manifest.parquet")(wildcards))


def compared_tables(table):
    """A table of both sides of `snakemake compare`: manifest, clusters, or a list of coresets."""
    first, second = named_sides()
    if table == "coresets":
        return [
            path for pair in compared_pairs(first, second).values() for path in pair
        ]
    return getattr(first, table), getattr(second, table)


@cache
def named_sides():
    """The two sides that `snakemake compare` compares."""
    try:
        return compared_sides(runs)
    except UserError as error:
        raise WorkflowError(str(error))


def browsed_coresets(run):
    """(method, fraction) of the coresets that the browser shows; coincide first, by which it chooses samples."""
    chosen = [pair for pair in selections(run) if pair[0] != "full"]
    return sorted(chosen, key=lambda pair: pair[0] != "coincide")


def coreset_datasets(run):
    """Every coreset in the format of the dataset, unless that is JSON."""
    if is_json(runs.setting(run, "dataset.annotations")):
        return []
    return coresets(run, "coreset_dataset", full=False)


def finetuned_models(run):
    """Every finetuned model."""
    label = runs.setting(run, "target_model.label")
    return [
        f"{runs.folder(run, 'finetune_model', method=m)}/models/{label}/{m}/{f}/{seed}"
        for m, f in selections(run)
        for seed in runs.setting(run, "target_model.seeds")
    ]


def evaluations(run):
    """The results of every finetuned model on every group of tasks."""
    label = runs.setting(run, "target_model.label")
    groups = [group.name for group in runs.setting(run, "evaluation.groups")]
    return [
        f"{folder}/evaluations/{label}/{m}/{f}/{seed}/{group}/results.json"
        for group in groups
        for m, f in selections(run)
        for folder in [runs.folder(run, "evaluate_model", method=m, group=group)]
        for seed in runs.setting(run, "target_model.seeds")
    ]


def model_files(section):
    """The folder that a model is loaded from, none for a hub name."""

    def files(wildcards):
        name = runs.setting(wildcards.run, f"{section}.name")
        if name in TINY_MODELS or conversion_of(name, runs.configs[wildcards.run]):
            return [name]
        return [ancient(name)] if os.path.isdir(name) else []

    return files


def held_out_questions(wildcards):
    """The folder of the tasks that ask held-out samples, if the group has them."""
    if HOLDOUT not in (runs.tasks(wildcards.run, wildcards.group) or []):
        return []
    return stage_output("holdout_questions", "holdout")(wildcards)


def question_folders(tasks):
    """Folders of questions that the workflow writes itself, for the tasks that ask them."""
    folders = {
        "even_mix_validation": f"{EVEN_MIX}/validation",
        "mini_mix_validation": f"{MINI_MIX}/validation",
        "even_mix": f"{EVEN_MIX}/evaluation",
        "mini_mix": f"{MINI_MIX}/evaluation",
    }
    prefixes = [next(filter(task.startswith, folders), None) for task in tasks]
    return sorted({folders[prefix] for prefix in prefixes if prefix})


def benchmark_folders(run):
    """Folders of the times of a run's jobs, and of the models that were built for it."""
    names = [
        runs.setting(run, f"{model}.name")
        for model in ("reference_model", "target_model")
    ]
    builds = any(
        name in TINY_MODELS or conversion_of(name, runs.configs[run]) for name in names
    )
    return [f"results/{run}/benchmarks", *["resources/benchmarks"] * builds]


def shared_benchmark_folders(run):
    """Folders of the times of a run's jobs, and of those of the runs that it shares results with."""
    return [f"{folder}/benchmarks" for folder in [f"results/{run}", *runs.shared(run)]]


def requested_texts():
    """The texts that this start wrote for the user to read; of the pilot, only its answer."""
    names = [
        "summary.md",
        "estimate.md",
        "comparison.md",
        "pilot.md",
        "transfer_check.md",
        "compare.md",
    ]
    if any(job.rule.name == "check" for job in workflow.dag.jobs):
        names.append("preflight.md")
    return [
        path
        for job in workflow.dag.jobs
        for path in job.output
        if os.path.basename(path) in names and os.path.exists(path)
        if job.wildcards_dict.get("run") not in runs.pilot
    ]


def browser_pages():
    """The cluster browsers that this start wrote or found complete."""
    browsers = [job for job in workflow.dag.jobs if job.rule.name == "browser"]
    return [f"{job.output[0]}/index.html" for job in browsers]


def requested_coresets():
    """Lines on the coresets that this start was asked for: where they are, how many samples they have."""
    lines = []
    for run in [run for run in started_runs() if run not in runs.pilot]:
        paths = [
            path
            for job in workflow.dag.jobs
            for path in job.output
            if path in coresets(run, "coreset.json") and "/full/" not in path
        ]
        merge = runs.folder(run, "merge")
        tables = [f"{merge}/manifest.parquet", f"{merge}/rejected.parquet"]
        if paths:
            lines += coreset_lines(sorted(set(paths)), *tables)
            lines += requested_growth(run, paths)
    return lines


def started_runs():
    """The runs that this start is about: those of the config, those of the pilot, or both."""
    jobs = list(workflow.dag.jobs)
    if not any(job.rule.name == "pilot" for job in jobs):
        return list(runs)
    names = {job.wildcards_dict.get("run") for job in jobs}
    return [*runs.pilot, *(list(runs) if names & set(runs) else [])]


def pilot_summaries(wildcards):
    """The summaries of the pilot's runs, once their config is checked."""
    try:
        raise_pilot_problems(files=workflow.is_main_process)
    except UserError as error:
        raise WorkflowError(str(error))
    return [f"results/{run}/summary.parquet" for run in runs.pilot]


def pilot_models():
    """(method with its variant, replicate, evaluation) of every model of the pilot."""
    return [
        (
            f"{method} ({variant})" if variant else method,
            runs.setting(run, "replicate"),
            results,
        )
        for run in runs.pilot
        for variant in [runs.setting(run, "variant").removeprefix(f"{PILOT}-")]
        for (method, _), results in zip(selections(run), evaluations(run))
    ]


def of_pilot(stage, name):
    """A file that all runs of the pilot share."""
    return lambda wildcards: [
        f"{runs.folder(run, stage)}/{name}" for run in list(runs.pilot)[:1]
    ]


def requested_growth(run, requested):
    """Lines on what the coresets of a run that this start was asked for take over from an earlier run."""
    merge = runs.folder(run, "merge")
    growth = read_run_growth(
        runs.configs[run],
        manifest=f"{merge}/manifest.parquet",
        activations=f"{merge}/activations.parquet",
        clusters=f"{runs.folder(run, 'clusters')}/clusters.parquet",
        coresets={
            selection: table
            for selection, table, path in zip(
                selections(run),
                coresets(run, "coreset.parquet"),
                coresets(run, "coreset.json"),
            )
            if path in requested
        },
    )
    warnings = [f"Warning: {text}; {fix}" for text, fix in growth_warnings(growth)]
    return [*growth_lines(growth), *warnings]


@cache
def job_resources():
    """Threads and resources of all jobs. Which executor runs them is known only after this file is read."""
    # in a dry run, only the limit of submitted jobs tells; a job of a cluster is run by a local executor there
    submits = workflow.non_local_exec or workflow.nodes is not None
    local = not (submits or workflow.remote_exec)
    # for the script of rule preflight; params would be a reason to rerun it
    config[".jobs"] = {"local": local, "overrides": profile_overrides()}
    if not local:
        return JobResources(runs, local=False)
    if "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", len(machine_gpus()))
    gpus = workflow.global_resources["gpu"].value
    return JobResources(runs, local=True, cores=workflow.cores, gpus=gpus)


def job_threads(stage):
    """Threads of a rule's jobs."""
    return lambda wildcards: job_resources().threads(stage, wildcards)


def job_needs(stage):
    """GPUs, nodes, memory and time of a rule's jobs, as resources: name -> lookup."""

    def resource(name):
        return lambda wildcards, attempt: job_resources().resource(
            stage, name, wildcards, attempt
        )

    return {name: resource(name) for name in RESOURCES}


def profile_overrides():
    """Resources that the profile sets in place of the rules': rule -> name -> value, as text."""
    overrides = workflow.resource_settings._parsed_overwrite_resources
    return {
        name: {key: str(value.raw) for key, value in resources.items()}
        for name, resources in sorted(overrides.items())
    }


def check_constraints():
    """Check the constraints of runs whose manifest exists; the job that writes a manifest checks them, too."""
    new = {str(path) for job in workflow.dag.needrun_jobs() for path in job.output}
    folders = {
        run: (runs.folder(run, "manifest"), runs.folder(run, "merge")) for run in runs
    }
    configs_with_constraints = {run: runs.configs[run] for run in runs}
    check_manifests(configs_with_constraints, folders, new)


def builds_resources():
    """Whether this start writes files that runs of other configs may share."""
    return any(
        str(path).startswith("resources/")
        for job in workflow.dag.needrun_jobs()
        for path in job.output
    )


planned_results = set()  # (rule, output) of the trainings and evaluations of this start


def training_jobs():
    """Trainings and evaluations that are planned; those whose coreset stays the same are not necessary."""
    rules = CONTENT_KEYED
    return [job for job in workflow.dag.needrun_jobs() if job.rule.name in rules]


def planned_jobs():
    """Every job for the plan, and for each the numbers of the jobs that it depends on."""
    jobs = list(workflow.dag.jobs)
    number = {job: i for i, job in enumerate(jobs)}
    rows = [
        (job.rule.name, next(iter(job.log), ""), job.output, workflow.dag.needrun(job))
        for job in jobs
    ]
    return rows, [
        [
            number[parent]
            for parent in workflow.dag.dependencies[job]
            if parent in number
        ]
        for job in jobs
    ]
