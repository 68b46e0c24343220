"""Samples and rejected samples: the types that carry them between rooms.

Every place that rejects a sample makes a `RejectedSample` with a `Reason`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class Reason(StrEnum):
    """Why a sample cannot be used; the closed list of rejected.parquet."""

    MALFORMED_RECORD = "malformed record"
    EMPTY_CONVERSATION = "empty conversation"
    MALFORMED_TURNS = "malformed turns"
    UNSUPPORTED_MEDIUM = "unsupported medium"
    IMAGE_TOKEN_COUNT_MISMATCH = "image token count mismatch"
    DUPLICATE_ID = "duplicate id"
    MISSING_IMAGE = "missing image"
    UNREADABLE_IMAGE = "unreadable image"
    DECOMPRESSION_BOMB = "decompression bomb"
    IMAGE_OUTSIDE_FOLDER = "image path outside the folder"
    REFUSED_IMAGE = "image refused by the model"
    TOO_LONG = "too long"
    NON_FINITE_ACTIVATION = "non-finite activation"
    EVALUATION_LEAK = "evaluation leak"
    NEAR_DUPLICATE = "near-duplicate"
    NOT_SAMPLED = "not sampled"


DROPPED = (Reason.EVALUATION_LEAK, Reason.NEAR_DUPLICATE, Reason.NOT_SAMPLED)  # usable samples that the config drops


@dataclass(frozen=True)
class Sample:
    """A usable sample.

    Attributes:
        id: unique name.
        dataset_row: row in the dataset, from 0.
        record: LLaVA record.
    """

    id: str
    dataset_row: int
    record: dict[str, Any]


@dataclass(frozen=True)
class RejectedSample:
    """A sample that cannot be used, and why.

    Attributes:
        id: name in the dataset; None if the record has none.
        dataset_row: row in the dataset, from 0.
        reason: one of the closed list.
        detail: what is wrong, in words.
    """

    id: str | None
    dataset_row: int
    reason: Reason
    detail: str


@dataclass(frozen=True)
class UnreadableRow:
    """A row of a dataset that could not be read as a record.

    Attributes:
        detail: what is wrong with it.
        reason: the reason to reject it with.
    """

    detail: str
    reason: Reason = Reason.MALFORMED_RECORD


REJECTED_COLUMNS = {"sample_id": "str", "position": "int64", "reason": "str", "detail": "str"}


def rejected_table(rejected: Iterable[RejectedSample]) -> pd.DataFrame:
    """Table of sample_id, position (the row in the dataset), reason and detail."""
    import pandas as pd

    rows = [
        (valid_unicode(sample.id), sample.dataset_row, str(sample.reason), valid_unicode(sample.detail))
        for sample in rejected
    ]
    return pd.DataFrame(rows, columns=list(REJECTED_COLUMNS)).astype(REJECTED_COLUMNS)


def valid_unicode(text: str | None) -> str | None:
    r"""Text that can be written to a file: lone surrogates become escapes such as \\ud800."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
