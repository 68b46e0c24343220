"""Estimated cost of a run, before it starts: device-hours and disk, from its manifest and a measured sample."""

import logging
import time
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coincide import methods
from coincide.base.files import in_workflow_folder
from coincide.base.markdown import markdown_table
from coincide.base.sections import HOLDOUT, Checkpoint, Config, Training
from coincide.dataset.earlier import read_sample_ids
from coincide.dataset.formats import Annotations, open_dataset, to_llava
from coincide.dataset.images import ImageFolders
from coincide.dataset.samples import Sample
from coincide.dataset.shard_assignment import estimated_tokens
from coincide.extraction.encoding import Encoded, group_by_images, loader_workers
from coincide.extraction.extractor import open_extractor
from coincide.extraction.features import decoder_layers
from coincide.models.empty import build_empty
from coincide.models.families import FamilyError
from coincide.workflow.job_resources import training_operations

log = logging.getLogger(__name__)

BYTES_PER_VALUE = 2  # activations are float16
ANSWER_TOKENS = 32  # assumed length of an answer
BYTES_PER_TRAINED_PARAMETER = 4  # a fully finetuned model is stored as float32
BYTES_PER_PARAMETER_LORA = 0.05  # an adapter, per parameter of the target model
UNKNOWN = float("nan")


class Measurement(TypedDict):
    """How fast the reference model read some samples."""

    seconds: float
    samples: int
    tokens: int  # of the samples
    tokens_computed: int  # that passed through the model: with padding, and once for tokens that samples share
    parameters: int  # of the layers that each token passes through


class StageCost(TypedDict):
    """Estimated cost of a stage."""

    stage: str
    jobs: int
    device_hours: float  # NaN if unknown
    gigabytes: float  # on disk; NaN if unknown


def sample_rows(manifest: pd.DataFrame, count: int, seed: int = 0) -> NDArray[np.intp]:
    """Draw about `count` samples at random; samples that share an image are drawn together.

    Args:
        manifest: manifest.parquet of the run.
        count: number of samples, exceeded by the last group at most.
        seed: of the random draw.

    Returns:
        (n,) row numbers, ascending.
    """
    groups = manifest["image"].where(manifest["n_images"] > 0, manifest["sample_id"])
    names = groups.drop_duplicates().to_numpy(dtype=object)
    sizes = groups.value_counts()
    drawn: set[Any] = set()
    n_samples = 0
    for i in np.random.default_rng(seed).permutation(len(names)):
        if n_samples >= count:
            break
        drawn.add(names[i])
        n_samples += sizes[names[i]]
    return np.flatnonzero(groups.isin(drawn))


def measure(extractor: Any, encoder: Any, samples: Sequence[Any], *, workers: int) -> Measurement:
    """Read samples with the reference model and measure how long it takes.

    Args:
        extractor, encoder: of the reference model (`coincide.extraction.extractor`, `coincide.extraction.encoding`).
        samples: list of samples, those of the same image next to each other.
        workers: number of processes that will encode samples while the model runs; 0: encoding and model take turns.

    Returns:
        Measurement; its seconds are those of the slower of model and encoding workers, or of both without workers.
    """
    _run_model(extractor, _encode(encoder, samples[:8]))  # warm-up
    start = time.perf_counter()
    encoded = _encode(encoder, samples)
    encoding_end, tokens_before = time.perf_counter(), extractor.tokens
    _run_model(extractor, encoded)
    encoding_seconds, model_seconds = encoding_end - start, time.perf_counter() - encoding_end
    last_layer = None if extractor.sample_metrics else max(extractor.layers) + 1
    layers = decoder_layers(extractor.model)[:last_layer]
    return {
        "seconds": max(model_seconds, encoding_seconds / workers) if workers else model_seconds + encoding_seconds,
        "samples": sum(map(len, encoded)),
        "tokens": sum(len(sample.ids) for group in encoded for sample in group),
        "tokens_computed": extractor.tokens - tokens_before,
        "parameters": sum(p.numel() for layer in layers for p in layer.parameters()),
    }


