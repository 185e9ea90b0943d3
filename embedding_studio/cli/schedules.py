"""Commands for schedules: tasks that come by themselves."""

from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import calls_api, open_client
from embedding_studio.cli.render import minute, print_table, printed_json, say
from embedding_studio.cli.terms import Method, takes_terms
from embedding_studio.clickstream import MIN_NEW_SESSIONS
from embedding_studio.clock import in_words, parse_duration
from embedding_studio.errors import unknown

if TYPE_CHECKING:
    from typing import Any

    from embedding_studio.wire.schedules import ScheduleView

app = typer.Typer(help="Have tasks created by the clock.", no_args_is_help=True)
ScheduleId = Annotated[str, typer.Argument(metavar="SCHEDULE", help="the schedule's id")]


@app.command("create")
@calls_api
@takes_terms
def create_schedule(
    method: Method,
    terms: "dict[str, Any]",
    cron: Annotated[
        str | None, typer.Option(help="minute, hour, day, month, weekday, in UTC: '30 3 * * 1'")
    ] = None,
    every: Annotated[str | None, typer.Option(help="12h, 7d, 2w, in place of cron")] = None,
    min_new_sessions: Annotated[
        int, typer.Option(min=1, help="clicked; with fewer, no task this time")
    ] = MIN_NEW_SESSIONS,
) -> None:
    """Have a task created at times of the clock, when enough new sessions are clicked."""
    seconds = None if every is None else parse_duration(every).total_seconds()
    if (cron is None) == (seconds is None):
        raise typer.BadParameter("give one of them", param_hint="--cron, --every")
    with open_client() as client:
        made = client.create_schedule(
            method,
            cron=cron,
            interval_seconds=seconds,
            min_new_sessions=min_new_sessions,
            **terms,
        )
    if not printed_json(made):
        say(f"schedule {made.id} creates its first task at {minute(made.next_at)}")


@app.command("list")
@calls_api
def list_schedules() -> None:
    """Show schedules, oldest first."""
    with open_client() as client:
        found = client.list_schedules()
    if printed_json(found):
        return
    rows = []
    for one in found:
        due = "paused" if one.is_paused else minute(one.next_at)
        rows.append([one.id, one.fine_tuning_method, _when(one), due, one.last_outcome or ""])
    print_table(["schedule", "method", "when", "next", "last time"], rows)


@app.command("show")
@calls_api
def show_schedule(schedule: ScheduleId) -> None:
    """Show a schedule."""
    with open_client() as client:
        found = next((one for one in client.list_schedules() if one.id == schedule), None)
    if found is None:
        raise unknown("schedule", schedule)
    if printed_json(found):
        return
    rows = {
        "method": found.fine_tuning_method,
        "when": _when(found),
        "next": "paused" if found.is_paused else minute(found.next_at),
        "sessions needed": str(found.min_new_sessions),
        "learns from the last": found.last,
        "learns from since": minute(found.since),
        "created": minute(found.created_at),
        "last task": found.last_task_id,
        "last time": found.last_outcome,
    }
    print_table(["schedule", found.id], [[name, value] for name, value in rows.items() if value])


@app.command("pause")
@calls_api
def pause_schedule(schedule: ScheduleId) -> None:
    """Have no more tasks created, until it is resumed."""
    with open_client() as client:
        _tell(client.pause_schedule(schedule))


@app.command("resume")
@calls_api
def resume_schedule(schedule: ScheduleId) -> None:
    """Have tasks created again, from the next time on."""
    with open_client() as client:
        _tell(client.resume_schedule(schedule))


@app.command("delete")
@calls_api
def delete_schedule(schedule: ScheduleId) -> None:
    """Delete a schedule; the tasks that it created stay."""
    with open_client() as client:
        client.delete_schedule(schedule)
    say(f"schedule {schedule} is deleted")


def _tell(found: "ScheduleView") -> None:
    if not printed_json(found):
        due = "is paused" if found.is_paused else f"is due at {minute(found.next_at)}"
        say(f"schedule {found.id} {due}")


def _when(found: "ScheduleView") -> str:
    return found.cron or f"every {in_words(found.interval_seconds or 0)}"
