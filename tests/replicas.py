"""Replicas of public checkpoints: their files, keys and tokens, with small sizes and random weights.

No model hub can be reached from the tests. A replica is a folder with the file set and the keys of a public snapshot:
config.json with its nested sections and its gaps, the processor's files or their absence, the tokenizer's class with
its special and added tokens, the chat template in its kind of file, generation_config.json, and weights in shards. The
sizes are small, the weights random, the tokenizers trained here, and the chat templates written here, so that they
render the text of the published ones.

Every entry names its sources: public files that show the snapshot, and the day on which they were read. `derived` says
which parts no public file showed; these follow transformers' conversion scripts and classes.
"""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.convert_slow_tokenizer import bytes_to_unicode

READ = "2026-11-25"
SHARD_BYTES = 60_000  # weights are split into files of this size
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]
TEXTS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: ASSISTANT: [INST] [/INST] <<SYS>> <</SYS>>",
    "user system assistant model User: Assistant: System: You are a helpful assistant.",
    "what is this thing really? answer 1 2 3 yes no number of colours. Answer with one word. What is shown here?",
    "thing0 thing1 thing2 thing3 thing4 thing5 thing6 thing7 thing8 thing9 Zebra a ?\n\n",
]
# The split of GPT-4's and Qwen's tokenizers.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass(frozen=True)
class Replica:
    """A public checkpoint and how its replica is written.

    Attributes:
        name: on the hub.
        family: `model_type` of its config.
        write: function of the folder; writes everything but the weights.
        sources: public files that show the snapshot.
        derived: what no public file showed.
    """

    name: str
    family: str
    write: Callable[[Any], None]
    sources: tuple[str, ...]
    derived: str = ""


@dataclass
class Vocabulary:
    """A tokenizer under construction.

    Attributes:
        tokenizer: the trained tokenizer.
        size: rows of the embeddings: the tokens rounded up to a multiple of 64, as the published ones are padded.
    """

    tokenizer: Tokenizer
    special: list[str] = field(default_factory=list)

    def __getitem__(self, token):
        return self.tokenizer.token_to_id(token)

    @property
    def size(self):
        return -(-self.tokenizer.get_vocab_size() // 64) * 64


def write_json(folder, name, content):
    (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _added(tokenizer, tokens):
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])


def sentencepiece(control, added, *, begin):
    """A tokenizer as converted from SentencePiece (Llama, Gemma): byte fallback, ▁ for spaces.

    Args:
        control: tokens at the start of the vocabulary.
        added: tokens after the vocabulary.
        begin: token that begins every text.
    """
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=420, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    pieces = [
        *control,
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *sorted(learned["vocab"], key=learned["vocab"].get),
    ]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(merge) for merge in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _added(tokenizer, [*control, *added])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    return Vocabulary(tokenizer, [*control, *added])


