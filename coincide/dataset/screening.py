"""Drop usable samples from a dataset: leaks of the evaluation, and near-duplicates."""

import pandas as pd

from coincide.dataset.dataset_format import DatasetError
from coincide.dataset.samples import Reason, RejectedSample, rejected_table
from coincide.dataset.shard_assignment import reassign_shards


def screen(
    manifest: pd.DataFrame,
    rejected: pd.DataFrame,
    shards: int,
    *,
    leaks: pd.DataFrame | None = None,
    duplicates: pd.DataFrame | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Move samples from the manifest to the rejected samples, and assign the others to shards anew.

    Args:
        manifest, rejected: tables of the samples.
        shards: number of shards.
        leaks: table of task, document, sample_id, kind; its samples are dropped.
        duplicates: table of sample_id, repeats; samples that repeat another are dropped.

    Returns:
        (manifest, rejected): every row of the two tables is in exactly one of them.

    Raises:
        DatasetError: fewer samples than shards are left.
    """
    details: dict[str, tuple[Reason, str]] = {}
    if duplicates is not None:
        for row in duplicates[duplicates["repeats"].notna()].itertuples():
            details[row.sample_id] = (Reason.NEAR_DUPLICATE, f"the same pictures and text as {row.repeats}")
    if leaks is not None:
        for row in leaks.drop_duplicates("sample_id").itertuples():
            details[row.sample_id] = (Reason.EVALUATION_LEAK, f"{row.kind} as document {row.document} of {row.task}")
    is_dropped = manifest["sample_id"].isin(list(details))
    dropped = [
        RejectedSample(row.sample_id, row.position, *details[row.sample_id])
        for row in manifest[is_dropped].itertuples()
    ]
    all_rejected = pd.concat([rejected, rejected_table(dropped)]).sort_values("position", ignore_index=True)
    kept = manifest[~is_dropped]
    if len(kept) < shards:
        raise DatasetError(
            f"{len(dropped)} of {len(manifest)} usable samples are dropped, which leaves {len(kept)} for {shards} "
            "shards; set dataset.leaks and dataset.near_duplicates to report and look at leaks.parquet and "
            "duplicates.parquet, or lower dataset.shards"
        )
    return reassign_shards(kept, shards), all_rejected
