"""The premise of the method, measured: do similar clusters transfer to each other?

The reference model is finetuned on one cluster at a time. The fall of its loss on another cluster is compared with
the cosine of the two centroids (paper section 3.3, the evidence for transferability).
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers import PreTrainedModel, ProcessorMixin

from coincide.base.clustered_rows import members_by_cluster
from coincide.base.errors import UserError
from coincide.base.intervals import interval
from coincide.base.progress import Progress
from coincide.base.rows import unit_rows
from coincide.base.sections import Checkpoint, Training, TransferCheck
from coincide.dataset.images import ImageFolders
from coincide.models.loading import load_model, move_to_model
from coincide.training.collator import IGNORED_LABEL, Collator
from coincide.training.finetune import finetune

RESAMPLES = 2000  # of the bootstrap

ClusterSplit = tuple[int, NDArray[np.int64], NDArray[np.int64]]  # cluster, rows to train on, rows to evaluate on


class TransferCheckError(UserError):
    """The clusters are too small for the transfer check."""


def choose_clusters(labels: np.ndarray, *, clusters: int, samples: int, seed: int) -> list[ClusterSplit]:
    """Draw clusters at random among those with enough members, and split their rows into training and evaluation.

    Args:
        labels: (n,) cluster of each row.
        clusters: number of clusters to draw, at most.
        samples: number of rows to train on, and to evaluate on, per cluster; clusters with fewer than twice as many
            members are skipped.
        seed: of the draws.

    Returns:
        list of (cluster, (samples,) rows to train on, (samples,) rows to evaluate on).

    Raises:
        TransferCheckError: fewer than three clusters are large enough.
    """
    rng = np.random.default_rng(seed)
    members = members_by_cluster(labels)
    large = [cluster for cluster, rows in enumerate(members) if len(rows) >= 2 * samples]
    if len(large) < 3:
        raise TransferCheckError(
            f"the transfer check requires 3 clusters with at least {2 * samples} samples, and there are {len(large)}; "
            "lower transfer_check.samples"
        )
    chosen = []
    for cluster in np.sort(rng.choice(large, size=min(clusters, len(large)), replace=False)):
        rows = rng.permutation(members[cluster])[: 2 * samples]
        chosen.append((int(cluster), rows[:samples], rows[samples:]))
    return chosen


def answer_loss(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    records: Sequence[dict],
    images: ImageFolders,
    *,
    batch_size: int,
) -> float:
    """Mean over records of the mean loss of their answer tokens; records without answer tokens are left out.

    Args:
        model: in evaluation mode.
        processor: of the model.
        records: LLaVA records.
        images: folder that image names are relative to.
        batch_size: records per batch.
    """
    collate = Collator(processor, records, images)
    losses: list[float] = []
    for start in range(0, len(records), batch_size):
        batch = collate([{"row": row} for row in range(start, min(len(records), start + batch_size))])
        labels = batch.pop("labels").to(model.device)[:, 1:]
        with torch.inference_mode():
            logits = model(**move_to_model(batch, model)).logits[:, :-1].float()
        token_losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        answer_tokens = (labels != IGNORED_LABEL).sum(dim=1)
        losses += (token_losses.sum(dim=1) / answer_tokens.clamp(min=1))[answer_tokens > 0].tolist()
    return float(np.mean(losses))


def measure_gains(
    checkpoint: Checkpoint | str | Path,
    chosen: Sequence[ClusterSplit],
    centroids: np.ndarray,
    records: Mapping[int, dict],
    images: ImageFolders,
    training: Training,
    *,
    seed: int,
    batch_size: int,
) -> pd.DataFrame:
    """Gain on every chosen cluster from finetuning on each of them.

    Args:
        checkpoint: Checkpoint, hub name or folder of the reference model.
        chosen: result of `choose_clusters`, C clusters.
        centroids: (K, d).
        records: LLaVA record by row, for all rows of `chosen`.
        images: folder that image names are relative to.
        training: Training section for each finetuning.
        seed: of each finetuning.
        batch_size: records evaluated per batch.

    Returns:
        C² rows of trained, evaluated (clusters), cosine (of their centroids), before, after (mean answer loss on
        the evaluated cluster, in nats per token) and gain (1 - after / before).
    """
    unit = unit_rows(np.asarray(centroids, np.float64)[[cluster for cluster, _, _ in chosen]])
    cosine = unit @ unit.T

    def losses(model_checkpoint):
        model, processor = load_model(model_checkpoint, device=training.device)
        return [
            answer_loss(model, processor, [records[row] for row in evaluation_rows], images, batch_size=batch_size)
            for _, _, evaluation_rows in chosen
        ]

    before = losses(checkpoint)
    progress = Progress(len(chosen), "transfer check", unit="clusters")
    pairs = []
    for i, (trained, training_rows, _) in enumerate(chosen):
        with tempfile.TemporaryDirectory() as folder:
            finetuned = Path(folder) / "model"
            finetune(
                checkpoint,
                [records[row] for row in training_rows],
                images,
                training,
                seed=seed,
                output=finetuned,
                checkpoints=Path(folder) / "checkpoints",
            )
            after = losses(finetuned)
        for j, (evaluated, _, _) in enumerate(chosen):
            pairs.append([trained, evaluated, cosine[i, j], before[j], after[j], 1 - after[j] / before[j]])
        progress.update(1)
    progress.close()
    return pd.DataFrame(pairs, columns=["trained", "evaluated", "cosine", "before", "after", "gain"])


def relative_gains(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of different clusters, with gains minus the mean gain of the evaluated cluster.

    Some clusters gain from any training; the mean removes that.

    Args:
        pairs: result of `measure_gains`.
    """
    others = pairs[pairs["trained"] != pairs["evaluated"]]
    return others.assign(gain=others["gain"] - others.groupby("evaluated")["gain"].transform("mean"))


