"""Target browse on a finished run."""

import json

import pandas as pd
import pytest
from conftest import copy_of

pytestmark = pytest.mark.workflow


def read_script(path):
    return json.loads(path.read_text().split(", ", 1)[1].removesuffix(");\n"))


def test_browse_writes_every_cluster_with_the_picks_of_its_coreset(finished, tmp_path):
    workplace = copy_of(finished, tmp_path / "copy")
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
