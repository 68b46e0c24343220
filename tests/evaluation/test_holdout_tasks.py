"""Tasks that ask held-out samples."""

import io

import pandas as pd
import pytest
import yaml
from PIL import Image

from coincide.evaluation.holdout import FEWEST, HoldoutError, write_holdout_tasks
from coincide.evaluation.holdout_task import chrf, exact_match


def record(question, answer, **extra):
    return {
        "id": "x",
        "conversations": [
            {"from": "system", "value": "be short"},
            {"from": "human", "value": question},
            {"from": "gpt", "value": answer},
            {"from": "human", "value": "and now?"},
            {"from": "gpt", "value": "never asked"},
        ],
        **extra,
    }


@pytest.fixture
def tasks(tmp_path):
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (2, 2), colour).save(tmp_path / name)
    long_answer = "the picture shows a street with two cars and a dog"
    records = [
        *[("ocr/vqa", record("<image>\nwhat is it?", "A cat.", image="a.png"))] * FEWEST,
        *[("detail", record("compare <image> with <image>", long_answer, image=["a.png", "b.png"]))] * FEWEST,
        *[("rare", record("2 + 2?", "4"))] * (FEWEST - 1),
    ]
    write_holdout_tasks(records, tmp_path, tmp_path / "holdout")
    return tmp_path / "holdout"


def read_task(tasks, name):
    text = (tasks / f"{name}.yaml").read_text()
    return yaml.safe_load(text.replace("!function ", ""))


def test_a_task_per_source_and_one_for_the_sources_with_few_samples(tasks):
    names = ["holdout_detail", "holdout_ocr_vqa", "holdout_others"]
    assert read_task(tasks, "holdout") == {"group": "holdout", "task": names}
    metrics = [read_task(tasks, name)["metric_list"][0]["metric"] for name in names]
    assert metrics == ["chrf", "exact_match", "exact_match"]
    assert read_task(tasks, "holdout_detail")["process_results"] == "utils.chrf"
    assert read_task(tasks, "holdout_ocr_vqa")["process_results"] == "utils.exact_match"


def test_a_question_is_the_first_turn_with_its_images(tasks):
    rows = pd.read_parquet(tasks / "holdout_detail.parquet")
    assert len(rows) == FEWEST
    assert rows.loc[0, "question"] == "compare with"
    colours = [Image.open(io.BytesIO(image["bytes"])).getpixel((0, 0)) for image in rows.loc[0, "images"]]
    assert colours == [(255, 0, 0), (0, 0, 255)]
    others = pd.read_parquet(tasks / "holdout_others.parquet")
    assert others.loc[0, ["question", "answer"]].tolist() == ["2 + 2?", "4"]
    assert len(others.loc[0, "images"]) == 0


@pytest.mark.parametrize(
    ("given", "right", "score"),
    [("a Cat", "A cat.", 1), (" 4", "4", 1), ("35", "3.5", 0), ("1", "-1", 0), ("cat", "a cat", 0), ("", "4", 0)],
)
def test_exact_match_ignores_case_and_a_final_full_stop_only(given, right, score):
    assert exact_match({"answer": right}, [given]) == {"exact_match": score}


def test_chrf_of_equal_and_of_unrelated_answers():
    assert chrf({"answer": "two cars and a dog"}, ["two cars and a dog"]) == {"chrf": pytest.approx(1)}
    assert chrf({"answer": "two cars"}, ["xyz"])["chrf"] < 0.1


def test_no_held_out_sample_is_an_error(tmp_path):
    with pytest.raises(HoldoutError, match=r"raise evaluation\.holdout"):
        write_holdout_tasks([], tmp_path, tmp_path / "holdout")
