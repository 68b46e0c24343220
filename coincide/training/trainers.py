"""What finetuning does beyond transformers' Trainer: a learning rate of the projector's own, weights of samples."""

import re
from pathlib import Path

import numpy as np
import torch
import torch.distributed.nn
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback

PROJECTOR = re.compile(r"multi_modal_projector|mm_projector|connector|visual\.merger|mlp1")
ROWS = "rows"  # of the samples of a batch, where the trainer asks for them
SCORING_NETWORK = "scoring_network.safetensors"


class ProjectorTrainer(Trainer):
    """A Trainer with a learning rate of its own for the projector, whatever the family calls it."""

    def __init__(self, *, projector_learning_rate, **options):
        super().__init__(**options)
        self.projector_learning_rate = projector_learning_rate

    def create_optimizer(self, *arguments, **options):
        """The optimizer, the projector's weights in groups of their own."""
        if self.optimizer is not None or self.projector_learning_rate is None:
            return super().create_optimizer(*arguments, **options)
        super().create_optimizer(*arguments, **options)
        own = {id(p) for name, p in self.model.named_parameters() if PROJECTOR.search(name)}
        if not own:
            raise ValueError(f"no layer of {type(self.model).__name__} is a projector: unset projector_learning_rate")
        for group in list(self.optimizer.param_groups):
            mine = [p for p in group["params"] if id(p) in own]
            group["params"] = [p for p in group["params"] if id(p) not in own]
            if mine:
                self.optimizer.add_param_group({**group, "params": mine, "lr": self.projector_learning_rate})
        return self.optimizer


class ScoringTrainer(ProjectorTrainer):
    """A Trainer in which a scoring network weighs the samples of a batch (Chen et al. 2024, section 3.2).

    The network is linear in the features, without bias. Weights are the softmax of its scores over the
    batch, of all processes together, times its size; model and network lower the weighed loss together, so
    that samples which stay hard come to weigh little.

    Args:
        features: (n, e) array, a row a record.
        options: of `ProjectorTrainer`.
    """

    def __init__(self, *, features, **options):
        super().__init__(**options)
        together = self.args.per_device_train_batch_size * max(self.args.world_size, 1)
        if together < 2:
            raise ValueError(
                "the scoring network weighs the samples of a batch against each other: "
                "training.batch_size must be 2 or more"
            )
        self.model_accepts_loss_kwargs = False  # the mean below is over each batch's own tokens
        self.features = features
        self.network = torch.nn.Linear(features.shape[1], 1, bias=False, device=self.args.device)
        with torch.no_grad():  # the same in all processes, and untouched by what was drawn before
            own = torch.Generator().manual_seed(self.args.seed)
            bound = features.shape[1] ** -0.5
            self.network.weight.copy_(torch.empty(self.network.weight.shape).uniform_(-bound, bound, generator=own))
        # apart from the model's, which may be sharded
        self.network_optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.args.learning_rate, weight_decay=0.0
        )
        self.add_callback(_NetworkSteps(self))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean over the answer tokens of a batch of weight x loss."""
        rows, labels = inputs.pop(ROWS), inputs.pop("labels")
        outputs = model(**inputs)
        features = np.asarray(self.features[rows.cpu().numpy()], np.float32)
        logits, labels = outputs.logits[:, :-1].float(), labels[:, 1:]
        losses = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        weights = batch_weights(self.scores(torch.from_numpy(features).to(losses.device)))
        loss = (weights[:, None] * losses).sum() / (labels != -100).sum().clamp(min=1)
        return (loss, outputs) if return_outputs else loss

    def scores(self, features):
        """(n,) float32 scores of (n, e) features, in float32 whatever the training's arithmetic."""
        return (features * self.network.weight).sum(dim=1)

    def step_network(self):
        """One step of the network with the gradients of all processes, at the schedule's learning rate."""
        gradient = self.network.weight.grad
        if self.args.world_size > 1:
            distributed.all_reduce(gradient)
            gradient /= self.args.world_size
        if self.accelerator.scaler is not None:  # float16: losses were scaled up
            gradient /= self.accelerator.scaler.get_scale()
        if gradient.isfinite().all():
            for group in self.network_optimizer.param_groups:
                group["lr"] = self._get_learning_rate()
            self.network_optimizer.step()
        self.network_optimizer.zero_grad()

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            state = self.network_optimizer.state.get(self.network.weight, {})
            tensors = {"weight": self.network.weight.detach(), **state}
            save_file(tensors, Path(output_dir or self.args.output_dir) / SCORING_NETWORK)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        state = load_file(Path(resume_from_checkpoint) / SCORING_NETWORK, device=str(self.args.device))
        with torch.no_grad():
            self.network.weight.copy_(state.pop("weight"))
        if state:
            self.network_optimizer.state[self.network.weight] = {**state, "step": state["step"].cpu()}


def batch_weights(scores):
    """(b,) softmax of the scores over the batch of all processes, times its size."""
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return torch.softmax(scores, dim=0) * len(scores)
    every = torch.cat(torch.distributed.nn.all_gather(scores))
    start = distributed.get_rank() * len(scores)
    return (torch.softmax(every, dim=0) * len(every))[start : start + len(scores)]


class _NetworkSteps(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.step_network()
