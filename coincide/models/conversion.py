"""Models in LLaVA's original format, and parts of a LLaVA before instruction tuning, as folders for transformers.

LLaVA's own code (haotian-liu/LLaVA, and TinyLLaVA's, which follows it) saves the decoder's weights at the top, the
projector as `model.mm_projector`, and often names the vision tower instead of saving it: `mm_vision_tower` in
config.json. Before instruction tuning, a LLaVA is a language model, a vision tower and a projector file. Both become a
folder that transformers loads as LlavaForConditionalGeneration, with a processor and a chat template.

Weights are read and written tensor by tensor, in their dtype.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.llava.image_processing_llava import LlavaImageProcessor

from coincide.base.files import replacing
from coincide.base.sections import ConvertedModel, ModelSource
from coincide.dataset.conversation import IMAGE_MARK
from coincide.models.families import FAMILIES, TEXT_TURNS
from coincide.models.original_tokenizers import load_tokenizer
from coincide.models.sources import SourceError, find_file
from coincide.models.weight_files import read_shapes, read_tensors, weight_names, write_shards

log = logging.getLogger(__name__)

# model_type in LLaVA's original format -> model_type of the decoder in transformers
DECODERS = {
    "llava": "llama",  # before 2024
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "tiny_llava": "llama",
    "tiny_llava_stablelm": "stablelm",
}
# Stability AI's own code for StableLM 2, on which TinyLLaVA builds: its names and defaults of what transformers calls
# otherwise (configuration_stablelm_epoch.py)
STABLELM_NAMES = {"rope_pct": "partial_rotary_factor", "norm_eps": "layer_norm_eps"}
STABLELM_DEFAULTS = {"rope_pct": 0.25, "norm_eps": 1e-5, "use_qkv_bias": True}
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # a file, or its index
PAD_TOKEN = "<pad>"  # for a tokenizer without a token for padding, as in the published conversions
WORD = "What"  # after an image
PROJECTOR_FILE = "mm_projector.bin"
ROWS_MULTIPLE = 64  # embeddings are padded to a multiple of it, as in the published conversions
SELECT_LAYER, SELECT_FEATURE = -2, "patch"  # LLaVA's defaults
VISION_TYPES = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}
MEAN_AND_STD = {
    "clip_vision_model": (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "siglip_vision_model": (IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
}
# name of a tensor in any of the sources -> in transformers; the first pattern that matches counts. Others (the text
# tower of a CLIP) are not part of the model.
NAMES = (
    (r"(?:\w+\.)*mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"(?:\w+\.)*mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"(?:model\.vision_tower\.vision_tower\.)?vision_model\.", "model.vision_tower."),
    (r"(?=(embeddings|encoder|pre_layrnorm|post_layernorm)\.)", "model.vision_tower."),  # saved alone
    (r"model\.", "model.language_model."),
    (r"lm_head\.", "lm_head."),
)
# what models of other versions save and these do not have; the head of SigLIP pools, which LLaVA does not use
UNUSED = r"\.(rotary_emb\.inv_freq|position_ids)$|^model\.vision_tower\.head\."
INNER_VISION_TOWER = "model.vision_tower.vision_tower."
EMBEDDINGS = ("model.language_model.embed_tokens.weight", "lm_head.weight")
VISION_LAYER = re.compile(r"model\.vision_tower\.encoder\.layers\.(\d+)\.")
NOTE = "CONVERTED.md"
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Conversion:
    """What a conversion writes, but for the weights.

    Attributes:
        config: of the model.
        processor: of the model.
        sources: part -> where its weights are: checkpoint, or language_model and projector; and vision_tower.
        vision_layers: number of layers of the vision tower that are used.
        own_vision_tower: the vision tower is the one in the checkpoint.
        source_rows: rows of the source's embeddings.
    """

    config: LlavaConfig
    processor: LlavaProcessor
    sources: Mapping[str, ModelSource]
    vision_layers: int
    own_vision_tower: bool
    source_rows: int


# --- config, tokenizer and processor ---------------------------------------------------------------------------------


def describe(model: ConvertedModel) -> Conversion:
    """Everything of a converted model but its weights, from the small files of its sources.

    Args:
        model: section of the config.

    Raises:
        SourceError: a source is missing, is in another format, or does not fit the others.
    """
    if model.checkpoint:
        key, decoder = "checkpoint", model.checkpoint
        llava = _read_config(decoder)
        text_config = _decoder_config(llava, decoder)
        aspect_ratio = llava.get("image_aspect_ratio") or "square"
    else:
        assert model.language_model is not None
        assert model.projector is not None  # checked in the section
        key, decoder = "language_model", model.language_model
        llava = _read_config(model.projector, required=False)
        text_config = _language_model_config(decoder)
        aspect_ratio = "pad"
    described_in = "checkpoint" if model.checkpoint else "projector"  # whose config.json has LLaVA's keys
    _check_settings(llava, described_in)
    sources = {key: decoder}
    if model.projector:
        sources["projector"] = model.projector
    sources["vision_tower"] = model.vision_tower or _named_vision_tower(llava, described_in)
    vision_config = _vision_config(sources["vision_tower"])
    expected = llava.get("mm_hidden_size", vision_config.hidden_size)
    if expected != vision_config.hidden_size:
        raise SourceError(
            f"the projector was made for features of size {expected} (mm_hidden_size), but those of the vision tower "
            f"{sources['vision_tower'].name} have {vision_config.hidden_size}; name the vision tower that it was made "
            "for in vision_tower"
        )
    tokenizer = load_tokenizer(decoder, text_config)
    source_rows = text_config.vocab_size
    _add_tokens(tokenizer, text_config)
    strategy = _strategy(llava, vision_config)
    own_template = None if model.checkpoint else _pop_template(tokenizer)
    config = LlavaConfig(
        vision_config=vision_config.to_dict(),
        text_config=text_config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_MARK),
        vision_feature_layer=llava.get("mm_vision_select_layer", SELECT_LAYER),
        vision_feature_select_strategy=strategy,
        image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2,
        tie_word_embeddings=text_config.tie_word_embeddings,
        architectures=[LlavaForConditionalGeneration.__name__],
        dtype=text_config.dtype,
    )
    processor = LlavaProcessor(
        image_processor=_image_processor(
            sources["vision_tower"], vision_config, pad=(model.image_aspect_ratio or aspect_ratio) == "pad"
        ),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=CLASS_TOKENS[vision_config.model_type],
        image_token=IMAGE_MARK,
        chat_template=_chat_template(tokenizer, own_template or FAMILIES["llava"].template_for(config)),
    )
    return Conversion(
        config,
        processor,
        sources,
        vision_layers=_used_vision_layers(config),
        own_vision_tower=bool(llava.get("unfreeze_mm_vision_tower")) and model.vision_tower is None,
        source_rows=source_rows,
    )


def write_description(conversion: Conversion, folder: str | Path) -> None:
    """Write config, processor and generation config: a model folder without weights.

    Args:
        conversion: from `describe`.
        folder: is created.
    """
    conversion.config.save_pretrained(folder)
    conversion.processor.save_pretrained(folder)
    tokenizer = conversion.processor.tokenizer
    GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(folder)


def _read_config(source, *, required=True):
    path = find_file(source, "config.json", required=required)
    try:
        return json.loads(path.read_text()) if path else {}
    except ValueError as error:
        raise SourceError(f"{path} is not JSON ({error}); download it again") from None


def _decoder_config(llava, source):
    """Config of the decoder of a checkpoint in LLaVA's original format."""
    kind = llava.get("model_type")
    if "text_config" in llava:
        raise SourceError(f"{source.name} is already in transformers' format (model_type {kind}); name it directly")
    if kind not in DECODERS or "mm_projector_type" not in llava:
        raise SourceError(
            f"{source.name} is not a LLaVA of a kind that can be converted: model_type {kind!r}; available: "
            f"{', '.join(DECODERS)}, with mm_projector_type in config.json"
        )
    if DECODERS[kind] == "stablelm":
        llava = {STABLELM_NAMES.get(name, name): value for name, value in (STABLELM_DEFAULTS | llava).items()}
    return _make_config(DECODERS[kind], llava)


