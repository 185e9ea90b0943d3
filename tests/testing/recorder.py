"""Makes the batch that the kit for plugin authors carries, in its package.

`python -m tests.testing.recorder` writes it anew."""

import base64
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from embedding_studio.clickstream import SearchResult, Session, SessionEvent
from embedding_studio.deletion import remove_tree
from embedding_studio.snapshot import SnapshotWriter
from embedding_studio.store.sessions import SESSION

NOW = datetime(2026, 1, 1, tzinfo=UTC)
COLOURS = ["red", "green", "blue", "yellow", "black", "white"]
THINGS = ["jacket", "shirt", "lamp", "chair", "cup", "bag"]
ASKED = ["{0} {1}", "{1} in {0}", "cheap {0} {1}", "{1} {0} new", "a {1} that is {0}"]
SHOWN = 6
PER_QUERY = 8
_SIZE = 16


def record(seed: int = 0) -> list[Session]:
    """Return sessions of people who look for one thing in one colour.

    Positions are looked at with probability 1 / k; what is meant is clicked with probability 0.9
    when seen, anything else with 0.05."""
    random = np.random.default_rng(seed)
    items = [(colour, thing) for colour in COLOURS for thing in THINGS]
    metas = {
        item: {"text": f"{item[0]} {item[1]}, sold here", "image": _drawn(*item)} for item in items
    }
    sessions = list[Session]()
    queries = [(form.format(*item), n) for n, item in enumerate(items) for form in ASKED]
    for query, meant in queries:
        page = random.permutation(len(items))[:SHOWN]
        page[random.integers(SHOWN)] = meant
        page = np.array(list(dict.fromkeys(page.tolist())))
        for _ in range(PER_QUERY):
            number = len(sessions)
            attraction = np.where(page == meant, 0.9, 0.05)
            clicked = np.flatnonzero(
                random.random(len(page)) < attraction / np.arange(1, len(page) + 1)
            )
            made_at = NOW + timedelta(minutes=number)
            sessions.append(
                Session(
                    session_id=f"session-{number}",
                    search_query=query,
                    search_results=tuple(
                        SearchResult(" ".join(items[n]), 1 - place / SHOWN, metas[items[n]])
                        for place, n in enumerate(page)
                    ),
                    created_at=made_at,
                    user_id=f"user-{number % 200}",
                    events=tuple(
                        SessionEvent(
                            f"{number}-{place}",
                            " ".join(items[page[place]]),
                            made_at + timedelta(seconds=int(place) + 1),
                        )
                        for place in clicked
                    ),
                )
            )
    return sessions


def _drawn(colour: str, thing: str) -> str:
    """Return a picture as a data: URI: a colour, with a bar where the thing has its place."""
    image = Image.new("RGB", (_SIZE, _SIZE), colour)
    place = 2 * THINGS.index(thing)
    ImageDraw.Draw(image).rectangle((place, place, place + 4, _SIZE - 1), fill="grey")
    content = io.BytesIO()
    image.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def write(folder: Path, one_in: int = 1) -> Path:
    """Write the sessions, or one in so many, in place of what the folder has; return it."""
    remove_tree(folder, ignore_errors=True)
    with SnapshotWriter(folder, lambda ids: {}) as writer:
        writer.add([SESSION.encode(session) for session in record()[::one_in]])
    return folder


if __name__ == "__main__":
    from embedding_studio.testing.bench import RECORDED

    write(RECORDED)
