"""Commands for fine-tuning methods: which there are, as the workers that carry them say; one of
one's own, begun and checked on this machine."""

import pdb
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import (
    calls_api,
    on_this_machine,
    open_client,
    settings,
    wants_json,
)
from embedding_studio.cli.render import print_table, printed_json, say
from embedding_studio.clock import in_words
from embedding_studio.errors import (
    Conflict,
    EmbeddingStudioError,
    MethodError,
    NotFound,
    PluginError,
)

if TYPE_CHECKING:
    from embedding_studio.methods import AnyMethod, PluginFile
    from embedding_studio.testing.bench import Bench

app = typer.Typer(help="See, begin and check fine-tuning methods.", no_args_is_help=True)


@app.command("list")
@calls_api
def list_methods() -> None:
    """Show the methods of the workers that live, and which plugins did not load."""
    with open_client() as client:
        found = client.list_methods()
    if printed_json(found):
        return
    rows = []
    for one in found.methods:
        lacks = "" if one.can_start else "cannot start, its initial model is not there"
        labels = "clicks and labels" if one.takes_labels else "clicks"
        rows.append([one.name, str(one.workers), labels, lacks])
    print_table(["method", "workers", "learns from", ""], rows)
    for place in found.failed_plugins:
        say(f"! {place} did not load: `doctor` and the worker's log say why")
    if not found.methods:
        say("! no worker that lives has a method; start one with `embedding-studio worker`")


@app.command("new")
@on_this_machine
def new_method(
    name: Annotated[str, typer.Argument(metavar="NAME", help="what tasks are to call it")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="by default a file in the folder of plugins"),
    ] = None,
) -> None:
    """Write a method that works, with comments, to be changed.

    A file that is there is not written over."""
    from embedding_studio.projects import check_model_name
    from embedding_studio.testing.begin import file_name, text_of_new

    try:
        check_model_name(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    file = out or settings().plugins_folder / file_name(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(text_of_new(name))
    except FileExistsError:
        raise Conflict(f"{file} exists: name another file by --out, or remove it") from None
    if printed_json({"method": name, "file": str(file)}):
        return
    say(f"{name!r} is in {file}")
    say(f"check it: embedding-studio methods check {file}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one check of a method ended. told: what is wrong; why nothing was checked; or nothing."""

    method: str
    check: str
    passed: bool
    told: str
    seconds: float


@app.command("check")
@on_this_machine
def check_method(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="the plugin")
    ],
    method: Annotated[
        str | None, typer.Option(metavar="NAME", help="one method of a file that has several")
    ] = None,
    batch: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            exists=True,
            file_okay=False,
            help="sessions of yours, as `batch export --parquet` writes them",
        ),
    ] = None,
    initial_model: Annotated[
        str | None,
        typer.Option(help="what ES_INITIAL_MODEL is meanwhile: by default a small random encoder"),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(metavar="CHECK", help="repeatable")] = None,
    skip: Annotated[list[str] | None, typer.Option(metavar="CHECK", help="repeatable")] = None,
    frozen: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="saved tensors that training must not change; repeatable"
        ),
    ] = None,
    keeps_items: Annotated[
        bool, typer.Option("--keeps-items", help="training must not change items' vectors")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--pdb", help="open the debugger where a check fails")
    ] = False,
) -> None:
    """Try a plugin's methods on a small batch, without a server, and say what is wrong with them.

    All runs in this process: a breakpoint() in the method stops there."""
    say(f"checking {file}")  # what follows takes seconds to be imported
    from embedding_studio.methods import PluginFile
    from embedding_studio.testing.bench import RECORDED, Bench
    from embedding_studio.testing.checks import CHECKS

    unknown = {*(only or ()), *(skip or ())} - {*CHECKS}
    if unknown:
        raise typer.BadParameter(
            f"no check is named {min(unknown)!r}; there are {', '.join(CHECKS)}"
        )
    chosen = [name for name in CHECKS if (not only or name in only) and name not in (skip or ())]
    outcomes: list[Outcome] = []
    for one in _methods_of(PluginFile(file.absolute(), file.read_bytes()), method):
        say(one.meta.name)
        with tempfile.TemporaryDirectory(prefix="methods-check-") as folder:
            bench = Bench(one, Path(folder), batch or RECORDED)
            bench.frozen, bench.keeps_items = frozen or (), keeps_items
            with bench.standing_in(initial_model):
                outcomes += _checked(bench, chosen, debug)
    printed_json(outcomes)
    wrong = [outcome for outcome in outcomes if not outcome.passed]
    if wrong:
        names = ", ".join(dict.fromkeys(outcome.check for outcome in wrong))
        raise MethodError(f"{len(wrong)} of {len(outcomes)} checks failed: {names}")
    if not wants_json():
        say(f"nothing is wrong: {len(outcomes)} checks passed")


def _methods_of(file: "PluginFile", name: str | None) -> list["AnyMethod"]:
    """Return the methods of a plugin, or the one of a name. Raises PluginError, NotFound."""
    from embedding_studio.methods import describe_failure

    try:
        methods, problems = file.load()
    except Exception as error:
        raise PluginError(
            f"{file.path} does not load: {describe_failure(error, str(file.path))}"
        ) from error
    if problems:
        raise PluginError(f"{file.path} does not load: {'; '.join(problems)}")
    chosen = [method for method in methods if name in (None, method.meta.name)]
    if not chosen:
        there = ", ".join(repr(method.meta.name) for method in methods)
        raise NotFound(f"{file.path} has no method named {name!r}; it has {there}")
    return chosen


def _checked(bench: "Bench", names: Sequence[str], debug: bool) -> Iterator[Outcome]:
    """Run checks, and tell of each as it ends."""
    from embedding_studio.testing.checks import CHECKS

    known: dict[str, str] = {}
    for name in names:
        typer.echo(f"  {name:15}", nl=False, err=wants_json())
        sys.stdout.flush()
        begin, failed = time.perf_counter(), None
        try:
            told = CHECKS[name](bench) or ""
        except Exception as error:  # noqa: BLE001 - around a plugin's own code
            told, failed = _describe(error, bench.method), error
        seconds = time.perf_counter() - begin
        if failed is None:
            say(f"nothing to check: {told}" if told else f"ok, {in_words(seconds)}")
        else:
            say(f"wrong, as {known[told]} is" if told in known else f"wrong: {told}")
            known.setdefault(told, name)
            if debug:
                pdb.post_mortem(failed.__traceback__)
        yield Outcome(bench.method.meta.name, name, failed is None, told, round(seconds, 1))


def _describe(error: Exception, method: "AnyMethod") -> str:
    from embedding_studio.methods import describe_failure

    if isinstance(error, EmbeddingStudioError):
        return str(error)
    assert method.plugin_file is not None
    return describe_failure(error, str(method.plugin_file.path))
