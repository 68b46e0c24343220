"""Sample metrics: per-sample numbers that baselines rank by, from the same forward pass as the activations.

For each sample, over its answer tokens: mean loss (its exponential is the perplexity), EL2N and margin. From the last
layer: the hidden state of the last token, as a unit vector, and the mean over all tokens, unscaled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from coincide.base.activation_store import StorageError, write_activations
from coincide.base.files import link_or_copy, replacing

if TYPE_CHECKING:
    from coincide.extraction.packing import Batch

log = logging.getLogger(__name__)

METRICS = ("loss", "el2n", "margin")
EMBEDDINGS = ("last_token", "mean")
LOGITS_TOKENS = 1024  # tokens whose logits are in memory at once
LARGEST = float(np.finfo(np.float16).max)


def metric_columns(
    model: Any, hidden_states: torch.Tensor, batch: Batch, batch_row: torch.Tensor, slot: torch.Tensor
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

    Returns:
        (n, 3 + 2·h) float32 tensor: METRICS, then EMBEDDINGS. The metrics of a sample without answer tokens are 0.
    """
    device = hidden_states.device
    members = batch.members.to(device)
    of_sample = members[batch_row, slot]  # (n, L)
    answer = batch.answer.to(device)[batch_row, slot]
    sample, position = torch.nonzero(answer).T
    row = batch_row[sample]
    targets = batch.inputs["input_ids"].to(device)[row, position]
    predicting = hidden_states[row, batch.previous.to(device)[row, position]]
    of_tokens = _token_metrics(model, predicting, targets)
    count = answer.sum(dim=1, keepdim=True).clamp(min=1)
    sums = torch.zeros((len(answer), len(METRICS)), device=device).index_add_(0, sample, of_tokens)
    last = of_sample.shape[1] - 1 - of_sample.flip(1).int().argmax(dim=1)  # position of each sample's last token
    last_token = hidden_states[batch_row, last].float()
    total = torch.bmm(members.float(), hidden_states.float())[batch_row, slot]
    mean = total / of_sample.sum(dim=1, keepdim=True)
    return torch.cat([sums / count, torch.nn.functional.normalize(last_token, dim=1), mean], dim=1)


def _token_metrics(model, hidden_states, targets):
    """(t, 3) METRICS of t tokens, from the (t, h) hidden states that predict them."""
    head = model.get_output_embeddings()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    metrics = torch.empty((len(targets), len(METRICS)), device=hidden_states.device)
    for start in range(0, len(targets), LOGITS_TOKENS):
        block, target = slice(start, start + LOGITS_TOKENS), targets[start : start + LOGITS_TOKENS, None]
        logits = head(hidden_states[block]).float()
        logits = torch.tanh(logits / cap) * cap if cap else logits
        log_p = logits.log_softmax(dim=1)
        p = log_p.exp()
        p_target = p.gather(1, target)
        squared_error = p.square().sum(dim=1, keepdim=True) - p_target**2 + (1 - p_target) ** 2
        largest_other = p.scatter(1, target, 0.0).amax(dim=1, keepdim=True)
        metrics[block, 0] = -log_p.gather(1, target)[:, 0]
        metrics[block, 1] = squared_error.sqrt()[:, 0]
        metrics[block, 2] = (p_target - largest_other)[:, 0]
    return metrics


def metrics_table(sample_ids: Sequence[str], columns: np.ndarray) -> pd.DataFrame:
    """Table of sample_id, METRICS and EMBEDDINGS (their float16 bytes) from the (n, 3 + 2·h) columns of n samples.

    Numbers beyond the range of float16 are set to its largest, with a warning that names the samples.
    """
    vectors = columns[:, len(METRICS) :]
    beyond = (np.abs(vectors) > LARGEST).any(axis=1)
    if beyond.any():
        log.warning(
            "the embeddings of %d samples exceed the range of float16 and are limited to %g: %s",
            beyond.sum(),
            LARGEST,
            ", ".join(sample_id for sample_id, is_beyond in zip(sample_ids, beyond) if is_beyond),
        )
    table = pd.DataFrame({"sample_id": sample_ids, **dict(zip(METRICS, columns[:, : len(METRICS)].T))})
    embeddings = np.split(vectors.clip(-LARGEST, LARGEST).astype(np.float16), len(EMBEDDINGS), axis=1)
    return table.assign(**{name: [row.tobytes() for row in rows] for name, rows in zip(EMBEDDINGS, embeddings)})


def write_sample_metrics(
    readers: Sequence[Callable[[], pd.DataFrame]], folder: str | Path, metadata: Mapping[str, Any]
) -> None:
    """Write the sample metrics of a shard: sample_metrics.parquet, and one activation file per embedding.

    Args:
        readers: functions that each read a table of `metrics_table`, in the order of the samples.
        folder: folder to write; empty if there are no readers.
        metadata: describes the model (see `coincide.base.activation_store.write_activations`).
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        if not readers:
            return
        tables = [read().drop(columns=list(EMBEDDINGS)) for read in readers]
        pd.concat(tables, ignore_index=True).to_parquet(temporary / "sample_metrics.parquet", index=False)
        for name in EMBEDDINGS:
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
        for name in EMBEDDINGS:
            embedding_folder = folder / f"{name}.parquet"
            embedding_folder.mkdir()
            for number, shard in enumerate(shards):
                link_or_copy(Path(shard) / f"{name}.parquet", embedding_folder / f"shard-{number:05d}.parquet")
