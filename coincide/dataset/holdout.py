"""Samples that are held out of every coreset, to ask questions about them in evaluation."""

import hashlib

import numpy as np
import pandas as pd

from coincide.dataset.shard_assignment import assign_shards


def hold_out(manifest: pd.DataFrame, share: float, shards: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide the usable samples into those to select from and those that are held out.

    From each source, the samples whose ids have the smallest SHA-256 are held out. The choice depends on the ids only,
    so a larger share holds out the same samples and more.

    Args:
        manifest: table of the usable samples, with the columns of MANIFEST_COLUMNS.
        share: share of each source to hold out, in [0, 1); rounded to whole samples.
        shards: number of shards of the rest.

    Returns:
        (manifest of the rest with shards assigned anew, held-out rows in the order of the dataset).
    """
    keys = manifest["sample_id"].map(lambda sample_id: hashlib.sha256(sample_id.encode()).hexdigest())
    rank = keys.groupby(manifest["source"]).rank(method="first")
    count = manifest.groupby("source")["sample_id"].transform("size")
    is_held_out = (rank <= np.rint(share * count)).to_numpy()
    if not is_held_out.any():
        return manifest, manifest.iloc[:0]
    rest = manifest[~is_held_out].sort_values("position")
    # the manifest keeps the first image only; samples that share it stay in one shard
    rest = assign_shards(rest.assign(images=rest["image"]), shards)[list(manifest.columns)]
    return rest.astype(manifest.dtypes.to_dict()), manifest[is_held_out].sort_values("position").reset_index(drop=True)
