"""Checks of a config before any job starts, and its JSON schema (`make schema` writes config/schema.json)."""

import difflib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from coincide import methods
from coincide.base.errors import UserError
from coincide.base.files import in_workflow_folder
from coincide.base.sections import Config, ConvertedModel
from coincide.dataset.earlier import check_earlier_run
from coincide.dataset.formats import DatasetError, expand_annotations, open_dataset
from coincide.dataset.json_formats import RECORD_KEYS
from coincide.demo import PRETRAINED
from coincide.demo.source_sizes import SOURCE_SIZES
from coincide.models.layers import config_depth, resolve_layers
from coincide.selection.bounds import read_ids
from coincide.selection.budget import total_budget
from coincide.selection.conflicts import budget_in_words, conflicts_of_counts, conflicts_of_settings, shared_ids
from coincide.selection.growth import growth_problems

# Datasets and models that the workflow builds when the config names them.
MINI_MIX, EVEN_MIX = "resources/mini-mix", "resources/even-mix"
DEMO_TASKS = ("mini_mix", "even_mix")  # beginnings of the names of the demo's evaluation tasks
MODELS = "resources/models"
TINY_MODELS = {f"{MODELS}/{name}": name for name in ("reference", "target", "clip")}


class ConfigError(UserError):
    """A config that cannot be run; the message names every wrong key and how to fix it.

    Args:
        problems: one line per problem.
    """

    def __init__(self, problems: list[str]):
        super().__init__("invalid config:\n" + "\n".join(f"  {p}" for p in problems))
        self.problems = problems


