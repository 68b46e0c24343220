"""Programs of lmms-eval start with the parser of PyYAML that is written in C, and read the same from task files."""

import json
import subprocess
import sys

import yaml
from lmms_eval.utils import load_yaml_config

from coincide.evaluation import lmms_start

TASK = """# a task with what task files use
task: example
dataset_kwargs: {token: True, data_files: {test: a.parquet}}
doc_to_visual: !function utils.doc_to_visual
lmms_eval_specific_kwargs:
  default: &default {pre_prompt: "", post_prompt: "\\nAnswer with one word:"}
  other: {<<: *default, pre_prompt: 'one'}
generation_kwargs: {until: ["\\n\\n"], temperature: 0, top_p: 1.0e-1, do_sample: false, max_new_tokens: 16}
metadata: [{version: 0.0}, null, ~, 2024-10-01]
"""
PROGRAM = """
import sys, json, yaml
from lmms_eval.utils import load_yaml_config
config = load_yaml_config(sys.argv[1])
function = config.pop("doc_to_visual")
print(json.dumps([yaml.FullLoader.__mro__[1].__name__, repr(config), function(1)]))
"""


def test_a_file_runs_with_the_fast_parser_and_reads_the_same(tmp_path):
    task, program = tmp_path / "task.yaml", tmp_path / "program.py"
    task.write_text(TASK)
    (tmp_path / "utils.py").write_text("def doc_to_visual(x):\n    return x + 1\n")
    program.write_text(PROGRAM)
    command = lmms_start.command(None, program, str(task))
    output = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True).stdout
    parser, config, returned = json.loads(output)
    assert yaml.__with_libyaml__
    assert parser == "CFullLoader"
    expected = load_yaml_config(task)
    assert returned == expected.pop("doc_to_visual")(1) == 2
    assert config == repr(expected)


def test_a_module_runs_as_with_m(tmp_path):
    (tmp_path / "here.py").write_text("import sys\nprint(__name__, sys.argv[1:], sys.path[0])")
    started, plain = (
        subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True).stdout
        for command in (lmms_start.command(None, "here", "--a", "1"), [sys.executable, "-m", "here", "--a", "1"])
    )
    assert started == plain
    assert started.startswith("__main__ ['--a', '1'] ")
