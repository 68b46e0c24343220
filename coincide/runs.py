"""The runs of a config, what the results of each stage depend on, and what runs share.

Runs that agree in all that a stage depends on share its results: the first of them, in the order of
the config, makes and keeps them.
"""

from dataclasses import dataclass

from pydantic import BaseModel

from coincide import methods
from coincide.config import Training


@dataclass(frozen=True)
class Stage:
    """What a stage's results depend on.

    Attributes:
        after: the stages whose results it reads.
        settings: dotted names of settings; a rule's params are these.
        reads: dotted names of settings that name files or folders of the user's.
    """

    after: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


PICKS_OF = "the picks of the method"
DATASET = ("dataset.annotations", "dataset.images")
STAGES = {
    "manifest": Stage(
        (),
        ("dataset.shards", "dataset.duplicate_ids", "dataset.decode_images", "dataset.max_rejected"),
        DATASET,
    ),
    "shards": Stage(("manifest",), ("dataset.shards",)),
    "activations": Stage(
        ("shards",),
        (
            "reference_model.name",
            "reference_model.revision",
            "reference_model.trust_remote_code",
            "reference_model.layers",
            "reference_model.dtype",
            "reference_model.attention",
            "reference_model.max_tokens",
            "reference_model.scores",
        ),
    ),
    "merge": Stage(("manifest", "activations"), ("dataset.max_rejected",)),
    "clusters": Stage(
        ("merge",),
        (
            "clustering.k",
            "clustering.iterations",
            "clustering.seed",
            "clustering.backend",
            "clustering.fit_rows",
        ),
    ),
    "transferability": Stage(("clusters",), ("selection.blocks", "selection.exclude_above")),
    "density": Stage(("clusters",), ("selection.gamma", "selection.cluster_groups")),
    "budget": Stage(("transferability", "density"), ("selection.temperature", "selection.weigh_density")),
    "picks": Stage(("budget",), ("selection.gamma", "selection.cluster_groups", "selection.within", "clustering.seed")),
    "ranked_picks": Stage(("picks",)),
    "clip_scores": Stage(("shards",), ("clip_model.name", "clip_model.revision", "clip_model.dtype")),
    "difficulty": Stage(
        ("merge", "clip_scores"),
        (
            "target_model.name",
            "target_model.revision",
            "target_model.trust_remote_code",
            "target_model.training",
            "selection.seed",
        ),
    ),
    "method_picks": Stage(("clusters",), ("selection.seed",)),
    "full": Stage(("merge",)),
    "coreset": Stage((PICKS_OF, "merge")),
    "finetune_model": Stage(
        ("coreset",),
        (
            "target_model.name",
            "target_model.revision",
            "target_model.trust_remote_code",
            "target_model.training",
        ),
    ),
    "evaluate_model": Stage(
        ("finetune_model",),
        (
            "evaluation.python",
            "evaluation.include_path",
            "evaluation.backend",
            "evaluation.dtype",
            "evaluation.limit",
        ),
    ),
}


def stage_of(method):
    """The stage that gives a method's picks."""
    return {"coincide": "ranked_picks", "full": "full"}.get(method, "method_picks")


class Runs:
    """The runs of a config.

    Args:
        configs: dict of run -> Config, in the order of the config file.
    """

    def __init__(self, configs):
        self.configs = configs
        self._folders = {}

    def __iter__(self):
        return iter(self.configs)

    def setting(self, run, name):
        """A run's setting by its dotted name, as plain values; of `training` only what changes its results."""
        value = self.configs[run]
        for part in name.split("."):
            value = getattr(value, part)
        if isinstance(value, Training):
            return value.model_dump(exclude=Training.OPERATIONAL)
        return value.model_dump() if isinstance(value, BaseModel) else value

    def method_settings(self, run, method):
        """A run's settings of a method of `coincide.methods`, its defaults filled in."""
        return methods.settings(method, self.configs[run].selection.method_settings.get(method, {}))

    def tasks(self, run, group):
        """Tasks of an evaluation group; None where the run has no such group."""
        return next((g.tasks for g in self.configs[run].evaluation.groups if g.name == group), None)

    def folder(self, run, stage, *, method=None, group=None):
        """Folder of the run that makes what `run` needs of a stage.

        Args:
            run: name of a run.
            stage: one of STAGES.
            method: of the coreset, for the stages that have one.
            group: of evaluation tasks, for evaluate_model.
        """
        key = (run, stage, method, group)
        if key not in self._folders:
            wanted = self._depends_on(run, stage, method, group)
            maker = next(other for other in self.configs if self._depends_on(other, stage, method, group) == wanted)
            self._folders[key] = f"results/{maker}"
        return self._folders[key]

    def shared(self, run):
        """What other runs make for a run: dict of folder -> stages, method and stage where it has methods."""
        found = {}
        config = self.configs[run]
        chosen = [*config.selection.methods, *["full"] * config.target_model.full]
        last = {stage_of(method) for method in chosen}
        unwanted = {"method_picks", "ranked_picks", "full"} - last
        needed = {artefact for method in chosen for artefact in methods.needs(method)}
        unwanted |= {"clip_scores", "difficulty"} - needed
        for stage in [stage for stage in STAGES if stage not in unwanted]:
            of_methods = PICKS_OF in self._all_before(stage) or stage in last
            for method in chosen if of_methods else [None]:
                if stage in last and stage_of(method) != stage:
                    continue
                for group in [g.name for g in config.evaluation.groups] if stage == "evaluate_model" else [None]:
                    folder = self.folder(run, stage, method=method, group=group)
                    if folder != f"results/{run}":
                        found.setdefault(folder, {})[f"{stage} ({method})" if method else stage] = None
        return {folder: list(stages) for folder, stages in found.items()}

    def _all_before(self, stage):
        after = STAGES[stage].after if stage in STAGES else ()
        return {*after, *(s for a in after for s in self._all_before(a))}

    def _depends_on(self, run, stage, method, group):
        """Everything that a stage's results depend on, to compare."""
        if stage == PICKS_OF:
            stage = stage_of(method)
        own, after = STAGES[stage], STAGES[stage].after
        values = [self.setting(run, name) for name in (*own.settings, *own.reads)]
        if stage == "finetune_model":  # its name in paths
            values.append(self.configs[run].target_model.label)
        if stage == "evaluate_model":
            values.append(self.tasks(run, group))
        if stage == "method_picks":
            values.append(self.method_settings(run, method))
            after += tuple(need for need in methods.needs(method) if need in STAGES)  # scores come with activations
        return values, [self._depends_on(run, before, method, group) for before in after]
