"""Finetuning: what the loss sees, resuming, adapters, and evaluation of what comes out."""

import json
import shutil
import sysconfig
import venv
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coincide.base.sections import Checkpoint, Evaluation, TargetModel, Training
from coincide.models.loading import load_model, load_processor
from coincide.training import finetune as module
from coincide.training.difficulty import difficulty
from coincide.training.finetune import finetune
from coincide.training.trainers import SCORING_NETWORK, ScoringTrainer

SETTINGS = Training(epochs=2, batch_size=4, learning_rate=1e-3, device="cpu", save_every=3)


def weights(folder):
    return {k: v for f in sorted(folder.glob("*.safetensors")) for k, v in load_file(f).items()}


@contextmanager
def killed_at(step, monkeypatch):
    """Context in which a training ends with an error after this step, as it must."""

    class Killed(Exception):
        pass

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module._ProgressLines, "on_step_end", stop)
        with pytest.raises(Killed):
            yield


def run(tiny_model, tiny_data, folder, name, **changes):
    records, images = tiny_data
    features = changes.pop("features", None)
    settings = Training(**{**SETTINGS.model_dump(), **changes})
    places = {"output": folder / name, "checkpoints": folder / "checkpoints"}
    finetune(tiny_model, records, images, settings, seed=1, features=features, **places)
    return folder / name


def features_of(records, folder):
    """One number a record of two kinds: whether it has an image."""
    path = folder / "features.npy"
    np.save(path, np.array([[float("image" in r), float("image" not in r)] for r in records], np.float16))
    return path


