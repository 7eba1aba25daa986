"""Starts a server on a model made for it, loads it, stops it, and says whether it met its gates.

    python loadtest/run.py [--quick] [--experiments article,direct,known,shop,ramp,open,soak]
        [--seconds 10] [--model DIR | --url URL] [--output build/loadtest] [--write]

- article: one user, all inference types in turns, through the local API Gateway.
- direct: the same without it, and /ping beside them as what HTTP costs by itself.
- known: users whose tables the model has, of a million items (`--known-items`), of either storage,
  beside a pass over int8 and /ping.
- shop: one user of a model with features, tables and an index: rules of the request's own and by
  name, flat tails, and arms, beside Plackett-Luce without.
- ramp: 1, 8, 32 and 128 users who wait for their answers; the most answers a second are what the
  open loop goes by.
- open: a tenth, a fifth and two fifths of that, sent at a constant rate. More would ask the client
  for cores that the server has.
- soak: 8 users for `--soak-seconds`, told apart by time.

The exit code is 0 if all gates were passed, 1 if not, and 2 if nothing could be measured. Client
and server share the machine's cores. --write adds what was measured to docs/loadtest.json, the
record of this commit, and writes docs/loadtest.md and its picture anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import history
import numpy as np
from gates import pooled
from loadreport import Run, markdown, page, text
from targets import Ask

import fastrank as fr
from fastrank.cores import usable_cores

ROOT = Path(__file__).resolve().parents[1]
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
EXPERIMENTS = ("article", "direct", "known", "shop", "ramp", "open", "soak")
USUAL = EXPERIMENTS[:-1]
GUMBEL, AUTO = "stochastic_gumbel_softmax_trick", "stochastic_plackett_luce_auto"
TEXTBOOK = "stochastic_plackett_luce"  # k passes a request: alone with others it is all one sees
TEMPERATURE = 0.25  # for scores of standard deviation 1
SETTLED = 60.0  # seconds for a server to be ready


class LoadTestError(Exception):
    """Nothing could be measured."""


# ---- The model ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """A model of normal vectors.

    Attributes
    ----------
    n_items, dim, n_users, storage
    tables : bool
        It has its users' tables.
    shop : bool
        It has features for rules, and an index.
    """

    n_items: int
    dim: int
    n_users: int
    storage: str = "float32"
    tables: bool = False
    shop: bool = False

    def made(self, folder: Path) -> Path:
        """Its directory, in which it is made once."""
        kind = self.storage + "-tables" * self.tables + "-shop" * self.shop
        directory = folder / f"model-{self.n_items}x{self.dim}x{self.n_users}-{kind}"
        if not (directory / "manifest.json").exists():
            self._model().save(directory)
        return directory

    def _model(self) -> fr.Model:
        rng = np.random.default_rng(5)
        vectors = rng.standard_normal((self.n_items, self.dim), dtype=np.float32)
        users = rng.standard_normal((self.n_users, self.dim), dtype=np.float32)
        users /= np.float32(np.sqrt(self.dim))
        catalog = fr.Catalog(
            np.arange(self.n_items),
            vectors,
            storage=self.storage,
            features=_features(self.n_items) if self.shop else None,
        )
        policy = fr.PlackettLuce(TEMPERATURE)
        model = fr.Model(catalog, np.arange(self.n_users), users, policy=policy)
        if self.tables:
            auto = fr.PlackettLuce(TEMPERATURE, sampler="auto")
            model = model.with_tables(auto, threads=usable_cores())
        if self.shop:
            from fastrank.retrieval import build_ivf

            model = model.with_index(build_ivf(catalog))
        return model


# Rules that a page of a shop has, by name; and what they speak of.
HOME = {
    "where": "price < 150",
    "cap": {"seller": 2},
    "window": {"brand": [1, 5]},
    "at_least": {"new": 2},
}


def _features(n: int) -> dict[str, list[str] | np.ndarray]:
    rng = np.random.default_rng(6)
    return {
        "seller": [f"s{j}" for j in rng.integers(0, max(2, n // 50), n)],
        "brand": [f"b{j}" for j in rng.integers(0, 256, n)],
        "new": rng.random(n) < 0.05,
        "price": rng.exponential(50.0, n),
    }


def users_of(directory: Path, most: int = 1000) -> list[str]:
    """Ids of the first users of a model."""
    return [str(each) for each in fr.Model.open(directory).user_ids[:most].tolist()]


# ---- The server -----------------------------------------------------------------------------


@dataclass
class Server:
    """What is asked; `pid` is None where it is not ours."""

    url: str
    pid: int | None = None

    def cpu_seconds(self) -> float | None:
        """That it has taken so far; None where that cannot be seen."""
        return None if self.pid is None else _cpu_of(self.pid)


_living: set[int] = set()  # processes of ours


def _cpu_of(pid: int) -> float | None:
    try:
        line = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    words = line.rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Clocks:
    """Seconds so far: of this machine's cores together, in use by anybody, and by us."""

    wall: float
    used: float
    ours: float

    @classmethod
    def now(cls) -> Clocks | None:
        """None where it cannot be seen."""
        try:
            first = Path("/proc/stat").read_text().split("\n", 1)[0]
        except OSError:
            return None
        user, nice, system, _idle, _waits, irq, soft, steal = map(int, first.split()[1:9])
        used = (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")
        ours = sum(os.times()[:4]) + sum(_cpu_of(pid) or 0.0 for pid in _living)
        return cls(time.monotonic(), used, ours)

    def others_since(self, before: Clocks) -> float:
        """Share of the cores' time that others had, the machine's host among them."""
        wall = (self.wall - before.wall) * (os.cpu_count() or 1)
        return max(0.0, ((self.used - before.used) - (self.ours - before.ours)) / wall)


@contextlib.contextmanager
def serving(model: Path, log: Path, extra: list[str]) -> Iterator[Server]:
    """`fastrank serve` on a free port, ready; it has to end well too."""
    command = ["fastrank", "serve", str(model), "--port", "0", *extra]
    with _running(command, log, r"listening on (http://\S+)", answers) as server:
        yield server


@contextlib.contextmanager
def gateway(server: Server, log: Path) -> Iterator[Server]:
    """The local API Gateway in front of a server."""
    command = ["fastrank_serving.gateway", "--target", server.url, "--port", "0"]
    with _running(command, log, r"^(http://\S+) -> ", lambda _: True) as front:
        yield Server(front.url, server.pid)


@contextlib.contextmanager
def _running(
    command: list[str], log: Path, says: str, ready: Callable[[str], bool]
) -> Iterator[Server]:
    """A Python module that says where it listens, and that ends well."""
    with log.open("wb") as stream:
        process = subprocess.Popen([sys.executable, "-m", *command], stderr=stream, stdout=stream)
    _living.add(process.pid)
    try:
        yield Server(_address(process, log, says, ready), process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(30.0)
        except subprocess.TimeoutExpired:
            raise LoadTestError(f"the server did not stop; its log: {log}") from None
        if code != 0:
            raise LoadTestError(f"the server ended with {code}; its log: {log}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        _living.discard(process.pid)


def _address(
    process: subprocess.Popen[bytes], log: Path, says: str, ready: Callable[[str], bool]
) -> str:
    """Where it says that it listens, once it is ready."""
    end = time.monotonic() + SETTLED
    while time.monotonic() < end:
        said = log.read_text(errors="replace")
        if process.poll() is not None:
            raise LoadTestError(f"the server ended with {process.returncode}:\n{said[-2000:]}")
        found = re.search(says, said, re.MULTILINE)
        if found and ready(found[1]):
            return found[1]
        time.sleep(0.05)
    raise LoadTestError(f"the server was not ready within {SETTLED:g} s; its log: {log}")


def answers(url: str) -> bool:
    """Whether /ping says 200."""
    try:
        with urllib.request.urlopen(f"{url}/ping", timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


# ---- Experiments ----------------------------------------------------------------------------


def locust(
    servers: list[Server], name: str, options: list[str], output: Path, seconds: float
) -> Run:
    """One run, by default of the first server; locust's own words go to a file."""
    results, log = output / f"{name}.json", output / f"{name}.log"
    results.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"),
        *("--host", servers[0].url, "--results", str(results)),
        *("--html", str(output / f"{name}-locust.html"), *options),
    ]
    before, began = _cpu_seconds(servers), Clocks.now()
    with log.open("wb") as stream:
        try:
            # gevent must be there before anything else imports ssl: a process of its own.
            code = subprocess.run(
                command, stdout=stream, stderr=stream, timeout=seconds + 120.0, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise LoadTestError(f"{name}: locust did not end; its log: {log}") from None
    if not results.exists():
        said = log.read_text(errors="replace")[-2000:]
        raise LoadTestError(f"{name}: locust ended with {code}:\n{said}")
    run = Run.from_dict(json.loads(results.read_text(encoding="utf-8")))
    if (code == 0) != run.passed:
        raise LoadTestError(f"{name}: locust ended with {code}; its log: {log}")
    after, ended = _cpu_seconds(servers), Clocks.now()
    if before is not None and after is not None and run.sent:
        run.server_cpu_us = round(1e6 * (after - before) / run.sent, 1)
    if began is not None and ended is not None:
        run.others = round(ended.others_since(began), 4)
    return run


def _cpu_seconds(servers: list[Server]) -> float | None:
    taken = [server.cpu_seconds() for server in servers]
    return None if None in taken else sum(each for each in taken if each is not None)


def experiments(
    arguments: argparse.Namespace, server: Server, front: Server | None, asked: list[str]
) -> dict[str, Run]:
    """Those that were chosen, printed as they end; `front` is the gateway before the server."""
    output, seconds = arguments.output, arguments.seconds
    warm_up = min(1.0, seconds / 5.0)
    common = [*asked, "--warm-up", f"{warm_up:g}"]
    stages = f"{seconds:g}"
    limit = ["--gate-p99-ms", f"{arguments.p99_ms:g}"]
    without_textbook = ["--exclude-tags", TEXTBOOK]
    runs: dict[str, Run] = {}

    def take(name: str, options: list[str], lasts: float, *servers: Server) -> Run:
        through = servers == (front,)
        options = [*common, "--target", "gateway" if through else arguments.target, *options]
        runs[name] = locust([*servers] or [server], name, options, output, lasts)
        sys.stdout.write(text(runs[name].figures()) + "\n\n")
        sys.stdout.flush()
        return runs[name]

    lasts = math.ceil(2.0 * seconds)  # locust counts in whole seconds
    one = ["-u", "1", "-t", f"{lasts}s", "--gate-p99-ms", f"{arguments.article_p99_ms:g}"]
    if "article" in arguments.experiments and front is not None:
        title = "One user, all inference types, through the local API Gateway"
        take("article", ["--title", title, *one], lasts, front)
    if "direct" in arguments.experiments:
        options = ["--title", "One user, all inference types", *one]
        options += [] if arguments.target == "gateway" else ["--floor"]
        for each in arguments.ratio:
            options += ["--gate-ratio", each]
        take("direct", options, lasts)
    if "known" in arguments.experiments:
        with known(arguments) as (asks, servers):
            title = f"Known users, {arguments.known_items:,} items"
            options = ["--title", title, "--base", "gumbel, int8", "--floor"]
            options += _asks(output, "known", asks)
            for each in arguments.known_ratio:
                options += ["--gate-ratio", each]
            take("known", [*options, *one], lasts, *servers)
    if "shop" in arguments.experiments:
        with shop(arguments) as (asks, servers):
            options = ["--title", "What a shop asks", "--base", "gumbel"]
            take("shop", [*options, *_asks(output, "shop", asks), *one], lasts, *servers)
    best = arguments.rate
    users = "1,8" if arguments.quick else "1,8,32,128"
    shape = ["--shape", "ramp", "--stage-seconds", stages, *without_textbook, *limit]
    if "ramp" in arguments.experiments:
        run = take(
            "ramp",
            ["--title", "More and more users", "--stages", users, *shape],
            seconds * len(users.split(",")),
        )
        best = best or max(
            pooled(stage).latency.count / max(stage.seconds, 1e-9) for stage in run.stages.values()
        )
    if "open" in arguments.experiments:
        if not best:
            raise LoadTestError("open: --rate, or the ramp before it, has to say how much")
        rate = ["--loop", "open", "--rate", f"{max(best / 10.0, 1.0):.0f}", "--stages", "1,2,4"]
        rate += ["--gate-late-ms", f"{arguments.late_ms:g}"]
        take("open", ["--title", "At a constant rate", *rate, *shape], 3.0 * seconds)
    if "soak" in arguments.experiments:
        lasts = arguments.soak_seconds
        part = max(lasts / 6.0, 1.0)
        soak = ["--shape", "soak", "-u", "8", "-t", f"{math.ceil(lasts + part)}s"]
        soak += ["--stage-seconds", f"{part:g}", "--gate-drift", f"{arguments.drift:g}"]
        soak += [*without_textbook, *limit]
        take("soak", ["--title", "For a long time", *soak], lasts + part)
    return runs


Asked = tuple[dict[str, Ask], list[Server]]


def _asks(output: Path, name: str, asks: dict[str, Ask]) -> list[str]:
    """The options by which locust asks these."""
    path = output / f"{name}-asks.json"
    path.write_text(json.dumps({key: ask.to_dict() for key, ask in asks.items()}), encoding="utf-8")
    return ["--asks", str(path), "--target", "container"]


@contextlib.contextmanager
def known(arguments: argparse.Namespace) -> Iterator[Asked]:
    """A server of either storage, with tables for all users."""
    asks: dict[str, Ask] = {}
    with contextlib.ExitStack() as opened:
        servers = []
        for storage in ("int8", "float32"):
            wanted = Wanted(
                arguments.known_items, arguments.dim, arguments.users, storage, tables=True
            )
            log = arguments.output / f"known-{storage}.log"
            servers.append(opened.enter_context(serving(wanted.made(arguments.output), log, [])))
            asks[f"table, {storage}"] = Ask(
                {"k": arguments.k, "inference_type": AUTO},
                (f'"{AUTO}"', '"made_by":"table"'),
                servers[-1].url,
            )
        # Over float32 a pass takes longer, and leaves less in the caches for the next request.
        asks["gumbel, int8"] = Ask(
            {"k": arguments.k, "inference_type": GUMBEL},
            (f'"{GUMBEL}"', '"made_by":"pass"'),
            servers[0].url,
        )
        yield asks, servers


@contextlib.contextmanager
def shop(arguments: argparse.Namespace) -> Iterator[Asked]:
    """A server with rules, and with arms, for requests that name no type."""
    output = arguments.output
    wanted = Wanted(arguments.items, arguments.dim, arguments.users, tables=True, shop=True)
    rules = output / "home.json"
    rules.write_text(json.dumps(HOME), encoding="utf-8")
    k = {"k": arguments.k}
    gumbel = {**k, "inference_type": GUMBEL}
    ruled = (f'"{GUMBEL}"', '"rules":{')
    asks = {
        "deterministic": Ask({**k, "inference_type": "deterministic"}, ('"deterministic"',)),
        "gumbel": Ask(gumbel, (f'"{GUMBEL}"',)),
        "table": Ask({**k, "inference_type": AUTO}, ('"made_by":"table"',)),
        "flat tail, IVF": Ask({**k, "inference_type": "stochastic_flat_tail"}, ('"n_probes":',)),
        "cap": Ask({**gumbel, "rules": {"cap": {"seller": 2}}}, ruled),
        "window": Ask({**gumbel, "rules": {"window": {"brand": [1, 5]}}}, ruled),
        "rules by name": Ask({**gumbel, "rules": "home"}, (*ruled, '"name":"home"')),
        "cap, table": Ask(
            {**k, "inference_type": AUTO, "rules": {"cap": {"seller": 2}}},
            (f'"{AUTO}"', '"rules":{'),
        ),
        "arms": Ask(k, ('"arm":"',)),
    }
    options = ["--rules", f"home={rules}", *ARMS]
    with serving(wanted.made(output), output / "shop.log", options) as server:
        yield asks, [server]


# Both arms rank equally fast, so that the cost of arms is not that of their policies.
ARMS = [
    *("--experiment", "loadtest", "--arm", "control=deterministic@0.5"),
    *("--arm", f"explore={GUMBEL}:temperature={TEMPERATURE}@0.5"),
]


# ---- What is written ------------------------------------------------------------------------


def preface(arguments: argparse.Namespace, about: history.Record) -> str:
    """Where and of what it was measured."""
    model = f"{arguments.items:,} items of {arguments.dim} numbers, float32"
    if arguments.url or arguments.model:
        model = f"the model of {arguments.url or arguments.model}"
    return f"{history.where(about)} Served, where nothing else is said: {model}."


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--experiments", default=",".join(USUAL), help=f"Of {', '.join(EXPERIMENTS)}.")
    add("--seconds", type=float, default=10.0, help="Of each stage.")
    add("--soak-seconds", type=float, default=60.0)
    add("--quick", action="store_true", help="A small model and few seconds: does it work?")
    add("--items", type=int, default=100_000)
    add("--known-items", type=int, default=1_000_000, help="Of known.")
    add("--dim", type=int, default=64)
    add("--users", type=int, default=20, help="Of the model that is made.")
    add("--model", type=Path, help="Serve this one instead.")
    add("--url", help="Ask this server instead, without article; --model: whose users to ask for.")
    add("--target", choices=["container", "gateway"], default="container")
    add("--serve", action="append", default=[], metavar="OPTION", help="For fastrank serve.")
    add("--k", type=int, default=10)
    add("--temperature", type=float, default=TEMPERATURE)
    add("--rate", type=float, help="That an open loop takes for the whole.  [default: the ramp's]")
    add("--article-p99-ms", type=float, default=50.0, help="Gate for one user.")
    add("--p99-ms", type=float, default=500.0, help="Gate for all else.")
    add("--late-ms", type=float, default=100.0, help="Gate for the client of an open loop.")
    add("--ratio", action="append", metavar="TYPE=LIMIT", help="Gate for p50 / deterministic's.")
    add("--known-ratio", action="append", metavar="NAME=LIMIT", help="Gate for known.")
    add("--drift", type=float, default=1.5, help="Gate for a soak.")
    add("--output", type=Path, default=ROOT / "build" / "loadtest")
    add("--write", action="store_true", help="docs/loadtest.json and .md.")
    given = parser.parse_args(arguments)
    given.experiments = given.experiments.split(",")
    unknown = set(given.experiments) - set(EXPERIMENTS)
    if unknown:
        parser.error(f"--experiments: {', '.join(sorted(unknown))}: not one")
    if given.quick:
        given.items, given.dim = min(given.items, 2000), min(given.dim, 16)
        given.known_items = min(given.known_items, 2000)
        given.seconds, given.soak_seconds = min(given.seconds, 3.0), min(given.soak_seconds, 6.0)
    if given.ratio is None:
        # A small catalog's ranking is lost in the cost of HTTP, and its ratio says nothing.
        given.ratio = [] if given.quick else [f"{GUMBEL}=1.05"]
    if given.known_ratio is None:
        given.known_ratio = [] if given.quick else ["table, int8=0.2"]
    if given.seconds < 2.0:
        parser.error("--seconds: at least 2, because locust changes users once a second")
    if given.write and (given.quick or given.url or given.model):
        parser.error("--write: not of a quick run, nor of another server or model")
    if given.write and not set(USUAL) <= set(given.experiments):
        parser.error(f"--write: --experiments has to have {', '.join(USUAL)}")
    return given


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    about = history.about(ROOT)
    words = preface(given, about)
    try:
        if given.write and about["commit"] is None:
            raise LoadTestError("--write: this is no checkout, and a record is of a commit")
        model = given.model or Wanted(given.items, given.dim, given.users).made(given.output)
        users = given.output / "users.txt"
        users.write_text("\n".join(users_of(model)), encoding="utf-8")
        asked = ["--user-ids", f"@{users}", "--k", str(given.k)]
        asked += ["--temperature", f"{given.temperature:g}"]
        if given.url:
            runs = experiments(given, Server(given.url), None, asked)
        else:
            with (
                serving(model, given.output / "server.log", given.serve) as server,
                gateway(server, given.output / "gateway.log") as front,
            ):
                runs = experiments(given, server, front, asked)
    except (LoadTestError, ValueError, OSError) as error:
        sys.stderr.write(f"loadtest: {error}\n")
        return 2
    record = history.record(about, {name: run.figures() for name, run in runs.items()})
    report = given.output / "report.md"
    body = markdown(record["runs"].values())
    report.write_text(f"# Load test\n\n{words}\n\n{body}", encoding="utf-8")
    (given.output / "report.html").write_text(page(list(runs.values()), words), encoding="utf-8")
    for each in record["noisy"]:
        sys.stdout.write(f"Noisy: {each}\n")
    if given.write:
        sys.stdout.write(history.add(ROOT, record) + "\n")
    passed = all(run.passed for run in runs.values())
    sys.stdout.write(
        f"{'All gates passed' if passed else 'A gate was not passed'};"
        f" {report}, {report.with_suffix('.html')}\n"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
