"""Sample metrics: per-sample numbers that baselines rank by, from the same forward pass as the activations.

For each sample, over its answer tokens: mean loss (its exponential is the perplexity), EL2N and margin. From the last
layer: the hidden state of the last token, as a unit vector, and the mean over all tokens, unscaled.
`reference_model.extra_metrics` adds losses of other readings of the sample (`coincide.extraction.readings`), an
embedding of the question, and the mean over the visual tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike

from coincide.base.activation_store import StorageError, write_activations
from coincide.base.files import link_or_copy, replacing
from coincide.extraction.readings import READINGS

if TYPE_CHECKING:
    from coincide.extraction.packing import Batch

log = logging.getLogger(__name__)

METRICS = ("loss", "el2n", "margin")
EMBEDDINGS = ("last_token", "mean")
EXTRA_EMBEDDINGS = {"loss_no_image": "question", "vision_features": "vision"}  # of reference_model.extra_metrics
LOGITS_TOKENS = 1024  # tokens whose logits are in memory at once
LARGEST = float(np.finfo(np.float16).max)


def numbers_of(extra_metrics: Sequence[str]) -> tuple[str, ...]:
    """Names of the numbers per sample: METRICS, then the losses of readings."""
    return (*METRICS, *(column for extra in extra_metrics for column in READINGS[extra].values()))


def embeddings_of(extra_metrics: Sequence[str]) -> tuple[str, ...]:
    """Names of the embeddings: EMBEDDINGS, then those of the extra metrics."""
    return (*EMBEDDINGS, *(EXTRA_EMBEDDINGS[extra] for extra in extra_metrics if extra in EXTRA_EMBEDDINGS))


def metric_columns(
    model: Any,
    hidden_states: torch.Tensor,
    batch: Batch,
    batch_row: torch.Tensor,
    slot: torch.Tensor,
    *,
    extra_metrics: Sequence[str] = (),
    visual_states: torch.Tensor | None = None,
) -> torch.Tensor:
    """Metrics and embeddings of the samples of a batch.

    - loss: mean of -log p(token) over the answer tokens.
    - el2n: mean over the answer tokens of the L2 norm of p - one-hot(token) (Paul, Ganguli, Dziugaite 2021).
    - margin: mean over the answer tokens of p(token) minus the largest other p, from -1 to 1. It is the area under the
      margin (Pleiss et al. 2020) of a single pass, with probabilities in place of logits as in COINCIDE's D2-Pruning.

    Args:
        model: the reference model.
        hidden_states: (B, L, h) after the last layer and its norm.
        batch: batch of n samples.
        batch_row: (n,) row of each sample.
        slot: (n,) position of each sample in its row.
        extra_metrics: of the ReferenceModel section.
        visual_states: (B, L, h) after the first decoder layer; for the extra metric "vision_features".

    Returns:
        float32 tensor of n rows: the numbers of `numbers_of`, then the embeddings of `embeddings_of`, h numbers each.
        The metrics of a sample without answer tokens are 0. The losses of readings are 0; they have their own pass. The
        question's embedding is that of this pass, in which the question has attended to the images. The vision
        embedding is the mean over the visual tokens; zeros for a sample without an image.
    """
    device = hidden_states.device
    members = batch.members.to(device)
    of_sample = members[batch_row, slot]  # (n, L)
    answer = batch.answer.to(device)[batch_row, slot]
    metrics = _answer_means(_token_metrics, len(METRICS), model, hidden_states, batch, batch_row, answer)
    losses = metrics.new_zeros(len(metrics), len(numbers_of(extra_metrics)) - len(METRICS))
    last = of_sample.shape[1] - 1 - of_sample.flip(1).int().argmax(dim=1)  # position of each sample's last token
    last_token = hidden_states[batch_row, last].float()
    total = torch.bmm(members.float(), hidden_states.float())[batch_row, slot]
    mean = total / of_sample.sum(dim=1, keepdim=True)
    columns = [metrics, losses, torch.nn.functional.normalize(last_token, dim=1), mean]
    for name in embeddings_of(extra_metrics)[len(EMBEDDINGS) :]:
        if name == "question":
            columns.append(_question_embeddings(hidden_states, batch, batch_row, slot))
        else:
            assert visual_states is not None
            visual = batch.visual.to(device).float()
            total = torch.bmm(visual[:, None], visual_states.float())[batch_row, 0]
            columns.append(total / visual.sum(dim=1).clamp(min=1)[batch_row, None])
    return torch.cat(columns, dim=1)


def reading_columns(
    model: Any, hidden_states: torch.Tensor, batch: Batch, batch_row: torch.Tensor, slot: torch.Tensor
) -> torch.Tensor:
    """Loss and question embedding of readings.

    Args:
        model, hidden_states, batch, batch_row, slot: as for `metric_columns`.

    Returns:
        (n, 1 + h) float32 tensor: the mean loss of the answer tokens, and the question's embedding, a unit vector: the
        mean hidden state over the text tokens before the first answer, without the template's fixed prefix.
    """
    answer = batch.answer.to(hidden_states.device)[batch_row, slot]
    loss = _answer_means(_token_losses, 1, model, hidden_states, batch, batch_row, answer)
    return torch.cat([loss, _question_embeddings(hidden_states, batch, batch_row, slot)], dim=1)


def _question_embeddings(hidden_states, batch, batch_row, slot):
    """(n, h) unit vectors; zeros for a sample without text before its first answer."""
    question = batch.text & (batch.answer.cumsum(dim=2) == 0)
    total = torch.bmm(question.to(hidden_states.device).float(), hidden_states.float())[batch_row, slot]
    return torch.nn.functional.normalize(total, dim=1)


def _answer_means(of_tokens, width, model, hidden_states, batch, batch_row, answer):
    """(n, width) means over the answer tokens, the (n, L) mask `answer`, of a function of tokens; 0 without any."""
    device = hidden_states.device
    sample, position = torch.nonzero(answer).T
    row = batch_row[sample]
    targets = batch.inputs["input_ids"].to(device)[row, position]
    predicting = hidden_states[row, batch.previous.to(device)[row, position]]
    values = torch.empty((len(targets), width), device=device)
    for start in range(0, len(targets), LOGITS_TOKENS):
        block = slice(start, start + LOGITS_TOKENS)
        values[block] = of_tokens(_log_probabilities(model, predicting[block]), targets[block, None])
    count = answer.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.zeros((len(answer), width), device=device).index_add_(0, sample, values) / count


def _log_probabilities(model, hidden_states):
    logits = model.get_output_embeddings()(hidden_states).float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return (torch.tanh(logits / cap) * cap if cap else logits).log_softmax(dim=1)


def _token_losses(log_p, target):
    return -log_p.gather(1, target)


def _token_metrics(log_p, target):
    """(t, 3) METRICS of t tokens, from the log probabilities that predict them and the (t, 1) tokens."""
    p = log_p.exp()
    p_target = p.gather(1, target)
    squared_error = p.square().sum(dim=1, keepdim=True) - p_target**2 + (1 - p_target) ** 2
    largest_other = p.scatter(1, target, 0.0).amax(dim=1, keepdim=True)
    return torch.cat([-log_p.gather(1, target), squared_error.sqrt(), p_target - largest_other], dim=1)


def metrics_table(
    sample_ids: Sequence[str],
    columns: np.ndarray,
    extra_metrics: Sequence[str] = (),
    text_only: ArrayLike | None = None,
) -> pd.DataFrame:
    """Table of the sample metrics: sample_id, numbers and embeddings (their float16 bytes).

    Numbers beyond the range of float16 are set to its largest, with a warning that names the samples.

    Args:
        sample_ids: n sample ids.
        columns: (n, …) numbers and embeddings, in the order of `metric_columns`.
        extra_metrics: of the ReferenceModel section.
        text_only: (n,) samples without an image, whose losses of readings become null.

    Returns:
        table with the columns of `numbers_of` and `embeddings_of`; with loss_no_image also visual_necessity, which is
        loss_no_image minus loss (Dong et al. 2026).
    """
    numbers, names = numbers_of(extra_metrics), embeddings_of(extra_metrics)
    vectors = columns[:, len(numbers) :]
    beyond = (np.abs(vectors) > LARGEST).any(axis=1)
    if beyond.any():
        log.warning(
            "the embeddings of %d samples exceed the range of float16 and are limited to %g: %s",
            beyond.sum(),
            LARGEST,
            ", ".join(sample_id for sample_id, is_beyond in zip(sample_ids, beyond) if is_beyond),
        )
    table = pd.DataFrame({"sample_id": sample_ids, **dict(zip(numbers, columns[:, : len(numbers)].T))})
    if text_only is not None:
        table.loc[np.asarray(text_only, bool), list(numbers[len(METRICS) :])] = np.nan
    if "loss_no_image" in table:
        table["visual_necessity"] = table["loss_no_image"] - table["loss"]
    embeddings = np.split(vectors.clip(-LARGEST, LARGEST).astype(np.float16), len(names), axis=1)
    return table.assign(**{name: [row.tobytes() for row in rows] for name, rows in zip(names, embeddings)})


def write_sample_metrics(
    readers: Sequence[Callable[[], pd.DataFrame]],
    folder: str | Path,
    metadata: Mapping[str, Any],
    extra_metrics: Sequence[str] = (),
) -> None:
    """Write the sample metrics of a shard: sample_metrics.parquet, and one activation file per embedding.

    Args:
        readers: functions that each read a table of `metrics_table`, in the order of the samples.
        folder: folder to write; empty if there are no readers.
        metadata: describes the model (see `coincide.base.activation_store.write_activations`).
        extra_metrics: of the ReferenceModel section.
    """
    names = embeddings_of(extra_metrics)
    with replacing(folder) as temporary:
        temporary.mkdir()
        if not readers:
            return
        tables = [read().drop(columns=list(names)) for read in readers]
        pd.concat(tables, ignore_index=True).to_parquet(temporary / "sample_metrics.parquet", index=False)
        for name in names:
            blocks = ((table["sample_id"].tolist(), _vectors(table[name])) for table in (read() for read in readers))
            dimension = metadata["hidden_size"]
            write_activations(temporary / f"{name}.parquet", blocks, dimension=dimension, metadata=metadata)


def _vectors(column):
    return np.frombuffer(b"".join(column), np.float16).reshape(len(column), -1)


def merge_sample_metrics(sample_ids: Sequence[str], shards: Sequence[str | Path], output: str | Path) -> None:
    """Join the sample metrics of all shards: sample_metrics.parquet, and per embedding a folder of the shards' files.

    Args:
        sample_ids: sample ids of the manifest, in its order.
        shards: folders from `write_sample_metrics`, shard 0 first.
        output: folder to write; empty if the shards' folders are.

    Raises:
        StorageError: the shards do not hold the samples of the manifest.
    """
    with replacing(output) as folder:
        folder.mkdir()
        paths = [path for shard in shards if (path := Path(shard) / "sample_metrics.parquet").exists()]
        if not paths:
            return
        table = pd.concat([pd.read_parquet(path) for path in paths], ignore_index=True)
        if table["sample_id"].tolist() != list(sample_ids):
            raise StorageError(
                f"{Path(shards[0]).parent}: the sample metrics are not those of the manifest's samples: "
                "delete the shards' sample metrics and run again"
            )
        table.to_parquet(folder / "sample_metrics.parquet", index=False)
        for number, shard in enumerate(shards):
            for path in sorted(Path(shard).glob("*.parquet")):
                if path.name != "sample_metrics.parquet":
                    (folder / path.name).mkdir(exist_ok=True)
                    link_or_copy(path, folder / path.name / f"shard-{number:05d}.parquet")
