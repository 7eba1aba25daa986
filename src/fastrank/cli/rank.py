"""`fastrank rank`: one ranking from a model directory."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from rich import box
from rich.table import Table

from fastrank.calibration import drawn_overlap, temperature_for_overlap
from fastrank.catalog import Catalog
from fastrank.cli.filters import filter_options, filters_of, id_of, ids_of_lists
from fastrank.cli.scores import (
    functions_of,
    param_option,
    params_of,
    rules_of,
    said_of,
    score_function_option,
)
from fastrank.cli.terminal import chance, for_terminal, json_text, percent, standard_output
from fastrank.opening import open_directory
from fastrank.policies import (
    INFERENCE_TYPES,
    TABLED,
    FlatTail,
    Policy,
    completed,
    sampler_name,
    short_name,
    words_of_names,
)
from fastrank.policies.spec import Stated, parse_stated
from fastrank.ranking import Ranking, relabelled
from fastrank.rules import Rules
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
    "--policy",
    "--inference-type",
    "policy_text",
    metavar="POLICY[:PARAM=VALUE,...]",
    help=f"How to rank: {words_of_names()}. Give parameters here or in their own options."
    "  [default: the model's own policy]",
)
@click.option(
    "--temperature",
    type=float,
    help="For Plackett-Luce, in the unit of the scores; multiplied by the user's own factor if the"
    " model has factors.  [default: that of the model's own policy, or of its tables; 1 if users"
    " have factors and the model has no policy; otherwise one is chosen for this user, to keep"
    f" {_OVERLAP:.0%} of the deterministic ranking, and the share kept is measured and printed]",
)
@click.option("--epsilon", type=float, help="For epsilon-greedy.  [default: the model's, or 0.1]")
@click.option(
    "--head", type=int, help="How many first places show the best items; the rest is drawn."
)
@click.option("--m", type=int, help="For flat_tail: candidates.  [default: the model's, or 1000]")
@click.option(
    "--factor",
    type=float,
    help="For flat_tail: the weight of every other item, in units of the last candidate's weight."
    "  [default: the model's, or 0.1]",
)
@click.option(
    "--score",
    help="How to score items: an expression, or the name of a --score-function.  [default: the"
    " model's own score]",
)
@param_option
@score_function_option
@click.option(
    "--rules",
    "rules_text",
    metavar="FILE|JSON",
    help="Which items may stand where: a JSON file, or JSON itself, with the keys of"
    " fastrank.Rules.",
)
@click.option(
    "--after",
    multiple=True,
    metavar="IDS",
    help="Items of earlier pages, first place first. They are not shown again, and the rules count"
    " them. Repeatable.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    help="Seed of the ranking: the same seed draws the same ranking.",
)
@filter_options("Items to leave out. Repeatable.", "Rank only these items. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def rank(
    model: Path,
    user: str | None,
    query: Path | None,
    k: int,
    policy_text: str | None,
    temperature: float | None,
    epsilon: float | None,
    head: int | None,
    m: int | None,
    factor: float | None,
    score: str | None,
    params: tuple[str, ...],
    score_functions: tuple[str, ...],
    rules_text: str | None,
    after: tuple[str, ...],
    seed: int | None,
    exclude: tuple[str, ...],
    exclude_file: Path | None,
    allow: tuple[str, ...],
    allow_file: Path | None,
    as_json: bool,
) -> None:
    """Rank a model's items for one user, and print how probable the ranking was.

    IDS are separated by commas, as in a line of CSV: put an id that contains a comma in double
    quotes ('"Tom, Dick"'); text ids are not stripped. A file of ids is UTF-8 with one id per line:
    commas, spaces and quotes are part of the id; lines may end in CRLF, and empty lines are
    skipped. Write integer ids as 0, 42 or -7, and in no other way. Ids that the catalog does not
    have are named on stderr and ignored, with exit code 0: items come and go.

    \b
    Examples:
      fastrank rank model/ --user 42
      fastrank rank model/ --user 42 --policy deterministic
      fastrank rank model/ --user 42 --policy plackett_luce:temperature=0.1 \\
          --exclude 17,23 --seed 1
      fastrank rank model/ --user ann --policy uniform --exclude-file seen.txt
      fastrank rank model/ --user ann --rules '{"cap": {"seller": 2}, "pin": {"3": "sku-9"}}'
    """
    if (user is None) == (query is None):
        raise click.UsageError("give either --user or --query")
    catalog, opened = open_directory(model, functions=functions_of(score_functions))
    usual = None if opened is None else opened.policy
    if policy_text is None:
        if usual is None:
            raise click.UsageError(
                f"give --policy, such as plackett_luce: {model} has no policy of its own (fastrank"
                " plan --apply chooses one)"
            )
        named = Stated(usual.inference_type, {})
    else:
        named = parse_stated(policy_text)
    inference_type = named.inference_type
    given = {"temperature": temperature, "epsilon": epsilon, "head": head, "m": m}
    given["factor"] = factor
    stated = {name: value for name, value in given.items() if value is not None}
    if both := sorted(stated.keys() & named.params.keys()):
        raise click.UsageError(f"--{both[0]}: --policy gives it already: give it only once")
    stated |= named.params
    temperature = stated.get("temperature")
    rules = None if rules_text is None else rules_of(rules_text)
    scored: dict[str, Any] = {"score": score, "params": params_of(params)}
    if user is not None:
        if opened is None:
            raise click.UsageError(f"{model} has no users; give --query")
        user_id = id_of("--user", user, opened.user_ids)
        vector = opened.user_vector(user_id)
    elif query is not None:
        user_id = None
        vector = _query_vector(query)
    filters, eligible = filters_of(catalog, exclude, exclude_file, allow, allow_file)
    seen = None if user is None or opened is None else opened.seen(user_id)
    if seen is not None and opened is not None:
        eligible = eligible & catalog._left(opened.seen_item_ids(user_id), None)
        if not eligible.any():
            raise click.UsageError(f"--user: {user} has seen every item that could be ranked")
    own = chosen_for = None
    takes_temperature = "temperature" in INFERENCE_TYPES[inference_type][2]
    note = ""
    if temperature is None and takes_temperature and usual is not None:
        temperature = usual.params.get("temperature")
        note = "" if temperature is None else " (the model's own)"
    if user is not None and opened and sampler_name(inference_type) in TABLED:
        of_tables = opened.table_temperature
        if temperature is None and of_tables is not None:
            temperature, note = of_tables, " (that of the model's tables)"
    if user is not None and takes_temperature and opened and opened.has_user_temperatures:
        own = opened.user_temperature(user_id)
        temperature = 1.0 if temperature is None else temperature
        note = f" ({temperature:.6g} times the user's own {own:.6g})"
    elif temperature is None and takes_temperature:
        own_params = _params_of_score(catalog, scored, rules)
        scores = catalog.scores(vector, score=score, params=own_params)[eligible]
        places = max(1, min(k, len(scores) // 2))
        temperature = temperature_for_overlap(scores, places, _OVERLAP)
        chosen_for = scores
    if temperature is not None:
        stated["temperature"] = temperature
    chosen = completed(inference_type, stated, usual)
    if chosen_for is not None and not as_json:
        note = _what_is_kept(chosen_for, chosen, k, "" if rules is None else ", without the rules")
    drawn_by = chosen
    if user is not None and opened is not None:
        has_table = scored == {"score": None, "params": None} and opened.keep_table(user_id, chosen)
        chosen = opened.user_policy(user_id, chosen)
        drawn_by = chosen.with_sampler("cached") if has_table else chosen
    # Rank twice: the first call also reads the model from disk, which a running service does not.
    scored |= filters
    if seen is not None:
        scored["seen"] = seen
    if rules is not None or after:
        shown = ids_of_lists("--after", after, catalog.item_ids) if after else None
        scored |= {"rules": rules, "after": shown}
    seed = catalog.rank(vector, k=k, policy=drawn_by, seed=seed, **scored, threads=1).seed
    start = time.perf_counter()
    ranking = catalog.rank(vector, k=k, policy=drawn_by, seed=seed, **scored, threads=1)
    latency_us = 1e6 * (time.perf_counter() - start)
    relabelled(ranking, chosen)
    titles = opened.titles(ranking.item_ids) if opened and opened.has_titles else None
    if as_json:
        facts = {"user": user_id, "user_temperature": own, "k": k}
        record = {**facts, **_record(ranking, titles), "latency_us": latency_us}
        click.echo(json_text(record))
    else:
        _print(ranking, titles, note, latency_us)


def _params_of_score(
    catalog: Catalog, scored: dict[str, Any], rules: Rules | None
) -> dict[str, Any] | None:
    """The parameters of --param that the score uses."""
    if rules is None or scored["params"] is None:
        params: dict[str, Any] | None = scored["params"]
        return params
    bound, _ = catalog._bind_call(scored["score"], scored["params"], rules, None)
    return None if bound is None else dict(bound.score.params)


def _what_is_kept(scores: npt.NDArray[Any], chosen: Policy, k: int, of_what: str = "") -> str:
    """Measure what a chosen temperature keeps for these scores."""
    temperature = chosen.params["temperature"]
    if isinstance(chosen, FlatTail) and chosen.m < len(scores):  # as the softmax of other scores
        best = np.argsort(-scores, kind="stable")[: chosen.m]
        others = np.full(len(scores), scores[best[-1]] + temperature * math.log(chosen.factor))
        others[best] = scores[best]
        scores = others
    overlap = drawn_overlap(scores, temperature, k)
    kept = f"keeps {overlap:.0%} of the deterministic ranking{of_what}"
    if len(scores) > 1 and scores.min() == scores.max():
        return f" (all scores are equal; {kept}, as at any temperature)"
    return f" (chosen: {kept})"


def _query_vector(path: Path) -> npt.NDArray[Any]:
    try:
        return read_npy(path)
    except ValueError as error:
        raise click.UsageError(f"--query: {error}") from None


def _record(ranking: Ranking, titles: list[str] | None) -> dict[str, Any]:
    """All fields of a ranking, in JSON's types."""
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
        "made_by": ranking.made_by,
        "n_scored": ranking.n_scored,
        "candidates": _candidates(ranking),
        "catalog_version": ranking.catalog_version,
        "score": None if ranking.score is None else ranking.score._asdict(),
        "features_version": ranking.features_version,
        "rules": _rules_record(ranking),
        "seen_id": ranking.seen_id,
        "after": ranking.after.tolist() if isinstance(ranking.after, np.ndarray) else ranking.after,
        "propensity_kind": ranking.propensity_kind,
        "log_norm_error": ranking.log_norm_error,
    }


