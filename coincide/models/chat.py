"""From a dataset's conversation to a model's tokens: rendering, image placement, token masks."""

from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np

from coincide.dataset.conversation import IMAGE_MARK, ROLES

# what the processor says of its own work; not for the model
BESIDE = ("offset_mapping", "text_replacement_offsets")


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


@dataclass(frozen=True)
class Masks:
    """Kinds of tokens, (B, L) boolean arrays over input_ids.

    Attributes:
        visual: tokens that hold an image's features.
        text: tokens of the conversation as the chat template writes it, its fixed prefix included; neither
            padding nor what the processor writes around the visual tokens (rows, tiles, line ends).
        answer: text tokens of the assistant's words.
    """

    visual: np.ndarray
    text: np.ndarray
    answer: np.ndarray


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


def _write(processor, messages, **options):
    """The processor's chat template; for models that have none, the parts one after the other, a turn a line."""
    if processor.chat_template or getattr(processor.tokenizer, "chat_template", None):
        return processor.apply_chat_template(messages, **options)
    lines = (
        "".join(processor.image_token if part["type"] == "image" else part["text"] for part in message["content"])
        for message in messages
    )
    return "".join(f"{line}\n" for line in lines)


def render(processor, conversations):
    """Write a conversation with the processor's own chat template.

    Args:
        processor: a transformers processor.
        conversations: LLaVA turns.

    Raises:
        ChatError: the template rewrites earlier turns when later ones are added, so that answers
            cannot be told from prompts.
    """
    messages = to_messages(conversations)
    text, answers = _write(processor, messages), []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _write(processor, messages[:i], add_generation_prompt=True)
            after = text if i == len(messages) - 1 else _write(processor, messages[: i + 1])
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
    first it ends before the first token that the processor puts there for it.

    Returns:
        (without image, with image)
    """
    return tuple(_common_beginning(processor, images) for images in ([], [{"type": "image"}]))


def _common_beginning(processor, images):
    rows = []
    for word in ("a", "1", "Zebra", "?"):
        message = {"role": "user", "content": [*images, {"type": "text", "text": word}]}
        text = _write(processor, [message]).split(processor.image_token)[0]
        rows.append(processor.tokenizer(text, add_special_tokens=_adds_special(processor, text))["input_ids"])
    length = min(map(len, rows))
    rows = np.array([row[:length] for row in rows])
    own = (rows != rows[0]).any(axis=0)
    return int(own.argmax() if own.any() else length)


def encode(processor, rendered, images, *, image_token_id=None):
    """Tokens of a batch of rendered conversations, right-padded.

    Args:
        processor: a transformers processor.
        rendered: list of Rendered.
        images: list of lists of PIL images, those of each conversation.
        image_token_id: the token that holds an image's features, as the model's config says; the
            processor's if None.

    Returns:
        (inputs, masks, replacements): the processor's tensors; Masks; for each conversation what the
        processor writes in place of each image token.

    Raises:
        ChatError: a conversation's image tokens do not match its images.
    """
    texts = [r.text for r in rendered]
    for r, own in zip(rendered, images):
        marks = r.text.count(processor.image_token)
        if marks != len(own):
            raise ChatError(f"{marks} image marks in the conversation, {len(own)} images")
    options = {
        "padding": True,
        "padding_side": "right",
        "add_special_tokens": _adds_special(processor, texts[0]),
        "return_offsets_mapping": True,
        "return_tensors": "pt",
    }
    prepared = texts
    if any(images):
        nested = [own for own in images if own] if len(rendered) == 1 or all(images) else images
        inputs = processor(text=texts, images=nested, return_text_replacement_offsets=True, **options)
        prepared = processor.prepare_inputs_layout(text=texts, images=nested)[1]
    else:  # some processors take no text without an image
        inputs = processor.tokenizer(texts, **options)
    placed = inputs.get("text_replacement_offsets") or [[] for _ in texts]
    offsets, present = inputs["offset_mapping"].numpy(), inputs["attention_mask"].numpy().astype(bool)
    ids = inputs["input_ids"].numpy()
    image_token_id = processor.image_token_id if image_token_id is None else image_token_id
    text, answer = np.zeros_like(present), np.zeros_like(present)
    for row in range(len(texts)):
        origin = _origin(texts[row], prepared[row], placed[row])
        text[row], answer[row] = _kinds(offsets[row], present[row], origin, rendered[row].answers)
    replacements = [[one["replacement"] for one in own] for own in placed]
    for name in BESIDE:
        inputs.pop(name, None)
    return inputs, Masks((ids == image_token_id) & present, text, answer), replacements


def encode_again(processor, rendered, replacements, *, image_token_id):
    """Tokens of a conversation whose images were encoded with another one.

    Args:
        processor, image_token_id: as in `encode`.
        rendered: one Rendered.
        replacements: what the processor wrote for these images, from `encode`.

    Returns:
        (ids, masks): (L,) int64 array, and Masks of (L,) arrays.
    """
    (text,), (placed,) = (
        processor.get_text_with_replacements([rendered.text], replacements)
        if replacements
        else (
            [rendered.text],
            [[]],
        )
    )
    tokens = processor.tokenizer(
        text, add_special_tokens=_adds_special(processor, rendered.text), return_offsets_mapping=True
    )
    ids, offsets = np.array(tokens["input_ids"]), np.array(tokens["offset_mapping"]).reshape(-1, 2)
    origin = _origin(rendered.text, rendered.text, placed)
    kinds = _kinds(offsets, np.ones(len(ids), bool), origin, rendered.answers)
    return ids, Masks(ids == image_token_id, *kinds)


def _kinds(offsets, present, origin, answers):
    """(text, answer) masks of one conversation, by where its tokens stand in the text that was tokenised.

    Args:
        offsets: (L, 2) character span of each token.
        present: (L,) tokens that are no padding.
        origin: as `_origin` gives it.
        answers: (start, end) spans in the conversation as it was rendered.
    """
    wide = offsets[:, 1] > offsets[:, 0]  # others were added by the tokenizer
    first = np.full(len(offsets), -1)
    last = first.copy()
    first[wide], last[wide] = origin[offsets[wide, 0]], origin[offsets[wide, 1] - 1]
    text = present & (~wide | (first >= 0) | (last >= 0))
    answer = np.zeros_like(text)
    for start, end in answers:
        answer |= text & (first >= start) & (last >= start) & (first < end) & (last < end)
    return text, answer


def _origin(rendered, prepared, placed):
    """Where each character of the text that is tokenised stands in the rendered one; -1: written by the processor.

    Args:
        rendered: the text as the chat template writes it.
        prepared: the same with what the processor adds to it, but for images.
        placed: what is written in place of images: `span` in the prepared text and `new_span`.
    """
    own = np.arange(len(rendered))
    if prepared != rendered:
        own = np.full(len(prepared), -1)
        for here, there, size in SequenceMatcher(None, rendered, prepared, autojunk=False).get_matching_blocks():
            own[there : there + size] = np.arange(here, here + size)
    parts, end = [], 0
    for one in placed:
        start, after = one["span"]
        parts += [own[end:start], np.full(one["new_span"][1] - one["new_span"][0], -1)]
        end = after
    return np.concatenate([*parts, own[end:]])


def _adds_special(processor, text):
    # A template that writes the beginning-of-sequence token itself must not get a second one.
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))
