"""The rows of a dataset: which samples can be used, which are set aside and why."""

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from coincide.base.progress import Progress
from coincide.dataset.conversation import IMAGE_MARK, ROLES, text_length
from coincide.dataset.formats import Broken, DatasetError
from coincide.dataset.images import ImageError, open_image

log = logging.getLogger(__name__)

REASONS = (
    "malformed record",
    "empty conversation",
    "malformed turns",
    "image token count mismatch",
    "duplicate id",
    "missing image",
    "unreadable image",
    "decompression bomb",
    "image path outside the folder",
    "too long",
    "non-finite activation",
)
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
CHECKED_COLUMNS = {
    **{name: kind for name, kind in MANIFEST_COLUMNS.items() if name != "shard"},
    "images": "str",
    "digest": "str",
}
REJECTED_COLUMNS = {"sample_id": "str", "position": "int64", "reason": "str", "detail": "str"}
SEPARATOR = "\0"  # between the names of a sample's images: no file name holds it
ROWS_AT_ONCE = 4096
IMAGE_TOKENS = 576  # what an image costs beside text, for shards of like cost: LLaVA-1.5's number of visual tokens
CHARACTERS_A_TOKEN = 4


class Rejection(ValueError):
    """A sample that cannot be used.

    Attributes:
        reason: one of REASONS.
    """

    def __init__(self, reason, detail):
        super().__init__(detail)
        self.reason = reason


def check_record(record):
    """Check one LLaVA record without opening its images, and describe it.

    Args:
        record: any JSON value.

    Returns:
        dict of sample_id (None where the record has none), source, image, images, n_images,
        n_turns, text_length.

    Raises:
        Rejection: with its reason.
    """
    if isinstance(record, Broken):
        raise Rejection("malformed record", record.detail)
    if not isinstance(record, dict):
        raise Rejection("malformed record", f"a record must be an object, this one is {type(record).__name__}")
    images = record.get("image")
    images = [] if images is None else images if isinstance(images, list) else [images]
    if not all(isinstance(name, str) and name and "\0" not in name for name in images):
        raise Rejection("malformed record", "`image` must be a file name or a list of file names")
    identifier = record.get("id")
    if identifier is not None and not isinstance(identifier, str | int):
        raise Rejection("malformed record", "`id` must be a string or a whole number")
    turns = record.get("conversations")
    if not turns:
        raise Rejection("empty conversation", "`conversations` is missing or empty")
    _check_turns(turns)
    marks = sum(turn["value"].count(IMAGE_MARK) for turn in turns)
    if marks != len(images):
        raise Rejection("image token count mismatch", f"{marks} {IMAGE_MARK} marks for {len(images)} images")
    source = record.get("source")
    if not isinstance(source, str):
        source = images[0].split("/")[0] if images and "/" in images[0] else "images" if images else "text_only"
    return {
        "sample_id": None if identifier in (None, "") else str(identifier),
        "source": source,
        "image": images[0] if images else None,
        "images": images,
        "n_images": len(images),
        "n_turns": len(turns),
        "text_length": text_length(turns),
    }


def _check_turns(turns):
    if not isinstance(turns, list):
        raise Rejection("malformed turns", "`conversations` must be a list of turns")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise Rejection("malformed turns", f"turn {i} must be an object with a text `value`")
        expected = list(ROLES)[i % 2]
        if turn.get("from") != expected:
            raise Rejection("malformed turns", f"turn {i} must be from {expected!r}, it is from {turn.get('from')!r}")
    if len(turns) % 2:
        raise Rejection("malformed turns", "the last turn must be from 'gpt'")
    if not any(turn["value"].replace(IMAGE_MARK, "").strip() for turn in turns[1::2]):
        raise Rejection("empty conversation", "no answer has any text")
    if any(IMAGE_MARK in turn["value"] for turn in turns[1::2]):
        raise Rejection("malformed turns", f"an answer holds {IMAGE_MARK}")


