"""The config of a run, as typed models: what is checked before anything starts.

`config/schema.json` is generated from these models (`make schema`).
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError, model_validator

from coincide.budget import total_budget
from coincide.datasets import DatasetError, open_dataset
from coincide.methods import names, needs, settings

Count = Annotated[StrictInt, Field(ge=1)]
Size = Annotated[StrictInt, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]
Fraction = Annotated[float, Field(gt=0, le=1, strict=True)]
Name = Annotated[StrictStr, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Dtype = Literal["float32", "float16", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]


class ConfigError(ValueError):
    """A config that cannot be run; the message names each key and the mend.

    Args:
        problems: list of lines, one a wrong key.
    """

    def __init__(self, problems):
        super().__init__("the config cannot be used:\n" + "\n".join(f"  {p}" for p in problems))
        self.problems = problems


class Section(BaseModel):
    """A part of the config: unknown keys are errors, so that a typing slip is not a silent default."""

    model_config = ConfigDict(extra="forbid")


class Dataset(Section):
    """What is selected from."""

    annotations: StrictStr = Field(
        description="LLaVA or ShareGPT .json or .jsonl; .parquet or .tar (WebDataset), or a folder of them"
    )
    images: StrictStr | None = Field(
        None, description="folder that image names are relative to; null: where annotations is"
    )
    shards: Count = Field(1, description="extraction jobs")
    max_rejected: Share = Field(0.01, description="share of samples set aside above which the run stops")
    duplicate_ids: Literal["reject", "digest"] = Field(
        "reject", description="later rows of an id are set aside, or kept and named by a digest of their content"
    )
    decode_images: StrictBool = Field(
        True, description="decode every image before any model runs, to find truncated ones"
    )

    @model_validator(mode="after")
    def _images_beside(self):
        if self.images is None:
            here = Path(self.annotations)
            self.images = str(here if here.is_dir() else here.parent)
        return self


class MiniMix(Section):
    """Size of the default dataset, which the workflow writes itself."""

    samples: Count = 21000
    pretrain_samples: Count = 6000
    test_samples: Count = Field(100, description="questions of each evaluation task")
    validation_samples: Count = Field(100, description="questions of each task that settings may be tuned on")
    seed: Size = 0


class EvenMix(Section):
    """Size of the second dataset that the workflow writes itself: many small tasks of even size."""

    samples: Count = 9540
    test_samples: Count = Field(12, description="questions of each task")
    validation_samples: Count = Field(12, description="questions of each task that settings may be tuned on")
    seed: Size = 0


class Training(Section):
    """How a model is trained."""

    # what changes no result: a trained model stays when one of these changes
    OPERATIONAL: ClassVar = {"device", "save_every", "loader_workers", "processes", "nodes"}

    epochs: Positive = 1.0
    batch_size: Count = Field(16, description="samples a step, of all processes together")
    gradient_accumulation: Count = 1
    learning_rate: Positive
    projector_learning_rate: Positive | None = Field(
        None, description="of the layers between vision tower and decoder; null: the same"
    )
    max_tokens: Count | None = Field(None, description="longer samples are cut there, behind their images; null: not")
    warmup: Share = Field(0.03, description="share of the steps")
    weight_decay: Annotated[float, Field(ge=0, strict=True)] = 0.0
    adam_beta2: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.999
    schedule: Literal["cosine", "linear", "constant_with_warmup"] = "cosine"
    dtype: Dtype = Field("float32", description="of the arithmetic; weights stay float32")
    device: Device = "auto"
    save_every: Count = Field(200, description="steps between checkpoints")
    gradient_checkpointing: StrictBool = False
    loader_workers: Size = 0
    lora: "Lora | None" = Field(None, description="null trains all weights")
    processes: Count = Field(1, description="on each node, one a GPU")
    nodes: Count = Field(1, description="of one Slurm job")
    sharding: Literal["none", "fsdp"] = Field(
        "none", description="none: the model on every GPU; fsdp: spread over them"
    )

    @model_validator(mode="after")
    def _batches_divide(self):
        world = self.processes * self.nodes
        if self.batch_size % world:
            raise ValueError(f"batch_size {self.batch_size} cannot be divided among {world} processes")
        return self


class Lora(Section):
    """Low-rank adapters (peft)."""

    r: Count = 128
    alpha: Count = 256
    dropout: Share = 0.05
    target_modules: StrictStr | list[StrictStr] = Field(
        r".*language_model.*\.(q|k|v|o|gate|up|down)_proj", description="as peft takes it"
    )
    modules_to_save: list[StrictStr] = Field(["multi_modal_projector"], description="trained whole beside the adapters")


class Shape(Section):
    """Size of a model that the workflow builds itself."""

    vocabulary: Count = 1000
    image_size: Count = 64
    patch_size: Count = 16
    vision_hidden: Count
    vision_layers: Count
    hidden: Count
    layers: Count
    heads: Count

    @model_validator(mode="after")
    def _divides(self):
        for key, value in (("image_size", self.patch_size), ("hidden", self.heads), ("vision_hidden", self.heads)):
            if getattr(self, key) % value:
                raise ValueError(f"{key} must be a multiple of {value}")
        return self


class BuiltModel(Section):
    """A small model that the workflow builds and trains briefly on samples set aside for it."""

    shape: Shape
    training: Training
    seed: Size = 0


class ReferenceModel(Section):
    """The small model whose activations are read."""

    name: StrictStr = Field(description="hub name, or a folder")
    revision: StrictStr | None = None
    layers: list[StrictInt | Annotated[float, Field(gt=0, lt=1, strict=True)]] = Field(
        min_length=1,
        description="zero-based decoder layers, or fractions of depth: 0.5 is the layer that ends half-way",
    )
    dtype: Dtype = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] | None = Field(
        None, description="as transformers names it; null: its choice, sdpa. With flash samples share no image tokens"
    )
    device: Device = "auto"
    batch_tokens: Count | None = Field(
        None, description="tokens of a batch, padding counted; null: by device; halved where memory is short"
    )
    max_tokens: Count = Field(2048, description="longer samples are set aside")
    compiled: StrictBool = Field(False, description="torch.compile the layers that are passed through")
    trust_remote_code: StrictBool = False
    scores: StrictBool = Field(
        False, description="also read what some methods rank by; the whole model runs, not up to the last layer alone"
    )


class ClipModel(Section):
    """The CLIP that clip_score and self_filter ask; loaded where they are among the methods."""

    name: StrictStr = Field("openai/clip-vit-large-patch14-336", description="hub name, or a folder")
    revision: StrictStr | None = None
    dtype: Dtype = "float32"
    device: Device = "auto"
    batch_size: Count = 64


class Clustering(Section):
    """Spherical k-means."""

    k: Count = Field(description="number of clusters; the paper has about one for 66 samples")
    iterations: Count = 50
    seed: Size = 0
    backend: Literal["auto", "memory", "stream", "faiss", "torch", "cuml"] = "auto"
    fit_rows: Count | None = Field(None, description="fit on this many rows drawn at random, then assign all")


class Selection(Section):
    """Which samples are kept."""

    fractions: list[Fraction] = Field(min_length=1, description="shares of the dataset to keep")
    methods: list[StrictStr] = Field(
        ["coincide", "random"], min_length=1, description=f"coincide, or one of coincide/methods: {', '.join(names())}"
    )
    method_settings: dict[StrictStr, dict[str, Any]] = Field({}, description="settings of methods, by method")
    temperature: Positive = Field(0.1, description="τ of the softmax over clusters")
    gamma: Positive = Field(1.0, description="width of the Gaussian kernel")
    weigh_density: StrictBool = Field(True, description="false: shares by transferability alone, for ablations")
    within: Literal["mmd", "random"] = Field("mmd", description="picks inside a cluster; random for ablations")
    cluster_groups: Count = Field(1, description="jobs that share the clusters for density and picks; same result")
    blocks: Literal["text", "all"] = Field("text", description="columns of the centroids that transferability compares")
    exclude_above: Annotated[float, Field(ge=-1, le=1, strict=True)] = Field(
        0.9, description="cosine above which clusters count as near-copies"
    )
    device: Device = Field("auto", description="of transferability, density and picks; same result")
    seed: Size = Field(0, description="of the methods that draw at random")


class TargetModel(Section):
    """The large model that is finetuned."""

    name: StrictStr = Field(description="hub name, or a folder")
    label: Name = Field("target", description="its name in paths and tables")
    revision: StrictStr | None = None
    trust_remote_code: StrictBool = False
    seeds: list[Size] = Field([0], min_length=1)
    full: StrictBool = Field(
        True, description="also finetune on everything; relative performance is measured against it"
    )
    training: Training


class TaskGroup(Section):
    """Tasks that one job asks a model."""

    name: Name
    tasks: list[StrictStr] = Field(min_length=1, description="lmms-eval tasks or groups")


class Evaluation(Section):
    """What finetuned models are asked."""

    groups: list[TaskGroup] = Field(min_length=1, description="each is one job a model")
    include_path: StrictStr | None = Field(None, description="folder of further lmms-eval task files")
    backend: StrictStr = Field("coincide", description="lmms-eval model class: coincide (batched), or one of its own")
    python: StrictStr | None = Field(
        None, description="Python of another environment that has lmms-eval; null: the workflow's own"
    )
    batch_size: Count = 32
    device: Device = "auto"
    dtype: Dtype = "float32"
    limit: Count | None = Field(None, description="first questions of each task alone, for a look")
    learned_above: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="tasks on which the full-data model scores no higher stay out of the average relative "
        "performance: a ratio to a score at chance is noise; 0: all count, as in the paper",
    )


class TransferCheck(Section):
    """The premise, measured (snakemake … transfer_check): finetune on one cluster, ask the others."""

    clusters: Annotated[StrictInt, Field(ge=3)] = Field(16, description="drawn at random")
    samples: Count = Field(32, description="of a cluster to train on, and as many to ask")
    epochs: Positive = 2.0
    batch_size: Count = 8
    learning_rate: Positive = 1e-4
    device: Device = "auto"
    seed: Size = 0


class Modules(Section):
    """Environment modules that the stages load, with Snakemake's option `--sdm env-modules`."""

    dataset: list[StrictStr] = []
    extract: list[StrictStr] = []
    select: list[StrictStr] = []
    finetune: list[StrictStr] = []
    evaluate: list[StrictStr] = []
    report: list[StrictStr] = []


