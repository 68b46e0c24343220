"""Every replica of a public checkpoint: loading, reading, finetuning with a kill, and evaluation in this process.

The whole workflow on each of them is in tests/workflow/test_replica_runs.py.
"""

import json

import numpy as np
import pytest
import torch
from finetuning import killed_at, losses, run, weights
from lmms_eval.api.instance import Instance
from PIL import Image
from replicas import REPLICAS, build

from coincide.base.activation_store import Activations
from coincide.base.sections import Checkpoint, Evaluation, ReferenceModel
from coincide.dataset.samples import Reason, Sample
from coincide.evaluation import evaluate
from coincide.evaluation.lmms_model import CoincideModel
from coincide.extraction.activations import extract
from coincide.extraction.encoding import Encoder
from coincide.extraction.extractor import image_token
from coincide.models import loading
from coincide.models.chat import RefusedImageError, encode, encode_prompts, fixed_prefix, render, render_prompt
from coincide.models.families import FAMILIES
from coincide.models.loading import load_config, load_model, load_processor
from coincide.training import finetune as finetune_module
from coincide.training.collator import Collator

LORA = {"r": 2, "alpha": 4, "dropout": 0.0}
TEXT_ONLY = {"paligemma": False}  # PaliGemma's processor needs an image
SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
WITHOUT_TEMPLATE = ("bczhou/tiny-llava-v1-hf", "google/paligemma2-3b-pt-224")


