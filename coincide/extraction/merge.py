"""Merge: every shard checked, all of them one dataset in manifest order."""

import logging
import os
from pathlib import Path

import pandas as pd

from coincide.base.activation_store import DELETE_AND_RERUN, Activations, StorageError, samples_digest
from coincide.base.files import link_or_copy, replacing
from coincide.dataset.manifest import rejected_table

# what all shards of a run have in common
ORIGIN = ("model", "revision", "weights", "model_dtype", "layers", "blocks", "dimension", "dtype")

log = logging.getLogger(__name__)


def split_rejected(manifest, rejected, shards_rejected):
    """Take the samples that extraction set aside out of the manifest.

    Args:
        manifest, rejected: tables of the samples as they were read.
        shards_rejected: list of rejected tables, one a shard.

    Returns:
        (manifest, rejected): every row of the input in exactly one of them.
    """
    late = pd.concat(shards_rejected, ignore_index=True)
    kept = manifest[~manifest["position"].isin(late["position"])].reset_index(drop=True)
    rows = pd.concat([rejected, late]).sort_values("position").to_dict("records")
    return kept, rejected_table(rows)


def merge(manifest, shards, output):
    """Join shard files to one Parquet dataset: a folder whose files are the shards, linked, not copied.

    Args:
        manifest: table of the samples that must be there, with columns sample_id and shard.
        shards: activation file of each shard, shard 0 first.
        output: folder to write.

    Raises:
        StorageError: shards are damaged, miss samples, hold others, or were made by another model. All are
            looked at; the bad ones are moved aside, so that the next run computes these and no others.
    """
    with replacing(output) as folder:
        folder.mkdir()
        first, bad = None, []
        for shard, path in enumerate(shards):
            expected = manifest.loc[manifest["shard"] == shard, "sample_id"]
            try:
                first = _check(path, shard, expected, first)
            except StorageError as error:
                aside = Path(f"{path}.damaged")
                os.replace(path, aside)
                bad.append(f"{str(error).removesuffix(f': {DELETE_AND_RERUN}')}; moved to {aside.name}")
                continue
            link_or_copy(path, folder / f"shard-{shard:05d}.parquet")
            log.info("shard %d: %d samples", shard, len(expected))
        if bad:
            listed = "\n".join(bad[:20])
            raise StorageError(
                f"{len(bad)} of {len(shards)} shards cannot be used:\n{listed}\n"
                "run the same command again: these shards are computed anew, and no others"
            )


def _check(path, shard, expected, first):
    """Where the activations of a whole shard come from; the same as `first`, unless that is None."""
    activations = Activations(path)
    activations.verify()
    metadata = activations.metadata[0]
    if metadata["samples"] != len(expected) or metadata["samples_digest"] != samples_digest(expected):
        raise StorageError(f"{path} does not hold the samples of shard {shard}")
    origin = {k: metadata.get(k) for k in ORIGIN}
    if origin != (first or origin):
        raise StorageError(f"{path} comes from {origin}, other shards from {first}")
    return origin
