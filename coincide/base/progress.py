"""Progress of long work: a bar on a terminal, a line every few seconds in the log of a job."""

import re
import sys
import time
from typing import Self

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5
# the line that `Progress.update` prints
LINE = re.compile(r"^.+: ([\d,]+) of ([\d,]+) \w+, ([\d,.]+)/s, (?:[\d:]+|\?) left$")


class Progress:
    """Counts finished work and shows it with its rate and the time left; a context that closes the bar at its end.

    Args:
        total: number of units of work.
        what: name of the work, at the start of each line.
        unit: name of a unit, plural.
        done: units that an earlier job finished; they do not count for the rate.
    """

    def __init__(self, total: int, what: str, *, unit: str = "samples", done: int = 0):
        self.total, self.what, self.unit, self.done, self.initial = total, what, unit, done, done
        self.start = self.shown = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=what, unit=f" {unit}", initial=done)

    def update(self, count: int) -> None:
        """Count `count` more finished units."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.monotonic() - self.shown >= SECONDS_BETWEEN_LINES or self.done >= self.total:
            self.shown = time.monotonic()
            elapsed = self.shown - self.start
            rate = (self.done - self.initial) / elapsed if elapsed > 0 else 0
            left = tqdm.format_interval((self.total - self.done) / rate) if rate > 0 else "?"
            print(
                f"{self.what}: {self.done:,} of {self.total:,} {self.unit}, {rate:,.1f}/s, {left} left",
                file=sys.stderr,
                flush=True,
            )

    def close(self, *, complete: bool = True) -> None:
        """Close the bar.

        Args:
            complete: the work is finished, with fewer units than planned if it ended early, as k-means does.
        """
        if self.bar is None:
            return
        if complete and self.bar.n != self.bar.total:
            self.bar.total = self.bar.n
            self.bar.refresh()
        self.bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.close(complete=error is None)


def rate_and_left(line: str) -> tuple[float, float | None] | None:
    """Parse a line that `Progress` printed.

    Returns:
        units per second, and seconds left (None if the rate is 0); None for any other line.
    """
    match = LINE.match(line)
    if not match:
        return None
    done, total, rate = (float(number.replace(",", "")) for number in match.groups())
    return rate, (total - done) / rate if rate else None
