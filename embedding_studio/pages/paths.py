"""Which of the API's paths are for browsers."""

HOME = "/"
SIGN_IN = "/sign-in"
SIGN_OUT = "/sign-out"
STYLE = "/page.css"
SCRIPT = "/page.js"
OPEN_PATHS = frozenset({SIGN_IN, STYLE, SCRIPT})
"""What a browser may ask for before its user has signed in."""
_FIRST_PARTS = frozenset(
    {"", "tasks", "batches", "models", "health", "sign-in", "sign-out", "page.css", "page.js"}
)


def is_page(path: str) -> bool:
    """Return whether a path is one of the page: what it answers is for people, errors too."""
    return path[1:].partition("/")[0] in _FIRST_PARTS


def or_home(path: str) -> str:
    """Return a path of the page as it is, and the first page for whatever else is given: nobody is
    led to another site by a link to this one."""
    # browsers read a backslash as a slash, and //host as another site
    is_ours = path.startswith("/") and not path.startswith("//") and "\\" not in path
    return path if is_ours and path.isprintable() and is_page(path.partition("?")[0]) else HOME
