"""The manifest: the usable samples of a dataset, and the rejected ones with their reasons."""

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd

from coincide.base.progress import Progress
from coincide.base.sections import Dataset
from coincide.dataset.dataset_format import DatasetError
from coincide.dataset.images import ImageError, ImageFolders, check_image_header, open_image
from coincide.dataset.record_checks import Rejection, check_record
from coincide.dataset.samples import DROPPED, REJECTED_COLUMNS, Reason, RejectedSample, rejected_table
from coincide.dataset.shard_assignment import assign_shards
from coincide.dataset.subsample import subsample

MANIFEST_COLUMNS = {
    "sample_id": "str",
    "source": "str",
    "image": "str",
    "n_images": "int32",
    "n_turns": "int32",
    "text_length": "int64",
    "shard": "int32",
    "position": "int64",
}
# of samples whose record was checked; `images` joins all image names, `digest` is that of the record
CHECKED_COLUMNS = {
    **{name: dtype for name, dtype in MANIFEST_COLUMNS.items() if name != "shard"},
    "images": "str",
    "digest": "str",
}
SEPARATOR = "\0"  # between the image names of a sample; no file name contains it
ROWS_PER_BATCH = 4096
DIGEST_LENGTH = 20  # hexadecimal digits
EXAMPLES = 3  # of each reason, in the message when too many samples are rejected
LONGEST_DIGEST = 40  # with the suffixes that keep digests of equal records apart