def check_config(values: dict[str, Any], *, files: bool = True) -> Config:
    """Check the config of a single run and fill in its defaults.

    Args:
        values: the config as read from YAML.
        files: also check the files and folders that it names.

    Raises:
        ConfigError: one message with every wrong key, what is wrong with it, and which values are allowed.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(list(dict.fromkeys(problem_line(e, Config) for e in error.errors()))) from None
    constraints = config.selection.constraints
    problems = [*_method_problems(config), *_extra_metric_problems(config), *_fraction_problems(config)]
    problems += [*conflicts_of_settings(constraints), *_mix_problems(config)]
    if config.selection.takes_over and config.dataset.extends is None:
        key = "keep_earlier" if config.selection.keep_earlier else "fraction_of"
        problems.append(
            f"selection.{key}: there is no earlier run; set dataset.extends to the folder of a finished run, or remove "
            f"selection.{key}"
        )
    if files and not problems:
        problems = [*_path_problems(config), *_layer_problems(config), *_size_problems(config)]
        problems += _constraint_problems(config)
    if problems:
        raise ConfigError(problems)
    return config


def check_workflow_folder(folder: str) -> None:
    """Check the path of the folder that contains the Snakefile.

    Raises:
        ConfigError: Snakemake cannot run from this path.
    """
    problems = list(_brace_problems("the folder of the workflow", [folder]))
    if problems:
        raise ConfigError(problems)


def problem_line(error: ErrorDetails, model: type[BaseModel]) -> str:
    """One line for a validation error of pydantic: key, what is wrong, what to do."""
    # pydantic's location also names the alternatives of a union that it tried
    location = [
        key
        for key in error["loc"]
        if not (isinstance(key, str) and re.match(r"^(constrained|int$|float$|list|str)", key))
    ]
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in location).lstrip(".")
    if error["type"] == "extra_forbidden":
        allowed = _allowed_keys(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1)
        advice = f"did you mean {close[0]}?" if close else f"allowed keys: {', '.join(allowed)}"
        if ":" in str(location[-1]):
            advice = "YAML requires a space after the colon"
        return f"{path}: unknown key; {advice}"
    if error["type"] == "missing":
        return f"{path}: missing; add it"
    value = error["input"]
    shown = f"; got {value!r}" if not isinstance(value, dict | list) and location else ""
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{path}: {message}{shown}" if path else message


def _allowed_keys(model, location):
    """Keys of the section at a location in the config."""
    for key in location:
        if not isinstance(key, str) or key not in getattr(model, "model_fields", {}):
            continue  # an index of a list or a key of a mapping
        annotation = model.model_fields[key].annotation
        alternatives = getattr(annotation, "__args__", (annotation,))
        model = next((a for a in alternatives if isinstance(a, type) and issubclass(a, BaseModel)), model)
    return sorted(model.model_fields)


def _mix_problems(config: Config) -> Iterator[str]:
    for name in config.mini_mix.weights:
        if name not in SOURCE_SIZES:
            yield f"mini_mix.weights: unknown source {name!r}; available: {', '.join(SOURCE_SIZES)}"


def _method_problems(config: Config) -> Iterator[str]:
    available = ("coincide", *methods.names())
    selected, settings = config.selection.methods, config.selection.method_settings
    for name in dict.fromkeys([*selected, *settings]):
        if name not in available:
            key = "methods" if name in selected else f"method_settings.{name}"
            yield f"selection.{key}: unknown method {name!r}; available: {', '.join(available)}"
        elif name == "coincide":
            if name in settings:
                yield (
                    "selection.method_settings.coincide: coincide is configured in the sections clustering and "
                    "selection; remove the key"
                )
        else:
            try:
                methods.settings(name, settings.get(name, {}))
            except ValueError as error:
                yield f"selection.method_settings.{name}: {error}"
            needs_metrics = name in selected and "sample_metrics" in methods.needs(name)
            if needs_metrics and not config.reference_model.sample_metrics:
                yield f"selection.methods: {name} needs per-sample metrics; set reference_model.sample_metrics: true"
            for metric in methods.EXTRA_METRICS:
                needed = name in selected and metric in methods.needs(name)
                if needed and metric not in config.reference_model.extra_metrics:
                    yield f"selection.methods: {name} needs {metric}; add it to reference_model.extra_metrics"


def _extra_metric_problems(config: Config) -> Iterator[str]:
    reference = config.reference_model
    if reference.extra_metrics and not reference.sample_metrics:
        yield (
            "reference_model.extra_metrics: they are part of the sample metrics; set reference_model.sample_metrics: "
            "true, or remove them"
        )


def _fraction_problems(config: Config) -> Iterator[str]:
    """Fractions are in the paths of results."""
    by_path: dict[str, float] = {}
    for fraction in config.selection.fractions:
        other = by_path.setdefault(f"{fraction:g}", fraction)
        if other != fraction:
            yield (
                f"selection.fractions: {other!r} and {fraction!r} would both be written to …/{fraction:g}/; remove "
                "one, or make them differ within six digits"
            )


def _path_problems(config: Config) -> Iterator[str]:
    yield from _dataset_path_problems(config)
    yield from _model_path_problems(config)
    yield from _centroid_problems(config)
    python, include_path = config.evaluation.python, config.evaluation.include_path
    if python and not Path(python).is_file():
        yield f"evaluation.python: {python} does not exist; set it to the path of a Python interpreter, or null"
    if include_path and not _is_folder(in_workflow_folder(include_path)):
        advice = "set it to an existing folder, or null"
        yield f"evaluation.include_path: the folder {include_path} does not exist; {advice}"


def _dataset_path_problems(config):
    dataset = config.dataset
    yield from _brace_problems("dataset.images", dataset.image_folders)
    if dataset.annotations not in [f"{mix}/train.json" for mix in (MINI_MIX, EVEN_MIX)]:
        try:
            yield from _brace_problems("dataset.annotations", expand_annotations(dataset.annotations))
            next(iter(open_dataset(dataset.annotations)))  # a format that cannot be read is reported at once
        except DatasetError as error:
            yield f"dataset.annotations: {error}"
        except StopIteration:
            yield "dataset.annotations: the dataset contains no samples"
    if dataset.extends is not None:
        if Path(dataset.extends).resolve() == Path(f"results/{config.run}").resolve():
            yield f"dataset.extends: {dataset.extends} is the folder of this run; set run to another name"
        else:
            try:
                check_earlier_run(dataset.extends, sample_metrics=config.reference_model.sample_metrics)
            except UserError as error:
                yield f"dataset.extends: {error}"
    if dataset.images not in [f"{mix}/images" for mix in (MINI_MIX, EVEN_MIX)] and not _is_folder(dataset.images):
        advice = "set it to the folder that image names are relative to"
        yield f"dataset.images: the folder {dataset.images} does not exist; {advice}"


def _brace_problems(key, paths):
    """Snakemake would replace braces in the path of an input with the value of a wildcard, and knows no escape."""
    for path in paths:
        if "{" in path or "}" in path:
            yield f"{key}: {path} has braces, which Snakemake reserves; rename it, or set a link without braces"


def _centroid_problems(config):
    """The centroids of a finished run, with the clusters next to them."""
    if (centroids := config.clustering.centroids) is None:
        return
    if Path(centroids).resolve() == Path(f"results/{config.run}/centroids.parquet").resolve():
        yield f"clustering.centroids: {centroids} is written by this run; set run to another name"
    for path in (Path(centroids), Path(centroids).with_name("clusters.parquet")):
        if not path.is_file():
            advice = "set it to the centroids.parquet of a finished run, or null"
            yield f"clustering.centroids: {path} does not exist; {advice}"


def _is_folder(path):
    try:
        return Path(path).is_dir()
    except OSError:  # a name that is too long
        return False


def _model_path_problems(config):
    models = {"reference_model": config.reference_model, "target_model": config.target_model}
    if any("clip_scores" in methods.needs(name) for name in config.selection.methods):
        models["clip_model"] = config.clip_model
    for section, model in models.items():
        yield from _brace_problems(f"{section}.name", [model.name])
        if section != "clip_model" and conversion_of(model.name, config):
            continue
        tiny_model = TINY_MODELS.get(model.name)
        if tiny_model:
            if tiny_model not in config.tiny_models:
                yield (
                    f"{section}.name: {model.name} is built by the workflow, but tiny_models.{tiny_model} is missing; "
                    "add it"
                )
        elif model.name.startswith(("/", "./", "../", "resources/")) and not _is_folder(model.name):
            built = f", or add {model.name.removeprefix(f'{MODELS}/')} to converted_models"
            yield (
                f"{section}.name: the folder {model.name} does not exist; set it to an existing folder or a hub name"
                + (built if model.name.startswith(f"{MODELS}/") and section != "clip_model" else "")
            )
    yield from _conversion_problems(config)


def _conversion_problems(config):
    for name, model in config.converted_models.items():
        if f"{MODELS}/{name}" in TINY_MODELS:
            yield f"converted_models.{name}: the demo's models have this name; rename it"
        for key, source in model.sources.items():
            yield from _brace_problems(f"converted_models.{name}.{key}.name", [source.name])
            missing = source.name.startswith(("/", "./", "../", "resources/")) and not _is_folder(source.name)
            if missing and not _is_folder(f"{MODELS}/{name}"):
                yield (
                    f"converted_models.{name}.{key}.name: the folder {source.name} does not exist; set it to an "
                    "existing folder or a hub name"
                )


def _layer_problems(config: Config) -> Iterator[str]:
    tiny_model = TINY_MODELS.get(config.reference_model.name)
    conversion = conversion_of(config.reference_model.name, config)
    depth: int | None
    if conversion:
        depth = config_depth(conversion.decoder.name)
    elif tiny_model in config.tiny_models:
        model = config.tiny_models[tiny_model]
        depth = model.shape.layers if model.shape else config_depth(PRETRAINED / str(model.pretrained))
    else:
        depth = config_depth(config.reference_model.name)
    if depth is not None:
        try:
            resolve_layers(config.reference_model.layers, depth)
        except ValueError as error:
            yield f"reference_model.layers: {error}"


def conversion_of(name: str, config: Config) -> ConvertedModel | None:
    """The conversion that writes a model, if one does."""
    folder, _, key = name.rpartition("/")
    return config.converted_models.get(key) if folder == MODELS else None


def used_conversions(config: Config) -> dict[str, ConvertedModel]:
    """The conversions whose models a run uses: dict of the model's folder -> section."""
    names = (config.reference_model.name, config.target_model.name)
    return {name: model for name in names if (model := conversion_of(name, config))}


