"""The check before the first job: what would fail only after hours on a GPU fails here within seconds, on the CPU.

It loads the configs and processors of the models, builds the models without weights, encodes samples of the user's own
data as extraction and training will, looks up the tasks of the evaluation, and compares what the jobs ask for with what
they need and what there is. All problems are reported at once, each with its fix. The result records which commit each
hub name means; later jobs use that commit.
"""

import json
import logging
import math
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from coincide import methods
from coincide.base.errors import UserError
from coincide.base.files import in_workflow_folder, replacing, write_json
from coincide.base.gpus import machine_gpus
from coincide.base.sections import HOLDOUT, Checkpoint, Config, Node
from coincide.dataset.examples import SCANNED, find_examples
from coincide.dataset.formats import open_dataset
from coincide.dataset.images import ImageError, image_names, open_image
from coincide.dataset.samples import RejectedSample, Sample
from coincide.evaluation import lmms_start
from coincide.extraction.clip import text_of
from coincide.extraction.encoding import Encoder
from coincide.extraction.extractor import image_token
from coincide.extraction.features import decoder_layers
from coincide.models.chat import fixed_prefix
from coincide.models.conversion import check_weights, describe, write_description
from coincide.models.empty import build_empty, count_image_features, max_positions
from coincide.models.families import FamilyError, family_of
from coincide.models.layers import resolve_layers
from coincide.models.loading import load_config, load_processor
from coincide.models.revisions import resolve, use_cache_if_unreachable
from coincide.training.adaptation import freeze, with_lora
from coincide.training.collator import IGNORED_LABEL, Collator
from coincide.workflow.config import conversion_of, count_samples, is_to_be_built
from coincide.workflow.job import set_revisions
from coincide.workflow.job_resources import (
    GIB,
    LEAST_PROCESS_MEMORY,
    Demand,
    demand,
    read_sizes,
    rules_with_demand,
    training_gpu_memory,
    training_memory,
)
from coincide.workflow.stages import preflight_settings

log = logging.getLogger(__name__)

LISTING_TIMEOUT = 300  # seconds for lmms-eval to list its tasks
CLOSE_NAMES = 3
REVISIONS = (
    "revisions.json"  # commits of the models of a run; not an output of a rule, so that they outlive a new check
)
BYTES_PER_ACTIVATION_VALUE = 2


class PreflightError(UserError):
    """A run that cannot work; the message has every problem, with its fix.

    Args:
        problems: one line per problem.
    """

    def __init__(self, problems: Sequence[str]):
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        super().__init__(f"{count} to fix before the first job:\n" + "\n".join(f"  {problem}" for problem in problems))
        self.problems = list(problems)


@dataclass
class Machine:
    """What the node has that jobs run on; None: not known.

    Attributes:
        gpus: number of GPUs.
        gpu_memory: GiB of each.
        memory: GiB of host memory.
        source: where this is known from, for messages.
    """

    gpus: int | None
    gpu_memory: float | None
    memory: float | None
    source: str


@dataclass
class Findings:
    """What the checks found.

    Attributes:
        problems: one line each.
        models: section -> facts of its model.
        samples: facts of the encoded samples.
        evaluation: facts of lmms-eval.
        resources: rule -> what its jobs ask for and need.
    """

    problems: list[str] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def problem(self, key: str, fix: str) -> Iterator[None]:
        """Context in which an error is a problem of a config key: its own message, and the fix.

        The traceback goes to the log, so that no cause is hidden.
        """
        try:
            yield
        except UserError as error:
            self.problems.append(f"{key}: {error}")
        except Exception as error:
            log.exception("%s", key)
            message = " ".join(str(error).split())
            self.problems.append(f"{key}: {type(error).__name__}: {message}; {fix}")


@dataclass
class _Loaded:
    """A model without weights, its processor and the key of its section."""

    key: str
    model: Any
    processor: Any


