"""`fastrank build`: make a model directory from vectors on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np
from click.core import ParameterSource
from rich import box
from rich.progress import Progress, TaskID
from rich.table import Table

from fastrank.calibration import condense, temperatures_for_overlap
from fastrank.catalog import Catalog
from fastrank.cli.filters import Filters, filter_options, filters_of
from fastrank.cli.planwords import choice_text, not_reached_text
from fastrank.cli.scores import (
    features_of,
    functions_of,
    param_option,
    params_of,
    said_of,
    score_function_option,
)
from fastrank.cli.terminal import for_terminal, progress, standard_output
from fastrank.cores import usable_cores
from fastrank.files import file_format
from fastrank.model import Model
from fastrank.packing import CODED_FROM, STORAGES
from fastrank.plan import Choice, choose, seconds_for
from fastrank.policies import TABLED, FlatTail, PlackettLuce, Policy, short_name
from fastrank.policies.spec import Stated, parse_stated
from fastrank.retrieval import Trade, build_ivf, measure, propose
from fastrank.store import MANIFEST
from fastrank.vectorfiles import (
    Advance,
    Columns,
    VectorFile,
    check_columns,
    check_pairs,
    read_pairs,
    read_vectors,
)

__all__ = ["build"]

_OVERLAP = 0.7  # with the deterministic ranking: how the temperature is chosen
_PLACES = 10
_USERS = 32  # users that an index is measured with, and its temperature chosen from
_MOST = 5_000_000_000  # users times items scored to find users' own temperatures: minutes of work
_SLOW = 5.0  # seconds: longer work is announced
_OF_THE_MODEL = ""
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _overlap(context: click.Context, option: click.Parameter, text: str) -> float | None:
    if text == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0.0 < value < 1.0:
        raise click.BadParameter(f"expected a share between 0 and 1, or none; got {text!r}")
    return value


@click.command()
@click.option("--items", required=True, type=_FILE, help="Item vectors: .npy, .npz or .parquet.")
@click.option("--users", required=True, type=_FILE, help="User vectors, in the same formats.")
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
    help="How to store vectors. With int8, scans of 16,384 items or more read a quarter of the"
    " bytes, and log-propensities come with an error bound.",
)
@click.option(
    "--overlap",
    default=f"{_OVERLAP:g}",
    show_default=True,
    callback=_overlap,
    metavar="SHARE|none",
    help="Choose the model's own policy, for requests that name none, so that every user keeps this"
    " share of their deterministic top k, as fastrank plan --apply does. The policy is"
    " Plackett-Luce, with a factor on its temperature for each user. Choosing takes some seconds,"
    " plus some milliseconds per user for 100,000 items (docs/how-to/plan.md). none: the model gets"
    " no policy.",
)
@click.option(
    "-k",
    type=click.IntRange(min=1),
    default=_PLACES,
    show_default=True,
    help="Places of the rankings used to choose the policy and to measure an index.",
)
@filter_options(
    "Items to leave out when choosing the policy, so that every user keeps the share among the"
    " other items. Repeatable. The model does not store the filter: requests send their own.",
    "Choose the policy for rankings of these items only. Repeatable.",
)
@click.option(
    "--policy",
    metavar="POLICY[:PARAM=VALUE,...]",
    help="Set the model's own policy exactly as given; nothing is chosen.",
)
@click.option(
    "--tables",
    metavar="[POLICY]",
    is_flag=False,
    flag_value=_OF_THE_MODEL,
    help="Make the tables of all users for the model's own policy, which then becomes"
    " plackett_luce_auto: rankings come from the tables, in microseconds. Or name another policy"
    " for the tables, such as plackett_luce:temperature=0.5; without --overlap and --policy, the"
    " model's own policy.",
)
@click.option(
    "--tables-bytes",
    type=click.IntRange(min=0),
    help="Most bytes that all tables may take: a user of a million items takes 16 KB.  [default: 1"
    " GiB]",
)
@click.option(
    "--index",
    type=click.Choice(["ivf"]),
    help="Add a FAISS index, which flat_tail finds its candidates with, and measure on some users"
    " what its m and factor do.",
)
@click.option(
    "--index-lists", type=click.IntRange(min=1), help="Lists of the index.  [default: 4 sqrt(n)]"
)
@click.option(
    "--index-probes",
    type=click.IntRange(min=1),
    help="Lists that each search reads.  [default: 16]",
)
@click.option(
    "--index-policy",
    metavar="POLICY",
    help="Plackett-Luce at the temperature to measure the index for, such as"
    " plackett_luce:temperature=0.5. By default the temperature of --tables, or else the model's"
    " own, or else one that keeps 70% of the deterministic ranking for a median user.",
)
@click.option(
    "--features",
    type=_FILE,
    help="Columns for scores and rules, .parquet or .npz: numbers, booleans, strings, lists of"
    " strings. A column of ids says which item each row describes.",
)
@click.option(
    "--feature-id-column",
    help="Column of ids in --features.  [default: id, ids, or that of --id-column]",
)
@click.option(
    "--features-by-row",
    is_flag=True,
    help="The rows of --features are in the order of --items, so that no column of ids is needed.",
)
@click.option(
    "--score",
    help="How to score items by default: an expression of dot, columns and parameters, such as 'dot"
    " - 0.1 * log1p(sales)', or the name of a --score-function.",
)
@param_option
@score_function_option
@click.option(
    "--seen",
    type=_FILE,
    metavar="PARQUET",
    help="What users have seen: pairs of a user and an item. A user's rankings leave these items"
    " out, before sampling, in addition to what a request excludes. The pairs are stored with the"
    " model. They are ignored when the policy is chosen and an index measured.",
)
@click.option("--seen-user-column", help="Column of --seen.  [default: user]")
@click.option("--seen-item-column", help="Column of --seen.  [default: item]")
@click.option(
    "--replace", is_flag=True, help="Replace the model that is already in the output directory."
)
@click.option("--item-ids", type=_FILE, help="A .npy of item ids, if --items is a .npy.")
@click.option("--user-ids", type=_FILE, help="A .npy of user ids, if --users is a .npy.")
@click.option(
    "--item-meta",
    type=_FILE,
    help="A .parquet with one row per vector of --items: ids, titles.",
)
@click.option("--id-column", help="Parquet column of ids, of items and of users.  [default: id]")
@click.option("--title-column", help="Parquet column of item titles.  [default: title, if present]")
@click.option("--bias-column", help="Parquet column of item biases.  [default: bias, if present]")
@click.option(
    "--prior-column",
    help="Parquet column of how likely items are to rank high, such as popularity.  [default:"
    " none]",
)
@click.option(
    "--vector-column",
    help="Parquet column of item vectors, as lists.  [default: vector, or else v0, v1, ...]",
)
@click.option(
    "--user-id-column",
    help="Parquet column of user ids.  [default: id, or that of --id-column]",
)
@click.option(
    "--user-vector-column",
    help="Parquet column of user vectors.  [default: vector, or else v0, v1, ...]",
)
@click.pass_context
def build(
    context: click.Context,
    items: Path,
    users: Path,
    output: Path,
    storage: str,
    overlap: float | None,
    k: int,
    exclude: tuple[str, ...],
    exclude_file: Path | None,
    allow: tuple[str, ...],
    allow_file: Path | None,
    policy: str | None,
    tables: str | None,
    tables_bytes: int | None,
    index: str | None,
    index_lists: int | None,
    index_probes: int | None,
    index_policy: str | None,
    features: Path | None,
    feature_id_column: str | None,
    features_by_row: bool,
    score: str | None,
    params: tuple[str, ...],
    score_functions: tuple[str, ...],
    seen: Path | None,
    seen_user_column: str | None,
    seen_item_column: str | None,
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

    A .npy file holds vectors only; ids are then row numbers unless given. A .npz file holds the
    array `vectors` and optionally `ids`, `bias`, `titles` and `prior`. A Parquet file has a column
    of ids (integers, text, UUIDs, or UTF-8 bytes) and vectors: one column of lists or tensors, or
    columns v0, v1, ...; options can give other names. The model is written completely or not at
    all. IDS and files of ids are as for fastrank rank.

    \b
    Examples:
      fastrank build --items items.parquet --users users.parquet -o model/
      fastrank build --items item_factors.npy --item-meta items.parquet \\
          --id-column item_id --title-column name \\
          --users user_factors.npy --user-ids user_ids.npy -o model/
      fastrank build --items items.npz --users users.npz --storage int8 -o model/
      fastrank build --items items.npz --users users.npz --overlap 0.8 -k 5 --tables -o model/
      fastrank build --items items.npz --users users.npz --exclude-file sold_out.txt -o model/
      fastrank build --items items.npz --users users.npz \\
          --policy epsilon_greedy:epsilon=0.1 -o model/
      fastrank build --items items.npz --users users.npz --seen bought.parquet -o model/
      fastrank build --items items.npz --users users.npz --index ivf -o model/
      fastrank build --items items.npz --users users.npz --features shop.parquet \\
          --score "dot + 0.3 * exp(-age / half_life)" --param half_life=30 -o model/
    """
    is_asked = context.get_parameter_source("overlap") is not ParameterSource.DEFAULT
    own = None if policy is None else _whole("--policy", policy)
    if own is not None and is_asked and overlap is not None:
        raise click.UsageError(
            "--policy, --overlap: give only one: --overlap chooses a policy, --policy states it"
        )
    tabled = None if not tables else parse_stated(tables, "--tables")
    if tabled is not None and not tabled.wants_temperature and own is None and not is_asked:
        own = _whole("--tables", tables or "")
        own = own.with_sampler("auto") if isinstance(own, PlackettLuce) else own
    if own is not None:
        overlap = None
    given = {"--exclude": exclude, "--exclude-file": exclude_file}
    given |= {"--allow": allow, "--allow-file": allow_file}
    for option, ids in given.items():
        if ids and overlap is None:
            raise click.UsageError(
                f"{option}: needs --overlap, which chooses a policy for these rankings"
            )
    if tables is None and tables_bytes is not None:
        raise click.UsageError("--tables-bytes: needs --tables")
    wants = tables is not None and (tabled is None or tabled.wants_temperature)
    if wants and own is None and overlap is None:
        raise click.UsageError(
            "--tables: the model has no policy to make them for: name one, such as --tables"
            " plackett_luce:temperature=0.5"
        )
    measured_for = None if index_policy is None else _whole("--index-policy", index_policy)
    if measured_for is not None and not isinstance(measured_for, PlackettLuce):
        raise click.UsageError(
            f"--index-policy: {index_policy}: expected plackett_luce:temperature=..."
        )
    for option, value in (
        ("--index-lists", index_lists),
        ("--index-probes", index_probes),
        ("--index-policy", index_policy),
    ):
        if index is None and value is not None:
            raise click.UsageError(f"{option}: needs --index")
    if features is None and feature_id_column is not None:
        raise click.UsageError("--feature-id-column: needs --features")
    if features is None and features_by_row:
        raise click.UsageError("--features-by-row: needs --features")
    if features_by_row and feature_id_column is not None:
        raise click.UsageError("--features-by-row, --feature-id-column: give only one")
    for option, name in (
        ("--seen-user-column", seen_user_column),
        ("--seen-item-column", seen_item_column),
    ):
        if seen is None and name is not None:
            raise click.UsageError(f"{option}: needs --seen")
    values = params_of(params)
    if score is None and values is not None:
        raise click.UsageError("--param: needs --score")
    if score is None and score_functions:
        raise click.UsageError("--score-function: needs --score NAME")
    functions = functions_of(score_functions)
    if score is not None and index is not None:
        raise click.UsageError(
            "--index, --score: give only one: an index finds items by dot products"
        )
    if (output / MANIFEST).exists() and not replace:
        raise click.UsageError(f"{output} already exists; --replace replaces the model in it")
    parent = next(folder for folder in output.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise click.UsageError(f"--output: {parent} is a file")
    item_id_column = id_column
    if user_id_column is None and _are_ids_of_users_alone(items, item_meta, users):
        item_id_column, user_id_column = None, id_column
    item_columns = Columns(item_id_column, vector_column, bias_column, title_column, prior_column)
    user_columns = Columns(user_id_column, user_vector_column, or_id=id_column)
    sides = seen_user_column or "user", seen_item_column or "item"
    _check_files(
        partial(check_columns, items, metadata=item_meta, columns=item_columns),
        partial(check_columns, users, columns=user_columns, alone=True),
        *([] if seen is None else [partial(_check_seen, seen, sides)]),
    )
    with progress() as bar:
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
            columns=user_columns,
            alone=True,
            advance=_rows(bar, f"reading {users.name}"),
        )
        step = bar.add_task("packing items", total=3)
        catalog = _catalog(item_side, storage)
        if features is not None:
            usual = [] if features_by_row else ["id", "ids", *([id_column] if id_column else [])]
            id_columns = [feature_id_column] if feature_id_column else usual
            catalog = _with_features(catalog, features, id_columns)
        if score is not None:
            catalog = _with_score(catalog.with_functions(*functions), score, values)
        bar.update(step, description="adding users", advance=1)
        model = _model(catalog, user_side, item_side)
        if score is not None:
            _try_score(model)
        notes: list[str] = []
        if seen is not None:
            model = _with_seen(model, seen, sides, notes, bar)
        choice: Choice | None = None
        if own is not None:
            model = model.with_policy(own)
        elif overlap is not None:
            filters, _ = filters_of(catalog, exclude, exclude_file, allow, allow_file)
            choice, why_not = _choice(model, overlap, k, filters, bar)
            if choice is not None:
                model = choice.of(model)
            elif is_asked:
                raise ValueError(f"--{why_not}")
        if tables is not None:
            if choice is not None:
                model = model.with_policy(choice.policy.with_sampler("auto"))
            most = 1 << 30 if tables_bytes is None else tables_bytes
            model = _with_tables(model, tabled, most, bar)
        trades: list[Trade] = []
        if index is not None:
            model = _with_index(model, index_lists, index_probes, bar)
            measured_for = measured_for or _usual_policy(model, k)
            trades = measure(
                model,
                measured_for,
                k=k,
                users=_USERS,
                advance=_rows(bar, "measuring the index"),
            )
        bar.update(step, description="writing", advance=1)
        model.save(output)
        bar.update(step, advance=1)
    click.echo(
        f"{output}: {len(catalog):,} items, {len(model.user_ids):,} users,"
        f" {catalog.dim} dimensions, {catalog.storage}, version {catalog.version}"
    )
    if catalog.features is not None:
        columns = ", ".join(f"{name} ({kind})" for name, kind in catalog.features.columns.items())
        click.echo(f"Features: {columns}; version {catalog.features.version}")
    if catalog.score is not None:
        click.echo(f"Score: {said_of(catalog.score._asdict())}")
    if model.seen_id is not None:
        click.echo(f"Seen: {model.seen_pairs:,} pairs of a user and an item, {model.seen_id[:12]}")
    for note in notes:
        click.echo(f"fastrank build: --seen: {note}", err=True)
    _print_policy(model, choice, output)
    if overlap is not None and choice is None:
        click.echo(
            f"fastrank build: no policy was chosen: {why_not}; the model has no policy of its own",
            err=True,
        )
    if model.table_temperature is not None:
        click.echo(f"Tables of all users at temperature {model.table_temperature:g}.")
    if measured_for is not None and trades:
        _print_trades(model, measured_for.temperature, k, trades)
    if catalog.storage != storage:
        click.echo(
            f"Stored as {catalog.storage}: {storage} needs at least {CODED_FROM:,} items.", err=True
        )
    click.echo(f"Next: fastrank verify {output}", err=True)


