"""The picture of the demo."""

from xml.etree import ElementTree

import numpy as np

from embedding_studio.demo.corpus import Corpus, Icon
from embedding_studio.demo.picture import draw

DRAWING = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><path d="M0 0h1v1z"/></svg>'


def test_rows_show_the_first_icons_by_each_model() -> None:
    """Icons stand in the order of their scores, relevant ones marked; texts are escaped."""
    corpus = Corpus(
        items=tuple(Icon(name, f"<{name}>", DRAWING) for name in "abc"),
        queries=("salt & pepper", "other"),
        relevance=np.array([[False, False, True], [True, False, False]]),
        posted=np.array([1]),
        held_out=np.array([0]),
    )
    before, after = np.array([[3.0, 2, 1], [0, 0, 0]]), np.array([[1.0, 2, 3], [0, 0, 0]])
    found = ElementTree.fromstring(draw(corpus, before, after, [0]))
    name = "{http://www.w3.org/2000/svg}"
    texts = [one.text for one in found.iter(f"{name}text")]
    assert texts == ["salt & pepper", "before", "after"]
    shown = [
        (one.findtext(f"{name}title"), one.find(f"{name}rect").attrib["class"])  # type: ignore[union-attr]
        for one in found.iter(f"{name}g")
    ]
    assert shown == [
        ("<a>", "c"),
        ("<b>", "c"),
        ("<c>", "r"),
        ("<c>", "r"),
        ("<b>", "c"),
        ("<a>", "c"),
    ]
