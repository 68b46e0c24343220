"""Samples that show the evaluation's images or ask its questions."""

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from pictures import COPIES, photo_views
from PIL import Image

from coincide.dataset.image_hashes import SAME_PICTURE, SAME_PIXELS, write_image_hashes
from coincide.evaluation.documents import Document, TaskEnd, read_documents
from coincide.evaluation.holdout import FEWEST, write_holdout_tasks
from coincide.evaluation.leaks import RARE, SAME_QUESTION, check_compared, complete_examples, find_leaks
from coincide.evaluation.results import EvaluationError
from coincide.reporting.leaks import leak_lines, leak_table, leaks_text, report_section

LONG_QUESTION = (
    "A train leaves at nine and travels 120 km to the coast; another leaves the coast at ten. When do they meet, and "
    "how far from the coast are they?"
)


def sample(name, images, *questions, source="s"):
    turns = []
    for i, question in enumerate(questions):
        value = "<image>\n" * (len(images) * (i == 0)) + question
        turns += [{"from": "human", "value": value}, {"from": "gpt", "value": "yes"}]
    return SimpleNamespace(sample_id=name, source=source), {"conversations": turns, "image": images}


@pytest.fixture(scope="module")
def views():
    return photo_views()


def hashes_of(folder, images):
    """Table of the hashes of images, by name; they are written to a folder."""
    for name, image in images.items():
        image.save(folder / name)
    write_image_hashes(list(images), folder, folder / "hashes.parquet")
    return pd.read_parquet(folder / "hashes.parquet")


def kinds(leaks):
    return {(row.sample_id, row.document): row.kind for row in leaks.pairs.itertuples()}


def document(number, texts, images=(), task="t"):
    return Document(task, number, texts, [(f"{task} {number} {i}", image) for i, image in enumerate(images)])


def test_the_hit_table_of_planted_copies(tmp_path, views):
    original, others = views[0], photo_views(step=100)[1]  # the latter shows half of the former
    images = {f"{change}.png".replace(" ", "_"): copy(original) for change, copy in COPIES.items()}
    hashes = hashes_of(tmp_path, {**images, "same_scene.png": others, "other.png": views[1]})
    records = [sample(name, [name], f"question {name}?") for name in hashes["image"]]
    leaks = find_leaks([document(0, ["what is it?"], [original]), TaskEnd("t", 1)], records, hashes)
    expected = {(name, 0): SAME_PICTURE for name in images} | {("identical.png", 0): SAME_PIXELS}
    assert kinds(leaks) == expected
    assert set(leaks.pairs.loc[leaks.pairs["mirrored"], "sample_id"]) == {"mirrored.png"}
    assert not leaks.pairs["same_question"].any()
    assert leaks.tasks.to_dict("records") == [
        {"task": "t", "documents": 1, "images": 1, "leaked_documents": 1, "failed": False, "problem": ""}
    ]


def test_a_question_alone_is_a_leak_only_if_it_identifies_the_document(tmp_path, views):
    hashes = hashes_of(tmp_path, {f"{i}.png": view for i, view in enumerate(views[:2])})
    documents = [
        document(0, ["Describe the image."], [views[2]]),
        document(1, [f"Look at it. {LONG_QUESTION}\nAnswer with a number.", LONG_QUESTION], [views[3]]),
        document(2, ["What is 2 + 3?"]),
        document(3, ["What is the name of the town?"], [views[0]]),
        TaskEnd("t", 4),
    ]
    records = [
        sample("generic", ["0.png"], "describe the image"),
        sample("long", ["1.png"], "Hello!", f"{LONG_QUESTION}\nAnswer briefly."),
        sample("text", [], "what is 2 + 3"),
        sample("later turn", [], "Hello!", "what is 2 + 3"),
        sample("other sum", [], "what is 2 - 3"),
        sample("asked with a picture", ["1.png"], "what is 2 + 3"),
        sample("picture and question", ["0.png"], "what is the name of the town?"),
    ]
    leaks = find_leaks(documents, records, hashes)
    assert kinds(leaks) == {
        ("generic", 3): SAME_PIXELS,
        ("picture and question", 3): SAME_PIXELS,
        ("long", 1): SAME_QUESTION,
        ("text", 2): SAME_QUESTION,
    }
    same_question = leaks.pairs.set_index("sample_id")["same_question"].to_dict()
    assert same_question == {"generic": False, "picture and question": True, "long": True, "text": True}
    assert leaks.tasks["leaked_documents"].tolist() == [3]


def test_a_long_question_that_many_samples_ask_is_a_template(tmp_path, views):
    hashes = hashes_of(tmp_path, {"0.png": views[0]})
    documents = [document(0, [LONG_QUESTION], [views[1]]), TaskEnd("t", 1)]
    for count, found in ((RARE, RARE), (RARE + 1, 0)):
        leaks = find_leaks(documents, [sample(f"s{i}", ["0.png"], LONG_QUESTION) for i in range(count)], hashes)
        assert len(leaks.pairs) == found


def test_one_row_per_task_sample_and_kind_and_each_task_once(tmp_path, views):
    hashes = hashes_of(tmp_path, {"0.png": views[0]})
    shared = ("key", views[0])
    documents = [
        Document("a", 0, ["where?"], [shared]),
        Document("a", 1, ["what is it?"], [("key", None)]),
        TaskEnd("a", 2),
        Document("a", 0, ["where?"], [("key", None)]),  # another group has the task, too
        TaskEnd("a", 2),
        Document("b", 0, ["how?"], [("key", None)]),
        TaskEnd("b", 1),
    ]
    leaks = find_leaks(documents, [sample("s", ["0.png"], "What is it?")], hashes)
    rows = leaks.pairs[["task", "document", "same_question", "documents"]].to_numpy().tolist()
    assert rows == [["a", 1, True, 2], ["b", 0, False, 1]]
    assert leaks.tasks[["task", "leaked_documents"]].to_numpy().tolist() == [["a", 2], ["b", 1]]


