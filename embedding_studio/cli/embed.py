"""The command that writes a catalogue's vectors."""

from pathlib import Path
from typing import Annotated

import typer

from embedding_studio.cli.context import calls_api, open_client, settings
from embedding_studio.cli.render import printed_json, say

app = typer.Typer()


@app.command("embed")
@calls_api
def embed(
    items: Annotated[
        str,
        typer.Option(
            metavar="FILE|items",
            help="parquet, CSV, JSON or JSON lines of items; `items`: those that the API keeps",
        ),
    ],
    model: Annotated[str, typer.Option(metavar="NAME[/VERSION]", help="NAME@champion or NAME/3")],
    out: Annotated[Path, typer.Option(help="vectors.parquet, or a folder, which gets the shards")],
    side: Annotated[
        str, typer.Option(metavar="SIDE", help="document, or query for searches")
    ] = "document",
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="what computes them: float32, bfloat16, onnx, onnx-int8 or openvino",
        ),
    ] = "float32",
    rows: Annotated[int, typer.Option(min=1, help="of a shard")] = 10_000,
    executor: Annotated[
        str,
        typer.Option(
            metavar="PLACE",
            help="where shards are made: inline, process:N, ray:auto or ray://host:port",
        ),
    ] = "inline",
    columns: Annotated[str, typer.Option(help="of a table: item=sku,text=title,...")] = "",
) -> None:
    """Write the vectors of items by a model into parquet; run again, it goes on where it ended."""
    from embedding_studio.serving.embed import EmbedFormat, Side
    from embedding_studio.serving.embed import embed as write_vectors
    from embedding_studio.serving.items import Texts
    from embedding_studio.wire.imports import columns_in

    if side not in list(Side):
        raise typer.BadParameter("--side is document or query")
    if form not in list(EmbedFormat):
        raise typer.BadParameter(f"--format is one of {', '.join(EmbedFormat)}")
    with open_client() as client:
        texts = Texts.of(items, client, settings(), columns_in(columns))
        found = write_vectors(
            client,
            texts,
            items,
            model,
            out,
            side=Side(side),
            form=EmbedFormat(form),
            rows_per_shard=rows,
            executor=executor,
            progress=_tell,
        )
    for fault in texts.faults:
        typer.echo(f"left out: {fault}", err=True)
    if texts.fault_count or texts.without_text:
        typer.echo(
            f"{texts.fault_count} rows were no items, {texts.without_text} items had no text",
            err=True,
        )
    if not printed_json(found):
        say(
            f"{out} has {found.rows} vectors of {found.dimensions} dimensions by {found.model}, "
            f"{found.new} of them made in {found.seconds:.0f} s"
        )


def _tell(rows: int, per_second: float) -> None:
    typer.echo(f"{rows} vectors, {per_second:.0f} a second", err=True)
