"""`fastrank rank`: one ranking from a model directory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from fastrank.calibration import temperature_for_overlap
from fastrank.cli.terminal import chance, json_text, percent, shown, standard_output
from fastrank.opening import open_directory
from fastrank.policies import INFERENCE_TYPES, policy
from fastrank.ranking import Ranking
from fastrank.vectorfiles import read_npy

__all__ = ["rank"]

_OVERLAP = 0.7


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--user", help="User id.")
@click.option(
    "--query",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A .npy of one vector, instead of a user.",
)
@click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Places.")
@click.option(
    "--inference-type",
    required=True,
    type=click.Choice(list(INFERENCE_TYPES)),
    metavar="NAME",
    help=f"How to rank: {', '.join(INFERENCE_TYPES)}.",
)
@click.option(
    "--temperature",
    type=float,
    help="For Plackett-Luce, in the unit of the scores. Without it, one is chosen for this user"
    f" that keeps about {_OVERLAP:.0%} of the deterministic ranking. Where users have temperatures"
    " of their own (fastrank plan --apply), it is a multiple of them, and 1 by default.",
)
@click.option("--epsilon", type=float, help="For epsilon-greedy.  [default: 0.1]")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Repeats a ranking.")
@click.option("--exclude", multiple=True, metavar="IDS", help="Items to leave out, by comma.")
@click.option("--allow", multiple=True, metavar="IDS", help="Rank only these items, by comma.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rank(
    model: Path,
    user: str | None,
    query: Path | None,
    k: int,
    inference_type: str,
    temperature: float | None,
    epsilon: float | None,
    seed: int | None,
    exclude: tuple[str, ...],
    allow: tuple[str, ...],
    as_json: bool,
) -> None:
    """Rank a model's items for one user, and say how probable the ranking was.

    \b
    Examples:
      fastrank rank model/ --user 42 --inference-type deterministic
      fastrank rank model/ --user 42 --inference-type stochastic_gumbel_softmax_trick \\
          --temperature 0.1 --exclude 17,23 --seed 1
    """
    if (user is None) == (query is None):
        raise click.UsageError("give either --user or --query")
    catalog, opened = open_directory(model)
    if user is not None:
        if opened is None:
            raise click.UsageError(f"{model} has no users; give --query")
        user_id = _as_ids([user], opened.user_ids, "--user")[0].item()
        vector = opened.user_vector(user_id)
    elif query is not None:
        user_id = None
        vector = _query_vector(query)
    filters = {
        name: _as_ids(_by_comma(values), catalog.item_ids, f"--{name}") if values else None
        for name, values in (("exclude", exclude), ("allow", allow))
    }
    eligible = _eligible(catalog.item_ids, **filters)
    if not eligible.any():
        raise click.UsageError("--allow, --exclude: no item is eligible")
    own = None
    takes_temperature = "temperature" in INFERENCE_TYPES[inference_type][2]
    if user is not None and takes_temperature and opened and opened.has_user_temperatures:
        own = opened.user_temperature(user_id)
        note = (
            f" ({1.0 if temperature is None else temperature:.6g} times the user's own {own:.6g})"
        )
    elif temperature is None and takes_temperature:
        scores = catalog.scores(vector)[eligible]
        places = max(1, min(k, len(scores) // 2))
        temperature = temperature_for_overlap(scores, places, _OVERLAP)
        note = f" (chosen: keeps about {_OVERLAP:.0%} of the deterministic ranking)"
    else:
        note = ""
    given = {"temperature": temperature, "epsilon": epsilon}
    chosen = policy(inference_type, **{p: v for p, v in given.items() if v is not None})
    if own is not None and opened is not None:
        chosen = opened.user_policy(user_id, chosen)
    # Twice: the first call also reads the model from disk, and is not what a service sees.
    seed = catalog.rank(vector, k=k, policy=chosen, seed=seed, **filters, threads=1).seed
    start = time.perf_counter()
    ranking = catalog.rank(vector, k=k, policy=chosen, seed=seed, **filters, threads=1)
    latency_us = 1e6 * (time.perf_counter() - start)
    titles = opened.titles(ranking.item_ids) if opened and opened.has_titles else None
    if as_json:
        facts = {"user": user_id, "user_temperature": own, "k": k}
        record = {**facts, **_record(ranking, titles), "latency_us": latency_us}
        click.echo(json_text(record))
    else:
        _print(ranking, titles, note, latency_us)


def _by_comma(values: Sequence[str]) -> list[str]:
    words = [word.strip() for word in ",".join(values).split(",")]
    return [word for word in words if word]


def _as_ids(words: Sequence[str], like: npt.NDArray[Any], option: str) -> npt.NDArray[Any]:
    """Ids from the command line, in the type of the model's."""
    if like.dtype.kind == "U":
        return np.array(words, np.str_)
    ids = []
    for word in words:
        try:
            ids.append(np.int64(int(word)))
        except (ValueError, OverflowError):
            raise click.UsageError(f"{option}: ids here are integers, got {word!r}") from None
    return np.array(ids, np.int64)


