"""Finetuning a target model on a coreset, with transformers' Trainer."""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from coincide.base.devices import pick_device
from coincide.base.errors import UserError
from coincide.base.files import replacing
from coincide.base.progress import Progress
from coincide.base.sections import Checkpoint, Training
from coincide.dataset.conversation import text_length
from coincide.dataset.images import image_names, open_image
from coincide.models.chat import encode, render
from coincide.models.loading import load_model, weights_digest
from coincide.training.distributed import arguments_of, launch
from coincide.training.trainers import ROWS, ProjectorTrainer, ScoringTrainer

log = logging.getLogger(__name__)
IGNORED = -100  # label that the loss passes over


class DeviceError(UserError):
    """A training that cannot run as asked on this device."""


def finetune(checkpoint, records, images, training, *, seed, output, checkpoints, features=None):
    """Train a model on LLaVA records and save it with its processor, as safetensors.

    With several processes (`training`) each takes its part of every batch: same steps, same losses up
    to rounding. They are started here, by torch.distributed.

    The loss is taken over the assistant's words alone. A run that was killed goes on from its last
    checkpoint; checkpoints of other data, model or settings are never taken up.

    Args:
        checkpoint: Checkpoint, hub name or folder of the model to start from.
        records: list of LLaVA records (id, image, conversations).
        images: folder that image names are relative to.
        training: Training section of the config.
        seed: of data order and dropout.
        output: folder to write: weights or adapter, processor, trainer_state.json, training_log.jsonl.
        checkpoints: folder for checkpoints; its own subfolder is removed when training is done.
        features: None, or path of an (n, e) array (.npy), a row a record: a scoring network of them weighs the
            samples of a batch (see `coincide.training.difficulty`), and is written beside the model.
    """
    checkpoint = Checkpoint.of(checkpoint)
    world = training.processes * training.nodes
    if training.sharding == "fsdp" and pick_device(training.device) == "cpu":
        raise DeviceError("sharding fsdp needs GPUs: on a CPU it would be passed over; set training.sharding to none")
    if world > 1 and "LOCAL_RANK" not in os.environ:
        arguments = {
            "checkpoint": asdict(checkpoint),
            "records": records,
            "images": str(images),
            "training": training.model_dump(),
            "seed": seed,
            "output": str(output),
            "checkpoints": str(checkpoints),
            "features": features and str(features),
        }
        file = Path(checkpoints) / "arguments.json"
        launch("coincide.training.finetune", arguments, file, processes=training.processes, nodes=training.nodes)
        return
    if world > 1 and torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.manual_seed(seed)
    place = Path(checkpoints) / _fingerprint(checkpoint, records, training, seed, features)
    last = _last_checkpoint(place)
    # The Trainer's own loading of weights passes over names that a checkpoint spells otherwise than
    # the module, as LLaVA's do, without a word; from_pretrained knows both spellings.
    start = replace(checkpoint, name=str(last)) if last and not training.lora else checkpoint
    # a model that is sharded may not fit one device whole
    device = "cpu" if training.sharding == "fsdp" else training.device
    model, processor = load_model(start, dtype="float32", device=device)
    if training.lora:
        model = _with_lora(model, training.lora)
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    on_cpu = pick_device(training.device) == "cpu"
    # samples are weighed against those of their batch: it must be a mixed one
    order = training_order(records, training.epochs, training.batch_size, seed, like_length=not features)
    kind, options = ProjectorTrainer, {}
    if features:
        kind, options = ScoringTrainer, {"features": np.load(features, mmap_mode="r", allow_pickle=False)}
    trainer = kind(
        model=model,
        projector_learning_rate=training.projector_learning_rate,
        **options,
        args=TrainingArguments(
            output_dir=str(place),
            num_train_epochs=1,  # the order below holds all of them
            per_device_train_batch_size=training.batch_size // world,
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
            **(_distributed(training, on_cpu) if world > 1 else {}),
        ),
        train_dataset=Dataset.from_dict({"row": order}),
        data_collator=Collator(processor, records, images, training.max_tokens, name_rows=bool(features)),
        processing_class=processor,
    )
    trainer.pop_callback(PrinterCallback)
    trainer.add_callback(_ProgressLines())
    if last:
        log.info("going on from %s", last)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    first = trainer.is_world_process_zero()
    with replacing(output) if first else contextlib.nullcontext(place) as folder:
        trainer.save_model(str(folder))  # by all processes: a sharded model is gathered
        if first:
            processor.save_pretrained(folder)
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle of what the config says
            trainer.state.save_to_json(str(folder / "trainer_state.json"))
            lines = (json.dumps(entry) for entry in trainer.state.log_history)
            (folder / "training_log.jsonl").write_text("\n".join(lines) + "\n")
    trainer.accelerator.wait_for_everyone()
    if first:
        shutil.rmtree(place, ignore_errors=True)


