"""What a changed setting reruns: a table for the documentation (`make schema` writes it into docs/reruns.md).

The sections of the config mark the rules whose results a setting changes (`coincide.base.sections`); what depends on
these rules follows from `STAGES`. tests/workflow/test_reruns.py changes each setting of a finished run and compares the
table with a dry run.
"""

from collections.abc import Iterator

from coincide.base.sections import Config, Section
from coincide.workflow.config_reference import nested_section
from coincide.workflow.stages import CORESET, CORESET_STAGES, STAGES

# rule -> rules whose results it reads, for rules that are no stage because no other run needs their results
OTHER_RULES = {
    "mini_mix": (),
    "even_mix": (),
    "tiny_model": (),
    "converted_model": (),
    "cluster_stats": ("shares", "budget"),
    "coreset_dataset": (CORESET, "merge"),
    "export_coreset": ("coreset_json",),
    "summary": ("evaluate_model", "merge", "clusters", "shares", "leaks", "duplicates", CORESET),
    "write_report": (
        *("summary", "manifest", "merge", "clusters", "cluster_stats", "evaluate_model", "leaks", "duplicates"),
        CORESET,
    ),
    "browser": ("merge", "clusters", "cluster_stats", CORESET),
}
# They rerun only if the coreset has another content; difficulty, which trains on the full data, that of the full data
CONTENT_KEYED = ("finetune_model", "evaluate_model", "difficulty")
# what only some methods, budgets, tasks and settings need
OPTIONAL = ("clip_scores", "difficulty", "check_transfer", "holdout_questions", "screen")
# columns of the table
COLUMNS = {
    "dataset": ("manifest", "shards", "holdout_questions", "screen"),
    "leaks": ("image_hashes", "leaks", "duplicates"),
    "activations": ("activations", "merge"),
    "clusters": ("clusters",),
    "transfer check": ("check_transfer",),
    "shares": ("transferability", "density", "shares"),
    "picks": ("budget", "picks", "cluster_stats"),
    "CLIP scores": ("clip_scores",),
    "difficulty": ("difficulty",),
    "coresets": (
        "coincide_coreset",
        "method_coreset",
        "full_coreset",
        "coreset_json",
        "coreset_dataset",
        "export_coreset",
    ),
    "models": ("finetune_model",),
    "evaluations": ("evaluate_model",),
    "report": ("summary", "write_report"),
    "browser": ("browser",),
}
# What changes when a path does, or what chooses the manifest that rules read, and which jobs the entries of an expanded
# setting have. The first rules of each.
READERS = {
    "dataset.annotations": ("manifest",),
    "dataset.extends": ("activations",),
    "clustering.centroids": ("clusters",),
    "dataset.images": (
        "manifest",
        "image_hashes",
        "leaks",
        "activations",
        "clip_scores",
        "difficulty",
        "finetune_model",
    ),
    "dataset.leaks": ("shards", "merge", "summary"),
    "dataset.near_duplicates": ("shards", "merge", "summary"),
}
EXPANDED = {
    "selection.fractions": ("budget", "picks", "coincide_coreset", "method_coreset"),
    "selection.methods": ("method_coreset",),
    "selection.method_settings": ("method_coreset",),
    "target_model.label": ("finetune_model",),
    "target_model.seeds": ("finetune_model",),
    "target_model.full": ("full_coreset",),
    "evaluation.groups": ("evaluate_model", "leaks"),
}
BEGIN, END = "<!-- table: written by make schema -->", "<!-- end of the table -->"


def dependents(rules: tuple[str, ...], *, any_method: bool = True) -> set[str]:
    """The rules, and transitively all that read their results.

    Args:
        rules: the first of them.
        any_method: include what only some methods, budgets and tasks depend on (`OPTIONAL`).
    """
    graph = {**STAGES, **OTHER_RULES}
    if any_method:
        graph["method_coreset"] = (*graph["method_coreset"], "clip_scores", "difficulty")
    else:
        graph = {name: tuple(rule for rule in parents if rule not in OPTIONAL) for name, parents in graph.items()}
    coresets = {*CORESET_STAGES.values(), "method_coreset"}
    reached: set[str] = set()
    to_visit = list(rules)
    while to_visit:
        rule = to_visit.pop()
        if rule not in reached:
            reached.add(rule)
            names = {rule, CORESET} if rule in coresets else {rule}
            to_visit += [other for other, parents in graph.items() if names & set(parents)]
    return reached


