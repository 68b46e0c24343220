"""What the results of each stage depend on, and which runs of a config share them.

A stage is the rule of the same name. The sections of the config mark which settings change its results
(`coincide.base.sections`). Runs that agree in everything that a stage depends on share its results: the first of
these runs, in the order of the config, computes and stores them.
"""

from collections.abc import Iterator
from typing import Any

from coincide import methods
from coincide.base.sections import Config, Section
from coincide.workflow.config import used_conversions

CORESET = "coreset"  # placeholder for the stage that writes the coreset of the method (`coreset_stage`)
PREFLIGHT = "preflight"  # the check before the first job, on whose results no results depend
# stage -> stages whose results it reads
STAGES: dict[str, tuple[str, ...]] = {
    "manifest": (),
    "holdout_questions": ("manifest",),
    "image_hashes": ("manifest",),
    "leaks": ("manifest", "image_hashes", "holdout_questions"),
    "duplicates": ("manifest", "image_hashes"),
    "screen": ("manifest", "leaks", "duplicates"),
    "shards": ("manifest", "screen"),
    "activations": ("shards",),
    "merge": ("manifest", "screen", "activations"),
    "clusters": ("merge",),
    "transferability": ("clusters",),
    "density": ("clusters",),
    "check_transfer": ("clusters",),
    "shares": ("transferability", "density", "check_transfer"),
    "budget": ("shares",),
    "picks": ("budget",),
    "coincide_coreset": ("picks",),
    "clip_scores": ("shards",),
    "difficulty": ("merge", "clip_scores"),
    "method_coreset": ("clusters",),
    "full_coreset": ("merge",),
    "coreset_json": (CORESET, "merge"),
    "finetune_model": ("coreset_json",),
    "evaluate_model": ("finetune_model", "holdout_questions"),
}
# Rule -> version of its results. Raise it when a change of the code changes the results for the same inputs and
# settings. It is a param of the rule, so a new number reruns the rule; any other change of the code reruns nothing.
VERSIONS = {
    "mini_mix": 2,
    "even_mix": 1,
    "tiny_model": 2,
    "converted_model": 1,
    "manifest": 2,
    "holdout_questions": 1,
    "image_hashes": 1,
    "leaks": 1,
    "duplicates": 1,
    "screen": 1,
    "shards": 1,
    "activations": 1,
    "merge": 1,
    "clusters": 1,
    "transferability": 1,
    "density": 1,
    "shares": 1,
    "budget": 2,
    "cluster_stats": 1,
    "picks": 1,
    "coincide_coreset": 1,
    "clip_scores": 1,
    "difficulty": 1,
    "method_coreset": 1,
    "full_coreset": 1,
    "coreset_json": 2,
    "coreset_dataset": 1,
    "export_coreset": 1,
    "finetune_model": 1,
    "evaluate_model": 1,
    "summary": 2,
    "write_report": 2,
    "browser": 1,
    "comparison": 1,
    "pilot": 1,
    "check_transfer": 1,
    "compare_coresets": 1,
    "estimate_cost": 1,
}
CORESET_STAGES = {"coincide": "coincide_coreset", "full": "full_coreset"}


def coreset_stage(method: str) -> str:
    """The stage that writes the coreset.parquet of a method."""
    return CORESET_STAGES.get(method, "method_coreset")


def section_settings(config: Config, stage: str) -> dict[str, dict[str, Any]]:
    """The settings that change the results of a stage: dict of section -> field -> value."""
    sections = {name: value for name, value in config if isinstance(value, Section)}
    settings = {name: section.results_depend_on(stage) for name, section in sections.items()}
    return {name: values for name, values in settings.items() if values}


def preflight_settings(config: Config) -> dict[str, Any]:
    """What the check before the first job depends on: dict of section -> field -> value.

    It has no samples, clusters or seeds, and of the operational settings only those that decide whether a job fits.
    """
    sections = {
        "dataset": ("annotations", "images"),
        "reference_model": ("name", "revision", "layers", "dtype", "max_tokens", "trust_remote_code", "chat_template"),
        "target_model": ("name", "revision", "trust_remote_code", "chat_template", "training"),
        "evaluation": ("groups", "include_path", "backend", "python", "dtype"),
        "node": ("gpus", "gpu_memory", "memory"),
    }
    if any("clip_scores" in methods.needs(name) for name in config.selection.methods):
        sections["clip_model"] = ("name", "revision")
    values = {name: getattr(config, name).model_dump(include=set(fields)) for name, fields in sections.items()}
    for name in ("save_every", "device", "loader_workers"):
        values["target_model"]["training"].pop(name)
    values["converted_models"] = {name: model.model_dump() for name, model in used_conversions(config).items()}
    return values


