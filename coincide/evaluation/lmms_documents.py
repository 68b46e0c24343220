"""Documents of lmms-eval tasks: questions and images, as the tasks themselves make them.

`python lmms_documents.py '{"tasks": [...], "include_path": null}'` writes messages to standard output. Each is a line
of JSON; a document is followed by the pixels of its images that no earlier message had. It runs as a script, in the
environment that evaluates, and therefore imports nothing of this package. `coincide.evaluation.documents` reads it.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

MODES = ("L", "RGB", "RGBA")  # of images whose pixels are sent as they are


class Sender:
    """Writes messages to a file."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.sent: set[str] = set()

    def send(self, **message: Any) -> None:
        """Write a message without images."""
        self.file.write(json.dumps(message).encode() + b"\n")

    def document(self, task: str, number: int, texts: list[str], images: list[Any]) -> None:
        """Write a document with the pixels of its new images."""
        headers, contents = [], []
        for image in images:
            image = image if image.mode in MODES else image.convert("RGB")
            content = image.tobytes()
            digest = hashlib.blake2b(f"{image.mode} {image.size} ".encode() + content, digest_size=16).hexdigest()
            is_new = digest not in self.sent
            headers.append({"key": digest, "mode": image.mode, "size": image.size, "bytes": len(content) * is_new})
            if is_new:
                self.sent.add(digest)
                contents.append(content)
        self.send(kind="document", task=task, document=number, texts=texts, images=headers)
        self.file.writelines(contents)


def load(manager: Any, name: str, sender: Sender) -> Iterator[tuple[str, Any]]:
    """(name, task) of a task or group; what cannot be loaded becomes a message."""
    try:
        tasks = dict(_flatten(manager.load_task_or_group([name])))
    except Exception as error:
        members = _members(manager, name)
        if members:  # a group: its other tasks may be loaded
            for member in members:
                yield from load(manager, member, sender)
        else:
            sender.send(kind="failure", task=name, detail=_text(error))
        return
    yield from tasks.items()


def _flatten(tasks):
    for name, task in tasks.items():
        if isinstance(task, dict):
            yield from _flatten(task)
        else:
            yield str(name), task


def _members(manager, name):
    """Names of the tasks of a group or tag; none for a task."""
    if name not in manager.all_groups and name not in manager.all_tags:
        return []
    members = manager.task_index[name]["task"]
    if isinstance(members, list):
        return members
    import yaml

    with open(manager.task_index[name]["yaml_path"]) as file:
        members = yaml.load(file, Loader=yaml.BaseLoader)["task"]
    return [member for member in members if isinstance(member, str)]


def send_documents(name: str, task: Any, sender: Sender) -> None:
    """Write the documents of a task, then how many it has and how many could not be read."""
    from PIL import Image

    count = unreadable = without_question = 0
    detail = ""
    for number, doc in enumerate(task.eval_docs):
        count += 1
        try:
            media = task.doc_to_visual(doc) or []
        except Exception as error:
            unreadable, detail = unreadable + 1, _text(error)
            continue
        try:
            texts = _texts(task, doc)
        except Exception as error:  # its images can be compared nevertheless
            texts, without_question, detail = [], without_question + 1, _text(error)
        images = [item for item in media if isinstance(item, Image.Image)]
        sender.document(name, number, texts, images)
    counts = {"documents": count, "unreadable": unreadable, "without_question": without_question}
    sender.send(kind="task", task=name, detail=detail, **counts)


def _texts(task, doc):
    """The question as it is asked, and without the instructions that the task puts around it."""
    text = task.doc_to_text(doc)
    if not isinstance(text, str):
        return []
    settings = task.lmms_eval_specific_kwargs if isinstance(task.lmms_eval_specific_kwargs, dict) else {}
    before, after = (settings.get(key) for key in ("pre_prompt", "post_prompt"))
    bare = text.removeprefix(before) if isinstance(before, str) else text
    bare = bare.removesuffix(after) if isinstance(after, str) else bare
    return list(dict.fromkeys([text, bare]))


def _text(error):
    if hasattr(error, "last_attempt"):  # lmms-eval tries again, and hides the cause
        error = error.last_attempt.exception() or error
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def main(arguments: str) -> None:
    """Write the documents of tasks to standard output; what libraries print goes to standard error."""
    options = json.loads(arguments)
    with os.fdopen(os.dup(1), "wb") as file:
        os.dup2(2, 1)
        from lmms_eval.tasks import TaskManager

        manager = TaskManager(include_path=options["include_path"])
        sender = Sender(file)
        for name in options["tasks"]:
            for task_name, task in load(manager, name, sender):
                try:
                    send_documents(task_name, task, sender)
                except Exception as error:
                    sender.send(kind="failure", task=task_name, detail=_text(error))
        sender.send(kind="end")


if __name__ == "__main__":
    main(*sys.argv[1:])
