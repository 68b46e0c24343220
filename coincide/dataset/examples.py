"""A few samples of a dataset that stand for the rest: of each kind, and the longest."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

from coincide.dataset.record_checks import Rejection, check_record
from coincide.dataset.samples import Sample

SCANNED = 5000  # rows
KINDS = ("one image", "several images", "several turns", "text only", "longest text")


def find_examples(records: Iterable[Any], limit: int = SCANNED) -> dict[str, Sample]:
    """The first usable sample of each of KINDS among the first rows of a dataset; of the last kind, the longest.

    Args:
        records: LLaVA records, or UnreadableRow.
        limit: number of rows to read.

    Returns:
        dict of kind -> Sample; a kind that does not occur is missing.
    """
    examples: dict[str, Sample] = {}
    longest = -1
    for row, record in enumerate(islice(records, limit)):
        try:
            facts = check_record(record)
        except Rejection:  # the manifest lists it
            continue
        sample = Sample(facts["sample_id"] or f"row {row}", row, record)
        if facts["n_images"]:
            examples.setdefault("one image" if facts["n_images"] == 1 else "several images", sample)
        else:
            examples.setdefault("text only", sample)
        if facts["n_turns"] > 2:
            examples.setdefault("several turns", sample)
        if facts["text_length"] > longest:
            longest, examples["longest text"] = facts["text_length"], sample
    return examples
