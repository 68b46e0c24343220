"""Rows of a batch: samples that share their images share the tokens up to them.

A decoder reads from left to right, so what stands before a token never depends on what follows. Samples
that begin alike are therefore laid into one row: the common beginning once, then the rest of each,
which sees the beginning and itself. Where the model does not read so, every sample is a row.
"""

from dataclasses import dataclass

import numpy as np
import torch

ROW_TOKENS = 512  # a row of several samples is not longer, unless their shared beginning is
MASKED = -1  # segment of padding; 0 is the shared beginning, 1 to S the rest of each sample


@dataclass(frozen=True)
class Row:
    """One row of a batch.

    Attributes:
        encoded: list of S Encoded.
        shared: tokens at their beginning that stand in the row once; all tokens of a sample alone.
    """

    encoded: list
    shared: int

    def __len__(self):
        return self.shared + sum(len(one.ids) - self.shared for one in self.encoded)

    def values(self, of):
        """(L,) array of what `of` gives for each token of a sample, over the tokens of the row."""
        first, *others = map(of, self.encoded)
        return np.concatenate([first, *(other[self.shared :] for other in others)])

    def segments(self):
        """(L,) array: 0 for the shared tokens, s for those of sample s alone."""
        rests = [len(one.ids) - self.shared for one in self.encoded]
        return np.repeat(np.arange(len(rests) + 1), [self.shared, *rests])

    def before(self):
        """(L,) array: the place of the token that each token follows; the first follows itself."""
        segments = self.segments()
        first = np.diff(segments, prepend=0) > 0
        return np.where(first, self.shared - 1, np.maximum(np.arange(len(segments)) - 1, 0))

    def halves(self):
        """The row in two, for a device that cannot hold it: list of Row."""
        middle = len(self.encoded) // 2
        return [Row(part, self.shared) for part in (self.encoded[:middle], self.encoded[middle:])]


def alone(encoded):
    """A row of one sample."""
    return Row([encoded], len(encoded.ids))


def rows_of(group, *, share):
    """Rows of the samples of a group.

    Args:
        group: list of Encoded with the same images.
        share: whether the model lets samples share a beginning.
    """
    if not share or len(group) < 2 or not group[0].masks.visual.any():
        return [alone(one) for one in group]
    group = sorted(group, key=lambda one: len(one.ids), reverse=True)
    shared = min(common_beginning(group[0].ids, one.ids) for one in group[1:])
    shared = min(shared, len(group[-1].ids) - 1)
    if any(one.masks.visual[shared:].any() for one in group):  # an image stands after words of its own
        return [alone(one) for one in group]
    rows, part, length = [], [], shared
    for one in group:
        rest = len(one.ids) - shared
        if part and length + rest > max(2 * shared, ROW_TOKENS):  # attention grows as the square
            rows.append(Row(part, shared))
            part, length = [], shared
        part.append(one)
        length += rest
    return rows + [Row(part, shared)]


