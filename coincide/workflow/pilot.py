"""The runs of the target pilot, derived from the config: its own settings on a subsample, with the reference model
as target unless `pilot.model` says otherwise.

They are runs like those of a study: the base has random choice and the methods, a variant has one method with other
settings, and each is repeated per replicate. What they have in common, the activations above all, is computed once.
"""

from collections.abc import Iterator
from typing import Any

from coincide import methods
from coincide.base.sections import HOLDOUT, Config, Pilot
from coincide.clustering.kmeans import recommended_clusters
from coincide.evaluation.holdout import FEWEST
from coincide.selection.budget import total_budget
from coincide.workflow.config import TINY_MODELS, ConfigError, check_config, count_samples, demo_settings
from coincide.workflow.overlay import check_runs, without_inherited

TARGET = "pilot"
FEWEST_STEPS = 10  # of training, below which no method can be told from another
VARIED = ("selection", "clustering", "reference_model")  # sections in which a variant may differ


def pilot_name(run: str) -> str:
    """Name of the pilot's base run, and of the folder of its answer."""
    return f"{run}-{TARGET}"


def pilot_runs(
    values: dict[str, Any], configs: dict[str, Config], *, overrides: dict[str, Any] | None = None
) -> dict[str, Config]:
    """As `check_pilot`, without a check of files; no runs if there are problems."""
    try:
        return check_pilot(values, configs, files=False, overrides=overrides)
    except ConfigError:
        return {}


def check_pilot(
    values: dict[str, Any],
    configs: dict[str, Config],
    *,
    files: bool = True,
    overrides: dict[str, Any] | None = None,
) -> dict[str, Config]:
    """Check the section pilot, and return the config of each of its runs.

    Args:
        values: the config as read from YAML; the settings of an entry of `runs` are left out.
        configs: result of `coincide.workflow.overlay.check_runs`.
        files: also check the files and folders that it names.
        overrides: as for `coincide.workflow.overlay.check_runs`.

    Returns:
        dict of run -> Config: the base and its replicates first, then those of each variant.

    Raises:
        ConfigError: one message with every problem and its fix.
    """
    own = {**without_inherited(values, overrides or {}), "runs": [], "replicates": []}
    config = check_config(own, files=False)
    pilot, chosen = config.pilot, pilot_methods(config)
    problems = [*_problems(config, chosen), *(_size_problems(config) if files else [])]
    if problems:
        raise ConfigError(problems)
    base = pilot_name(config.run)
    variants = [_variant(f"{base}-{name}", settings) for name, settings in pilot.variants.items()]
    common = _common_values(own, config, chosen, [name for run in variants for name in run["selection"]["methods"]])
    runs = [{"run": base}, *(run for run in variants if _differs(run, common))]
    derived = check_runs({**common, "runs": runs}, files=files)
    if clashes := sorted(configs.keys() & derived.keys()):
        raise ConfigError([f"run: {', '.join(clashes)} is the name of a run of the pilot, too; rename it"])
    return derived


def pilot_methods(config: Config) -> list[str]:
    """The methods that the pilot compares, random last.

    By default all, but those that need CLIP only if the config names a CLIP model: the demo's toy model has seen none
    of the user's data.
    """
    if config.pilot.methods is not None:
        return config.pilot.methods
    has_clip = config.clip_model.name not in TINY_MODELS or not demo_settings(config)
    names = [
        name for name in methods.names() if has_clip or not {"clip_scores", "difficulty"} & set(methods.needs(name))
    ]
    return ["coincide", *(name for name in names if name != "random"), "random"]


def _problems(config: Config, chosen: list[str]) -> Iterator[str]:
    """Problems that the config alone shows."""
    pilot: Pilot = config.pilot
    available = ("coincide", *methods.names())
    for name in chosen:
        if name not in available:
            yield f"pilot.methods: unknown method {name!r}; available: {', '.join(available)}"
    if "random" not in chosen:
        yield "pilot.methods: methods are compared with random choice; add random"
    for name, settings in pilot.variants.items():
        if others := sorted(settings.keys() - set(VARIED)):
            yield (
                f"pilot.variants.{name}: only the sections {', '.join(VARIED)} may differ from those of random choice; "
                f"remove {', '.join(others)}"
            )
        if "random" in settings.get("selection", {}).get("methods", []):
            yield f"pilot.variants.{name}: random is compared with; remove it from selection.methods"


