"""The reference of all settings, as Markdown (`make schema` writes config/README.md)."""

import inspect
import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from coincide.base.sections import Config, Section

INTRODUCTION = """# Settings

Generated from `coincide/base/sections.py` by `make schema`; do not edit.

[config.yaml](../config.yaml) is the default config. A file given with `--configfile` is merged into it: mappings are
merged, and lists are replaced. Unknown keys and invalid values are reported before anything runs. Editors can validate
a config that is complete with [schema.json](schema.json), and one that is merged into config.yaml with
[overlay.schema.json](overlay.schema.json): begin it with `# yaml-language-server: $schema=<path of the schema>`.

This folder contains configs to use with `--configfile`, and the tasks of the default config:

- `llava665k.yaml`, `vision_flan.yaml`: the paper's two settings; only your paths are missing
- `qwen2_5_vl.yaml`: a current pair, Qwen2.5-VL-3B and 7B
- `study.yaml`, `study-small.yaml`, `study-even.yaml`, `study-oversized.yaml`, `study-premise.yaml`, `ablations.yaml`:
  those of [docs/study.md](../docs/study.md)
- `constraints.yaml`: the default run next to one with a floor for a source
- `tasks/`: lmms-eval tasks for the generated datasets

In the tables below:

- **key**: `[]` means every item of a list, and `<name>` every key of a mapping.
- **type**: a name consists of letters, digits, `.`, `_` and `-`, and begins with a letter or digit.
- **reruns**: the rules whose results the setting changes. After a change, these rules and all rules that depend on them
  run again; other results are kept. For settings such as devices and batch sizes, no results change. "New values only"
  means that the workflow expands the setting into jobs: new values add jobs, and existing results are kept. "–" means
  that the setting defines which runs there are.
"""
LOWER = (("minimum", "≤", "≥"), ("exclusiveMinimum", "<", ">"))  # sign if written before and after the kind
UPPER = {"maximum": "≤", "exclusiveMaximum": "<"}
TYPES = {"boolean": "true or false", "object": "mapping", "string": "text"}


class Setting(NamedTuple):
    """A row of the reference.

    Attributes:
        key: dotted name within its section.
        type: the allowed values, in words.
        default: as in YAML; None for a setting that must be given.
        description: of the field.
        reruns: rules whose results the setting changes, in words.
    """

    key: str
    type: str
    default: str | None
    description: str
    reruns: str


def reference() -> str:
    """The reference of all settings: one Markdown table per section of the config."""
    sections = {name: nested_section(field.annotation) for name, field in Config.model_fields.items()}
    general = [name for name, section in sections.items() if section is None or name == "runs"]
    parts = [INTRODUCTION, "## Runs\n", _table(_settings(Config, general))]
    for name, section in sections.items():
        if section is None or name in general:
            continue
        annotation = Config.model_fields[name].annotation
        description = inspect.cleandoc(section.__doc__ or "")
        parts += [f"## `{name}`\n", f"{description}{_keys_in_words(annotation)}\n"]
        parts.append(_table(_settings(section, prefix=_prefix("", annotation))))
    return "\n".join(parts)


def nested_section(annotation: Any) -> type[Section] | None:
    """The section in a field's annotation, also inside a list, a dict or an optional; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(nested_section, get_args(annotation))), None)


def type_in_words(schema: dict[str, Any]) -> str:
    """The values that a JSON schema allows, in words.

    >>> type_in_words({"type": "integer", "minimum": 1})
    'integer ≥ 1'
    >>> type_in_words({"type": "array", "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}})
    'list of 0 < number ≤ 1'
    >>> type_in_words({"anyOf": [{"enum": ["sdpa", "eager"]}, {"type": "null"}]})
    'sdpa, eager or null'
    """
    *first, last = _alternatives(schema)
    return f"{', '.join(first)} or {last}" if first else last


def _alternatives(schema):
    """The alternatives that a JSON schema allows, each in words."""
    if "anyOf" in schema:
        return [alternative for option in schema["anyOf"] for alternative in _alternatives(option)]
    if "enum" in schema:
        return schema["enum"]
    kind = schema.get("type", "object")  # a reference to another section has no type
    if kind == "array":
        items = type_in_words(schema["items"])
        items = f"({items})" if " or " in items else items
        return [f"list of {items}{', not empty' if schema.get('minItems') else ''}"]
    if kind == "string" and "pattern" in schema:
        return ["name"]
    return [_with_bounds(TYPES.get(kind, kind), schema)]


def _with_bounds(kind, schema):
    """The kind of number with its bounds: "integer ≥ 1", or "0 < number ≤ 1" for two bounds."""
    upper = "".join(f" {sign} {schema[bound]:g}" for bound, sign in UPPER.items() if bound in schema)
    for bound, before, after in LOWER:
        if bound in schema:
            lower = f"{schema[bound]:g}"
            return f"{lower} {before} {kind}{upper}" if upper else f"{kind} {after} {lower}"
    return kind + upper


def _settings(
    section: type[Section],
    names: list[str] | None = None,
    prefix: str = "",
    parent_stages: Sequence[str] | None = None,
) -> Iterator[Setting]:
    """The settings of a section and of the sections inside it.

    Args:
        section: a subclass of Section.
        names: of the fields; None: all.
        prefix: of the keys.
        parent_stages: the stages that read the section; None: all.
    """
    schemas = section.model_json_schema()["properties"]
    for name in names or section.model_fields:
        field, mark = section.model_fields[name], section.mark(name)
        stages = [s for s in section.stages_of(name) if parent_stages is None or s in parent_stages]
        nested = nested_section(field.annotation)
        if field.description or not nested:
            yield Setting(
                prefix + name,
                type_in_words(schemas[name]),
                None if field.is_required() else _as_yaml(field.default),
                field.description or "",
                _reruns(mark, section.STAGES if mark.get("path") else stages),
            )
        if nested:
            nested_stages = parent_stages if mark.get("expanded") else stages
            yield from _settings(nested, None, _prefix(prefix + name, field.annotation), nested_stages)


def _prefix(key, annotation):
    """Prefix of the keys of a nested section, which may be in a list or a dict."""
    item = {list: "[]", dict: "<name>" if not key else ".<name>"}.get(get_origin(annotation), "")
    return f"{key}{item}." if key or item else ""


def _keys_in_words(annotation):
    """A sentence on the keys of a mapping, if only some are allowed."""
    if get_origin(annotation) is not dict or get_origin(get_args(annotation)[0]) is not Literal:
        return ""
    *first, last = get_args(get_args(annotation)[0])
    return f" `<name>` is {', '.join(first)} or {last}."


def _reruns(mark, stages):
    if mark.get("operational"):
        return "no results change"
    return "new values only" if mark.get("expanded") else ", ".join(stages) or "–"


def _as_yaml(value):
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _table(settings):
    lines = ["| key | type | default | description | reruns |", "| --- | --- | --- | --- | --- |"]
    for setting in settings:
        default = "required" if setting.default is None else f"`{setting.default}`"
        description = setting.description.replace("<", "\\<")
        cells = [f"`{setting.key}`", setting.type, default, description, setting.reruns]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
