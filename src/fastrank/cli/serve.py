"""`fastrank serve`: a model behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fastrank.cli.scores import functions_of, score_function_option
from fastrank.policies.spec import SYNTAX
from fastrank.rulesfile import named_rules

__all__ = ["serve"]


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65_535))
@click.option(
    "--policy",
    metavar=SYNTAX,
    help="For requests that name none. What it leaves out, the temperature say, is the model's."
    "  [default: the model's own policy]",
)
@click.option(
    "--fallback",
    metavar=SYNTAX,
    help="Ranks users that the model does not know by the catalog's bias alone, or by what its"
    " score makes of a dot product of 0.  [default: 404]",
)
@score_function_option
@click.option(
    "--rules",
    multiple=True,
    metavar="NAME=FILE",
    help="Rules that requests may name, from a JSON file: the keys of fastrank.Rules; or FILE, an"
    " object that has several by their names. Read again at each reload. Repeatable.",
)
@click.option("--only-named-rules", is_flag=True, help="Requests may say no rules of their own.")
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 1024), help="Processes."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="That rank, in each.  [default: the cores]"
)
@click.option(
    "--queue",
    default=256,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="So many requests are served or wait; the next one gets a 429.",
)
@click.option(
    "--share",
    default=64,
    show_default=True,
    type=click.IntRange(1, 1024),
    help="So many waiting requests are ranked in one pass; 1: each by itself.",
)
@click.option("--max-k", default=1000, show_default=True, type=click.IntRange(1, 1_000_000))
@click.option(
    "--max-ids",
    default=100_000,
    show_default=True,
    type=click.IntRange(0, 100_000_000),
    help="Ids of an exclude, allow or after list.",
)
@click.option(
    "--max-body",
    default=6_291_456,
    show_default=True,
    type=click.IntRange(1, 1 << 30),
    help="Bytes of a body.",
)
@click.option(
    "--max-held",
    default=67_108_864,
    show_default=True,
    type=click.IntRange(1, 1 << 40),
    help="Bytes that requests hold together, in each worker: bodies, and ids read from them. What"
    " goes beyond gets a 503.",
)
@click.option(
    "--deadline",
    default=20.0,
    show_default=True,
    type=click.FloatRange(min=0.001),
    help="Seconds for a request.",
)
@click.option(
    "--receive-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0.001),
    help="Seconds for a client to send a request's head, and again its body.",
)
@click.option(
    "--drain-delay",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds of accepting after SIGTERM.",
)
@click.option(
    "--drain-timeout",
    default=20.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Seconds after that for what is in flight.",
)
@click.option(
    "--log",
    "log_directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the propensity log.",
)
@click.option("--admin", is_flag=True, help="POST /-/reload, from this host.")
@click.option("--no-explorer", is_flag=True, help="No page at /.")
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
)
def serve(
    policy: str | None,
    fallback: str | None,
    score_functions: tuple[str, ...],
    rules: tuple[str, ...],
    threads: int | None,
    no_explorer: bool,
    **options: Any,
) -> int:
    """Serve MODEL over HTTP, as a SageMaker container would.

    SIGTERM ends it once what is in flight is answered; SIGHUP loads the model anew.

    \b
    Example:
      fastrank serve model/ --log log/ &
      curl "localhost:8080/1/recommended-items/ann?k=5&inference_type=deterministic"
    """
    from fastrank_serving.server import run
    from fastrank_serving.settings import Settings, policy_named

    functions_of(score_functions)  # each worker does it again
    named_rules(rules)
    if threads is not None:
        options["threads"] = threads
    return run(
        Settings(
            policy=None if policy is None else policy_named(policy, "--policy"),
            fallback=None if fallback is None else policy_named(fallback, "--fallback"),
            score_functions=score_functions,
            rules=rules,
            explorer=not no_explorer,
            **options,
        )
    )
