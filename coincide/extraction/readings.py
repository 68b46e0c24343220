"""Readings: the same sample asked in another way, of which the reference model's loss of the answer is kept.

- `no_image`: the conversation without its images. The chat template writes it as it writes a text-only conversation:
  without the image tokens, and without what template and processor write around them (line ends, `<|vision_start|>`,
  rows and tiles). The answers keep their tokens. This is the same for every family, since every family reads text-only
  conversations. VisNec's published code does the same, except that one masked token remains in the place of the image.
- `question`: the model is asked what the question about the image could be; the answer is the sample's first question.
- `question_given_answer`: as `question`, with the sample's first answer in the prompt.

The prompts of the last two are those of DICS (Hong et al. 2026, appendix A.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.images import image_names

NO_IMAGE, QUESTION, QUESTION_GIVEN_ANSWER = "no_image", "question", "question_given_answer"
# readings of reference_model.extra_metrics -> the columns of the sample metrics that hold their losses
READINGS: Mapping[str, Mapping[str, str]] = {
    "loss_no_image": {NO_IMAGE: "loss_no_image"},
    "question_losses": {QUESTION: "question_loss", QUESTION_GIVEN_ANSWER: "question_loss_given_answer"},
    "vision_features": {},
}
ASK = "Based on the image, what is the likely question?"
ASK_WITH_ANSWER = "Based on the image and answer, what is the likely question? Answer: {answer}"


def readings(record: Mapping[str, Any], extra_metrics: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """The turns of each reading of a LLaVA record; none for a record without an image.

    Args:
        record: LLaVA record.
        extra_metrics: of the ReferenceModel section.

    >>> turns = [{"from": "human", "value": "<image>\\nHow many?"}, {"from": "gpt", "value": "Two."}]
    >>> readings({"image": "a.png", "conversations": turns}, ["loss_no_image"])["no_image"]
    [{'from': 'human', 'value': 'How many?'}, {'from': 'gpt', 'value': 'Two.'}]
    """
    images = image_names(dict(record))
    if not images:
        return {}
    turns = record["conversations"]
    question = next(_without_images(turn) for turn in turns if turn["from"] == "human")
    answer = next(turn["value"] for turn in turns if turn["from"] == "gpt")
    marks = f"{IMAGE_MARK}\n" * len(images)
    of_names = {
        NO_IMAGE: [{**turn, "value": _without_images(turn)} for turn in turns],
        QUESTION: _asked(marks + ASK, question),
        QUESTION_GIVEN_ANSWER: _asked(marks + ASK_WITH_ANSWER.format(answer=answer), question),
    }
    return {name: of_names[name] for extra in extra_metrics for name in READINGS[extra]}


def _without_images(turn):
    return turn["value"].replace(IMAGE_MARK, "").strip() if turn["from"] == "human" else turn["value"]


def _asked(prompt, answer):
    return [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]