def _distributed(training, on_cpu):
    """Arguments of the Trainer for several processes."""
    arguments = {"ddp_backend": "gloo" if on_cpu else "nccl"}
    if training.sharding == "fsdp":
        # whole weights in checkpoints: from_pretrained reads them when a training goes on
        return arguments | {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    # a batch without an image leaves the vision tower and the projector out
    return arguments | {"ddp_find_unused_parameters": True}


def _last_checkpoint(folder):
    # A checkpoint is complete when its state is there: the Trainer writes that last.
    found = folder.glob("checkpoint-*/trainer_state.json")
    return max((p.parent for p in found), key=lambda p: int(p.name.split("-")[1]), default=None)


def training_order(records, epochs, batch_size, seed, *, like_length=True):
    """Rows in the order of training, all epochs one after the other.

    Shuffled anew each epoch, batches of like length (less padding) unless they are to be mixed. Written
    down beforehand, so that a resumed training sees what the undisturbed one would have seen.

    Returns:
        list of round(epochs · len(records)) rows; each epoch holds every row once.
    """
    lengths = np.array([text_length(record["conversations"]) for record in records])
    order = []
    for epoch in range(math.ceil(epochs)):
        rng = np.random.default_rng([seed, epoch])
        shuffled = rng.permutation(len(records))
        missing = -len(order) % batch_size  # fills the last batch of the epoch before
        order += shuffled[:missing].tolist()
        shuffled = shuffled[missing:]
        size = 50 * batch_size if like_length else batch_size
        pools = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        pools = [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
        batches = [pool[i : i + batch_size] for pool in pools for i in range(0, len(pool), batch_size)]
        short = [batch for batch in batches if len(batch) < batch_size]
        whole = [batch for batch in batches if len(batch) == batch_size]
        order += [row for i in rng.permutation(len(whole)) for row in whole[i].tolist()]
        order += [row for batch in short for row in batch.tolist()]
    return order[: round(epochs * len(records))]


class Collator:
    """Batches of rows of records as a model in training takes them, with labels over the answers alone."""

    def __init__(self, processor, records, images, max_tokens=None, name_rows=False):
        self.processor, self.records, self.images, self.max_tokens = processor, records, images, max_tokens
        self.name_rows = name_rows

    def __call__(self, batch):
        records = [self.records[item["row"]] for item in batch]
        rendered = [render(self.processor, r["conversations"]) for r in records]
        pictures = [[open_image(self.images, name) for name in image_names(r)] for r in records]
        inputs, masks, _ = encode(self.processor, rendered, pictures)
        inputs["labels"] = inputs["input_ids"].masked_fill(~torch.from_numpy(masks.answer), IGNORED)
        length = inputs["input_ids"].shape[1]
        if self.max_tokens and length > self.max_tokens:
            behind_images = length - masks.visual.any(axis=0)[::-1].argmax() if masks.visual.any() else 0
            cut = max(self.max_tokens, behind_images)
            inputs = {
                name: value[:, :cut] if value.ndim > 1 and value.shape[1] == length else value
                for name, value in inputs.items()
            }
        rows = {ROWS: torch.tensor([item["row"] for item in batch])} if self.name_rows else {}
        return dict(inputs) | rows


class _ProgressLines(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        self.progress = Progress(state.max_steps, "finetune", unit="steps", done=state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.progress.update(1)

    def on_train_end(self, args, state, control, **kwargs):
        self.progress.close()


def _with_lora(model, lora):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            # The decoder's linear layers; the projector is small and trained whole, as LLaVA does.
            target_modules=lora.target_modules,
            modules_to_save=lora.modules_to_save,
        ),
    )


def _fingerprint(checkpoint, records, training, seed, features=None):
    known = [asdict(checkpoint), weights_digest(checkpoint.name), training.model_dump(), seed]
    if features:
        known.append(hashlib.sha256(Path(features).read_bytes()).hexdigest())
    digest = hashlib.sha256(json.dumps(known).encode())
    for record in records:
        digest.update(str(record.get("id")).encode() + b"\0")
    return digest.hexdigest()[:16]


def main(file):
    """One of several processes of a training."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    arguments = arguments_of(file)
    checkpoint, training = Checkpoint(**arguments["checkpoint"]), Training(**arguments["training"])
    finetune(**{**arguments, "checkpoint": checkpoint, "training": training})


if __name__ == "__main__":
    main(sys.argv[1])