def _are_ids_of_users_alone(items: Path, item_meta: Path | None, users: Path) -> bool:
    """Whether --id-column can only mean users: the items have no Parquet file, and the users do."""
    of_items = file_format(items if item_meta is None else item_meta) == "parquet"
    return not of_items and file_format(users) == "parquet"


def _check_files(*checks: Callable[[], None]) -> None:
    """Report every problem of the files before any is read, so that one run shows them all."""
    problems = []
    for check in checks:
        try:
            check()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; and ".join(problems))


def _check_seen(path: Path, columns: tuple[str, str]) -> None:
    try:
        check_pairs(path, *columns)
    except ValueError as error:
        raise ValueError(f"--seen: {error}") from None


def _whole(option: str, text: str) -> Policy:
    """Parse a policy that must be complete: a temperature that nobody gave would be a guess."""
    stated = parse_stated(text, option)
    if stated.wants_temperature:
        raise click.UsageError(
            f"{option}: {text}: give its temperature, as plackett_luce:temperature=0.5"
        )
    return stated.completed()


def _choice(
    model: Model, overlap: float, k: int, filters: Filters, bar: Progress
) -> tuple[Choice | None, str]:
    """The chosen policy, or the reason why none was chosen."""
    threads = usable_cores()
    seconds = seconds_for(model, k, _MOST, threads, **filters)
    if seconds > _SLOW:
        click.echo(
            f"choosing the policy takes about {float(f'{seconds:.1g}'):,.0f} s; --overlap none"
            " skips it",
            err=True,
        )
    task = bar.add_task("choosing the policy", total=None)

    def advance(description: str, done: int, total: int) -> None:
        bar.update(task, description=description, completed=done, total=total)

    try:
        choice = choose(
            model, overlap, k=k, most=_MOST, threads=threads, **filters, advance=advance
        )
        return choice, ""
    except ValueError as error:
        if not str(error).startswith("overlap: "):
            raise
        return None, str(error)
    finally:
        bar.remove_task(task)


