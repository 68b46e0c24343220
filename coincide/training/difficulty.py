"""Difficulty of samples, from a scoring network that is trained with a model (Self-Filter, Chen et al. 2024).

Stage 1 of the paper, in its CLIP setting: the target model is finetuned on all samples, and a linear scoring
network over their CLIP embeddings weights the losses of a batch. Samples that stay difficult for the model end
up with small weights: difficulty is the negative score.
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from coincide.base.files import replacing
from coincide.base.sections import TargetModel
from coincide.dataset.images import ImageFolders
from coincide.dataset.record_table import write_record_table
from coincide.training.finetune import finetune
from coincide.training.trainers import SCORING_NETWORK


def measure_difficulty(
    target: TargetModel,
    records: Iterable[dict],
    sample_ids: Sequence[str],
    embeddings: np.ndarray,
    images: ImageFolders,
    *,
    seed: int,
    checkpoints: Path | str,
    version: int = 1,
) -> pd.DataFrame:
    """Table of sample_id and difficulty. An interrupted measurement resumes from its last checkpoint.

    Args:
        target: TargetModel section of the config; the trained model is not kept.
        records: n LLaVA records.
        sample_ids: n sample ids.
        embeddings: (n, e) CLIP embeddings of image and text.
        images: folder that image names are relative to.
        seed: of the training.
        checkpoints: folder for what an interrupted measurement resumes from; the caller removes it after writing
            the table.
        version: as for `finetune`.

    Raises:
        ValueError: records, sample_ids and embeddings differ in number.
    """
    checkpoints = Path(checkpoints)
    table = write_record_table(records, checkpoints / "all_records.arrow")
    if not len(table) == len(sample_ids) == len(embeddings):
        raise ValueError(f"{len(table)} records, {len(sample_ids)} sample ids, {len(embeddings)} embeddings")
    features = checkpoints / "features.npy"
    with replacing(features) as temporary, open(temporary, "wb") as file:
        np.save(file, np.ascontiguousarray(embeddings), allow_pickle=False)
    trained = checkpoints / "trained"
    finetune(
        target.checkpoint,
        table,
        images,
        target.training,
        seed=seed,
        output=trained,
        checkpoints=checkpoints,
        features=features,
        version=version,
    )
    table.path.unlink()
    weight = load_file(trained / SCORING_NETWORK)["weight"].numpy()[0].astype(np.float64)
    shutil.rmtree(trained)
    return pd.DataFrame({"sample_id": sample_ids, "difficulty": -(np.asarray(embeddings, np.float64) @ weight)})
