"""What the cluster browser writes: which members it shows, groups, neighbours, thumbnails, words, and safe scripts."""

import base64
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
from formats import FORMATS, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from coincide.base.errors import UserError
from coincide.base.sections import Browser, Dataset
from coincide.dataset.formats import open_dataset
from coincide.reporting.browser import (
    CHARACTERS_PER_SAMPLE,
    SAMPLES_PER_GROUP,
    group_clusters,
    make_thumbnail,
    nearest_clusters,
    shown_members,
    write_browser,
)
from coincide.reporting.words import distinctive_words


def read_script(path):
    """(name, data) of a data script."""
    match = re.fullmatch(r'coincideBrowser\.add\("([^"]+)", (.*)\);\n', path.read_text(encoding="utf-8"), re.DOTALL)
    return match[1], json.loads(match[2])


# --- members that are shown -----------------------------------------------------------------------------------------


def test_a_small_cluster_is_shown_whole_kept_members_first():
    labels = np.array([0, 1, 0, 0, 1, 0])
    similarity = np.array([0.1, 0.5, 0.9, 0.3, 0.4, 0.2])
    rank = np.array([3, -1, -1, 1, -1, -1], np.int32)
    shown = shown_members(labels, similarity, rank, 4, 3)
    assert [members.tolist() for members in shown] == [[3, 0, 2, 5], [1, 4], []]


def test_kept_members_of_a_large_cluster_leave_half_of_the_places_to_others():
    labels, similarity = np.zeros(100, int), np.linspace(1, 0, 100)
    rank = np.where(np.arange(100) < 30, np.arange(100)[::-1], -1).astype(np.int32)
    (shown,) = shown_members(labels, similarity, rank, 10, 1)
    assert shown[:5].tolist() == [29, 28, 27, 26, 25]
    assert shown[5:].tolist() == [30, 47, 64, 82, 99]  # from the most similar to the least


@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1), st.booleans()), min_size=1, max_size=80),
    st.integers(2, 20),
)
def test_shown_members_belong_to_their_cluster_and_keep_the_bound(samples, bound):
    labels, similarity, is_kept = (np.array(column) for column in zip(*samples))
    rank = np.where(is_kept, np.arange(len(samples)), -1).astype(np.int32)
    shown = shown_members(labels, similarity, rank, bound, 5)
    for cluster, members in enumerate(shown):
        size = np.count_nonzero(labels == cluster)
        assert len(members) == len(set(members.tolist())) == min(size, bound)
        assert (labels[members] == cluster).all()
        kept = rank[members][rank[members] >= 0]
        assert (rank[members][: len(kept)] == kept).all()  # kept members first
        assert kept.tolist() == sorted(rank[(labels == cluster) & is_kept])[: len(kept)]  # the first picks
        if size > bound and np.count_nonzero(is_kept[labels == cluster]) >= bound // 2:
            assert len(kept) >= bound // 2


def test_groups_are_consecutive_and_bounded():
    counts = np.array([0, SAMPLES_PER_GROUP, 1, SAMPLES_PER_GROUP - 1, 3, 2 * SAMPLES_PER_GROUP, 1])
    assert group_clusters(counts).tolist() == [0, 0, 1, 1, 2, 3, 4]


def test_nearest_clusters_are_sorted_by_cosine_without_empty_ones():
    centroids = np.array([[1, 0], [0.9, 0.1], [0, 1], [1, 0]], np.float32)
    nearest = nearest_clusters(centroids, np.array([5, 5, 5, 0]), count=2)
    assert [[cluster for cluster, _ in row] for row in nearest] == [[1, 2], [0, 2], [1, 0], []]
    assert nearest[0][0][1] == pytest.approx(0.994, abs=1e-3)


# --- words ----------------------------------------------------------------------------------------------------------


def test_words_of_a_cluster_are_frequent_there_and_rare_elsewhere():
    bars = ["What does the bar chart show?", "The bar chart shows the sales."]
    cats = ["What does it show?", "A cat, a cat, a cat on a picture", "The cat in the picture"]
    assert distinctive_words([bars, cats, []], count=2) == [["bar", "chart"], ["cat", "picture"], []]


