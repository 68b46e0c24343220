"""Reading a dataset in LLaVA's JSON format: which samples can be used, which are set aside and why."""

import hashlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from coincide.chat import IMAGE_MARK, ROLES, text_length
from coincide.images import ImageError, open_image
from coincide.progress import Progress

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
REJECTED_COLUMNS = {"sample_id": "str", "position": "int64", "reason": "str", "detail": "str"}


class DatasetError(ValueError):
    """A dataset that cannot be used as it is; the message names the file and the mend."""


class Rejection(ValueError):
    """A sample that cannot be used.

    Attributes:
        reason: one of REASONS.
    """

    def __init__(self, reason, detail):
        super().__init__(detail)
        self.reason = reason


def read_records(path):
    """Read a LLaVA JSON file: a list of records.

    Raises:
        DatasetError: no such file, not JSON, or not a list.
    """
    try:
        with open(path, encoding="utf-8") as file:
            records = json.load(file)
    except FileNotFoundError:
        raise DatasetError(f"{path} does not exist: set dataset.annotations to your LLaVA JSON file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path} is not valid JSON ({error}): write it again or repair that place") from None
    if not isinstance(records, list) or not records:
        raise DatasetError(
            f"{path} must hold a JSON list of samples, and at least one; it holds {type(records).__name__}"
        )
    return records


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


def build_manifest(records, images, *, shards, clusters=1, duplicate_ids="reject", decode_images=True, threads=1):
    """Sort the rows of a dataset into samples that can be used and samples that are set aside.

    Args:
        records: list of LLaVA records, any JSON values.
        images: folder that image names are relative to.
        shards: number of shards to divide the samples among, evenly and in order.
        clusters: number of clusters that they will be divided into.
        duplicate_ids: "reject" sets later rows of an id aside; "digest" keeps them and names every
            sample whose id is not its own by a digest of its content.
        decode_images: decode every image whole (finds truncated ones) instead of looking whether it exists.
        threads: for checking images.

    Returns:
        (manifest, rejected): tables as DESIGN.md describes them; every row is in exactly one.

    Raises:
        DatasetError: no images folder, fewer samples than shards or clusters.
    """
    if not Path(images).is_dir():
        raise DatasetError(f"the images folder {images} does not exist: set dataset.images")
    accepted, rejected = [], []
    for position, record in enumerate(records):
        try:
            accepted.append({"position": position, **check_record(record)})
        except Rejection as rejection:
            rejected.append(_rejected_row(record, position, rejection.reason, str(rejection)))
    accepted, duplicates = _name(accepted, records, duplicate_ids)
    rejected += duplicates
    faults = _check_images({name for row in accepted for name in row["images"]}, images, decode_images, threads)
    kept = []
    for row in accepted:
        fault = next((faults[name] for name in row.pop("images") if name in faults), None)
        if fault is None:
            kept.append(row)
        else:
            rejected.append(
                {"sample_id": row["sample_id"], "position": row["position"], "reason": fault[0], "detail": fault[1]}
            )
    if len(kept) < shards:
        raise DatasetError(f"{len(kept)} usable samples cannot fill {shards} shards: lower dataset.shards")
    if len(kept) < clusters:
        raise DatasetError(f"{len(kept)} usable samples cannot fill {clusters} clusters: lower clustering.k")
    manifest = pd.DataFrame(kept, columns=list(MANIFEST_COLUMNS))
    manifest["shard"] = np.arange(len(kept)) * shards // max(len(kept), 1)
    rejected.sort(key=lambda row: row["position"])
    return manifest.astype(MANIFEST_COLUMNS), rejected_table(rejected)


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


def _name(accepted, records, duplicate_ids):
    """Give every sample a unique id; returns the samples kept and the rows of those that are not."""
    counts = pd.Series([row["sample_id"] for row in accepted], dtype=object).value_counts()
    seen, kept, duplicates = {}, [], []
    for row in accepted:
        identifier = row["sample_id"]
        if identifier is not None and counts[identifier] > 1 and duplicate_ids == "reject":
            if identifier in seen:
                detail = f"row {seen[identifier]} has the same id"
                duplicates.append(_rejected_row(records[row["position"]], row["position"], "duplicate id", detail))
                continue
            seen[identifier] = row["position"]
        elif identifier is None or counts[identifier] > 1:
            content = json.dumps(records[row["position"]], sort_keys=True).encode()
            digest = hashlib.sha256(content).hexdigest()[:20]
            while digest in seen or digest in counts:
                digest += "+"  # the same content again, or an id that looks like a digest
            seen[digest] = row["position"]
            row["sample_id"] = digest
        kept.append(row)
    return kept, duplicates


def _check_images(names, folder, decode, threads):
    """Find the images that cannot be used: name -> (reason, detail)."""

    def fault(name):
        try:
            open_image(folder, name, decode=decode)
        except ImageError as error:
            return error.reason, str(error)
        return None

    names = sorted(names)
    progress = Progress(len(names), "checking images", unit="images")
    faults = {}
    with ThreadPoolExecutor(threads) as pool:
        for name, found in zip(names, pool.map(fault, names, chunksize=64)):
            if found:
                faults[name] = found
            progress.update(1)
    progress.close()
    return faults
