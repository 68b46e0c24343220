"""Parameters of a checkpoint from headers, index, config or name, without loading torch."""

import json
import subprocess
import sys

import pytest
from conftest import REPO

from coincide.models.loading import load_model
from coincide.models.sizes import UNKNOWN_PARAMETERS, count_parameters, parameters_in, parameters_in_name


def test_weights_are_counted_in_their_headers(tiny_model):
    model, _ = load_model(tiny_model, device="cpu")
    assert parameters_in(tiny_model) == sum(p.numel() for p in model.parameters())


def test_an_index_or_a_config_tells_where_there_are_no_weights(tmp_path):
    assert parameters_in(tmp_path) is None
    # llava-1.5-7b-hf's config.json leaves out what is the default of transformers' LlamaConfig
    vision = {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096}
    config = {"text_config": {"vocab_size": 32064}, "vision_config": vision, "torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert parameters_in(tmp_path) == pytest.approx(7.06e9, rel=0.01)
    index = {"metadata": {"total_size": 14_126_854_144}, "weight_map": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert parameters_in(tmp_path) == 14_126_854_144 / 2


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llava-hf/llava-1.5-7b-hf", 7e9),
        ("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 0.5e9),
        ("Qwen/Qwen2.5-VL-72B-Instruct", 72e9),
        ("models/TinyLLaVA-2.0B", 2e9),
        ("bczhou/tiny-llava-v1-hf", None),
        ("openai/clip-vit-large-patch14-336", None),
    ],
)
def test_a_name_tells_the_size(name, parameters):
    assert parameters_in_name(name) == parameters
    assert count_parameters(name) == (parameters or UNKNOWN_PARAMETERS)


def test_a_hub_name_is_looked_up_in_the_cache(tmp_path, monkeypatch):
    folder = tmp_path / "hub/models--org--model-7b"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc123")
    (folder / "snapshots/abc123").mkdir(parents=True)
    index = {"metadata": {"total_size": 100, "total_parameters": 33}}
    (folder / "snapshots/abc123/model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert count_parameters("org/model-7b") == count_parameters("org/model-7b", "abc123") == 33
    assert count_parameters("org/model-7b", "v2") == 7e9


def test_the_workflow_is_read_without_torch():
    code = (
        "import sys, coincide.workflow.job_resources, coincide.workflow.job; sys.exit('torch' in sys.modules "
        "or 'transformers' in sys.modules or 'pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0