def _make_config(kind, values):
    """A config of transformers from the keys that its class has; LLaVA's own keys are left out."""
    known = {*AutoConfig.for_model(kind).to_dict(), "rope_theta", "rope_scaling", "partial_rotary_factor"}
    known -= {"architectures", "model_type", "transformers_version", "torch_dtype", "dtype", "_name_or_path"}
    dtype = values.get("dtype") or values.get("torch_dtype")
    return AutoConfig.for_model(kind, **{name: values[name] for name in known & set(values)}, dtype=dtype)


def _language_model_config(source):
    values = _read_config(source)
    kind = values.get("model_type", "")
    try:
        return _make_config(kind, values)
    except ValueError:
        raise SourceError(
            f"{source.name} is not a language model that transformers has: model_type {kind!r}; set language_model to "
            "one, such as lmsys/vicuna-7b-v1.5"
        ) from None


def _check_settings(llava, key):
    """Refuse what LlavaForConditionalGeneration does not have."""
    projector = llava.get("mm_projector_type", "mlp2x_gelu")
    if projector != "mlp2x_gelu":
        raise SourceError(f"{key}: mm_projector_type {projector!r} cannot be converted; available: mlp2x_gelu")
    if llava.get("mm_use_im_start_end"):
        raise SourceError(f"{key}: mm_use_im_start_end, with tokens around images, cannot be converted")
    if llava.get("image_aspect_ratio", "pad") not in ("pad", "square", None):
        raise SourceError(
            f"{key}: image_aspect_ratio {llava['image_aspect_ratio']!r} divides images into tiles, as LLaVA-NeXT does; "
            "use a checkpoint that is published in transformers' format, such as llava-hf/llava-v1.6-vicuna-7b-hf"
        )


