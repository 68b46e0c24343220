"""What a run will cost, before it is submitted: device-hours and disk, from its manifest and a measured sample."""

import logging
import time
from math import isnan

import numpy as np
import pandas as pd

from coincide import methods
from coincide.base.markdown import markdown_table
from coincide.base.sections import Checkpoint
from coincide.dataset.formats import open_dataset, to_llava
from coincide.dataset.samples import Sample
from coincide.dataset.shard_assignment import estimated_tokens
from coincide.extraction.encoding import Encoded, group_by_images, loader_workers
from coincide.extraction.extractor import open_extractor
from coincide.extraction.features import decoder_layers
from coincide.extraction.packing import batches

log = logging.getLogger(__name__)

BYTES_A_NUMBER = 2  # activations are float16
ANSWER_TOKENS = 32  # of an answer, where nothing else is known
UNKNOWN = float("nan")


def sample_rows(manifest, count, seed=0):
    """Rows of about `count` samples of whole groups of images, drawn at random: (n,) positions in the table."""
    groups = manifest["image"].where(manifest["n_images"] > 0, manifest["sample_id"])
    names = groups.drop_duplicates().to_numpy(dtype=object)
    drawn = np.random.default_rng(seed).permutation(len(names))
    sizes = groups.value_counts()
    chosen, have = set(), 0
    for i in drawn:
        if have >= count:
            break
        chosen.add(names[i])
        have += sizes[names[i]]
    return np.flatnonzero(groups.isin(chosen))


def measure(extractor, encoder, samples, *, workers):
    """Read samples with the reference model.

    Args:
        extractor, encoder: of the reference model (`coincide.extraction.extractor`, `coincide.extraction.encoding`).
        samples: list of samples, those of one image side by side.
        workers: processes that will make samples ready ahead of the model; 0: in line.

    Returns:
        dict of seconds (the model's, or the workers' where these are slower; both in line), samples, tokens (of the
        samples), tokens_computed, parameters (that a token goes through).
    """
    encoded = [[one for one in encoder(group) if isinstance(one, Encoded)] for group in group_by_images(samples[:8])]
    _read(extractor, encoded)  # what is slow the first time alone
    began = time.perf_counter()
    encoded = [[one for one in encoder(group) if isinstance(one, Encoded)] for group in group_by_images(samples)]
    prepared, before = time.perf_counter(), extractor.tokens
    _read(extractor, encoded)
    reading, preparing = time.perf_counter() - prepared, prepared - began
    layers = decoder_layers(extractor.model)[: None if extractor.sample_metrics else max(extractor.layers) + 1]
    return {
        "seconds": max(reading, preparing / workers) if workers else reading + preparing,
        "samples": sum(map(len, encoded)),
        "tokens": sum(len(one.ids) for group in encoded for one in group),
        "tokens_computed": extractor.tokens - before,
        "parameters": sum(p.numel() for layer in layers for p in layer.parameters()),
    }


def _read(extractor, encoded):
    rows = [row for group in encoded for row in extractor.rows(group)]
    for batch in batches(rows, extractor.batch_tokens):
        list(extractor.run(batch))


def estimate_run(manifest, annotations, images, config, *, samples, selections, tasks):
    """The estimate of a run as text, with a sample of its dataset read by its reference model.

    Args:
        manifest: table of the samples.
        annotations, images: of the dataset.
        config: Config of the run.
        samples: number of samples to read.
        selections: (method, fraction) of every coreset.
        tasks: lmms-eval tasks.
    """
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
        questions=count_questions(tasks, config.evaluation.include_path),
        difficulty=any("difficulty" in methods.needs(method) for method, _ in selections),
    )
    return as_text(stages, measured, device, len(manifest))


