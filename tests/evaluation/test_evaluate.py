"""Evaluation with lmms-eval: answers of the batched model, other environments, errors."""

import inspect
import json
import sysconfig
import venv
from importlib import import_module

import numpy as np
import pytest
from conftest import REPO
from finetuning import run
from jobs import error_in_log
from lmms_eval.api.model import lmms

from coincide.base.sections import Evaluation, TaskGroup
from coincide.evaluation import lmms_model
from coincide.evaluation.evaluate import _model_arguments, evaluate
from coincide.evaluation.results import EvaluationError, read_scores
from coincide.models.families import FAMILIES
from coincide.reporting.summary import failure_lines, read_results


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Evaluation questions of the mini-mix, laid out as its task files expect."""
    from coincide.demo.mini_mix import write_mini_mix

    folder = tmp_path_factory.mktemp("evaluation")
    write_mini_mix(
        folder / "resources/mini-mix", samples=200, pretrain_samples=50, test_samples=12, validation_samples=1, seed=0
    )
    return folder


def other_environment(folder):
    """Python of another environment that sees the packages of this one, and writes a file when it runs."""
    venv.create(folder / "other", with_pip=False)
    site = next((folder / "other/lib").glob("python*/site-packages"))
    # not sitecustomize.py: Debian's Python has one of its own, which comes first
    mark = f"import pathlib; pathlib.Path({str(folder / 'was-here')!r}).touch()"
    (site / "packages.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{mark}\n")
    return str(folder / "other/bin/python")


def test_batched_answers_are_those_of_llava_hf(tiny_model, tiny_data, questions, tmp_path, monkeypatch):
    """All of lmms-eval, three times: the batched model, the same at batch size 1, and llava_hf."""
    monkeypatch.chdir(questions)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = run(tiny_model, tiny_data, tmp_path, "m", epochs=8.0, learning_rate=3e-3, save_every=1000)
    tasks = ["mini_mix_easy_vqa", "mini_mix_bar_chart"]  # llava_hf requires an image per question

    def evaluated(name, backend, batch_size, tasks, **more):
        group = {"name": "all", "tasks": tasks}
        options = {"device": "cpu", "include_path": str(REPO / "config/tasks"), **more}
        evaluation = Evaluation(groups=[group], backend=backend, batch_size=batch_size, **options)
        evaluate(model, tasks, evaluation, output=tmp_path / name)
        answers = {}
        for path in sorted((tmp_path / name / "samples").iterdir()):
            for line in path.read_text().splitlines():
                sample = json.loads(line)
                answers[path.stem, sample["doc_id"]] = sample["filtered_resps"]
        return answers, {row["task"]: row["score"] for row in read_scores(tmp_path / name / "results.json")}

    batched, scores = evaluated("batched", "coincide", 8, [*tasks, "mini_mix_text_only"])
    single, _ = evaluated("single", "coincide", 1, [*tasks, "mini_mix_text_only"])
    llava_hf, llava_hf_scores = evaluated("llava_hf", "llava_hf", 1, tasks)
    assert len(batched) == 36
    assert batched == single
    assert {k: answer.strip() for k, answer in llava_hf.items()} == {k: v for k, v in batched.items() if k in llava_hf}
    assert {task: scores[task] for task in tasks} == llava_hf_scores
    assert len(set(batched.values())) > 1  # the model does not give the same answer to every question
    assert np.isfinite(list(scores.values())).all()
    monkeypatch.setenv("PYTHONPATH", str(REPO))  # as the workflow does it
    elsewhere, _ = evaluated("elsewhere", "coincide", 8, tasks[:1], python=other_environment(tmp_path))
    assert (tmp_path / "was-here").exists()
    assert elsewhere == {k: v for k, v in batched.items() if k in elsewhere}
    with pytest.raises(EvaluationError, match="failed with exit code"):
        evaluated("none", "coincide", 1, ["no_such_task"])


@pytest.mark.parametrize("backend", ["coincide", *sorted({f.lmms_model for f in FAMILIES.values() if f.lmms_model})])
def test_the_models_of_lmms_eval_accept_their_arguments(backend):
    evaluation = Evaluation(groups=[{"name": "all", "tasks": ["task"]}], backend=backend, device="cpu")
    arguments = _model_arguments("model", evaluation)
    names = {argument.split("=")[0] for argument in arguments.split(",")}
    kind = "chat" if backend == "internvl_hf" else "simple"
    module = lmms_model if backend == "coincide" else import_module(f"lmms_eval.models.{kind}.{backend}")
    (accepted,) = (
        set(inspect.signature(cls.__init__).parameters)
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, lmms) and cls.__module__ == module.__name__
    )
    assert names <= accepted
    assert {"pretrained", "device"} <= names


def test_a_group_that_needs_a_judge_may_fail(tmp_path):
    groups = [{"name": "judged", "tasks": ["mmbench_en_dev"]}, {"name": "all", "tasks": ["gqa"]}]
    evaluation = Evaluation(groups=groups, python="false")
    assert [group.may_fail for group in evaluation.groups] == [True, False]
    assert TaskGroup(name="a", tasks=["mmbench_en_dev"], judge=False).may_fail is False
    assert TaskGroup(name="a", tasks=["gqa"], judge=True).may_fail
    results = tmp_path / "target/coincide/0.2/0/judged/results.json"
    evaluate("model", ["mmbench_en_dev"], evaluation, output=results.parent, may_fail=True)
    assert list((results.parent / "samples").iterdir()) == []
    assert read_scores(results) == []
    (line,) = failure_lines([results])
    assert line.startswith("Warning: target (coincide, fraction 0.2, seed 0) has no scores of the group judged: lmms-")
    with pytest.raises(EvaluationError, match=r"no evaluation has scores\nWarning: target"):
        read_results([results])
    with pytest.raises(EvaluationError, match="failed with exit code 1"):
        evaluate("model", ["mmbench_en_dev"], evaluation, output=tmp_path / "other")
    assert not (tmp_path / "other").exists()


FAILING_EVALUATION = """
from coincide.base.sections import Evaluation
from coincide.evaluation.evaluate import evaluate
evaluation = Evaluation(groups=[{"name": "all", "tasks": ["task"]}], python="false")
evaluate("model", ["task"], evaluation, output="output")
"""


def test_a_failed_evaluation_is_one_message_in_the_log(tmp_path):
    lines = error_in_log(tmp_path, FAILING_EVALUATION)
    assert lines[-1].startswith("error: lmms-eval failed with exit code 1")
    assert len(lines) == 2  # the command, and the error
