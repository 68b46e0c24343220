"""Rows of a batch: samples with the same images share the tokens that they have in common.

In a causal decoder, no token depends on later ones. Samples that begin with the same tokens are therefore packed into
one row: the common prefix once, then the rest of each sample, which attends to the prefix and to itself. For a model
that is not causal, each sample is a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from coincide.extraction.encoding import Encoded

ROW_TOKENS = 512  # maximum length of a row of several samples, unless their prefix is longer
PADDING = -1  # segment of padding; 0 is the shared prefix, 1 to S the rest of each sample


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        encoded: its S samples.
        shared: length of their common prefix, which the row holds once; for one sample, all of its tokens.
    """

    encoded: list[Encoded]
    shared: int

    def __len__(self) -> int:
        return self.shared + sum(len(sample.ids) - self.shared for sample in self.encoded)

    def values(self, token_values: Callable[[Encoded], NDArray]) -> NDArray:
        """(L,) array of a value per token, from a function that returns the values of a sample's tokens."""
        first, *others = map(token_values, self.encoded)
        return np.concatenate([first, *(other[self.shared :] for other in others)])

    def segments(self) -> NDArray[np.int64]:
        """(L,) array: 0 for the shared tokens, s for the other tokens of the s-th sample."""
        rests = [len(sample.ids) - self.shared for sample in self.encoded]
        return np.repeat(np.arange(len(rests) + 1), [self.shared, *rests])

    def previous(self) -> NDArray[np.int64]:
        """(L,) array: position of the token before each token in its sample; the first token's is its position."""
        segments = self.segments()
        starts_segment = np.diff(segments, prepend=0) > 0
        return np.where(starts_segment, self.shared - 1, np.maximum(np.arange(len(segments)) - 1, 0))

    def halves(self) -> list[Row]:
        """The row as two rows, for a device that cannot hold it; an empty list for a row of one sample."""
        middle = len(self.encoded) // 2
        if not middle:
            return []
        return [Row(half, self.shared) for half in (self.encoded[:middle], self.encoded[middle:])]


def single_row(encoded: Encoded) -> Row:
    """A row of one sample."""
    return Row([encoded], len(encoded.ids))


def build_rows(group: Sequence[Encoded], *, share: bool) -> list[Row]:
    """Pack the samples of a group into rows.

    Args:
        group: samples with the same images.
        share: whether the model lets samples share a prefix.
    """
    if not share or len(group) < 2 or not group[0].masks.visual.any():
        return [single_row(sample) for sample in group]
    group = sorted(group, key=lambda sample: len(sample.ids), reverse=True)
    shared = min(common_prefix(group[0].ids, sample.ids) for sample in group[1:])
    shared = min(shared, len(group[-1].ids) - 1)
    if any(sample.masks.visual[shared:].any() for sample in group):  # an image follows text that is not shared
        return [single_row(sample) for sample in group]
    rows: list[Row] = []
    packed: list[Encoded] = []
    length = shared
    for sample in group:
        rest = len(sample.ids) - shared
        if packed and length + rest > max(2 * shared, ROW_TOKENS):  # the cost of attention is quadratic
            rows.append(Row(packed, shared))
            packed, length = [], shared
        packed.append(sample)
        length += rest
    return [*rows, Row(packed, shared)]


def common_prefix(a: NDArray, b: NDArray) -> int:
    """Length of the common prefix of two arrays.

    >>> common_prefix(np.array([1, 2, 3]), np.array([1, 2, 4, 5]))
    2
    """
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def batches(rows: Iterable[Row], batch_tokens: int) -> Iterator[list[Row]]:
    """Batches of rows of similar length, the longest first.

    A batch holds at most `batch_tokens` tokens, padding included, or one row. Rows of one sample, which may need no
    attention mask, are not mixed with rows of several.
    """
    rows = sorted(rows, key=lambda row: (len(row.encoded) > 1, len(row)), reverse=True)
    batch: list[Row] = []
    for row in rows:
        mixed = batch and (len(row.encoded) > 1) != (len(batch[0].encoded) > 1)
        if mixed or (batch and (len(batch) + 1) * len(batch[0]) > batch_tokens):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


@dataclass
class Batch:
    """Inputs of the model, and the tokens of each sample. A batch has B rows of up to S samples and L tokens.

    Attributes:
        inputs: dict of tensors for the model.
        visual: (B, L) mask of the visual tokens of each row.
        text: (B, S, L) mask of the text tokens of each sample of a row; empty past the row's last sample.
        answer: (B, S, L) mask of the answer tokens of each sample.
        members: (B, S, L) mask of all tokens of each sample.
        previous: (B, L) position of the token before each token in its sample (see `Row.previous`).
        encoded: the samples of each row.
    """

    inputs: dict[str, torch.Tensor]
    visual: torch.Tensor
    text: torch.Tensor
    answer: torch.Tensor
    members: torch.Tensor
    previous: torch.Tensor
    encoded: list[list[Encoded]]