@pytest.mark.parametrize(
    ("lora", "scoring"),
    [(None, False), ({"r": 4, "alpha": 8, "dropout": 0.1}, False), (None, True), ({"r": 4, "alpha": 8}, True)],
    ids=["all weights", "lora", "scoring", "scoring with lora"],
)
def test_a_killed_training_goes_on_and_ends_the_same(tiny_model, tiny_data, tmp_path, monkeypatch, lora, scoring):
    features = features_of(tiny_data[0], tmp_path) if scoring else None
    whole = run(tiny_model, tiny_data, tmp_path, "whole", lora=lora, features=features)
    assert (whole / SCORING_NETWORK).exists() == scoring

    with killed_at(8, monkeypatch):
        run(tiny_model, tiny_data, tmp_path, "killed", lora=lora, features=features)
    assert not (tmp_path / "killed").exists()
    left = list((tmp_path / "checkpoints").rglob("checkpoint-*"))
    assert [p.name for p in left] == ["checkpoint-6"]
    resumed = run(tiny_model, tiny_data, tmp_path, "killed", lora=lora, features=features)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-5, atol=1e-6)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    log = [json.loads(line) for line in (resumed / "training_log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 12
    assert (resumed / "trainer_state.json").exists()
    assert not list(resumed.glob("*.bin")) + list(resumed.glob("*.pt")) + list(resumed.glob("*.pkl"))


def test_every_epoch_holds_every_row_once_in_batches_of_like_length(tiny_data):
    records, _ = tiny_data
    order = module.training_order(records, 2.5, 5, seed=0)
    assert len(order) == 60
    assert sorted(order[:24]) == sorted(order[24:48]) == list(range(24))
    assert order[:24] != order[24:48]
    assert len(set(order[48:])) == 12
    assert order == module.training_order(records, 2.5, 5, seed=0)
    length = [sum(len(t["value"]) for t in r["conversations"]) for r in records]
    spread = [np.ptp([length[r] for r in order[i : i + 5]]) for i in (0, 5, 10, 15, 25, 30, 35, 40)]
    assert np.mean(spread) < np.ptp(length) / 2


def test_checkpoints_of_other_settings_are_not_taken_up(tiny_model, tiny_data, tmp_path):
    records, _ = tiny_data
    marks = {
        module._fingerprint(Checkpoint(str(tiny_model)), records, SETTINGS, 1),
        module._fingerprint(Checkpoint(str(tiny_model)), records, SETTINGS, 2),
        module._fingerprint(Checkpoint(str(tiny_model)), records[1:], SETTINGS, 1),
        module._fingerprint(
            Checkpoint(str(tiny_model)), records, Training(**{**SETTINGS.model_dump(), "epochs": 3}), 1
        ),
    }
    assert len(marks) == 4


def test_the_loss_sees_answers_alone(tiny_model, tiny_data):
    processor = load_processor(tiny_model)
    records, images = tiny_data
    batch = module.Collator(processor, records, images)([{"row": i} for i in range(6)])
    for i in range(6):
        labels = batch["labels"][i]
        said = processor.tokenizer.decode(labels[labels != -100])
        turns = [t["value"] for t in records[i]["conversations"] if t["from"] == "gpt"]
        assert said == "".join(f" {t}</s>" for t in turns)


def test_the_projector_has_a_learning_rate_of_its_own(tiny_model, tiny_data, tmp_path, monkeypatch):
    groups, real = {}, module.ProjectorTrainer.create_optimizer

    def remembered(self, *arguments, **options):
        optimizer = real(self, *arguments, **options)
        names = {id(p): name for name, p in self.model.named_parameters()}
        groups.update({names[id(p)]: g["initial_lr" if "initial_lr" in g else "lr"]
                       for g in optimizer.param_groups for p in g["params"]})  # fmt: skip
        assert sum(len(g["params"]) for g in optimizer.param_groups) == len(groups)
        return optimizer

    monkeypatch.setattr(module.ProjectorTrainer, "create_optimizer", remembered)
    trained = run(tiny_model, tiny_data, tmp_path, "out", projector_learning_rate=1e-9)
    assert {groups[name] for name in groups if "multi_modal_projector" in name} == {1e-9}
    assert {groups[name] for name in groups if "multi_modal_projector" not in name} == {1e-3}
    before, after = weights(tiny_model), weights(trained)
    for name, value in after.items():
        close = torch.allclose(value, before[name], atol=1e-6)
        assert close == ("multi_modal_projector" in name) or not value.any() or "vision" in name, name


def test_long_samples_are_cut_behind_their_images(tiny_model, tiny_data):
    processor = load_processor(tiny_model)
    records = [r for r in tiny_data[0] if "image" in r][:2]
    batch = [{"row": 0}, {"row": 1}]
    whole = module.Collator(processor, records, tiny_data[1])(batch)
    cut = module.Collator(processor, records, tiny_data[1], 40)(batch)
    assert cut["input_ids"].shape[1] == cut["labels"].shape[1] == cut["attention_mask"].shape[1] == 40
    assert torch.equal(cut["input_ids"], whole["input_ids"][:, :40])
    assert torch.equal(cut["pixel_values"], whole["pixel_values"])
    images = module.Collator(processor, records, tiny_data[1], 3)(batch)["input_ids"] == processor.image_token_id
    assert images.sum() == (whole["input_ids"] == processor.image_token_id).sum()


def test_training_lowers_the_loss(tiny_model, tiny_data, tmp_path):
    folder = run(tiny_model, tiny_data, tmp_path, "m", epochs=30.0, learning_rate=3e-3, save_every=1000)
    losses = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in losses if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


def test_adapters_are_saved_small_and_load_as_a_model(tiny_model, tiny_data, tmp_path):
    lora = {"r": 4, "alpha": 8, "dropout": 0.0}
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    folder = run(base, tiny_data, tmp_path, "adapter", lora=lora, gradient_checkpointing=True)
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    tuned, processor = load_model(str(folder), device="cpu")
    untuned, _ = load_model(base, device="cpu")
    inputs = processor(text="<s>what is thing1?", add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        difference = (tuned(**inputs).logits - untuned(**inputs).logits).abs().max()
    assert difference > 1e-4
    names = load_file(folder / "adapter_model.safetensors")
    assert all("language_model" in name or "multi_modal_projector" in name for name in names)
    changed = {n for n, p in tuned.named_parameters() if not torch.equal(p, untuned.get_parameter(n))}
    assert not [name for name in changed if "vision" in name]
    assert [name for name in changed if "q_proj" in name]


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
    """Python of another environment, which has the same packages by a path, and leaves a mark when it runs."""
    venv.create(folder / "other", with_pip=False)
    site = next((folder / "other/lib").glob("python*/site-packages"))
    (site / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (site / "sitecustomize.py").write_text(f"open({str(folder / 'was-here')!r}, 'a').close()\n")
    return str(folder / "other/bin/python")


def test_batched_answers_are_those_of_llava_hf_one_by_one(tiny_model, tiny_data, questions, tmp_path, monkeypatch):
    """The whole of lmms-eval, three times: the batched model, the same at batch size 1, and llava_hf."""
    from conftest import REPO

    from coincide.evaluation.evaluate import evaluate
    from coincide.evaluation.results import EvaluationError, read_scores

    monkeypatch.chdir(questions)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = run(tiny_model, tiny_data, tmp_path, "m", epochs=8.0, learning_rate=3e-3, save_every=1000)
    tasks = ["mini_mix_easy_vqa", "mini_mix_bar_chart"]  # llava_hf can't take questions without an image

    def ask(name, backend, batch_size, tasks, **more):
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

    batched, scores = ask("batched", "coincide", 8, [*tasks, "mini_mix_text_only"])
    single, _ = ask("single", "coincide", 1, [*tasks, "mini_mix_text_only"])
    theirs, their_scores = ask("theirs", "llava_hf", 1, tasks)
    assert len(batched) == 36
    assert batched == single
    assert {k: answer.strip() for k, answer in theirs.items()} == {k: v for k, v in batched.items() if k in theirs}
    assert {task: scores[task] for task in tasks} == their_scores
    assert len(set(batched.values())) > 1  # the model does say different things
    assert np.isfinite(list(scores.values())).all()
    monkeypatch.setenv("PYTHONPATH", str(REPO))  # as the workflow does it
    elsewhere, _ = ask("elsewhere", "coincide", 8, tasks[:1], python=other_environment(tmp_path))
    assert (tmp_path / "was-here").exists()
    assert elsewhere == {k: v for k, v in batched.items() if k in elsewhere}
    with pytest.raises(EvaluationError, match="ended with code"):
        ask("none", "coincide", 1, ["no_such_task"])


def test_two_processes_have_the_losses_of_one(tiny_model, tiny_data, tmp_path):
    def losses(folder):
        entries = map(json.loads, (folder / "training_log.jsonl").read_text().splitlines())
        return [entry["loss"] for entry in entries if "loss" in entry]

    one = run(tiny_model, tiny_data, tmp_path, "one", epochs=5)
    two = run(tiny_model, tiny_data, tmp_path, "two", epochs=5, processes=2)
    assert len(losses(one)) == 3
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    ours, theirs = weights(two), weights(one)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-4)
    assert not list(two.glob("*.bin"))
    with pytest.raises(module.DeviceError, match="fsdp needs GPUs"):
        run(tiny_model, tiny_data, tmp_path, "sharded", processes=2, sharding="fsdp")


def test_the_loss_is_weighed_by_a_softmax_over_the_batch(tiny_model, tiny_data, tmp_path, monkeypatch):
    seen, real = [], ScoringTrainer.compute_loss

    def remembered(self, model, inputs, **options):
        given = {k: v.clone() for k, v in inputs.items()}
        loss = real(self, model, inputs, **options)
        rows, labels = given.pop("rows"), given.pop("labels")
        weight = self.network.weight[0].tolist()
        with torch.no_grad():
            logits = model(**given).logits
        seen.append((float(loss), rows.tolist(), labels, logits, weight))
        return loss

    monkeypatch.setattr(ScoringTrainer, "compute_loss", remembered)
    run(tiny_model, tiny_data, tmp_path, "one", features=features_of(tiny_data[0], tmp_path))
    for loss, rows, labels, logits, weight in seen:
        scores = np.array([weight["image" not in tiny_data[0][row]] for row in rows])
        share = np.exp(scores) / np.exp(scores).sum() * len(rows)
        probabilities = torch.softmax(logits, dim=2)
        found = [-share[i] * float(torch.log(probabilities[i, t - 1, labels[i, t]]))
                 for i in range(len(rows)) for t in range(1, labels.shape[1]) if labels[i, t] != -100]  # fmt: skip
        assert loss == pytest.approx(sum(found) / len(found), rel=1e-4)
    assert seen[0][4] != seen[-1][4]


def test_what_stays_hard_comes_to_weigh_little(tiny_model, tiny_data, tmp_path):
    records, images = tiny_data
    rng = np.random.default_rng(0)
    asked = [record for record in records if "image" in record][:16]
    # noise, which no model learns
    answers = ["yes"] * 12 + ["".join(rng.choice(list("abcdefghij"), 3)) for _ in range(4)]
    mixed = [{**r, "id": str(i), "conversations": [r["conversations"][0], {"from": "gpt", "value": answer}]}
             for i, (r, answer) in enumerate(zip(asked, answers))]  # fmt: skip
    embeddings = np.array([[1.0, 0.0]] * 12 + [[0.0, 1.0]] * 4, np.float16)

    def gap(learning_rate):
        changes = {"epochs": 12, "batch_size": 8, "learning_rate": learning_rate, "save_every": 100}
        target = TargetModel(name=str(tiny_model), training={**SETTINGS.model_dump(), **changes})
        ids = [r["id"] for r in mixed]
        table = difficulty(target, mixed, ids, embeddings, images, seed=0, checkpoints=tmp_path / "c")
        return table["difficulty"][12:].mean() - table["difficulty"][:12].mean()

    assert gap(1e-2) > gap(1e-9) + 0.1
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["features.npy"]
    target = TargetModel(name=str(tiny_model), training=SETTINGS)
    with pytest.raises(ValueError, match="16 records, 15 sample ids"):
        difficulty(target, mixed, ["a"] * 15, embeddings, images, seed=0, checkpoints=tmp_path)


def test_two_processes_weigh_the_batch_as_one(tiny_model, tiny_data, tmp_path):
    features = features_of(tiny_data[0], tmp_path)
    one, two = (run(tiny_model, tiny_data, tmp_path, str(n), features=features, processes=n, epochs=1) for n in (1, 2))
    ours, theirs = (load_file(folder / SCORING_NETWORK)["weight"] for folder in (two, one))
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-4)


def test_a_failing_process_fails_the_training(tiny_model, tiny_data, tmp_path):
    records, images = tiny_data
    broken = [{**record, "image": "nowhere.png"} if "image" in record else record for record in records]
    with pytest.raises(RuntimeError, match="in 2 processes on 1 nodes ended with exit code 1"):
        run(tiny_model, (broken, images), tmp_path, "broken", processes=2)
    assert not (tmp_path / "broken").exists()
