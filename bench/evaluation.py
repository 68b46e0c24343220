"""Compare the batched model for lmms-eval with lmms-eval's own llava_hf on the tasks of the mini-mix.

    .venv/bin/python bench/evaluation.py [--model FOLDER] [--limit 50] [--output bench/results/evaluation]

Run it in a folder in which `make demo` has finished: it uses the demo's model and questions. llava_hf takes one
question at a time, and none without an image; such questions are compared with the batched model at batch size 1.
Prints the duration of each lmms-eval process and the number of answers that differ.
"""

import json
import os
import tempfile
from pathlib import Path

from common import parser, timed, write

from coincide.base.sections import Evaluation
from coincide.demo.mini_mix import SOURCES
from coincide.evaluation.evaluate import evaluate
from coincide.evaluation.results import read_scores

WITHOUT_IMAGE = ("text_only",)
TASKS = tuple(source for source in SOURCES if source not in WITHOUT_IMAGE)


def read_answers(folder):
    """Answers by (task, question), from the output folder of `evaluate`."""
    answers = {}
    for path in sorted((Path(folder) / "samples").iterdir()):
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            answers[path.stem, sample["doc_id"]] = str(sample["filtered_resps"]).strip()
    return answers


def main():
    """Run the evaluations, print a table, write the results and a figure."""
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="results/demo/models/target/full/1/0")
    arguments.add_argument("--batch-size", type=int, default=50)
    arguments.add_argument("--limit", type=int, help="only the first questions of each task")
    options = arguments.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    include_path = Path(__file__).parent.parent / "config/tasks"
    rows, answers = [], {}
    print(
        "| | tasks | batch size | questions | seconds | relative to llava_hf |\n| --- | --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, backend, size, tasks in (
            ("llava_hf", "llava_hf", 1, TASKS),
            ("batched", "coincide", options.batch_size, TASKS),
            ("one by one, text", "coincide", 1, WITHOUT_IMAGE),
            ("batched, text", "coincide", options.batch_size, WITHOUT_IMAGE),
        ):
            output = Path(folder) / name.replace(" ", "-")
            names = [f"mini_mix_{task}" for task in tasks]
            evaluation = Evaluation(
                groups=[{"name": "all", "tasks": names}], backend=backend, batch_size=size, device="cpu",
                include_path=str(include_path), limit=options.limit,
            )  # fmt: skip
            seconds, _ = timed(evaluate, options.model, names, evaluation, output=output)
            answers[name] = read_answers(output)
            scores = {row["task"]: row["score"] for row in read_scores(output / "results.json")}
            rows.append({"what": name, "batch_size": size, "questions": len(answers[name]), "seconds": seconds,
                         "scores": scores})  # fmt: skip
            print(f"| {name} | {len(tasks)} | {size} | {len(answers[name])} | {seconds:.0f} "
                  f"| {seconds / rows[0]['seconds']:.2f} |", flush=True)  # fmt: skip
    different = {}
    for name, baseline in (("batched", "llava_hf"), ("batched, text", "one by one, text")):
        assert answers[name].keys() == answers[baseline].keys()
        count = sum(answers[name][key] != answer for key, answer in answers[baseline].items())
        different[f"{name} and {baseline}"] = count
    print("\nanswers that differ:", ", ".join(f"{pair}: {count}" for pair, count in different.items()))

    def plot(plt):
        figure, axis = plt.subplots(figsize=(6, 2.2), layout="constrained")
        comparable = [row for row in rows if row["questions"] == rows[0]["questions"]]
        axis.barh([row["what"] for row in comparable], [row["seconds"] for row in comparable])
        axis.set(xlabel=f"seconds for {rows[0]['questions']:,} questions, including the start of lmms-eval")
        axis.invert_yaxis()
        return figure

    write(options.output, plot, rows=rows, differ=different)


if __name__ == "__main__":
    main()