def settings(section: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(dotted name, rules that it changes, kind) of every setting; kind is "", "operational", "path" or "expanded".

    Settings of single runs (`runs`), of the pilot, which has runs of its own, of environment modules and of what the
    workflow builds for the demo are left out.
    """
    for name, field in section.model_fields.items():
        dotted, mark = f"{prefix}{name}", section.mark(name)
        nested = nested_section(field.annotation)
        if dotted in ("runs", "pilot", "modules", "tiny_models", "converted_models", "mini_mix", "even_mix"):
            continue
        if section is Config and not nested:
            continue
        if nested and not mark.get("expanded"):
            yield from settings(nested, f"{dotted}.")
        else:
            kinds = [kind for kind in ("operational", "path", "expanded") if mark.get(kind)]
            yield dotted, _first_rules(dotted, section, name), (kinds or [""])[0]


def _first_rules(dotted, section, name):
    if rules := READERS.get(dotted) or EXPANDED.get(dotted):
        return rules
    # a section of training belongs to the demo's models, too
    return tuple(rule for rule in section.stages_of(name) if rule != "tiny_model")


def _all_settings():
    return {name: first for name, first, _ in settings()}


def reruns(dotted: str) -> tuple[set[str], set[str]]:
    """Rules that run again when a setting changes: (in any case, only if the coreset has another content).

    Raises:
        KeyError: there is no such setting.
    """
    rules = _all_settings()[dotted]
    affected = dependents(rules)
    changed = {rule for rule in rules if rule in CONTENT_KEYED}
    if "clip_scores" in affected:  # difficulty reads them, too
        changed.add("difficulty")
    # what reads the difficulty is a coreset, whose content decides again
    in_any_case = changed | dependents(tuple(changed - {"difficulty"}))
    if_changed = affected & set(CONTENT_KEYED) - in_any_case
    return affected - if_changed, if_changed


def table() -> str:
    """The table, as Markdown; settings that rerun the same are one row."""
    rows: dict[tuple, list[str]] = {}
    for name, _, kind in settings():
        certain, if_changed = reruns(name)
        for_all = _for_all(_all_settings()[name])
        cells = tuple(_cell(set(rules), certain, if_changed, for_all, kind) for rules in COLUMNS.values())
        rows.setdefault(cells, []).append(name)
    lines = [f"| setting | {' | '.join(COLUMNS)} |", f"| --- |{' :-: |' * len(COLUMNS)}"]
    nothing = ("",) * len(COLUMNS)
    for cells, names in sorted(rows.items(), key=lambda row: row[0] == nothing):
        lines.append(f"| {_names(names)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _for_all(rules):
    """What reruns whatever the methods and budgets are."""
    needed = dependents(tuple(rule for rule in rules if rule not in OPTIONAL), any_method=False)
    return needed - set(OPTIONAL)


def _names(names):
    """The names of settings, those of a section together."""
    sections: dict[str, list[str]] = {}
    for name in names:
        section, _, key = name.rpartition(".")
        sections.setdefault(section, []).append(key)
    return "; ".join(f"`{section}`: {', '.join(keys)}" for section, keys in sections.items())


def _cell(rules, certain, if_changed, for_all, kind):
    if not rules & (certain | if_changed):
        return ""
    is_for_all = rules & for_all
    # where leaks of the evaluation are dropped, a new task changes the samples, and so all that depends on them
    is_changed_by_screen = "leaks" in certain and not is_for_all
    symbol = "+" if kind == "expanded" and not is_changed_by_screen else "●" if rules & certain else "○"
    return symbol if is_for_all else f"({symbol})"


def with_table(page: str) -> str:
    """A page with the current table between its two marks."""
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n{table()}{END}{rest.split(END)[1]}"
