"""What other methods rank by and one pass of the reference model gives beside activations.

Of each sample over its answer tokens: mean loss (perplexity is its exponential), EL2N, margin; of the
last layer the hidden state of its last token, and the mean over all its tokens, as unit vectors.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from coincide.base.activation_store import write_activations
from coincide.base.files import link_or_copy, replacing

METRICS = ("loss", "el2n", "margin")
EMBEDDINGS = ("last_token", "mean")
TOKENS = 1024  # whose logits are held at once


def metric_columns(model, last, batch, row, place):
    """Metrics and embeddings of the samples of a batch.

    - loss: mean of -log p(token) over the answer tokens.
    - el2n: mean over the answer tokens of the L2 norm of p - one-hot(token) (Paul, Ganguli, Dziugaite 2021).
    - margin: mean of the token's logit less the largest other: the area under the margin of one look
      (Pleiss et al. 2020), as D2-pruning takes it for difficulty.

    Args:
        model: the reference model.
        last: (B, L, h) hidden states after the last layer and its norm.
        batch: `coincide.extraction.packing.Batch` of n samples.
        row, place: (n,) where in the batch each sample stands.

    Returns:
        (n, 3 + 2·h) float32 tensor: METRICS, last_token, mean. A sample without answer tokens has zeros.
    """
    own = batch.own.to(last.device)[row, place]  # (n, L)
    answer = batch.answer.to(last.device)[row, place]
    sample, token = torch.nonzero(answer).T
    where = row[sample]
    ids = batch.inputs["input_ids"].to(last.device)[where, token]
    states = last[where, batch.before.to(last.device)[where, token]]
    head, cap = model.get_output_embeddings(), getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    found = torch.empty((len(ids), len(METRICS)), device=last.device)
    for start in range(0, len(ids), TOKENS):
        part, target = slice(start, start + TOKENS), ids[start : start + TOKENS, None]
        logits = head(states[part]).float()
        logits = torch.tanh(logits / cap) * cap if cap else logits
        of_token = logits.gather(1, target)
        log_p = logits.log_softmax(dim=1)
        p = log_p.exp()
        p_token = p.gather(1, target)
        found[part, 0] = -log_p.gather(1, target)[:, 0]
        found[part, 1] = (p.square().sum(dim=1, keepdim=True) - p_token**2 + (1 - p_token) ** 2).sqrt()[:, 0]
        found[part, 2] = (of_token - logits.scatter(1, target, -torch.inf).amax(dim=1, keepdim=True))[:, 0]
    count = answer.sum(dim=1, keepdim=True).clamp(min=1)
    means = torch.zeros((len(own), len(METRICS)), device=last.device).index_add_(0, sample, found) / count
    end = own.shape[1] - 1 - own.flip(1).int().argmax(dim=1)  # the last token of each sample
    whole = torch.bmm(batch.own.to(last.device).float(), last.float())[row, place]  # as long as it is, a mean
    embeddings = [torch.nn.functional.normalize(e, dim=1) for e in (last[row, end].float(), whole)]
    return torch.cat([means, *embeddings], dim=1)


def metrics_table(sample_ids, columns):
    """Table of sample_id, METRICS, and EMBEDDINGS as the bytes of their float16, from (n, 3 + 2·h) columns."""
    table = pd.DataFrame({"sample_id": sample_ids, **dict(zip(METRICS, columns[:, : len(METRICS)].T))})
    vectors = np.split(columns[:, len(METRICS) :].astype(np.float16), len(EMBEDDINGS), axis=1)
    return table.assign(**{name: [v.tobytes() for v in part] for name, part in zip(EMBEDDINGS, vectors)})


def write_sample_metrics(parts, folder, metadata):
    """Write the sample metrics of a shard: sample_metrics.parquet, and of each embedding a file as activations have it.

    Args:
        parts: list of functions that each read a table of `metrics_table`, in order.
        folder: to write; empty where there are no parts.
        metadata: what to say of the model.
    """
    with replacing(folder) as written:
        written.mkdir()
        if not parts:
            return
        tables = [read().drop(columns=list(EMBEDDINGS)) for read in parts]
        pd.concat(tables, ignore_index=True).to_parquet(written / "sample_metrics.parquet", index=False)
        for name in EMBEDDINGS:
            blocks = ((t["sample_id"].tolist(), _vectors(t[name])) for t in (read() for read in parts))
            hidden = metadata["hidden_size"]
            write_activations(written / f"{name}.parquet", blocks, dimension=hidden, metadata=metadata)


def _vectors(column):
    return np.frombuffer(b"".join(column), np.float16).reshape(len(column), -1)


def merge_sample_metrics(sample_ids, shards, output):
    """Join the sample metrics of all shards: sample_metrics.parquet, and per embedding a folder of the shards' files.

    Args:
        sample_ids: of the manifest, in its order.
        shards: folders that `write_sample_metrics` wrote, shard 0 first.
        output: folder to write; empty where the shards' are.

    Raises:
        ValueError: the shards hold other samples than the manifest.
    """
    with replacing(output) as folder:
        folder.mkdir()
        tables = [path for shard in shards if (path := Path(shard) / "sample_metrics.parquet").exists()]
        if not tables:
            return
        table = pd.concat([pd.read_parquet(path) for path in tables], ignore_index=True)
        if table["sample_id"].tolist() != list(sample_ids):
            raise ValueError(f"{Path(shards[0]).parent}: the sample metrics are not those of the manifest's samples")
        table.to_parquet(folder / "sample_metrics.parquet", index=False)
        for name in EMBEDDINGS:
            of_all = folder / f"{name}.parquet"
            of_all.mkdir()
            for number, shard in enumerate(shards):
                link_or_copy(Path(shard) / f"{name}.parquet", of_all / f"shard-{number:05d}.parquet")
