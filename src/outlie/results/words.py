"""Numbers and errors as people read them."""

from typing import Any


def percent(share: float) -> str:
    """A share in per cent, to three digits."""
    return f"{100 * share:.3g} %"


def bracket(interval: Any) -> str:
    """An interval of shares in per cent; nothing where there is none."""
    return f" [{100 * interval[0]:.3g}-{100 * interval[1]:.3g}]" if interval else ""


def ms(milliseconds: float) -> str:
    """Milliseconds."""
    if milliseconds < 0.001:
        return "under 0.001 ms"
    return f"{milliseconds:.2g} ms" if milliseconds < 10 else f"{milliseconds:,.0f} ms"


def seconds(seconds: float) -> str:
    """Seconds, or minutes or hours where there are many."""
    if seconds < 0.01:
        return "under 0.01 s"
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def large(number: float) -> str:
    """A large number with its prefix, k to T."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.0f} "


def last_line(text: str | None) -> str:
    """The last line that says something, which of a traceback is the reason; '' where there is none."""
    return ([line.strip() for line in (text or "").splitlines() if line.strip()] or [""])[-1]
