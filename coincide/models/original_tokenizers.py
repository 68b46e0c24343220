"""Tokenizers of checkpoints of 2023 and 2024, from files that transformers does not load by itself.

LLaVA-1.5 and Vicuna ship a SentencePiece model alone, StableLM 2 a list of ranks with code that reads it.
"""

import base64
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import transformers
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.tokenization_utils_base import generate_merges
from transformers.utils import CHAT_TEMPLATE_FILE

from coincide.base.sections import ModelSource
from coincide.models.sources import SourceError, find_file

# tokens of Stability AI's arcade100k vocabulary that follow the ranks of its file, and its split of words
# (tokenization_arcade100k.py); one id between the two has no token
ARCADE_TOKENS = (
    "<|endoftext|>",
    *(f"<|fim_{name}|>" for name in ("prefix", "middle", "suffix", "pad")),
    *("<gh_stars>", "<filename>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>"),
    *("<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>", "<commit_before>", "<commit_msg>"),
    *("<commit_after>", "<reponame>", "<|endofprompt|>", "<|im_start|>", "<|im_end|>", "<|pause|>"),
    *(f"<|reg{i}|>" for i in range(8)),
    "<|extra0|>",
)
UNUSED_TOKEN = "<|unused|>"
ARCADE_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ARCADE_FILE = "arcade100k.tiktoken"
SAMPLE = "A chat between a user and an assistant. USER: Is 2 + 2 = 4?\nASSISTANT: Yes, it is."
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    ARCADE_FILE,
    CHAT_TEMPLATE_FILE,
)
# files that are not a tokenizer by themselves
SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", CHAT_TEMPLATE_FILE)


def load_tokenizer(source: ModelSource, text_config: Any) -> Any:
    """The tokenizer of a source, without running code that it ships.

    Args:
        source: of the decoder.
        text_config: config of the decoder.

    Raises:
        SourceError: it has no tokenizer.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in TOKENIZER_FILES:
            if path := find_file(source, name, required=False):
                shutil.copyfile(path, folder / name)
        if not any(path.name not in SETTINGS_FILES for path in folder.iterdir()):
            raise SourceError(f"{source.name} has no tokenizer, such as tokenizer.json or tokenizer.model; add it")
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text()) if path.exists() else {}
        settings.pop("auto_map", None)
        if not (folder / "tokenizer.json").exists() and (folder / ARCADE_FILE).exists():
            return _arcade_tokenizer(folder / ARCADE_FILE, settings)
        if not (folder / "tokenizer.json").exists() and (folder / "tokenizer.model").exists():
            tokenizer = _sentencepiece_tokenizer(source.name, folder, settings)
            tokenizer.chat_template = _chat_template(folder, settings)
            return tokenizer
        if (folder / "tokenizer.json").exists() and not hasattr(transformers, settings.get("tokenizer_class", "")):
            settings["tokenizer_class"] = PreTrainedTokenizerFast.__name__
        path.write_text(json.dumps(settings))
        return AutoTokenizer.from_pretrained(folder, config=text_config)


def _chat_template(folder, settings):
    """The chat template in a file of its own or in tokenizer_config.json; None if there is none."""
    path = folder / CHAT_TEMPLATE_FILE
    if path.exists():
        return path.read_text()
    template = settings.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return template


def _sentencepiece_tokenizer(name, folder, settings):
    """Llama's tokenizer from tokenizer.model alone, which transformers reads only with a matching protobuf."""
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocab = {pieces.id_to_piece(i): i for i in range(len(pieces))}
    path = folder / "special_tokens_map.json"
    special = json.loads(path.read_text()) if path.exists() else {}
    settings = special | {key: value for key, value in settings.items() if value is not None}
    tokens = {
        key: value for key, value in settings.items() if key in ("bos_token", "eos_token", "unk_token", "pad_token")
    }
    tokenizer = LlamaTokenizer(
        vocab=vocab,
        merges=generate_merges(vocab),
        add_bos_token=settings.get("add_bos_token", True),
        add_eos_token=settings.get("add_eos_token", False),
        legacy=settings.get("legacy", True),
        model_max_length=settings.get("model_max_length", int(1e30)),
        padding_side=settings.get("padding_side", "right"),
        **{key: token["content"] if isinstance(token, dict) else token for key, token in tokens.items()},
    )
    if tokenizer(SAMPLE, add_special_tokens=False)["input_ids"] != pieces.encode(SAMPLE):
        raise SourceError(f"{name}: tokenizer.model is not of Llama's kind; add a tokenizer.json")
    path = folder / "added_tokens.json"
    added = json.loads(path.read_text()) if path.exists() else {}
    tokenizer.add_tokens(sorted(added, key=added.__getitem__), special_tokens=True)
    return tokenizer


class _ArcadeConverter(TikTokenConverter):
    """Reads ranks without the package tiktoken."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url):
        lines = [line.split() for line in Path(tiktoken_url).read_bytes().splitlines() if line]
        return {base64.b64decode(token): int(rank) for token, rank in lines}


def _arcade_tokenizer(path, settings):
    """StableLM 2's first tokenizer, which was published as code and a list of ranks."""
    vocab, merges = _ArcadeConverter().extract_vocab_merges_from_model(path)
    for token in (UNUSED_TOKEN, *ARCADE_TOKENS):
        vocab[token] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(ARCADE_SPLIT), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ARCADE_TOKENS])
    end = ARCADE_TOKENS[0]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        pad_token=end,
        clean_up_tokenization_spaces=False,
        model_max_length=settings.get("model_max_length", int(1e30)),
        padding_side=settings.get("padding_side", "right"),
    )
