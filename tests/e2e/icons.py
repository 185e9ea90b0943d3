"""Searches on real data, where pictures are to show some."""

from datetime import UTC, datetime

from embedding_studio.clock import utc_now
from embedding_studio.demo.corpus import load_corpus
from embedding_studio.demo.searchers import simulate_sessions
from embedding_studio.training.encoder import load_encoder
from tests.iterations import Bench
from tests.training.tiny import PACKAGED_MODEL


def search_for_icons(bench: Bench, count: int) -> None:
    corpus, encoder = load_corpus(), load_encoder(PACKAGED_MODEL)
    queries = encoder.encode(list(corpus.queries), show_progress_bar=False)
    items = encoder.encode([icon.label for icon in corpus.items], show_progress_bar=False)
    searches = simulate_sessions(corpus, queries, items, count, 0, datetime.now(UTC))
    bench.house.store.clickstream.register(list(searches), utc_now())