def is_to_be_built(path: str | list[str]) -> bool:
    """Whether the path of a model or of annotations is of what the workflow builds itself, and has not yet built."""
    if not isinstance(path, str):
        return False
    built = [*TINY_MODELS, *(f"{mix}/train.json" for mix in (MINI_MIX, EVEN_MIX))]
    return path in built and not Path(path).exists()


def demo_settings(config: Config) -> list[str]:
    """One line for each setting that is still the demo's although the dataset is the user's own."""
    if config.dataset.annotations in [f"{mix}/train.json" for mix in (MINI_MIX, EVEN_MIX)]:
        return []
    lines = [
        f"{section}.name is the demo's toy model ({model.name}), which has seen none of your data"
        for section, model in (("reference_model", config.reference_model), ("target_model", config.target_model))
        if model.name in TINY_MODELS
    ]
    tasks = [task for group in config.evaluation.groups for task in group.tasks if task.startswith(DEMO_TASKS)]
    if tasks:
        lines.append(f"evaluation.groups asks the demo's questions ({', '.join(tasks)}), not questions on your data")
    return lines


def _size_problems(config: Config) -> Iterator[str]:
    n = count_samples(config)
    if not n:
        return
    if config.clustering.k and config.clustering.k > n:
        yield (
            f"clustering.k: {config.clustering.k} clusters for {n} samples; at most {n}; null gives one per 66 samples"
        )
    if config.dataset.shards > n:
        yield f"dataset.shards: {config.dataset.shards} shards for {n} samples; at most {n}"
    for fraction in config.selection.fractions:
        if total_budget(fraction, n) < 1:
            yield f"selection.fractions: {fraction} of {n} samples keeps none; at least {1 / n:.2g} keeps one"