@pytest.fixture(scope="module", params=list(REPLICAS))
def replica(request, tmp_path_factory):
    """(entry, folder) of a replica."""
    folder = tmp_path_factory.mktemp("replicas") / request.param.replace("/", "--")
    build(request.param, folder)
    return REPLICAS[request.param], folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(records, images folder): one image, several images, no image; one and several turns; with a system turn."""
    folder = tmp_path_factory.mktemp("replicas-data")
    rng = np.random.default_rng(0)
    for name, size in (("wide", (96, 40)), ("tall", (40, 120)), ("square", (64, 64))):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(folder / f"{name}.png")

    def record(i, images, *turns):
        marks = "<image>\n" * len(images)
        conversations = []
        for turn, (question, answer) in enumerate(turns):
            conversations += [
                {"from": "human", "value": (marks if turn == 0 else "") + question},
                {"from": "gpt", "value": answer},
            ]
        image = {"image": images[0] if len(images) == 1 else images} if images else {}
        return {"id": f"s{i}", **image, "conversations": conversations}

    one, two = ("what is this thing1?", "answer 1"), ("really?", "yes 2")
    records = [
        record(0, ["wide.png"], one),
        record(1, ["wide.png"], one, two),
        record(2, ["tall.png"], ("what is shown here?", "no")),
        record(3, ["square.png", "wide.png"], ("number of colours?", "3")),
        record(4, [], ("who is this?", "a user"), two),
        record(5, [], ("what is yes?", "no")),
        record(6, ["square.png"], two, one),
        record(7, ["square.png"], ("Answer with one word.", "word")),
    ]
    return records, folder


def usable(replica, records):
    return [r for r in records if "image" in r or TEXT_ONLY.get(replica.family, True)]


def opened(record, folder):
    images = record.get("image", [])
    return [Image.open(folder / name) for name in ([images] if isinstance(images, str) else images)]


def test_an_entry_names_its_sources_and_the_files_are_those_of_a_snapshot(replica):
    entry, folder = replica
    assert entry.sources
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == entry.family
    assert entry.family in FAMILIES
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    has_template = any("chat_template" in path.read_text() for path in folder.glob("*.json")) or list(
        folder.glob("*.jinja")
    )
    assert bool(has_template) == (entry.name not in WITHOUT_TEMPLATE)
    if entry.name == "bczhou/tiny-llava-v1-hf":
        assert not (folder / "processor_config.json").exists()


def test_a_prompt_is_the_beginning_of_what_training_saw(replica, data):
    """In text and in tokens, for every answer of every conversation."""
    entry, folder = replica
    records, images = data
    processor = load_processor(folder)
    for record in usable(entry, records):
        turns, pictures = record["conversations"], opened(record, images)
        inputs, masks, _ = encode(processor, [render(processor, turns)], [pictures])
        ids, answer = inputs["input_ids"][0], masks.answer[0]
        starts = np.flatnonzero(answer & ~np.concatenate([[False], answer[:-1]]))
        assert len(starts) == len(turns) // 2
        for turn, start in zip(range(1, len(turns), 2), starts):
            prompt = encode_prompts(processor, [render_prompt(processor, turns[:turn])], [pictures])
            assert prompt["input_ids"][0].tolist() == ids[:start].tolist()
            end = int(np.flatnonzero(~answer[start:])[0]) + start if not answer[start:].all() else len(ids)
            said = processor.tokenizer.decode(ids[start:end])
            assert turns[turn]["value"] in said
            family = FAMILIES[entry.family]
            assert (family.end_of_turn or processor.tokenizer.eos_token) in said


def test_the_familys_default_template_is_that_of_the_published_checkpoint(replica, data):
    entry, folder = replica
    records, _ = data
    processor = load_processor(folder)
    default = FAMILIES[entry.family].template_for(load_config(Checkpoint(str(folder))))
    for record in usable(entry, records):
        published = render(processor, record["conversations"]).text
        shipped, processor.chat_template = processor.chat_template, default
        written = render(processor, record["conversations"]).text
        processor.chat_template = shipped
        if entry.family == "llava" and entry.name not in WITHOUT_TEMPLATE:
            assert written == SYSTEM_PROMPT + published  # the shipped one leaves out the prompt of the training
        elif entry.family == "llava_onevision":
            assert published != written  # as it was trained: see LLAVA_CHAT_ML
        else:
            assert written == published


def test_a_replica_is_read(replica, data, tmp_path):
    entry, folder = replica
    records, images = data
    model, processor = load_model(folder, device="cpu")
    samples = [Sample(r["id"], i, r) for i, r in enumerate(usable(entry, records))]
    reference = ReferenceModel(name=str(folder), layers=[0, 1], max_tokens=2000, sample_metrics=True)
    rejected = extract(model, processor, samples, images, reference, output=tmp_path / "a.parquet")
    assert rejected == []
    stored = np.asarray(Activations(tmp_path / "a.parquet"), np.float64)
    assert len(stored) == len(samples)
    assert np.isfinite(stored).all()
    encoder = Encoder(
        processor, images, image_token_id=image_token(model, processor), prefix=fixed_prefix(processor), max_tokens=2000
    )
    for sample, row in zip(samples, stored):
        (encoded,) = encoder([sample])
        has_image = "image" in sample.record
        assert bool(encoded.masks.visual.any()) == has_image
        assert np.linalg.norm(row) == pytest.approx(1 if has_image else np.sqrt(0.5), abs=2e-3)
    assert (np.abs(stored @ stored.T)[~np.eye(len(stored), dtype=bool)] < 0.9999).all()


def test_a_killed_training_with_lora_resumes(replica, data, tmp_path, monkeypatch):
    entry, folder = replica
    records, images = data
    records = usable(entry, records)[:6]
    settings = {"lora": LORA, "epochs": 2.0, "batch_size": 2, "learning_rate": 1e-2, "save_every": 2}
    whole = run(folder, (records, images), tmp_path, "whole", **settings)
    with killed_at(4, monkeypatch):
        run(folder, (records, images), tmp_path, "resumed", **settings)
    resumed = run(folder, (records, images), tmp_path, "resumed", **settings)
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-4, atol=1e-5)
    assert np.isfinite(losses(whole)).all()
    tuned, _ = load_model(whole, device="cpu")
    base, _ = load_model(folder, device="cpu")
    changed = {n for n, p in tuned.named_parameters() if not torch.allclose(p, base.get_parameter(n), atol=1e-6)}
    parts = {FAMILIES[entry.family].part_of(name) for name in changed}
    assert {"language_model", "projector"} <= parts


def requests_of(questions, *, max_new_tokens=4):
    """(requests, task_dict) of lmms-eval for questions as lists of messages."""
    options = {"max_new_tokens": max_new_tokens, "temperature": 0, "until": ["\n\n"]}
    docs = {"task": {"test": dict(enumerate(questions))}}
    requests = [
        Instance(
            request_type="generate_until",
            arguments=("", lambda doc: doc, options, i, "task", "test"),
            idx=0,
            metadata={"task": "task", "doc_id": i, "repeats": 1},
        )
        for i in range(len(questions))
    ]
    return requests, docs


def test_a_replica_answers_questions_in_batches_as_alone(replica, data):
    """With an image, with several, without one, and after earlier turns; the answers are those of plain generation."""
    entry, folder = replica
    _, images = data
    wide, square = (Image.open(images / name) for name in ("wide.png", "square.png"))

    def said(role, *content):
        parts = [{"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "url": c} for c in content]
        return {"role": role, "content": parts}

    questions = [
        [said("user", wide, "what is this thing1?")],
        [said("user", wide, "what is this thing2?")],
        [said("user", wide, square, "number of colours?")],
        [said("user", square, "really?"), said("assistant", "yes 2"), said("user", "what is shown here?")],
    ]
    if TEXT_ONLY.get(entry.family, True):
        questions += [[said("user", "who is this?")]]
        questions += [[said("user", "really?"), said("assistant", "no"), said("user", "what is yes?")]]
    answers = {}
    for batch_size in (4, 1):
        model = CoincideModel(str(folder), device="cpu", batch_size=batch_size)
        requests, model.task_dict = requests_of(questions)
        answers[batch_size] = model.generate_until(requests)
    assert answers[4] == answers[1]
    processor = model.processor
    turns = [{"from": "human", "value": "<image>\nwhat is this thing1?"}]
    inputs = encode_prompts(processor, [render_prompt(processor, turns)], [[wide]])
    with torch.inference_mode():
        ids = model.model.generate(**inputs, do_sample=False, max_new_tokens=4, eos_token_id=model.end_ids)
    new = ids[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(new, skip_special_tokens=True).split("\n\n")[0].strip() == answers[1][0]
    ends = {FAMILIES[entry.family].end_of_turn or processor.tokenizer.eos_token}
    assert ends <= set(processor.tokenizer.convert_ids_to_tokens(model.end_ids))


def test_the_base_of_an_adapter_keeps_its_revision_and_trust_is_the_callers(tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"base_model_name_or_path": "org/base", "revision": "abc", "trust_remote_code": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    asked = []
    monkeypatch.setattr(
        "coincide.models.loading.AutoConfig.from_pretrained", lambda name, **options: asked.append((name, options))
    )
    load_config(Checkpoint(str(folder)))
    load_config(Checkpoint(str(folder), trust_remote_code=True))
    assert [name for name, _ in asked] == ["org/base", "org/base"]
    assert [options["revision"] for _, options in asked] == ["abc", "abc"]
    assert [options["trust_remote_code"] for _, options in asked] == [False, True]


def test_an_adapter_records_the_revision_of_its_base(tmp_path):
    from coincide.base.sections import Lora
    from coincide.training.adaptation import with_lora

    build("llava-hf/llava-1.5-7b-hf", tmp_path / "base")
    model, _ = load_model(tmp_path / "base", device="cpu")
    with_lora(model, Lora(**LORA), "abc123").save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["revision"] == "abc123"


def test_an_adapter_is_merged_once_for_all_groups(tmp_path, data, monkeypatch):
    """For a class of lmms-eval's own; the project's model merges in memory."""
    records, images = data
    build("llava-hf/llava-1.5-7b-hf", tmp_path / "base")
    settings = {"lora": LORA, "epochs": 1.0, "batch_size": 2, "learning_rate": 1e-2}
    adapter = run(tmp_path / "base", (records[:2], images), tmp_path, "adapter", **settings)
    merges, load = [], loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda *a, **k: merges.append(a) or load(*a, **k))
    evaluation = Evaluation(groups=[{"name": "a", "tasks": ["t"]}], backend="llava_hf", device="cpu")
    folders = []
    for _ in range(2):
        with evaluate._loadable(adapter, evaluation, False, tmp_path / "scratch") as folder:
            assert (folder / "config.json").exists()
            folders.append(folder)
    assert len(merges) == 1
    assert len(set(folders)) == 1
    project = evaluation.model_copy(update={"backend": "coincide"})
    with evaluate._loadable(adapter, project, False, tmp_path / "scratch") as folder:
        assert folder == adapter
    monkeypatch.setattr(evaluate, "UNUSED_AFTER", -1)
    evaluate._remove_unused(tmp_path / "scratch" / folders[0].parent.name)
    assert not folders[0].exists()


def test_arguments_of_a_class_of_lmms_eval_are_passed_unchanged():
    def arguments(trust_remote_code=False, **settings):
        evaluation = Evaluation(groups=[{"name": "a", "tasks": ["t"]}], device="cpu", **settings)
        return evaluate._model_arguments("m", evaluation, trust_remote_code)

    given = {"max_pixels": 12845056, "attn_implementation": "sdpa"}
    passed = "max_pixels=12845056,attn_implementation=sdpa"
    assert arguments(backend="phi4_multimodal", model_args=given) == f"pretrained=m,{passed}"
    assert arguments(backend="qwen2_5_vl", model_args=given) == f"pretrained=m,device=cpu,device_map=cpu,{passed}"
    auto = {"device_map": "auto"}
    assert arguments(backend="qwen2_5_vl", model_args=auto) == "pretrained=m,device=cpu,device_map=auto"
    assert arguments(True, dtype="bfloat16") == "pretrained=m,device=cpu,dtype=bfloat16,trust_remote_code=True"


def test_an_unknown_kind_of_medium_is_an_error_that_names_the_task(replica):
    _, folder = replica
    model = CoincideModel(str(folder), device="cpu")
    requests, model.task_dict = requests_of([[{"role": "user", "content": [{"type": "video", "url": "a.mp4"}]}]])
    with pytest.raises(Exception, match="task task has videos"):
        model.generate_until(requests)


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"]
)
def test_an_image_that_the_processor_refuses_is_rejected_with_a_reason(name, tmp_path):
    build(name, tmp_path / "model")
    Image.new("RGB", (2100, 10)).save(tmp_path / "line.png")
    Image.new("RGB", (60, 60)).save(tmp_path / "square.png")

    def sample(i, image):
        turns = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": "a line"}]
        return Sample(f"s{i}", i, {"id": f"s{i}", "image": image, "conversations": turns})

    samples = [sample(0, "square.png"), sample(1, "line.png"), sample(2, "square.png")]
    model, processor = load_model(tmp_path / "model", device="cpu")
    reference = ReferenceModel(name=name, layers=[0], max_tokens=2000)
    rejected = extract(model, processor, samples, tmp_path, reference, output=tmp_path / "a.parquet")
    assert [(r.id, r.reason) for r in rejected] == [("s1", Reason.REFUSED_IMAGE)]
    assert "aspect ratio" in rejected[0].detail
    assert len(Activations(tmp_path / "a.parquet").sample_ids) == 2
    with pytest.raises(RefusedImageError, match=r"one of the samples \['s1'\]: .*aspect ratio"):
        Collator(processor, [samples[1].record], tmp_path)([{"row": 0}])


def test_a_base_model_under_adapters_has_the_dtype_of_the_computation(replica, data, tmp_path, monkeypatch):
    entry, folder = replica
    records, images = data
    seen = {}

    def remember(self, args, state, control, model, **kwargs):
        for parameter in model.parameters():
            seen.setdefault(parameter.requires_grad, set()).add(parameter.dtype)

    monkeypatch.setattr(finetune_module._ProgressLines, "on_step_begin", remember, raising=False)
    settings = {"epochs": 1.0, "batch_size": 2, "learning_rate": 1e-2, "dtype": "bfloat16"}
    records = usable(entry, records)[:4]
    tuned = run(folder, (records, images), tmp_path, "lora", lora=LORA, **settings)
    assert seen == {True: {torch.float32}, False: {torch.bfloat16}}
    assert np.isfinite(losses(tuned)).all()
    seen.clear()
    run(folder, (records, images), tmp_path, "frozen", freeze=["vision_tower"], **settings)
    assert seen == {True: {torch.float32}, False: {torch.float32}}
