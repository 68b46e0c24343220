"""Which weights of a model are trained: low-rank adapters, or all weights but those of frozen parts."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from coincide.base.sections import Lora
from coincide.models.families import FamilyError, Part, check_modules, family_of, matching_modules

ALL_LINEAR = "all-linear"  # peft's name for every linear layer but the output head


def with_lora(model: Any, lora: Lora, revision: str | None = None) -> Any:
    """A model with low-rank adapters, in which only the adapters and `modules_to_save` are trained.

    By default the adapters are on the linear layers of the decoder, and the projector, which is small, is trained in
    full, as in LLaVA's LoRA recipe.

    Args:
        model: of transformers.
        lora: Lora section of the config.
        revision: of the model on the hub; the adapter keeps it.

    Raises:
        FamilyError: a pattern that matches no module of the model.
    """
    from peft import LoraConfig, get_peft_model

    names = [name for name, _ in model.named_modules()]
    family = family_of(model.config)
    targets = family.lora_targets if lora.target_modules is None else lora.target_modules
    if targets != ALL_LINEAR:
        patterns = [targets] if isinstance(targets, str) else targets
        matches = _matches_pattern if isinstance(targets, str) else _ends_with_name
        check_modules(names, patterns, matches, "training.lora.target_modules")
    to_save = lora.modules_to_save
    if to_save is None:
        to_save = matching_modules(names, family.projector)
    check_modules(names, to_save, str.endswith, "training.lora.modules_to_save")
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=targets,
            modules_to_save=to_save or None,
        ),
        revision=revision,
    )


def _matches_pattern(name, pattern):
    return re.fullmatch(pattern, name) is not None


def _ends_with_name(name, target):
    return name == target or name.endswith(f".{target}")


def freeze(model: Any, parts: Sequence[Part]) -> None:
    """Exclude parts of a model from training.

    Args:
        model: of transformers.
        parts: vision_tower, projector or language_model.

    Raises:
        FamilyError: the model does not have a part.
    """
    family = family_of(model.config)
    for part in parts:
        parameters = [p for name, p in model.named_parameters() if family.part_of(name) == part]
        if not parameters:
            pattern = getattr(family, part)
            raise FamilyError(f"training.freeze: {type(model).__name__} has no weights of its {part} ({pattern})")
        for parameter in parameters:
            parameter.requires_grad = False


def set_dtypes(model: Any, dtype: torch.dtype) -> None:
    """Give weights that are trained float32, and those of a base model under adapters the dtype of the computation.

    Args:
        model: with `requires_grad` set.
        dtype: of the computation.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)


def leave_frozen_weights(model: Any) -> None:
    """Exclude frozen weights from the broadcast with which torch's DistributedDataParallel starts.

    Every process read them from the same files. Written by a broadcast, each process would have a copy of its own of
    pages that they share.
    """
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)


def sharded_modules(model: Any) -> list[str]:
    """Classes of the modules that FSDP gathers one after the other: the layers of the decoder and the vision tower.

    transformers lists the classes of a family's parts, also of parts that the model does not have (LLaVA's list has the
    text tower of CLIP), which accelerate refuses.
    """
    present = {type(module).__name__ for module in model.modules()}
    return sorted(present & set(model._no_split_modules))