def preflight(
    config: Config,
    *,
    machine: Machine,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    results: str | Path = "results",
) -> dict[str, Any]:
    """Check a run before its first job.

    Args:
        config: Config of the run.
        machine: the node that jobs run on.
        overrides: resources that the profile sets, by rule.
        results: folder whose disk the results go to.

    Returns:
        dict of models (name, revision, digest, parameters, …), samples, evaluation and resources, JSON values.

    Raises:
        PreflightError: with every problem.
    """
    found = Findings()
    sizes = read_sizes(config)  # as the workflow knows them now, before anything is downloaded
    if any(not Path(name).is_dir() and not is_to_be_built(name) for name in _model_names(config)):
        use_cache_if_unreachable()
    listing = _start_listing(config)
    reference, target = _load_models(config, found)
    examples = _find_examples(config, found)
    _check_reference(config, reference, examples, found)
    _check_target(config, target, examples, found)
    if needs_clip(config):
        _check_clip(config, examples, found)
    asked = {rule: _asked(demand(config, rule, sizes), (overrides or {}).get(rule, {})) for rule in rules_with_demand()}
    _check_resources(config, asked, machine, found)
    _check_disk(config, results, found)
    _check_evaluation(config, listing, found)
    if found.problems:
        raise PreflightError(list(dict.fromkeys(found.problems)))
    return {name: value for name, value in asdict(found).items() if name != "problems"}


def needs_clip(config: Config) -> bool:
    """Whether a selected method reads CLIP scores."""
    return any("clip_scores" in methods.needs(method) for method in config.selection.methods)


def _model_names(config):
    """Names of the models that the run reads: hub names or folders."""
    models = [config.reference_model, config.target_model, *[config.clip_model] * needs_clip(config)]
    return [model.name for model in models]


# --- models ------------------------------------------------------------------------------------------------


def _load_models(config, found):
    """(reference, target), each a _Loaded or None."""
    return (
        _load(config.reference_model.checkpoint, "reference_model", config, found),
        _load(config.target_model.checkpoint, "target_model", config, found),
    )


def _load(checkpoint: Checkpoint, key: str, config: Config, found: Findings) -> _Loaded | None:
    if is_to_be_built(checkpoint.name):
        return None
    conversion = conversion_of(checkpoint.name, config)
    if conversion and not Path(checkpoint.name).is_dir():
        return _load_described(conversion, checkpoint, key, found)
    return _load_existing(checkpoint, key, found)


def _load_described(conversion, checkpoint, key, found):
    """A model that is still to be converted: its sources, and what it becomes but for the weights."""
    name = checkpoint.name
    described = None
    with found.problem(f"converted_models.{Path(name).name}", "correct its sources"):
        described = describe(conversion)
        check_weights(described, download=False)
    if described is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        write_description(described, folder)
        loaded = _load_existing(replace(checkpoint, name=folder, revision=None), key, found)
    if key in found.models:
        sources = [source.name for source in described.sources.values()]
        found.models[key] |= {"name": name, "digest": None, "converted_from": sources}
    return loaded


def _load_existing(checkpoint, key, found):
    model = processor = None
    where = "set it to a hub name that this machine can reach (or that `hf download` has stored), or to a model folder"
    with found.problem(f"{key}.name: {checkpoint.name}", where):
        resolved = resolve(checkpoint)
        found.models[key] = asdict(resolved)
        model = build_empty(checkpoint)
        config = load_config(checkpoint)
        found.models[key] |= {
            "model_type": config.model_type,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }
    if model is None:
        return None
    with found.problem(f"{key}.name: the processor of {checkpoint.name}", "add its files to the model folder"):
        processor = load_processor(checkpoint)
    return _Loaded(key, model, processor) if processor is not None else None


def _check_reference(config, loaded, examples, found):
    if loaded is None:
        return
    reference = config.reference_model
    with found.problem("reference_model.layers", "set layers that the model has"):
        layers = decoder_layers(loaded.model)
        found.models["reference_model"]["layers"] = resolve_layers(reference.layers, len(layers))
        hidden = loaded.model.config.get_text_config().hidden_size
        found.models["reference_model"]["dimension"] = 2 * len(reference.layers) * hidden
    encoder = None
    with found.problem("reference_model.chat_template", "set a chat template that fits the model"):
        encoder = Encoder(
            loaded.processor,
            config.dataset.image_folders,
            image_token_id=image_token(loaded.model, loaded.processor),
            prefix=fixed_prefix(loaded.processor),
            max_tokens=reference.max_tokens,
        )
    for kind, sample in examples.items() if encoder else ():
        with found.problem(f"reference_model: a sample with {kind}", "see the traceback above"):
            _check_encoded(kind, encoder([sample])[0], loaded, found)