def test_the_report_shows_counts_pairs_and_tasks_that_could_not_be_read(tmp_path, views):
    hashes = hashes_of(tmp_path, {"0.png": COPIES["half size"](views[0]), "1.png": views[1]})
    documents = [
        document(0, ["<b>what</b>?"], [views[0]], "a"),
        document(0, ["1 + 1?"], task="b"),
        TaskEnd("a", 1),
        TaskEnd("b", 1),
        TaskEnd("c", problem="no data", failed=True),
    ]
    records = [sample("s0", ["0.png"], "how?", source="vqa"), sample("s1", ["1.png"], "1 + 1"), sample("s2", [], "1+1")]
    leaks = find_leaks(documents, records, hashes)
    complete_examples(leaks, records, tmp_path)
    table = leak_table(leaks.pairs, leaks.tasks).set_index("task")
    assert table.loc["a", ["leaked_documents", "samples", SAME_PICTURE, "sources"]].tolist() == [1, 1, 1, "vqa 1"]
    assert table.loc["b", "samples"] == 0
    lines = leak_lines(leaks.pairs, leaks.tasks, "report")
    assert lines[0].endswith("of the evaluation (a 1); set dataset.leaks to drop to leave them out.")
    assert lines[1:] == ["Warning: the task c cannot be compared with the dataset: no data."]
    assert "| a | vqa | 0 | 1 | 0 |" in leaks_text(leaks.pairs, leaks.tasks)
    example = leaks.examples.iloc[0]
    assert Image.open(io.BytesIO(example["sample_image"])).size == (100, 100)
    section = report_section(
        pairs=leaks.pairs,
        tasks=leaks.tasks,
        examples=leaks.examples,
        duplicates=None,
        manifest=pd.DataFrame({"source": ["vqa"]}),
        leaks_mode="report",
        duplicates_mode="ignore",
    )
    assert section["leaks"]["examples"][0]["sample_question"].strip() == "<image>\nhow?"
    with pytest.raises(EvaluationError, match="c: no data"):
        check_compared(leaks.tasks)
    check_compared(leaks.tasks[~leaks.tasks["failed"]])


def test_no_task_and_no_sample(tmp_path):
    hashes = hashes_of(tmp_path, {})
    leaks = find_leaks([], [], hashes)
    assert (len(leaks.pairs), len(leaks.tasks), len(leaks.examples)) == (0, 0, 0)
    assert leak_lines(leaks.pairs, leaks.tasks) == ["Evaluation leaks: none in 0 documents."]


# --- lmms-eval -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory, views):
    """Folder of lmms-eval tasks: one with pictures, one with text only, one whose data is missing."""
    folder = tmp_path_factory.mktemp("tasks")
    for i in range(2):
        views[i].save(folder / f"{i}.png")
    records = [("seen", record) for _, record in [sample("", [f"{i % 2}.png"], f"what is {i}?") for i in range(FEWEST)]]
    records += [("text", record) for _, record in [sample("", [], f"{i} + 1?") for i in range(FEWEST)]]
    write_holdout_tasks(records, folder, folder / "tasks")
    tasks = folder / "tasks"
    (tasks / "lost.yaml").write_text((tasks / "holdout_text.yaml").read_text().replace("holdout_text", "lost"))
    (tasks / "both.yaml").write_text(json.dumps({"group": "both", "task": ["holdout_text", "lost"]}))
    return tasks


def test_documents_come_from_the_tasks_of_lmms_eval(task_folder, views):
    read = list(read_documents(["holdout_seen", "both", "absent"], include_path=str(task_folder)))
    ends = {end.task: end for end in read if isinstance(end, TaskEnd)}
    assert {task: (end.documents, end.failed) for task, end in ends.items()} == {
        "holdout_seen": (FEWEST, False),
        "holdout_text": (FEWEST, False),
        "lost": (0, True),
        "absent": (0, True),
    }
    assert "absent" in ends["absent"].problem
    seen = [item for item in read if isinstance(item, Document) and item.task == "holdout_seen"]
    assert [item.texts for item in seen[:2]] == [["what is 0?"], ["what is 1?"]]
    images = [image for item in seen for _, image in item.images if image is not None]
    assert [image.tobytes() for image in images] == [view.tobytes() for view in views[:2]]
    assert len({key for item in seen for key, _ in item.images}) == 2
    text = [item for item in read if isinstance(item, Document) and item.task == "holdout_text"]
    assert [(item.number, item.texts, item.images) for item in text[:1]] == [(0, ["0 + 1?"], [])]


def test_the_held_out_samples_are_read_from_their_folder(task_folder):
    copied = Path(shutil.copytree(task_folder, task_folder.parent / "held_out"))
    read = read_documents(["holdout"], holdout=copied)
    ends = [item.task for item in read if isinstance(item, TaskEnd)]
    assert sorted(ends) == ["holdout_seen", "holdout_text"]


def test_a_python_without_lmms_eval_is_an_error(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(EvaluationError, match="exit code 3"):
        list(read_documents(["x"], python=str(python)))