def _print_policy(model: Model, choice: Choice | None, output: Path) -> None:
    console = standard_output()
    if choice is not None:
        text = choice_text(choice)
        console.print(f"[bold]Policy[/]: {for_terminal(text.removeprefix('policy '))}")
        if choice.not_reached:
            console.print(for_terminal(not_reached_text(choice)))
        if choice.factors is None:
            console.print(
                "One temperature for all, because there are many users: fastrank plan"
                f" {for_terminal(output)} -k {choice.k} --target-overlap {choice.asked:g}"
                f" --apply{', with the same filters,' if choice.is_filtered else ''} finds each"
                " user's own."
            )
    elif model.policy is not None:
        params = ", ".join(f"{name} {value:g}" for name, value in model.policy.params.items())
        name = short_name(model.policy.inference_type)
        console.print(f"[bold]Policy[/]: {name}{', ' if params else ''}{params}, as stated.")
    if model.table_temperature is None or model.policy is None:
        return
    if model.policy.sampler not in TABLED:
        click.echo(
            "fastrank build: requests that name no policy do not use the tables: plackett_luce_auto"
            " does",
            err=True,
        )


def _with_features(catalog: Catalog, path: Path, id_columns: Sequence[str]) -> Catalog:
    try:
        return catalog.with_features(features_of(path, id_columns, catalog))
    except ValueError as error:
        raise ValueError(f"--features: {error}") from None


