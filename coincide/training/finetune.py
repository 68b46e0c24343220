"""Finetuning of a target model on a coreset, with transformers' Trainer."""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from coincide.base.devices import pick_device
from coincide.base.errors import UserError
from coincide.base.files import link_or_copy, replacing
from coincide.base.progress import Progress
from coincide.base.sections import Checkpoint, Training
from coincide.dataset.images import ImageFolders
from coincide.dataset.record_table import RecordTable, records_digest, write_record_table
from coincide.models.loading import checkpoint_digest, load_model
from coincide.training.adaptation import freeze, leave_frozen_weights, set_dtypes, sharded_modules, with_lora
from coincide.training.collator import Collator
from coincide.training.distributed import launch, slurm_job
from coincide.training.order import training_order
from coincide.training.trainers import ProjectorTrainer, ScoringTrainer

log = logging.getLogger(__name__)

RECORDS = "records.arrow"  # file in the folder of checkpoints
FINGERPRINT = "fingerprint.txt"  # written next to the weights: what determined the training


class DeviceError(UserError):
    """Training settings that do not work on the available device."""


def finetune(
    checkpoint: Checkpoint | str | Path,
    records: Iterable[dict],
    images: ImageFolders,
    training: Training,
    *,
    seed: int,
    output: Path | str,
    checkpoints: Path | str,
    features: Path | str | None = None,
    version: int = 1,
    reusable: Iterable[Path | str] = (),
) -> None:
    """Train a model on LLaVA records and save it with its processor, as safetensors.

    The loss covers the answer tokens only. An interrupted training resumes from its last checkpoint;
    checkpoints of other data, another model or other settings are never used. Data and model are compared by their
    content, and settings that change no result (device, save_every, processes) are not compared.

    With `training.processes` or `training.nodes` above 1, torch.distributed starts the processes, and each takes
    its share of every batch: the steps are the same, and the losses are equal up to rounding.

    Args:
        checkpoint: Checkpoint, hub name or folder of the model to start from.
        records: n LLaVA records (id, image, conversations); they are written to a file that all processes map into
            memory.
        images: folder that image names are relative to.
        training: Training section of the config.
        seed: of data order and dropout.
        output: folder to write: weights or adapter, processor, trainer_state.json, training_log.jsonl.
        checkpoints: folder for checkpoints; the subfolder of this training is removed when it is done.
        features: None, or path of an (n, e) array (.npy), one row per record. A scoring network over these features
            weights the samples of each batch (see `coincide.training.difficulty`) and is saved with the model.
        version: number that the caller raises when its code changes the results; checkpoints of another version are
            not used.
        reusable: folders of finished trainings; if one is the same training, it is linked instead of repeated.

    Raises:
        DeviceError: sharding without a GPU.
        LaunchError: several nodes outside a Slurm job, or one of several processes failed.
        FamilyError: a model family that is not known, or modules that the model does not have.
    """
    checkpoint = Checkpoint.of(checkpoint)
    if training.sharding == "fsdp" and pick_device(training.device) == "cpu":
        raise DeviceError(
            "training.sharding: fsdp requires GPUs, but this training runs on a CPU; set training.sharding to none"
        )
    if training.nodes > 1:
        slurm_job()  # an error at once if there is none
    table = records if isinstance(records, RecordTable) else write_record_table(records, Path(checkpoints) / RECORDS)
    try:
        fingerprint = _fingerprint(checkpoint, table, training, seed, features, version)
        if not _reuse(reusable, fingerprint, output):
            _start(checkpoint, table, images, training, seed, output, checkpoints, features, fingerprint)
    finally:
        if table is not records:
            table.path.unlink(missing_ok=True)


def _start(checkpoint, records, images, training, seed, output, checkpoints, features, fingerprint):
    """Train in this process, or in several processes; arguments as in `finetune`."""
    if training.processes * training.nodes == 1:
        train(checkpoint, records, images, training, seed, output, checkpoints, features, fingerprint)
        return
    # Arguments of `train` as JSON; `coincide.training.worker` reads them in every process.
    arguments = {
        "checkpoint": asdict(checkpoint),
        "records": str(records.path.resolve()),
        "images": str(images) if isinstance(images, str | Path) else list(map(str, images)),
        "training": training.model_dump(),
        "seed": seed,
        "output": str(output),
        "checkpoints": str(checkpoints),
        "features": features and str(features),
        "fingerprint": fingerprint,
    }
    launch(
        "coincide.training.worker",
        arguments,
        Path(checkpoints) / "arguments.json",
        processes=training.processes,
        nodes=training.nodes,
    )


def train(
    checkpoint: Checkpoint,
    records: Sequence[dict],
    images: ImageFolders,
    training: Training,
    seed: int,
    output: Path | str,
    checkpoints: Path | str,
    features: Path | str | None,
    fingerprint: str,
) -> None:
    """Train in this process, which is the only one or one of several; arguments as in `finetune`."""
    torch.manual_seed(seed)
    run_folder = Path(checkpoints) / fingerprint
    last_checkpoint = _last_checkpoint(run_folder)
    model, processor = _load(checkpoint, training, last_checkpoint)
    collator = Collator(
        processor,
        records,
        images,
        training.max_tokens,
        include_rows=bool(features),
        always_images=training.sharding == "fsdp",
    )
    # The scoring network compares the samples of a batch, so its batches must not be sorted by length.
    order = training_order(records, training.epochs, training.batch_size, seed, group_by_length=not features)
    options: dict[str, Any] = {
        "model": model,
        "projector_learning_rate": training.projector_learning_rate,
        "args": _training_arguments(training, run_folder, seed, model),
        "train_dataset": Dataset.from_dict({"row": order}),
        "data_collator": collator,
        "processing_class": processor,
    }
    trainer: ProjectorTrainer
    if features:
        trainer = ScoringTrainer(features=np.load(features, mmap_mode="r", allow_pickle=False), **options)
    else:
        trainer = ProjectorTrainer(**options)
    trainer.pop_callback(PrinterCallback)
    trainer.add_callback(_ProgressLines())
    if last_checkpoint:
        log.info("resuming from %s", last_checkpoint)
    trainer.train(resume_from_checkpoint=str(last_checkpoint) if last_checkpoint else None)
    _save(trainer, output, run_folder)


