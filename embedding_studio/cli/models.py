"""Commands for registered models: their versions, what a person decides of them, and their files.

A version is written NAME/3 or NAME@champion; NAME alone is its champion where one version is meant.
What another project shares is OWNER:NAME.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_studio.cli.context import calls_api, open_client, settings
from embedding_studio.cli.render import minute, print_table, printed_json, say, second
from embedding_studio.models import CHAMPION, split_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from embedding_studio.client import EmbeddingStudioClient
    from embedding_studio.serving.judging import Catalogue
    from embedding_studio.tasks import MetricChange
    from embedding_studio.wire.models import ModelView, VersionView

app = typer.Typer(
    help="List and share models; show, promote, delete, download, export and compare versions.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="the model's name")]
Version = Annotated[str, typer.Argument(metavar="NAME/VERSION", help="NAME/3 or NAME@champion")]
Reason = Annotated[str, typer.Option(help="for the model's history")]


@app.command("list")
@calls_api
def list_models() -> None:
    """Show the models, and which version of each is champion."""
    with open_client() as client:
        found = client.list_models()
    if printed_json(found):
        return
    rows = [
        [
            model.name,
            str(model.champion or ""),
            str(model.version_count),
            minute(model.changed_at),
            model.fine_tuning_method,
        ]
        for model in found
    ]
    print_table(["model", "champion", "versions", "changed", "method"], rows)


@app.command("show")
@calls_api
def show(
    model: Annotated[
        str, typer.Argument(metavar="NAME[/VERSION]", help="NAME, NAME/3 or NAME@champion")
    ],
) -> None:
    """Show a model's versions, newest first, and who moved its champion; or one version."""
    name, version = split_reference(model)
    with open_client() as client:
        if version is not None:
            one = client.get_version(name, version)
            if not printed_json(one):
                _print_version(name, one)
            return
        found = client.get_model(name)
    if not printed_json(found):
        _print_model(found)


def _print_model(found: "ModelView") -> None:
    rows = []
    for version in found.versions:
        verdict = version.promotion
        figures = f"{verdict.baseline:.4f} -> {verdict.best:.4f}" if verdict else ""
        reason = verdict.reason if verdict else ""
        made, task = minute(version.created_at), version.task_id or ""
        rows.append([str(version.version), version.state, made, task, figures, reason])
    print_table(["version", "state", "created", "task", "test", "verdict"], rows)
    rows = []
    for move in found.moves:
        from_to = [str(move.from_version or ""), str(move.to_version)]
        rows.append([minute(move.at), *from_to, move.kind, move.by, move.why])
    typer.echo()
    print_table(["moved", "from", "to", "kind", "by", "why"], rows)
    if found.shared_with:
        typer.echo()
        _say_who_has(found)
    if found.wanted is not None:
        typer.echo()
        _say_who_is_champion(found)


def _print_version(name: str, found: "VersionView") -> None:
    told = found.model_dump(mode="json", exclude_none=True)
    for left_out in ("promotion", "version", "is_champion", "can_be_champion", "warnings"):
        told.pop(left_out, None)
    rows = [["model", f"{name}/{found.version}"]]
    rows += [
        [word, ", ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else
         ", ".join(map(str, value)) if isinstance(value, list) else str(value)]
        for word, value in told.items()
    ]  # fmt: skip
    print_table(["", ""], rows)
    if (verdict := found.promotion) is not None:
        typer.echo()
        say(verdict.reason)
        print_table(
            ["metric", "before", "after", "difference", "95 % interval"], _rows_of(verdict.metrics)
        )
    for warning in found.warnings:
        say(f"beware: {warning}")


@app.command("promote")
@calls_api
def promote(
    model: Annotated[str, typer.Argument(metavar="NAME[/VERSION]")],
    task: Annotated[
        str | None, typer.Option(metavar="ID", help="whose model, in place of a version")
    ] = None,
    reason: Reason = "",
) -> None:
    """Make a version, or a task's model, champion, whatever its verdict was."""
    name, version = split_reference(model)
    if (version is None) == (task is None):
        raise typer.BadParameter("name a version, NAME/3, or the task: NAME --task ID")
    with open_client() as client:
        number = None
        if version is not None:
            number = (
                int(version) if version.isdigit() else client.get_version(name, version).version
            )
        found = client.promote(name, number, task_id=task, reason=reason)
    if not printed_json(found):
        _say_who_is_champion(found)


@app.command("rollback")
@calls_api
def roll_back(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME[/VERSION]", help="NAME: to what was champion before"),
    ],
    reason: Reason = "",
) -> None:
    """Make an earlier champion champion; MLflow's alias follows within seconds."""
    name, version = split_reference(model)
    if version is not None and not version.isdigit():
        raise typer.BadParameter("name the version by its number: NAME/3")
    with open_client() as client:
        found = client.roll_back(name, None if version is None else int(version), reason)
    if not printed_json(found):
        _say_who_is_champion(found)