def _named_vision_tower(llava, key):
    name = llava.get("mm_vision_tower") or llava.get("vision_tower")
    if not name:
        raise SourceError(f"{key}: config.json names no vision tower (mm_vision_tower); set vision_tower")
    return ModelSource(name=name)


def _vision_config(source):
    values = _read_config(source)
    kind = values.get("model_type")
    if kind in VISION_TYPES:
        kind, values = VISION_TYPES[kind], values.get("vision_config", {})
    if kind not in CLASS_TOKENS:
        raise SourceError(
            f"vision tower {source.name}: model_type {kind!r} cannot be converted; available: "
            f"{', '.join([*VISION_TYPES, *CLASS_TOKENS])}"
        )
    config = _make_config(kind, values)
    if kind == "siglip_vision_model":
        config.vision_use_head = False  # it pools; LLaVA reads the patches
    return config


def _strategy(llava, vision_config):
    """Whether the class token is left out: transformers' name for LLaVA's mm_vision_select_feature."""
    if llava.get("mm_vision_select_feature", SELECT_FEATURE) == "cls_patch":
        return "full"
    return "default" if CLASS_TOKENS[vision_config.model_type] else "full"


def _used_vision_layers(config):
    layers, selected = config.vision_config.num_hidden_layers, config.vision_feature_layer
    used = selected if selected >= 0 else layers + 1 + selected  # the first hidden state is that of the embeddings
    if not 0 <= used <= layers:
        raise SourceError(f"mm_vision_select_layer is {selected}, but the vision tower has {layers} layers")
    return used


def _image_processor(source, vision_config, *, pad):
    """LLaVA's image processor; with `pad`, images are padded to a square with the mean colour."""
    path = find_file(source, "preprocessor_config.json", required=False)
    settings = json.loads(path.read_text()) if path else {}
    mean, std = MEAN_AND_STD[vision_config.model_type]
    size = vision_config.image_size
    square = {"height": size, "width": size}
    cropped = vision_config.model_type == "clip_vision_model"  # SigLIP resizes both sides
    return LlavaImageProcessor(
        do_pad=pad,
        size={"shortest_edge": size} if cropped else square,
        crop_size=square,
        do_center_crop=cropped,
        image_mean=settings.get("image_mean", mean),
        image_std=settings.get("image_std", std),
    )


