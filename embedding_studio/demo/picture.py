"""A picture of what was learnt: the first icons of some searches, before and after, as SVG."""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from embedding_studio.demo.corpus import Corpus

_SHOWN = 8
_SIZE, _GAP, _LEFT, _TOP, _ROW = 44, 12, 96, 34, 64
_STYLE = (
    "text{font:14px system-ui,sans-serif;fill:#222}.q{font-weight:600;font-size:17px}"
    ".c{fill:#f4f4f4;stroke:#ccc}.r{fill:#dff2e1;stroke:#1a7f37;stroke-width:2}path{fill:#222}"
)


def draw(
    corpus: Corpus,
    before: NDArray[np.floating],
    after: NDArray[np.floating],
    queries: Sequence[int],
) -> str:
    """Return the first eight icons of each query by two models; truly relevant ones are green.

    before, after: (n_queries, n_items) scores of all of the corpus's queries. queries: of which."""
    parts = []
    top = 8
    for query in queries:
        parts.append(f'<text class="q" x="8" y="{top + 16}">{escape(corpus.queries[query])}</text>')
        for number, (name, scores) in enumerate((("before", before), ("after", after))):
            y = top + _TOP - 8 + number * _ROW
            parts.append(f'<text x="8" y="{y + _SIZE / 2 + 5}">{name}</text>')
            for place, item in enumerate(np.argsort(-scores[query], kind="stable")[:_SHOWN]):
                kind = "r" if corpus.relevance[query, item] else "c"
                x = _LEFT + place * (_SIZE + _GAP)
                parts.append(_cell(corpus.items[item].svg, corpus.items[item].label, kind, x, y))
        top += _TOP + 2 * _ROW + 8
    width = _LEFT + _SHOWN * (_SIZE + _GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" '
        f'role="img"><title>Search results before and after fine-tuning</title><style>{_STYLE}'
        f'</style><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _cell(svg: str, label: str, kind: str, x: int, y: int) -> str:
    inner = svg.replace("<svg ", f'<svg x="{x + 8}" y="{y + 8}" width="28" height="28" ', 1)
    return (
        f'<g><title>{escape(label)}</title><rect class="{kind}" x="{x}" y="{y}" width="{_SIZE}" '
        f'height="{_SIZE}" rx="6"/>{inner}</g>'
    )
