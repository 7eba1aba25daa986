"""`fastrank build`: vectors on disk to a model directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import click
from rich.progress import Progress, TaskID

from fastrank.catalog import Catalog
from fastrank.cli.terminal import progress
from fastrank.model import Model
from fastrank.packing import CODED_FROM, STORAGES
from fastrank.policies import Policy
from fastrank.policies.spec import parse_policy
from fastrank.store import MANIFEST
from fastrank.vectorfiles import Advance, Columns, VectorFile, read_vectors

__all__ = ["build"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--items", required=True, type=_FILE, help="Item vectors: .npy, .npz or .parquet.")
@click.option("--users", required=True, type=_FILE, help="User vectors, likewise.")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Directory to make.",
)
@click.option(
    "--storage",
    type=click.Choice(STORAGES),
    default="float32",
    show_default=True,
    help="int8: scans of 16,384 items and more read a quarter of the bytes; log-propensities"
    " come with a bound.",
)
@click.option(
    "--tables",
    metavar="POLICY",
    help="Make the tables of all users for a policy, plackett_luce:temperature=0.5 say: rankings by"
    " stochastic_plackett_luce_auto are made from them, in microseconds.",
)
@click.option(
    "--tables-bytes",
    type=click.IntRange(min=0),
    default=1 << 30,
    show_default="1 GiB",
    help="The most that tables may take: 16 KB a user of a million items.",
)
@click.option("--replace", is_flag=True, help="Replace a model that is there already.")
@click.option("--item-ids", type=_FILE, help="A .npy of item ids, where --items is a .npy.")
@click.option("--user-ids", type=_FILE, help="A .npy of user ids, where --users is a .npy.")
@click.option(
    "--item-meta",
    type=_FILE,
    help="A .parquet with one row for each vector of --items: ids, titles.",
)
@click.option("--id-column", help="Parquet column of item ids.  [default: id]")
@click.option("--title-column", help="Parquet column of item titles.  [default: title, if present]")
@click.option("--bias-column", help="Parquet column of item biases.  [default: bias, if present]")
@click.option(
    "--prior-column",
    help="Parquet column of how likely items are to rank high: popularity, say.  [default: none]",
)
@click.option(
    "--vector-column",
    help="Parquet column of item vectors, as lists.  [default: vector, or else v0, v1, ...]",
)
@click.option("--user-id-column", help="Parquet column of user ids.  [default: id]")
@click.option(
    "--user-vector-column",
    help="Parquet column of user vectors.  [default: vector, or else v0, v1, ...]",
)
def build(
    items: Path,
    users: Path,
    output: Path,
    storage: str,
    tables: str | None,
    tables_bytes: int,
    replace: bool,
    item_ids: Path | None,
    user_ids: Path | None,
    item_meta: Path | None,
    id_column: str | None,
    title_column: str | None,
    bias_column: str | None,
    prior_column: str | None,
    vector_column: str | None,
    user_id_column: str | None,
    user_vector_column: str | None,
) -> None:
    """Make a model directory from item and user vectors.

    A .npy file holds vectors alone; ids are then row numbers unless given. A .npz file holds
    arrays `vectors` and, if wanted, `ids`, `bias`, `titles`, `prior`. A Parquet file has a column
    of ids (integers, text, UUIDs, or bytes that are UTF-8) and either one column of lists or
    tensors or columns v0, v1, ...; other names can be given. The model is written whole or not at
    all.

    \b
    Examples:
      fastrank build --items items.parquet --users users.parquet -o model/
      fastrank build --items item_factors.npy --item-meta items.parquet \\
          --id-column item_id --title-column name \\
          --users user_factors.npy --user-ids user_ids.npy -o model/
      fastrank build --items items.npz --users users.npz --storage int8 -o model/
      fastrank build --items items.npz --users users.npz \\
          --tables plackett_luce:temperature=0.5 -o model/
    """
    table_policy = None if tables is None else _table_policy(tables)
    if (output / MANIFEST).exists() and not replace:
        raise click.UsageError(f"{output} is taken; --replace replaces the model in it")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise click.UsageError(f"--output: {parent} is a file")
    with progress() as bar:
        item_columns = Columns(id_column, vector_column, bias_column, title_column, prior_column)
        item_side = read_vectors(
            items,
            ids=item_ids,
            metadata=item_meta,
            columns=item_columns,
            advance=_rows(bar, f"reading {items.name}"),
        )
        user_side = read_vectors(
            users,
            ids=user_ids,
            columns=Columns(user_id_column, user_vector_column),
            alone=True,
            advance=_rows(bar, f"reading {users.name}"),
        )
        step = bar.add_task("packing items", total=3)
        catalog = _catalog(item_side, storage)
        bar.update(step, description="adding users", advance=1)
        model = _model(catalog, user_side, item_side)
        if table_policy is not None:
            model = _with_tables(model, table_policy, tables_bytes, bar)
        bar.update(step, description="writing", advance=1)
        model.save(output)
        bar.update(step, advance=1)
    click.echo(
        f"{output}: {len(catalog):,} items, {len(model.user_ids):,} users,"
        f" {catalog.dim} dimensions, {catalog.storage}, version {catalog.version}"
    )
    if model.table_temperature is not None:
        click.echo(f"Tables of all users at temperature {model.table_temperature:g}.")
    if catalog.storage != storage:
        click.echo(
            f"Kept as {catalog.storage}: {storage} is for {CODED_FROM:,} items and more.", err=True
        )
    click.echo(f"Next: fastrank verify {output}", err=True)


def _table_policy(text: str) -> Policy:
    _, policy = parse_policy(text, "--tables")
    if not isinstance(policy, Policy):
        raise ValueError(f"--tables: {text}: expected a temperature, not one relative to a log's")
    return policy


def _with_tables(model: Model, policy: Policy, most: int, bar: Progress) -> Model:
    try:
        return model.with_tables(
            policy,
            threads=len(os.sched_getaffinity(0)),
            max_bytes=most,
            advance=_rows(bar, "making tables"),
        )
    except ValueError as error:
        option = "--tables-bytes" if str(error).startswith("max_bytes") else "--tables"
        raise ValueError(f"{option}: {str(error).partition(': ')[2]}") from None


def _rows(bar: Progress, description: str) -> Advance:
    """Progress in rows, shown once there is any: .npy files are mapped in no time."""
    task: TaskID | None = None

    def advance(done: int, total: int) -> None:
        nonlocal task
        if task is None:
            task = bar.add_task(description, total=total)
        bar.update(task, completed=done)

    return advance


# Which part of a file each argument comes from.
_ITEM_ARGUMENTS = {
    **{"item_ids": "ids", "vectors": "vectors", "bias": "bias", "prior": "prior"},
    "item_titles": "titles",
}
_USER_ARGUMENTS = {"user_ids": "ids", "user_vectors": "vectors"}


def _catalog(items: VectorFile, storage: str) -> Catalog:
    try:
        return Catalog(
            items.ids, items.vectors, bias=items.bias, storage=storage, prior=items.prior
        )
    except ValueError as error:
        raise _placed(error, items, _ITEM_ARGUMENTS) from None


def _model(catalog: Catalog, users: VectorFile, items: VectorFile) -> Model:
    try:
        return Model(catalog, users.ids, users.vectors, item_titles=items.titles)
    except ValueError as error:
        is_of_items = str(error).startswith("item_titles")
        side, arguments = (items, _ITEM_ARGUMENTS) if is_of_items else (users, _USER_ARGUMENTS)
        raise _placed(error, side, arguments) from None


def _placed(error: ValueError, side: VectorFile, arguments: Mapping[str, str]) -> ValueError:
    """An error that names the file, and the column there is, that an argument came from."""
    part = arguments.get(str(error).partition(":")[0], "vectors")
    return ValueError(f"{side.places[part]}: {error}")