class Runs:
    """The runs of a config.

    Args:
        configs: dict of run -> Config, in the order of the config file.
        pilot: those of the target pilot; they share results with each other only, and iteration leaves them out.
    """

    def __init__(self, configs: dict[str, Config], pilot: dict[str, Config] | None = None):
        self.pilot = pilot or {}
        self.configs = {**configs, **self.pilot}
        self._folders: dict[tuple, str] = {}

    def __iter__(self) -> Iterator[str]:
        return (run for run in self.configs if run not in self.pilot)

    def setting(self, run: str, name: str) -> Any:
        """A setting of a run, by its dotted name."""
        value: Any = self.configs[run]
        for key in name.split("."):
            value = getattr(value, key)
        return value

    def all_tasks(self, run: str) -> list[str]:
        """Tasks of all evaluation groups of a run, each once."""
        return list(dict.fromkeys(task for group in self.configs[run].evaluation.groups for task in group.tasks))

    def method_settings(self, run: str, method: str) -> dict[str, Any]:
        """Settings of a baseline (`coincide.methods`) in a run, including defaults."""
        return methods.settings(method, self.configs[run].selection.method_settings.get(method, {}))

    def tasks(self, run: str, group: str | None) -> list[str] | None:
        """Tasks of an evaluation group; None if the run has no such group."""
        return next((g.tasks for g in self.configs[run].evaluation.groups if g.name == group), None)

    def methods(self, run: str) -> list[str]:
        """Methods whose coresets a run finetunes on, including "full" for the full data."""
        config = self.configs[run]
        return [*config.selection.methods, *["full"] * config.target_model.full]

    def folder(self, run: str, stage: str, *, method: str | None = None, group: str | None = None) -> str:
        """Folder of the run that computes the results of a stage that `run` needs.

        Args:
            run: name of a run.
            stage: one of STAGES, CORESET, or PREFLIGHT.
            method: method of the coreset, for stages that have one job per method.
            group: group of evaluation tasks, for evaluate_model.
        """
        key = (run, stage, method, group)
        if key not in self._folders:
            dependencies = self._dependencies(*key)
            peers = self.pilot if run in self.pilot else self
            first = next(other for other in peers if self._dependencies(other, stage, method, group) == dependencies)
            self._folders[key] = f"results/{first}"
        return self._folders[key]

    def shared(self, run: str) -> dict[str, list[str]]:
        """Stages that other runs compute for a run: dict of folder -> stages, as "stage" or "stage (method)"."""
        shared: dict[str, list[str]] = {}
        groups = [group.name for group in self.configs[run].evaluation.groups]
        screened = self.configs[run].dataset.is_screened
        needed = {method: _with_ancestors("evaluate_model", method, screened) for method in self.methods(run)}
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
        """Everything that the results of a stage depend on, as values that can be compared."""
        stage = coreset_stage(method) if stage == CORESET else stage
        config = self.configs[run]
        if stage == PREFLIGHT:
            return preflight_settings(config)
        values = [section_settings(config, stage)]
        for section in (config.dataset, config.clustering):
            if stage in section.STAGES:
                values += [getattr(section, name) for name in section.paths()]
        if stage == "method_coreset":
            values += [method, self.method_settings(run, method)]
        if stage == "finetune_model":
            values.append(config.target_model.label)  # the label is in the path of the model
        if stage == "evaluate_model":
            values.append(self.tasks(run, group))
        if stage == "leaks":
            values.append(self.all_tasks(run))
        parents = _parents(stage, method, config.dataset.is_screened)
        return values, [self._dependencies(run, parent, method, group) for parent in parents]


def _parents(stage, method, screened):
    """The stages whose results a stage reads, for a method; `screen` only if samples are dropped."""
    parents = [coreset_stage(method) if parent == CORESET else parent for parent in STAGES[stage]]
    if not screened:
        parents = [parent for parent in parents if parent != "screen"]
    if stage == "method_coreset":  # only artefacts that are stages: merge writes the sample metrics
        parents += [artefact for artefact in methods.needs(method) if artefact in STAGES]
    return parents


def _with_ancestors(stage, method, screened):
    """A stage and, transitively, all stages whose results it reads, for a method."""
    parents = _parents(stage, method, screened)
    return {stage}.union(*(_with_ancestors(parent, method, screened) for parent in parents))


def _has_method(stage):
    """Whether a stage has one job per method."""
    return stage in {*CORESET_STAGES.values(), "method_coreset"} or any(
        parent == CORESET or _has_method(parent) for parent in STAGES[stage]
    )