def test_a_word_of_one_long_text_does_not_decide():
    texts = ["zebra " * 50, "red apple", "red apple", "red apple"]
    words = distinctive_words([texts, ["blue sky", "blue sky"]], count=3)
    assert set(words[0]) == {"red", "apple"}


def test_words_of_other_scripts_and_of_no_words():
    assert distinctive_words([["1 2 3", "…"], []]) == [[], []]
    assert distinctive_words([["图表显示", "图表"], ["écran bleu", "écran bleu"]], count=2) == [
        ["图表"],
        ["bleu", "écran"],
    ]


# --- the folder -------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    """A function that writes the browser of these records in two clusters, and returns its folder."""
    for name, size in {"red.png": (400, 100), "blue.png": (20, 30)}.items():
        Image.new("RGB", size, name.removesuffix(".png")).save(tmp_path / name)

    def write(records, labels, ranks, *, manifest_order=None, **options):
        order = list(range(len(records))) if manifest_order is None else manifest_order
        (tmp_path / "data.json").write_text(json.dumps(records))
        ids = pd.Series([records[i]["id"] for i in order])
        k = max(labels) + 1
        labels, ranks = np.array(labels)[order], np.array(ranks)[order]
        stats = pd.DataFrame(
            {
                "cluster": range(k),
                "size": np.bincount(labels),
                "transferability": 0.5,
                "density": np.nan,
                "share": 1 / k,
            }
        )
        coreset = pd.DataFrame({"sample_id": ids[ranks >= 0], "rank": ranks[ranks >= 0]})
        write_browser(
            tmp_path / "browser",
            run="test",
            manifest=pd.DataFrame({"sample_id": ids, "source": "source", "position": order}),
            clusters=pd.DataFrame({"sample_id": ids, "cluster": labels, "similarity": 0.5}),
            cluster_stats=stats,
            centroids=np.eye(k, dtype=np.float32),
            coresets={("coincide", "0.5"): coreset},
            dataset=open_dataset(tmp_path / "data.json"),
            images=tmp_path,
            settings=Browser(),
            **options,
        )
        return tmp_path / "browser"

    return write


def record(number, text="question", **values):
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": f"answer {number}"}]
    return {"id": f"s{number}", "conversations": turns, **values}


def test_members_have_their_texts_images_and_picks(site):
    records = [
        record(0, "<image>\nfirst", image="red.png"),
        record(1),
        record(2, "<image> and <image>", image=["blue.png", "red.png"]),
        record(3, "<image>", image="missing.png"),
    ]
    folder = site(records, [0, 1, 0, 0], [2, 0, 1, -1], manifest_order=[3, 2, 1, 0])
    name, clusters = read_script(folder / "clusters.js")
    assert name == "clusters"
    assert (clusters["size"], clusters["kept"], clusters["density"]) == ([3, 1], [[2, 1]], [None, None])
    assert clusters["cluster_sources"] == [[[0, 3]], [[0, 1]]]
    name, (first, second) = read_script(folder / "samples/0000.js")
    assert name == "samples/0000"
    assert [member["id"] for member in first["members"]] == ["s2", "s0", "s3"]
    assert [member["picks"] for member in first["members"]] == [[[0, 1, 1]], [[0, 2, 2]], []]
    assert first["members"][0]["turns"] == [["human", "<image> and <image>"], ["gpt", "answer 2"]]
    assert first["members"][1]["turns"] == [["human", "first"], ["gpt", "answer 0"]]
    assert second["members"][0]["images"] == []
    assert first["nearest"] == [[1, 0.0]]
    assert first["sources"] == [[0, 3, 2]]
    _, thumbnails = read_script(folder / "images/0000.js")
    blue, red, missing = (member["images"] for member in first["members"])
    assert blue[1] == red[0]  # one thumbnail per image
    image = Image.open(io.BytesIO(base64.b64decode(thumbnails[red[0]])))
    assert (image.format, image.size) == ("WEBP", (160, 40))
    assert thumbnails[missing[0]] is None
    _, previews = read_script(folder / "previews/000.js")
    strip = Image.open(io.BytesIO(base64.b64decode(previews[clusters["preview"][0]])))
    assert strip.size == (96, 48)  # one image per sample, without the one that is missing
    assert [np.argmax(strip.getpixel((x, 24))) for x in (24, 72)] == [2, 0]  # blue, then red
    assert previews[clusters["preview"][1]] is None


