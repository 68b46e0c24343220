"""Targets browse and compare on a finished run."""

import json

import pandas as pd
import pytest
from conftest import copy_of

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def copy(finished, tmp_path_factory):
    """A copy of a finished run: a start changes the plan of the run."""
    return copy_of(finished, tmp_path_factory.mktemp("copy") / "copy")


def read_script(path):
    return json.loads(path.read_text().split(", ", 1)[1].removesuffix(");\n"))


def test_browse_writes_every_cluster_with_the_picks_of_its_coreset(copy):
    workplace = copy
    code, output = workplace.run("browse")
    assert code == 0, output
    assert "results/small/browser/index.html" in output
    folder = workplace / "results/small/browser"
    clusters = read_script(folder / "clusters.js")
    assert [f"{c['method']} {c['fraction']} {c['kept']}" for c in clusters["coresets"]] == [
        "coincide 0.2 132",
        "random 0.2 132",
    ]
    stats = pd.read_parquet(workplace / "results/small/cluster_stats.parquet")
    assert clusters["size"] == stats["size"].tolist()
    assert clusters["kept"][0] == stats["budget_0.2"].tolist()
    assert all(words for words, size in zip(clusters["words"], clusters["size"]) if size)
    coreset = pd.read_parquet(workplace / "results/small/coresets/coincide/0.2/coreset.parquet").set_index("sample_id")
    pages = [page for path in sorted((folder / "samples").iterdir()) for page in read_script(path)]
    assert [page["cluster"] for page in pages] == list(range(12))
    for page in pages:
        assert len(page["members"]) == min(40, clusters["size"][page["cluster"]])
        for member in page["members"]:
            ranks = [rank for number, _, rank in member["picks"] if number == 0]
            assert ranks == ([coreset.loc[member["id"], "rank"]] if member["id"] in coreset.index else [])
    thumbnails = [image for path in (folder / "images").iterdir() for image in read_script(path)]
    assert thumbnails
    assert all(thumbnails)
    code, output = workplace.run("-n", "browse")
    assert "Nothing to be done" in output


def test_compare_shows_what_two_coresets_share(copy):
    names = [f"results/small/coresets/{method}/0.2" for method in ("coincide", "random")]
    code, output = copy.run("compare", "--config", f"compare=[{', '.join(names)}]")
    assert code == 0, output
    folder = copy / "results/compare-small-coincide-0.2-small-random-0.2"
    assert (folder / "compare.md").read_text() in output
    first, second = (set(pd.read_parquet(copy / f"{name}/coreset.parquet")["sample_id"]) for name in names)
    (row,) = pd.read_csv(folder / "coresets.csv").to_dict("records")
    assert (row["kept_a"], row["kept_b"], row["shared"]) == (132, 132, len(first & second))
    clusters = pd.read_csv(folder / "clusters.csv")
    stats = pd.read_parquet(copy / "results/small/cluster_stats.parquet")
    assert clusters["kept_a"].tolist() == stats.loc[stats["size"] > 0, "budget_0.2"].tolist()
    assert pd.read_csv(folder / "sources.csv")["samples"].sum() == stats["size"].sum()
    assert "<h1>" in (folder / "compare.html").read_text()


def test_compare_without_names_says_what_to_do(copy):
    code, output = copy.run("compare", "-n")
    assert code != 0
    assert "compare: name two runs or two coresets" in output
    code, output = copy.run("compare", "-n", "--config", "compare=[small, nothing]")
    assert code != 0
    assert "nothing is neither a run of the config nor a folder with coresets" in output
