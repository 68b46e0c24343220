"""Links from the pages to files outside docs/: the site gets a copy of each such file.

mkdocs knows only the files under docs/. In the repository, the links lead to the files themselves.
"""

import re
from pathlib import Path

from mkdocs.structure.files import File

LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")  # text, path, anchor


def on_files(files, config):
    """Add the files outside docs/ that a page links to; Markdown becomes a page."""
    docs = Path(config["docs_dir"])
    for page in list(files.documentation_pages()):
        source = Path(page.abs_src_path)
        for _, target, _ in LINK.findall(source.read_text()):
            path = (source.parent / target).resolve()
            if path.is_file() and not path.is_relative_to(docs):
                name = _name_in_site(path, docs)
                if files.get_file_from_path(name) is None:
                    files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Make links lead to the copies; a link to a file that is not in the site becomes its text."""
    docs, source = Path(config["docs_dir"]), Path(page.file.abs_src_path)

    def to_site(match):
        text, target, anchor = match.groups()
        path = (source.parent / target).resolve()
        name = _name_in_site(path, docs)
        is_outside = not (source.is_relative_to(docs) and path.is_relative_to(docs))
        if is_outside and files.get_file_from_path(name) is None:
            return text
        return f"[{text}]({name}{anchor or ''})"

    return LINK.sub(to_site, markdown)


def _name_in_site(path, docs):
    """Path relative to docs/; of a file outside, its path in the repository in one word."""
    return str(path.relative_to(docs)) if path.is_relative_to(docs) else "-".join(path.relative_to(docs.parent).parts)