def byte_level(first, added, *, split=QWEN_SPLIT, begin=None):
    """A byte-level tokenizer (GPT-2, Llama 3, Qwen).

    Args:
        first: tokens at the start of the vocabulary.
        added: tokens after the vocabulary.
        split: regular expression of the words.
        begin: token that begins every text; None: none.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=440,
        special_tokens=list(first),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    _added(tokenizer, added)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
    return Vocabulary(tokenizer, [*first, *added])


def write_tokenizer(folder, vocabulary, tokenizer_class, **options):
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    vocabulary.tokenizer.save(str(folder / "tokenizer.json"))
    decoder = {
        str(vocabulary[token]): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in vocabulary.special
    }
    config = {"added_tokens_decoder": decoder, "clean_up_tokenization_spaces": False, **options}
    write_json(folder, "tokenizer_config.json", {**config, "tokenizer_class": tokenizer_class})
    names = ("additional_special_tokens", "bos_token", "eos_token", "pad_token", "unk_token")
    write_json(folder, "special_tokens_map.json", {name: options[name] for name in names if options.get(name)})


def image_processor(kind, size, mean, std, **more):
    """preprocessor_config.json, keys that most snapshots share."""
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": mean,
        "image_processor_type": kind,
        "image_std": std,
        "resample": 3,
        "rescale_factor": 0.00392156862745098,
        "size": size,
        **more,
    }


# --- LLaVA ------------------------------------------------------------------------------------------------------------

_TEXT_PARTS = "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
_IMAGE_PARTS = "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ 'IMAGE' }}{% endif %}{% endfor %}"
_ORDERED_PARTS = (
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ 'IMAGE' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
)
# No system prompt, no end of turn: "USER: <image>\nquestion ASSISTANT: answer ".
LLAVA_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] != 'system' %}{{ m['role'] | upper + ': ' }}{% endif %}"
    + _IMAGE_PARTS.replace("IMAGE", "<image>\\n")
    + "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAVA_MISTRAL_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ '<<SYS>>\\n' + m['content'][0]['text'] + '\\n<</SYS>>\\n\\n' }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' }}"
    + _IMAGE_PARTS.replace("IMAGE", "<image>\\n")
    + _TEXT_PARTS
    + "{{ ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'][0]['text'] + '</s> ' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}"
    "{% endfor %}"
)
PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


def _llama(folder, **options):
    vocabulary = sentencepiece(["<unk>", "<s>", "</s>"], ["<image>", "<pad>"], begin="<s>")
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    options = {"add_bos_token": True, "add_eos_token": False, "legacy": False, "model_max_length": 2048, **options}
    write_tokenizer(folder, vocabulary, "LlamaTokenizer", **named, **options)
    return vocabulary


def _llava_config(vocabulary, **more):
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": vocabulary["<image>"],
        "model_type": "llava",
        "pad_token_id": vocabulary["<pad>"],
        "projector_hidden_act": "gelu",
        # The published section leaves out what LlamaConfig has as defaults, hidden_size included.
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5",
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "rms_norm_eps": 1e-05,
            "torch_dtype": "float16",
            "vocab_size": vocabulary.size,
            **DECODER,
        },
        "torch_dtype": "float16",
        "vision_config": {
            **VISION,
            "image_size": 28,
            "model_type": "clip_vision_model",
            "patch_size": 14,
            "projection_dim": 16,
            "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        **more,
    }


def _clip_image_processor(kind="CLIPImageProcessor", **more):
    crop = {"crop_size": {"height": 28, "width": 28}, "do_center_crop": True}
    return image_processor(kind, {"shortest_edge": 28}, CLIP_MEAN, CLIP_STD, **crop, **more)


def llava_1_5(folder):
    vocabulary = _llama(folder, padding_side="left", processor_class="LlavaProcessor", model_max_length=10**30)
    write_json(folder, "added_tokens.json", {token: vocabulary[token] for token in ("<image>", "<pad>")})
    write_json(folder, "config.json", _llava_config(vocabulary, image_seq_length=576, tie_word_embeddings=False))
    write_json(folder, "preprocessor_config.json", _clip_image_processor(processor_class="LlavaProcessor"))
    processor = {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14}
    strategy = {"processor_class": "LlavaProcessor", "vision_feature_select_strategy": "default"}
    write_json(folder, "processor_config.json", {**processor, **strategy})
    write_json(folder, "chat_template.json", {"chat_template": LLAVA_TEMPLATE})
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": vocabulary["<pad>"]}
    write_json(folder, "generation_config.json", {"_from_model_config": True, **generation})


def tiny_llava(folder):
    """Neither processor_config.json nor a chat template."""
    vocabulary = _llama(folder, padding_side="right", processor_class="LlavaProcessor")
    write_json(folder, "added_tokens.json", {token: vocabulary[token] for token in ("<image>", "<pad>")})
    config = _llava_config(vocabulary, vocab_size=vocabulary.size)
    config["text_config"]["_name_or_path"] = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
    write_json(folder, "config.json", config)
    write_json(folder, "preprocessor_config.json", _clip_image_processor(processor_class="LlavaProcessor"))
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": vocabulary["<pad>"]}
    write_json(folder, "generation_config.json", {"_from_model_config": True, **generation})


def llava_next_mistral(folder):
    extra = {"extra_special_tokens": {"image_token": "<image>"}, "image_token": "<image>"}
    vocabulary = _llama(folder, padding_side="left", processor_class="LlavaNextProcessor", **extra)
    config = _llava_config(
        vocabulary,
        architectures=["LlavaNextForConditionalGeneration"],
        model_type="llava_next",
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=576,
        tie_word_embeddings=False,
        use_image_newline_parameter=True,
        vocab_size=vocabulary.size,
    )
    text = {"_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2", "architectures": ["MistralForCausalLM"]}
    text |= {"model_type": "mistral", "max_position_embeddings": 32768, "rope_theta": 1000000.0, "sliding_window": None}
    config["text_config"] |= text
    write_json(folder, "config.json", config)
    images = {"aspect_ratio_setting": "anyres", "do_pad": True, "image_grid_pinpoints": PINPOINTS}
    images = _clip_image_processor("LlavaNextImageProcessor", processor_class="LlavaNextProcessor", **images)
    write_json(folder, "preprocessor_config.json", images)
    processor = {"image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14}
    strategy = {"processor_class": "LlavaNextProcessor", "vision_feature_select_strategy": "default"}
    write_json(folder, "processor_config.json", {**processor, **strategy})
    write_json(folder, "chat_template.json", {"chat_template": LLAVA_MISTRAL_TEMPLATE})
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": vocabulary["<pad>"]}
    write_json(folder, "generation_config.json", {"_from_model_config": True, **generation})


# --- Qwen's tokenizer -------------------------------------------------------------------------------------------------

QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_VL_TOKENS = [
    *QWEN_TOKENS, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>",
    "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
# Images first without line ends, then "\n" before each text; no line end after <|im_end|>.
ONEVISION_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
    + _IMAGE_PARTS.replace("IMAGE", "<image>")
    + "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ '\\n' + part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CHAT_ML = (
    "{% for m in messages %}SYSTEM{{ '<|im_start|>' + m['role'] + '\\n' }}CONTENT{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_QWEN_CONTENT = _ORDERED_PARTS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
_QWEN_SYSTEM = (
    "{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
)
QWEN2_VL_TEMPLATE = _CHAT_ML.replace("CONTENT", _QWEN_CONTENT).replace("SYSTEM", _QWEN_SYSTEM)
QWEN3_VL_TEMPLATE = _CHAT_ML.replace("CONTENT", _QWEN_CONTENT).replace("SYSTEM", "")
INTERNVL_TEMPLATE = _CHAT_ML.replace("CONTENT", _ORDERED_PARTS.replace("IMAGE", "<IMG_CONTEXT>\\n")).replace(
    "SYSTEM", ""
)


def llava_onevision(folder):
    vocabulary = byte_level([], [*QWEN_TOKENS, "<image>", "<video>"])
    options = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    options |= {"add_prefix_space": False, "model_max_length": 32768, "processor_class": "LlavaOnevisionProcessor"}
    write_tokenizer(folder, vocabulary, "Qwen2Tokenizer", additional_special_tokens=QWEN_TOKENS[1:], **options)
    config = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": PINPOINTS,
        "image_token_index": vocabulary["<image>"],
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "Qwen/Qwen2-0.5B-Instruct",
            "architectures": ["Qwen2ForCausalLM"],
            "bos_token_id": vocabulary["<|endoftext|>"],
            "eos_token_id": vocabulary["<|im_end|>"],
            "max_window_layers": 24,
            "model_type": "qwen2",
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vocab_size": vocabulary.size,
            **DECODER,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_image_newline_parameter": True,
        "video_token_index": vocabulary["<video>"],
        "vision_aspect_ratio": "anyres_max_9",
        "vision_config": {
            **VISION,
            "image_size": 28,
            "model_type": "siglip_vision_model",
            "patch_size": 14,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    write_json(folder, "config.json", config)
    size = {"height": 28, "width": 28}
    images = image_processor("LlavaOnevisionImageProcessor", size, HALF, HALF, do_pad=True)
    images |= {"image_grid_pinpoints": PINPOINTS, "processor_class": "LlavaOnevisionProcessor"}
    write_json(folder, "preprocessor_config.json", images)
    video = image_processor("LlavaOnevisionVideoProcessor", size, HALF, HALF)
    video["video_processor_type"] = video.pop("image_processor_type")
    write_json(folder, "video_preprocessor_config.json", video)
    processor = {"image_token": "<image>", "num_image_tokens": 4, "processor_class": "LlavaOnevisionProcessor"}
    processor |= {"video_token": "<video>", "vision_aspect_ratio": "anyres_max_9"}
    write_json(folder, "processor_config.json", {**processor, "vision_feature_select_strategy": "full"})
    write_json(folder, "chat_template.json", {"chat_template": ONEVISION_TEMPLATE})
    generation = {"bos_token_id": vocabulary["<|endoftext|>"], "pad_token_id": vocabulary["<|endoftext|>"]}
    eos = [vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]]
    write_json(folder, "generation_config.json", {**generation, "do_sample": True, "eos_token_id": eos})


def _qwen_vl(folder, template, vision, *, images, text=None, top=None, chat_file="chat_template.json"):
    vocabulary = byte_level([], QWEN_VL_TOKENS)
    options = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    options |= {"add_prefix_space": False, "errors": "replace", "split_special_tokens": False}
    options |= {"model_max_length": 32768, "additional_special_tokens": QWEN_VL_TOKENS[1:], "chat_template": template}
    write_tokenizer(folder, vocabulary, "Qwen2Tokenizer", **options)
    write_json(folder, chat_file, {"chat_template": template})
    ids = {
        "image_token_id": vocabulary["<|image_pad|>"],
        "video_token_id": vocabulary["<|video_pad|>"],
        "vision_start_token_id": vocabulary["<|vision_start|>"],
        "vision_end_token_id": vocabulary["<|vision_end|>"],
    }
    decoder = {
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary["<|endoftext|>"],
        "eos_token_id": vocabulary["<|im_end|>"],
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "use_cache": True,
        "vocab_size": vocabulary.size,
        **DECODER,
    }
    # Qwen2-VL and Qwen2.5-VL have the decoder's keys at the top, without a text_config.
    config = {**ids, "vision_config": vision, **(top or {})}
    config |= decoder | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}} if text is None else {}
    if text is not None:
        config["text_config"] = decoder | text
    write_json(folder, "config.json", config)
    write_json(folder, "preprocessor_config.json", images)
    eos = [vocabulary["<|im_end|>"], vocabulary["<|endoftext|>"]]
    generation = {"bos_token_id": vocabulary["<|endoftext|>"], "pad_token_id": vocabulary["<|endoftext|>"]}
    generation |= {"do_sample": True, "eos_token_id": eos, "repetition_penalty": 1.05, "temperature": 1e-06}
    write_json(folder, "generation_config.json", generation)


def _qwen_images(patch, **more):
    # min_pixels and max_pixels instead of a size
    limits = {"min_pixels": 4 * (2 * patch) ** 2, "max_pixels": 16 * (2 * patch) ** 2}
    patches = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2}
    return {**limits, **patches, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, **more}


def qwen2_vl(folder):
    vision = {"depth": 2, "embed_dim": 16, "mlp_ratio": 2, "num_heads": 2, "in_chans": 3, "hidden_size": 32}
    vision |= {"patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2}
    kinds = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"}
    top = {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "torch_dtype": "bfloat16"}
    top |= {"tie_word_embeddings": True, "sliding_window": 32768, "use_sliding_window": False, "max_window_layers": 28}
    top["vision_token_id"] = 151654  # not in the small vocabulary; nothing reads it
    _qwen_vl(folder, QWEN2_VL_TEMPLATE, vision, images=_qwen_images(14, **kinds), top=top)


def qwen2_5_vl(folder):
    vision = {"depth": 2, "hidden_act": "silu", "hidden_size": 16, "intermediate_size": 36, "num_heads": 2}
    vision |= {"in_chans": 3, "out_hidden_size": 32, "patch_size": 14, "spatial_merge_size": 2, "window_size": 112}
    vision |= {"spatial_patch_size": 14, "fullatt_block_indexes": [1], "tokens_per_second": 2, "temporal_patch_size": 2}
    kinds = {"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    top = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
    top |= {
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "max_window_layers": 70,
    }
    _qwen_vl(folder, QWEN2_VL_TEMPLATE, vision, images=_qwen_images(14, **kinds), top=top)


def qwen3_vl(folder):
    vision = {"deepstack_visual_indexes": [0, 1], "depth": 3, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 16}
    vision |= {"in_channels": 3, "initializer_range": 0.02, "intermediate_size": 36, "model_type": "qwen3_vl"}
    vision |= {"num_heads": 2, "num_position_embeddings": 64, "out_hidden_size": 32, "patch_size": 16}
    vision |= {"spatial_merge_size": 2, "temporal_patch_size": 2}
    text = {"attention_bias": False, "dtype": "bfloat16", "head_dim": 8, "model_type": "qwen3_vl_text"}
    text |= {"max_position_embeddings": 262144, "rope_theta": 5000000}
    text["rope_scaling"] = {"mrope_interleaved": True, "mrope_section": [2, 1, 1], "rope_type": "default"}
    size = {"longest_edge": 16 * 32 * 32, "shortest_edge": 4 * 32 * 32}
    kinds = {"processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast"}
    images = {"size": size, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    top = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"}
    top["tie_word_embeddings"] = False
    images |= {"image_mean": HALF, "image_std": HALF, **kinds}
    _qwen_vl(folder, QWEN3_VL_TEMPLATE, vision, images=images, text=text, top=top)
    video = images | {"video_processor_type": "Qwen3VLVideoProcessor"}
    video.pop("image_processor_type")
    write_json(folder, "video_preprocessor_config.json", video)


def internvl3(folder):
    names = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
    vocabulary = byte_level([], [*QWEN_VL_TOKENS, *names, "<video>"])
    extra = {"context_image_token": "<IMG_CONTEXT>", "end_image_token": "</img>", "start_image_token": "<img>"}
    extra["video_token"] = "<video>"
    options = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None}
    options |= {"add_prefix_space": False, "model_max_length": 8192, "processor_class": "InternVLProcessor"}
    options |= {"return_token_type_ids": False, "extra_special_tokens": extra, **extra}
    write_tokenizer(
        folder, vocabulary, "Qwen2Tokenizer", additional_special_tokens=[*QWEN_VL_TOKENS[1:], *names], **options
    )
    (folder / "chat_template.jinja").write_text(INTERNVL_TEMPLATE)
    config = {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": 4,
        "image_token_id": vocabulary["<IMG_CONTEXT>"],
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "attention_dropout": 0.0,
            "bos_token_id": vocabulary["<|endoftext|>"],
            "eos_token_id": vocabulary["<|im_end|>"],
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "max_window_layers": 70,
            "model_type": "qwen2",
            "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
            "rope_theta": 1000000.0,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": vocabulary.size,
            **DECODER,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_bias": True,
            "attention_dropout": 0.0,
            "hidden_act": "gelu",
            "image_size": [56, 56],
            "layer_norm_eps": 1e-06,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_channels": 3,
            "patch_size": [14, 14],
            "projection_dropout": 0.0,
            "torch_dtype": "bfloat16",
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "use_qk_norm": False,
            **VISION,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }
    write_json(folder, "config.json", config)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    images = image_processor("GotOcr2ImageProcessorFast", {"height": 56, "width": 56}, mean, std)
    images |= {"crop_to_patches": False, "max_patches": 12, "min_patches": 1, "processor_class": "InternVLProcessor"}
    write_json(folder, "preprocessor_config.json", images)
    video = image_processor("", {"height": 56, "width": 56}, mean, std, video_processor_type="InternVLVideoProcessor")
    video.pop("image_processor_type")
    write_json(folder, "video_preprocessor_config.json", video)
    write_json(folder, "processor_config.json", {"image_seq_length": 4, "processor_class": "InternVLProcessor"})
    write_json(folder, "generation_config.json", {"_from_model_config": True, "eos_token_id": vocabulary["<|im_end|>"]})


# --- Idefics3 and SmolVLM ---------------------------------------------------------------------------------------------

IDEFICS_TOKENS = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
# "User:<image>question<end_of_utterance>\n"; a space after the colon only before text.
_IDEFICS_TEMPLATE = (
    "BEGIN{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    + _ORDERED_PARTS.replace("IMAGE", "<image>")
    + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM_TEMPLATE = _IDEFICS_TEMPLATE.replace("BEGIN", "<|im_start|>")
IDEFICS3_TEMPLATE = _IDEFICS_TEMPLATE.replace("BEGIN", "<|begin_of_text|>")


def _idefics(folder, vocabulary, *, kind, processor_class, images, tokens, text=None, **more):
    config = {
        "architectures": [f"{kind}ForConditionalGeneration"],
        "image_token_id": vocabulary["<image>"],
        "scale_factor": 2,
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"],
            "head_dim": 8,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "model_type": "llama",
            "neftune_noise_alpha": 0.0,
            "pad_token_id": 2,
            "pixel_shuffle_factor": 2,
            "qk_layer_norms": False,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "torch_dtype": "bfloat16",
            "use_resampler": False,
            "vocab_size": vocabulary.size,
            **DECODER,
            **(text or {}),
        },
        "tie_word_embeddings": False,
        "use_cache": False,
        "vision_config": {
            **VISION,
            "image_size": 28,
            "max_image_size": {"longest_edge": 28},
            "patch_size": 7,
            "size": {"longest_edge": 112},
            "tie_word_embeddings": False,
            "use_base_siglip": False,
        },
        "vocab_size": vocabulary.size,
        **more,
    }
    write_json(folder, "config.json", config)
    preprocessor = image_processor(images, {"longest_edge": 112}, HALF, HALF, do_image_splitting=True, do_pad=True)
    preprocessor |= {"max_image_size": {"longest_edge": 28}, "processor_class": processor_class, "resample": 1}
    write_json(folder, "preprocessor_config.json", preprocessor)
    write_json(folder, "processor_config.json", {"image_seq_len": 4, "processor_class": processor_class})
    write_json(folder, "generation_config.json", {"_from_model_config": True, **tokens})


def _smollm(folder, processor_class, **options):
    reserved = [f"<|reserved_special_token_{i}|>" for i in range(4)]
    first = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    added = ["<global-img>", *ROWS, *IDEFICS_TOKENS[:2], *reserved, "<end_of_utterance>"]
    vocabulary = byte_level(first, added, split=r"'s|'t|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    options |= {"bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>", "pad_token": "<|im_end|>"}
    options |= {"unk_token": "<|endoftext|>", "model_max_length": 8192, "truncation_side": "left"}
    options |= {"additional_special_tokens": IDEFICS_TOKENS, "processor_class": processor_class}
    write_tokenizer(folder, vocabulary, "GPT2Tokenizer", vocab_size=49152, **options)
    return vocabulary


def _smollm_tokens(vocabulary):
    return {"bos_token_id": 1, "eos_token_id": vocabulary["<end_of_utterance>"], "pad_token_id": 2}


def smolvlm(folder):
    """The first SmolVLM has the classes of Idefics3."""
    vocabulary = _smollm(folder, "Idefics3Processor")
    write_json(folder, "chat_template.json", {"chat_template": SMOLVLM_TEMPLATE})
    kinds = {"kind": "Idefics3", "processor_class": "Idefics3Processor", "images": "Idefics3ImageProcessor"}
    more = {"model_type": "idefics3", "pad_token_id": 128002, "torch_dtype": "bfloat16"}
    _idefics(folder, vocabulary, **kinds, tokens=_smollm_tokens(vocabulary), **more)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_type"] = "idefics3"
    write_json(folder, "config.json", config)


def smolvlm2(folder):
    extra = {
        "end_of_utterance_token": "<end_of_utterance>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "image_token": "<image>",
    }
    vocabulary = _smollm(folder, "SmolVLMProcessor", extra_special_tokens=extra, **extra)
    write_json(folder, "chat_template.json", {"chat_template": SMOLVLM_TEMPLATE})
    kinds = {"kind": "SmolVLM", "processor_class": "SmolVLMProcessor", "images": "SmolVLMImageProcessor"}
    more = {"model_type": "smolvlm", "pad_token_id": 128002, "torch_dtype": "float32"}
    _idefics(folder, vocabulary, **kinds, tokens=_smollm_tokens(vocabulary), use_reentrant_checkpointing=False, **more)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_type"] = "smolvlm_vision"
    write_json(folder, "config.json", config)
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    preprocessor["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 28}}
    write_json(folder, "preprocessor_config.json", preprocessor)


def idefics3(folder):
    first = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|eot_id|>"]
    vocabulary = byte_level([], [*first, "<global-img>", *ROWS, *IDEFICS_TOKENS], begin="<|begin_of_text|>")
    options = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "model_max_length": 131072}
    options |= {"pad_token": "<|reserved_special_token_0|>", "additional_special_tokens": IDEFICS_TOKENS}
    options |= {"model_input_names": ["input_ids", "attention_mask"], "processor_class": "Idefics3Processor"}
    write_tokenizer(folder, vocabulary, "PreTrainedTokenizerFast", **options)
    write_json(folder, "chat_template.json", {"chat_template": IDEFICS3_TEMPLATE})
    kinds = {"kind": "Idefics3", "processor_class": "Idefics3Processor", "images": "Idefics3ImageProcessor"}
    pad = vocabulary["<|reserved_special_token_0|>"]
    ids = {"bos_token_id": vocabulary["<|begin_of_text|>"], "eos_token_id": vocabulary["<|end_of_text|>"]}
    text = {"pad_token_id": pad, "rope_theta": 500000.0, "max_position_embeddings": 131072, **ids}
    more = {"model_type": "idefics3", "pad_token_id": pad, "torch_dtype": "bfloat16"}
    tokens = {**ids, "eos_token_id": [ids["eos_token_id"], vocabulary["<end_of_utterance>"]], "pad_token_id": pad}
    _idefics(folder, vocabulary, **kinds, tokens=tokens, text=text, **more)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_type"] = "idefics3"
    write_json(folder, "config.json", config)


# --- Gemma ------------------------------------------------------------------------------------------------------------

LOCATIONS = [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]
# The text of a system turn precedes the first question; texts are stripped.
GEMMA3_TEMPLATE = (
    "{{ bos_token }}"
    "{% set prefix = messages[0]['content'][0]['text'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}"
    "{% for m in (messages[1:] if prefix else messages) %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' }}"
    "{{ prefix if loop.first else '' }}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def _gemma(folder, control, added, **options):
    vocabulary = sentencepiece(control, added, begin="<bos>")
    options |= {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    options |= {"add_bos_token": True, "add_eos_token": False, "model_max_length": 10**30, "sp_model_kwargs": {}}
    write_tokenizer(folder, vocabulary, "GemmaTokenizer", spaces_between_special_tokens=False, **options)
    return vocabulary


def paligemma2(folder):
    """A pretrained checkpoint: no chat template, and the image token is the last of the vocabulary."""
    more = {"processor_class": "PaliGemmaProcessor", "use_default_system_prompt": False}
    extra = {"extra_special_tokens": {"image_token": "<image>"}, "additional_special_tokens": ["<image>"]}
    vocabulary = _gemma(folder, ["<pad>", "<eos>", "<bos>", "<unk>"], [*LOCATIONS, "<image>"], **more, **extra)
    write_json(folder, "added_tokens.json", {"<image>": vocabulary["<image>"]})
    config = {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "hidden_size": 32,
        "image_token_index": vocabulary["<image>"],
        "model_type": "paligemma",
        "num_hidden_layers": DECODER["num_hidden_layers"],
        "pad_token_id": 0,
        "projection_dim": 32,
        "text_config": {
            "architectures": ["Gemma2ForCausalLM"],
            "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid",
            "eos_token_id": [1, 107],
            "final_logit_softcapping": 30.0,
            "head_dim": 8,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "model_type": "gemma2",
            "num_image_tokens": 4,
            "query_pre_attn_scalar": 8,
            "sliding_window": 4096,
            "torch_dtype": "bfloat16",
            "vocab_size": vocabulary.size,
            **DECODER,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {
            **VISION,
            "image_size": 28,
            "model_type": "siglip_vision_model",
            "num_image_tokens": 4,
            "num_positions": 4,
            "patch_size": 14,
            "projection_dim": 32,
            "torch_dtype": "bfloat16",
            "vision_use_head": False,
        },
    }
    write_json(folder, "config.json", config)
    images = image_processor("SiglipImageProcessor", {"height": 28, "width": 28}, HALF, HALF)
    images |= {"do_convert_rgb": None, "image_seq_length": 4, "processor_class": "PaliGemmaProcessor"}
    write_json(folder, "preprocessor_config.json", images)
    generation = {"bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1, "pad_token_id": 0}
    write_json(folder, "generation_config.json", {"_from_model_config": True, **generation})


def gemma3(folder):
    extra = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    turns = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
    options = {"extra_special_tokens": extra, "processor_class": "Gemma3Processor", "use_default_system_prompt": False}
    options["chat_template"] = GEMMA3_TEMPLATE
    vocabulary = _gemma(folder, ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"], turns, **extra, **options)
    write_json(folder, "added_tokens.json", {"<image_soft_token>": vocabulary["<image_soft_token>"]})
    write_json(folder, "chat_template.json", {"chat_template": GEMMA3_TEMPLATE})
    end = vocabulary["<end_of_turn>"]
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": vocabulary["<start_of_image>"],
        "eoi_token_index": vocabulary["<end_of_image>"],
        "eos_token_id": [1, end],
        "image_token_index": vocabulary["<image_soft_token>"],
        "initializer_range": 0.02,
        "mm_tokens_per_image": 4,
        "model_type": "gemma3",
        # The published section of the 4B model leaves out heads, vocabulary and what else its class has as defaults.
        "text_config": {
            **DECODER,
            "head_dim": 8,
            "model_type": "gemma3_text",
            "query_pre_attn_scalar": 8,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 16,
            "vocab_size": vocabulary.size,
        },
        "torch_dtype": "bfloat16",
        "vision_config": {
            **VISION,
            "image_size": 56,
            "model_type": "siglip_vision_model",
            "patch_size": 14,
            "vision_use_head": False,
        },
    }
    write_json(folder, "config.json", config)
    images = image_processor("Gemma3ImageProcessor", {"height": 56, "width": 56}, HALF, HALF, image_seq_length=4)
    images |= {"do_convert_rgb": None, "do_pan_and_scan": None, "processor_class": "Gemma3Processor", "resample": 2}
    images |= {f"pan_and_scan_{key}": None for key in ("max_num_crops", "min_crop_size", "min_ratio_to_activate")}
    write_json(folder, "preprocessor_config.json", images)
    write_json(folder, "processor_config.json", {"image_seq_length": 4, "processor_class": "Gemma3Processor"})
    generation = {"bos_token_id": 2, "do_sample": True, "eos_token_id": [1, end], "pad_token_id": 0}
    write_json(folder, "generation_config.json", {**generation, "top_k": 64, "top_p": 0.95})


# --- the list ---------------------------------------------------------------------------------------------------------

_GENAI = "openvinotoolkit/openvino.genai: src/cpp/src/tokenizer.cpp (published chat templates, word for word)"
_SCRIPTS = "huggingface/transformers: src/transformers/models"

REPLICAS: dict[str, Replica] = {
    replica.name: replica
    for replica in (
        Replica(
            "llava-hf/llava-1.5-7b-hf",
            "llava",
            llava_1_5,
            ("a public training log of 2024-06 that prints config.json (snapshot 05ae2434)", _GENAI),
            "tokenizer_config.json and generation_config.json follow transformers' convert_llava_weights_to_hf.py",
        ),
        Replica(
            "bczhou/tiny-llava-v1-hf",
            "llava",
            tiny_llava,
            ("a public notebook of 2024 that prints the processor: no attributes of its own, no chat template",),
            "config.json follows transformers' convert_llava_weights_to_hf.py",
        ),
        Replica(
            "llava-hf/llava-v1.6-mistral-7b-hf",
            "llava_next",
            llava_next_mistral,
            ("a public note that prints the processor, its template and its tokenizer", _GENAI),
            "config.json follows transformers' convert_llava_next_weights_to_hf.py",
        ),
        Replica(
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
            "llava_onevision",
            llava_onevision,
            (
                f"{_SCRIPTS}/llava_onevision/convert_llava_onevision_weights_to_hf.py (01080c62)",
                "huggingface/transformers: tests/models/llava_onevision (the hub's chat template)",
            ),
            "preprocessor files follow LlavaOnevisionImageProcessor's defaults",
        ),
        Replica(
            "Qwen/Qwen2-VL-2B-Instruct",
            "qwen2_vl",
            qwen2_vl,
            ("a public copy of config.json (transformers_version 4.44.2)", _GENAI),
            "preprocessor_config.json and generation_config.json are those of Qwen2.5-VL with the older class names",
        ),
        Replica(
            "Qwen/Qwen2.5-VL-3B-Instruct",
            "qwen2_5_vl",
            qwen2_5_vl,
            ("a public note with config.json (transformers_version 4.41.2), word for word", _GENAI),
            "preprocessor_config.json and generation_config.json follow the classes",
        ),
        Replica(
            "Qwen/Qwen3-VL-8B-Instruct",
            "qwen3_vl",
            qwen3_vl,
            ("a public report with config.json, tensors and shards (transformers_version 4.57.0.dev0)",
             "public copies of preprocessor_config.json and of the chat template"),
        ),
        Replica(
            "HuggingFaceTB/SmolVLM-Instruct",
            "idefics3",
            smolvlm,
            ("a public copy of preprocessor_config.json, and of the chat template",),
            "config.json is that of SmolVLM2 with the classes of Idefics3",
        ),
        Replica(
            "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
            "smolvlm",
            smolvlm2,
            ("qewr1234/Lightweight-VLA: tests/offline_vlm_cache.py (d40424be): all files, word for word",
             f"{_SCRIPTS}/smolvlm/processing_smolvlm.py (the chat template)"),
        ),
        Replica(
            "HuggingFaceM4/Idefics3-8B-Llama3",
            "idefics3",
            idefics3,
            (f"{_SCRIPTS}/idefics3/convert_idefics3_weights_to_hf.py (15ea02a2)",
             "public copies of preprocessor_config.json and processor_config.json"),
            "the tokenizer's special tokens and the sizes in config.json",
        ),
        Replica(
            "OpenGVLab/InternVL3-1B-hf",
            "internvl",
            internvl3,
            (f"{_SCRIPTS}/internvl/convert_internvl_weights_to_hf.py (015d3b27)",
             "hiyouga/LlamaFactory: issue 7897 (the file set); public copies of the chat template"),
            "rope_scaling and vision_config follow InternVL3's own config",
        ),
        Replica(
            "google/paligemma2-3b-pt-224",
            "paligemma",
            paligemma2,
            (f"{_SCRIPTS}/paligemma/convert_paligemma2_weights_to_hf.py (15ea02a2)",
             "a public copy of the vision_config"),
            "preprocessor_config.json follows the script's processor",
        ),
        Replica(
            "google/gemma-3-4b-it",
            "gemma3",
            gemma3,
            ("a public blog post that prints the config; public copies of preprocessor_config.json, "
             "processor_config.json and the chat template",),
            "special tokens beyond those that the processor reads",
        ),
    )
}  # fmt: skip


def build(name, folder):
    """Write the replica of a checkpoint into a new folder."""
    folder.mkdir(parents=True)
    REPLICAS[name].write(folder)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # with the default initialisation, layers this small hardly tell samples apart
        for parameter, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight.shape[-1] ** -0.5)
            elif "class_embedding" in parameter or "newline" in parameter:
                weight.normal_()
    saved = folder / "saved"
    model.save_pretrained(saved, max_shard_size=SHARD_BYTES)
    for path in saved.glob("model*"):
        shutil.move(path, folder / path.name)
    shutil.rmtree(saved)
    assert (folder / "model.safetensors.index.json").exists()


# --- LLaVA's original format ------------------------------------------------------------------------------------------
# What the rule `converted_model` reads. Names, shapes and file sets are the published ones; weights are random.

ORIGINAL_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TOWER_SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
# Keys that both codes write: LLaVA's initialize_vision_modules and train.py
_LLAVA_KEYS = {
    "freeze_mm_mlp_adapter": False,
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "tune_mm_mlp_adapter": False,
    "use_cache": True,
    "use_mm_proj": True,
}


def _random(shapes, seed, dtype=torch.float16):
    generator = torch.Generator().manual_seed(seed)
    scale = {1: 0.2, 2: 0.2, 4: 0.05}
    return {
        name: (torch.randn(shape, generator=generator) * scale[len(shape)] + (len(shape) == 1 and "weight" in name)).to(
            dtype
        )
        for name, shape in shapes.items()
    }


def _linear(name, outputs, inputs, *, bias=False):
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def _norm(name, size, *, bias=True):
    return {f"{name}.weight": (size,), **({f"{name}.bias": (size,)} if bias else {})}


def _decoder_shapes(rows, *, norm_bias, qkv_bias):
    hidden, inner = ORIGINAL_SIZES["hidden_size"], ORIGINAL_SIZES["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (rows, hidden), "lm_head.weight": (rows, hidden)}
    for i in range(ORIGINAL_SIZES["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name in "qkv":
            shapes |= _linear(f"{layer}.self_attn.{name}_proj", hidden, hidden, bias=qkv_bias)
        shapes |= _linear(f"{layer}.self_attn.o_proj", hidden, hidden)
        shapes |= _linear(f"{layer}.mlp.gate_proj", inner, hidden) | _linear(f"{layer}.mlp.up_proj", inner, hidden)
        shapes |= _linear(f"{layer}.mlp.down_proj", hidden, inner)
        shapes |= _norm(f"{layer}.input_layernorm", hidden, bias=norm_bias)
        shapes |= _norm(f"{layer}.post_attention_layernorm", hidden, bias=norm_bias)
    return shapes | _norm("model.norm", hidden, bias=norm_bias)


def _projector_shapes():
    hidden = ORIGINAL_SIZES["hidden_size"]
    first = _linear("model.mm_projector.0", hidden, TOWER_SIZES["hidden_size"], bias=True)
    return first | _linear("model.mm_projector.2", hidden, hidden, bias=True)


def _tower_shapes(layers, *, clip):
    hidden, inner, prefix = TOWER_SIZES["hidden_size"], TOWER_SIZES["intermediate_size"], "vision_model"
    shapes = {
        f"{prefix}.embeddings.patch_embedding.weight": (hidden, 3, 14, 14),
        f"{prefix}.embeddings.position_embedding.weight": (4 + clip, hidden),
    }
    if clip:
        shapes |= {f"{prefix}.embeddings.class_embedding": (hidden,)} | _norm(f"{prefix}.pre_layrnorm", hidden)
    else:
        shapes[f"{prefix}.embeddings.patch_embedding.bias"] = (hidden,)
    for i in range(layers):
        layer = f"{prefix}.encoder.layers.{i}"
        for name in ("q", "k", "v", "out"):
            shapes |= _linear(f"{layer}.self_attn.{name}_proj", hidden, hidden, bias=True)
        shapes |= _norm(f"{layer}.layer_norm1", hidden) | _norm(f"{layer}.layer_norm2", hidden)
        shapes |= _linear(f"{layer}.mlp.fc1", inner, hidden, bias=True)
        shapes |= _linear(f"{layer}.mlp.fc2", hidden, inner, bias=True)
    return shapes | _norm(f"{prefix}.post_layernorm", hidden)


def _save_bins(folder, tensors, shards=2):
    """pytorch_model-….bin files with their index."""
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"pytorch_model-{i + 1:05}-of-{shards:05}.bin"
        part = {name: tensors[name] for name in names[i::shards]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_json(folder, "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": weight_map})


def _sentencepiece_model(folder):
    """tokenizer.model as Llama's: byte fallback, split digits, a space before the text."""
    SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=384,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    return len(SentencePieceProcessor(model_file=str(folder / "tokenizer.model")))


