"""Ids on the command line: single ids, and filters given as options and files."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypedDict

import click
import numpy.typing as npt

from fastrank.arraytypes import Mask
from fastrank.catalog import Catalog
from fastrank.ids import Ids, as_written, id_from_text, split_ids

__all__ = ["Filters", "filter_options", "filters_of", "id_of", "ids_of_lists"]

_NAMED = 5  # most unknown ids that are named, each cut to at most:
_SHOWN = 60
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Filters(TypedDict):
    """Arguments of ranking calls; None means no filter."""

    exclude: Ids | None
    allow: Ids | None


def filter_options(exclude: str, allow: str) -> Callable[[Any], Any]:
    """Add the four filter options; `exclude` and `allow` are their help texts."""

    def add(command: Any) -> Any:
        for option in reversed(
            [
                click.option("--exclude", multiple=True, metavar="IDS", help=exclude),
                click.option(
                    "--exclude-file", type=_FILE, help="More ids to leave out, one per line."
                ),
                click.option("--allow", multiple=True, metavar="IDS", help=allow),
                click.option("--allow-file", type=_FILE, help="More ids to allow, one per line."),
            ]
        ):
            command = option(command)
        return command

    return add


def filters_of(
    catalog: Catalog,
    exclude: Sequence[str],
    exclude_file: Path | None,
    allow: Sequence[str],
    allow_file: Path | None,
) -> tuple[Filters, Mask]:
    """The filters of the four options, and the eligible rows (n,); the command ends if there are
    none.

    Ids that the catalog does not have are named on stderr and ignored: items come and go, but a
    typing error must not act as a filter.
    """
    notes: list[str] = []
    filters: Filters = {
        "exclude": _filter(catalog, "--exclude", exclude, exclude_file, notes),
        "allow": _filter(catalog, "--allow", allow, allow_file, notes),
    }
    eligible = catalog._left(**filters)
    if not eligible.any():
        why = f" ({'; '.join(notes)})" if notes else ""
        raise click.UsageError(f"--allow, --exclude: no item is eligible{why}")
    command = click.get_current_context().info_name
    for note in notes:
        click.echo(f"fastrank {command}: {note}", err=True)
    return filters, eligible


def id_of(source: str, word: str, like: npt.NDArray[Any]) -> int | str:
    """Parse an id from text, as an id of the same kind as `like`."""
    found = id_from_text(word, like)
    if found is None:
        got = _short(repr(word))
        raise click.UsageError(f"{source}: the ids here are {as_written(like)}; got {got}")
    return found


def ids_of_lists(option: str, lists: Sequence[str], like: npt.NDArray[Any]) -> list[int | str]:
    """The ids of a repeatable option that takes several ids each time, in their order."""
    found: list[int | str] = []
    for text in lists:
        words = split_ids(option, text)
        if like.dtype.kind != "U":  # a space after a comma is never part of an integer
            words = words[:1] + [word.removeprefix(" ") for word in words[1:]]
        found += [id_of(option, word, like) for word in words]
    return found


def _filter(
    catalog: Catalog, option: str, lists: Sequence[str], file: Path | None, notes: list[str]
) -> list[Any] | None:
    """The ids of a filter that the catalog has; None means no filter. `notes` gets warnings."""
    if not lists and file is None:
        return None
    like = catalog.item_ids
    ids: dict[int | str, None] = dict.fromkeys(ids_of_lists(option, lists, like))
    if file is not None:
        option_and_file = f"{option}-file: {file}"
        ids |= dict.fromkeys(
            id_of(f"{option_and_file}: line {number}", line, like)
            for number, line in enumerate(_lines(option_and_file, file), 1)
            if line
        )
    if not ids:
        notes.append(f"{option}: no id is given")
        return []
    given: list[Any] = list(ids)
    known = catalog._rows_of(given) >= 0
    unknown = [one for one, is_known in zip(given, known.tolist(), strict=True) if not is_known]
    if unknown:
        named = ", ".join(_short(repr(one)) for one in unknown[:_NAMED])
        more = f" and {len(unknown) - _NAMED:,} more" if len(unknown) > _NAMED else ""
        what = "id is" if len(unknown) == 1 else "ids are"
        notes.append(f"{option}: {len(unknown):,} {what} not in the catalog: {named}{more}")
        for text in lists if like.dtype.kind == "U" else ():
            if "," in text and catalog._rows_of([text])[0] >= 0:
                quoted = '"' + text.replace('"', '""') + '"'
                for_a_shell = shlex.quote(quoted)
                notes.append(f"{option}: {_short(repr(text))} is one: {option} {for_a_shell}")
    return [one for one, is_known in zip(given, known.tolist(), strict=True) if is_known]


def _lines(source: str, path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{source} is not UTF-8: {error}") from None
    return [line.removesuffix("\r") for line in text.split("\n")]


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
