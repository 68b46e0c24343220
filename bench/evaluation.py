"""Our batched model for lmms-eval beside lmms-eval's own llava_hf, on the tasks of the mini-mix, answer by answer.

    .venv/bin/python bench/evaluation.py [--model FOLDER] [--limit 50] [--output bench/results/evaluation]

Run it in a folder where `make demo` has been: model and questions are its. llava_hf takes one question at a time, and
none without an image; the latter are compared with our model at batch size 1. Times are of whole lmms-eval processes.
"""

import json
import os
import tempfile
from pathlib import Path

from common import parser, timed, write

from coincide.demo.mini_mix import SOURCES
from coincide.evaluation.evaluate import evaluate
from coincide.evaluation.results import read_scores

WITHOUT_IMAGE = ("text_only",)
TASKS = tuple(source for source in SOURCES if source not in WITHOUT_IMAGE)


def answers(folder):
    """(task, question) -> answer, from what evaluate keeps."""
    found = {}
    for path in sorted((Path(folder) / "samples").iterdir()):
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            found[path.stem, sample["doc_id"]] = str(sample["filtered_resps"]).strip()
    return found


def main():
    """Measure, print, write."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="results/demo/models/target/full/1/0")
    arguments.add_argument("--batch-size", type=int, default=50)
    arguments.add_argument("--limit", type=int, help="first questions of each task alone")
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    include_path = Path(__file__).parent.parent / "config/tasks"
    rows, kept = [], {}
    print("| | tasks | batch size | questions | seconds | of llava_hf |\n| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name, backend, size, tasks in (
            ("llava_hf", "llava_hf", 1, TASKS),
            ("batched", "coincide", options.batch_size, TASKS),
            ("one by one, text", "coincide", 1, WITHOUT_IMAGE),
            ("batched, text", "coincide", options.batch_size, WITHOUT_IMAGE),
        ):
            output = Path(folder) / name.replace(" ", "-")
            seconds, _ = timed(
                evaluate, options.model, [f"mini_mix_{task}" for task in tasks], output=output, backend=backend,
                batch_size=size, device="cpu", dtype="float32", include_path=include_path,
                limit=options.limit,
            )  # fmt: skip
            kept[name] = answers(output)
            scores = {row["task"]: row["score"] for row in read_scores(output / "results.json")}
            rows.append({"what": name, "batch_size": size, "questions": len(kept[name]), "seconds": seconds,
                         "scores": scores})  # fmt: skip
            print(f"| {name} | {len(tasks)} | {size} | {len(kept[name])} | {seconds:.0f} "
                  f"| {seconds / rows[0]['seconds']:.2f} |", flush=True)  # fmt: skip
    differ = {}
    for ours, theirs in (("batched", "llava_hf"), ("batched, text", "one by one, text")):
        assert kept[ours].keys() == kept[theirs].keys()
        differ[f"{ours} and {theirs}"] = sum(kept[ours][key] != kept[theirs][key] for key in kept[theirs])
    print("\nanswers that differ:", ", ".join(f"{pair}: {count}" for pair, count in differ.items()))

    def plot(plt):
        figure, axis = plt.subplots(figsize=(6, 2.2), layout="constrained")
        mine = [row for row in rows if row["questions"] == rows[0]["questions"]]
        axis.barh([row["what"] for row in mine], [row["seconds"] for row in mine])
        axis.set(xlabel=f"seconds for {rows[0]['questions']:,} questions, start of lmms-eval among them")
        axis.invert_yaxis()
        return figure

    write(options.output, plot, rows=rows, differ=differ)


if __name__ == "__main__":
    main()
