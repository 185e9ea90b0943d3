"""Files that say what is relevant: pairs, conversations, judgements and labelled files become items
and labels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256

from embedding_studio.errors import InvalidInput
from embedding_studio.imports.archives import folder_of
from embedding_studio.imports.contents import Told
from embedding_studio.items import Item
from embedding_studio.labels import Label
from embedding_studio.wire.imports import (
    ChatBody,
    FileBody,
    JudgementBody,
    PairBody,
    Remark,
    RowNote,
)

_QUERY = ("query", "search query", "user query", "search term", "prompt", "anchor", "question",
          "input", "sentence1", "q")  # fmt: skip
PAIR_ALIASES: Mapping[str, Sequence[str]] = {
    "query": _QUERY,
    "positive": ("positive", "positives", "completion", "document", "answer", "output", "response",
                 "passage", "pos", "sentence2"),
    "negatives": ("negatives", "negative", "hard negatives", "hard negative", "neg"),
    "score": ("score", "label", "relevance", "similarity", "grade"),
    "item": ("item", "item id", "object id", "product id", "doc id", "document id", "sku"),
}  # fmt: skip
JUDGEMENT_ALIASES: Mapping[str, Sequence[str]] = {
    "query": _QUERY,
    "query_id": ("query id", "qid", "topic", "topic id"),
    "item": ("item", "item id", "object id", "product id", "doc id", "document id", "docno", "sku",
             "corpus id"),
    "grade": ("grade", "relevance", "rel", "judgement", "judgment", "label", "score"),
    "text": ("text", "item text", "document", "passage"),
}  # fmt: skip
CHAT_ALIASES: Mapping[str, Sequence[str]] = {"messages": ("messages", "conversation")}
FILE_ALIASES: Mapping[str, Sequence[str]] = {
    "file": ("file", "file name"),
    "labels": ("labels", "tags", "classes", "label"),
    "text": ("text",),
}
"""The fields of each, and the columns that are taken for them."""
IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".avif", ".bmp")
FEWEST_FILES, MOST_FILES, MOST_LABELS = 100, 10_000, 100
"""What is recommended of labelled files."""


def item_of(text: str, object_id: str | None = None) -> Item:
    """Return the item that a text is, whose id is made of it where it has none."""
    return Item(object_id or f"text:{sha256(text.encode()).hexdigest()[:16]}", text)


def told_pair(row: int, body: PairBody) -> Told:
    """Return what a pair tells: the positives have its score, 1 where it has none, the negatives
    0. An item id is that of the positive."""
    grade = 1.0 if body.score is None else body.score
    its_id = body.item if len(body.positive) == 1 else None
    graded = [(item_of(text), 0.0) for text in body.negatives]
    graded += [(item_of(text, its_id), grade) for text in body.positive]
    labels = (Label(body.query, item.object_id, grade) for item, grade in graded)
    return Told(row, tuple(item for item, _ in graded), tuple(labels))


def told_chat(row: int, body: ChatBody) -> Told:
    """Return what a conversation tells: what the assistant says is relevant for what the user said
    last before. Raises ValueError where there is nothing of this."""
    items, labels, query = [], [], ""
    for message in body.messages:
        text = message.text.strip()
        if message.role == "user":
            query = text
        elif message.role == "assistant" and text and query:
            items.append(item_of(text))
            labels.append(Label(query, items[-1].object_id, 1.0))
    if not labels:
        raise ValueError("has no message of a user with one of an assistant behind it")
    return Told(row, tuple(items), tuple(labels))


def told_judgement(row: int, body: JudgementBody) -> Told:
    """Return what a judgement tells. Raises ValueError where it names its query by an id alone."""
    if body.query is None:
        raise ValueError(
            f"names its query by the id {body.query_id!r}: give the texts of queries with "
            "--queries FILE, or in a column"
        )
    items = (item_of(body.text, body.item),) if body.text else ()
    return Told(row, items, (Label(body.query, body.item, body.grade),))


class LabelledFiles:
    """Files with their labels, each of which is a query for which the files that carry it are
    relevant.

    root: the folder, or bucket, that the names are below; without it no items are made. Raises
    InvalidInput for an archive."""

    def __init__(self, root: str | None) -> None:
        if root and folder_of(root):
            raise InvalidInput(
                f"files: {root!r} is an archive: embedding-studio batch import unpacks one that is "
                "on its machine; of another, unpack it and name the folder"
            )
        self._root = root.rstrip("/") if root else None
        self._files = 0
        self._labels: set[str] = set()

    def told(self, row: int, body: FileBody) -> Told:
        self._files += 1
        if len(self._labels) <= MOST_LABELS:
            self._labels.update(body.labels)
        items = tuple(self._items(body))
        return Told(row, items, tuple(Label(label, body.file, 1.0) for label in body.labels))

    def _items(self, body: FileBody) -> Iterable[Item]:
        if body.text:
            yield item_of(body.text, body.file)
        elif self._root is not None:
            address = f"{self._root}/{body.file}"
            if body.file.lower().endswith(IMAGES):
                yield Item(body.file, image=address)
            else:
                yield Item(body.file, url=address)

    def remarks(self) -> Iterator[RowNote]:
        """Yield what is to be said of all of them."""
        if not FEWEST_FILES <= self._files <= MOST_FILES:
            reason = (
                f"the file has {self._files:,} examples: {FEWEST_FILES} to {MOST_FILES:,} are best"
            )
            yield Remark(row=1, reason=reason)
        if len(self._labels) > MOST_LABELS:
            reason = f"the file has more than {MOST_LABELS} labels: up to so many are best"
            yield Remark(row=1, reason=reason)
