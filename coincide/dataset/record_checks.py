"""Checks of single records: which can be used, and why not."""

import re
from typing import Any

from coincide.dataset.conversation import (
    IMAGE_MARK,
    SYSTEM,
    find_unsupported_medium,
    image_list,
    text_length,
)
from coincide.dataset.samples import Reason, RejectedSample, UnreadableRow

SPEAKERS = ("human", "gpt")  # turns alternate between these after a system turn, starting with the first
URL = re.compile(r"(?:https?|s3|gs|hf)://|data:", re.IGNORECASE)


class Rejection(ValueError):
    """A record that cannot be used; the message says why.

    Attributes:
        reason: one of the closed list.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def rejected_sample(self, record: Any, position: int) -> RejectedSample:
        """The rejected sample of a record at a position of the dataset."""
        identifier = record.get("id") if isinstance(record, dict) else None
        sample_id = id_text(identifier) if isinstance(identifier, str | int | float) else None
        return RejectedSample(sample_id, position, self.reason, str(self))


def check_record(record: Any) -> dict[str, Any]:
    """Check a LLaVA record without opening its images, and describe it.

    Args:
        record: any JSON value, or an UnreadableRow.

    Returns:
        dict of sample_id (None if the record has none), source, image (name of the first image or None), images
        (list of names), n_images, n_turns, text_length.

    Raises:
        Rejection: the record cannot be used.
    """
    if isinstance(record, UnreadableRow):
        raise Rejection(record.reason, record.detail)
    if not isinstance(record, dict):
        raise Rejection(Reason.MALFORMED_RECORD, f"a record must be an object, not {type(record).__name__}")
    medium = find_unsupported_medium(record)
    if medium:
        raise Rejection(Reason.UNSUPPORTED_MEDIUM, medium)
    images = _check_image_names(record.get("image"))
    identifier = record.get("id")
    if isinstance(identifier, bool) or not isinstance(identifier, str | int | float | None):
        raise Rejection(Reason.MALFORMED_RECORD, "`id` must be a string or a number")
    if record.get("conversations") is None:
        keys = ", ".join(repr(key) for key in list(record)[:10]) or "none"
        raise Rejection(
            Reason.EMPTY_CONVERSATION,
            f"the record has no turns (its keys: {keys}); give it `conversations` or `messages`",
        )
    turns = _check_turns(record["conversations"])
    marks = sum(turn["value"].count(IMAGE_MARK) for turn in turns)
    if marks != len(images):
        raise Rejection(Reason.IMAGE_TOKEN_COUNT_MISMATCH, f"{marks} {IMAGE_MARK} marks for {len(images)} images")
    return {
        "sample_id": None if identifier in (None, "") else id_text(identifier),
        "source": _source(record, images),
        "image": images[0] if images else None,
        "images": images,
        "n_images": len(images),
        "n_turns": len(turns),
        "text_length": text_length(turns),
    }


def id_text(identifier: str | int | float) -> str:
    """An id as text; 12.0, which programs write for 12 where some ids are missing, is 12."""
    if isinstance(identifier, float) and identifier.is_integer():
        identifier = int(identifier)
    return str(identifier)


def _check_image_names(image):
    """Check the value of `image`; returns the list of image names."""
    names = image_list(image)
    if not all(isinstance(name, str) and "\0" not in name for name in names):
        raise Rejection(Reason.MALFORMED_RECORD, "`image` must be a file name or a list of file names")
    for name in names:
        if URL.match(name):
            kind = "embedded in the record" if name[:5].lower() == "data:" else "on another machine"
            raise Rejection(
                Reason.UNSUPPORTED_MEDIUM, f"the image {name[:60]!r} is {kind}; save it as a file and name the file"
            )
    return names


def _check_turns(turns):
    """Check the value of `conversations`; returns it."""
    if not turns:
        raise Rejection(Reason.EMPTY_CONVERSATION, "`conversations` is missing or empty")
    if not isinstance(turns, list):
        raise Rejection(Reason.MALFORMED_TURNS, "`conversations` must be a list of turns")
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise Rejection(Reason.MALFORMED_TURNS, f"turn {i} must be an object with a text `value`")
    first = int(turns[0].get("from") == SYSTEM)  # the turn after the system turn
    for i, turn in enumerate(turns[first:]):
        expected = SPEAKERS[i % len(SPEAKERS)]
        if turn.get("from") != expected:
            raise Rejection(
                Reason.MALFORMED_TURNS, f"turn {i + first} must be from {expected!r}, not {turn.get('from')!r}"
            )
    if len(turns) == first or (len(turns) - first) % len(SPEAKERS):
        raise Rejection(Reason.MALFORMED_TURNS, "the last turn must be from 'gpt'")
    if first and IMAGE_MARK in turns[0]["value"]:
        raise Rejection(Reason.MALFORMED_TURNS, f"the system turn contains {IMAGE_MARK}")
    answers = [turn["value"] for turn in turns[first + 1 :: 2]]
    if not any(answer.replace(IMAGE_MARK, "").strip() for answer in answers):
        raise Rejection(Reason.EMPTY_CONVERSATION, "no answer contains any text")
    if any(IMAGE_MARK in answer for answer in answers):
        raise Rejection(Reason.MALFORMED_TURNS, f"an answer contains {IMAGE_MARK}")
    return turns


def _source(record, images):
    """The sub-dataset of a record: its `source`, or the first folder of its image's path."""
    source = record.get("source")
    if isinstance(source, str):
        return source
    if not images:
        return "text_only"
    folder, slash, _ = images[0].partition("/")
    return folder if slash else "images"