def _eligible(
    item_ids: npt.NDArray[Any], exclude: npt.NDArray[Any] | None, allow: npt.NDArray[Any] | None
) -> npt.NDArray[np.bool_]:
    eligible = np.ones(len(item_ids), np.bool_)
    if allow is not None:
        eligible &= np.isin(item_ids, allow)
    if exclude is not None:
        eligible &= ~np.isin(item_ids, exclude)
    return eligible


def _query_vector(path: Path) -> npt.NDArray[Any]:
    try:
        return read_npy(path)
    except ValueError as error:
        raise click.UsageError(f"--query: {error}") from None


def _record(ranking: Ranking, titles: list[str] | None) -> dict[str, Any]:
    """All fields of a ranking in JSON's types."""
    return {
        "item_ids": ranking.item_ids.tolist(),
        "titles": titles,
        "scores": ranking.scores.tolist(),
        "log_propensities": ranking.log_propensities.tolist(),
        "propensities": np.exp(ranking.log_propensities).tolist(),
        "log_propensity": ranking.log_propensity,
        "seed": ranking.seed,
        "policy": {
            "inference_type": ranking.policy.inference_type,
            "params": ranking.policy.params,
        },
        "log_norm": ranking.log_norm,
        "n_eligible": ranking.n_eligible,
        "catalog_version": ranking.catalog_version,
        "propensity_kind": ranking.propensity_kind,
        "log_norm_error": ranking.log_norm_error,
    }


def _print(ranking: Ranking, titles: list[str] | None, note: str, latency_us: float) -> None:
    console = standard_output()
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("place", justify="right")
    table.add_column("item", justify="right")
    if titles is not None:
        table.add_column("title")
    table.add_column("score", justify="right")
    table.add_column("propensity", justify="right")
    for j, item in enumerate(ranking.item_ids.tolist()):
        title = [shown(titles[j])] if titles is not None else []
        score = f"{ranking.scores[j]:.6g}"
        propensity = percent(ranking.log_propensities[j])
        table.add_row(str(j + 1), shown(item), *title, score, propensity)
    whole = f"{ranking.log_propensity:.9g} for the whole ranking: {chance(ranking.log_propensity)}"
    params = ", ".join(f"{name} {value:.6g}" for name, value in ranking.policy.params.items())
    console.print(table)
    footer = {
        "policy": ranking.policy.inference_type + (f", {params}{note}" if params else ""),
        "log-propensity": whole,
        "seed": str(ranking.seed),
        "eligible items": f"{ranking.n_eligible:,}",
        "catalog version": ranking.catalog_version,
        "latency": f"{latency_us:,.0f} us",
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in footer.items():
        grid.add_row(name, shown(value))
    console.print(grid)
