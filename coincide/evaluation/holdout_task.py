"""What the task files of held-out samples refer to; a copy of this file lies next to them."""

from typing import Any


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    """Images of a question."""
    return [image.convert("RGB") for image in doc["images"]]


def exact_match(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for the right answer, 0 for another one; case, spaces around it and a final full stop do not count."""
    given, right = (text.strip().lower().removesuffix(".").strip() for text in (results[0], doc["answer"]))
    return {"exact_match": float(given == right)}


def chrf(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """chrF of an answer (Popović 2015), in 0..1."""
    from sacrebleu import sentence_chrf

    return {"chrf": sentence_chrf(results[0], [doc["answer"]]).score / 100}