def build_manifest(records, images, dataset, *, clusters=1, threads=1):
    """Sort the rows of a dataset into samples that can be used and samples that are set aside.

    Records are read one at a time and none is kept: four million take some gigabytes, of names and numbers.

    Args:
        records: iterable of LLaVA records, any JSON values.
        images: folder that image names are relative to.
        dataset: Dataset section of the config. Samples of the same images go into one shard, and shards cost
            about the same.
        clusters: number of clusters that the samples will be divided into.
        threads: for checking images.

    Returns:
        (manifest, rejected): tables as DESIGN.md describes them; every row is in exactly one. The manifest
        is in the order of the shards, samples of the same images side by side.

    Raises:
        DatasetError: no images folder, fewer samples than shards or clusters.
    """
    if not Path(images).is_dir():
        raise DatasetError(f"the images folder {images} does not exist: set dataset.images")
    accepted, rejected = _checked(records, digests=dataset.duplicate_ids == "digest")
    accepted, duplicates = _name(accepted, dataset.duplicate_ids)
    faults = _check_images(_names(accepted).unique(), images, dataset.decode_images, threads)
    kept, with_faults = _without(accepted, faults)
    rejected = [*rejected, *duplicates, *with_faults]
    if len(kept) < dataset.shards:
        raise DatasetError(f"{len(kept)} usable samples cannot fill {dataset.shards} shards: lower dataset.shards")
    if len(kept) < clusters:
        raise DatasetError(f"{len(kept)} usable samples cannot fill {clusters} clusters: lower clustering.k")
    manifest = assign_shards(kept, dataset.shards)[list(MANIFEST_COLUMNS)].astype(MANIFEST_COLUMNS)
    rejected.sort(key=lambda row: row["position"])
    return manifest, rejected_table(rejected)


def assign_shards(samples, shards):
    """Divide samples among shards: the table by shard, samples of the same images side by side.

    Args:
        samples: table with columns images, n_images, text_length, in the order of the dataset.
        shards: number of shards.

    Returns:
        the table with a column shard, reordered. Shards differ in their estimated cost, tokens, by no more
        than one group of samples; none is empty where there are as many groups as shards.
    """
    groups = _groups(samples["images"].mask(samples["n_images"] == 0))
    cost = _tokens(samples, groups)
    of_groups = np.maximum(np.bincount(groups, weights=cost), 1) if len(groups) else np.zeros(0)
    before = np.cumsum(of_groups) - of_groups / 2  # a group is where its middle is
    shard = np.minimum((before * shards / max(of_groups.sum(), 1)).astype(np.int64), shards - 1)
    count = len(of_groups)
    if count >= shards:  # a group that is dearer than a shard leaves none empty
        shard = np.maximum.accumulate(np.maximum(shard, np.arange(count) - (count - shards)))
        shard = np.minimum(shard, np.arange(count))
        shard = np.minimum.accumulate(shard - np.arange(count)) + np.arange(count)  # none is passed over
    order = np.argsort(groups, kind="stable")
    return samples.assign(shard=shard[groups]).iloc[order].reset_index(drop=True)


def estimated_tokens(manifest):
    """(n,) tokens that reading each sample of a manifest takes, by a rule of thumb: images count once."""
    return _tokens(manifest, _groups(manifest["image"].mask(manifest["n_images"] != 1)))