def _size_problems(config: Config) -> Iterator[str]:
    """Problems of the numbers of samples, questions, clusters and steps."""
    pilot: Pilot = config.pilot
    available = count_samples(config)
    samples = min(pilot.samples, available) if available else pilot.samples
    questions = int(samples * pilot.holdout)
    is_all = available is not None and available <= pilot.samples
    if questions < FEWEST:
        yield (
            f"pilot.holdout: {pilot.holdout:g} of {samples} samples are {questions} questions, fewer than {FEWEST}; "
            f"raise pilot.holdout{f' (the dataset has {available} samples)' if is_all else ' or pilot.samples'}"
        )
    rest = samples - questions
    clusters, budget = pilot.k or recommended_clusters(rest), total_budget(pilot.fraction, rest)
    if clusters > budget:
        yield (
            f"pilot.fraction: {pilot.fraction:g} of {rest} samples are {budget}, fewer than the {clusters} clusters of "
            "the pilot; raise pilot.samples or pilot.fraction, or lower pilot.k"
        )
    steps = int(budget * pilot.epochs / pilot.batch_size)
    if steps < FEWEST_STEPS:
        yield (
            f"pilot.batch_size: {budget} samples of a coreset in batches of {pilot.batch_size} are {steps} steps, "
            f"fewer than {FEWEST_STEPS}; raise pilot.samples, pilot.fraction or pilot.epochs, or lower pilot.batch_size"
        )


def _variant(run, settings):
    """An entry of `runs`; coincide is its method unless it names others."""
    return {"run": run, **settings, "selection": {"methods": ["coincide"], **settings.get("selection", {})}}


def _differs(run, common):
    """Whether a variant has any setting that the base has not."""
    for section in VARIED:
        own = {name: value for name, value in run.get(section, {}).items() if name != "methods"}
        defaults = Config.model_fields[section].annotation.model_fields
        for name, value in own.items():
            default = defaults[name].default if name in defaults else None
            if common[section].get(name, default) != value:
                return True
    return bool(set(run["selection"]["methods"]) - set(common["selection"]["methods"]))


def _common_values(values, config, chosen, of_variants):
    """What the runs of the pilot have in common, unchecked."""
    pilot = config.pilot
    needs = {need for name in [*chosen, *of_variants] for need in methods.needs(name)}
    extra = [name for name in methods.EXTRA_METRICS if name in needs]
    return {
        **{key: value for key, value in values.items() if key not in ("compare", "variant", "replicate")},
        "run": pilot_name(config.run),
        "replicates": pilot.replicates,
        "dataset": {
            **values["dataset"],
            "sample": min(pilot.samples, config.dataset.sample or pilot.samples),
            "shards": 1,
            "extends": None,
            "leaks": "ignore",
        },
        "reference_model": {
            **values["reference_model"],
            "sample_metrics": "sample_metrics" in needs or bool(extra),
            "extra_metrics": extra,
        },
        "clustering": {**values["clustering"], "k": pilot.k, "centroids": None, "fit_rows": None},
        "selection": {
            **values["selection"],
            "methods": chosen,
            "fractions": [pilot.fraction],
            "constraints": {},
            "fraction_of": "all",
            "keep_earlier": False,
            "cluster_groups": 1,
        },
        "target_model": _finetuned_model(values, config),
        "evaluation": {
            **{key: getattr(config.evaluation, key) for key in ("python", "batch_size", "device", "dtype")},
            "holdout": pilot.holdout,
            "groups": [{"name": HOLDOUT, "tasks": [HOLDOUT]}],
        },
    }


def _finetuned_model(values, config):
    """The section target_model of the pilot."""
    pilot, reference = config.pilot, config.reference_model
    training = {**values["target_model"]["training"], "epochs": pilot.epochs, "batch_size": pilot.batch_size}
    if pilot.learning_rate is not None:
        training["learning_rate"] = pilot.learning_rate
    if pilot.model == "target":
        return {**values["target_model"], "full": False, "training": training}
    return {
        "name": reference.name,
        "revision": reference.revision,
        "trust_remote_code": reference.trust_remote_code,
        "chat_template": reference.chat_template,
        "label": "reference",
        "full": False,
        "training": {**training, "gradient_accumulation": 1, "processes": 1, "nodes": 1, "sharding": "none"},
    }
