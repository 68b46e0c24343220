"""Difficulty of samples by a scoring network trained along with a model (Self-Filter, Chen et al. 2024).

Stage 1 of the paper, in its CLIP setting: the target model is finetuned on everything, and a linear scoring
network over each sample's CLIP embeddings weighs the losses of a batch. What stays hard for the model
comes to weigh little: difficulty is the negative score.
"""

import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from coincide.base.files import replacing
from coincide.training.finetune import finetune
from coincide.training.trainers import SCORING_NETWORK

log = logging.getLogger(__name__)


def difficulty(target, records, sample_ids, embeddings, images, *, seed, checkpoints):
    """Table of sample_id, difficulty. A run that was killed goes on from its last checkpoint.

    Args:
        target: TargetModel section of the config; the model is trained along and not kept.
        records: list of n LLaVA records.
        sample_ids: list of n names.
        embeddings: (n, e) CLIP embeddings, image and text.
        images: folder that image names are relative to.
        seed: of the training.
        checkpoints: folder for what a later start goes on from; the caller removes it once the table is written.

    Raises:
        ValueError: as many records as embeddings are needed.
    """
    if not len(records) == len(sample_ids) == len(embeddings):
        raise ValueError(f"{len(records)} records, {len(sample_ids)} sample ids, {len(embeddings)} embeddings")
    checkpoints = Path(checkpoints)
    checkpoints.mkdir(parents=True, exist_ok=True)
    features = checkpoints / "features.npy"
    with replacing(features) as part, open(part, "wb") as file:
        np.save(file, np.ascontiguousarray(embeddings), allow_pickle=False)
    trained = checkpoints / "trained"
    finetune(
        target.checkpoint,
        records,
        images,
        target.training,
        seed=seed,
        output=trained,
        checkpoints=checkpoints,
        features=features,
    )
    weight = load_file(trained / SCORING_NETWORK)["weight"].numpy()[0].astype(np.float64)
    shutil.rmtree(trained)
    return pd.DataFrame({"sample_id": sample_ids, "difficulty": -(np.asarray(embeddings, np.float64) @ weight)})
