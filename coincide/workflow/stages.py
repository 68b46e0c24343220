"""What the results of each stage depend on, and which runs of a config share them.

A stage is the rule of the same name. Its settings are those that the sections of the config mark with it
(`coincide.base.sections`). Runs that agree in everything that a stage depends on share its results: the first of
them, in the order of the config, computes and keeps them.
"""

from collections.abc import Iterator
from typing import Any

from coincide import methods
from coincide.base.sections import Config, Section

CORESET = "the coreset of the method"  # stands for the stage that writes a method's coreset.parquet
# stage -> the stages whose results it reads
STAGES: dict[str, tuple[str, ...]] = {
    "manifest": (),
    "shards": ("manifest",),
    "activations": ("shards",),
    "merge": ("manifest", "activations"),
    "clusters": ("merge",),
    "transferability": ("clusters",),
    "density": ("clusters",),
    "shares": ("transferability", "density"),
    "budget": ("shares",),
    "picks": ("budget",),
    "coincide_coreset": ("picks",),
    "clip_scores": ("shards",),
    "difficulty": ("merge", "clip_scores"),
    "method_coreset": ("clusters",),
    "full_coreset": ("merge",),
    "coreset_json": (CORESET, "merge"),
    "finetune_model": ("coreset_json",),
    "evaluate_model": ("finetune_model",),
}
CORESET_STAGES = {"coincide": "coincide_coreset", "full": "full_coreset"}


def coreset_stage(method: str) -> str:
    """The stage that writes a method's coreset.parquet."""
    return CORESET_STAGES.get(method, "method_coreset")


def section_settings(config: Config, stage: str) -> dict[str, dict[str, Any]]:
    """The settings that change a stage's results: dict of section -> field -> value."""
    sections = {name: value for name, value in config if isinstance(value, Section)}
    settings = {name: section.results_depend_on(stage) for name, section in sections.items()}
    return {name: values for name, values in settings.items() if values}


class Runs:
    """The runs of a config.

    Args:
        configs: dict of run -> Config, in the order of the config file.
    """

    def __init__(self, configs: dict[str, Config]):
        self.configs = configs
        self._folders: dict[tuple, str] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self.configs)

    def setting(self, run, name):
        """A setting of a run by its dotted name."""
        value = self.configs[run]
        for key in name.split("."):
            value = getattr(value, key)
        return value

    def method_settings(self, run, method):
        """Settings of a baseline (`coincide.methods`) in a run, with defaults filled in."""
        return methods.settings(method, self.configs[run].selection.method_settings.get(method, {}))

    def tasks(self, run, group):
        """Tasks of an evaluation group; None if the run has no such group."""
        return next((g.tasks for g in self.configs[run].evaluation.groups if g.name == group), None)

    def methods(self, run):
        """Methods whose coresets a run finetunes on, the full data among them."""
        config = self.configs[run]
        return [*config.selection.methods, *["full"] * config.target_model.full]

    def folder(self, run, stage, *, method=None, group=None):
        """Folder of the run that computes the results of a stage that `run` needs.

        Args:
            run: name of a run.
            stage: one of STAGES, or CORESET.
            method: of the coreset, for stages that have one.
            group: of evaluation tasks, for evaluate_model.
        """
        key = (run, stage, method, group)
        if key not in self._folders:
            wanted = self._dependencies(*key)
            maker = next(other for other in self.configs if self._dependencies(other, *key[1:]) == wanted)
            self._folders[key] = f"results/{maker}"
        return self._folders[key]

    def shared(self, run):
        """What other runs compute for a run: dict of folder -> stages, with the method where a stage has one."""
        shared: dict[str, list[str]] = {}
        groups = [group.name for group in self.configs[run].evaluation.groups]
        needed = {method: _with_ancestors("evaluate_model", method) for method in self.methods(run)}
        for stage in STAGES:
            for method in [method for method, stages in needed.items() if stage in stages]:
                label = f"{stage} ({method})" if _has_method(stage) else stage
                for group in groups if stage == "evaluate_model" else [None]:
                    folder = self.folder(run, stage, method=method, group=group)
                    labels = shared.setdefault(folder, [])
                    if label not in labels:
                        labels.append(label)
        shared.pop(f"results/{run}", None)
        return shared

    def _dependencies(self, run, stage, method, group):
        """Everything that a stage's results depend on, in a form to compare."""
        stage = coreset_stage(method) if stage == CORESET else stage
        config = self.configs[run]
        values: list[Any] = [section_settings(config, stage)]
        if stage == "manifest":
            values += [getattr(config.dataset, name) for name in config.dataset.paths()]
        if stage == "method_coreset":
            values += [method, self.method_settings(run, method)]
        if stage == "finetune_model":
            values.append(config.target_model.label)  # part of its path
        if stage == "evaluate_model":
            values.append(self.tasks(run, group))
        return values, [self._dependencies(run, parent, method, group) for parent in _parents(stage, method)]


def _parents(stage, method):
    """The stages whose results a stage reads for a method."""
    parents = [coreset_stage(method) if parent == CORESET else parent for parent in STAGES[stage]]
    if stage == "method_coreset":  # sample metrics are part of merge
        parents += [artefact for artefact in methods.needs(method) if artefact in STAGES]
    return parents


def _with_ancestors(stage, method):
    return {stage}.union(*(_with_ancestors(parent, method) for parent in _parents(stage, method)))


def _has_method(stage):
    """Whether a stage has one job per method."""
    return stage in {*CORESET_STAGES.values(), "method_coreset"} or any(
        parent == CORESET or _has_method(parent) for parent in STAGES[stage]
    )
