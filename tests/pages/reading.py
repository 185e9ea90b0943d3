"""What a page has, as a test reads it."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from fastapi.testclient import TestClient


@dataclass
class Form:
    action: str
    fields: dict[str, str] = field(default_factory=dict)


class Page(HTMLParser):
    """A page's text, elements and forms."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.forms: dict[str, Form] = {}
        self.text = ""
        self._form = Form("")
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        self.feed(answer.text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.found.append((tag, given))
        if tag == "form":
            assert given["method"] == "post"
            self._form = self.forms[given["action"]] = Form(given["action"])
        elif tag == "input":
            self._form.fields[given["name"]] = given.get("value", "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("a", "code", "span", "strong", "time"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str]]:
        return [given for name, given in self.found if name == tag]


def look(browser: TestClient, path: str) -> Page:
    """Return the page at a path, which is there."""
    answer = browser.get(path)
    assert answer.status_code == 200, answer.text
    return Page(answer)


def submit(browser: TestClient, path: str, action: str, **fields: str) -> Any:
    """Send the form of an action that the page at a path has, some fields filled in."""
    form = look(browser, path).forms[action]
    return browser.post(action, data={**form.fields, **fields})
