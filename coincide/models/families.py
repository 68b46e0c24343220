"""How model families differ: one entry per `model_type` of transformers.

Loading, chat, extraction, training and evaluation ask this table; none of them has a list of its own. Names of modules
are regular expressions that match whole names, as `model.named_modules()` gives them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from coincide.base.errors import UserError

Part = Literal["vision_tower", "projector", "language_model"]

SHOWN_NAMES = 8  # names of modules in an error

# Decoder layers of Llama, Mistral, Qwen and Gemma have the same linear layers.
_LINEAR_LAYERS = r"\.layers\.\d+\.(self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj"

# The default templates are compared with the published ones in tests/models/test_replicas.py.
# Chat templates write images first and then the text, as LLaVA's training code does, or the parts in their order.
_TEXT = "{{ message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') }}"
_IMAGES_FIRST = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ 'IMAGE' }}{% endfor %}" + _TEXT
)
_IN_ORDER = (
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'IMAGE' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
)

# Vicuna v1.1 as LLaVA-1.5 was trained on it (conversation.py of haotian-liu/LLaVA, conv_vicuna_v1).
VICUNA = (
    "{% if messages[0]['role'] != 'system' %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif %}"
    + _IMAGES_FIRST.replace("IMAGE", "<image>\\n")
    + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# In front of the template of a language model, which takes the text of a turn: images first, as in LLaVA's training.
TEXT_TURNS = (
    "{% set turns = namespace(all=[]) %}"
    "{% for message in messages %}"
    "{% set text %}" + _IMAGES_FIRST.replace("IMAGE", "<image>\\n") + "{% endset %}"
    "{% set turns.all = turns.all + [{'role': message['role'], 'content': text}] %}"
    "{% endfor %}"
    "{% set messages = turns.all %}"
)
MISTRAL = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    + _IMAGES_FIRST.replace("IMAGE", "<image>\\n")
    + "{{ ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' }}" + _TEXT + "{{ eos_token + ' ' }}"
    "{% else %}{{ '<<SYS>>\\n' }}" + _TEXT + "{{ '\\n<</SYS>>\\n\\n' }}{% endif %}"
    "{% endfor %}"
)
# Qwen's; {image} is how the family writes an image.
_CHAT_ML = (
    "{% if messages[0]['role'] != 'system' %}SYSTEM{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}CONTENT{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_QWEN_SYSTEM = "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"


def _chat_ml(content: str, system: str = "") -> str:
    return _CHAT_ML.replace("CONTENT", content).replace("SYSTEM", system)


# As LLaVA-OneVision was trained (conversation.py of LLaVA-VL/LLaVA-NeXT, conv_qwen). The template that its converted
# checkpoints ship has no system prompt and other line ends.
LLAVA_CHAT_ML = _chat_ml(_IMAGES_FIRST.replace("IMAGE", "<image>\\n"), _QWEN_SYSTEM)
_QWEN_CONTENT = _IN_ORDER.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
QWEN2_VL = _chat_ml(_QWEN_CONTENT, _QWEN_SYSTEM)
QWEN3_VL = _chat_ml(_QWEN_CONTENT)
INTERNVL = _chat_ml(_IN_ORDER.replace("IMAGE", "<IMG_CONTEXT>\\n"))
# Idefics3 begins with the tokenizer's first token; SmolVLM's is <|im_start|>.
IDEFICS3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}:"
    "{% if message['content'][0]['type'] != 'image' %}{{ ' ' }}{% endif %}"
    + _IN_ORDER.replace("IMAGE", "<image>")
    + "{{ '<end_of_utterance>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# Gemma has no system turn: its text precedes the first question.
GEMMA3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set before = messages[loop.index0 - 1]['role'] if not loop.first else '' %}"
    "{% if before != 'system' %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}"
    "{% endif %}"
    + _IN_ORDER.replace("IMAGE", "<start_of_image>")
    + "{{ '\\n\\n' if message['role'] == 'system' else '<end_of_turn>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
# PaliGemma was trained on prompts and answers without roles: one turn per line.
PALIGEMMA = "{% for message in messages %}" + _IN_ORDER.replace("IMAGE", "<image>") + "{{ '\\n' }}{% endfor %}"


class FamilyError(UserError):
    """A model whose family is not in the table, or modules that a model does not have."""


@dataclass(frozen=True)
class Family:
    """What the stages need to know of a family.

    Attributes:
        model_type: of the model's config.
        processors: class names of its processors.
        projector: modules and parameters between vision tower and decoder.
        vision_tower: module that encodes images; the projector inside it is not part of it.
        language_model: decoder and output head.
        lora_targets: linear layers of the decoder, which LoRA adapts.
        causal: whether no token of the prompt attends to a later one.
        prefix_attention: the prompt is attended in both directions and the answer causally; `token_type_ids` tells
            the model which tokens are the answer.
        end_of_turn: token that ends an answer; None: the tokenizer's end-of-sequence token.
        appended: what the processor appends to a text with images, which the template has at the end of a prompt, too.
        chat_template: for a checkpoint that ships none.
        refused_image: pattern of the error with which the image processor refuses an image; None: it accepts all.
        decoder_templates: chat templates for a decoder (model_type of the text config) of another format.
        processor_attributes: functions that give, from the model's config, the value of a processor's attribute;
            used where the checkpoint's processor has no value.
        lmms_model: class of lmms-eval's own that evaluates the family, as an alternative to the project's; None: none.
        lmms_arguments: arguments of that class, in place of its defaults.
    """

    model_type: str
    processors: tuple[str, ...]
    chat_template: str
    projector: str = r"model\.multi_modal_projector"
    vision_tower: str = r"model\.vision_tower"
    language_model: str = r"model\.language_model|lm_head"
    lora_targets: str = r"model\.language_model" + _LINEAR_LAYERS
    causal: bool = True
    prefix_attention: bool = False
    end_of_turn: str | None = None
    appended: str = ""
    refused_image: str | None = None
    decoder_templates: Mapping[str, str] = field(default_factory=dict)
    processor_attributes: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    lmms_model: str | None = None
    lmms_arguments: Mapping[str, Any] = field(default_factory=dict)

    def part_of(self, parameter: str) -> Part | None:
        """The part of the model that a parameter belongs to, also when an adapter wraps the model.

        Args:
            parameter: name from `model.named_parameters()`.
        """
        if _is_inside(parameter, self.projector):
            return "projector"
        if _is_inside(parameter, self.vision_tower):
            return "vision_tower"
        return "language_model" if _is_inside(parameter, self.language_model) else None

    def template_for(self, config: Any) -> str:
        """The default chat template for a model's config."""
        return self.decoder_templates.get(config.get_text_config().model_type, self.chat_template)


