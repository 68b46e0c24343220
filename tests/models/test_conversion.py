"""Conversion of models in LLaVA's original format: the same logits, tokens and pixels as the parts give by themselves.

The forward pass, the tokens and the preprocessing of the original are written out here, from the weights and files of
the replicas, without transformers' models, tokenizers and image processors.
"""

import base64
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiktoken
import torch
import torch.nn.functional as F
from conftest import REPO
from PIL import Image
from replicas import ARCADE_SPECIAL, ORIGINAL_SIZES, TOWER_SIZES, build_originals
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from coincide.base.sections import ConvertedModel
from coincide.models.chat import encode, render
from coincide.models.conversion import check_weights, convert, describe
from coincide.models.loading import load_model, load_processor
from coincide.models.original_tokenizers import ARCADE_SPLIT
from coincide.models.sources import SourceError
from coincide.models.weight_files import WeightsError, read_shapes, read_tensors, write_shards

TINY_LLAVA, SIGLIP = "bczhou/TinyLLaVA-2.0B", "bczhou/TinyLLaVA-2.0B-SigLIP"
LLAVA, CLIP = "liuhaotian/llava-v1.5-7b", "openai/clip-vit-large-patch14-336"
VICUNA, PROJECTOR = "lmsys/vicuna-7b-v1.5", "liuhaotian/llava-v1.5-mlp2x-336px-pretrain-vicuna-7b-v1.5"
SOURCES = {
    "tinyllava": {"checkpoint": TINY_LLAVA, "vision_tower": SIGLIP},
    "llava": {"checkpoint": LLAVA, "vision_tower": CLIP},
    "assembled": {"language_model": VICUNA, "projector": PROJECTOR, "vision_tower": CLIP},
}
QUESTION = "What is shown here?"
PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: <image>\n"
    f"{QUESTION} ASSISTANT: thing1END"
)


def section(folders, **sources):
    """The section of a conversion; sources are names of replicas or folders."""
    return ConvertedModel(**{key: {"name": str(folders.get(name, name))} for key, name in sources.items()})


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """dict of name -> folder of the replicas in the original format."""
    return build_originals(tmp_path_factory.mktemp("originals"))


@pytest.fixture(scope="module", params=SOURCES)
def converted(request, originals, tmp_path_factory):
    """(name, folder of the converted model, weights of its parts)."""
    output = tmp_path_factory.mktemp("converted") / "model"
    sources = SOURCES[request.param]
    convert(section(originals, **sources), output)
    weights = {}
    for name in sources.values():
        for path in sorted(originals[name].iterdir()):
            if path.suffix in (".bin", ".safetensors"):
                loaded = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
                weights |= {key: value.float() for key, value in loaded.items()}
    return request.param, output, weights


# --- the original, written out ---------------------------------------------------------------------------------------


