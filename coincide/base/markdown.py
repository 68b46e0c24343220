"""Tables in Markdown."""

import pandas as pd
from tabulate import DataRow, TableFormat

_FORMAT = TableFormat(
    lineabove=None,
    linebelowheader=lambda widths, _alignments: "|" + " --- |" * len(widths),
    linebetweenrows=None,
    linebelow=None,
    headerrow=DataRow("|", "|", "|"),
    datarow=DataRow("|", "|", "|"),
    padding=1,
    with_header_hide=None,
)


def markdown_table(table: pd.DataFrame) -> str:
    r"""A table as Markdown, without its index and without alignment; vertical bars in cells are escaped.

    Args:
        table: (rows, columns), already formatted: cells are converted with `str`.

    >>> print(markdown_table(pd.DataFrame({"method": ["coincide", "a|b"], "kept": ["5.0%", "–"]})))
    | method | kept |
    | --- | --- |
    | coincide | 5.0% |
    | a\|b | – |
    """
    text = table.map(_escape).rename(columns=_escape)
    return text.to_markdown(index=False, tablefmt=_FORMAT, stralign=None, disable_numparse=True)


def _escape(cell):
    return str(cell).replace("|", r"\|")
