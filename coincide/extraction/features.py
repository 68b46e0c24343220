"""The feature vectors of a batch: the formula of the method (paper section 3.2; step 1 in docs/method.md)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from coincide.base.errors import UserError
from coincide.extraction.packing import Batch
from coincide.extraction.sample_metrics import metric_columns, reading_columns
from coincide.models.loading import move_to_model


class ReferenceModelError(UserError):
    """A model whose activations cannot be extracted; the message says what it lacks."""


def features(
    model: Any,
    batch: Batch,
    layers: Sequence[int],
    *,
    sample_metrics: bool = False,
    extra_metrics: Sequence[str] = (),
) -> torch.Tensor:
    """Feature vectors of the samples of a batch.

    Args:
        model: the reference model, in evaluation mode.
        batch: batch of n samples.
        layers: zero-based decoder layers, M of them.
        sample_metrics: run the whole model and append the columns of `metric_columns` to each vector.
        extra_metrics: of the ReferenceModel section.

    Returns:
        (n, 2·M·h) float32 tensor on the model's device (see `feature_vectors`), row by row of the batch.
    """
    inputs = move_to_model(batch.inputs, model)
    batch_row, slot = _rows_and_slots(model, batch)
    masks = torch.cat([batch.visual[:, None], batch.text], dim=1).to(model.device)
    with (
        torch.inference_mode(),
        attention_outputs(model, layers, stop_after_last=not sample_metrics) as outputs,
        _first_layer_output(model) as first,
    ):
        if sample_metrics:  # without the output head: most of its logits are not needed
            hidden_states = model.model(**inputs, use_cache=False).last_hidden_state
        else:
            with suppress(_LastLayerReached):
                model(**inputs, use_cache=False)
        vectors = feature_vectors([outputs[layer] for layer in layers], masks, batch_row, slot)
        if sample_metrics:
            columns = metric_columns(
                model,
                hidden_states,
                batch,
                batch_row,
                slot,
                extra_metrics=extra_metrics,
                visual_states=first[0],
            )
            vectors = torch.cat([vectors, columns], dim=1)
    return vectors


def reading_vectors(model: Any, batch: Batch) -> torch.Tensor:
    """(n, 1 + h) columns of `reading_columns` of a batch of n readings."""
    with torch.inference_mode():
        hidden_states = model.model(**move_to_model(batch.inputs, model), use_cache=False).last_hidden_state
        return reading_columns(model, hidden_states, batch, *_rows_and_slots(model, batch))


def _rows_and_slots(model, batch):
    """((n,) row of each sample of a batch, (n,) its position in the row)."""
    positions = [(row, slot) for row, samples in enumerate(batch.encoded) for slot in range(len(samples))]
    return torch.tensor(positions, device=model.device).T


def feature_vectors(
    outputs: Sequence[torch.Tensor], masks: torch.Tensor, batch_row: torch.Tensor, slot: torch.Tensor
) -> torch.Tensor:
    """The feature formula.

    For each layer, average the attention output over the visual tokens, and over the text tokens. Apply tanh and scale
    each average to unit norm. Concatenate as layer 1 visual, layer 1 text, layer 2 visual, …, and divide by sqrt(2M).

    Args:
        outputs: M attention outputs, (B, L, h) each.
        masks: (B, 1 + S, L) tokens to average: the visual tokens of each row, then the text tokens of each of its
            up to S samples.
        batch_row: (n,) row of each sample.
        slot: (n,) position of each sample in its row, from 0 to S - 1.

    Returns:
        (n, 2·M·h) float32 tensor. The blocks of a modality that a sample lacks are zero.

    Source: Lee, Li, Hwang (EMNLP 2024), section 3.2; the order of the blocks is that of the published code.
    """
    weights = masks.float()
    count = weights.sum(dim=2, keepdim=True)
    blocks = []
    for output in outputs:
        mean = torch.bmm(weights, output.float()) / count.clamp(min=1)
        unit = torch.nn.functional.normalize(torch.tanh(mean), dim=2) * (count > 0)
        blocks += [unit[batch_row, 0], unit[batch_row, 1 + slot]]
    return torch.cat(blocks, dim=1) / (2 * len(outputs)) ** 0.5


@contextmanager
def _first_layer_output(model):
    """List that a forward pass puts the (B, L, h) output of the first decoder layer into."""
    outputs: list[torch.Tensor] = []

    def collect(module, args, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handle = decoder_layers(model)[0].register_forward_hook(collect)
    try:
        yield outputs
    finally:
        handle.remove()


class _LastLayerReached(Exception):
    """Ends a forward pass after the last layer whose output is needed."""


@contextmanager
def attention_outputs(model: Any, layers: Sequence[int], *, stop_after_last: bool) -> Iterator[dict[int, torch.Tensor]]:
    """Collect the self-attention outputs of a forward pass: dict of layer -> (B, L, h) tensor.

    The output is taken after the output projection and before the residual sum.

    Args:
        model: the reference model.
        layers: zero-based decoder layers.
        stop_after_last: end the forward pass, by an exception, once all outputs are collected.

    Raises:
        ReferenceModelError: a layer has no self-attention.
    """
    modules = [_self_attention(model, layer) for layer in layers]
    outputs: dict[int, torch.Tensor] = {}

    def collector(layer):
        def collect(module, args, output):
            outputs[layer] = output[0] if isinstance(output, tuple) else output
            if stop_after_last and layer == max(layers):
                raise _LastLayerReached

        return collect

    handles = [module.register_forward_hook(collector(layer)) for layer, module in zip(layers, modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The decoder layers of an image-text-to-text model, in order.

    Raises:
        ReferenceModelError: the decoder has no list of layers.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise ReferenceModelError(f"{type(model).__name__} has no decoder layers in {type(decoder).__name__}.layers")
    return layers


def _self_attention(model, layer):
    attention = getattr(decoder_layers(model)[layer], "self_attn", None)
    if attention is None:
        raise ReferenceModelError(
            f"layer {layer} of {type(model).__name__} has no self-attention: choose other layers in "
            "reference_model.layers"
        )
    return attention
