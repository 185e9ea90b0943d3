"""Simulated searches, also in a file for the processes that a benchmark compares.

Imports wait until they are needed: a bare script is to load no more than its own work takes.
"""

from pathlib import Path

from embedding_studio.clickstream import Session


def simulate_sessions(corpus: str, count: int) -> list[Session]:
    """Have people search a corpus that `benchmarks.clicks` names."""
    from benchmarks.clicks import MODEL, Arena
    from embedding_studio.demo.searchers import Behaviour
    from embedding_studio.training.encoder import load_encoder

    return Arena(corpus, load_encoder(MODEL)).sessions(count, 0, Behaviour())


def write_sessions(folder: Path, corpus: str, count: int) -> None:
    from embedding_studio.snapshot import SnapshotWriter
    from embedding_studio.store.sessions import SESSION

    with SnapshotWriter(folder, find_items=lambda ids: {}) as writer:
        writer.add([*map(SESSION.encode, simulate_sessions(corpus, count))])


def read_sessions(folder: Path) -> list[Session]:
    from embedding_studio.clickstream import merge_weights
    from embedding_studio.snapshot import Snapshot

    return [*Snapshot(folder, merge_weights()).usable()]
