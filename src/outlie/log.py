"""What a run says: one line a stage on stderr, the same lines with the time in the run's log.txt."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger("outlie")


class Findings(logging.Handler):
    """Collects what is logged as a finding, so that it is stored with the result, too."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the sentence of a line `finding   SENTENCE`."""
        word, _, sentence = record.getMessage().partition(" ")
        if word == "finding" and sentence.strip() not in self.said:
            self.said.append(sentence.strip())


@contextlib.contextmanager
def findings() -> Iterator[list[str]]:
    """The findings logged in the block."""
    handler = Findings()
    log.addHandler(handler)
    try:
        yield handler.said
    finally:
        log.removeHandler(handler)


@contextlib.contextmanager
def to(file: Path) -> Iterator[logging.Logger]:
    """Send the log to stderr and, appended, to `file`; the ranks after the first stay silent."""
    if os.environ.get("RANK", "0") != "0":
        handlers: list[logging.Handler] = [logging.NullHandler()]
    else:
        on_screen, in_file = logging.StreamHandler(sys.stderr), logging.FileHandler(file, encoding="utf-8")
        on_screen.setFormatter(logging.Formatter("%(message)s"))
        on_screen.setLevel(logging.INFO)
        in_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        in_file.handleError = lambda record: None  # a full disk is reported where a file that matters is written
        handlers = [on_screen, in_file]
    before = log.level, log.propagate
    log.setLevel(logging.DEBUG)
    log.propagate = False
    for handler in handlers:
        log.addHandler(handler)
    try:
        yield log
    finally:
        log.setLevel(before[0])
        log.propagate = before[1]
        for handler in handlers:
            log.removeHandler(handler)
            with contextlib.suppress(OSError):  # what a full disk did not take
                handler.close()
