"""What the mini-mix task files refer to."""


def doc_to_visual(doc):
    """Images of a question: one, or none."""
    return [] if doc["image"] is None else [doc["image"].convert("RGB")]


def fact_recall(doc, results):
    """Share of the facts that a caption mentions, in 0..1."""
    text = results[0].lower()
    return {"fact_recall": sum(fact in text for fact in doc["facts"]) / len(doc["facts"])}
