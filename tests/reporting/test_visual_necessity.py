"""Samples that do not need their images, worked by hand."""

import numpy as np
import pandas as pd

from coincide.reporting.visual_necessity import kinds, read_visual_necessity


class Records:
    """A dataset in memory."""

    def __init__(self, records):
        self.records = records

    def pick(self, positions):
        return (self.records[position] for position in positions)


def write_case(folder):
    """Seven samples of two sources; position i has the question "q<i>"."""
    necessity = [0.05, -0.01, 0.2, -0.06, -3.0, -0.5, np.nan]
    ids = [f"s{i}" for i in range(7)]
    table = pd.DataFrame({"sample_id": ids, "loss": 1.0, "loss_no_image": np.add(1.0, necessity)})
    table.assign(visual_necessity=necessity).to_parquet(folder / "sample_metrics.parquet")
    manifest = pd.DataFrame({"sample_id": ids, "source": list("aaabbbb"), "position": range(6, -1, -1)})
    records = [
        {
            "image": "i.png",
            "conversations": [
                {"from": "system", "value": "be brief"},
                {"from": "human", "value": f"<image>\nq{i}"},
                {"from": "gpt", "value": "x" * 400},
            ],
        }
        for i in range(7)
    ]
    return manifest, Records(records)


def test_kinds_at_the_threshold():
    values = pd.Series([-0.051, -0.05, 0.0, 0.05, 0.051, np.nan])
    assert kinds(values)[:5].tolist() == ["worse", "not needed", "not needed", "not needed", "needed"]
    assert kinds(values).isna().tolist() == [False] * 5 + [True]


def test_sources_and_examples_worked_by_hand(tmp_path):
    manifest, dataset = write_case(tmp_path)
    result = read_visual_necessity(tmp_path, manifest, dataset, examples=2)
    assert result.text_only == 1
    sources = result.sources.set_index("source")
    assert sources.index.tolist() == ["a", "b"]  # two of three, and none of three, do not need their image
    assert sources.loc["a", ["samples", "not_needed", "worse"]].tolist() == [3, 2, 0]
    assert sources.loc["b", ["samples", "not_needed", "worse"]].tolist() == [3, 0, 3]
    np.testing.assert_allclose(sources["mean"], [0.08, -3.56 / 3])
    shown = result.examples
    assert shown["sample_id"].tolist() == ["s1", "s0", "s4", "s5"]  # nearest to 0 first; the worst first
    assert shown["kind"].tolist() == ["not needed"] * 2 + ["worse"] * 2
    assert shown["question"].tolist() == ["q5", "q6", "q2", "q1"]
    assert shown["answer"].str.len().tolist() == [300] * 4
    assert shown["image"].tolist() == ["i.png"] * 4


def test_a_run_without_the_loss_has_none(tmp_path):
    manifest, dataset = write_case(tmp_path)
    assert read_visual_necessity(tmp_path / "missing", manifest, dataset) is None
    pd.DataFrame({"sample_id": ["s0"], "loss": [1.0]}).to_parquet(tmp_path / "sample_metrics.parquet")
    assert read_visual_necessity(tmp_path, manifest, dataset) is None


def test_a_dataset_in_which_all_images_are_needed_has_no_examples(tmp_path):
    manifest, dataset = write_case(tmp_path)
    table = pd.read_parquet(tmp_path / "sample_metrics.parquet").assign(visual_necessity=1.0)
    table.to_parquet(tmp_path / "sample_metrics.parquet")
    result = read_visual_necessity(tmp_path, manifest, dataset)
    assert result.examples.empty
    assert result.sources["not_needed"].sum() == result.sources["worse"].sum() == 0