def _rules_record(ranking: Ranking) -> dict[str, Any] | None:
    if ranking.rules is None:
        return None
    rules, params = ranking.rules
    return {"id": rules.id, "params": params, "content": rules.to_dict()}


def _candidates(ranking: Ranking) -> dict[str, Any] | None:
    found = ranking.candidates
    if found is None:
        return None
    return {**found._asdict(), "is_candidate": found.is_candidate.tolist()}


def _found(ranking: Ranking) -> dict[str, str]:
    """A line about the candidates of a flat tail."""
    found = ranking.candidates
    if found is None:
        return {}
    by = "a pass" if found.index_version is None else f"index {found.index_version[:12]}"
    shown = f"{found.is_candidate.sum()} of {len(ranking)} places show one"
    m = int(ranking.policy.params["m"])
    return {"candidates": f"{found.n_found:,} of {m:,}, found by {by}; {shown}"}


def _ruled(ranking: Ranking) -> dict[str, str]:
    """Lines about rules and earlier pages."""
    found = {}
    if ranking.rules is not None and (content := ranking.rules.rules.to_dict()):
        found["rules"] = said_of({"name": json_text(content), "params": ranking.rules.params})
    if ranking.after is not None:
        found["after"] = f"{len(ranking.after):,} items"
    return found


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
        title = [for_terminal(titles[j])] if titles is not None else []
        score = f"{ranking.scores[j]:.6g}"
        propensity = percent(ranking.log_propensities[j])
        table.add_row(str(j + 1), for_terminal(item), *title, score, propensity)
    whole = f"{ranking.log_propensity:.9g} for the whole ranking: {chance(ranking.log_propensity)}"
    params = ", ".join(f"{name} {value:.6g}" for name, value in ranking.policy.params.items())
    console.print(table)
    footer = {
        "policy": short_name(ranking.policy.inference_type)
        + (f", {params}{note}" if params else ""),
        "log-propensity": whole,
        "seed": str(ranking.seed),
        "eligible items": f"{ranking.n_eligible:,}"
        + ("" if ranking.seen_id is None else ", without what the user has seen"),
        "made by": f"{ranking.made_by}, {ranking.n_scored:,} items scored",
        **_found(ranking),
        **({} if ranking.score is None else {"score": said_of(ranking.score._asdict())}),
        **_ruled(ranking),
        "catalog version": ranking.catalog_version,
        "latency": f"{latency_us:,.0f} us",
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in footer.items():
        grid.add_row(name, for_terminal(value))
    console.print(grid)
