"""A reader of YAML: its values are those of JSON, whatever tags say, and nothing is ever called."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from yaml import YAMLError, events

from embedding_studio.errors import InvalidInput
from embedding_studio.imports.stream import MAX_ROW_BYTES, too_large

try:
    from yaml.cyaml import CParser as Parser
except ImportError:  # built without the library in C
    from yaml import SafeLoader as Parser

MAX_DEPTH = 100
_JSON_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_BEGINS = (events.SequenceStartEvent, events.MappingStartEvent)
_ENDS = (events.SequenceEndEvent, events.MappingEndEvent)


class Document:
    """The rows of a stream of documents: the entries of lists, and documents that are none.

    What is plain is a number, true, false or null where JSON would have it so, and else a text: an
    id 0012 and the word no stay what they are. Aliases are refused: a few lines of them are
    billions of values."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._parser = Parser(_File(read))
        #: what is wrong with the row, and where it begins
        self._fault: str | None = None
        self._begun_at = 0

    def rows(self) -> Iterator[tuple[Any, str | None]]:
        """Yield values, each with what is wrong with it. Raises InvalidInput for what is no
        YAML."""
        try:
            self._next()  # the stream's beginning
            while not isinstance(self._next(), events.StreamEndEvent):  # else a document's
                event = self._next()
                if isinstance(event, events.SequenceStartEvent):
                    while not isinstance(event := self._next(), events.SequenceEndEvent):
                        yield self._row(event)
                else:
                    yield self._row(event)
                self._next()
        except YAMLError as error:
            told = " ".join(str(error).replace('in "<file>"', "").split())
            raise InvalidInput(f"is no YAML: {told}"[:500]) from None

    def _next(self) -> Any:
        return self._parser.get_event()

    def _row(self, event: Any) -> tuple[Any, str | None]:
        self._fault, self._begun_at = None, event.start_mark.index
        value = self._value(event, 1)
        return value, self._fault

    def _value(self, event: Any, depth: int) -> Any:
        if event.end_mark.index - self._begun_at > MAX_ROW_BYTES:
            self._fault = too_large()
        elif getattr(event, "tag", None) not in (None, "!"):
            self._fault = f"has the tag {event.tag[:100]!r}: YAML is read without tags"
        elif isinstance(event, events.AliasEvent):
            self._fault = f"has the alias *{event.anchor[:100]}: write out what it stands for"
        elif depth > MAX_DEPTH:
            self._fault = f"is nested more than {MAX_DEPTH} levels deep"
        if self._fault is not None:
            return self._skip(event)
        if isinstance(event, events.ScalarEvent):
            return _scalar(event.value) if event.implicit[0] else event.value
        if isinstance(event, events.SequenceStartEvent):
            values = []
            while not isinstance(event := self._next(), events.SequenceEndEvent):
                values.append(self._value(event, depth + 1))
            return values
        named: dict[str, Any] = {}
        while not isinstance(event := self._next(), events.MappingEndEvent):
            name = event.value if isinstance(event, events.ScalarEvent) else None
            if name is None or name in named:
                wrong = (
                    "a name that is no text" if name is None else f"the name {name[:100]!r} twice"
                )
                self._fault = f"has {wrong}"
                self._skip(event)
            named[name or ""] = self._value(self._next(), depth + 1)
        return named

    def _skip(self, event: Any) -> None:
        """Read to the end of a value."""
        depth = int(isinstance(event, _BEGINS))
        while depth:
            event = self._next()
            depth += isinstance(event, _BEGINS) - isinstance(event, _ENDS)


class _File:
    """What the parser reads."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.read = read


def _scalar(text: str) -> Any:
    if (word := text.lower() if len(text) <= 5 else text) in _WORDS:
        return _WORDS[word]
    if not (number := _JSON_NUMBER.fullmatch(text)):
        return text
    return float(text) if number[2] or number[3] or len(text) > 18 else int(text)