def _with_score(
    catalog: Catalog, score: str, params: Mapping[str, float | bool | str] | None
) -> Catalog:
    try:
        return catalog.with_score(score, params)
    except ValueError as error:
        option, _, text = str(error).partition(": ")
        name = "--param" if option.startswith("params") else "--score"
        raise ValueError(f"{name}: {text}") from None


def _try_score(model: Model) -> None:
    """Score once: a score that is not finite would make the server refuse requests one by one."""
    try:
        if len(model.user_ids):
            model.catalog.scores(model.user_vectors[0])
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def _with_seen(
    model: Model, path: Path, columns: tuple[str, str], notes: list[str], bar: Progress
) -> Model:
    """A model with the known pairs; `notes` receives what the model does not know."""
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    read = unknown_users = unknown_items = 0
    advance = _rows(bar, f"reading {path.name}")
    for users, items in read_pairs(path, *columns, advance=advance):
        try:
            rows, positions = model._find_pairs(users, items)
        except ValueError as error:
            argument, _, text = str(error).partition(": ")
            column = columns[argument == "item_ids"]
            raise ValueError(f"--seen: {path}: {column}: {text}") from None
        known = (rows >= 0) & (positions >= 0)
        read += len(rows)
        unknown_users += int(np.count_nonzero(rows < 0))
        unknown_items += int(np.count_nonzero((rows >= 0) & (positions < 0)))
        parts.append((rows[known], positions[known]))
    if read and unknown_users + unknown_items == read:
        raise ValueError(
            f"--seen: {path}: none of {read:,} pairs names both a user and an item of the model"
        )
    for count, what in ((unknown_users, "users"), (unknown_items, "items")):
        if count:
            notes.append(f"{count:,} of {read:,} pairs name {what} that the model does not have")
    rows, positions = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    return model._with_pairs((rows, positions))


