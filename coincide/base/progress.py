"""Progress of long work: a bar on a terminal, a line every few seconds in a job's log."""

import re
import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5
LINE = re.compile(r"^.+: ([\d,]+) of ([\d,]+) \w+, ([\d,.]+)/s, (?:[\d:]+|\?) left$")  # as `update` prints it


class Progress:
    """Counts work done and shows it with rate and time left.

    Args:
        total: units of work in all.
        what: what is being done, at the start of each line.
        unit: name of a unit.
        done: units that were done before (a resumed job), left out of the rate.
    """

    def __init__(self, total, what, *, unit="samples", done=0):
        self.total, self.what, self.unit, self.done, self.initial = total, what, unit, done, done
        self.start = self.shown = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, desc=what, unit=f" {unit}", initial=done)

    def update(self, count):
        """Add `count` finished units."""
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

    def close(self):
        """End the bar."""
        if self.bar is not None:
            self.bar.close()


def rate_and_left(line):
    """Units a second and seconds left (None where the rate is 0) by a line that `Progress` printed; None for others."""
    if not (found := LINE.match(line)):
        return None
    done, total, rate = (float(number.replace(",", "")) for number in found.groups())
    return rate, (total - done) / rate if rate else None
