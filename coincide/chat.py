"""From a dataset's conversation to a model's tokens: rendering, image placement, token masks."""

from dataclasses import dataclass

import numpy as np

IMAGE_MARK = "<image>"  # LLaVA's mark in a human turn for the place of an image
ROLES = {"human": "user", "gpt": "assistant"}


class ChatError(ValueError):
    """A conversation that the model's processor cannot take as it is."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model's chat template writes it.

    Attributes:
        text: the whole conversation, one image token where an image goes.
        answers: (start, end) character spans of the assistant's words, end of turn included.
    """

    text: str
    answers: tuple


def text_length(conversations):
    """Characters of all turns: what samples are sorted by before they are tokenised."""
    return sum(len(turn["value"]) for turn in conversations)


def to_messages(conversations):
    """Turn LLaVA turns ({"from", "value"}) into the chat messages of transformers' processors."""
    messages = []
    for turn in conversations:
        parts = turn["value"].split(IMAGE_MARK)
        content = []
        for i, part in enumerate(parts):
            if i > 0:
                content.append({"type": "image"})
            if part.strip():
                content.append({"type": "text", "text": part.strip()})
        messages.append({"role": ROLES[turn["from"]], "content": content})
    return messages


def render(processor, conversations):
    """Write a conversation with the processor's own chat template.

    Args:
        processor: a transformers processor with a chat template.
        conversations: LLaVA turns.

    Raises:
        ChatError: the template rewrites earlier turns when later ones are added, so that answers
            cannot be told from prompts.
    """
    messages = to_messages(conversations)
    text, answers = processor.apply_chat_template(messages), []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = processor.apply_chat_template(messages[:i], add_generation_prompt=True)
            after = text if i == len(messages) - 1 else processor.apply_chat_template(messages[: i + 1])
            if not (after.startswith(before) and text.startswith(after)):
                raise ChatError("the chat template does not keep earlier turns as they are")
            answers.append((len(before), len(after)))
    # Templates that are made for chatting leave the end of the last turn out; a model that is
    # trained must see it, and LLaVA's own training format has it.
    end = processor.tokenizer.eos_token
    if answers and end and not text.rstrip().endswith(end):
        text = text.rstrip() + end
        answers[-1] = (answers[-1][0], len(text))
    return Rendered(text, tuple(answers))


def fixed_prefix(processor):
    """Number of tokens that the chat template puts before anything of a conversation's own.

    Found as the common beginning of conversations that start differently. Where an image comes
    first it ends before the image's first token.

    Returns:
        (without image, with image)
    """
    return tuple(_common_beginning(processor, images) for images in ([], [{"type": "image"}]))


def _common_beginning(processor, images):
    rows = []
    for word in ("a", "1", "Zebra", "?"):
        message = {"role": "user", "content": [*images, {"type": "text", "text": word}]}
        text = processor.apply_chat_template([message])
        rows.append(processor.tokenizer(text, add_special_tokens=_adds_special(processor, text))["input_ids"])
    length = min(map(len, rows))
    rows = np.array([row[:length] for row in rows])
    own = (rows != rows[0]).any(axis=0) | (rows[0] == processor.image_token_id)
    return int(own.argmax() if own.any() else length)


def encode(processor, rendered, images):
    """Tokens of a batch of rendered conversations, right-padded.

    Args:
        processor: a transformers processor.
        rendered: list of Rendered.
        images: list of lists of PIL images, those of each conversation.

    Returns:
        (inputs, text_mask, answer_mask): the processor's tensors; two (B, L) boolean arrays over
        input_ids: text tokens (neither image nor padding; fixed prefix included), and tokens of
        the answers.

    Raises:
        ChatError: a conversation's image tokens do not match its images.
    """
    texts = [r.text for r in rendered]
    for r, own in zip(rendered, images):
        marks = r.text.count(processor.image_token)
        if marks != len(own):
            raise ChatError(f"{marks} image marks in the conversation, {len(own)} images")
    flat = [image for own in images for image in own]
    special = _adds_special(processor, texts[0])
    inputs = processor(
        text=texts,
        images=flat or None,
        padding=True,
        padding_side="right",
        add_special_tokens=special,
        return_tensors="pt",
    )
    text_mask = ((inputs["input_ids"] != processor.image_token_id) & (inputs["attention_mask"] == 1)).numpy()
    answer_mask = np.zeros_like(text_mask)
    # The processor repeats image tokens, so positions shift, but text tokens keep their order:
    # answers are marked on the plain text's tokens and carried over one for one.
    plain = processor.tokenizer(texts, add_special_tokens=special, return_offsets_mapping=True)
    for row, (ids, offsets) in enumerate(zip(plain["input_ids"], plain["offset_mapping"])):
        offsets = np.array(offsets)[np.array(ids) != processor.image_token_id]
        positions = np.flatnonzero(text_mask[row])
        if len(positions) != len(offsets):
            raise ChatError("the processor adds text tokens around images, which is not supported")
        for start, end in rendered[row].answers:
            inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > offsets[:, 0])
            answer_mask[row, positions[inside]] = True
    return inputs, text_mask, answer_mask


def _adds_special(processor, text):
    # A template that writes the beginning-of-sequence token itself must not get a second one.
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))