def _is_inside(name, pattern):
    return re.search(rf"(^|\.)({pattern})(\.|$)", name) is not None


def _vision_patch_size(config):
    return config.vision_config.patch_size


def _class_tokens(config):
    """Tokens of the vision tower that are not patches; None if the vision tower is not known."""
    return {"clip_vision_model": 1, "siglip_vision_model": 0}.get(config.vision_config.model_type)


def _patches(config):
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


_LLAVA_ATTRIBUTES: Mapping[str, Callable[[Any], Any]] = {
    "patch_size": _vision_patch_size,
    "vision_feature_select_strategy": lambda config: config.vision_feature_select_strategy,
    "num_additional_image_tokens": _class_tokens,
}
_QWEN: dict[str, Any] = {
    "vision_tower": r"model\.visual",
    "end_of_turn": "<|im_end|>",
    "refused_image": "absolute aspect ratio must be smaller than 200",  # smart_resize of transformers
}
_IDEFICS: dict[str, Any] = {
    "projector": r"model\.connector",
    "vision_tower": r"model\.vision_model",
    "language_model": r"model\.text_model|lm_head",
    "lora_targets": r"model\.text_model" + _LINEAR_LAYERS,
    "end_of_turn": "<end_of_utterance>",
    "chat_template": IDEFICS3,
}

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            "llava",
            processors=("LlavaProcessor",),
            chat_template=VICUNA,
            decoder_templates={"qwen2": LLAVA_CHAT_ML},
            processor_attributes=_LLAVA_ATTRIBUTES,
            lmms_model="llava_hf",
        ),
        Family(
            "llava_next",
            processors=("LlavaNextProcessor",),
            projector=r"model\.(multi_modal_projector|image_newline)",
            chat_template=VICUNA,
            decoder_templates={"mistral": MISTRAL, "qwen2": LLAVA_CHAT_ML},
            processor_attributes=_LLAVA_ATTRIBUTES,
            lmms_model="llava_hf",
        ),
        Family(
            "llava_onevision",
            processors=("LlavaOnevisionProcessor",),
            projector=r"model\.(multi_modal_projector|image_newline)",
            end_of_turn="<|im_end|>",
            chat_template=LLAVA_CHAT_ML,
            processor_attributes={
                "num_image_tokens": _patches,
                "vision_feature_select_strategy": lambda config: config.vision_feature_select_strategy,
            },
            lmms_model="llava_hf",
        ),
        Family(
            "qwen2_vl",
            processors=("Qwen2VLProcessor",),
            projector=r"model\.visual\.merger",
            chat_template=QWEN2_VL,
            lmms_model="qwen2_vl",
            **_QWEN,
        ),
        Family(
            "qwen2_5_vl",
            processors=("Qwen2_5_VLProcessor",),
            projector=r"model\.visual\.merger",
            chat_template=QWEN2_VL,
            lmms_model="qwen2_5_vl",
            **_QWEN,
        ),
        Family(
            "qwen3_vl",
            processors=("Qwen3VLProcessor",),
            projector=r"model\.visual\.(merger|deepstack_merger_list\.\d+)",
            chat_template=QWEN3_VL,
            lmms_model="qwen3_vl",
            **_QWEN,
        ),
        Family("idefics3", processors=("Idefics3Processor",), **_IDEFICS),
        Family("smolvlm", processors=("SmolVLMProcessor",), **_IDEFICS),
        Family(
            "internvl",
            processors=("InternVLProcessor",),
            end_of_turn="<|im_end|>",
            chat_template=INTERNVL,
            lmms_model="internvl_hf",
        ),
        Family(
            "paligemma",
            processors=("PaliGemmaProcessor",),
            causal=False,
            prefix_attention=True,
            appended="\n",
            chat_template=PALIGEMMA,
        ),
        Family(
            "gemma3",
            processors=("Gemma3Processor",),
            causal=False,  # the tokens of an image attend to each other
            end_of_turn="<end_of_turn>",
            chat_template=GEMMA3,
            lmms_model="gemma3",
            lmms_arguments={"trust_remote_code": False},  # lmms-eval's default is True
        ),
    )
}
_OF_PROCESSOR = {name: family for family in FAMILIES.values() for name in family.processors}


