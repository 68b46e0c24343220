# Paths and lookups that several stages use. Lists and values are those of the run at hand.
from coincide.config import BUILT_MODELS, EVEN_MIX, MINI_MIX

ANY_RUN = next(iter(runs.configs.values()))  # for the sections that runs have in common
MODULES = ANY_RUN.modules


def setting(name):
    """A setting by its dotted name."""
    return lambda wildcards: runs.setting(wildcards.run, name)


def settings(stage):
    """The settings that a stage's results depend on, for its params."""
    return {name.split(".")[-1]: setting(name) for name in STAGES[stage].settings}


def given(name):
    """A file or folder of the user's by the dotted name of its setting."""
    return lambda wildcards: runs.setting(wildcards.run, name)


def given_once(name):
    """The same for a folder whose time says nothing of what is in it."""
    return lambda wildcards: ancient(runs.setting(wildcards.run, name))


def made_by(stage, pattern, **values):
    """A stage's file, where the run that makes it keeps it; one for each of `values(run)` of a wildcard."""

    def paths(wildcards):
        method, group = wildcards.get("method"), wildcards.get("group")
        folder = runs.folder(wildcards.run, stage, method=method, group=group)
        every = {name: of(wildcards.run) for name, of in values.items()}
        found = expand(f"{folder}/{pattern}", **{**wildcards, **every})
        return found if values else found[0]

    return paths


def needed(artefact, paths):
    """The files of an artefact that a method may need; none for the others."""
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
    chosen = [
        (m, f) for m in runs.setting(run, "selection.methods") for f in fractions(run)
    ]
    return chosen + [("full", "1")] * runs.setting(run, "target_model.full")


def coresets(run, name):
    """A file of every coreset that is finetuned on."""
    return [
        f"{runs.folder(run, 'coreset', method=m)}/coresets/{m}/{f}/{name}"
        for m, f in selections(run)
    ]


def whole_dataset(name):
    """A file of the coreset that is the full data."""
    return (
        lambda wildcards: f"{runs.folder(wildcards.run, 'coreset', method='full')}/coresets/full/1/{name}"
    )


def coresets_in_own_format(run):
    """Every coreset again, in the format of a dataset that is not JSON."""
    json = runs.setting(run, "dataset.annotations").endswith(".json")
    chosen = [(m, f) for m, f in selections(run) if m != "full" and not json]
    return [
        f"{runs.folder(run, 'coreset', method=m)}/coresets/{m}/{f}/dataset"
        for m, f in chosen
    ]


def models(run):
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
    found = []
    for group in [g.name for g in runs.configs[run].evaluation.groups]:
        for method, fraction in selections(run):
            folder = runs.folder(run, "evaluate_model", method=method, group=group)
            found += expand(
                f"{folder}/evaluations/{label}/{method}/{fraction}/{{seed}}/{group}/results.json",
                seed=runs.setting(run, "target_model.seeds"),
            )
    return found


def model_files(section):
    """What must be there before a model can be loaded: its folder, or nothing for a hub name."""

    def files(wildcards):
        name = runs.setting(wildcards.run, f"{section}.name")
        if name in BUILT_MODELS:
            return [name]
        return [ancient(name)] if os.path.isdir(name) else []

    return files


def tasks_of(run):
    """All tasks of a run's evaluation."""
    groups = runs.configs[run].evaluation.groups
    return [task for group in groups for task in group.tasks]


def questions_of(tasks):
    """Folders of questions that the workflow writes itself, for the tasks that ask them."""
    folders = {
        "even_mix_validation": f"{EVEN_MIX}/validation",
        "mini_mix_validation": f"{MINI_MIX}/validation",
        "even_mix": f"{EVEN_MIX}/evaluation",
        "mini_mix": f"{MINI_MIX}/evaluation",
    }
    asked = [next(filter(task.startswith, folders), None) for task in tasks]
    return sorted({folders[own] for own in asked if own})


def built_model_settings(name):
    """How a small model of the workflow's own is built; the same in all runs."""
    return ANY_RUN.built_models[name].model_dump()


def benchmark_folders(run):
    """Where the times of a run's own jobs stand, and of what was built for it."""
    own = [
        runs.setting(run, f"{model}.name")
        for model in ("reference_model", "target_model")
    ]
    built = any(name in BUILT_MODELS for name in own)
    return [f"results/{run}/benchmarks", *["resources/benchmarks"] * built]


def benchmarks_read(run):
    """Folders of the times of a run's jobs, and of those of runs that it shares with."""
    folders = [f"results/{run}", *runs.shared(run)]
    return [f"{folder}/benchmarks" for folder in folders]


def asked_for(*names):
    """The files of these names that this start was to bring about."""
    return [
        path
        for job in workflow.dag.jobs
        for path in job.output
        if os.path.basename(path) in names
    ]


def share_of_cores(wildcards):
    """Half of the cores: two such jobs side by side are faster than one after the other."""
    return max(1, (workflow.cores or 2) // 2)


def cores_to_cluster(wildcards):
    """All cores; of several runs half: a job that waits for all would wait until the others' jobs are done."""
    return 64 if len(runs.configs) == 1 else share_of_cores(wildcards)


def builds_resources():
    """Whether this start writes files that runs of other configs may share."""
    return any(
        str(path).startswith("resources/")
        for job in workflow.dag.needrun_jobs()
        for path in job.output
    )


def jobs_and_needs():
    """Every job as the plan wants it, and for each the numbers of the jobs that it needs."""
    jobs = list(workflow.dag.jobs)
    number = {job: i for i, job in enumerate(jobs)}
    rows = [
        (job.rule.name, next(iter(job.log), ""), job.output, workflow.dag.needrun(job))
        for job in jobs
    ]
    return rows, [
        [
            number[before]
            for before in workflow.dag.dependencies[job]
            if before in number
        ]
        for job in jobs
    ]
