"""Log lines name the task and the trial, whoever writes them."""

import io
import logging
import subprocess
import sys

from embedding_studio import logs

PROGRAM = """
import logging, threading, warnings
from embedding_studio import logs

logs.configure(logging.WARNING, own_level=logging.INFO)
with logs.about("task 7"):
    logging.getLogger("embedding_studio.engine.worker").info("claimed")
    with logs.about("task 7, trial 1"):
        logging.getLogger("urllib3").warning("a retry")
        warnings.warn("deprecated")
    threading.Thread(target=logging.getLogger("store").warning, args=["elsewhere"]).start()
    logging.getLogger("urllib3").info("chatter")
logging.getLogger("embedding_studio.engine.worker").info("idle")
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


FORGING = r"""
import logging
from embedding_studio import logs

logs.configure(logging.INFO)
log = logging.getLogger("embedding_studio.engine.worker")
forged = "x\n2026-01-31 12:00:00,000 INFO embedding_studio.engine: all is well\r\x1b[2J\u2028"
log.warning("webhook %s", forged)
mlflow = logging.getLogger("mlflow")  # as it sets itself up
mlflow.addHandler(logging.StreamHandler())
mlflow.propagate = False
logs.adopt_libraries()
mlflow.warning("too long: %s", forged)
try:
    raise ValueError(forged)
except ValueError:
    log.exception("failed")
"""


def test_nothing_in_a_record_looks_like_a_line_of_ours() -> None:
    """Lines within a message or a traceback are indented, a library's too, and no escape code
    reaches a terminal."""
    done = subprocess.run([sys.executable, "-c", FORGING], capture_output=True, check=True)
    told = done.stderr.decode()
    ours = [line for line in told.split("\n") if line and not line.startswith(" ")]
    assert [line.split(maxsplit=2)[2] for line in ours] == [
        "WARNING embedding_studio.engine.worker: webhook x",
        "WARNING mlflow: too long: x",
        "ERROR embedding_studio.engine.worker: failed",
    ]
    assert told.count(r"all is well\r\x1b[2J\u2028") == 3
    assert not {"\r", "\x1b", "\u2028"} & set(told)


ELSEWHERE = """
import logging, os
from embedding_studio import logs

own, silent = loggers = [logging.getLogger("own"), logging.getLogger("silent")]
own.addHandler(logging.FileHandler(os.devnull))
for logger in loggers:
    logger.propagate = False
logs.adopt_libraries()
print([(logger.propagate, len(logger.handlers)) for logger in loggers])
"""


def test_loggers_that_write_elsewhere_stay_as_they_are() -> None:
    """A plugin's that writes to a file, or one that is silent, is not what writes to a terminal."""
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, check=True)
    assert done.stdout.decode() == "[(False, 1), (False, 0)]\n"


def test_one_line_of_a_kind_in_a_minute() -> None:
    """The next one says how many were left out; other kinds, and other errors, are not held up."""
    now = 0.0
    logger = logging.Logger("strangers")
    lines = io.StringIO()
    logger.addFilter(logs.OncePerMinute(lambda: now))
    logger.addHandler(logging.StreamHandler(lines))

    def complain(error: Exception | None = None) -> None:
        logger.warning("%s came", "somebody", exc_info=error)

    for seconds in (0, 1, 59, 60, 61, 130):
        now = seconds
        complain()
    complain(ValueError())
    complain(KeyError())
    complain(ValueError())
    assert [line for line in lines.getvalue().splitlines() if "came" in line] == [
        "somebody came",
        "somebody came [2 more like this were left out before]",
        "somebody came [1 more like this were left out before]",
        "somebody came",
        "somebody came",
    ]