def _check_encoded(kind, encoded, loaded, found):
    """Check a sample as extraction encodes it."""
    if isinstance(encoded, RejectedSample):
        if kind != "longest text":  # single samples may be too long
            found.problems.append(
                f"reference_model: sample {encoded.id} (row {encoded.dataset_row}, {kind}) would be rejected: "
                f"{encoded.reason}: {encoded.detail}; correct the dataset, or the model that reads it"
            )
        return
    tokens, visual = len(encoded.ids), int(encoded.masks.visual.sum())
    facts = {"kind": kind, "sample_id": encoded.sample.id, "reference_tokens": tokens, "visual_tokens": visual}
    found.samples.append(facts)
    positions = max_positions(loaded.model.config)
    if positions and tokens > positions:
        found.problems.append(
            f"reference_model.max_tokens: sample {encoded.sample.id} ({kind}) has {tokens} tokens, but the model was "
            f"made for {positions}; set it to at most {positions}, so that longer samples are rejected"
        )
    if encoded.image_inputs:
        features = count_image_features(loaded.model, encoded.image_inputs)
        if features is not None and features != visual:
            found.problems.append(
                f"{loaded.key}.name: for sample {encoded.sample.id} the model makes {features} image features, but its "
                f"processor writes {visual} image tokens; correct processor_config.json (patch_size, "
                "vision_feature_select_strategy, num_additional_image_tokens) of the checkpoint"
            )


def _check_target(config, loaded, examples, found):
    if loaded is None:
        return
    training, model = config.target_model.training, loaded.model
    family = family_of(model.config)
    with found.problem("target_model", "report the model"):
        if not any(family.part_of(name) == "projector" for name, _ in model.named_parameters()):
            raise FamilyError(f"no projector ({family.projector}) in {type(model).__name__}")
    with found.problem("target_model.training", "correct lora or freeze"):
        trained = _trained_model(model, training)
        names = [name for name, parameter in trained.named_parameters() if parameter.requires_grad]
        sizes = [parameter.numel() for parameter in trained.parameters() if parameter.requires_grad]
        found.models["target_model"]["trained_parameters"] = sum(sizes)
        if training.projector_learning_rate and not any(family.part_of(name) == "projector" for name in names):
            found.problems.append(
                "target_model.training.projector_learning_rate is set, but the projector is not trained; set it to "
                "null, or name the projector in lora.modules_to_save"
            )
    longest = _check_training_samples(config, loaded, examples, found)
    positions = max_positions(model.config)
    limit = training.max_tokens or longest
    if positions and min(longest, limit) > positions:
        found.problems.append(
            f"target_model.training.max_tokens: the longest sample has {longest} tokens, but the model was made for "
            f"{positions}; set it to at most {positions}"
        )


def _trained_model(model, training):
    """A model without weights as it is trained."""
    import torch

    with torch.device("meta"):
        trained = with_lora(model, training.lora) if training.lora else model
    freeze(trained, training.freeze)
    return trained


def _check_training_samples(config, loaded, examples, found):
    """Encode samples as training does; returns the length of the longest in tokens."""
    longest = 0
    facts = {sample["kind"]: sample for sample in found.samples}
    for kind, sample in examples.items():
        with found.problem(f"target_model: sample {sample.id} ({kind})", "see the traceback above"):
            collate = Collator(loaded.processor, [sample.record], config.dataset.image_folders)
            whole = collate([{"row": 0}])
            tokens = whole["input_ids"].shape[1]
            longest = max(longest, tokens)
            collate.max_tokens = config.target_model.training.max_tokens
            answers = int((collate([{"row": 0}])["labels"] != IGNORED_LABEL).sum())
            if not answers:
                found.problems.append(
                    f"target_model.training.max_tokens: sample {sample.id} ({kind}) has {tokens} tokens, and no token "
                    f"of its answers is within the first {collate.max_tokens}; raise it to at least {tokens}"
                )
            facts.get(kind, {}).update(training_tokens=tokens, answer_tokens=answers)
    return longest


def _check_clip(config, examples, found):
    from transformers import AutoConfig, AutoProcessor

    clip = config.clip_model
    if is_to_be_built(clip.name):
        return
    where = "set it to a CLIP model: a hub name that this machine can reach, or a folder"
    with found.problem(f"clip_model.name: {clip.name}", where):
        checkpoint = Checkpoint(clip.name, clip.revision)
        found.models["clip_model"] = asdict(resolve(checkpoint))
        model_config = AutoConfig.from_pretrained(clip.name, revision=clip.revision)
        if model_config.model_type != "clip":
            raise ValueError(f"a model of type {model_config.model_type}, not clip")
        processor = AutoProcessor.from_pretrained(clip.name, revision=clip.revision)
        for sample in examples.values():
            names = image_names(sample.record)
            pictures = [open_image(config.dataset.image_folders, name) for name in names]
            processor(text=[text_of(sample.record)], images=pictures or [Image.new("RGB", (8, 8))], return_tensors="pt")


