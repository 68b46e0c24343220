"""Whether the similarity of clusters stands for transfer between them: the premise of the method, measured.

The reference model is finetuned on one cluster at a time; what that gains on another is set against the
cosine of their centroids (paper section 3.3, the evidence for transferability).
"""

import logging
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from coincide.base.progress import Progress
from coincide.base.rows import members_by_cluster, unit_rows
from coincide.base.sections import Training
from coincide.models.loading import load_model, move_to_model
from coincide.study.comparison import interval
from coincide.training.finetune import Collator, finetune

log = logging.getLogger(__name__)

RESAMPLES = 2000


def choose_clusters(labels, *, clusters, samples, seed):
    """Clusters drawn at random among those with enough members, and of each the rows to train and to ask.

    Args:
        labels: (n,) cluster of each row.
        clusters: how many.
        samples: to train on, and as many again to ask; a cluster with fewer than twice as many is passed over.
        seed: of the draws.

    Returns:
        list of (cluster, (samples,) rows to train, (samples,) rows to ask).

    Raises:
        ValueError: fewer than three such clusters.
    """
    rng = np.random.default_rng(seed)
    members = members_by_cluster(labels, labels.max() + 1)
    large = [c for c, rows in enumerate(members) if len(rows) >= 2 * samples]
    if len(large) < 3:
        raise ValueError(
            f"{len(large)} clusters have {2 * samples} samples or more, three are needed: lower transfer_check.samples"
        )
    chosen = []
    for cluster in np.sort(rng.choice(large, size=min(clusters, len(large)), replace=False)):
        rows = rng.permutation(members[cluster])[: 2 * samples]
        chosen.append((int(cluster), rows[:samples], rows[samples:]))
    return chosen


def answer_loss(model, processor, records, images, *, batch_size):
    """Mean over records of the mean loss of their answer tokens."""
    collate = Collator(processor, records, images)
    losses = []
    for start in range(0, len(records), batch_size):
        batch = collate([{"row": row} for row in range(start, min(len(records), start + batch_size))])
        labels = batch.pop("labels").to(model.device)
        with torch.inference_mode():
            logits = model(**move_to_model(batch, model)).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels[:, 1:], reduction="none")
        count = (labels[:, 1:] != -100).sum(dim=1)
        losses += (loss.sum(dim=1) / count.clamp(min=1))[count > 0].tolist()
    return float(np.mean(losses))


def measure(checkpoint, chosen, centroids, records, images, training, *, seed, batch_size):
    """Gains of finetuning on each cluster for each other.

    Args:
        checkpoint: Checkpoint, hub name or folder of the reference model.
        chosen: of `choose_clusters`.
        centroids: (K, d).
        records: dict of row -> LLaVA record, for all rows of `chosen`.
        images: folder that image names are relative to.
        training: Training section for each finetuning.
        seed: of each finetuning.
        batch_size: samples asked at once.

    Returns:
        table of trained, asked, cosine, before, after (mean answer losses), gain (1 - after / before).
    """
    unit = unit_rows(np.asarray(centroids, np.float64)[[cluster for cluster, _, _ in chosen]])
    cosine = unit @ unit.T

    def losses(model, processor):
        return [
            answer_loss(model, processor, [records[r] for r in ask], images, batch_size=batch_size)
            for _, _, ask in chosen
        ]

    before = losses(*load_model(checkpoint, device=training.device))
    progress, rows = Progress(len(chosen), "transfer check", unit="clusters"), []
    for i, (cluster, train, _) in enumerate(chosen):
        with tempfile.TemporaryDirectory() as folder:
            trained = Path(folder) / "model"
            finetune(
                checkpoint,
                [records[r] for r in train],
                images,
                training,
                seed=seed,
                output=trained,
                checkpoints=Path(folder) / "checkpoints",
            )
            after = losses(*load_model(trained, device=training.device))
        for j, (asked, _, _) in enumerate(chosen):
            rows.append([cluster, asked, cosine[i, j], before[j], after[j], 1 - after[j] / before[j]])
        progress.update(1)
    progress.close()
    return pd.DataFrame(rows, columns=["trained", "asked", "cosine", "before", "after", "gain"])


def between(pairs):
    """Pairs of different clusters, gains less the mean gain of the asked one: some gain from any training."""
    others = pairs[pairs["trained"] != pairs["asked"]]
    return others.assign(gain=others["gain"] - others.groupby("asked")["gain"].transform("mean"))


def correlation(pairs, *, seed=0):
    """Correlation of gain and cosine over the pairs of `between`.

    Args:
        pairs: table of `measure`.
        seed: of the bootstrap over clusters, which keeps the pairs of a cluster together.

    Returns:
        dict of r (Pearson), low, high (95%), rho (Spearman), pairs; own, own_low, own_high: mean gain on the
        cluster trained on and its interval, without which a correlation says nothing.
    """
    others = between(pairs)
    r, rho = (float(f(others["cosine"], others["gain"]).statistic) for f in (stats.pearsonr, stats.spearmanr))
    clusters, rng, found = others["trained"].unique(), np.random.default_rng(seed), []
    by_cluster = dict(list(others.groupby("trained")))
    for _ in range(RESAMPLES):
        drawn = pd.concat([by_cluster[c] for c in rng.choice(clusters, size=len(clusters))])
        if drawn["cosine"].std() > 0 and drawn["gain"].std() > 0:
            found.append(np.corrcoef(drawn["cosine"], drawn["gain"])[0, 1])
    low, high = np.percentile(found, [2.5, 97.5])
    own, own_low, own_high = map(float, interval(pairs.loc[pairs["trained"] == pairs["asked"], "gain"], seed=seed))
    return {
        "r": r, "low": float(low), "high": float(high), "rho": rho, "pairs": len(others),
        "own": own, "own_low": own_low, "own_high": own_high,
    }  # fmt: skip


def check(records, images, clusters, centroids, reference, settings):
    """The whole check: (table of pairs, correlation).

    Args:
        records: iterable of (row, LLaVA record) of the samples offered for selection.
        images: folder that image names are relative to.
        clusters: the clusters table.
        centroids: (K, d), the columns that transferability compares.
        reference: ReferenceModel section of the config.
        settings: TransferCheck section of the config.
    """
    chosen = choose_clusters(
        clusters["cluster"].to_numpy(),
        clusters=settings.clusters,
        samples=settings.samples,
        seed=settings.seed,
    )
    wanted = {int(row) for _, train, ask in chosen for row in (*train, *ask)}
    pairs = measure(
        reference.checkpoint,
        chosen,
        centroids,
        {row: record for row, record in records if row in wanted},
        images,
        Training(
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            device=settings.device,
        ),
        seed=settings.seed,
        batch_size=settings.batch_size,
    )
    return pairs, correlation(pairs)


def as_text(found):
    """The correlation in words, as Markdown."""
    text = (
        f"Finetuning the reference model on one cluster and asking another: over {found['pairs']} pairs the gain "
        f"correlates with the cosine of the centroids with r = {found['r']:.2f} (95% {found['low']:.2f} to "
        f"{found['high']:.2f}; Spearman {found['rho']:.2f}). Held-out samples of the cluster trained on gain "
        f"{found['own']:.1%} of their loss ({found['own_low']:.1%} to {found['own_high']:.1%})."
    )
    if not found["own_low"] > 0:
        text += (
            " That may be nothing: the training is too weak to measure transfer by; raise the samples, epochs or "
            "learning_rate of transfer_check."
        )
    return text + "\n"