def _pop_template(tokenizer):
    """The chat template of a language model for turns with images; None if it has none.

    Instruction tuning continues in the format that a chat model was trained on, as LLaVA's own code does: it has a
    format per language model. From then on it is the processor's template; the tokenizer's would not take images.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several, of which one is for conversations
        template = template.get("default")
    tokenizer.chat_template = None
    return TEXT_TURNS + template if template else None


def _chat_template(tokenizer, template):
    """A template that gives the tokens that LLaVA's own code gives.

    That code tokenises the text after an image as a text of its own, before which Llama's tokenizer puts a space.
    """

    def tokens(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    if tokens(f"{IMAGE_MARK}\n{WORD}")[1:] != tokens(f"\n{WORD}") == tokens(f"{IMAGE_MARK} \n{WORD}")[1:]:
        return template.replace(f"{IMAGE_MARK}\\n", f"{IMAGE_MARK} \\n")
    return template


def _add_tokens(tokenizer, text_config):
    """Add the image token, and one for padding if there is none; embeddings get rows for them if they have none."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_MARK]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        text_config.pad_token_id = tokenizer.pad_token_id
    rows = max(tokenizer.get_vocab().values()) + 1
    if rows > text_config.vocab_size:
        text_config.vocab_size = -(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE


# --- weights ---------------------------------------------------------------------------------------------------------


def check_weights(conversion: Conversion, *, download: bool = True) -> None:
    """Check that the sources have every tensor of the model, in its shape. Only headers are read.

    Args:
        conversion: from `describe`.
        download: download weights that are not there; otherwise only parts that are on this machine are checked.

    Raises:
        SourceError: with the tensors that are missing or have another shape.
        WeightsError: a file cannot be read.
    """
    files = _weight_files(conversion, download=download)
    shapes: dict[str, tuple[int, ...]] = {}
    for paths in files.values():
        for path in paths:
            shapes |= dict(_renamed(read_shapes(path).items(), files))
    expected = _expected_shapes(conversion)
    _check_shapes(conversion, shapes, expected)
    missing = [name for name in expected if name not in shapes and not _may_be_missing(conversion, name)]
    if missing and all(files.values()):
        raise SourceError(f"{_names(conversion)}: {len(missing)} tensors are missing: {_some(missing)}")


def convert(model: ConvertedModel, output: str | Path) -> None:
    """Convert a model.

    Args:
        model: section of the config.
        output: folder to write: weights, config, processor, and CONVERTED.md, which names the sources.

    Raises:
        SourceError, WeightsError: a source is missing, or does not fit the others; nothing is written.
    """
    conversion = describe(model)
    check_weights(conversion)
    with replacing(output) as folder:
        write_description(conversion, folder)
        write_shards(_converted_tensors(conversion), folder)
        (folder / NOTE).write_text(_note(conversion))


def _weight_files(conversion: Conversion, *, download: bool = True) -> dict[str, list[Path]]:
    """Files of the weights of each part; none of a part that is not on this machine and shall not be downloaded.

    A checkpoint may have a copy of the vision tower in it. LLaVA's own code reads it only if the vision tower was
    trained (unfreeze_mm_vision_tower); it is also read if the named vision tower has no weights.
    """
    files = {}
    for part, source in conversion.sources.items():
        if part == "projector":
            path = find_file(source, PROJECTOR_FILE)  # small, so it is downloaded in any case
            assert path is not None  # it is required
            files[part] = [path]
        elif part != "vision_tower" or not conversion.own_vision_tower:
            files[part] = _files_of(source, download=download)
    if not files.get("vision_tower", True) and _has_vision_tower(files.get("checkpoint", [])):
        del files["vision_tower"]
    for part, paths in files.items():
        source = conversion.sources[part]
        if not paths and (download or Path(source.name).is_dir()):
            raise SourceError(f"{part}: {source.name} has no weights ({', '.join(WEIGHTS)}, or an index); add them")
    return files


def _files_of(source, *, download):
    """Files of the weights of a folder or hub name; none if there are none, or not all are on this machine."""
    for name in WEIGHTS:
        if index := find_file(source, f"{name}.index.json", required=False, download=download):
            shards = sorted(set(weight_names(index).values()))
            paths = [find_file(source, shard, required=download, download=download) for shard in shards]
            return [] if None in paths else paths
        if path := find_file(source, name, required=False, download=download):
            return [path]
    return []


def _has_vision_tower(paths):
    names = [name for path in paths for name in read_shapes(path)]
    return any(name.startswith(INNER_VISION_TOWER) for name in names)


def _renamed(tensors, files):
    """Yield (name in transformers, value); what the model does not have is left out."""
    for name, value in tensors:
        if name.startswith(INNER_VISION_TOWER) and "vision_tower" in files:
            continue
        for pattern, replacement in NAMES:
            if match := re.match(pattern, name):
                new = replacement + name[match.end() :]
                if not re.search(UNUSED, new):
                    yield new, value
                break


def _expected_shapes(conversion):
    """Shape of every tensor of the model, with the source's number of embeddings."""
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(conversion.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if conversion.config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    rows = {name: (conversion.source_rows, shapes[name][1]) for name in EMBEDDINGS if name in shapes}
    return shapes | rows


def _check_shapes(conversion, shapes, expected):
    ignored = {"lm_head.weight"} - set(expected)
    unknown = [name for name in shapes if name not in expected and name not in ignored]
    if unknown:
        raise SourceError(f"{_names(conversion)}: tensors that the model does not have: {_some(unknown)}")
    wrong = [
        f"{name} is {shape}, but config.json means {expected[name]}"
        for name, shape in shapes.items()
        if name in expected and shape != expected[name]
    ]
    if wrong:
        raise SourceError(
            f"{_names(conversion)}: the parts do not fit each other: {_some(wrong, '; ')}; use parts of one model"
        )


def _may_be_missing(conversion, name):
    """Layers of the vision tower above the one that is read: TinyLLaVA's towers are saved without them."""
    layer = VISION_LAYER.match(name)
    return layer is not None and int(layer[1]) >= conversion.vision_layers


def _converted_tensors(conversion: Conversion) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, tensor) of the converted model."""
    expected = _expected_shapes(conversion)
    written: set[str] = set()
    dtype = None
    files = _weight_files(conversion)
    for part, paths in files.items():
        for path in paths:
            log.info("%s: %s", part, path)
            for name, tensor in _renamed(read_tensors(path), files):
                if name not in expected:
                    continue  # an output layer that is tied to the embeddings
                written.add(name)
                dtype = tensor.dtype
                rows = conversion.config.get_text_config().vocab_size
                yield name, _with_rows(tensor, rows) if name in EMBEDDINGS else tensor
    for name in expected:
        if name not in written:
            # Nothing reads them. They keep the numbers of the layers, so that the last hidden state that transformers
            # gives, which for SigLIP is normalised, is not the one that LLaVA reads.
            yield name, torch.zeros(expected[name], dtype=dtype)


def _with_rows(embeddings, rows):
    """Embeddings with further rows, each the mean of the others: no answer of the model becomes one of them."""
    added = rows - len(embeddings)
    if added <= 0:
        return embeddings
    mean = embeddings.mean(0, keepdim=True, dtype=torch.float32).to(embeddings.dtype)
    return torch.cat([embeddings, mean.expand(added, -1)])


def _names(conversion):
    return ", ".join(dict.fromkeys(source.name for source in conversion.sources.values()))


def _some(names, separator=", "):
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return separator.join(names[:SHOWN]) + more


def _note(conversion):
    lines = ["# Converted model", "", "Written by the rule `converted_model` from:", ""]
    for part, source in conversion.sources.items():
        path = find_file(source, PROJECTOR_FILE if part == "projector" else "config.json")
        commit = "" if path is None or Path(source.name).is_dir() else f" (commit {path.parent.name})"
        lines.append(f"- {part.replace('_', ' ')}: {source.name}{commit}")
    return "\n".join(lines) + "\n"
