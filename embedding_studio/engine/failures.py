"""What is told of a failure: what happened, while doing what, and where in the plugin."""

import inspect
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedding_studio.errors import EmbeddingStudioError, MethodError, TrialCrashed, UnknownMethod
from embedding_studio.executors.output import last_lines
from embedding_studio.methods import AnyMethod

PROPOSING = "proposing a hyperparameter set"
TRACE_CHARACTERS = 16_000
_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
"""All that numpy says of a full disk."""
_FRAME = re.compile(r'File "([^"]+)", line (\d+),? in (\S+)')


class LedgerFailed(Exception):
    """MLflow could not be written to: that is the task's failure, not the hyperparameter set's."""

    def __init__(self, why: Exception) -> None:
        super().__init__(str(why))
        #: what MLflow's client raised
        self.why = why


@contextmanager
def writing_to_ledger() -> Iterator[None]:
    """Around calls to MLflow for a trial, whose failures would else seem the trial's."""
    try:
        yield
    except Exception as error:
        raise LedgerFailed(error) from error


@contextmanager
def during(doing: str, output: Path | None = None) -> Iterator[None]:
    """Around what plugins do: their failure says while doing what, and does not end our process.

    output: a file of what was printed meanwhile."""
    try:
        yield
    except SystemExit as error:
        raise MethodError(f"{doing} called sys.exit({error.code!r})") from error
    except Exception as error:
        error.add_note(f"while {doing}")
        if output is not None and output.exists() and not isinstance(error, TrialCrashed):
            error.add_note(last_lines(output.read_bytes()))
        raise


def is_plugins(error: BaseException) -> bool:
    """Return whether an error may be a plugin's, so that who mends it needs the traceback; of our
    own errors most say all there is to say."""
    if isinstance(error, UnknownMethod):
        return False
    return isinstance(error, (MethodError, TrialCrashed)) or not isinstance(
        error, EmbeddingStudioError
    )


def describe(error: BaseException, method: AnyMethod | None) -> str:
    """Return an error's name and message, while doing what it came, and the line of the plugin."""
    about = [note for note in getattr(error, "__notes__", ()) if note.startswith("while ")]
    if isinstance(error, OSError) and _SHORT_WRITE.fullmatch(str(error)):
        about.append("No space left on device?")
    if method and is_plugins(error):
        about.append(f"in {_place(error, method)}")
    first, end, rest = str(error).partition("\n")
    context = f" ({', '.join(about)})" if about else ""
    return f"{type(error).__name__}: {first}{context}{end}{rest}"


def trace(error: BaseException) -> str:
    """Return an error's traceback, that of its job's process too; of a long one the end."""
    return "".join(traceback.format_exception(error))[-TRACE_CHARACTERS:]


def _place(error: BaseException, method: AnyMethod) -> str:
    # its functions know their file; the name of its module may be another file's by now
    functions = filter(inspect.isfunction, vars(type(method)).values())
    files = (function.__code__.co_filename for function in functions)
    plugin = Path(next(files, None) or inspect.getfile(type(method)))
    shown = "/".join(plugin.parts[-2:])
    frames = [
        (line, function)
        for file, line, function in _FRAME.findall(trace(error))
        if Path(file).parts[-2:] == plugin.parts[-2:]  # on another machine it lies elsewhere
    ]
    if not frames:
        return shown
    line, function = frames[-1]
    return f"{shown}, line {line}, {function}"