# --- samples -----------------------------------------------------------------------------------------------


def _find_examples(config: Config, found: Findings) -> dict[str, Sample]:
    """A sample of each kind whose images can be opened."""
    examples: dict[str, Sample] = {}
    if is_to_be_built(config.dataset.annotations):
        return examples
    with found.problem("dataset.annotations", "correct the dataset"):
        examples = find_examples(open_dataset(config.dataset.annotations))
    if not examples and not found.problems:
        found.problems.append(f"dataset.annotations: no usable sample among the first {SCANNED:,} rows")
    usable = {}
    for kind, sample in examples.items():
        try:
            for name in image_names(sample.record):
                open_image(config.dataset.image_folders, name)
        except ImageError as error:
            found.problems.append(
                f"dataset.images: sample {sample.id} (row {sample.dataset_row}): {error.reason}: {error}; set it to "
                "the folder that image names are relative to"
            )
        else:
            usable[kind] = sample
    return usable


# --- resources ---------------------------------------------------------------------------------------------


def _asked(need: Demand, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a job asks for at its first attempt: its demand, and what the profile sets in place of it."""
    values = {"gpu": need.gpus, "nodes": need.nodes, "mem_mb": round(1024 * need.memory)}
    for name in values:
        # an expression such as 64000 * attempt
        number = re.match(r"\s*(\d+)", str(overrides.get(name, "")))
        if number:
            values[name] = int(number[1])
    return {**values, "overridden": sorted(set(overrides) & set(values))}


def _check_resources(config: Config, asked: Mapping[str, dict[str, Any]], machine: Machine, found: Findings) -> None:
    training = config.target_model.training
    gpus = 0 if training.device == "cpu" else training.processes * training.nodes
    on_gpu = training.device != "cpu" and machine.gpus != 0
    if on_gpu and machine.gpus is not None and training.processes > machine.gpus:
        found.problems.append(
            f"target_model.training.processes: {training.processes} processes per node, one per GPU, but "
            f"{machine.source} has {machine.gpus} GPUs; set it to at most {machine.gpus}"
        )
    if training.sharding == "fsdp" and machine.gpus == 0:
        found.problems.append(
            f"target_model.training.sharding: fsdp requires GPUs, but {machine.source} has none; set it to none"
        )
    for rule in ("finetune_model", "difficulty"):
        if "gpu" in asked[rule]["overridden"] and asked[rule]["gpu"] != gpus:
            found.problems.append(
                f"the profile sets gpu: {asked[rule]['gpu']} for {rule}, but target_model.training starts {gpus} "
                "processes on GPUs; remove gpu from the profile, which follows from the config"
            )
    for rule, need in _memory_needs(config, found).items():
        found.resources[rule] = {**asked[rule], "needed_mb": math.ceil(need * 1024)}
        available = asked[rule]["mem_mb"] / 1024
        if available < need:
            found.problems.append(
                f"{rule} asks for {available:,.0f} GiB of memory per node, but needs {need:,.0f}: set mem_mb: "
                f"{math.ceil(need * 1024)} for {rule} in the profile, or use fewer processes"
            )
        if machine.memory and need > machine.memory:
            found.problems.append(
                f"{rule} needs {need:,.0f} GiB of memory per node, but {machine.source} has {machine.memory:,.0f}; "
                "use fewer processes per node, or a smaller model"
            )
    for rule, need in _gpu_memory_needs(config, found).items():
        found.resources.setdefault(rule, {})["needed_gpu_memory_gib"] = round(need, 1)
        if on_gpu and machine.gpu_memory and need > machine.gpu_memory:
            found.problems.append(
                f"{rule} needs at least {need:,.0f} GiB of GPU memory per process, but a GPU of {machine.source} has "
                f"{machine.gpu_memory:,.0f}; use lora, sharding: fsdp, gradient_checkpointing or a smaller model"
            )


def _memory_needs(config, found):
    """Rule -> least GiB of host memory per node, from the exact number of parameters."""
    needs = {}
    reference, target = (found.models.get(f"{name}_model", {}).get("parameters") for name in ("reference", "target"))
    if target:
        training = config.target_model.training
        needs["finetune_model"] = training_memory(training, target, process_memory=LEAST_PROCESS_MEMORY)
        needs["evaluate_model"] = target * _bytes(config.evaluation.dtype) / GIB
    if reference:
        needs["activations"] = reference * _bytes(config.reference_model.dtype) / GIB
    return needs


def _gpu_memory_needs(config, found):
    """Rule -> GiB of GPU memory per process, a lower bound: weights, gradients and optimizer states."""
    needs = {}
    reference, target = (found.models.get(f"{name}_model", {}) for name in ("reference", "target"))
    if "trained_parameters" in target:
        needs["finetune_model"] = training_gpu_memory(
            config.target_model.training, target["parameters"], target["trained_parameters"]
        )
        needs["evaluate_model"] = target["parameters"] * _bytes(config.evaluation.dtype) / GIB
    if "parameters" in reference:
        needs["activations"] = reference["parameters"] * _bytes(config.reference_model.dtype) / GIB
    return needs


def _bytes(dtype):
    return 4 if dtype == "float32" else 2


def _check_disk(config: Config, results: str | Path, found: Findings) -> None:
    folder = Path(results)
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    needed = estimated_bytes(config, found.models)
    if needed > free:
        found.problems.append(
            f"{results}: the run writes about {needed / 1e9:,.0f} GB of activations, models and checkpoints, but "
            f"{free / 1e9:,.0f} GB are free; free some space, or start it in a folder on another disk"
        )


def estimated_bytes(config: Config, models: Mapping[str, Mapping[str, Any]]) -> float:
    """Bytes that a run writes: activations, finetuned models, and a checkpoint of a training; 0 for unknown parts.

    Args:
        config: Config of the run.
        models: facts of the models, as `preflight` returns them.
    """
    samples = count_samples(config) or 0
    activations = samples * models.get("reference_model", {}).get("dimension", 0) * BYTES_PER_ACTIVATION_VALUE
    target = config.target_model
    trained = models.get("target_model", {}).get("trained_parameters", 0)
    saved = trained if target.training.lora else models.get("target_model", {}).get("parameters", 0)
    coresets = len(config.selection.fractions) * len(config.selection.methods) + target.full
    checkpoint = 4 * saved + 8 * trained  # with the states of Adam
    return activations + 4 * saved * coresets * len(target.seeds) + checkpoint


def this_machine(node: Node, *, local: bool) -> Machine:
    """The node that jobs run on: this machine, or a node of the Slurm cluster; the section `node` overrides both.

    Args:
        node: section of the config.
        local: whether jobs run on this machine.
    """
    if local:
        present = machine_gpus()
        memory = [gpu.memory for gpu in present if gpu.memory]
        gpu_memory = min(memory) / GIB if memory else None
        known = Machine(len(present), gpu_memory, psutil.virtual_memory().total / GIB, "this machine")
    else:
        known = _largest_slurm_node()
    if node.gpus or node.gpu_memory or node.memory:
        source = "a node (section node of the config)"
        return Machine(
            node.gpus or known.gpus, node.gpu_memory or known.gpu_memory, node.memory or known.memory, source
        )
    return known


def _largest_slurm_node() -> Machine:
    """The most GPUs and memory that a node of the cluster has."""
    unknown = Machine(None, None, None, "a node of the cluster")
    if not shutil.which("sinfo"):
        return unknown
    result = subprocess.run(["sinfo", "-h", "-o", "%G|%m"], text=True, capture_output=True, check=False)
    rows = [line.split("|") for line in result.stdout.splitlines() if "|" in line]
    if result.returncode or not rows:
        return unknown
    gpus = [sum(map(int, re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))) for gres, _ in rows]
    memory = [int(size.rstrip("+")) / 1024 for _, size in rows]
    return Machine(max(gpus), None, max(memory), "the largest node of the cluster")


# --- evaluation --------------------------------------------------------------------------------------------


def _start_listing(config: Config) -> "subprocess.Popen[str]":
    """Let lmms-eval list its tasks and models while the models are checked."""
    script, folder = Path(__file__).with_name("lmms_names.py"), config.evaluation.include_path
    arguments = [in_workflow_folder(folder)] if folder else []
    command = lmms_start.command(config.evaluation.python, script, *arguments)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _check_evaluation(config: Config, listing: "subprocess.Popen[str]", found: Findings) -> None:
    evaluation = config.evaluation
    output, errors = listing.communicate(timeout=LISTING_TIMEOUT)
    lines = output.strip().splitlines()
    if listing.returncode or not lines:
        last = errors.strip().splitlines()[-1:] or ["no output"]
        found.problems.append(f"evaluation.python: lmms-eval cannot list its tasks: {last[0]}; install lmms-eval there")
        log.error("%s", errors)
        return
    names = json.loads(lines[-1])
    known = set(names["tasks"])
    known.add(HOLDOUT)  # written by the run
    tasks = [(group.name, task) for group in evaluation.groups for task in group.tasks]
    for group, task in tasks:
        if task not in known:
            found.problems.append(
                f"evaluation.groups ({group}): lmms-eval {names['version']} has no task {task!r}; "
                f"{_advice(task, names['tasks'], 'name one of `lmms-eval --tasks list`')}"
            )
    if evaluation.backend not in names["models"]:
        found.problems.append(
            f"evaluation.backend: lmms-eval {names['version']} has no model {evaluation.backend!r}; "
            f"{_advice(evaluation.backend, names['models'], 'set it to coincide')}"
        )
    found.evaluation = {
        "lmms_eval": names["version"],
        "backend": evaluation.backend,
        "tasks": [task for _, task in tasks],
    }


def _advice(name, available, otherwise):
    import difflib

    close = difflib.get_close_matches(name, available, n=CLOSE_NAMES)
    return f"did you mean {' or '.join(close)}?" if close else otherwise


# --- for the workflow --------------------------------------------------------------------------------------


def write_preflight(
    config: Config,
    report: str | Path,
    *,
    local: bool,
    overrides: Mapping[str, Mapping[str, Any]],
) -> None:
    """Check a run and write what was found as JSON, and as text next to it.

    Args:
        config: Config of the run.
        report: JSON file to write. Models that the config has not changed since the last check keep the commits that
            REVISIONS in its folder has.
        local: whether jobs run on this machine.
        overrides: resources that the profile sets, by rule.

    Raises:
        PreflightError: with every problem; nothing is written.
    """
    settings = preflight_settings(config)
    report = Path(report)
    revisions = report.with_name(REVISIONS)
    if revisions.exists():
        set_revisions(config, _unchanged(json.loads(revisions.read_text()), settings))
    found = preflight(config, machine=this_machine(config.node, local=local), overrides=overrides)
    resolved = {
        section: {"name": facts["name"], "requested": settings[section]["revision"], "revision": facts["revision"]}
        for section, facts in found["models"].items()
    }
    write_json(resolved, revisions)
    with replacing(report.with_suffix(".md")) as path:
        path.write_text(as_text(found))
    write_json({"settings": settings, **found}, report)


def _unchanged(resolved, settings):
    """The models of an earlier check whose name and requested revision are still those of the config."""
    return {
        section: facts
        for section, facts in resolved.items()
        if section in settings
        and (facts["name"], facts["requested"]) == (settings[section]["name"], settings[section]["revision"])
    }


def as_text(report: Mapping[str, Any]) -> str:
    """The result as text for people."""
    lines = ["No problems found.", ""]
    for section, facts in report["models"].items():
        version = f"commit {facts['revision']}" if facts["revision"] else f"folder, digest {facts['digest']}"
        if "converted_from" in facts:
            version = f"to be converted from {', '.join(facts['converted_from'])}"
        parameters = f", {facts['parameters'] / 1e9:,.2f} billion parameters" if "parameters" in facts else ""
        lines.append(f"- {section}: {facts['name']} ({version}){parameters}")
    for sample in report["samples"]:
        training = f", {sample['training_tokens']} in training" if "training_tokens" in sample else ""
        lines.append(
            f"- sample with {sample['kind']} ({sample['sample_id']}): {sample['reference_tokens']} tokens, "
            f"{sample['visual_tokens']} of them visual{training}"
        )
    for rule, need in report["resources"].items():
        if "mem_mb" in need:
            lines.append(
                f"- {rule}: asks for {need['mem_mb'] / 1024:,.0f} GiB of memory and {need['gpu']} GPUs, needs at least "
                f"{need['needed_mb'] / 1024:,.1f} GiB"
                + (f", {need['needed_gpu_memory_gib']} GiB per GPU" if "needed_gpu_memory_gib" in need else "")
            )
    evaluation = report["evaluation"]
    lines.append(f"- evaluation: {len(evaluation['tasks'])} tasks of lmms-eval {evaluation['lmms_eval']}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Check one run: JSON on standard input has config, report, local and overrides."""
    logging.basicConfig(level=logging.WARNING)
    arguments = json.load(sys.stdin)
    config = Config.model_validate(arguments.pop("config"))
    try:
        write_preflight(config, **arguments)
    except PreflightError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