def test_an_image_is_decoded_once_for_all_groups(site, tmp_path, monkeypatch):
    from coincide.reporting import browser

    opened = []
    monkeypatch.setattr(
        browser, "open_image", lambda *args, **options: opened.append(args[1]) or Image.new("RGB", (9, 9))
    )
    monkeypatch.setattr(browser, "SAMPLES_PER_GROUP", 1)
    folder = site([record(i, "<image>", image="red.png") for i in range(6)], [0, 1, 2] * 2, [-1] * 6, threads=2)
    assert opened == ["red.png"]
    assert len(list((folder / "images").iterdir())) == 3


def test_long_texts_are_cut_with_the_number_of_characters_left_out(site):
    folder = site([record(0, "x" * (CHARACTERS_PER_SAMPLE + 5))], [0], [0])
    ((page,),) = [read_script(folder / "samples/0000.js")[1]]
    (member,) = page["members"]
    assert member["turns"] == [["human", "x" * CHARACTERS_PER_SAMPLE]]
    assert member["cut"] == 5 + len("answer 0")


def test_scripts_have_no_markup_and_no_line_separators(site):
    folder = site([record(0, "</script><!-- \u2028 \u2029 \" ' \\")], [0], [0])
    text = (folder / "samples/0000.js").read_text()
    assert not set("<\u2028\u2029") & set(text)
    assert (
        read_script(folder / "samples/0000.js")[1][0]["members"][0]["turns"][0][1]
        == "</script><!-- \u2028 \u2029 \" ' \\"
    )


def test_an_image_outside_the_folder_is_not_opened(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "images").mkdir()
    assert make_thumbnail(tmp_path / "images", "../secret.png", 32) == b""
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    assert make_thumbnail(tmp_path / "images", "link.png", 32, follow_links=False) == b""
    assert make_thumbnail(tmp_path / "images", "link.png", 32) != b""


def test_tables_of_different_samples_are_refused(tmp_path):
    table = pd.DataFrame({"sample_id": ["a"], "source": "s", "position": 0})
    clusters = pd.DataFrame({"sample_id": ["b"], "cluster": 0, "similarity": 1.0})
    with pytest.raises(UserError, match="different samples"):
        write_browser(
            tmp_path / "browser", run="x", manifest=table, clusters=clusters, cluster_stats=table, centroids=np.eye(1),
            coresets={}, dataset=None, images=tmp_path, settings=Browser(),
        )  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
def test_texts_and_images_of_every_format_are_shown(kind, tiny_data, tmp_path):
    records, images = tiny_data
    annotations = write(kind, records, images, tmp_path / "data")
    folders = Dataset(annotations=str(annotations), images=str(images)).image_folders
    ids = pd.Series([f"sample {i}" for i in range(len(records))])
    write_browser(
        tmp_path / "browser",
        run="test",
        manifest=pd.DataFrame({"sample_id": ids, "source": "x", "position": range(len(ids))}),
        clusters=pd.DataFrame({"sample_id": ids, "cluster": np.arange(len(ids)) % 2, "similarity": 0.5}),
        cluster_stats=pd.DataFrame({"size": [12, 12], "transferability": 0.5, "density": 0.5, "share": 0.5}),
        centroids=np.eye(2),
        coresets={("coincide", "0.1"): pd.DataFrame({"sample_id": ids[:2], "rank": [0, 1]})},
        dataset=open_dataset(annotations),
        images=folders,
        settings=Browser(),
        threads=2,
    )
    _, pages = read_script(tmp_path / "browser/samples/0000.js")
    _, thumbnails = read_script(tmp_path / "browser/images/0000.js")
    assert all(thumbnails)
    members = {member["id"]: member for page in pages for member in page["members"]}
    for i, record in enumerate(records):
        member = members[f"sample {i}"]
        expected = [turn["value"].replace("<image>\n", "") for turn in record["conversations"]]
        assert [text for _, text in member["turns"]] == expected
        assert len(member["images"]) == ("image" in record)
