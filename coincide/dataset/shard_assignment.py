"""Division of the samples into shards of about the same estimated cost."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

TOKENS_PER_IMAGE = 576  # visual tokens in LLaVA-1.5; for other models the estimated costs are only less accurate
CHARACTERS_PER_TOKEN = 4


def assign_shards(samples: pd.DataFrame, shards: int) -> pd.DataFrame:
    """Assign samples to shards, so that samples of the same images are in the same shard.

    Args:
        samples: table with columns images, n_images, text_length, in the order of the dataset.
        shards: number of shards.

    Returns:
        the table with a column shard, sorted by shard, samples of the same images next to each other. The estimated
        tokens of any two shards differ by at most those of one group of samples with the same images. No shard is
        empty if there are at least as many groups as shards.
    """
    groups = _group_by_images(samples["images"].mask(samples["n_images"] == 0))
    group_costs = np.maximum(np.bincount(groups, weights=_tokens(samples, groups)), 1)
    group_shards = _split_by_cost(group_costs, shards)
    order = np.argsort(groups, kind="stable")
    return samples.assign(shard=group_shards[groups]).iloc[order].reset_index(drop=True)


def reassign_shards(manifest: pd.DataFrame, shards: int) -> pd.DataFrame:
    """Assign the samples that are left of a manifest to shards anew.

    The manifest keeps the first image of a sample only; samples that share it stay in one shard.

    Args:
        manifest: rows of a manifest.
        shards: number of shards.

    Returns:
        a manifest with the same columns and dtypes.
    """
    rest = manifest.sort_values("position")
    rest = assign_shards(rest.assign(images=rest["image"]), shards)[list(manifest.columns)]
    return rest.astype(manifest.dtypes.to_dict())


def _split_by_cost(costs, shards):
    """(G,) shard of each group, ascending: the shard that the middle of the group falls into.

    The total cost is divided evenly among the shards. With at least as many groups as shards, a group that costs
    more than a shard would leave shards empty; then groups move to neighbouring shards until none is empty.
    """
    count = len(costs)
    if not count:
        return np.empty(0, np.int64)
    middles = np.cumsum(costs) - costs / 2
    group_shards = np.minimum((middles * shards / costs.sum()).astype(np.int64), shards - 1)
    if count < shards:
        return group_shards
    previous = -1
    for group, shard in enumerate(group_shards.tolist()):
        lowest = group - (count - shards)  # the groups that follow must be enough for the shards that follow
        previous = min(max(shard, lowest), previous + 1)  # no shard is skipped
        group_shards[group] = previous
    return group_shards


def estimated_tokens(manifest: pd.DataFrame) -> NDArray[np.int64]:
    """(n,) estimated tokens that the reference model reads for each sample; a shared image counts once."""
    return _tokens(manifest, _group_by_images(manifest["image"].mask(manifest["n_images"] != 1)))


def _tokens(samples, groups):
    """(n,) estimated tokens; images count for the first sample of each group only, as they are read once."""
    text_tokens = -(-samples["text_length"].to_numpy() // CHARACTERS_PER_TOKEN)  # rounded up
    is_first = ~pd.Series(groups).duplicated().to_numpy()
    return text_tokens + is_first * samples["n_images"].to_numpy() * TOKENS_PER_IMAGE


def _group_by_images(names):
    """(n,) group of each sample, numbered in the order of their first samples.

    Args:
        names: names of each sample's images; samples with equal names are one group, a sample without a name is a
            group by itself.
    """
    groups = pd.factorize(names)[0]
    has_no_name = groups < 0
    groups[has_no_name] = groups.max(initial=-1) + 1 + np.arange(has_no_name.sum())
    return pd.factorize(groups)[0]