def correlation(pairs: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Correlation of relative gain and cosine.

    Args:
        pairs: result of `measure_gains`.
        seed: of the bootstrap, which draws trained clusters with all their pairs.

    Returns:
        dict of r (Pearson), low, high (95% interval of r), rho (Spearman), pairs (number of pairs); self_gain,
        self_gain_low, self_gain_high: mean gain on held-out samples of the trained cluster, and its 95% interval. If
        training does not help even there, the correlation means nothing.
    """
    others = relative_gains(pairs)
    r = float(stats.pearsonr(others["cosine"], others["gain"]).statistic)
    rho = float(stats.spearmanr(others["cosine"], others["gain"]).statistic)
    clusters, rng = others["trained"].unique(), np.random.default_rng(seed)
    by_cluster = dict(list(others.groupby("trained")))
    resampled = []
    for _ in range(RESAMPLES):
        drawn = pd.concat([by_cluster[cluster] for cluster in rng.choice(clusters, size=len(clusters))])
        if drawn["cosine"].std() > 0 and drawn["gain"].std() > 0:
            resampled.append(np.corrcoef(drawn["cosine"], drawn["gain"])[0, 1])
    low, high = np.percentile(resampled, [2.5, 97.5])
    same = pairs.loc[pairs["trained"] == pairs["evaluated"], "gain"]
    self_gain, self_gain_low, self_gain_high = map(float, interval(same, seed=seed))
    return {
        "r": r,
        "low": float(low),
        "high": float(high),
        "rho": rho,
        "pairs": len(others),
        "self_gain": self_gain,
        "self_gain_low": self_gain_low,
        "self_gain_high": self_gain_high,
    }


def check_transfer(
    records: Iterable[tuple[int, dict]],
    images: ImageFolders,
    clusters: pd.DataFrame,
    centroids: np.ndarray,
    checkpoint: Checkpoint,
    settings: TransferCheck,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The whole transfer check.

    Args:
        records: (row, LLaVA record) of all clustered samples.
        images: folder that image names are relative to.
        clusters: the clusters table; row i is sample i.
        centroids: (K, d), the columns that transferability compares.
        checkpoint: Checkpoint of the reference model.
        settings: TransferCheck section of the config.

    Returns:
        (result of `measure_gains`, result of `correlation`).

    Raises:
        TransferCheckError: fewer than three clusters are large enough.
    """
    chosen = choose_clusters(
        clusters["cluster"].to_numpy(),
        clusters=settings.clusters,
        samples=settings.samples,
        seed=settings.seed,
    )
    chosen_rows = {
        int(row) for _, training_rows, evaluation_rows in chosen for row in (*training_rows, *evaluation_rows)
    }
    pairs = measure_gains(
        checkpoint,
        chosen,
        centroids,
        {row: record for row, record in records if row in chosen_rows},
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


def as_text(result: Mapping[str, Any]) -> str:
    """The result of `correlation` as a Markdown paragraph."""
    text = (
        f"The reference model was finetuned on one cluster and evaluated on another. Over {result['pairs']} pairs of "
        f"clusters the gain correlates with the cosine of the centroids with r = {result['r']:.2f} (95% interval "
        f"{result['low']:.2f} to {result['high']:.2f}; Spearman {result['rho']:.2f}). Held-out samples of the trained "
        f"cluster gain {result['self_gain']:.1%} of their loss ({result['self_gain_low']:.1%} to "
        f"{result['self_gain_high']:.1%})."
    )
    if not result["self_gain_low"] > 0:
        text += (
            " This gain may be zero, so the premise is not tested: the model has learned this data already, or the "
            "training is too weak to measure transfer. Check the model before its finetuning, or increase "
            "transfer_check.samples, transfer_check.epochs or transfer_check.learning_rate."
        )
    return text + "\n"