def _load(checkpoint, training, last_checkpoint):
    """Model, ready to train, and processor."""
    # The Trainer silently skips weights whose names in the checkpoint differ from those of the module, as LLaVA's
    # do. from_pretrained maps the names, so the weights of a resumed training are loaded here.
    start = checkpoint
    if last_checkpoint and not training.lora:
        start = replace(checkpoint, name=str(last_checkpoint))
    # A model that is sharded may not fit on one device.
    device = "cpu" if training.sharding == "fsdp" else training.device
    # Weights that are trained are kept in float32. Those of a base model under adapters are not, and are read in the
    # dtype of the computation: a large model has no float32 copy per process.
    half_base = training.lora is not None
    model, processor = load_model(start, dtype=training.dtype if half_base else "float32", device=device)
    if training.lora:
        model = with_lora(model, training.lora, checkpoint.revision)
    freeze(model, training.freeze)
    if half_base:
        set_dtypes(model, getattr(torch, training.dtype))
        leave_frozen_weights(model)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model, processor


def _training_arguments(training, run_folder, seed, model):
    on_cpu = pick_device(training.device) == "cpu"
    world_size = training.processes * training.nodes
    return TrainingArguments(
        output_dir=str(run_folder),
        num_train_epochs=1,  # the training order covers all epochs
        per_device_train_batch_size=training.batch_size // world_size,
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=training.learning_rate,
        warmup_steps=training.warmup,
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        lr_scheduler_type=training.schedule,
        bf16=training.dtype == "bfloat16",
        fp16=training.dtype == "float16",
        use_cpu=on_cpu,
        dataloader_num_workers=training.loader_workers,
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        logging_steps=10,
        logging_strategy="steps",
        save_strategy="steps",
        save_steps=training.save_every,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
        seed=seed,
        data_seed=seed,
        **(_distributed_arguments(training, on_cpu, model) if world_size > 1 else {}),
    )


def _distributed_arguments(training, on_cpu, model):
    """Arguments of the Trainer for several processes."""
    arguments = {"ddp_backend": "gloo" if on_cpu else "nccl"}
    if training.sharding == "fsdp":
        # Checkpoints hold full weights, because from_pretrained reads them when a training resumes.
        settings = {"version": 2, "state_dict_type": "FULL_STATE_DICT"}
        settings["transformer_layer_cls_to_wrap"] = sharded_modules(model)
        return arguments | {"fsdp": True, "fsdp_config": settings}
    # Vision tower and projector get no gradient from a batch without images.
    return arguments | {"ddp_find_unused_parameters": True}


def _save(trainer, output, run_folder):
    """Write the model and the training log; remove the checkpoints."""
    is_main = trainer.is_world_process_zero()
    with replacing(output) if is_main else contextlib.nullcontext(run_folder) as folder:
        trainer.save_model(str(folder))  # in all processes: a sharded model is gathered
        if is_main:
            trainer.processing_class.save_pretrained(folder)
            # A pickle of settings that the config has.
            (folder / "training_args.bin").unlink(missing_ok=True)
            trainer.state.save_to_json(str(folder / "trainer_state.json"))
            lines = (json.dumps(entry) for entry in trainer.state.log_history)
            (folder / "training_log.jsonl").write_text("\n".join(lines) + "\n")
            (folder / FINGERPRINT).write_text(f"{run_folder.name}\n")
    trainer.accelerator.wait_for_everyone()
    if is_main:
        shutil.rmtree(run_folder, ignore_errors=True)


def _last_checkpoint(run_folder):
    # The Trainer writes trainer_state.json last, so a checkpoint that has it is complete.
    complete = (state.parent for state in run_folder.glob("checkpoint-*/trainer_state.json"))
    return max(complete, key=lambda folder: int(folder.name.split("-")[1]), default=None)


def _reuse(reusable, fingerprint, output):
    """Link a finished training with this fingerprint to `output`; returns whether there is one."""
    for folder in map(Path, reusable):
        path = folder / FINGERPRINT
        if path.is_file() and path.read_text().strip() == fingerprint:
            log.info("the same training as %s: its model is linked, not trained again", folder)
            with replacing(output) as temporary:
                shutil.copytree(
                    folder, temporary, copy_function=link_or_copy, ignore=shutil.ignore_patterns(".snakemake_timestamp")
                )
            return True
    return False


def _fingerprint(checkpoint, records, training, seed, features=None, version=1):
    """Digest of what determines a training: a checkpoint is only resumed by a training with the same one.

    That is the content of the model and of the records (images by name), and the settings that change results.
    """
    settings = training.results_depend_on("finetune_model")
    content = [
        version,
        checkpoint_digest(checkpoint),
        checkpoint.chat_template,
        settings,
        seed,
        records_digest(records),
    ]
    if features:
        content.append(hashlib.sha256(Path(features).read_bytes()).hexdigest())
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class _ProgressLines(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        self.progress = Progress(state.max_steps, "finetune", unit="steps", done=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.progress.update(1)

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.close()
