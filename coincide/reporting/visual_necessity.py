"""Whether the samples need their images: what the loss without the images says, by source, with examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from coincide.dataset.conversation import IMAGE_MARK
from coincide.dataset.formats import to_llava
from coincide.dataset.images import image_names

NEEDED_ABOVE = 0.05  # nats per answer token: about 5% in the perplexity of the answers
NOT_NEEDED, WORSE = "not needed", "worse"
EXAMPLES = 3  # of each kind and source
TEXT_LENGTH = 300  # characters of a question or an answer


@dataclass(frozen=True)
class VisualNecessity:
    """What the report shows.

    Attributes:
        sources: one row per source with an image, the largest share of samples that do not need theirs first: source,
            samples (with an image), not_needed and worse (their numbers), mean (of the visual necessity).
        examples: up to EXAMPLES of each kind and source: kind, source, sample_id, loss, loss_no_image,
            visual_necessity, question, answer (the first ones, shortened; text of the dataset, to be escaped) and image
            (name of the first image).
        text_only: number of samples without an image.
    """

    sources: pd.DataFrame
    examples: pd.DataFrame
    text_only: int


def kinds(visual_necessity: pd.Series) -> pd.Series:
    """Kind of each sample, by the loss of its answers without the images minus the loss with them.

    "worse": the loss is lower without the images, by more than NEEDED_ABOVE; the image may not belong to the text.
    "not needed": the two losses differ by no more than that. Otherwise "needed". Null for a sample without an image.
    """
    values = np.select(
        [visual_necessity < -NEEDED_ABOVE, visual_necessity <= NEEDED_ABOVE, visual_necessity > NEEDED_ABOVE],
        [WORSE, NOT_NEEDED, "needed"],
        default="",
    )
    return pd.Series(values, index=visual_necessity.index).where(visual_necessity.notna(), None)


def read_visual_necessity(
    sample_metrics: str | Path, manifest: pd.DataFrame, dataset: Any, *, examples: int = EXAMPLES
) -> VisualNecessity | None:
    """Visual necessity of a run's samples.

    Args:
        sample_metrics: folder of the run's sample metrics.
        manifest: manifest.parquet of the run.
        dataset: as `coincide.dataset.formats.open_dataset` returns it.
        examples: number of examples of each kind and source.

    Returns:
        VisualNecessity; None if the run has no `loss_no_image`.
    """
    path = Path(sample_metrics) / "sample_metrics.parquet"
    if not path.exists():
        return None
    metrics = pd.read_parquet(path)
    if "visual_necessity" not in metrics:
        return None
    table = manifest[["sample_id", "source", "position"]].merge(metrics, on="sample_id", validate="1:1")
    table["kind"] = kinds(table["visual_necessity"])
    with_image = table[table["kind"].notna()]
    return VisualNecessity(
        sources=_by_source(with_image),
        examples=_with_texts(_choose_examples(with_image, examples), dataset),
        text_only=len(table) - len(with_image),
    )


def _by_source(table):
    sources = table.groupby("source").agg(
        samples=("kind", "size"),
        not_needed=("kind", lambda kind: int((kind == NOT_NEEDED).sum())),
        worse=("kind", lambda kind: int((kind == WORSE).sum())),
        mean=("visual_necessity", "mean"),
    )
    order = (-sources["not_needed"] / sources["samples"]).argsort(kind="stable")
    return sources.iloc[order].reset_index()


def _choose_examples(table, count):
    """The samples that say most: with the smallest difference, and with the image that makes most worse."""
    distance = table["visual_necessity"].abs().where(table["kind"] == NOT_NEEDED, table["visual_necessity"])
    chosen = table[table["kind"].isin([NOT_NEEDED, WORSE])].assign(distance=distance)
    chosen = chosen.sort_values(["kind", "source", "distance"], kind="stable").groupby(["kind", "source"]).head(count)
    return chosen.drop(columns="distance")


def _with_texts(chosen, dataset):
    positions = sorted(chosen["position"])
    records = dict(zip(positions, map(to_llava, dataset.pick(positions))))
    rows = [
        {
            **{name: getattr(row, name) for name in ("kind", "source", "sample_id", "loss", "loss_no_image")},
            "visual_necessity": row.visual_necessity,
            "question": _first(records[row.position], "human"),
            "answer": _first(records[row.position], "gpt"),
            "image": image_names(records[row.position])[0],
        }
        for row in chosen.itertuples()
    ]
    names = ("kind", "source", "sample_id", "loss", "loss_no_image", "visual_necessity", "question", "answer", "image")
    return pd.DataFrame(rows, columns=list(names))


def _first(record, speaker):
    """The first turn of a speaker without image marks, shortened."""
    text = next(turn["value"] for turn in record["conversations"] if turn["from"] == speaker)
    text = text.replace(IMAGE_MARK, "").strip()
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"