def common_beginning(a, b):
    """Number of tokens that two samples begin with alike."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def batches(rows, batch_tokens):
    """Batches of rows of like length, the longest first, each within a budget of tokens, padding counted.

    Rows of one sample, which may need no attention mask, are not mixed with rows of several.
    """
    rows = sorted(rows, key=lambda row: (len(row.encoded) > 1, len(row)), reverse=True)
    batch = []
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
    """What the model is given, and which tokens are averaged for whom.

    Attributes:
        inputs: dict of tensors for the model.
        visual: (B, L) mask of the visual tokens of each row.
        text: (B, S, L) mask of the text tokens of each sample of a row; of none past the row's samples.
        answer: (B, S, L) mask of the tokens of each sample's answers.
        own: (B, S, L) mask of all tokens of each sample.
        before: (B, L) place of the token that each token follows.
        encoded: list of lists, the samples of each row.
    """

    inputs: dict
    visual: torch.Tensor
    text: torch.Tensor
    answer: torch.Tensor
    own: torch.Tensor
    before: torch.Tensor
    encoded: list


def collate(rows, *, pad, positions, dtype, causal=False):
    """Batch of rows, right-padded.

    Args:
        rows: list of Row.
        pad: padding token.
        positions: function of an Encoded -> (..., L) positions of its tokens; asked where rows are shared.
        dtype: of an attention mask with numbers.
        causal: whether the model is known to read from left to right alone: what is padded on the right
            then needs no mask, and attention without one is faster.
    """
    length = max(map(len, rows))

    def padded(arrays, value=0):
        whole = np.full((len(arrays), length), value, arrays[0].dtype)
        for row, array in zip(whole, arrays):
            row[: len(array)] = array
        return torch.from_numpy(whole)

    inputs = {"input_ids": padded([row.values(lambda one: one.ids) for row in rows], pad)}
    segments = padded([row.segments() for row in rows], MASKED)
    names = {name for row in rows for name in row.encoded[0].beside}
    for name in sorted(names):
        inputs[name] = padded([row.values(lambda one, name=name: _beside(one, name)) for row in rows])
    if all(len(row.encoded) == 1 for row in rows):
        if not causal:
            inputs["attention_mask"] = (segments != MASKED).long()
    else:
        inputs["attention_mask"] = _tree_mask(segments, dtype)
        inputs["position_ids"] = _positions(rows, length, positions)
    inputs |= _images([row.encoded[0].images for row in rows])
    visual = padded([row.values(lambda one: one.masks.visual) for row in rows])
    text = padded([row.values(lambda one: one.masks.text) for row in rows])
    answer = padded([row.values(lambda one: one.masks.answer) for row in rows])
    samples = torch.arange(1, max(len(row.encoded) for row in rows) + 1)
    own = (segments[:, None] == 0) | (segments[:, None] == samples[:, None])
    before = padded([row.before() for row in rows])
    encoded = [row.encoded for row in rows]
    return Batch(inputs, visual, text[:, None] & own, answer[:, None] & own, own, before, encoded)


def _beside(one, name):
    return one.beside.get(name, np.zeros(len(one.ids), np.int64))


def _tree_mask(segments, dtype):
    """(B, 1, L, L) numbers to add to attention scores: a token sees what stands before it in its own sample."""
    order = torch.arange(segments.shape[1])
    before = order[:, None] >= order
    sees = before & ((segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None]))
    sees |= order[:, None] == order  # padding sees itself, or it would be NaN
    return torch.zeros(sees.shape, dtype=dtype).masked_fill(~sees, torch.finfo(dtype).min)[:, None]


def _positions(rows, length, positions):
    """(..., B, L) positions: those of each sample by itself."""
    found = []
    for row in rows:
        own = positions(row.encoded[0])
        # what follows the images counts on from there
        first = own[..., row.shared : row.shared + 1]
        counted = [first + torch.arange(len(one.ids) - row.shared) for one in row.encoded[1:]]
        found.append(torch.cat([own, *counted], dim=-1))
    return torch.stack([torch.nn.functional.pad(own, (0, length - own.shape[-1])) for own in found], dim=-2)


def _images(parts):
    """The image tensors of several rows one after the other; where their sizes differ, padded with zeros."""
    joined = {}
    for name in sorted({name for part in parts for name in part}):
        arrays = [torch.from_numpy(part[name]) for part in parts if name in part]
        if arrays[0].ndim == 0:
            joined[name] = arrays[0]
            continue
        shape = [max(sizes) for sizes in zip(*(a.shape[1:] for a in arrays))]
        padding = [[side for size, own in zip(shape[::-1], a.shape[:0:-1]) for side in (0, size - own)] for a in arrays]
        joined[name] = torch.cat([torch.nn.functional.pad(a, p) for a, p in zip(arrays, padding)])
    return joined
