"""What the task files of held-out samples refer to; a copy of this file lies next to them."""

from typing import Any


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """Images of a question."""
    return [image.convert("RGB") for image in doc["images"]]


def chrf(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """chrF of an answer (Popović 2015), in 0..1."""
    from sacrebleu import sentence_chrf

    return {"chrf": sentence_chrf(results[0], [doc["answer"]]).score / 100}
