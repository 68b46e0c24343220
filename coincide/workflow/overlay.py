"""Configs with several runs: each run overlays its settings on the rest of the config, once per replicate.

Also the settings that --config gives on the command line, which overlay the config as those of a file do.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from coincide.base.sections import Config, Run
from coincide.workflow.config import ConfigError, check_config, problem_line

# setting that another config gives -> settings of the first config that are wrong then
NOT_INHERITED = {
    # another dataset: its folder of images, its number of clusters, the budgets chosen on its questions
    "dataset.annotations": ("dataset.images", "clustering.k", "selection.budget"),
    "evaluation.holdout": ("evaluation.groups",),  # other questions
    "target_model.name": ("target_model.seeds",),  # each costs a whole training
    "target_model.training.lora": ("target_model.training.freeze",),  # adapters are trained instead
}
SEEDS = {"clustering": {"seed"}, "selection": {"seed"}, "target_model": {"seeds"}}  # keys per section


def with_types(given: Mapping[str, Any], entries: Sequence[str]) -> dict[str, Any]:
    """The config that a user gave, with the values of --config as YAML reads them.

    Snakemake reads every value inside a list or a mapping as text: `selection={fractions: [0.1]}` arrives as
    `{"fractions": ["0.1"]}`.

    Args:
        given: the part of the config that --configfile and --config gave, merged by Snakemake; it is not changed.
        entries: arguments of --config, each "name=value".
    """
    values = dict(given)
    for entry in entries:
        name, _, text = entry.partition("=")
        text = text.strip("'\"")  # as Snakemake does
        try:
            as_text, typed = yaml.load(text, yaml.BaseLoader), yaml.safe_load(text)
        except yaml.YAMLError:
            continue  # it is text for Snakemake, too
        if name in values:
            values[name] = _typed(values[name], as_text, typed)
    return values


def _typed(value, as_text, typed):
    """The typed value where the value is what Snakemake read; a later entry may have replaced parts of it."""
    if all(isinstance(v, Mapping) for v in (value, as_text, typed)):
        return {
            key: _typed(item, as_text[key], typed[key]) if key in as_text and key in typed else item
            for key, item in value.items()
        }
    return typed if value == as_text else value


def check_runs(
    values: dict[str, Any], *, files: bool = True, overrides: dict[str, Any] | None = None
) -> dict[str, Config]:
    """Check a config that may list several runs, and return the config of each run.

    The settings of an entry of `runs` overlay the rest of the config: mappings are merged, other values are replaced.
    With `replicates`, run `x` becomes the runs `x-0`, `x-1`, …, one per seed. A run that differs from the first in more
    than its seeds is a variant, which a comparison lists by its name; one that differs in seeds only is a replicate.

    Args:
        values: the config as read from YAML.
        files: also check the files and folders that it names.
        overrides: the part of the config that --configfile and --config gave, and that Snakemake has already merged
            into the values.

    Returns:
        dict of run -> Config, in the order of the config.

    Raises:
        ConfigError: one message with every wrong key of every run.
    """
    values = without_inherited(values, overrides or {})
    if not values.get("runs"):
        single = {**values, "runs": []}
        config = check_config(single, files=files)
        return {run: check_config(replicate, files=False) for run, replicate in _replicates(single, config, "")}
    common = {key: value for key, value in values.items() if key != "runs"}
    configs: dict[str, Config] = {}
    problems: list[str] = []
    for i, settings in enumerate(values["runs"]):
        try:
            run = Run.model_validate(settings)
            variant = run.run if i and _is_variant(settings) else ""  # of the first run
            merged = {"variant": variant, "replicate": 0 if variant else i, **overlaid(common, settings)}
            config = check_config(merged, files=files)
        except ValidationError as error:
            problems += [f"runs[{i}].{problem_line(e, Run)}" for e in error.errors()]
            continue
        except ConfigError as error:
            problems += [f"runs[{i}] ({run.run}): {line}" for line in error.problems]
            continue
        for name, replicate in _replicates(merged, config, variant):
            if name in configs:
                problems.append(f"runs[{i}].run: duplicate run {name}; rename one")
            configs[name] = check_config(replicate, files=False)
    if problems:
        raise ConfigError(problems)
    return configs


def _is_variant(settings):
    """Whether settings that overlay those of the first run differ from them in more than seeds."""
    others = {key: value for key, value in settings.items() if key not in ("run", "variant", "replicate")}
    return any(
        not isinstance(value, Mapping) or value.keys() - SEEDS.get(section, set()) for section, value in others.items()
    )


def _replicates(values: dict[str, Any], config: Config, variant: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(run, unchecked config) of each replicate of a run; of the run itself if it has no replicates."""
    if not config.replicates:
        yield config.run, values
    for replicate, seed in enumerate(config.replicates):
        run = f"{config.run}-{seed}"
        settings: dict[str, Any] = {
            "run": run,
            "variant": variant,
            "replicate": replicate,
            "clustering": {"seed": seed},
            "selection": {"seed": seed},
            "target_model": {"seeds": [seed]},
        }
        yield run, overlaid(values, settings)


def without_inherited(values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The values without those of NOT_INHERITED that the settings make wrong and do not give themselves."""
    for given, dropped in NOT_INHERITED.items():
        if _value_of(settings, given):
            for path in dropped:
                values = _without(values, settings, path.split("."))
    return values


def _value_of(settings, path):
    for key in path.split("."):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def _without(values, settings, path):
    """The values without the one at a path, unless the settings have it."""
    key, *rest = path
    if not isinstance(values, dict) or key not in values:
        return values
    is_given = isinstance(settings, dict) and key in settings
    if rest:
        return {**values, key: _without(values[key], settings[key] if is_given else None, rest)}
    return values if is_given else {name: value for name, value in values.items() if name != key}


def overlaid(values: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Values with settings merged into them, mappings recursively; the arguments are not changed."""
    merged = dict(without_inherited(values, settings))
    for key, value in settings.items():
        mergeable = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = overlaid(merged[key], value) if mergeable else value
    return merged