def estimate(
    manifest,
    measured,
    rows,
    *,
    dimension,
    shards,
    fractions,
    seeds,
    training,
    target_parameters,
    questions,
    difficulty=False,
):
    """Device-hours and disk of a run's stages.

    Args:
        manifest: table of the samples.
        measured: result of `measure` for the rows of the manifest at `rows`.
        dimension: numbers per activation.
        shards: number of extraction jobs.
        fractions: share of the dataset that each model is finetuned on, one entry per coreset.
        seeds: number of models per coreset.
        training: Training section of the config.
        target_parameters: of the target model; NaN if unknown.
        questions: of the evaluation, over all tasks; NaN if unknown.
        difficulty: whether a method trains the target model on everything (self_filter).

    Returns:
        list of dicts of stage, jobs, device_hours (NaN if unknown), gigabytes.
    """
    tokens = estimated_tokens(manifest)
    of_sample = tokens[rows].sum()
    extraction = measured["seconds"] * tokens.sum() / of_sample
    # operations a second that the device did: 2 a parameter and token
    rate = 2 * measured["parameters"] * measured["tokens_computed"] / measured["seconds"]
    each = measured["tokens"] / measured["samples"]
    # forward 2 a parameter and token, gradients of activations 2, of weights 2; checkpointing does the forward again
    passes = 2 + 2 + 2 * (training.lora is None) + 2 * training.gradient_checkpointing
    once = passes * target_parameters * training.epochs * len(manifest) * each / rate  # on everything
    finetuning = once * sum(fractions) * seeds
    models = len(fractions) * seeds
    answering = 2 * target_parameters * models * questions * (each + ANSWER_TOKENS) / rate
    whole = training.lora is None
    return [
        {"stage": "extraction", "jobs": shards, "device_hours": extraction / 3600,
         "gigabytes": len(manifest) * dimension * BYTES_A_NUMBER / 1e9},
        *[{"stage": "difficulty", "jobs": 1, "device_hours": once / 3600, "gigabytes": 0.0}] * difficulty,
        {"stage": "finetuning", "jobs": models, "device_hours": finetuning / 3600,
         "gigabytes": models * target_parameters * (4 if whole else 0.05) / 1e9},
        {"stage": "evaluation", "jobs": models, "device_hours": answering / 3600, "gigabytes": 0.0},
    ]  # fmt: skip


def as_text(stages, measured, device, samples):
    """The estimate as a Markdown table, and what it is based on.

    Args:
        stages: result of `estimate`.
        measured: result of `measure`.
        device: that the measurement ran on.
        samples: number of samples in the manifest.
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
    return f"{markdown_table(pd.DataFrame(rows))}\n\n{basis}\n"


def _duration(hours):
    if isnan(hours):
        return "not known"
    for size, unit in ((1, "h"), (1 / 60, "min")):
        if hours >= 2 * size:
            return f"{hours / size:,.1f} {unit}"
    return f"{hours * 3600:,.1f} s"


def count_parameters(checkpoint):
    """Parameters of a model, from its config alone; NaN where that is not at hand."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForImageTextToText

    checkpoint = Checkpoint.of(checkpoint)
    try:
        config = AutoConfig.from_pretrained(
            checkpoint.name, revision=checkpoint.revision, trust_remote_code=checkpoint.trust_remote_code
        )
        with init_empty_weights():
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=checkpoint.trust_remote_code)
    except (OSError, ValueError) as error:
        log.warning("the size of %s is unknown: %s", checkpoint.name, error)
        return UNKNOWN
    return sum(p.numel() for p in model.parameters())


def count_questions(tasks, include_path):
    """Questions of lmms-eval tasks, all together; NaN where their data is not at hand."""
    from lmms_eval.tasks import TaskManager, get_task_dict

    def leaves(found):
        for value in found.values():
            yield from leaves(value) if isinstance(value, dict) else [value]

    try:
        manager = TaskManager(include_path=include_path, model_name="coincide")
        return sum(len(task.eval_docs) for task in leaves(get_task_dict(tasks, manager, "simple")))
    except Exception as error:  # whatever a task's data says when it is not there
        log.warning("the number of questions is not known: %s", error)
        return UNKNOWN