def _constraint_problems(config: Config) -> Iterator[str]:
    """Of constraints, what ids and the number of samples show; the rest needs the manifest."""
    constraints, n = config.selection.constraints, count_samples(config)
    try:
        yield from shared_ids(constraints)
        yield from growth_problems(config, n, read_ids(constraints.exclude))
        for fraction in config.selection.fractions if n else []:
            if config.selection.fraction_of == "all":
                yield from conflicts_of_counts(
                    constraints, total_budget(fraction, n or 0), budget_in_words(fraction, n or 0)
                )
    except UserError as error:  # a file of ids
        yield f"selection.constraints: {error}"


def count_samples(config: Config) -> int | None:
    """Number of samples to use, an upper bound for JSON; None if they cannot be counted quickly."""
    count, sample = _count_dataset(config), config.dataset.sample
    return min(count, sample) if count and sample else count


def _count_dataset(config):
    annotations = config.dataset.annotations
    if annotations == f"{MINI_MIX}/train.json":
        return config.mini_mix.samples
    if annotations == f"{EVEN_MIX}/train.json":
        return config.even_mix.samples
    try:
        paths = expand_annotations(annotations)
    except DatasetError:  # reported by _dataset_path_problems
        return None
    if all(path.endswith((".json", ".jsonl")) and Path(path).is_file() for path in paths):
        return sum(map(_count_records, paths)) or None
    return None


@cache
def _count_records(path):
    """Upper bound of the number of samples in a JSON file, from a count of its keys: parsing gigabytes is slow."""
    return max(_count_bytes(path, key) for key in [f'"{key}"'.encode() for key in sorted(RECORD_KEYS)])


def _count_bytes(path, key):
    """Number of times that a byte string occurs in a file."""
    count, tail = 0, b""
    with open(path, "rb") as file:
        while chunk := file.read(2**24):
            count += (tail + chunk).count(key)
            tail = chunk[-len(key) + 1 :]
    return count


def schema(*, overlay: bool = False) -> str:
    """JSON schema of the config, as text.

    Args:
        overlay: of a config that is merged into config.yaml with --configfile, in which no key is required.
    """
    values = Config.model_json_schema()
    selection = values["$defs"]["Selection"]["properties"]
    selection["methods"]["items"]["enum"] = ["coincide", *methods.names()]
    selection["method_settings"]["propertyNames"] = {"enum": methods.names()}
    if overlay:
        values["title"] = "Overlay"
        _require_nothing(values)
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def _require_nothing(value):
    """Remove the lists of required keys from a schema, except those of the items of lists."""
    if isinstance(value, dict):
        if isinstance(value.get("required"), list) and value.get("title") not in ("TaskGroup", "Run"):
            del value["required"]
        for nested in value.values():
            _require_nothing(nested)
    elif isinstance(value, list):
        for nested in value:
            _require_nothing(nested)