def _encode(encoder, samples):
    """The samples that can be encoded, grouped by image."""
    groups = map(encoder, group_by_images(samples))
    return [[sample for sample in group if isinstance(sample, Encoded)] for group in groups]


def _run_model(extractor, encoded):
    for _ in extractor.read(encoded):
        pass


def estimate_run(
    manifest: pd.DataFrame,
    annotations: Annotations,
    images: ImageFolders,
    config: Config,
    *,
    samples: int,
    selections: Sequence[tuple[str, str]],
    tasks: Sequence[str],
) -> str:
    """The estimated cost of a run as text, after reading a sample of its dataset with its reference model.

    Samples with the id of a sample of the run that this one extends are counted as reused.

    Args:
        manifest: manifest.parquet of the run.
        annotations, images: paths of the dataset.
        config: Config of the run.
        samples: number of samples to read.
        selections: (method, fraction) of every coreset.
        tasks: lmms-eval tasks.
    """
    extends = config.dataset.extends
    earlier = read_sample_ids(Path(extends) / "manifest.parquet") if extends else ()
    is_reused = manifest["sample_id"].isin(earlier).to_numpy()
    rows = sample_rows(manifest, samples)
    positions = np.sort(manifest["position"].to_numpy()[rows])
    records = dict(zip(positions, map(to_llava, open_dataset(annotations).pick(positions))))
    chosen = [Sample(row.sample_id, row.position, records[row.position]) for row in manifest.iloc[rows].itertuples()]
    extractor, encoder, dimension = open_extractor(config.reference_model, images, chosen)
    device = extractor.model.device
    measured = measure(extractor, encoder, chosen, workers=loader_workers(device.type))
    stages = estimate(
        manifest,
        measured,
        rows,
        dimension=dimension,
        shards=config.dataset.shards,
        fractions=[float(fraction) for _, fraction in selections],
        seeds=len(config.target_model.seeds),
        training=config.target_model.training,
        target_parameters=count_parameters(config.target_model.checkpoint),
        questions=_count_all_questions(tasks, config, len(manifest)),
        difficulty=any("difficulty" in methods.needs(method) for method, _ in selections),
        is_reused=is_reused,
    )
    return as_text(stages, measured, device, len(manifest), reused=int(is_reused.sum()))


def estimate(
    manifest: pd.DataFrame,
    measured: Measurement,
    rows: NDArray[np.intp],
    *,
    dimension: int,
    shards: int,
    fractions: Sequence[float],
    seeds: int,
    training: Training,
    target_parameters: float,
    questions: float,
    difficulty: bool = False,
    is_reused: NDArray[np.bool_] | None = None,
) -> list[StageCost]:
    """Device-hours and disk space of the stages of a run.

    Extraction scales with the tokens of the samples that are read. Finetuning and evaluation are assumed to run at the
    measured number of floating-point operations per second.

    Args:
        manifest: manifest.parquet of the run.
        measured: result of `measure` for the rows of the manifest at `rows`.
        rows: (n,) row numbers.
        dimension: numbers per activation.
        shards: number of extraction jobs.
        fractions: share of the dataset that each model is finetuned on, one entry per coreset.
        seeds: number of models per coreset.
        training: Training section of the config.
        target_parameters: number of parameters of the target model; NaN if unknown.
        questions: number of questions of all evaluation tasks; NaN if unknown.
        difficulty: whether a method trains the target model on the full dataset (self_filter).
        is_reused: (N,) which samples of the manifest are not read, because an earlier run has their activations; None:
            none of them.
    """
    tokens = estimated_tokens(manifest)
    tokens_read = tokens.sum() if is_reused is None else tokens[~is_reused].sum()
    extraction_seconds = measured["seconds"] * tokens_read / tokens[rows].sum()
    # a forward pass takes 2 operations per parameter and token
    operations_per_second = 2 * measured["parameters"] * measured["tokens_computed"] / measured["seconds"]
    sample_tokens = measured["tokens"] / measured["samples"]
    train_full_data = len(manifest) * _training_operations(training, target_parameters, sample_tokens)
    train_seconds = train_full_data / operations_per_second
    models = len(fractions) * seeds
    answer = 2 * target_parameters * (sample_tokens + ANSWER_TOKENS)
    answer_seconds = models * questions * answer / operations_per_second
    stored = BYTES_PER_TRAINED_PARAMETER if training.lora is None else BYTES_PER_PARAMETER_LORA

    costs = [_cost("extraction", shards, extraction_seconds, len(manifest) * dimension * BYTES_PER_VALUE)]
    if difficulty:
        costs.append(_cost("difficulty", 1, train_seconds))
    return [
        *costs,
        _cost("finetuning", models, train_seconds * sum(fractions) * seeds, models * target_parameters * stored),
        _cost("evaluation", models, answer_seconds),
    ]