def collate(
    rows: Sequence[Row],
    *,
    pad: int,
    positions: Callable[[Encoded], torch.Tensor],
    dtype: torch.dtype,
    causal: bool = False,
) -> Batch:
    """Batch of rows, right-padded.

    Args:
        rows: rows that are all of one sample, or all of several.
        pad: padding token.
        positions: function that returns the (..., L) position ids of a sample; called for rows of several samples.
        dtype: of the additive attention mask.
        causal: whether the model is known to be causal. Padding on the right then needs no attention mask, and
            attention without a mask is faster.
    """
    length = max(map(len, rows))

    def padded(arrays, value=0):
        matrix = np.full((len(arrays), length), value, arrays[0].dtype)
        for row, array in zip(matrix, arrays):
            row[: len(array)] = array
        return torch.from_numpy(matrix)

    inputs: dict[str, Any] = {"input_ids": padded([row.values(lambda sample: sample.ids) for row in rows], pad)}
    segments = padded([row.segments() for row in rows], PADDING)
    for name in sorted({name for row in rows for name in row.encoded[0].token_inputs}):
        inputs[name] = padded([row.values(partial(_token_input, name)) for row in rows])
    if any(len(row.encoded) > 1 for row in rows):
        inputs["attention_mask"] = _segment_mask(segments, dtype)
        inputs["position_ids"] = _position_ids(rows, length, positions)
    elif not causal:
        inputs["attention_mask"] = (segments != PADDING).long()
    inputs |= _join_image_inputs([row.encoded[0].image_inputs for row in rows])
    visual = padded([row.values(lambda sample: sample.masks.visual) for row in rows])
    text = padded([row.values(lambda sample: sample.masks.text) for row in rows])
    answer = padded([row.values(lambda sample: sample.masks.answer) for row in rows])
    numbers = torch.arange(1, max(len(row.encoded) for row in rows) + 1)
    members = (segments[:, None] == 0) | (segments[:, None] == numbers[:, None])
    return Batch(
        inputs,
        visual=visual,
        text=text[:, None] & members,
        answer=answer[:, None] & members,
        members=members,
        previous=padded([row.previous() for row in rows]),
        encoded=[row.encoded for row in rows],
    )


def _token_input(name, sample):
    """(L,) values of a per-token input; zeros if the processor returned none for this sample."""
    return sample.token_inputs.get(name, np.zeros(len(sample.ids), np.int64))


def _segment_mask(segments, dtype):
    """(B, 1, L, L) additive attention mask: a token attends to the earlier tokens of its sample and to itself."""
    order = torch.arange(segments.shape[1])
    earlier = order[:, None] >= order
    visible = earlier & ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None]))
    visible |= order[:, None] == order  # also in padding, where attention to nothing would be NaN
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)[:, None]


def _position_ids(rows, length, positions):
    """(..., B, L) position ids: each token's are those in its sample."""
    of_rows = []
    for row in rows:
        first = positions(row.encoded[0])
        # after the shared prefix, and so after the images, positions are consecutive
        start = first[..., row.shared : row.shared + 1]
        others = [start + torch.arange(len(sample.ids) - row.shared) for sample in row.encoded[1:]]
        of_row = torch.cat([first, *others], dim=-1)
        of_rows.append(torch.nn.functional.pad(of_row, (0, length - of_row.shape[-1])))
    return torch.stack(of_rows, dim=-2)


def _join_image_inputs(image_inputs):
    """Concatenate the image inputs of several rows; tensors that differ in size are padded with zeros."""
    joined = {}
    for name in sorted({name for inputs in image_inputs for name in inputs}):
        tensors = [torch.from_numpy(inputs[name]) for inputs in image_inputs if name in inputs]
        if tensors[0].ndim == 0:
            joined[name] = tensors[0]
        else:
            shape = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors))]
            joined[name] = torch.cat([_pad_to(tensor, shape) for tensor in tensors])
    return joined


def _pad_to(tensor, shape):
    """Pad all dimensions but the first with zeros, at their ends, to a shape."""
    missing = [target - size for target, size in zip(shape, tensor.shape[1:])]
    return torch.nn.functional.pad(tensor, [side for count in reversed(missing) for side in (0, count)])
