"""The cluster browser in Chromium: it opens from a folder, sorts, searches, navigates, and shows text as text."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chromium import WIDTHS, chromium, is_cut_off, needs_chromium, open_page
from PIL import Image

from coincide.base.sections import Browser
from coincide.dataset.formats import open_dataset
from coincide.reporting import browser as browser_module
from coincide.reporting.browser import write_browser

pytestmark = needs_chromium
CLUSTERS, MEMBERS = 400, 6
MARKUP = "<script>document.title = 'x'</script><img src=x onerror=alert(1)> \"quotes\" & 'more'"
LONG_WORD = "longword" * 40


def make_record(number):
    """Sample i is in cluster i mod CLUSTERS; those of cluster 7 contain markup wherever the dataset has text."""
    cluster = number % CLUSTERS
    question = f"What is topic{cluster}?" + (f" {MARKUP} {LONG_WORD}" if cluster == 7 else "")
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": f"An answer {number}. " * 60}]
    image = f"{number % 20}.png"
    if cluster == 7:
        image = [image, "missing.png"]
        turns[0]["value"] += "<image>"
    return {"id": f"{MARKUP} {number}" if cluster == 7 else f"s{number}", "image": image, "conversations": turns}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of the browser of a synthetic run, as files."""
    folder = tmp_path_factory.mktemp("browser-site")
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    records = [make_record(number) for number in range(CLUSTERS * MEMBERS)]
    (folder / "data.json").write_text(json.dumps(records))
    ids = pd.Series([record["id"] for record in records])
    labels = np.arange(len(records)) % CLUSTERS
    sources = [MARKUP if label == 7 else f"source-{label % 5}" for label in labels]
    stats = pd.DataFrame(
        {
            "cluster": range(CLUSTERS),
            "size": MEMBERS,
            "transferability": rng.random(CLUSTERS),
            "density": rng.random(CLUSTERS),
            "share": rng.permutation(CLUSTERS) / (CLUSTERS * (CLUSTERS - 1) / 2),
        }
    )
    ranks = rng.permutation(len(records))
    coresets = {
        ("coincide", "0.25"): pd.DataFrame({"sample_id": ids[ranks[:600]], "rank": range(600)}),
        ("random", "0.5"): pd.DataFrame({"sample_id": ids[ranks[::-1][:1200]], "rank": range(1200)}),
    }
    write_browser(
        folder / "browser",
        run="synthetic",
        manifest=pd.DataFrame({"sample_id": ids, "source": sources, "position": range(len(records))}),
        clusters=pd.DataFrame({"sample_id": ids, "cluster": labels, "similarity": rng.random(len(records))}),
        cluster_stats=stats,
        centroids=rng.normal(size=(CLUSTERS, 8)).astype(np.float32),
        coresets=coresets,
        dataset=open_dataset(folder / "data.json"),
        images=folder,
        settings=Browser(members=5),
        threads=2,
    )
    return (folder / "browser/index.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


def first_rows(page, count=10):
    """Text of the cells of the rows at the top of the list."""
    rows = page.locator(".row").evaluate_all(
        "rows => rows.sort((a, b) => a.ariaRowIndex - b.ariaRowIndex)"
        ".map(row => [...row.children].map(cell => cell.innerText))"
    )
    return rows[:count]


def test_the_list_has_only_the_rows_of_the_window(browser, address):
    with open_page(browser, address) as page:
        page.wait_for_selector(".row")
        assert page.locator("#facts").inner_text() == "2,400 samples in 400 clusters; 600 kept"
        assert page.locator("#count").inner_text() == "400 clusters"
        assert page.locator("#table").get_attribute("aria-rowcount") == "401"
        assert page.locator(".row").count() < 40
        page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
        page.wait_for_selector('.row[aria-rowindex="401"]')
        assert page.locator(".row").count() < 40


@pytest.mark.parametrize(("label", "cell"), [("Size", 2), ("Budget", 3), ("Transferability", 5), ("Density", 6)])
def test_the_list_is_sorted_by_a_column_in_both_directions(browser, address, label, cell):
    with open_page(browser, address) as page:
        for descending in (True, False):
            page.get_by_role("button", name=label).click()
            values = [float(row[cell].split()[0].replace(",", "")) for row in first_rows(page)]
            assert values == sorted(values, reverse=descending)
        header = page.get_by_role("columnheader").filter(has_text=label)
        assert header.get_attribute("aria-sort") == "ascending"


def test_the_list_is_sorted_by_share_at_first_and_by_words_and_source(browser, address):
    with open_page(browser, address) as page:
        shares = [float(row[4].rstrip("%")) for row in first_rows(page)]
        assert shares == sorted(shares, reverse=True)
        page.get_by_role("button", name="Words").click()
        names = [row[1].split("\n")[0] for row in first_rows(page)]
        assert len(set(names)) == len(names)
        assert names == sorted(names)
        page.get_by_role("button", name="Source").click()
        assert MARKUP in first_rows(page)[0][1]  # "<" is sorted before letters


def test_rows_have_previews_of_their_images(browser, address):
    with open_page(browser, address) as page:
        page.wait_for_function("() => [...document.querySelectorAll('.row .preview img')].every(image => image.src)")
        sizes = page.locator(".preview img").evaluate_all("images => images.map(image => image.naturalWidth)")
        assert set(sizes) == {3 * 48}
        page.evaluate("window.scrollTo(0, 12000)")
        page.wait_for_selector('.row[aria-rowindex="202"] .preview img[src]')


def test_search_finds_words_sources_and_numbers(browser, address):
    with open_page(browser, address) as page:
        page.keyboard.press("/")
        page.keyboard.type("topic123")
        assert page.locator("#count").inner_text() == "1 of 400 clusters"
        assert "topic123" in first_rows(page)[0][1]
        page.locator("#search").fill("#17")
        assert page.locator("#count").inner_text() == "11 of 400 clusters"  # 17 and 170 to 179
        page.locator("#search").fill("source-3 TOPIC12")
        assert {row[1].split("\n")[0].split(" ")[0] for row in first_rows(page)} <= {"topic123", "topic128", "an"}
        page.locator("#search").fill("nothing like it")
        assert page.locator("#nothing").is_visible()
        page.locator("#search").fill("")
        page.locator("#source").select_option("source-4")
        assert page.locator("#count").inner_text() == "80 of 400 clusters"


def test_a_cluster_opens_from_the_list_and_leads_back_to_the_same_place(browser, address):
    with open_page(browser, address) as page:
        page.get_by_role("button", name="Density").click()
        page.evaluate("window.scrollTo(0, 6000)")
        row = page.locator('.row[aria-rowindex="105"]')
        name = row.locator("a").inner_text()
        row.locator("a").click()
        page.wait_for_selector(".member img[src]")
        assert page.locator("h2").inner_text() == name
        assert page.evaluate("window.scrollY") == 0
        assert page.locator(".member").count() == 5
        page.keyboard.press("ArrowRight")
        page.wait_for_function("name => document.querySelector('h2').innerText !== name", arg=name)
        page.go_back()
        page.wait_for_function("name => document.querySelector('h2').innerText === name", arg=name)
        page.keyboard.press("Escape")
        page.wait_for_selector(".row")
        assert abs(page.evaluate("window.scrollY") - 6000) < 200
        assert page.get_by_role("columnheader").filter(has_text="Density").get_attribute("aria-sort") == "descending"


def test_the_page_of_a_cluster_shows_picks_in_their_order_and_neighbours(browser, address):
    data = Path(address.removeprefix("file://")).parent / "samples/0000.js"
    pages = json.loads(data.read_text().split(", ", 1)[1].removesuffix(");\n"))
    found = next(
        page for page in pages if len([m for m in page["members"] if m["picks"] and m["picks"][0][0] == 0]) > 1
    )
    with open_page(browser, f"{address}#/cluster/{found['cluster']}") as page:
        page.wait_for_selector(".member img[src]")
        badges = page.locator(".badge > :first-child").all_inner_texts()
        kept = [badge for badge in badges if badge.startswith("kept")]
        assert kept == [f"kept, pick {i + 1}" for i in range(len(kept))] == badges[: len(kept)]
        assert set(badges[len(kept) :]) <= {"not kept"}
        page.get_by_role("button", name="not kept").click()
        assert page.locator(".member.kept").count() == 0
        page.get_by_role("button", name="kept", exact=True).click()
        assert page.locator(".member").count() == len(kept)
        sizes = page.locator(".member img").evaluate_all("images => images.map(image => image.naturalWidth)")
        assert set(sizes) == {60}
        assert page.locator("#columns [data-sort=kept]").text_content() == "Budget"
        page.locator("#coreset").select_option(label="random, 50%")
        page.get_by_role("button", name="all", exact=True).click()
        other = sum(any(pick[0] == 1 for pick in member["picks"]) for member in found["members"])
        assert page.locator(".member.kept").count() == other
        page.locator(".panel a").first.click()
        page.wait_for_function("() => location.hash.includes('coreset=1')")
        assert f"cluster/{found['nearest'][0][0]}?" in page.url
        page.locator("#back").click()
        page.wait_for_selector(".row")
        assert page.locator("#columns [data-sort=kept]").text_content() == "Kept"


def test_a_long_conversation_is_shown_whole_on_request(browser, address):
    with open_page(browser, f"{address}#/cluster/3") as page:
        button = page.get_by_role("button", name="Show all").first
        before = page.locator(".turns").first.bounding_box()["height"]
        button.click()
        assert page.locator(".turns").first.bounding_box()["height"] > before
        assert page.get_by_role("button", name="Show less").count() == 1


def test_markup_in_a_dataset_is_shown_as_text(browser, address):
    with open_page(browser, f"{address}#/cluster/7") as page:
        page.wait_for_selector(".member img[src]")
        text = page.locator("#page").inner_text()
        assert f"What is topic7? {MARKUP}" in text
        assert any(f"{MARKUP} {number} · {MARKUP}" in text for number in (7, 407))
        assert page.locator("#page script, #page [onerror]").count() == 0
        assert page.locator("#source option").filter(has_text=MARKUP).count() == 1
        assert "image cannot be opened" in text
        assert page.title() == f"{page.locator('h2').inner_text()} – synthetic"


def test_the_list_and_a_cluster_are_usable_by_keyboard(browser, address):
    with open_page(browser, address) as page:
        page.wait_for_selector(".row")
        for _ in range(30):
            page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.dataset.number") == "29"
        box = page.locator(":focus").bounding_box()
        assert 0 < box["y"] < WIDTHS["wide"][1]
        page.keyboard.press("Enter")
        page.wait_for_selector(".member")
        assert page.evaluate("document.activeElement.id") == "page"
        page.keyboard.press("Escape")
        page.wait_for_selector(".row")
        assert page.evaluate("document.activeElement.dataset.number") == "29"


def test_a_missing_file_is_reported(browser, address, tmp_path):
    folder = Path(address.removeprefix("file://")).parent
    copy = tmp_path / "browser"
    copy.mkdir()
    for name in browser_module.PAGE_FILES + ("clusters.js",):
        os.link(folder / name, copy / name)
    page = browser.new_page()
    page.goto(f"{(copy / 'index.html').as_uri()}#/cluster/0")
    assert "samples/0000.js is missing" in page.get_by_role("alert").inner_text()
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_off(browser, address, width, scheme, tmp_path):
    """Screenshots are kept in the folder SCREENSHOTS, if that is set."""
    screenshots = Path(os.environ.get("SCREENSHOTS", tmp_path))
    with open_page(browser, address, width=width, scheme=scheme) as page:
        page.wait_for_selector(".row")
        assert not is_cut_off(page)
        is_outside = "row => [...row.children].some(cell => cell.scrollWidth > cell.clientWidth + 1)"
        assert not page.locator(".row").first.evaluate(is_outside)
        page.screenshot(path=screenshots / f"browser-list-{width}-{scheme}.png")
    with open_page(browser, f"{address}#/cluster/7", width=width, scheme=scheme) as page:
        page.wait_for_selector(".member img[src]")
        assert not is_cut_off(page)
        page.screenshot(path=screenshots / f"browser-cluster-{width}-{scheme}.png", full_page=True)