class Run(Section):
    """One of several runs: its name, and where it differs from what stands at the top of the config."""

    run: Name = Field(description="results go to results/<run>/")
    dataset: dict[str, Any] = {}
    reference_model: dict[str, Any] = {}
    clustering: dict[str, Any] = {}
    selection: dict[str, Any] = {}
    target_model: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}


class Config(Section):
    """A whole run."""

    run: Name = Field(description="results go to results/<run>/")
    runs: list[Run] = Field([], description="several runs in place of one; what they have in common is computed once")
    replicates: list[Size] = Field(
        [], description="seeds: each run is done once a seed, with clusters, draws and training of that seed"
    )
    variant: StrictStr = Field("", description="what tells runs apart in a comparison; filled in for replicates")
    replicate: Size = Field(0, description="number of the run among those of its variant; filled in")
    dataset: Dataset
    reference_model: ReferenceModel
    clustering: Clustering
    selection: Selection
    target_model: TargetModel
    evaluation: Evaluation
    transfer_check: TransferCheck = TransferCheck()
    mini_mix: MiniMix = MiniMix()
    even_mix: EvenMix = EvenMix()
    clip_model: ClipModel = ClipModel()
    built_models: dict[Literal["reference", "target", "clip"], BuiltModel] = {}
    modules: Modules = Modules()

    @model_validator(mode="after")
    def _seeds_once(self):
        for key, values in (
            ("replicates", self.replicates),
            ("selection.fractions", self.selection.fractions),
            ("selection.methods", self.selection.methods),
            ("target_model.seeds", self.target_model.seeds),
            ("evaluation.groups", [group.name for group in self.evaluation.groups]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: a value stands there twice; take one away")
        return self


# Paths that the workflow fills itself when the config points there.
MINI_MIX, EVEN_MIX = "resources/mini-mix", "resources/even-mix"
BUILT_MODELS = {f"resources/models/{name}": name for name in ("reference", "target", "clip")}


def check_runs(values, *, files=True):
    """Check a config that may list several runs.

    A run of `runs` is the rest of the config with the run's own settings laid over it: mappings are
    merged, anything else is replaced. With `replicates` each of them is done once a seed: run `x` becomes
    `x-0`, `x-1`, …

    Args:
        values: the config as YAML gives it.
        files: look at the files it names, too.

    Returns:
        dict of run -> Config, in the order of the config.

    Raises:
        ConfigError: one message with every wrong key of every run.
    """
    if not values.get("runs"):
        config = check_config({**values, "runs": []}, files=files)
        return {run: check_config(own, files=False) for run, own in _replicates({**values, "runs": []}, config, "")}
    common = {key: value for key, value in values.items() if key != "runs"}
    configs, problems = {}, []
    for i, own in enumerate(values["runs"]):
        try:
            run = Run.model_validate(own)
            laid = {"replicate": i, **_laid_over(common, own)}
            config = check_config(laid, files=files)
        except ValidationError as error:
            problems += [f"runs[{i}].{_line(e, Run)}" for e in error.errors()]
            continue
        except ConfigError as error:
            problems += [f"runs[{i}] ({run.run}): {line}" for line in error.problems]
            continue
        # the first is what the others are variants of
        for name, replicate in _replicates(laid, config, run.run if i else ""):
            if name in configs:
                problems.append(f"runs[{i}].run: {name} stands there twice; give it a name of its own")
            configs[name] = check_config(replicate, files=False)
    if problems:
        raise ConfigError(problems)
    return configs


def _replicates(values, config, variant):
    """(run, config as YAML gives it) of each replicate of a run; the run itself where there are none."""
    if not config.replicates:
        yield config.run, values
    for number, seed in enumerate(config.replicates):
        own = {
            "run": f"{config.run}-{seed}",
            "variant": variant,
            "replicate": number,
            "clustering": {"seed": seed},
            "selection": {"seed": seed},
            "target_model": {"seeds": [seed]},
        }
        yield own["run"], _laid_over(values, own)


def _laid_over(values, own):
    merged = dict(values)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if both else value
    return merged


def check_config(values, *, files=True):
    """Check the config of one run and fill in its defaults.

    Args:
        values: the config as YAML gives it.
        files: look at the files it names, too.

    Returns:
        Config.

    Raises:
        ConfigError: one message with every wrong key, what is wrong and what it may be.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(list(dict.fromkeys(_line(e, Config) for e in error.errors()))) from None
    problems = [*_methods(config)]
    if files and not problems:
        problems = [*_paths(config), *_layers(config), *_sizes(config)]
    if problems:
        raise ConfigError(problems)
    return config


def _line(error, model):
    location = [
        part
        for part in error["loc"]
        if not (isinstance(part, str) and re.match(r"^(constrained|int$|float$|list|str)", part))
    ]
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        return f"{key}: unknown key; remove it, or did you mean one of: {', '.join(known)}?"
    if error["type"] == "missing":
        return f"{key}: missing; add it"
    got = error["input"]
    got = f", it is {got!r}" if not isinstance(got, dict | list) and location else ""
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{key}: {message}{got}" if key else message


def _known_keys(model, location):
    for part in location:
        if not isinstance(part, str) or part not in getattr(model, "model_fields", {}):
            continue
        annotation = model.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next((m for m in options if isinstance(m, type) and issubclass(m, BaseModel)), model)
    return sorted(model.model_fields)


def _methods(config):
    known = ("coincide", *names())
    chosen, given = config.selection.methods, config.selection.method_settings
    for name in dict.fromkeys([*chosen, *given]):
        if name not in known:
            key = "methods" if name in chosen else f"method_settings.{name}"
            yield f"selection.{key}: {name!r} is no method; take one of: {', '.join(known)}"
        elif name == "coincide":
            if name in given:
                yield "selection.method_settings.coincide: coincide's settings stand in clustering and selection"
        else:
            try:
                settings(name, given.get(name, {}))
            except ValueError as error:
                yield f"selection.method_settings.{name}: {error}"
            if name in chosen and "scores" in needs(name) and not config.reference_model.scores:
                yield f"selection.methods: {name} needs the reference model's scores: set reference_model.scores: true"


def _paths(config):
    dataset = config.dataset
    if dataset.annotations not in [f"{mix}/train.json" for mix in (MINI_MIX, EVEN_MIX)]:
        try:
            open_dataset(dataset.annotations)
        except DatasetError as error:
            yield f"dataset.annotations: {error}"
    mixes = [f"{mix}/images" for mix in (MINI_MIX, EVEN_MIX)]
    if dataset.images not in mixes and not Path(dataset.images).is_dir():
        yield f"dataset.images: the folder {dataset.images} does not exist; give the one image names are relative to"
    models = {"reference_model": config.reference_model, "target_model": config.target_model}
    if any("clip_scores" in needs(name) for name in config.selection.methods):
        models["clip_model"] = config.clip_model
    for key, model in models.items():
        built = BUILT_MODELS.get(model.name)
        if built and built not in config.built_models:
            yield f"{key}.name: {model.name} is built by the workflow, but built_models.{built} is missing; add it"
        if not built and model.name.startswith(("/", "./", "../", "resources/")) and not Path(model.name).is_dir():
            yield f"{key}.name: the folder {model.name} does not exist; give a folder or a hub name"
    if config.evaluation.python and not Path(config.evaluation.python).is_file():
        yield f"evaluation.python: {config.evaluation.python} does not exist; give the path of a Python, or null"
    if config.evaluation.include_path and not Path(config.evaluation.include_path).is_dir():
        yield f"evaluation.include_path: the folder {config.evaluation.include_path} does not exist"


def _layers(config):
    from coincide.layers import config_depth, resolve_layers

    built = BUILT_MODELS.get(config.reference_model.name)
    if built in config.built_models:
        depth = config.built_models[built].shape.layers
    else:
        depth = config_depth(config.reference_model.name)
    if depth is not None:
        try:
            resolve_layers(config.reference_model.layers, depth)
        except ValueError as error:
            yield f"reference_model.layers: {error}"


def _sizes(config):
    if config.dataset.annotations == f"{MINI_MIX}/train.json":
        n = config.mini_mix.samples
    elif config.dataset.annotations == f"{EVEN_MIX}/train.json":
        n = config.even_mix.samples
    elif config.dataset.annotations.endswith((".json", ".jsonl")) and Path(config.dataset.annotations).is_file():
        n = _count_conversations(config.dataset.annotations)
    else:
        return
    if config.clustering.k > n:
        yield f"clustering.k: {config.clustering.k} clusters of {n} samples; take at most {n}, better {max(n // 66, 1)}"
    if config.dataset.shards > n:
        yield f"dataset.shards: {config.dataset.shards} shards of {n} samples; take fewer"
    for fraction in config.selection.fractions:
        if total_budget(fraction, n) < 1:
            yield f"selection.fractions: {fraction} of {n} samples keeps none; take at least {1 / n:.2g}"


@cache
def _count_conversations(path):
    """Number of samples in a JSON file, by its keys: an upper bound, found without parsing gigabytes."""
    return max(_count(path, key) for key in (b'"conversations"', b'"messages"'))


def _count(path, key):
    count, tail = 0, b""
    with open(path, "rb") as file:
        while chunk := file.read(2**24):
            count += (tail + chunk).count(key)
            tail = chunk[-len(key) + 1 :]
    return count


def schema():
    """JSON schema of the config, as text."""
    return json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
