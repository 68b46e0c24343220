"""What a run is said to cost: what the numbers follow from, and that nothing but the estimate runs."""

import math

import numpy as np
import pandas as pd
import pytest

from coincide.base.sections import Lora, Training
from coincide.dataset.shard_assignment import estimated_tokens
from coincide.workflow.estimate import as_text, count_parameters, count_questions, estimate, sample_rows

MEASURED = {"seconds": 2.0, "samples": 4, "tokens": 400, "tokens_computed": 300, "parameters": 1000}
TRAINING = Training(epochs=2, learning_rate=1e-3)


def manifest(n):
    """Samples of which two and two share an image."""
    names = [f"{i // 2}.png" for i in range(n)]
    return pd.DataFrame(
        {
            "sample_id": [f"s{i}" for i in range(n)],
            "image": names,
            "n_images": 1,
            "text_length": 96,
            "position": range(n),
        }
    )


def costs(n, rows=range(4), **changes):
    options = {
        "dimension": 10, "shards": 2, "fractions": [0.2, 1.0], "seeds": 3, "training": TRAINING,
        "target_parameters": 5000, "questions": 50, **changes,
    }  # fmt: skip
    return {s["stage"]: s for s in estimate(manifest(n), MEASURED, np.array(rows), **options)}


def test_by_hand():
    """8 samples, 4 of them measured in 2 s: 4 s in all. 300 tokens of 1,000 parameters in 2 s: 300,000 operations/s."""
    found = costs(8)
    assert found["extraction"]["device_hours"] * 3600 == pytest.approx(4)
    assert found["extraction"]["gigabytes"] == pytest.approx(8 * 10 * 2 / 1e9)
    tokens = (0.2 + 1.0) * 3 * 2 * 8 * 100  # of all trainings
    assert found["finetuning"]["device_hours"] * 3600 == pytest.approx(6 * 5000 * tokens / 300_000)
    assert found["finetuning"]["jobs"] == 6
    assert found["evaluation"]["device_hours"] * 3600 == pytest.approx(2 * 5000 * 6 * 50 * 132 / 300_000)
    assert costs(800)["extraction"]["device_hours"] == pytest.approx(100 * found["extraction"]["device_hours"])
    scoring = costs(8, difficulty=True)["difficulty"]["device_hours"]
    assert scoring * 3600 == pytest.approx(6 * 5000 * (2 * 8 * 100) / 300_000)  # one training on everything
    adapters = costs(8, training=TRAINING.model_copy(update={"lora": Lora(), "gradient_checkpointing": True}))[
        "finetuning"
    ]["device_hours"]
    assert adapters == pytest.approx(found["finetuning"]["device_hours"])  # 4 + 2 passes


def test_what_is_not_known_is_said():
    found = costs(8, target_parameters=math.nan, questions=math.nan)
    text = as_text(list(found.values()), MEASURED, "cpu", 8)
    assert "| extraction | 2 | 4.0 s | 2.0 s | 0.0 |" in text
    assert "| finetuning | 6 | not known | not known | not known |" in text
    assert math.isnan(count_questions(["a_task_that_is_not_there"], None))
    assert math.isnan(count_parameters("/no/such/model"))


def test_images_count_once_and_samples_come_with_all_of_their_image():
    table = manifest(400)
    assert estimated_tokens(table)[:4].tolist() == [600, 24, 600, 24]
    rows = sample_rows(table, 50)
    assert 50 <= len(rows) <= 52
    assert (table.iloc[rows].groupby("image").size() == 2).all()


@pytest.mark.workflow
def test_the_target_estimate_runs_no_stage_of_the_run(finished):
    code, output = finished.run("estimate")
    assert code == 0, output
    assert "| extraction | 2 |" in output
    assert "| evaluation | 3 |" in output
    assert "not known" not in output
    assert "2 of 2 steps" in output
