"""Samples that are held out of every coreset, to ask questions about them in evaluation."""

import hashlib

import pandas as pd

from coincide.dataset.shard_assignment import reassign_shards

DIGEST_BYTES = 8


def hold_out(manifest: pd.DataFrame, share: float, shards: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Divide the usable samples into those to select from and those that are held out.

    A sample is held out if the SHA-256 of its first image's name, or of its id if it has no image, is among the lowest
    `share` of all digests. So samples of one image are never divided, in any source; a source gives its share up to
    chance; and a larger share holds out the same samples and more.

    Args:
        manifest: table of the usable samples, with the columns of MANIFEST_COLUMNS.
        share: share of the samples to hold out, in [0, 1).
        shards: number of shards of the rest.

    Returns:
        (manifest of the rest with shards assigned anew, held-out rows in the order of the dataset).
    """
    keys = manifest["image"].where(manifest["n_images"] > 0, manifest["sample_id"])
    is_held_out = (keys.map(_position) < share).to_numpy(bool)
    if not is_held_out.any():
        return manifest, manifest.iloc[:0]
    held_out = manifest[is_held_out].sort_values("position").reset_index(drop=True)
    return reassign_shards(manifest[~is_held_out], shards), held_out


def _position(key):
    """Where the digest of a text lies among all digests, in [0, 1)."""
    digest = hashlib.sha256(key.encode()).digest()[:DIGEST_BYTES]
    return int.from_bytes(digest, "big") / 2 ** (8 * DIGEST_BYTES)