def _with_index(model: Model, n_lists: int | None, n_probes: int | None, bar: Progress) -> Model:
    task = bar.add_task("making the index", total=None)
    try:
        index = build_ivf(model.catalog, n_lists=n_lists, n_probes=n_probes or 16)
    except ValueError as error:
        name, _, text = str(error).partition(": ")
        option = "--index-lists" if name == "n_lists" else "--index"
        raise ValueError(f"{option}: {text or name}") from None
    finally:
        bar.remove_task(task)
    return model.with_index(index)


def _usual_policy(model: Model, k: int) -> PlackettLuce:
    """Plackett-Luce at the temperature of the tables, or else of the model's policy, or else at one
    that keeps `_OVERLAP` of the ranking of the median of some users."""
    said = None if model.policy is None else model.policy.params.get("temperature")
    said = said if model.table_temperature is None else model.table_temperature
    if said is not None:
        return PlackettLuce(said)
    catalog = model.catalog
    places = max(1, min(k, len(catalog) // 2))
    rows = np.random.default_rng(0).permutation(len(model.user_ids))[:_USERS]
    found = [condense(catalog.scores(model.user_vectors[row]), places) for row in np.sort(rows)]
    values, counts = (np.array(each) for each in zip(*found, strict=True))
    temperature = float(np.median(temperatures_for_overlap(values, places, _OVERLAP, counts)))
    return PlackettLuce(float(f"{temperature:.3g}"))


def _share(ess: float) -> str:
    """A share as text: a hundred rankings have an ESS of at least one, whatever they are worth."""
    return f"{ess:.0%}" if ess >= 0.02 else "< 2%"


def _print_trades(model: Model, temperature: float, k: int, trades: list[Trade]) -> None:
    index = model.catalog.index
    assert index is not None  # it has been measured
    console = standard_output()
    console.print(
        f"Index: {index.index.nlist:,} lists, of which a search reads {index.n_probes}, version"
        f" {index.version[:12]}. At temperature {temperature:g} and {k} places, compared with"
        " Plackett-Luce by a full pass:"
    )
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("m", "found", "factor", "ESS", "least user's", "score lost", "mass found", "time"):
        table.add_column(name, justify="right")
    for each in trades:
        table.add_row(
            f"{each.m:,}",
            f"{each.found:,.0f}",
            f"{each.factor:g}",
            _share(each.ess),
            _share(each.least_ess),
            f"{each.lost:.1%}",
            f"{each.mass:.1%}",
            f"{1e6 * each.seconds:,.0f} us, x {each.of_a_pass:.2g}",
        )
    console.print(table)
    trade, warnings = propose(trades)
    policy = FlatTail(temperature, trade.m, trade.factor)
    params = ",".join(f"{name}={value:g}" for name, value in policy.params.items())
    console.print(f"Proposed: {short_name(policy.inference_type)}:{params}", soft_wrap=True)
    for warning in warnings:
        click.echo(f"fastrank build: index: {warning}", err=True)


def _with_tables(model: Model, stated: Stated | None, most: int, bar: Progress) -> Model:
    try:
        return model.with_tables(
            None if stated is None else stated.completed(model.policy),
            threads=usable_cores(),
            max_bytes=most,
            advance=_rows(bar, "making tables"),
        )
    except ValueError as error:
        option = "--tables-bytes" if str(error).startswith("max_bytes") else "--tables"
        raise ValueError(f"{option}: {str(error).partition(': ')[2]}") from None


def _rows(bar: Progress, description: str) -> Advance:
    """Report progress in rows, once there is any: .npy files are mapped at once."""
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
    """An error that names the file, and the column, that an argument came from."""
    part = arguments.get(str(error).partition(":")[0], "vectors")
    return ValueError(f"{side.places[part]}: {error}")