def build_manifest(
    records: Iterable[Any], images: ImageFolders, dataset: Dataset, *, threads: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide the rows of a dataset into usable samples and rejected ones.

    Records are read one at a time and not kept: only their names and numbers are in memory, about 2 GiB for four
    million rows.

    Args:
        records: LLaVA records, any JSON values.
        images: folder that image names are relative to, and folders of files with images inside (see `open_image`).
        dataset: section of the config.
        threads: threads that check images.

    Returns:
        (manifest, rejected): tables with the columns of MANIFEST_COLUMNS and REJECTED_COLUMNS. Every row of the
        dataset is in exactly one of them. The manifest is sorted by shard, samples of the same images next to each
        other.

    Raises:
        DatasetError: there is no images folder.
    """
    folders = [images] if isinstance(images, str | Path) else list(images)
    if not Path(folders[0]).is_dir():
        raise DatasetError(f"the images folder {folders[0]} does not exist; set dataset.images")
    samples, malformed = _check_records(records, with_digests=dataset.duplicate_ids == "digest")
    samples, duplicates = _assign_ids(samples, dataset.duplicate_ids)
    samples, not_sampled = _draw(samples, dataset.sample)
    faults = _find_faulty_images(_image_uses(samples).unique(), folders, dataset, threads)
    samples, with_faulty_images = _reject_faulty_images(samples, faults)
    manifest = assign_shards(samples, dataset.shards)[list(MANIFEST_COLUMNS)].astype(MANIFEST_COLUMNS)
    rejected = pd.concat([rejected_table([*malformed, *duplicates, *with_faulty_images]), not_sampled])
    return manifest, rejected.sort_values("position", kind="stable", ignore_index=True)


def check_manifest(
    manifest: pd.DataFrame, rejected: pd.DataFrame, dataset: Dataset, *, clusters: int = 1, rejected_path: str = ""
) -> None:
    """Stop the run if too many samples were rejected, or too few are left.

    Args:
        manifest: table of the usable samples.
        rejected: table of the rejected samples.
        dataset: section of the config.
        clusters: number of clusters that the samples will be divided into; an early check only.
        rejected_path: file that keeps the table of the rejected samples, for the message.

    Raises:
        DatasetError: with every reason and examples of each.
    """
    check_rejected(rejected, len(manifest) + len(rejected), dataset.max_rejected, rejected_path=rejected_path)
    reasons = "".join(f"\n{line}" for line in _describe_rejected(rejected, rejected_path))
    if len(manifest) < dataset.shards:
        raise DatasetError(
            f"only {len(manifest)} usable samples for {dataset.shards} shards; lower dataset.shards{reasons}"
        )
    if len(manifest) < clusters:
        raise DatasetError(f"only {len(manifest)} usable samples for {clusters} clusters; lower clustering.k{reasons}")


def check_rejected(rejected: pd.DataFrame, total: int, max_rejected: float, *, rejected_path: str = "") -> None:
    """Stop the run if too many samples were rejected; those that the config drops (DROPPED) do not count.

    Args:
        rejected: table of the rejected samples.
        total: rows of the dataset; those that were not sampled do not count.
        max_rejected: largest share of the dataset that may be rejected.
        rejected_path: file that keeps the table of the rejected samples, for the message.

    Raises:
        DatasetError: with every reason, and up to three examples of each.
    """
    total -= int((rejected["reason"] == Reason.NOT_SAMPLED).sum())
    rejected = rejected[~rejected["reason"].isin(DROPPED)]
    if not total or len(rejected) / total <= max_rejected:
        return
    lines = [
        f"{len(rejected)} of {total} samples ({len(rejected) / total:.1%}) were rejected, above "
        f"dataset.max_rejected ({max_rejected:.1%}).",
        *_describe_rejected(rejected, rejected_path),
    ]
    if (rejected["reason"] == Reason.DUPLICATE_ID).any():
        lines.append("If samples with the same id are different samples, set dataset.duplicate_ids to digest.")
    lines.append("Fix the dataset or raise dataset.max_rejected.")
    raise DatasetError("\n".join(lines))


def _describe_rejected(rejected, path):
    """Lines of text: the reasons, the most frequent first, with examples, and the file with all of them."""
    lines = []
    for reason, count in rejected["reason"].value_counts().items():
        examples = rejected[rejected["reason"] == reason].head(EXAMPLES)
        lines.append(f"{reason} ({count}), for example:")
        for example in examples.itertuples():
            sample_id = f" ({example.sample_id})" if isinstance(example.sample_id, str) else ""
            lines.append(f"  row {example.position}{sample_id}: {example.detail}")
    if lines and path:
        lines.append(f"All rejected samples are in {path}.")
    return lines


def _check_records(records, *, with_digests):
    """Check each record by itself.

    Args:
        records: iterable of LLaVA records.
        with_digests: compute the digest of every record, not only of those without an id.

    Returns:
        (table with the columns of CHECKED_COLUMNS, list of rejected samples).
    """
    tables, rows, rejected = [], [], []

    def table():
        return pd.DataFrame(rows, columns=list(CHECKED_COLUMNS)).astype(CHECKED_COLUMNS)

    for position, record in enumerate(records):
        try:
            row = check_record(record)
        except Rejection as rejection:
            rejected.append(rejection.rejected_sample(record, position))
            continue
        row["digest"] = _digest(record) if with_digests or row["sample_id"] is None else None
        rows.append({**row, "images": SEPARATOR.join(row["images"]), "position": position})
        if len(rows) == ROWS_PER_BATCH:  # a table takes less memory than dicts
            tables.append(table())
            rows = []
    return pd.concat([*tables, table()], ignore_index=True), rejected


def _digest(record):
    content = json.dumps(record, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH]


def _assign_ids(samples, duplicate_ids):
    """Give each sample a unique id; a sample without an id gets the digest of its record.

    Args:
        samples: table of checked samples.
        duplicate_ids: what happens to samples with the same id. "reject" keeps the first and rejects the others,
            "digest" gives each the digest of its record.

    Returns:
        (table of the remaining samples, list of rejected samples).
    """
    ids = samples["sample_id"]
    rejected = []
    if duplicate_ids == "reject":
        is_duplicate = ids.notna() & ids.duplicated()
        rejected = _duplicates(samples, is_duplicate)
        samples = samples[~is_duplicate]
        needs_digest = samples["sample_id"].isna()
    else:
        needs_digest = ids.isna() | ids.duplicated(keep=False)
    taken = set(ids[ids.str.len().between(DIGEST_LENGTH, LONGEST_DIGEST)])  # ids that a digest may be equal to
    new_ids = samples["sample_id"].copy()
    new_ids.loc[samples.index[needs_digest]] = _make_unique(samples.loc[needs_digest, "digest"], taken)
    return samples.assign(sample_id=new_ids).reset_index(drop=True), rejected


def _draw(samples, size):
    """(table of the samples that are drawn, table of the others with the columns of REJECTED_COLUMNS)."""
    if size is None:
        return samples, rejected_table([])
    is_drawn = subsample(samples, size)
    others = samples.loc[~is_drawn, ["sample_id", "position"]]  # a table, since nearly all rows may be among them
    rejected = others.assign(reason=str(Reason.NOT_SAMPLED), detail=f"dataset.sample is {size}")
    return samples[is_drawn].reset_index(drop=True), rejected.astype(REJECTED_COLUMNS)


def _duplicates(samples, is_duplicate):
    """Rejected samples of the rows that are marked as duplicates, each with the row that has the same id."""
    shared_ids = samples.loc[is_duplicate, "sample_id"].unique()
    is_first = samples["sample_id"].isin(shared_ids) & ~is_duplicate
    first_rows = samples[is_first].set_index("sample_id")["position"]
    return [
        RejectedSample(
            duplicate.sample_id,
            duplicate.position,
            Reason.DUPLICATE_ID,
            f"row {first_rows[duplicate.sample_id]} has the same id",
        )
        for duplicate in samples[is_duplicate].itertuples()
    ]


def _make_unique(digests, taken):
    """Append "+" to each digest until it differs from the earlier ones and from the ids that are taken."""
    unique = []
    for digest in digests:
        while digest in taken:
            digest += "+"
        taken.add(digest)
        unique.append(digest)
    return unique


def _image_uses(samples):
    """Series of image names, one entry per use, with the index of the sample that uses the image."""
    with_images = samples.loc[samples["n_images"] > 0, "images"]
    return with_images.str.split(SEPARATOR, regex=False).explode()


def _find_faulty_images(names, folders, dataset, threads):
    """Check images and return the faulty ones: dict of name -> (reason, detail)."""

    check_image = open_image if dataset.decode_images else check_image_header

    def find_fault(name):
        try:
            check_image(folders, name, follow_links=dataset.follow_links)
        except ImageError as error:
            return error.reason, str(error)
        return None

    progress = Progress(len(names), "checking images", unit="images")
    faults = {}
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(names), ROWS_PER_BATCH):
            batch = list(names[start : start + ROWS_PER_BATCH])
            for name, fault in zip(batch, pool.map(find_fault, batch)):
                if fault:
                    faults[name] = fault
                progress.update(1)
    progress.close()
    return faults


def _reject_faulty_images(samples, faults):
    """(table of the samples without faulty images, list of rejected samples); the first faulty image is reported."""
    uses = _image_uses(samples)
    faulty_uses = uses[uses.isin(list(faults))]
    first_faulty = faulty_uses[~faulty_uses.index.duplicated()]
    rejected = [
        RejectedSample(samples.at[i, "sample_id"], int(samples.at[i, "position"]), *faults[name])
        for i, name in first_faulty.items()
    ]
    return samples.drop(first_faulty.index).reset_index(drop=True), rejected
