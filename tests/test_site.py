"""The documentation as a site."""

import re
import subprocess
import sys

from conftest import REPO


def test_the_site_builds_without_a_broken_link_and_loads_nothing_from_the_network(tmp_path):
    mkdocs = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
    )
    assert mkdocs.returncode == 0, mkdocs.stderr
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 12
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]*\ssrc=\"?(?:https?:)?//|<link[^>]*stylesheet[^>]*href=\"?(?:https?:)?//"
    )
    assert not [page.name for page in pages if loaded.search(page.read_text())]
    settings = (tmp_path / "site/config-README.html").read_text()
    assert "clustering" in settings
    assert 'href="config-README.html"' in (tmp_path / "site/your-own-data.html").read_text()
