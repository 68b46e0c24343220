"""Small random models of each family that extraction supports, with their processors."""

import torch
import transformers as t
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = (
    "what is this thing number of colours answer really yes no user assistant system You are a helpful one two three"
)
DECODER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
CHAT_ML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for p in m.content %}{% if p.type == 'image' %}IMAGE{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(special, **named):
    """A byte-level tokenizer with special tokens; `named` become attributes such as image_token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+| ?[^\s]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special_tokens = ["<pad>", "<s>", "</s>", *special]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([WORDS, "\n\n\n " + WORDS, "\n\n"], trainer)
    return t.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
        model_max_length=4096,
    )


def clip_vision(image_size, patch_size):
    return t.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=image_size, patch_size=patch_size, projection_dim=16,
    )  # fmt: skip


def siglip_vision(image_size, patch_size):
    return t.SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=image_size, patch_size=patch_size,
    )  # fmt: skip


def token_ids(tokenizer, *tokens):
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


def llava():
    tokenizer = build_tokenizer(["<image>"], image_token="<image>")
    processor = t.LlavaProcessor(
        image_processor=t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template="{{ bos_token }}You are a helpful assistant" + CHAT_ML.replace("IMAGE", "<image>\n"),
    )  # fmt: skip
    config = t.LlavaConfig(
        vision_config=clip_vision(32, 8), text_config=t.LlamaConfig(vocab_size=len(tokenizer), **DECODER),
        image_token_index=tokenizer.image_token_id, vision_feature_layer=-1, image_seq_length=16,
    )  # fmt: skip
    return t.LlavaForConditionalGeneration(config), processor


def llava_next():
    tokenizer = build_tokenizer(["<image>"], image_token="<image>")
    grid = [[32, 64], [64, 32], [64, 64]]
    processor = t.LlavaNextProcessor(
        image_processor=t.LlavaNextImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
        ),
        tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT_ML.replace("IMAGE", "<image>\n"),
    )  # fmt: skip
    config = t.LlavaNextConfig(
        vision_config=clip_vision(32, 8), text_config=t.LlamaConfig(vocab_size=len(tokenizer), **DECODER),
        image_token_index=tokenizer.image_token_id, vision_feature_layer=-1, image_grid_pinpoints=grid,
        image_seq_length=16,
    )  # fmt: skip
    return t.LlavaNextForConditionalGeneration(config), processor


def llava_onevision():
    tokenizer = build_tokenizer(
        ["<image>", "<video>", "<|im_start|>", "<|im_end|>"], image_token="<image>", video_token="<video>"
    )
    grid = [[32, 64], [64, 32], [64, 64]]
    size = {"height": 32, "width": 32}
    processor = t.LlavaOnevisionProcessor(
        image_processor=t.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grid),
        tokenizer=tokenizer, video_processor=t.LlavaOnevisionVideoProcessor(size=size), num_image_tokens=16,
        vision_feature_select_strategy="full", chat_template=CHAT_ML.replace("IMAGE", "<image>\n"),
    )  # fmt: skip
    config = t.LlavaOnevisionConfig(
        vision_config=siglip_vision(32, 8), text_config=t.Qwen2Config(vocab_size=len(tokenizer), **DECODER),
        image_token_index=tokenizer.image_token_id, video_token_index=tokenizer.video_token_id,
        vision_feature_layer=-1, image_grid_pinpoints=grid, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    return t.LlavaOnevisionForConditionalGeneration(config), processor


QWEN = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>", "<|im_end|>"]


def _qwen(kind, vision, text, **more):
    tokenizer = build_tokenizer(QWEN, image_token="<|image_pad|>", video_token="<|video_pad|>")
    start, end, image, video = token_ids(tokenizer, *QWEN[:4])
    patch = vision.pop("patch")
    processor = getattr(t, f"{kind}Processor", None)
    processor = (processor or t.Qwen2VLProcessor)(
        image_processor=t.Qwen2VLImageProcessor(
            patch_size=patch, size={"shortest_edge": 16 * patch * patch, "longest_edge": 64 * patch * patch}
        ),
        tokenizer=tokenizer,
        video_processor=t.Qwen2VLVideoProcessor(patch_size=patch),
        chat_template=CHAT_ML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    config = getattr(t, f"{kind}Config")(
        vision_config=vision, text_config={"vocab_size": len(tokenizer), **DECODER, **text},
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end, **more,
    )  # fmt: skip
    return getattr(t, f"{kind}ForConditionalGeneration")(config), processor


ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def qwen2_vl():
    vision = {
        "depth": 2,
        "embed_dim": 16,
        "hidden_size": 32,
        "num_heads": 2,
        "mlp_ratio": 2,
        "patch_size": 14,
        "patch": 14,
    }
    return _qwen("Qwen2VL", vision, {"rope_parameters": ROPE})


def qwen2_5_vl():
    vision = {
        "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 32,
        "patch_size": 14, "fullatt_block_indexes": [1], "window_size": 56, "patch": 14,
    }  # fmt: skip
    return _qwen("Qwen2_5_VL", vision, {"rope_parameters": ROPE})


def qwen3_vl():
    vision = {
        "depth": 3, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 32,
        "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1], "patch": 16,
    }  # fmt: skip
    return _qwen("Qwen3VL", vision, {"rope_parameters": ROPE | {"mrope_interleaved": True}, "head_dim": 8})


IDEFICS = ["<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
IDEFICS += [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]


def _idefics(kind, tokenizer, **more):
    config = getattr(t, f"{kind}Config")(
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 8,
        },
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": 0, **DECODER},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), scale_factor=2, pad_token_id=0,
    )  # fmt: skip
    processor = getattr(t, f"{kind}Processor")(
        image_processor=getattr(t, f"{kind}ImageProcessor")(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=tokenizer, image_seq_len=4, chat_template=CHAT_ML.replace("IMAGE", "<image>"), **more,
    )  # fmt: skip
    return getattr(t, f"{kind}ForConditionalGeneration")(config), processor


def idefics3():
    return _idefics("Idefics3", build_tokenizer(IDEFICS, image_token="<image>"))


def smolvlm():
    video = t.SmolVLMVideoProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 32})
    return _idefics("SmolVLM", build_tokenizer(IDEFICS, image_token="<image>"), video_processor=video)


def internvl():
    names = ["<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<|im_start|>", "<|im_end|>"]
    tokenizer = build_tokenizer(
        names,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    size = {"height": 32, "width": 32}
    processor = t.InternVLProcessor(
        image_processor=t.GotOcr2ImageProcessor(size=size, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer=tokenizer, video_processor=t.InternVLVideoProcessor(size=size), image_seq_length=4,
        chat_template=CHAT_ML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )  # fmt: skip
    config = t.InternVLConfig(
        vision_config={
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": [32, 32], "patch_size": [8, 8],
        },
        text_config=t.Qwen2Config(vocab_size=len(tokenizer), **DECODER),
        image_token_id=tokenizer.context_image_token_id, image_seq_length=4, downsample_ratio=0.5,
        vision_feature_layer=-1,
    )  # fmt: skip
    return t.InternVLForConditionalGeneration(config), processor


def paligemma():
    locations = [f"<loc{i:04d}>" for i in range(1024)] + [f"<seg{i:03d}>" for i in range(128)]
    tokenizer = build_tokenizer(["<image>", *locations], image_token="<image>")
    images = t.SiglipImageProcessor(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = t.PaliGemmaProcessor(image_processor=images, tokenizer=tokenizer)
    config = t.PaliGemmaConfig(
        vision_config=siglip_vision(32, 8),
        text_config=t.GemmaConfig(vocab_size=len(tokenizer), head_dim=8, **DECODER),
        image_token_index=tokenizer.image_token_id, projection_dim=32, hidden_size=32,
    )  # fmt: skip
    return t.PaliGemmaForConditionalGeneration(config), processor


def gemma3():
    tokenizer = build_tokenizer(
        ["<start_of_image>", "<end_of_image>", "<image_soft_token>", "<|im_start|>", "<|im_end|>"],
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>",
    )  # fmt: skip
    processor = t.Gemma3Processor(
        image_processor=t.Gemma3ImageProcessor(size={"height": 32, "width": 32}),
        tokenizer=tokenizer, image_seq_length=4,
        chat_template="{{ bos_token }}" + CHAT_ML.replace("IMAGE", "<start_of_image>"),
    )  # fmt: skip
    config = t.Gemma3Config(
        vision_config=siglip_vision(32, 8),
        text_config=t.Gemma3TextConfig(vocab_size=len(tokenizer), head_dim=8, sliding_window=16, **DECODER),
        mm_tokens_per_image=4, boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    return t.Gemma3ForConditionalGeneration(config), processor


FAMILIES = {
    f.__name__: f
    for f in (
        llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, idefics3, smolvlm, internvl, paligemma,
        gemma3,
    )
}  # fmt: skip


def build(family, folder):
    """Save a small random model of a family in the form of a hub checkpoint."""
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    with torch.no_grad():  # with the default initialisation, layers this small hardly tell samples apart
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight.shape[-1] ** -0.5)
            elif "class_embedding" in name or "newline" in name:
                weight.normal_()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