def linear(weights, name, x):
    return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def layer_norm(weights, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def rms_norm(weights, name, x, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]


def attention(q, k, v, *, causal):
    """(heads, length, size) each; returns (length, heads · size)."""
    scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


def tower_features(weights, pixels, *, clip):
    """Patches of the vision tower after its last layer but one."""
    x = F.conv2d(
        pixels[None],
        weights["vision_model.embeddings.patch_embedding.weight"],
        weights.get("vision_model.embeddings.patch_embedding.bias"),
        stride=14,
    )[0]
    x = x.flatten(1).T
    if clip:
        x = torch.cat([weights["vision_model.embeddings.class_embedding"][None], x])
    x = x + weights["vision_model.embeddings.position_embedding.weight"]
    eps = 1e-5 if clip else 1e-6
    if clip:
        x = layer_norm(weights, "vision_model.pre_layrnorm", x, eps)
    for i in range(TOWER_SIZES["num_hidden_layers"] - 1):
        layer, heads = f"vision_model.encoder.layers.{i}", TOWER_SIZES["num_attention_heads"]
        y = layer_norm(weights, f"{layer}.layer_norm1", x, eps)
        q, k, v = (
            linear(weights, f"{layer}.self_attn.{name}_proj", y).unflatten(1, (heads, -1)).transpose(0, 1)
            for name in "qkv"
        )
        x = x + linear(weights, f"{layer}.self_attn.out_proj", attention(q, k, v, causal=False))
        y = linear(weights, f"{layer}.mlp.fc1", layer_norm(weights, f"{layer}.layer_norm2", x, eps))
        y = y * torch.sigmoid(1.702 * y) if clip else F.gelu(y, approximate="tanh")
        x = x + linear(weights, f"{layer}.mlp.fc2", y)
    return x[1:] if clip else x


def rotated(x, size):
    """Rotary embeddings on the first `size` numbers of each head; x is (heads, length, head size)."""
    frequencies = 10000.0 ** (-torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(x.shape[1]).float(), frequencies)
    cos, sin = angles.cos(), angles.sin()
    first, second, rest = x[..., : size // 2], x[..., size // 2 : size], x[..., size:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def decoder_logits(weights, x, *, stablelm):
    """Logits of the decoder: LayerNorm, biases and a quarter of the rotary embeddings in StableLM 2."""
    norm, eps = (layer_norm, 1e-5) if stablelm else (rms_norm, 1e-5)
    heads = ORIGINAL_SIZES["num_attention_heads"]
    size = ORIGINAL_SIZES["hidden_size"] // heads
    for i in range(ORIGINAL_SIZES["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        y = norm(weights, f"{layer}.input_layernorm", x, eps)
        q, k, v = (
            linear(weights, f"{layer}.self_attn.{name}_proj", y).unflatten(1, (heads, -1)).transpose(0, 1)
            for name in "qkv"
        )
        q, k = (rotated(part, size // 4 if stablelm else size) for part in (q, k))
        x = x + linear(weights, f"{layer}.self_attn.o_proj", attention(q, k, v, causal=True))
        y = norm(weights, f"{layer}.post_attention_layernorm", x, eps)
        gate = F.silu(linear(weights, f"{layer}.mlp.gate_proj", y))
        x = x + linear(weights, f"{layer}.mlp.down_proj", gate * linear(weights, f"{layer}.mlp.up_proj", y))
    return linear(weights, "lm_head", norm(weights, "model.norm", x, eps))


def original_pixels(image, *, clip):
    """Preprocessing of LLaVA's and TinyLLaVA's code with Pillow: padded to a square with the mean colour, resized."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073] if clip else [0.5] * 3, np.float32)
    std = np.array([0.26862954, 0.26130258, 0.27577711] if clip else [0.5] * 3, np.float32)
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(value * 255) for value in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    values = np.asarray(square.resize((28, 28), Image.Resampling.BICUBIC), np.float32) / 255
    return torch.from_numpy((values - mean) / std).permute(2, 0, 1)


def original_tokens(name, originals, prompt):
    """The tokens of a prompt as LLaVA's code makes them: the texts before and after <image> apart. None: an image."""
    before, after = prompt.split("<image>")
    if name == "tinyllava":
        lines = (originals[TINY_LLAVA] / "arcade100k.tiktoken").read_text().splitlines()
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}
        end = {"<|endoftext|>": len(ranks) + 1}
        encoding = tiktoken.Encoding("arcade100k", pat_str=ARCADE_SPLIT, mergeable_ranks=ranks, special_tokens=end)
        pieces = [encoding.encode(part, allowed_special="all") for part in (before, after)]
        return [*pieces[0], None, *pieces[1]]
    model = SentencePieceProcessor(
        model_file=str(originals[SOURCES[name].get("checkpoint", VICUNA)] / "tokenizer.model")
    )
    assert after.endswith("</s>")
    return [1, *model.encode(before), None, *model.encode(after.removesuffix("</s>")), 2]


# --- the same model --------------------------------------------------------------------------------------------------


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((90, 40), Image.Resampling.BICUBIC)


def test_logits_are_those_of_the_parts(converted, picture):
    name, folder, weights = converted
    clip, stablelm = name != "tinyllava", name == "tinyllava"
    model, processor = load_model(folder, device="cpu")
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "thing1"}]
    inputs, masks, _ = encode(processor, [render(processor, turns)], [[picture]])
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    projected = linear(weights, "model.mm_projector.0", tower_features(weights, inputs["pixel_values"][0], clip=clip))
    projected = linear(weights, "model.mm_projector.2", F.gelu(projected))
    rows = len(weights["model.embed_tokens.weight"])
    tokens = inputs["input_ids"][0].clone()
    visual = torch.from_numpy(masks.visual[0])
    assert int(visual.sum()) == 4
    tokens[visual] = 0
    embeddings = weights["model.embed_tokens.weight"][tokens]
    embeddings[visual] = projected
    expected = decoder_logits(weights, embeddings, stablelm=stablelm)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits[:, :rows], expected, rtol=1e-4, atol=1e-4)
    if stablelm:  # the published embeddings have room for the image token
        assert logits.shape[1] == rows
    else:  # new rows are the mean of the others, which is never the largest
        assert logits.shape[1] == -(-(rows + 1) // 64) * 64
        torch.testing.assert_close(logits[:, rows:], expected.mean(1, keepdim=True).expand(-1, logits.shape[1] - rows),
                                   rtol=1e-3, atol=1e-3)  # fmt: skip


def test_tokens_are_those_of_the_original_code(converted, originals, picture):
    name, folder, _ = converted
    _, processor = load_model(folder, device="cpu")
    end = {"tinyllava": "<|endoftext|>"}.get(name, "</s>")
    expected = original_tokens(name, originals, PROMPT.replace("END", end))
    turns = [{"from": "human", "value": f"<image>\n{QUESTION}"}, {"from": "gpt", "value": "thing1"}]
    inputs, masks, _ = encode(processor, [render(processor, turns)], [[picture]])
    tokens = inputs["input_ids"][0].tolist()
    image = expected.index(None)
    assert tokens[:image] == expected[:image]
    assert tokens[image : image + 4] == [processor.image_token_id] * 4
    assert tokens[image + 4 :] == expected[image + 1 :]
    answer = masks.answer[0].nonzero()[0]
    assert processor.tokenizer.decode(tokens[answer[0] : answer[-1] + 1]).strip() == f"thing1{end}"


def test_images_are_padded_to_a_square_and_resized_as_in_the_original_code(converted, picture):
    name, folder, _ = converted
    _, processor = load_model(folder, device="cpu")
    for image in (picture, picture.transpose(Image.Transpose.ROTATE_90), picture.resize((50, 50))):
        pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"][0]
        expected = original_pixels(image, clip=name != "tinyllava")
        assert (pixels - expected).abs().max() < 2 / 255 / 0.26  # Pillow rounds after each of two passes


def test_weights_keep_their_dtype_and_sources_are_named(converted, originals):
    name, folder, _ = converted
    shard = next(folder.glob("model-*.safetensors"))
    dtypes: dict[str, set] = {"vision": set(), "layers.0.mlp.up": set(), "projector": set()}
    for key, tensor in read_tensors(shard):
        for part, found in dtypes.items():
            if part in key:
                found.add(tensor.dtype)
    vision = torch.float16 if name == "tinyllava" else torch.float32
    projector = torch.bfloat16 if name == "assembled" else torch.float16
    assert dtypes["vision"] == {vision}
    assert dtypes["projector"] == {projector}
    assert dtypes["layers.0.mlp.up"] == {torch.float16}
    note = (folder / "CONVERTED.md").read_text()
    assert all(str(originals[source]) in note for source in SOURCES[name].values())


def test_a_truncated_vision_tower_is_read_before_its_normalisation(originals, tmp_path):
    # transformers gives the last hidden state of SigLIP after post_layernorm; the layer that is read must not be last
    conversion = describe(section(originals, **SOURCES["tinyllava"]))
    assert conversion.config.vision_config.num_hidden_layers == TOWER_SIZES["num_hidden_layers"]
    assert conversion.config.vision_feature_layer == -2
    assert conversion.vision_layers == TOWER_SIZES["num_hidden_layers"] - 1
    names = read_shapes(originals[SIGLIP] / "model.safetensors")
    assert not any(f"layers.{TOWER_SIZES['num_hidden_layers'] - 1}." in name for name in names)


def test_a_tower_inside_the_checkpoint_is_read_if_it_was_trained(originals, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(originals[TINY_LLAVA], folder)
    trained = {f"model.vision_tower.vision_tower.{key}": value + 1 for key, value in
               load_file(originals[SIGLIP] / "model.safetensors").items()}  # fmt: skip
    save_file(trained, folder / "model-00003-of-00003.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(trained, "model-00003-of-00003.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mm_vision_tower": str(originals[SIGLIP])}))
    key = "vision_model.post_layernorm.weight"
    named = load_file(originals[SIGLIP] / "model.safetensors")[key]

    def converted_weight(output):
        convert(section({}, checkpoint=folder), output)
        return load_file(next(output.glob("model-*")))["model.vision_tower.post_layernorm.weight"]

    assert torch.equal(converted_weight(tmp_path / "named"), named)
    (folder / "config.json").write_text(
        json.dumps(config | {"mm_vision_tower": str(originals[SIGLIP]), "unfreeze_mm_vision_tower": True})
    )
    assert torch.equal(converted_weight(tmp_path / "trained"), named + 1)
    # a named tower that has only a config
    without = tmp_path / "tower"
    shutil.copytree(originals[SIGLIP], without, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "config.json").write_text(json.dumps(config | {"mm_vision_tower": str(without)}))
    assert torch.equal(converted_weight(tmp_path / "only"), named + 1)


def test_tied_embeddings_stay_tied(originals, tmp_path):
    folder = changed_config(tmp_path / "language-model", originals[VICUNA], tie_word_embeddings=True)
    for path in folder.glob("*.bin"):
        tensors = torch.load(path, weights_only=True)
        tensors.pop("lm_head.weight", None)
        torch.save(tensors, path)
    convert(section(originals, **{**SOURCES["assembled"], "language_model": folder}), tmp_path / "model")
    model, processor = load_model(tmp_path / "model", device="cpu")
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert len(model.lm_head.weight) > processor.image_token_id


CHAT_ML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<s>system\n' + 'Be brief.' + '</s>\n' }}{% endif %}"
    "{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("kind", ["key", "keys", "file"])
def test_a_language_model_keeps_its_chat_template(originals, tmp_path, kind):
    """It takes the text of a turn; with images, LLaVA's training puts them before the text, each on a line."""
    folder = shutil.copytree(originals[VICUNA], tmp_path / "language-model")
    if kind == "file":
        (folder / "chat_template.jinja").write_text(CHAT_ML)
    else:
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        templates = [{"name": "rag", "template": "{{ documents }}"}, {"name": "default", "template": CHAT_ML}]
        settings["chat_template"] = CHAT_ML if kind == "key" else templates
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(section(originals, **{**SOURCES["assembled"], "language_model": folder}), tmp_path / "model")
    processor = load_processor(tmp_path / "model")
    turns = [{"from": "human", "value": "What is <image> and\n<image>?"}, {"from": "gpt", "value": "a thing"}]
    more = [{"from": "human", "value": "really?"}, {"from": "gpt", "value": "yes"}]
    rendered = render(processor, turns + more)
    assert rendered.text == (
        "<s>system\nBe brief.</s>\n<s>user\n<image> \n<image> \nWhat is and ?</s>\n<s>assistant\na thing</s>\n"
        "<s>user\nreally?</s>\n<s>assistant\nyes</s>\n"
    )
    assert [rendered.text[slice(*span)].strip() for span in rendered.answers] == ["a thing</s>", "yes</s>"]
    system = [{"from": "system", "value": "Be long."}, *turns]
    assert render(processor, system).text.startswith("<s>system\nBe long.</s>\n<s>user\n<image>")


CACHED = """
import sys
from coincide.base.sections import ConvertedModel
from coincide.models.conversion import check_weights, convert, describe
model = ConvertedModel.model_validate({"checkpoint": {"name": "bczhou/TinyLLaVA-2.0B"}})
check_weights(describe(model), download=False)
convert(model, sys.argv[1])
"""


def test_hub_names_are_read_from_the_cache_without_a_connection(originals, tmp_path):
    commits = {name: f"{i}" * 40 for i, name in enumerate((TINY_LLAVA, SIGLIP), 1)}
    for name, commit in commits.items():
        folder = tmp_path / f"hub/models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs/main").write_text(commit)
        shutil.copytree(originals[name], folder / f"snapshots/{commit}")
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPO)}
    output = tmp_path / "model"
    done = subprocess.run(
        [sys.executable, "-c", CACHED, output], env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    note = (output / "CONVERTED.md").read_text()
    assert all(f"{name} (commit {commit})" in note for name, commit in commits.items())
    convert(section(originals, **SOURCES["tinyllava"]), tmp_path / "from-folders")
    expected = load_file(next((tmp_path / "from-folders").glob("model-*")))
    found = load_file(next(output.glob("model-*")))
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_shards_are_written_one_after_the_other(tmp_path):
    tensors = {f"w{i}": torch.full((3, 4), float(i), dtype=torch.float16) for i in range(5)}
    write_shards(iter(tensors.items()), tmp_path, shard_bytes=50)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 120, "total_parameters": 60}
    read = {name: tensor for file in files for name, tensor in read_tensors(tmp_path / file)}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert {name: index["weight_map"][name] for name in tensors} == {
        name: file for file in files for name, _ in read_tensors(tmp_path / file)
    }


# --- what cannot be converted ----------------------------------------------------------------------------------------


class Code:
    """What a file of weights must not be able to do: create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_of_weights_is_refused(originals, tmp_path):
    folder = tmp_path / "projector"
    shutil.copytree(originals[PROJECTOR], folder)
    torch.save({"model.mm_projector.0.weight": Code(tmp_path / "code-was-run")}, folder / "mm_projector.bin")
    with pytest.raises(WeightsError, match="more in it than tensors"):
        convert(section(originals, **{**SOURCES["assembled"], "projector": folder}), tmp_path / "out")
    assert not (tmp_path / "code-was-run").exists()
    assert not (tmp_path / "out").exists()


def changed_config(folder, source, **values):
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear' cannot be converted; available: mlp2x_gelu"),
        ({"image_aspect_ratio": "anyres"}, "divides images into tiles.*llava-hf/llava-v1.6"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"model_type": "tiny_llava_phi"}, "model_type 'tiny_llava_phi'; available: llava, "),
        ({"text_config": {}}, "already in transformers' format"),
        ({"mm_hidden_size": 1152}, r"features of size 1152 \(mm_hidden_size\), but those of the vision tower"),
        ({"mm_vision_select_layer": -5}, "mm_vision_select_layer is -5, but the vision tower has 3 layers"),
        ({"hidden_size": 64}, "the parts do not fit each other: .*but config.json means"),
        ({"num_hidden_layers": 4}, "9 tensors are missing: model.language_model.layers.3."),
        ({"num_hidden_layers": 2}, "tensors that the model does not have: model.language_model.layers.2."),
    ],
)
def test_a_checkpoint_that_cannot_be_converted(originals, tmp_path, values, message):
    folder = changed_config(tmp_path / "checkpoint", originals[LLAVA], **values)
    with pytest.raises(SourceError, match=message):
        check_weights(describe(section(originals, checkpoint=folder, vision_tower=CLIP)))


def test_parts_that_do_not_fit_or_are_not_there(originals, tmp_path):
    vision = changed_config(tmp_path / "vision", originals[CLIP], model_type="dinov2")
    with pytest.raises(SourceError, match="model_type 'dinov2' cannot be converted; available: clip, siglip"):
        describe(section(originals, **{**SOURCES["assembled"], "vision_tower": vision}))
    with pytest.raises(SourceError, match=r"has no config\.json.*set it to a folder with this file"):
        describe(section(originals, checkpoint=tmp_path / "nowhere"))
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(originals[PROJECTOR] / "mm_projector.bin", bare)
    parts = {"language_model": VICUNA, "projector": bare}
    with pytest.raises(SourceError, match=r"projector: config\.json names no vision tower .*set vision_tower"):
        describe(section(originals, **parts))
    check_weights(describe(section(originals, **parts, vision_tower=CLIP)))  # the file alone is enough
    without = tmp_path / "without"
    shutil.copytree(originals[VICUNA], without, ignore=shutil.ignore_patterns("*-00002-of-*"))
    with pytest.raises(SourceError, match=r"pytorch_model-00002-of-00002\.bin"):
        check_weights(describe(section(originals, **{**SOURCES["assembled"], "language_model": without})))
    shutil.copytree(originals[VICUNA], tmp_path / "no-tokenizer", ignore=shutil.ignore_patterns("tokenizer.model"))
    with pytest.raises(SourceError, match="has no tokenizer"):
        describe(section(originals, **{**SOURCES["assembled"], "language_model": tmp_path / "no-tokenizer"}))


def test_a_tokenizer_of_another_kind_is_refused(originals, tmp_path):
    folder = tmp_path / "language-model"
    shutil.copytree(originals[VICUNA], folder, ignore=shutil.ignore_patterns("tokenizer.model"))
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a user asks what this is and an assistant answers it, yes or no? 2 + 2 = 4"] * 20),
        model_prefix=str(folder / "tokenizer"),
        model_type="unigram",
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(SourceError, match=r"tokenizer\.model is not of Llama's kind; add a tokenizer\.json"):
        describe(section(originals, **{**SOURCES["assembled"], "language_model": folder}))


def test_tokens_of_the_published_vocabulary_follow_its_ranks(originals):
    # 100,256 ranks, an id without a token, then 32 tokens from 100,257 on, as in tokenization_arcade100k.py
    tokenizer = describe(section(originals, **SOURCES["tinyllava"])).processor.tokenizer
    ranks = len((originals[TINY_LLAVA] / "arcade100k.tiktoken").read_text().splitlines())
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_start|>", "<|extra0|>", "<image>"])
    assert ids == [ranks + 1, ranks + 21, ranks + ARCADE_SPECIAL, ranks + ARCADE_SPECIAL + 1]
