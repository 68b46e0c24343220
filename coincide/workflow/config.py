"""Checks of a config before anything starts, and its JSON schema (`make schema` writes config/schema.json)."""

import difflib
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from coincide import methods
from coincide.base.errors import UserError
from coincide.base.sections import Config
from coincide.dataset.formats import DatasetError, open_dataset
from coincide.models.layers import config_depth, resolve_layers
from coincide.selection.budget import total_budget

# folders that the workflow fills itself when the config points there
MINI_MIX, EVEN_MIX = "resources/mini-mix", "resources/even-mix"
TINY_MODELS = {f"resources/models/{name}": name for name in ("reference", "target", "clip")}


class ConfigError(UserError):
    """A config that cannot be run; the message names every wrong key with its fix.

    Args:
        problems: one line per problem.
    """

    def __init__(self, problems: list[str]):
        super().__init__("the config cannot be used:\n" + "\n".join(f"  {p}" for p in problems))
        self.problems = problems


def check_config(values: dict[str, Any], *, files: bool = True) -> Config:
    """Check the config of one run and fill in its defaults.

    Args:
        values: the config as read from YAML.
        files: also check the files and folders that it names.

    Raises:
        ConfigError: one message with every wrong key: what is wrong and what is allowed.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(list(dict.fromkeys(problem_line(e, Config) for e in error.errors()))) from None
    problems = [*_methods(config)]
    if files and not problems:
        problems = [*_paths(config), *_layers(config), *_sizes(config)]
    if problems:
        raise ConfigError(problems)
    return config


def problem_line(error, model: type[BaseModel]) -> str:
    """One line for a validation error of pydantic: key, what is wrong, what to do."""
    # pydantic puts the tried alternatives of a union into the location
    location = [
        part
        for part in error["loc"]
        if not (isinstance(part, str) and re.match(r"^(constrained|int$|float$|list|str)", part))
    ]
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), known, n=1)
        advice = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {advice}"
    if error["type"] == "missing":
        return f"{key}: missing; add it"
    value = error["input"]
    shown = f"; got {value!r}" if not isinstance(value, dict | list) and location else ""
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{key}: {message}{shown}" if key else message


def _known_keys(model, location):
    for part in location:
        if not isinstance(part, str) or part not in getattr(model, "model_fields", {}):
            continue
        annotation = model.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next((m for m in options if isinstance(m, type) and issubclass(m, BaseModel)), model)
    return sorted(model.model_fields)


def _methods(config: Config) -> Iterator[str]:
    known = ("coincide", *methods.names())
    selected, settings = config.selection.methods, config.selection.method_settings
    for name in dict.fromkeys([*selected, *settings]):
        if name not in known:
            key = "methods" if name in selected else f"method_settings.{name}"
            yield f"selection.{key}: unknown method {name!r}; available: {', '.join(known)}"
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
            if (
                name in selected
                and "sample_metrics" in methods.needs(name)
                and not config.reference_model.sample_metrics
            ):
                yield f"selection.methods: {name} needs per-sample metrics; set reference_model.sample_metrics: true"


def _paths(config: Config) -> Iterator[str]:
    dataset = config.dataset
    if dataset.annotations not in [f"{mix}/train.json" for mix in (MINI_MIX, EVEN_MIX)]:
        try:
            open_dataset(dataset.annotations)
        except DatasetError as error:
            yield f"dataset.annotations: {error}"
    mixes = [f"{mix}/images" for mix in (MINI_MIX, EVEN_MIX)]
    if dataset.images not in mixes and not Path(dataset.images).is_dir():
        yield (
            f"dataset.images: the folder {dataset.images} does not exist; set it to the folder that image names are "
            "relative to"
        )
    models = {"reference_model": config.reference_model, "target_model": config.target_model}
    if any("clip_scores" in methods.needs(name) for name in config.selection.methods):
        models["clip_model"] = config.clip_model
    for key, model in models.items():
        tiny = TINY_MODELS.get(model.name)
        if tiny and tiny not in config.tiny_models:
            yield f"{key}.name: {model.name} is built by the workflow, but tiny_models.{tiny} is missing; add it"
        if not tiny and model.name.startswith(("/", "./", "../", "resources/")) and not Path(model.name).is_dir():
            yield f"{key}.name: the folder {model.name} does not exist; give an existing folder or a hub name"
    python, include_path = config.evaluation.python, config.evaluation.include_path
    if python and not Path(python).is_file():
        yield f"evaluation.python: {python} does not exist; give the path of a Python interpreter, or null"
    if include_path and not Path(include_path).is_dir():
        yield f"evaluation.include_path: the folder {include_path} does not exist; give an existing folder, or null"


def _layers(config: Config) -> Iterator[str]:
    tiny = TINY_MODELS.get(config.reference_model.name)
    if tiny in config.tiny_models:
        depth: int | None = config.tiny_models[tiny].shape.layers
    else:
        depth = config_depth(config.reference_model.name)
    if depth is not None:
        try:
            resolve_layers(config.reference_model.layers, depth)
        except ValueError as error:
            yield f"reference_model.layers: {error}"


def _sizes(config: Config) -> Iterator[str]:
    if config.dataset.annotations == f"{MINI_MIX}/train.json":
        n = config.mini_mix.samples
    elif config.dataset.annotations == f"{EVEN_MIX}/train.json":
        n = config.even_mix.samples
    elif config.dataset.annotations.endswith((".json", ".jsonl")) and Path(config.dataset.annotations).is_file():
        n = _count_conversations(config.dataset.annotations)
    else:
        return
    if config.clustering.k > n:
        recommended = max(n // 66, 1)
        yield f"clustering.k: {config.clustering.k} clusters for {n} samples; at most {n}, recommended {recommended}"
    if config.dataset.shards > n:
        yield f"dataset.shards: {config.dataset.shards} shards for {n} samples; at most {n}"
    for fraction in config.selection.fractions:
        if total_budget(fraction, n) < 1:
            yield f"selection.fractions: {fraction} of {n} samples keeps none; at least {1 / n:.2g} keeps one"


@cache
def _count_conversations(path):
    """Upper bound of the number of samples in a JSON file: its keys are counted without parsing gigabytes."""
    return max(_count(path, key) for key in (b'"conversations"', b'"messages"'))


def _count(path, key):
    count, tail = 0, b""
    with open(path, "rb") as file:
        while chunk := file.read(2**24):
            count += (tail + chunk).count(key)
            tail = chunk[-len(key) + 1 :]
    return count


def schema() -> str:
    """JSON schema of the config, as text."""
    return json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
