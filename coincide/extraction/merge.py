"""Merge: check the activations of every shard, and join them into one dataset in manifest order."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from coincide.base.activation_store import DELETE_AND_RERUN, Activations, StorageError, samples_digest
from coincide.base.files import link_or_copy, replacing
from coincide.dataset.samples import Reason, RejectedSample, rejected_table

# metadata that must be the same in all shards of a run
COMMON_METADATA = ("model", "revision", "weights", "model_dtype", "layers", "blocks", "dimension", "dtype")
LISTED_SHARDS = 20  # unusable shards that an error lists

log = logging.getLogger(__name__)


def split_rejected(
    manifest: pd.DataFrame, rejected: pd.DataFrame, shards_rejected: Sequence[pd.DataFrame]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Move the samples that extraction rejected from the manifest to the rejected samples.

    Args:
        manifest, rejected: tables of the samples before extraction.
        shards_rejected: rejected tables of extraction, one per shard.

    Returns:
        (manifest, rejected): every row of the dataset is in exactly one of them.
    """
    late = pd.concat(shards_rejected, ignore_index=True)
    kept = manifest[~manifest["position"].isin(late["position"])].reset_index(drop=True)
    rows = pd.concat([rejected, late]).sort_values("position").itertuples()
    samples = (RejectedSample(row.sample_id, row.position, Reason(row.reason), row.detail) for row in rows)
    return kept, rejected_table(samples)


def merge(manifest: pd.DataFrame, shards: Sequence[str | Path], output: str | Path) -> None:
    """Join shard files into one Parquet dataset: a folder of the shards' files, linked instead of copied.

    Args:
        manifest: table of the samples, with columns sample_id and shard.
        shards: activation file of each shard, shard 0 first.
        output: folder to write.

    Raises:
        StorageError: shards are damaged, do not hold the samples of the manifest, or come from different models. All
            shards are checked. Unusable ones are moved aside, so that the next run computes only these again.
    """
    with replacing(output) as folder:
        folder.mkdir()
        common, unusable = None, []
        for shard, path in enumerate(shards):
            sample_ids = manifest.loc[manifest["shard"] == shard, "sample_id"]
            try:
                common = _check(path, shard, sample_ids, common)
            except StorageError as error:
                aside = Path(f"{path}.damaged")
                os.replace(path, aside)
                unusable.append(f"{str(error).removesuffix(f': {DELETE_AND_RERUN}')}; moved to {aside.name}")
                continue
            link_or_copy(path, folder / f"shard-{shard:05d}.parquet")
            reused = Activations(path).metadata[0].get("reused", 0)
            log.info("shard %d: %d samples%s", shard, len(sample_ids), f", {reused} of them reused" if reused else "")
        if unusable:
            listed = "\n".join(unusable[:LISTED_SHARDS])
            raise StorageError(
                f"{len(unusable)} of {len(shards)} shards cannot be used:\n{listed}\n"
                "run the same command again: only these shards are computed again"
            )


def _check(path, shard, sample_ids, common):
    """Check a shard and return its COMMON_METADATA, which must equal `common` unless that is None."""
    activations = Activations(path)
    activations.verify()
    metadata = activations.metadata[0]
    if metadata["samples"] != len(sample_ids) or metadata["samples_digest"] != samples_digest(sample_ids):
        raise StorageError(f"{path} does not hold the samples of shard {shard}")
    shard_metadata = {name: metadata.get(name) for name in COMMON_METADATA}
    if shard_metadata != (common or shard_metadata):
        raise StorageError(f"{path} comes from {shard_metadata}, other shards from {common}")
    return shard_metadata
