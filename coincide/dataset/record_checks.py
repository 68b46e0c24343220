"""Checks of single records: which can be used, and why not."""

from typing import Any

from coincide.dataset.conversation import IMAGE_MARK, ROLES, text_length
from coincide.dataset.formats import UnreadableRow
from coincide.dataset.samples import Reason, RejectedSample

SPEAKERS = tuple(ROLES)  # turns alternate between these, starting with the first


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
        sample_id = str(identifier) if isinstance(identifier, str | int) else None
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
        raise Rejection(Reason.MALFORMED_RECORD, record.detail)
    if not isinstance(record, dict):
        raise Rejection(Reason.MALFORMED_RECORD, f"a record must be an object, not {type(record).__name__}")
    images = _check_image_names(record.get("image"))
    identifier = record.get("id")
    if identifier is not None and not isinstance(identifier, str | int):
        raise Rejection(Reason.MALFORMED_RECORD, "`id` must be a string or an integer")
    turns = _check_turns(record.get("conversations"))
    marks = sum(turn["value"].count(IMAGE_MARK) for turn in turns)
    if marks != len(images):
        raise Rejection(Reason.IMAGE_TOKEN_COUNT_MISMATCH, f"{marks} {IMAGE_MARK} marks for {len(images)} images")
    return {
        "sample_id": None if identifier in (None, "") else str(identifier),
        "source": _source(record, images),
        "image": images[0] if images else None,
        "images": images,
        "n_images": len(images),
        "n_turns": len(turns),
        "text_length": text_length(turns),
    }


def _check_image_names(image):
    """Check the value of `image`; returns the list of image names."""
    names = [] if image is None else image if isinstance(image, list) else [image]
    if not all(isinstance(name, str) and name and "\0" not in name for name in names):
        raise Rejection(Reason.MALFORMED_RECORD, "`image` must be a file name or a list of file names")
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
        expected = SPEAKERS[i % len(SPEAKERS)]
        if turn.get("from") != expected:
            raise Rejection(Reason.MALFORMED_TURNS, f"turn {i} must be from {expected!r}, not {turn.get('from')!r}")
    if len(turns) % len(SPEAKERS):
        raise Rejection(Reason.MALFORMED_TURNS, "the last turn must be from 'gpt'")
    answers = [turn["value"] for turn in turns[1::2]]
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
