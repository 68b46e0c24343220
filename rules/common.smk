# Paths and lookups that several stages use.
from coincide.budget import total_budget
from coincide.config import BUILT_MODELS, MINI_MIX

RUN = f"results/{cfg.run}"
SHARDS = [f"{shard:05d}" for shard in range(cfg.dataset.shards)]
FRACTIONS = [f"{fraction:g}" for fraction in cfg.selection.fractions]
CLUSTER_GROUPS = [f"{group:03d}" for group in range(cfg.selection.cluster_groups)]
CHECKPOINTS = f"{RUN}/checkpoints"


def model_files(name):
    """What must be there before a model can be loaded: its folder, or nothing for a hub name."""
    if name in BUILT_MODELS:
        return [name]
    return [ancient(name)] if os.path.isdir(name) else []


def load_options(model):
    """How a model is loaded; part of the params of each rule that loads it."""
    return {
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
    }


def selections():
    """(method, fraction) of every coreset that is finetuned on."""
    chosen = [(m, f) for m in cfg.selection.methods for f in FRACTIONS]
    return chosen + [("full", "1")] * cfg.target_model.full


def finetuned(pattern):
    """`pattern` for every target, method, fraction and seed of the config."""
    return [
        pattern.format(target=cfg.target_model.label, method=m, fraction=f, seed=seed)
        for m, f in selections()
        for seed in cfg.target_model.seeds
    ]


def share_of_cores(wildcards):
    """Half of the cores: two such jobs side by side are faster than one after the other."""
    return max(1, (workflow.cores or 2) // 2)


TASKS = {group.name: group.tasks for group in cfg.evaluation.groups}


def uses_mini_mix_tasks():
    """Whether an evaluation task reads the data that the rule mini_mix writes."""
    return any(
        task.startswith("mini_mix") for tasks in TASKS.values() for task in tasks
    )
