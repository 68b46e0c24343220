"""Reading JSON text value by value, so that only one record is in memory at a time.

ijson, the usual library for this, accepts neither NaN nor UTF-16; Python's own decoder accepts both. As in all formats,
NaN and Infinity are read as null: JSON has no such numbers, and other programs cannot read them.
"""

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

CHUNK = 2**20  # characters
LONGEST_TOKEN = 16  # an error this close to the end of the buffer may come from a token that is cut there
WHITESPACE = " \t\n\r"
DECODER = json.JSONDecoder(parse_constant=lambda name: None)


class JsonStreamError(ValueError):
    """Text that is not valid JSON; the message says what is wrong."""


def parse_json(text: str | bytes) -> Any:
    """Parse one JSON value; NaN and Infinity are read as null.

    Args:
        text: the text; bytes are UTF-8, UTF-16 or UTF-32, with or without a byte-order mark.

    Raises:
        JsonStreamError: the text is not valid JSON.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:  # also a number with thousands of digits
        raise JsonStreamError(str(error)) from None


class JsonStream:
    """A cursor over the JSON text of a file.

    Args:
        file: open in binary mode; UTF-8, UTF-16 or UTF-32, with or without a byte-order mark. Invalid bytes of UTF-8
            become lone surrogates, so that `coincide.dataset.record_checks` rejects only the records that have them.
    """

    def __init__(self, file: BinaryIO) -> None:
        encoding = json.detect_encoding(file.read(4))
        file.seek(0)
        errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
        self._file = io.TextIOWrapper(file, encoding=encoding, errors=errors, newline="")
        self._text, self._position, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is not white space, "" at the end; it is not consumed."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in WHITESPACE:
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read(CHUNK):
                return ""

    def skip(self, expected: str) -> None:
        """Consume a character.

        Raises:
            JsonStreamError: another character is next.
        """
        if self.peek() != expected:
            shown = repr(self.peek()) if self.peek() else "the end of the file"
            raise JsonStreamError(f"expected {expected!r}, got {shown}")
        self._position += 1

    def value(self) -> Any:
        """Parse the next value.

        Raises:
            JsonStreamError: it is not valid JSON.
        """
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._position)
            except json.JSONDecodeError as error:
                is_cut = error.pos >= len(self._text) - LONGEST_TOKEN or error.msg.startswith("Unterminated string")
                if self._ended or not is_cut:
                    raise JsonStreamError(error.msg) from None
            except (ValueError, RecursionError) as error:  # a number with thousands of digits, or deep nesting
                raise JsonStreamError(str(error)) from None
            else:
                if end < len(self._text) or self._ended:  # a number at the end of the buffer may continue
                    self._position = end
                    return value
            self._read(size)
            size *= 2  # so that a long value is parsed only a few times

    def list_items(self) -> Iterator[Any]:
        """Yield the values of a list, and consume the list.

        Raises:
            JsonStreamError: it is not a list, or not valid JSON.
        """
        self.skip("[")
        if self.peek() == "]":
            self.skip("]")
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                break
            self.skip(",")
        self.skip("]")

    def object_keys(self) -> Iterator[str]:
        """Yield the keys of an object, and consume the object; the caller consumes the value after each key.

        Raises:
            JsonStreamError: it is not an object, or not valid JSON.
        """
        self.skip("{")
        if self.peek() == "}":
            self.skip("}")
            return
        while True:
            if self.peek() != '"':
                raise JsonStreamError("expected a key in double quotes")
            key = self.value()
            self.skip(":")
            yield key
            if self.peek() == "}":
                break
            self.skip(",")
        self.skip("}")

    def _read(self, size):
        """Add up to `size` characters to the buffer; whether there were any."""
        try:
            chunk = self._file.read(size)
        except UnicodeDecodeError as error:
            raise JsonStreamError(str(error)) from None
        self._ended = not chunk
        self._text = self._text[self._position :] + chunk
        self._position = 0
        return bool(chunk)
