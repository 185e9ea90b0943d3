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
    from embedding_studio.engine.jobs import SESSION_LINES

    sessions = simulate_sessions(corpus, count)
    file.write_bytes(b"".join(SESSION_LINES.dump_json(session) + b"\n" for session in sessions))


def read_sessions(file: Path) -> list[Session]:
    from embedding_studio.engine.jobs import SESSION_LINES

    return [SESSION_LINES.validate_json(line) for line in file.read_bytes().splitlines()]
