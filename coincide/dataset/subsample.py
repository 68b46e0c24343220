"""A subsample of a dataset in which every source keeps its share."""

import hashlib

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from coincide.dataset.dataset_format import DatasetError

SALT = "subsample:"  # other digests than those that hold samples out, which would otherwise be drawn together


def subsample(samples: pd.DataFrame, size: int) -> NDArray[np.bool_]:
    """Draw samples, every source in proportion to its size and at least one of each.

    Of a source, the samples with the lowest SHA-256 of their first image's name are drawn, or of their id if they have
    no image. So samples of one image are mostly drawn together, the draw does not depend on the order of the dataset,
    and equal sizes draw equal samples.

    Args:
        samples: table with the columns sample_id, source, image, n_images.
        size: number of samples to draw; all of them if there are fewer.

    Returns:
        (n,) mask of the samples that are drawn.

    Raises:
        DatasetError: there are more sources than samples to draw.
    """
    if len(samples) <= size:
        return np.ones(len(samples), bool)
    sizes = samples["source"].value_counts().sort_index()
    if len(sizes) > size:
        raise DatasetError(
            f"{size} samples cannot have one of each of the {len(sizes)} sources; raise dataset.sample (of the target "
            f"pilot: pilot.samples) to at least {len(sizes)}"
        )
    keys = samples["image"].where(samples["n_images"] > 0, samples["sample_id"])
    digests = keys.map(lambda key: hashlib.sha256((SALT + key).encode("utf-8", "backslashreplace")).hexdigest())
    order = np.argsort(digests.to_numpy(str), kind="stable")
    rank = np.empty(len(samples), np.int64)
    rank[order] = samples["source"].iloc[order].groupby(samples["source"].iloc[order]).cumcount()
    quotas = dict(zip(sizes.index, _quotas(sizes.to_numpy(), size)))
    return rank < samples["source"].map(quotas).to_numpy()


def _quotas(sizes, total):
    """Largest remainders: one sample of each source, and the rest in proportion to what the sources have left."""
    rest, left = sizes - 1, total - len(sizes)
    exact = rest * left / rest.sum()
    quotas = np.floor(exact).astype(np.int64)
    largest = np.argsort(quotas - exact, kind="stable")[: left - quotas.sum()]
    quotas[largest] += 1
    return quotas + 1
