"""Documents of the evaluation's tasks: their questions and images, from lmms-eval's own task objects."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from coincide.base.files import in_workflow_folder
from coincide.base.sections import HOLDOUT
from coincide.dataset.images import to_rgb
from coincide.evaluation import lmms_start
from coincide.evaluation.results import EvaluationError


@dataclass(frozen=True)
class Document:
    """A document of a task.

    Attributes:
        task: name of the task.
        number: of the document in the task, from 0.
        texts: the question as it is asked, and without the instructions around it; none if the task has no text.
        images: (key, image) of each image, RGB; None in place of an image whose key an earlier document had.
    """

    task: str
    number: int
    texts: list[str]
    images: list[tuple[str, Image.Image | None]]


@dataclass(frozen=True)
class TaskEnd:
    """The end of a task, or that it cannot be read.

    Attributes:
        task: name of the task; of the group, if that is what cannot be loaded.
        documents: number of documents.
        problem: what could not be read, in words; empty if everything was.
        failed: no document could be read.
    """

    task: str
    documents: int = 0
    problem: str = ""
    failed: bool = False


def read_documents(
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    python: str | None = None,
    holdout: str | Path | None = None,
) -> Iterator[Document | TaskEnd]:
    """Yield the documents of tasks: all that a task has, whatever `evaluation.limit` is.

    Args:
        tasks: names of lmms-eval tasks or groups.
        include_path: folder of task files in addition to those of lmms-eval.
        python: Python that has lmms-eval; None: that of this process.
        holdout: folder of the tasks that ask the held-out samples, if one of the tasks is `holdout`.

    Yields:
        the documents of each task, then its TaskEnd.

    Raises:
        EvaluationError: lmms-eval cannot be started, or stops.
    """
    others = [task for task in tasks if task != HOLDOUT]
    if others:
        yield from _read(others, include_path and in_workflow_folder(include_path), python)
    if HOLDOUT in tasks and holdout is not None:
        yield from _read([HOLDOUT], str(holdout), python)


def _read(tasks, include_path, python):
    script = Path(__file__).with_name("lmms_documents.py")
    arguments = json.dumps({"tasks": tasks, "include_path": include_path})
    process = subprocess.Popen(lmms_start.command(python, script, arguments), stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            message = json.loads(line)
            if message["kind"] == "end":
                return
            yield _parse(message, process.stdout)
        code = process.wait()
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    raise EvaluationError(
        f"lmms-eval stopped with exit code {code} while it read the tasks {', '.join(tasks)}; its output is above"
    )


def _parse(message, stream):
    if message["kind"] == "failure":
        return TaskEnd(message["task"], problem=message["detail"], failed=True)
    if message["kind"] == "task":
        return _task_end(message)
    images = [(image["key"], _read_image(image, stream)) for image in message["images"]]
    return Document(message["task"], message["document"], message["texts"], images)


def _read_image(header, stream):
    if not header["bytes"]:
        return None
    return to_rgb(Image.frombytes(header["mode"], tuple(header["size"]), stream.read(header["bytes"])))


def _task_end(message):
    count, unreadable, without_question = (message[key] for key in ("documents", "unreadable", "without_question"))
    problems = []
    if unreadable:
        problems.append(f"{unreadable} of {count} documents cannot be read ({message['detail']})")
    if without_question:
        problems.append(f"{without_question} of {count} questions cannot be read ({message['detail']})")
    return TaskEnd(message["task"], count, "; ".join(problems), failed=bool(count) and unreadable == count)
