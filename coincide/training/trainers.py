"""Extensions of transformers' Trainer: a learning rate for the projector, and weights of the samples of a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.nn
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback

from coincide.base.errors import UserError
from coincide.models.families import family_of
from coincide.training.collator import IGNORED_LABEL, ROWS

SCORING_NETWORK = "scoring_network.safetensors"
INITIALIZER_RANGE = 0.02  # standard deviation of new weights in transformers, where a model's config has none


class TrainingError(UserError):
    """Training settings that do not fit the model or the method."""


class ProjectorTrainer(Trainer):
    """A Trainer with a separate learning rate for the projector.

    Args:
        projector_learning_rate: peak learning rate of the projector; None: that of all other weights.
        options: of transformers' Trainer.
    """

    def __init__(self, *, projector_learning_rate: float | None, **options: Any) -> None:
        super().__init__(**options)
        self.projector_learning_rate = projector_learning_rate

    def create_accelerator_and_postprocess(self) -> None:
        """Leave a model on the CPU where it is.

        For torch, the device of a process, such as cpu:1, is another one than cpu. Moved there, weights that processes
        map into memory from the same files would be copied in each.
        """
        super().create_accelerator_and_postprocess()
        if self.accelerator.device.type == "cpu":
            self.accelerator.device_placement = False

    def _move_model_to_device(self, model, device):
        if device.type != "cpu":
            super()._move_model_to_device(model, device)

    def create_optimizer(self, *arguments: Any, **options: Any) -> torch.optim.Optimizer:
        """The optimizer, with the projector's weights in separate parameter groups.

        Raises:
            TrainingError: no weights of the projector are trained.
        """
        if self.optimizer is not None or self.projector_learning_rate is None:
            return super().create_optimizer(*arguments, **options)
        optimizer = super().create_optimizer(*arguments, **options)
        assert self.model is not None
        family = family_of(self.model.config)
        parameters = self.model.named_parameters()
        projector_ids = {id(p) for name, p in parameters if p.requires_grad and family.part_of(name) == "projector"}
        if not projector_ids:
            raise TrainingError(
                f"training.projector_learning_rate is set, but no weights of the projector ({family.projector}) are "
                "trained; set it to null, or name the projector in training.lora.modules_to_save"
            )
        for group in list(optimizer.param_groups):
            projector = [p for p in group["params"] if id(p) in projector_ids]
            group["params"] = [p for p in group["params"] if id(p) not in projector_ids]
            if projector:
                optimizer.add_param_group({**group, "params": projector, "lr": self.projector_learning_rate})
        return optimizer

    def _save_optimizer_and_scheduler(self, output_dir):
        if self.is_fsdp_enabled:
            self._complete_optimizer_state()
        super()._save_optimizer_and_scheduler(output_dir)

    def _complete_optimizer_state(self):
        """Give weights that no loss reaches, such as layers above the one that is read, the state before any step.

        A sharded optimizer is only restored if it has a state for every weight.
        """
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if not self.optimizer.state.get(parameter):
                    zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                    self.optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}


class ScoringTrainer(ProjectorTrainer):
    """A Trainer in which a scoring network weights the samples of a batch (Chen et al. 2024, section 3.2).

    The network is linear in the features, without bias. Its first weights are drawn from a normal distribution with
    the standard deviation of the decoder's (`initializer_range`), as in the published code. The weights of samples are
    the softmax of its scores over the batch of all processes, times the batch size. Model and network both minimise the
    weighted loss, so samples that stay difficult end up with small weights.

    Args:
        features: (n, e) array, one row per record.
        options: of `ProjectorTrainer`.

    Raises:
        TrainingError: a batch of one sample, whose weight is always 1.
    """

    def __init__(self, *, features: np.ndarray, **options: Any) -> None:
        super().__init__(**options)
        global_batch_size = self.args.per_device_train_batch_size * max(self.args.world_size, 1)
        if global_batch_size < 2:
            raise TrainingError(
                "training.batch_size must be 2 or more: the scoring network weights the samples of a batch "
                "against each other"
            )
        self.model_accepts_loss_kwargs = False  # `compute_loss` averages over the tokens of each batch
        self.features = features
        self.network = torch.nn.Linear(features.shape[1], 1, bias=False, device=self.args.device)
        with torch.no_grad():  # a separate generator: the same weights in all processes
            generator = torch.Generator().manual_seed(self.args.seed)
            config: Any = options["model"].config
            std = getattr(config.get_text_config(), "initializer_range", INITIALIZER_RANGE)
            self.network.weight.copy_(torch.empty(self.network.weight.shape).normal_(0.0, std, generator=generator))
        # A separate optimizer, because the model's may be sharded.
        self.network_optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.args.learning_rate, weight_decay=0.0
        )
        self.add_callback(_NetworkSteps(self))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Mean over the answer tokens of a batch of sample weight × token loss."""
        rows, labels = inputs.pop(ROWS), inputs.pop("labels")
        outputs = model(**inputs)
        features = np.asarray(self.features[rows.cpu().numpy()], np.float32)
        count = len(rows)  # the collator may have added a row
        logits, labels = outputs.logits[:count, :-1].float(), labels[:count, 1:]
        losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        weights = batch_weights(self.scores(torch.from_numpy(features).to(losses.device)))
        tokens = (labels != IGNORED_LABEL).sum()
        if self.args.world_size > 1:
            # Gradients are averaged over the processes. Each divides by its share of all tokens, so that the average
            # is the gradient of the whole batch, however the tokens are distributed.
            distributed.all_reduce(tokens)
            tokens = tokens / self.args.world_size
        loss = (weights[:, None] * losses).sum() / tokens.clamp(min=1 / self.args.world_size)
        return (loss, outputs) if return_outputs else loss

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """(n,) float32 scores of (n, e) features; float32 also where training computes in half precision."""
        return (features * self.network.weight).sum(dim=1)

    def step_network(self) -> None:
        """One step of the network with the gradients of all processes, at the scheduled learning rate."""
        gradient = self.network.weight.grad
        assert gradient is not None
        if self.args.world_size > 1:
            distributed.all_reduce(gradient)
            gradient /= self.args.world_size
        if self.accelerator.scaler is not None:  # float16: the loss was scaled up
            gradient /= self.accelerator.scaler.get_scale()
        if gradient.isfinite().all():
            for group in self.network_optimizer.param_groups:
                group["lr"] = self._get_learning_rate()
            self.network_optimizer.step()
        self.network_optimizer.zero_grad()

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            optimizer_state = self.network_optimizer.state.get(self.network.weight, {})
            tensors = {"weight": self.network.weight.detach(), **optimizer_state}
            save_file(tensors, Path(output_dir or self.args.output_dir) / SCORING_NETWORK)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        tensors = load_file(Path(resume_from_checkpoint) / SCORING_NETWORK, device=str(self.args.device))
        with torch.no_grad():
            self.network.weight.copy_(tensors.pop("weight"))
        if tensors:
            self.network_optimizer.state[self.network.weight] = {**tensors, "step": tensors["step"].cpu()}


def batch_weights(scores: torch.Tensor) -> torch.Tensor:
    """(b,) weights of this process's samples: softmax of the scores over the batch of all processes, times its size.

    Args:
        scores: (b,) scores of this process's samples.
    """
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return torch.softmax(scores, dim=0) * len(scores)
    all_scores = torch.cat(torch.distributed.nn.all_gather(scores))
    start = distributed.get_rank() * len(scores)
    return (torch.softmax(all_scores, dim=0) * len(all_scores))[start : start + len(scores)]


class _NetworkSteps(TrainerCallback):
    """Steps the scoring network whenever the Trainer steps the model."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.step_network()