def _training_operations(training, parameters, sample_tokens):
    """Operations to train on a sample, over all epochs."""
    return training_operations(training) * parameters * training.epochs * sample_tokens


def _cost(stage, jobs, seconds, size=0.0):
    return {"stage": stage, "jobs": jobs, "device_hours": seconds / 3600, "gigabytes": size / 1e9}


def as_text(stages: Sequence[StageCost], measured: Measurement, device: Any, samples: int, *, reused: int = 0) -> str:
    """The estimate as a Markdown table, and what it is based on.

    Args:
        stages: result of `estimate`.
        measured: result of `measure`.
        device: that the measurement ran on.
        samples: number of samples in the manifest.
        reused: number of them that are not read.
    """
    rows = []
    for stage in stages:
        hours, jobs, size = stage["device_hours"], stage["jobs"], stage["gigabytes"]
        rows.append(
            {
                "stage": stage["stage"],
                "jobs": jobs,
                "device time": _duration(hours),
                "device time per job": _duration(hours / jobs),
                "GB on disk": "not known" if isnan(size) else f"{size:,.1f}",
            }
        )
    rate = measured["samples"] / measured["seconds"]
    basis = (
        f"Based on {measured['samples']} of {samples:,} samples, processed in {measured['seconds']:.1f} s on {device} "
        f"({rate:,.1f} samples/s). Extraction is measured. Finetuning and evaluation are rough estimates: their "
        "number of operations at the measured speed. Time to load models is not included."
    )
    if reused:
        basis += (
            f" {reused:,} samples have the id of a sample of the earlier run (dataset.extends) and are counted as "
            "reused; those whose record has changed are read again."
        )
    return f"{markdown_table(pd.DataFrame(rows))}\n\n{basis}\n"


def _duration(hours):
    if isnan(hours):
        return "not known"
    for size, unit in ((1, "h"), (1 / 60, "min")):
        if hours >= 2 * size:
            return f"{hours / size:,.1f} {unit}"
    return f"{hours * 3600:,.1f} s"


def count_parameters(checkpoint: Checkpoint | str | Path) -> float:
    """Number of parameters of a model, from its config; NaN if the config cannot be loaded."""
    checkpoint = Checkpoint.of(checkpoint)
    try:
        model = build_empty(checkpoint)
    except (OSError, ValueError, FamilyError) as error:
        log.warning("unknown number of parameters of %s: %s", checkpoint.name, error)
        return UNKNOWN
    return sum(p.numel() for p in model.parameters())


def _count_all_questions(tasks, config, samples):
    """Number of questions, those on held-out samples included."""
    written = [task for task in tasks if task != HOLDOUT]
    share = config.evaluation.holdout
    held_out = samples * share / (1 - share)
    return held_out + (count_questions(written, config.evaluation.include_path) if written else 0)


def count_questions(tasks: Sequence[str], include_path: str | None) -> float:
    """Total number of questions of lmms-eval tasks; NaN if their data is not available."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    try:
        manager = TaskManager(include_path=include_path and in_workflow_folder(include_path), model_name="coincide")
        return sum(len(task.eval_docs) for task in _leaves(get_task_dict(tasks, manager, "simple")))
    except Exception as error:  # a task raises errors of any kind if its data is not available
        log.warning("unknown number of questions: %s", error)
        return UNKNOWN


def _leaves(tasks):
    """The tasks in the nested dict of groups that lmms-eval returns."""
    for value in tasks.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]