@app.command("webhook")
@calls_api
def webhook(
    model: Annotated[str, typer.Argument(metavar="NAME")],
    address: Annotated[
        str | None, typer.Argument(help="is told each change of the champion, and now")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="tell nobody any more")] = False,
) -> None:
    """Have changes of a model's champion told to an address, or show how telling them goes."""
    if remove and address is not None:
        raise typer.BadParameter("name an address, or --remove")
    with open_client() as client:
        asked = remove or address is not None
        found = client.set_webhook(model, address) if asked else client.get_model(model)
    if printed_json(found.model_dump(include={"webhook_url", "delivery", "delivery_due_at"})):
        return
    if found.webhook_url is None:
        say(f"changes of the champion of {model!r} are told to nobody")
        return
    say(f"changes of the champion of {model!r} are told to {found.webhook_url}")
    if found.delivery is not None:
        heard, error = found.delivery.delivered_at, found.delivery.error
        say(f"the last was heard at {second(heard)}" if heard else f"the last was not: {error}")


@app.command("delete")
@calls_api
def delete(model: Version) -> None:
    """Delete a version's files; it stays on record as removed. The champion cannot be."""
    name, version = split_reference(model)
    if version is None or not version.isdigit():
        raise typer.BadParameter("name the version by its number: NAME/3")
    with open_client() as client:
        client.delete_version(name, int(version))
        found = client.get_version(name, int(version))
    if not printed_json(found):
        say(f"version {version} of {name!r} is removed; a worker deletes its files")


Project = Annotated[str, typer.Argument(metavar="PROJECT", help="the other project's id")]


@app.command("share")
@calls_api
def share(name: Name, project: Project) -> None:
    """Let another project read, serve and start from a model; it changes nothing of it."""
    with open_client() as client:
        found = client.share_model(name, project)
    if not printed_json(found):
        _say_who_has(found)


@app.command("take-back")
@calls_api
def take_back(name: Name, project: Project) -> None:
    """Share a model with another project no longer; what was made of it stays."""
    with open_client() as client:
        found = client.take_model_back(name, project)
    if not printed_json(found):
        _say_who_has(found)


def _say_who_has(found: "ModelView") -> None:
    others = ", ".join(found.shared_with) or "no other project"
    say(f"{found.name!r} is shared with {others}")


@app.command("download")
@calls_api
def download(
    model: Annotated[str, typer.Argument(metavar="NAME[/VERSION]", help="NAME: its champion")],
    folder: Annotated[Path, typer.Argument(help="new, or empty")],
) -> None:
    """Write a version's files to a folder, from where sentence-transformers loads it."""
    name, version = split_reference(model)
    with open_client() as client:
        client.download_version(name, folder, version or CHAMPION)
    if not printed_json({"folder": str(folder)}):
        say(f"{model} is in {folder}")


def _say_who_is_champion(found: "ModelView") -> None:
    if (wanted := found.wanted) is not None:
        say(
            f"the model of task {wanted.task_id} becomes champion once a worker has registered it "
            f"(wanted by {wanted.by})"
        )
    else:
        say(f"version {found.champion} is champion: models:/{found.registered_name}@champion")


Items = Annotated[
    str,
    typer.Option(metavar="FILE|items", help="what is found; `items`: those that the API keeps"),
]
Columns = Annotated[str, typer.Option(help="of a table of items: item=sku,text=title,...")]


