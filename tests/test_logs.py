"""Log lines name the task and the trial, whoever writes them."""

import subprocess
import sys

PROGRAM = """
import logging, threading, warnings
from embedding_studio import logs

logs.configure(logging.WARNING, own_level=logging.INFO)
with logs.about("task 7"):
    logging.getLogger("embedding_studio.worker").info("claimed")
    with logs.about("task 7, trial 1"):
        logging.getLogger("urllib3").warning("a retry")
        warnings.warn("deprecated")
    threading.Thread(target=logging.getLogger("store").warning, args=["elsewhere"]).start()
    logging.getLogger("urllib3").info("chatter")
logging.getLogger("embedding_studio.worker").info("idle")
"""


def test_a_line_names_what_it_is_about() -> None:
    """Those of libraries and Python's warnings too, but not those of other threads."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    lines = [
        line.partition(": ")[2] for line in done.stderr.splitlines() if "warnings.warn" not in line
    ]
    assert lines[:2] == ["task 7: claimed", "task 7, trial 1: a retry"]
    assert lines[2].startswith("task 7, trial 1: <string>:")
    assert [line for line in lines if line in ("elsewhere", "idle")] == ["elsewhere", "idle"]
    assert "chatter" not in done.stderr
