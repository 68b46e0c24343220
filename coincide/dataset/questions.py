"""Texts of questions, normalised so that the same question is found again in another spelling."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from coincide.dataset.conversation import IMAGE_MARK

# not the point or comma of a number, and no sign of arithmetic
PUNCTUATION = re.compile(r"(?<!\d)[.,]|[.,](?!\d)|[?!;:\"'“”‘’…()\[\]{}]")


def normalise(text: str) -> str:
    """A text without case, punctuation and marks of images, with single spaces.

    >>> normalise("<image>\\nWhat  is 2.5 + 1?")
    'what is 2.5 + 1'
    """
    text = unicodedata.normalize("NFKC", text.replace(IMAGE_MARK, " ")).casefold()
    return " ".join(PUNCTUATION.sub(" ", text).split())


def forms(text: str) -> list[str]:
    """The normalised text, and that of the text without its last line, which may be an instruction on the answer.

    >>> forms("What is it?\\nAnswer with one word.")
    ['what is it answer with one word', 'what is it']
    """
    lines = text.replace(IMAGE_MARK, " ").strip().split("\n")
    return [form for form in dict.fromkeys(map(normalise, ("\n".join(lines), "\n".join(lines[:-1])))) if form]


def questions(record: dict[str, Any]) -> list[str]:
    """The questions of a LLaVA record, in order."""
    return [turn["value"] for turn in record["conversations"] if turn["from"] == "human"]


def text_digest(texts: Iterable[str]) -> bytes:
    """16 bytes that stand for normalised texts."""
    return hashlib.blake2b("\0".join(map(normalise, texts)).encode("utf-8", "surrogatepass"), digest_size=16).digest()
