"""The estimated cost of a run: the arithmetic, unknown quantities, and that no stage of the run is computed."""

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
    """A manifest of n samples; samples 0 and 1 share an image, 2 and 3, and so on."""
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
    """dict of stage -> estimated cost, for a dataset of n samples."""
    options = {
        "dimension": 10, "shards": 2, "fractions": [0.2, 1.0], "seeds": 3, "training": TRAINING,
        "target_parameters": 5000, "questions": 50, **changes,
    }  # fmt: skip
    return {cost["stage"]: cost for cost in estimate(manifest(n), MEASURED, np.array(rows), **options)}


def test_costs_equal_those_worked_out_by_hand():
    """8 samples, of which 4 took 2 s: 4 s. 300 tokens through 1,000 parameters in 2 s: 300,000 operations/s."""
    stages = costs(8)
    assert stages["extraction"]["device_hours"] * 3600 == pytest.approx(4)
    assert stages["extraction"]["gigabytes"] == pytest.approx(8 * 10 * 2 / 1e9)
    tokens = (0.2 + 1.0) * 3 * 2 * 8 * 100  # of all trainings
    assert stages["finetuning"]["device_hours"] * 3600 == pytest.approx(6 * 5000 * tokens / 300_000)
    assert stages["finetuning"]["jobs"] == 6
    assert stages["evaluation"]["device_hours"] * 3600 == pytest.approx(2 * 5000 * 6 * 50 * 132 / 300_000)
    assert costs(800)["extraction"]["device_hours"] == pytest.approx(100 * stages["extraction"]["device_hours"])


def test_samples_that_an_earlier_run_has_read_cost_nothing():
    """Of 8 samples, 2 and 3 share an image: they have a quarter of the tokens."""
    is_reused = np.isin(range(8), (2, 3))
    stages = costs(8, is_reused=is_reused)
    assert stages["extraction"]["device_hours"] * 3600 == pytest.approx(3)
    assert stages["extraction"]["gigabytes"] == costs(8)["extraction"]["gigabytes"]
    assert "2 samples have the id" in as_text(list(stages.values()), MEASURED, "cpu", 8, reused=2)


def test_difficulty_costs_one_training_on_all_samples():
    seconds = costs(8, difficulty=True)["difficulty"]["device_hours"] * 3600
    assert seconds == pytest.approx(6 * 5000 * (2 * 8 * 100) / 300_000)


def test_lora_with_gradient_checkpointing_costs_as_much_as_neither():
    training = TRAINING.model_copy(update={"lora": Lora(), "gradient_checkpointing": True})
    adapters = costs(8, training=training)["finetuning"]["device_hours"]
    assert adapters == pytest.approx(costs(8)["finetuning"]["device_hours"])  # 4 + 2 operations


def test_unknown_quantities_are_shown_as_not_known():
    stages = costs(8, target_parameters=math.nan, questions=math.nan)
    text = as_text(list(stages.values()), MEASURED, "cpu", 8)
    assert "| extraction | 2 | 4.0 s | 2.0 s | 0.0 |" in text
    assert "| finetuning | 6 | not known | not known | not known |" in text
    assert math.isnan(count_questions(["no_such_task"], None))
    assert math.isnan(count_parameters("/no/such/model"))


def test_samples_of_an_image_are_drawn_together_and_its_tokens_count_once():
    table = manifest(400)
    assert estimated_tokens(table)[:4].tolist() == [600, 24, 600, 24]
    rows = sample_rows(table, 50)
    assert 50 <= len(rows) <= 52
    assert (table.iloc[rows].groupby("image").size() == 2).all()


@pytest.mark.workflow
def test_the_target_estimate_computes_no_stage_of_the_run(finished):
    code, output = finished.run("estimate")
    assert code == 0, output
    assert "| extraction | 2 |" in output
    assert "| evaluation | 3 |" in output
    assert "not known" not in output
    assert "estimate_cost: done in" in output
