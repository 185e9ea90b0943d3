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


def write_sessions(file: Path, corpus: str, count: int) -> None:
    from embedding_studio.engine.snapshot import dump_sessions

    file.write_bytes(dump_sessions(simulate_sessions(corpus, count)))


def read_sessions(file: Path) -> list[Session]:
    from embedding_studio.engine.snapshot import read_snapshot

    return read_snapshot(file)
