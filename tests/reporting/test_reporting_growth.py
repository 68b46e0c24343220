"""What a run says about the earlier run that it takes samples, picks and centroids from."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import REPO
from report_run import build_run

from coincide.base.activation_store import write_activations
from coincide.base.sections import Config
from coincide.reporting.growth import (
    RunGrowth,
    count_samples,
    growth_lines,
    growth_section,
    growth_warnings,
    read_run_growth,
)
from coincide.reporting.report import write_report
from coincide.reporting.run_warnings import run_warnings


def ids(prefix, n):
    return pd.Series([f"{prefix}{i}" for i in range(n)])


def test_samples_are_counted_by_id_and_by_what_was_reused():
    old, now = ids("a", 10), pd.concat([ids("a", 8), ids("b", 5)])
    counts = count_samples(now, old, [{"reused": 4}, {"reused": 3}])
    assert counts == {"all": 13, "new": 5, "gone": 2, "reused": 7, "changed": 1}
    assert count_samples(now, old, [{"reused": 4}, {}]) == {"all": 13, "new": 5, "gone": 2}  # of an older version
    (line,) = growth_lines(RunGrowth("results/first", counts))
    assert line == (
        "The dataset extends results/first: the activations of 7 of 13 samples are reused; those of 5 new ones, "
        "1 changed ones were computed. 2 samples of it are not in the dataset."
    )
    assert growth_lines(None) == list(growth_warnings(None)) == []
    assert growth_section(None) is None


@pytest.mark.parametrize(("badly", "warned"), [(4, False), (5, True), (40, True)])
def test_many_samples_that_fit_badly_are_warned_of_with_their_sources_and_the_switch(badly, warned):
    fit = pd.DataFrame({"source": ["maps", "signs"], "new": [60, 40], "badly": [badly - 1, 1]})
    growth = RunGrowth(None, centroids="results/first/centroids.parquet", fit=fit, quantile=0.01)
    (line,) = growth_lines(growth)
    assert f"{badly} of 100 new samples ({badly}.0%) fit them badly" in line
    assert "than 99.0% of the earlier samples (1.0% if they are alike)" in line
    warnings = list(growth_warnings(growth))
    assert bool(warnings) == warned
    if warned:
        assert f"by source: maps ({(badly - 1) / 60:.1%}), signs (2.5%)" in warnings[0][0]
        assert warnings[0][1] == "set clustering.centroids to null, which clusters all samples anew"
    # few of many, as alike samples
    many = replace(growth, fit=fit.assign(new=[10_000, 1000]))
    assert not list(growth_warnings(many))


def test_a_run_is_compared_with_the_one_it_extends(tmp_path):
    old, samples = ids("a", 10), pd.concat([ids("a", 9), ids("b", 10)], ignore_index=True)
    earlier = tmp_path / "first"
    for method, picks in (("coincide", [0, 9]), ("random", [1, 2])):
        folder = earlier / f"coresets/{method}/0.2"
        folder.mkdir(parents=True)
        pd.DataFrame({"sample_id": old[picks]}).to_parquet(folder / "coreset.parquet")
    pd.DataFrame({"sample_id": old}).to_parquet(earlier / "manifest.parquet")
    pd.DataFrame({"sample_id": old, "cluster": 0, "similarity": 0.9}).to_parquet(earlier / "clusters.parquet")
    paths = {name: tmp_path / f"{name}.parquet" for name in ("manifest", "activations", "clusters", "coincide", "full")}
    pd.DataFrame({"sample_id": samples, "source": "x"}).to_parquet(paths["manifest"])
    pd.DataFrame({"sample_id": samples, "cluster": 0, "similarity": [0.9] * 13 + [0.5] * 6}).to_parquet(
        paths["clusters"]
    )
    write_activations(
        paths["activations"], [(list(samples), np.ones((19, 2), np.float16))], dimension=2, metadata={"reused": 9}
    )
    pd.DataFrame({"sample_id": ["a0", "b3", "b4"]}).to_parquet(paths["coincide"])
    values = yaml.safe_load((REPO / "config.yaml").read_text())
    config = Config.model_validate(values)
    arguments = {name: paths[name] for name in ("manifest", "activations", "clusters")}
    arguments["coresets"] = {("coincide", "0.2"): paths["coincide"], ("full", "1"): paths["manifest"]}
    assert read_run_growth(config, **arguments) is None
    config.dataset.extends = str(earlier)
    assert read_run_growth(config, **arguments).coresets is None
    config.clustering.centroids = str(earlier / "centroids.parquet")
    config.selection.keep_earlier = True
    growth = read_run_growth(config, **arguments)
    assert growth.counts == {"all": 19, "new": 10, "gone": 1, "reused": 9, "changed": 0}
    assert growth.coresets.to_dict("split")["data"] == [["coincide at 0.2", 3, 1, 0, 2]]
    assert growth.fit.to_dict("split")["data"] == [["x", 10, 6]]
    (fit, _), (lost, _) = growth_warnings(growth)
    assert fit.startswith("6 of 10 new samples (60.0%; 1.0% if they are like the earlier ones)")
    assert lost.startswith("the dataset lacks 1 sample of the earlier coreset (coincide at 0.2), or")


def test_the_report_shows_it_and_warns_first(tmp_path):
    run = build_run(tmp_path, seeds=3)
    fit = pd.DataFrame({"source": ["maps"], "new": [10], "badly": [6]})
    growth = RunGrowth("results/first", {"all": 20, "new": 10, "gone": 0}, centroids="c", fit=fit)
    run.growth = growth_section(growth)
    run.warnings = run_warnings(
        summary=run.summary,
        manifest=run.manifest,
        rejected=run.rejected,
        cluster_stats=run.cluster_stats,
        coresets={},
        learned_above=0.0,
        growth=growth,
    )
    assert run.warnings[0].fix.startswith("set clustering.centroids to null")
    write_report(tmp_path / "report.html", run)
    section = (tmp_path / "report.html").read_text().split('<section id="growth"')[1].split("</section>")[0]
    assert "The dataset extends results/first: 10 of 20 samples are new." in section
    assert '<th scope="row">maps</th><td>10</td><td>6</td><td class="text">60.0%</td>' in section
