"""Tasks of lmms-eval for whole runs on small models."""

import datasets

TASKS = {"picture": "doc_to_visual: !function utils.picture\ndoc_to_text: question\n"}
TASKS["text_only"] = "doc_to_visual: !function utils.nothing\ndoc_to_text: question\n"
TASKS["several_turns"] = (
    "doc_to_visual: !function utils.picture\ndoc_to_text: question\ndoc_to_messages: !function utils.several_turns\n"
)
TASK = """
task: replica_{name}
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {questions}}}
test_split: test
output_type: generate_until
{source}doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4, temperature: 0, do_sample: false}}
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}
{extra}metadata:
  - version: 1.0
"""
UTILS = """
def picture(doc):
    return [doc["image"].convert("RGB")]


def nothing(doc):
    return []


def several_turns(doc):
    def said(role, *content):
        return {"role": role, "content": list(content)}

    image, text = {"type": "image", "url": doc["image"].convert("RGB")}, {"type": "text", "text": "what is this?"}
    question = {"type": "text", "text": doc["question"]}
    return [said("user", image, text), said("assistant", {"type": "text", "text": "a thing"}), said("user", question)]


def words(doc, results):
    return {"words": float(len(results[0].split()))}
"""


def write_tasks(folder, images, questions, answers):
    """Write task files of lmms-eval: with an image, text only (whose score is the number of words), several turns.

    Args:
        folder: is created.
        images: paths, one per question.
        questions, answers: texts.
    """
    folder.mkdir()
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": datasets.Value("string"), "image": datasets.Image()}
    )
    rows = {"question": questions, "answer": answers, "image": list(map(str, images))}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "questions.parquet"))
    (folder / "utils.py").write_text(UTILS)
    for name, source in TASKS.items():
        metric = "words" if name == "text_only" else "exact_match"
        extra = "process_results: !function utils.words\n" if name == "text_only" else ""
        text = TASK.format(name=name, questions=folder / "questions.parquet", source=source, metric=metric, extra=extra)
        (folder / f"{name}.yaml").write_text(text)