def _tokens(samples, groups):
    text = -(-samples["text_length"].to_numpy() // CHARACTERS_A_TOKEN)
    first = ~pd.Series(groups).duplicated().to_numpy()
    return text + first * samples["n_images"].to_numpy() * IMAGE_TOKENS


def _groups(names):
    """(n,) group of each sample, in the order of their first: those of one name together, without a name alone."""
    groups = pd.factorize(names)[0]
    alone = groups < 0
    groups[alone] = groups.max(initial=-1) + 1 + np.arange(alone.sum())
    return pd.factorize(groups)[0]


def _checked(records, *, digests):
    """Table of the rows that can be used by themselves, and list of rejected rows of the others.

    The table has the columns of `check_record`, position, and digest: of the content, where it may be needed.
    """
    parts, rows, rejected = [], [], []

    def table():
        return pd.DataFrame(rows, columns=list(CHECKED_COLUMNS)).astype(CHECKED_COLUMNS)

    for position, record in enumerate(records):
        try:
            row = check_record(record)
        except Rejection as rejection:
            rejected.append(_rejected_row(record, position, rejection.reason, str(rejection)))
            continue
        wanted = digests or row["sample_id"] is None
        digest = _content_digest(record) if wanted else None
        rows.append({**row, "images": SEPARATOR.join(row["images"]), "position": position, "digest": digest})
        if len(rows) == ROWS_AT_ONCE:
            parts.append(table())
            rows = []
    return pd.concat([*parts, table()], ignore_index=True), rejected


def _content_digest(record):
    content = json.dumps(record, sort_keys=True, default=str).encode()
    return hashlib.sha256(content).hexdigest()[:20]


def rejected_table(rows):
    """Table of rejected samples from rows of sample_id, position, reason, detail."""
    return pd.DataFrame(rows, columns=list(REJECTED_COLUMNS)).astype(REJECTED_COLUMNS)


def check_rejected(rejected, total, max_rejected):
    """Stop when too large a share of the dataset was set aside.

    Raises:
        DatasetError: names the commonest reason with three examples.
    """
    if total and len(rejected) / total > max_rejected:
        worst = rejected["reason"].value_counts().index[0]
        examples = rejected[rejected["reason"] == worst].head(3)
        lines = "\n".join(f"  row {r.position} ({r.sample_id}): {r.detail}" for r in examples.itertuples())
        mend = "\nset dataset.duplicate_ids to digest if such rows are samples of their own, or" * (
            worst == "duplicate id"
        )
        raise DatasetError(
            f"{len(rejected)} of {total} samples ({len(rejected) / total:.1%}) were set aside, above "
            f"dataset.max_rejected ({max_rejected:.1%}). The commonest reason is {worst!r}:\n{lines}{mend}\n"
            "repair the dataset or raise dataset.max_rejected"
        )


def _rejected_row(record, position, reason, detail):
    identifier = record.get("id") if isinstance(record, dict) else None
    identifier = str(identifier) if isinstance(identifier, str | int) else None
    return {"sample_id": identifier, "position": position, "reason": reason, "detail": detail}


def _name(accepted, duplicate_ids):
    """Give every sample a unique id; returns the table of samples kept, and the rows of those that are not."""
    ids = accepted["sample_id"]
    known = ids.notna()
    duplicates = []
    if duplicate_ids == "reject":
        later = known & ids.duplicated()
        first = accepted[known & ids.isin(ids[later].unique()) & ~later].set_index("sample_id")["position"]
        for row in accepted[later].itertuples():
            detail = f"row {first[row.sample_id]} has the same id"
            duplicates.append(
                {"sample_id": row.sample_id, "position": row.position, "reason": "duplicate id", "detail": detail}
            )
        accepted = accepted[~later]
        by_digest = ~known[~later]
    else:
        by_digest = ~known | ids.duplicated(keep=False)
    names, taken = accepted["sample_id"].copy(), set(ids[ids.str.len().between(20, 40)])
    unnamed = accepted.index[by_digest]
    given = []
    for digest in accepted.loc[unnamed, "digest"]:
        while digest in taken:
            digest += "+"  # the same content again, or an id that looks like a digest
        taken.add(digest)
        given.append(digest)
    names.loc[unnamed] = given
    return accepted.assign(sample_id=names).reset_index(drop=True), duplicates


def _names(samples):
    """All image names of samples: one value a use."""
    with_images = samples.loc[samples["n_images"] > 0, "images"]
    return with_images.str.split(SEPARATOR, regex=False).explode()


def _without(samples, faults):
    """(samples whose images can all be used, rejected rows of the others)."""
    names = _names(samples)
    bad = names[names.isin(list(faults))]
    bad = bad[~bad.index.duplicated()]  # of a sample the first
    rows = [
        {"sample_id": samples.at[i, "sample_id"], "position": samples.at[i, "position"],
         "reason": faults[name][0], "detail": faults[name][1]}
        for i, name in bad.items()
    ]  # fmt: skip
    return samples.drop(bad.index).reset_index(drop=True), rows


def _check_images(names, folder, decode, threads):
    """Find the images that cannot be used: name -> (reason, detail)."""

    def fault(name):
        try:
            open_image(folder, name, decode=decode)
        except ImageError as error:
            return error.reason, str(error)
        return None

    progress = Progress(len(names), "checking images", unit="images")
    faults = {}
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(names), ROWS_AT_ONCE):
            part = list(names[start : start + ROWS_AT_ONCE])
            for name, found in zip(part, pool.map(fault, part)):
                if found:
                    faults[name] = found
                progress.update(1)
    progress.close()
    return faults
