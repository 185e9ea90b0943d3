"""Plain text: without characters that forge a line of a log or steer a terminal.

These are C0 and C1, DEL, the line and paragraph separators of Unicode, what turns the direction of
writing around, and lone surrogates."""

import re

_CONTROLS = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[{_CONTROLS}]")
_IN_A_LINE = re.compile(f"(?!\t)[{_CONTROLS}]")


def check_plain(text: str) -> str:
    """Return a name, an id or an address. Raises ValueError if it has a control character."""
    if found := _CONTROL.search(text):
        raise ValueError(
            f"has the control character U+{ord(found[0]):04X}: names, ids and addresses have none"
        )
    return text


def escape(text: str) -> str:
    r"""Return a text in one line, with control characters as \n, \x1b or \u2028."""
    return _CONTROL.sub(_escaped, text)


def escape_lines(text: str) -> str:
    """Return a text whose lines after the first are indented: no text in it begins a line. Control
    characters but tabs are escaped."""
    return "\n    ".join(_IN_A_LINE.sub(_escaped, line) for line in text.rstrip("\n").split("\n"))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