def _vicuna_tokenizer(folder):
    """tokenizer.model, tokenizer_config.json and special_tokens_map.json of vicuna-7b-v1.5; returns its size."""
    size = _sentencepiece_model(folder)

    def token(content):
        return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": False, "rstrip": False,
                "single_word": False}  # fmt: skip

    config = {"add_bos_token": True, "add_eos_token": False, "bos_token": token("<s>"), "eos_token": token("</s>")}
    config |= {"clean_up_tokenization_spaces": False, "legacy": False, "model_max_length": 2048, "pad_token": None}
    config |= {"padding_side": "right", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer"}
    write_json(folder, "tokenizer_config.json", {**config, "unk_token": token("<unk>")})
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}
    write_json(folder, "special_tokens_map.json", special)
    return size


def _llama_keys(size):
    return {
        **ORIGINAL_SIZES,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "num_key_value_heads": ORIGINAL_SIZES["num_attention_heads"],
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": size,
    }


def original_vicuna(folder):
    """A language model alone, with the buffers that transformers saved in 2023."""
    size = _vicuna_tokenizer(folder)
    config = {"_name_or_path": "vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    write_json(folder, "config.json", {**config, **_llama_keys(size), "transformers_version": "4.31.0"})
    write_json(folder, "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "temperature": 0.9})
    tensors = _random(_decoder_shapes(size, norm_bias=False, qkv_bias=False), 1)
    buffers = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(ORIGINAL_SIZES["num_hidden_layers"])]
    _save_bins(folder, tensors | {name: torch.ones(4) for name in buffers})


def original_clip(folder):
    """A whole CLIP, text tower included, in one file."""
    vision = {**TOWER_SIZES, "image_size": 28, "model_type": "clip_vision_model", "patch_size": 14}
    vision |= {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-05, "projection_dim": 16}
    text = {"hidden_size": 8, "model_type": "clip_text_model", "num_hidden_layers": 1}
    config = {"architectures": ["CLIPModel"], "logit_scale_init_value": 2.6592, "model_type": "clip"}
    write_json(folder, "config.json", {**config, "text_config": text, "vision_config": vision, "projection_dim": 16})
    # sizes as numbers, as in 2022
    images = {"crop_size": 28, "do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3}
    images |= {"feature_extractor_type": "CLIPFeatureExtractor", "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    write_json(folder, "preprocessor_config.json", {**images, "size": 28})
    tensors = _random(_tower_shapes(TOWER_SIZES["num_hidden_layers"], clip=True), 2, torch.float32)
    other = {"text_model.embeddings.position_ids": torch.arange(4)[None], "logit_scale": torch.tensor(2.6)}
    other["text_model.embeddings.token_embedding.weight"] = torch.zeros(10, 8)
    other["visual_projection.weight"] = torch.zeros(16, 16)
    other["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    torch.save(tensors | other, folder / "pytorch_model.bin")


def original_projector(folder):
    """LLaVA's projector after its first stage of training."""
    keys = {**_LLAVA_KEYS, "mm_vision_tower": "openai/clip-vit-large-patch14-336", "model_type": "llava"}
    write_json(folder, "config.json", {"_name_or_path": "lmsys/vicuna-7b-v1.5", **keys})
    torch.save(_random(_projector_shapes(), 3, torch.bfloat16), folder / "mm_projector.bin")


def original_siglip(folder):
    """A SigLIP without the last layer of its vision tower, as TinyLLaVA's code saves it; config.json counts it."""
    config = {**TOWER_SIZES, "architectures": ["SigLipVisionModel"], "attention_dropout": 0.0}
    config |= {"hidden_act": "gelu_pytorch_tanh", "image_mean": HALF, "image_size": 28, "layer_norm_eps": 1e-06}
    config |= {"model_type": "siglip_vision_model", "num_channels": 3, "patch_size": 14, "torch_dtype": "float16"}
    write_json(folder, "config.json", config)
    tensors = _random(_tower_shapes(TOWER_SIZES["num_hidden_layers"] - 1, clip=False), 4)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


ARCADE_SPECIAL = 32  # tokens after the ranks, which the published code names


def original_tiny_llava(folder):
    """TinyLLaVA-2.0B: StableLM 2 in Stability AI's own code, its vocabulary as a list of ranks."""
    ranks = _arcade_ranks(folder)
    rows = ranks + 1 + ARCADE_SPECIAL + 40  # more rows than tokens, as the published 100,352
    config = {
        **_LLAVA_KEYS,
        **ORIGINAL_SIZES,
        "architectures": ["TinyLlavaStablelmForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": ranks + 1,
        "eos_token_id": ranks + 1,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_vision_tower": "bczhou/TinyLLaVA-2.0B-SigLIP",
        "model_type": "tiny_llava_stablelm",
        "norm_eps": 1e-05,
        "num_key_value_heads": ORIGINAL_SIZES["num_attention_heads"],
        "pad_token": "<|endoftext|>",
        "pad_token_id": ranks + 1,
        "rope_pct": 0.25,
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 3072,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float16",
        "use_qkv_bias": True,
        "vocab_size": rows,
    }
    write_json(folder, "config.json", config)
    options = {"auto_map": {"AutoTokenizer": ["tokenization_arcade100k.Arcade100kTokenizer", None]}}
    options |= {"clean_up_tokenization_spaces": False, "errors": "replace", "model_max_length": 3072}
    options |= {"padding_side": "right", "tokenizer_class": "Arcade100kTokenizer"}
    write_json(folder, "tokenizer_config.json", options)
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    write_json(folder, "special_tokens_map.json", end)
    tensors = _random(_decoder_shapes(rows, norm_bias=True, qkv_bias=True) | _projector_shapes(), 5)
    names = sorted(tensors)
    weight_map = {}
    for i in range(2):
        part, file = {name: tensors[name] for name in names[i::2]}, f"model-{i + 1:05}-of-00002.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    write_json(folder, "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _arcade_ranks(folder):
    """arcade100k.tiktoken: a token in base64 and its rank, per line; returns the number of ranks."""
    trained = json.loads(byte_level([], []).tokenizer.to_str())["model"]
    to_byte = {char: byte for byte, char in bytes_to_unicode().items()}
    # single bytes first, then in the order of the merges
    tokens = [[char] for char in to_byte] + [list("".join(merge)) for merge in trained["merges"]]
    encoded = [base64.b64encode(bytes(to_byte[char] for char in token)).decode() for token in tokens]
    encoded = list(dict.fromkeys(encoded))
    (folder / "arcade100k.tiktoken").write_text("".join(f"{token} {i}\n" for i, token in enumerate(encoded)))
    return len(encoded)


def original_llava(folder):
    """LLaVA-1.5 as its authors published it."""
    size = _vicuna_tokenizer(folder)
    keys = {**_LLAVA_KEYS, **_llama_keys(size), "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    keys |= {"architectures": ["LlavaLlamaForCausalLM"], "mm_resampler_type": None, "model_type": "llava"}
    keys |= {"freeze_mm_vision_resampler": False, "unfreeze_mm_vision_tower": False, "max_length": 4096}
    write_json(folder, "config.json", keys)
    tensors = _random(_decoder_shapes(size, norm_bias=False, qkv_bias=False) | _projector_shapes(), 6)
    buffers = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(ORIGINAL_SIZES["num_hidden_layers"])]
    _save_bins(folder, tensors | {name: torch.ones(4) for name in buffers})


ORIGINALS_READ = "2026-11-26"
_COINCIDE = "G-JWLee/COINCIDE_code (629f7760, 2024-11-04)"
_LLAVA = "haotian-liu/LLaVA (c121f043, 2024-05-12)"

ORIGINALS: dict[str, Replica] = {
    replica.name: replica
    for replica in (
        Replica(
            "bczhou/TinyLLaVA-2.0B",
            "llava",
            original_tiny_llava,
            (
                f"{_COINCIDE}: tinyllava/model/builder.py, language_model/llava_stablelm.py, stablelm/ (keys of "
                "config.json, names of tensors, tokenizer)",
                "TinyLLaVA/TinyLLaVA_Factory: its conversion of this checkpoint (keys that it reads, mm_vision_tower, "
                "safetensors with or without an index)",
            ),
            "the values of config.json are StableLM-2-1.6B's; whether the weights are one file or several",
        ),
        Replica(
            "bczhou/TinyLLaVA-2.0B-SigLIP",
            "llava",
            original_siglip,
            (f"{_COINCIDE}: siglip_encoder.py (its config; it deletes the last layer when it builds the tower)",),
            "that the saved tower lacks its last layer follows from that code; config.json",
        ),
        Replica(
            "liuhaotian/llava-v1.5-7b",
            "llava",
            original_llava,
            (f"{_LLAVA}: llava_arch.py, multimodal_projector/builder.py, train.py (keys of config.json)",),
            "the names of the decoder's tensors are those of LlamaForCausalLM in transformers",
        ),
        Replica(
            "lmsys/vicuna-7b-v1.5",
            "llava",
            original_vicuna,
            ("LlamaForCausalLM and LlamaTokenizer of transformers 4.31",),
            "tokenizer_config.json",
        ),
        Replica(
            "openai/clip-vit-large-patch14-336",
            "llava",
            original_clip,
            ("transformers: src/transformers/models/clip (names of tensors, the sections of config.json)",),
            "preprocessor_config.json follows CLIPFeatureExtractor of 2022",
        ),
        Replica(
            "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5",
            "llava",
            original_projector,
            (f"{_LLAVA}: llava_arch.py (initialize_vision_modules), llava_trainer.py (saves mm_projector.bin)",),
            "config.json",
        ),
    )
}


def build_originals(folder):
    """Write the replicas in LLaVA's original format: dict of name on the hub -> folder."""
    folders = {}
    for name, replica in ORIGINALS.items():
        folders[name] = folder / name.replace("/", "--")
        folders[name].mkdir(parents=True)
        replica.write(folders[name])
    return folders
