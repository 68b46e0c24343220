"""VisNec (Dong et al. 2026): the samples whose answers need their images most, in each cluster of questions.

The visual necessity of a sample is the loss of its answers without its images minus the loss with them, under the
reference model. Samples without an image have none. The same fraction of them is kept, drawn at random.
"""

from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from coincide.selection.ranking import highest_of_groups

if TYPE_CHECKING:
    from coincide.methods._inputs import MethodInputs

NEEDS = ("sample_metrics", "loss_no_image")


def pick(
    inputs: "MethodInputs", count: int, *, seed: int, k: Annotated[int, Field(ge=1)] = 20
) -> tuple[NDArray, NDArray]:
    """Keep the same fraction of each of k clusters of the question's embedding, the highest necessity first."""
    from coincide.clustering.kmeans import spherical_kmeans

    necessity = inputs.sample_metrics["visual_necessity"].to_numpy(np.float64)
    with_image = np.flatnonzero(~np.isnan(necessity))
    labels = np.full(len(necessity), -1)  # the text-only samples
    if len(with_image):
        questions = np.asarray(inputs.embedding("question"))[with_image]
        labels[with_image] = spherical_kmeans(questions, min(k, len(with_image)), seed=seed).labels
    draws = np.random.default_rng(seed).random(len(necessity))
    return highest_of_groups(np.where(labels < 0, draws, necessity), labels, count), necessity