def family_of(config: Any) -> Family:
    """The family of a model.

    Args:
        config: the model's config, of transformers.

    Raises:
        FamilyError: the table has no such family.
    """
    if config.model_type not in FAMILIES:
        raise FamilyError(
            f"unknown model family {config.model_type!r}; available: {', '.join(FAMILIES)}. To add it, write an entry "
            "in FAMILIES (coincide/models/families.py) and its small model in tests/families.py; CONTRIBUTING.md has "
            "the steps"
        )
    return FAMILIES[config.model_type]


def family_of_processor(processor: Any) -> Family:
    """The family whose processor this is.

    Raises:
        FamilyError: the table has no such processor.
    """
    for cls in type(processor).__mro__:
        if cls.__name__ in _OF_PROCESSOR:
            return _OF_PROCESSOR[cls.__name__]
    raise FamilyError(
        f"unknown processor {type(processor).__name__}; available: {', '.join(_OF_PROCESSOR)}. Add its name to the "
        "entry of its family in coincide/models/families.py"
    )


def complete_processor(processor: Any, config: Any, chat_template: str | None = None) -> None:
    """Fill in what a checkpoint's processor lacks: its chat template, and attributes that the model's config has.

    Args:
        processor: changed in place.
        config: of the model.
        chat_template: replaces the checkpoint's; None: the checkpoint's, or that of its family if it ships none.
    """
    family = family_of(config)
    if chat_template:
        processor.chat_template = chat_template
    elif not processor.chat_template:  # one of the tokenizer alone is for text without images
        processor.chat_template = family.template_for(config)
    for name, value_of in family.processor_attributes.items():
        if not getattr(processor, name, None):
            value = value_of(config)
            if value is not None:
                setattr(processor, name, value)


def matching_modules(names: Iterable[str], pattern: str) -> list[str]:
    """The names that a pattern matches whole."""
    return [name for name in names if re.fullmatch(pattern, name)]


def check_modules(names: Iterable[str], patterns: Iterable[str], matches: Callable[[str, str], bool], key: str) -> None:
    """Check that every pattern matches a module of the model.

    Args:
        names: names of the model's modules.
        patterns: what the config names.
        matches: function of (name, pattern).
        key: of the config, for the message.

    Raises:
        FamilyError: a pattern that matches no module.
    """
    names = [name for name in names if name]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            raise FamilyError(
                f"{key}: {pattern!r} matches no module of the model; correct it, or set {key} to null for the "
                f"default of the model's family. Modules: {', '.join(_examples(names))}"
            )


def _examples(names):
    """Some names of modules, one per kind: numbers of layers are left out."""
    kinds = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".N", name) for name in names)
    leaves = [kind for kind in kinds if not any(other.startswith(f"{kind}.") for other in kinds)]
    step = max(1, len(leaves) // SHOWN_NAMES)
    return leaves[::step][:SHOWN_NAMES]