@app.command("export")
@calls_api
def export_model(
    model: Annotated[str, typer.Argument(metavar="NAME[/VERSION]", help="NAME: its champion")],
    out: Annotated[Path, typer.Option(help="a folder, new or empty")],
    wanted: Annotated[
        str, typer.Option("--format", help="onnx, onnx-int8, openvino or safetensors")
    ] = "onnx",
    items: Items = "items",
    columns: Columns = "",
    labels: Annotated[
        str | None, typer.Option(metavar="LABELS", help="tell the nDCG that is lost by these")
    ] = None,
) -> None:
    """Write a version in a form that needs no torch, and tell how near it is to the original."""
    from dataclasses import asdict

    from embedding_studio.serving import judging
    from embedding_studio.serving.export import (
        ExportFormat,
        check_may_export,
        closeness,
    )
    from embedding_studio.serving.export import export as write
    from embedding_studio.serving.registered import registered

    if wanted not in list(ExportFormat):
        raise typer.BadParameter(f"--format is one of {', '.join(ExportFormat)}")
    check_may_export(ExportFormat(wanted), out)
    with open_client() as client, registered(client, model) as original:
        catalogue = _catalogue(client, items, columns, None if labels else _CHECKED)
        exported = write(original.folder, out, ExportFormat(wanted), original.name)
        told: dict[str, object] = {"model": original.name, "format": wanted, "folder": str(out)}
        if catalogue.texts:
            told |= asdict(closeness(original.encode, exported, catalogue.texts[:_CHECKED]))
        if labels is not None:
            judged = judging.read_labels(client, labels, catalogue)
            found = [
                judging.Found.by(encode, original.is_cosine, judged.queries, catalogue)
                for encode in (original.encode, exported)
            ]
            ndcg = [float(judging.metrics_of(one, judged)["ndcg_at_10"].mean()) for one in found]
            told |= {"queries": len(judged.queries), "ndcg_at_10": ndcg[0]}
            told |= {"ndcg_at_10_exported": ndcg[1], "ndcg_lost": ndcg[0] - ndcg[1]}
    if printed_json(told):
        return
    say(f"{original.name} is in {out} as {wanted}")
    if "texts" in told:
        say(
            f"cosine to the original on {told['texts']} texts: {told['mean_cosine']:.6f} in the "
            f"mean, {told['min_cosine']:.6f} at least"
        )
    else:
        say("not compared with the original: there are no items with texts; name some by --items")
    if labels is not None:
        say(
            f"nDCG@10 on {told['queries']} queries of {labels!r}: {ndcg[0]:.4f}, exported "
            f"{ndcg[1]:.4f}: {ndcg[0] - ndcg[1]:+.4f} lost"
        )


@app.command("compare")
@calls_api
def compare_models(
    one: Annotated[str, typer.Argument(metavar="NAME[/VERSION]")],
    other: Annotated[str, typer.Argument(metavar="NAME[/VERSION]", help="is it better?")],
    queries: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="a table with queries, or .txt, one a line"),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="LABELS", help="queries, and what is relevant for them")
    ] = None,
    items: Items = "items",
    columns: Columns = "",
    html: Annotated[
        Path | None, typer.Option(help="write a page with both top tens side by side")
    ] = None,
) -> None:
    """Compare what two versions find for queries, by labels where there are some."""
    from embedding_studio.compare_page import compare_page_of
    from embedding_studio.serving import comparing, judging
    from embedding_studio.serving.registered import registered

    if (queries is None) == (labels is None):
        raise typer.BadParameter("name --queries FILE or --labels ID")
    found, names = [], []
    with open_client() as client:
        catalogue = _catalogue(client, items, columns, None)
        if not catalogue.ids:
            raise typer.BadParameter("there are no items with texts; name a file by --items")
        judged = judging.read_labels(client, labels, catalogue) if labels else None
        texts = judged.queries if judged else comparing.read_queries(queries, settings())  # type: ignore[arg-type] # one of the two
        for reference in (one, other):
            with registered(client, reference) as model:
                found.append(judging.Found.by(model.encode, model.is_cosine, texts, catalogue))
                names.append(model.name)
    seen = comparing.compare(found[0], found[1], texts, catalogue, judged, settings().seed)
    if html is not None:
        page = compare_page_of((names[0], names[1]), seen.queries, seen.metrics, seen.told)
        html.write_text(page, encoding="utf-8")
    told = {
        "models": names,
        "queries": len(texts),
        "items": len(catalogue.ids),
        "overlap_at_10": seen.overlap,
        "metrics": [*seen.metrics],
        "html": None if html is None else str(html),
    }
    if printed_json(told):
        return
    say(
        f"{len(texts)} queries, {len(catalogue.ids)} items: of the first ten of {names[0]}, "
        f"{names[1]} has {seen.overlap:.0%}, too"
    )
    if seen.metrics:
        print_table(["metric", *names, "difference", "95 % interval"], _rows_of(seen.metrics))
    if html is not None:
        say(f"both lists of {len(seen.queries)} queries are in {html}")


_CHECKED = 256


def _catalogue(
    client: "EmbeddingStudioClient", items: str, columns: str, most: int | None
) -> "Catalogue":
    """Return items with their texts, at most so many."""
    from itertools import islice

    from embedding_studio.serving.items import Texts
    from embedding_studio.serving.judging import Catalogue
    from embedding_studio.wire.imports import columns_in

    found = [*islice(Texts.of(items, client, settings(), columns_in(columns)), most)]
    return Catalogue([object_id for object_id, _ in found], [text for _, text in found])


def _rows_of(metrics: "Sequence[MetricChange]") -> list[list[str]]:
    return [
        [
            one.name,
            f"{one.before:.4f}",
            f"{one.after:.4f}",
            f"{one.delta:+.4f}",
            f"{one.delta_ci95[0]:+.4f} to {one.delta_ci95[1]:+.4f}" if one.delta_ci95 else "",
        ]
        for one in metrics
    ]
