"""From a dataset's conversation to a model's tokens: chat template, images, token masks.

A conversation passes through three texts. The chat template writes the *rendered* text, with one image token per image.
The processor may add to it (the *prepared* text) and then replaces each image token with the tokens that hold the
image's features (the *final* text), which is tokenised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jinja2 import TemplateError
from numpy.typing import NDArray

from coincide.base.errors import UserError
from coincide.dataset.conversation import IMAGE_MARK, ROLES
from coincide.models.families import family_of_processor

if TYPE_CHECKING:
    from PIL.Image import Image

# outputs of a processor that are not inputs of the model
NOT_FOR_THE_MODEL = ("offset_mapping", "text_replacement_offsets", "labels")
ADDED = -1  # position of a character that is not in the rendered text
PROBES = ("a", "1", "Zebra", "?")  # first words of conversations; no two begin with the same token


class ChatTemplateError(UserError):
    """A chat template that does not fit the job."""


class RefusedTurnsError(ValueError):
    """A conversation that the chat template refuses."""


class ImageCountError(ValueError):
    """A conversation whose image marks and images differ in number."""


class RefusedImageError(UserError):
    """An image that the model's image processor refuses."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as the chat template writes it.

    Attributes:
        text: the whole conversation, with one image token per image.
        answers: (start, end) character spans of the assistant's turns, end-of-turn token included.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Masks:
    """Kinds of tokens: boolean arrays of the shape of input_ids, (B, L) for a batch or (L,) for one conversation.

    Attributes:
        visual: tokens that hold an image's features.
        text: tokens that the chat template wrote, its fixed prefix included. Padding and the tokens that the
            processor adds around visual tokens (rows, tiles, line ends) are left out.
        answer: the text tokens of the assistant's turns.
    """

    visual: NDArray[np.bool_]
    text: NDArray[np.bool_]
    answer: NDArray[np.bool_]


