"""LLaVA conversations: turns, roles, the image placeholder, and the conversion of other records to LLaVA's."""

from typing import Any

IMAGE_MARK = "<image>"  # placeholder of an image in a human turn
ROLES = {"human": "user", "gpt": "assistant"}  # speaker in LLaVA's format -> role in a chat template
SPEAKERS = {"user": "human", "assistant": "gpt", "human": "human", "gpt": "gpt"}  # any format's name -> LLaVA's
TURN_KEYS = ("conversations", "messages", "texts")  # keys of the turns; the first one that is a list counts


def text_length(conversations: list[dict[str, Any]]) -> int:
    """Number of characters in all turns; samples are sorted by it before they are tokenised."""
    return sum(len(turn["value"]) for turn in conversations)


def to_llava(record: Any) -> Any:
    """Convert a record of any supported format to LLaVA's.

    Args:
        record: any JSON value. It is not validated: what is missing or wrong is kept as it is, and
            `coincide.dataset.record_checks.check_record` reports it.

    Returns:
        a record with `image` (a name or a list of names) and `conversations` (a list of {"from", "value"}), and the
        other keys of the record. A value without a list of turns is returned unchanged.
    """
    if not isinstance(record, dict):
        return record
    turns = next((record[key] for key in TURN_KEYS if isinstance(record.get(key), list)), None)
    if turns is None:
        return record
    converted = {key: value for key, value in record.items() if key not in (*TURN_KEYS, "images")}
    images = record.get("images")
    if images is not None and "image" not in converted:
        names = images if isinstance(images, list) else [images]
        converted["image"] = names[0] if len(names) == 1 else names or None
    llava_turns = [llava_turn for turn in turns for llava_turn in _to_llava_turns(turn)]
    return {**converted, "conversations": _with_image_marks(llava_turns, converted.get("image"))}


def _to_llava_turns(turn):
    """The LLaVA turns of one entry: two for a question-answer pair, otherwise one."""
    if not isinstance(turn, dict):
        return [turn]
    if "user" in turn and "assistant" in turn:
        return [{"from": "human", "value": turn["user"]}, {"from": "gpt", "value": turn["assistant"]}]
    speaker = turn.get("from", turn.get("role"))
    if isinstance(speaker, str):
        speaker = SPEAKERS.get(speaker, speaker)
    return [{"from": speaker, "value": _join_parts(turn.get("value", turn.get("content")))}]


def _join_parts(content):
    """Join a list of text and image parts into one text with image marks; return any other content unchanged."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "image":
            texts.append(f"{IMAGE_MARK}\n")
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            return content
    return "".join(texts)


def _with_image_marks(turns, image):
    """Put one mark per image in front of the first turn, unless a turn already has a mark."""
    images = [] if image is None else image if isinstance(image, list) else [image]
    texts = [turn.get("value") if isinstance(turn, dict) else None for turn in turns]
    if not images or not turns or not all(isinstance(text, str) for text in texts):
        return turns
    if any(IMAGE_MARK in text for text in texts):
        return turns
    return [{**turns[0], "value": f"{IMAGE_MARK}\n" * len(images) + texts[0]}, *turns[1:]]