def to_messages(conversations: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Turn LLaVA turns ({"from", "value"}) into the chat messages of transformers' processors."""
    messages = []
    for turn in conversations:
        content = []
        for i, text in enumerate(turn["value"].split(IMAGE_MARK)):
            if i > 0:
                content.append({"type": "image"})
            if text.strip():
                content.append({"type": "text", "text": text.strip()})
        # templates read the first part of a turn, which may be empty without its image
        messages.append({"role": ROLES[turn["from"]], "content": content or [{"type": "text", "text": ""}]})
    return messages


def _apply_template(processor, messages, **options):
    """Write messages with the processor's chat template."""
    try:
        return processor.apply_chat_template(messages, **options)
    except TemplateError as error:
        if type(error) is not TemplateError:  # a subclass: the template itself is faulty
            raise
        # raised by the template, with raise_exception
        raise RefusedTurnsError(f"the model's chat template refuses it: {error}") from None


def render(processor: Any, conversations: Sequence[Mapping[str, str]]) -> Rendered:
    """Write a conversation with the processor's chat template.

    Every answer ends with the end of turn that the model's family uses, also where the template leaves it out.

    Args:
        processor: a transformers processor.
        conversations: LLaVA turns.

    Raises:
        RefusedTurnsError: the template refuses the turns.
        ChatTemplateError: the template does not write one image token per image, or rewrites earlier turns when
            later ones are added, so that answers cannot be told from prompts.
    """
    messages = to_messages(conversations)
    text = _apply_template(processor, messages)
    _check_image_tokens(processor, messages, text)
    return _with_ends_of_turns(processor, text, _answer_spans(processor, messages, text))


def render_prompt(processor: Any, conversations: Sequence[Mapping[str, str]]) -> Rendered:
    """Write a conversation that ends with a question, up to where the model's answer begins.

    Its text is the beginning of what `render` writes for the same conversation with an answer.

    Args:
        processor: a transformers processor.
        conversations: LLaVA turns.

    Raises:
        RefusedTurnsError, ChatTemplateError: as for `render`.
    """
    messages = to_messages(conversations)
    text = _apply_template(processor, messages, add_generation_prompt=True)
    _check_image_tokens(processor, messages, text)
    return _with_ends_of_turns(processor, text, _answer_spans(processor, messages, text))


def _answer_spans(processor, messages, text):
    """Where the assistant's turns are in the text of a conversation.

    Returns:
        list of (start, prompt, answer_start, end): `prompt` replaces the characters from start to answer_start. It is
        empty where the template writes a turn as the prompt for it and the answer. Where the two differ in white space
        (LLaVA-OneVision writes "assistant \\n" in a turn and "assistant\\n" in the prompt), the prompt is right: the
        model answers it.
    """
    spans = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before = _apply_template(processor, messages[:i], add_generation_prompt=True)
            after = text if i == len(messages) - 1 else _apply_template(processor, messages[: i + 1])
            start, prompt, answer_start = len(before), "", len(before)
            if not after.startswith(before):
                start = len(_apply_template(processor, messages[:i]))
                prompt = before[start:]
                written = before.rstrip()
                answer_start = len(written) + len(after[len(written) :]) - len(after[len(written) :].lstrip())
                before = written
            if not (after.startswith(before) and text.startswith(after)):
                raise ChatTemplateError(
                    "the chat template does not keep earlier turns as they are when a turn is added, so answers "
                    "cannot be told from prompts: use a template that only appends"
                )
            spans.append((start, prompt, answer_start, len(after)))
    return spans


def _with_ends_of_turns(processor, text, spans):
    """Rendered conversation in which every answer ends with an end of turn.

    Templates made for inference leave it out, in the last turn or in all. A model in training must see it, and LLaVA's
    training format has it. It replaces the white space that the template writes after an answer.
    """
    ends = _ends_of_turn(processor)
    pieces, answers, position, length = [], [], 0, 0
    for start, prompt, answer_start, end in spans:
        answer = text[answer_start:end]
        if ends and not answer.rstrip().endswith(ends):
            answer = answer.rstrip() + ends[0]
        pieces += [text[position:start], prompt, answer]
        length += start - position + len(prompt)
        answers.append((length, length + len(answer)))
        position, length = end, length + len(answer)
    return Rendered("".join([*pieces, text[position:]]), tuple(answers))


def end_of_turn_ids(processor: Any) -> list[int]:
    """Ids of the tokens that end an answer, the family's first."""
    return processor.tokenizer.convert_tokens_to_ids(list(_ends_of_turn(processor)))


def _ends_of_turn(processor):
    """Tokens that end an answer, the family's first."""
    tokenizer = processor.tokenizer
    end = family_of_processor(processor).end_of_turn
    known = end is not None and end in tokenizer.get_vocab()
    return tuple(token for token in (end if known else None, tokenizer.eos_token) if token)


def _check_image_tokens(processor, messages, text):
    """Check that the template wrote one image token per image. A turn that quotes the token is checked by `encode`."""
    token = processor.image_token
    parts = [part for message in messages for part in message["content"]]
    images = sum(part["type"] == "image" for part in parts)
    quoted = any(token in part["text"] for part in parts if part["type"] == "text")
    written = text.count(token)
    if written != images and not quoted:
        raise ChatTemplateError(
            f"the chat template writes {written} image tokens ({token}) for {images} images: "
            "use a template that writes one per image"
        )


def fixed_prefix(processor: Any) -> tuple[int, int, int]:
    """Number of tokens that the chat template writes before the content of any conversation.

    Measured as the common prefix of conversations that start differently. With an image first, it ends before the
    first token that the processor writes for the image. A system turn is content, too: it takes the place of the
    template's default.

    Returns:
        (without image, with image, with a system turn); the last is 0 if the template refuses system turns.
    """
    try:
        with_system = _common_prefix(processor, [], with_system=True)
    except RefusedTurnsError:
        with_system = 0
    return _common_prefix(processor, []), _common_prefix(processor, [{"type": "image"}]), with_system


def _common_prefix(processor, image_parts, *, with_system=False):
    rows = []
    for word in PROBES:
        text_part = {"type": "text", "text": word}
        messages = [{"role": "system", "content": [text_part]}] if with_system else []
        messages.append({"role": "user", "content": [*image_parts, text_part]})
        text = _apply_template(processor, messages).split(processor.image_token)[0]
        rows.append(processor.tokenizer(text, add_special_tokens=_adds_special(processor, text))["input_ids"])
    length = min(map(len, rows))
    tokens = np.array([row[:length] for row in rows])
    different = (tokens != tokens[0]).any(axis=0)
    return int(different.argmax() if different.any() else length)


def encode(
    processor: Any,
    rendered: Sequence[Rendered],
    images: Sequence[Sequence[Image]],
    *,
    image_token_id: int | None = None,
) -> tuple[Any, Masks, list[list[str]]]:
    """Tokens of a batch of rendered conversations, right-padded.

    Args:
        processor: a transformers processor.
        rendered: B conversations.
        images: for each conversation, its images.
        image_token_id: the token that holds an image's features, from the model's config; None: from the processor.

    Returns:
        (inputs, masks, replacements): the processor's tensors; Masks of (B, L) arrays; for each conversation, the
        texts that the processor writes in place of its image tokens.

    Raises:
        ImageCountError: a conversation has more or fewer image tokens than images.
        RefusedImageError: the image processor refuses an image.
    """
    texts = [conversation.text for conversation in rendered]
    for text, conversation_images in zip(texts, images):
        check_image_count(processor, text, len(conversation_images))
    inputs, prepared = _process(processor, texts, images)
    replaced = inputs.get("text_replacement_offsets") or [[] for _ in texts]
    offsets, present = inputs["offset_mapping"].numpy(), inputs["attention_mask"].numpy().astype(bool)
    text_mask, answer_mask = np.zeros_like(present), np.zeros_like(present)
    for i, conversation in enumerate(rendered):
        positions = _rendered_positions(conversation.text, prepared[i], replaced[i])
        text_mask[i], answer_mask[i] = _token_masks(offsets[i], present[i], positions, conversation.answers)
    image_token_id = _feature_token_id(processor) if image_token_id is None else image_token_id
    visual_mask = (inputs["input_ids"].numpy() == image_token_id) & present
    if family_of_processor(processor).prefix_attention:
        # From the first answer on: a later question that the first one attends to would show it the answer.
        inputs["token_type_ids"] = torch.from_numpy(np.maximum.accumulate(answer_mask, axis=1)).long()
    replacements = [[image["replacement"] for image in conversation] for conversation in replaced]
    for name in NOT_FOR_THE_MODEL:
        inputs.pop(name, None)
    return inputs, Masks(visual_mask, text_mask, answer_mask), replacements


def _feature_token_id(processor):
    """The token that holds an image's features. Gemma 3's processor names the one before them, its tokenizer this."""
    return getattr(processor.tokenizer, "image_token_id", None) or processor.image_token_id


def encode_prompts(processor: Any, prompts: Sequence[Rendered], images: Sequence[Sequence[Image]]) -> Any:
    """Tokens of a batch of prompts from `render_prompt`, as the beginning of what `encode` gives for the answers, too.

    Args:
        processor: a transformers processor.
        prompts: B prompts; batches are right-padded, so that a model that generates needs prompts of equal length.
        images: for each prompt, its images.

    Returns:
        the processor's tensors.

    Raises:
        ImageCountError: a prompt has more or fewer image tokens than images.
    """
    appended = family_of_processor(processor).appended
    if appended and any(images):
        prompts = [replace(prompt, text=prompt.text.removesuffix(appended)) for prompt in prompts]
    return encode(processor, prompts, images)[0]


def check_image_count(processor: Any, text: str, count: int) -> None:
    """Check that a rendered text has one image token for each of `count` images.

    Raises:
        ImageCountError: it has not.
    """
    marks = text.count(processor.image_token)
    if marks != count:
        raise ImageCountError(f"{marks} image marks in the conversation, {count} images")


def _process(processor, texts, images):
    """Run the processor: (its outputs, the prepared texts)."""
    options = {
        "padding": True,
        "padding_side": "right",
        "add_special_tokens": _adds_special(processor, texts[0]),
        "return_offsets_mapping": True,
        "return_tensors": "pt",
    }
    if not any(images):  # some processors do not accept text without an image
        return processor.tokenizer(texts, **options), texts
    if not images[0]:
        return _process_images_first(processor, texts, images)
    nested = images
    if len(texts) == 1 or all(images):
        nested = [conversation_images for conversation_images in images if conversation_images]
    try:
        inputs = processor(text=texts, images=nested, return_text_replacement_offsets=True, **options)
    except ValueError as error:
        refused = family_of_processor(processor).refused_image
        if refused is None or not re.search(refused, str(error)):
            raise
        raise RefusedImageError(f"the model's image processor refuses it: {error}") from None
    return inputs, processor.prepare_inputs_layout(text=texts, images=nested)[1]


def _process_images_first(processor, texts, images):
    """`_process` for a batch whose first conversation has no image, on which Idefics3's and InternVL's processors fail.

    The conversations without images are put last, and their tokens back in their places. Image inputs stay as they
    are: they hold the images in the order of the conversations, which does not change.
    """
    order = sorted(range(len(texts)), key=lambda i: not images[i])
    inputs, prepared = _process(processor, [texts[i] for i in order], [images[i] for i in order])
    places = np.argsort(order)
    shape = inputs["input_ids"].shape
    for name, value in inputs.items():
        if torch.is_tensor(value) and value.shape[:2] == shape:
            inputs[name] = value[torch.from_numpy(places)]
        elif name == "text_replacement_offsets":
            inputs[name] = [value[i] for i in places]
    return inputs, [prepared[i] for i in places]


def encode_with_replacements(
    processor: Any, rendered: Rendered, replacements: Sequence[str], *, image_token_id: int
) -> tuple[NDArray[np.int64], Masks]:
    """Tokens of a conversation whose images were already encoded, with another conversation.

    Args:
        processor, image_token_id: as for `encode`.
        rendered: the conversation.
        replacements: texts that the processor writes in place of its image tokens, from `encode`.

    Returns:
        (ids, masks): (L,) tokens, and Masks of (L,) arrays.
    """
    text, replaced = rendered.text, []
    if replacements:
        (text,), (replaced,) = processor.get_text_with_replacements([rendered.text], replacements)
    tokens = processor.tokenizer(
        text, add_special_tokens=_adds_special(processor, rendered.text), return_offsets_mapping=True
    )
    ids, offsets = np.array(tokens["input_ids"]), np.array(tokens["offset_mapping"]).reshape(-1, 2)
    positions = _rendered_positions(rendered.text, rendered.text, replaced)
    masks = _token_masks(offsets, np.ones(len(ids), bool), positions, rendered.answers)
    return ids, Masks(ids == image_token_id, *masks)


def _token_masks(offsets, present, positions, answers):
    """(text, answer) masks of the tokens of one conversation.

    Args:
        offsets: (L, 2) character span of each token in the final text.
        present: (L,) tokens that are not padding.
        positions: from `_rendered_positions`.
        answers: (start, end) spans in the rendered text.
    """
    has_characters = offsets[:, 1] > offsets[:, 0]  # the tokenizer adds tokens without characters
    first = np.full(len(offsets), ADDED)
    last = first.copy()
    first[has_characters] = positions[offsets[has_characters, 0]]
    last[has_characters] = positions[offsets[has_characters, 1] - 1]
    text = present & (~has_characters | (first != ADDED) | (last != ADDED))
    answer = np.zeros_like(text)
    for start, end in answers:
        answer |= text & (first >= start) & (last >= start) & (first < end) & (last < end)
    return text, answer


def _rendered_positions(rendered, prepared, replaced):
    """Position in the rendered text of each character of the final text; ADDED if the processor wrote it.

    Args:
        rendered, prepared: texts (see the module's docstring).
        replaced: for each image token a dict of `span`, in the prepared text, and `new_span`, in the final text.
    """
    positions = np.arange(len(rendered))
    if prepared != rendered:
        positions = np.full(len(prepared), ADDED)
        matcher = SequenceMatcher(None, rendered, prepared, autojunk=False)
        for rendered_start, start, size in matcher.get_matching_blocks():
            positions[start : start + size] = np.arange(rendered_start, rendered_start + size)
    pieces, kept_from = [], 0
    for replacement in replaced:
        start, end = replacement["span"]
        new_start, new_end = replacement["new_span"]
        pieces += [positions[kept_from:start], np.full(new_end - new_start, ADDED)]
        kept_from = end
    return np.concatenate([*pieces, positions[kept_from:]])


def _adds_special(processor, text):
    """Whether the tokenizer should add special tokens: not if the template already wrote the first of them."""
    bos = processor.tokenizer.bos_token
    return not (bos and text.startswith(bos))
