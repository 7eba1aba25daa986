"""Starts a server on a model made for it, asks it a lot, stops it, and says whether it did well.

    python loadtest/run.py [--quick] [--experiments article,direct,ramp,open,soak] [--seconds 10]
        [--model DIR | --url URL] [--output build/loadtest] [--write]

- article: one user, all inference types in turns, through the local API Gateway.
- direct: the same without it, and /ping beside them as what HTTP costs by itself.
- ramp: 1, 8, 32 and 128 users who wait for their answers; the most answers a second are what the
  open loop goes by.
- open: a tenth, a fifth and two fifths of that, sent at a constant rate. More would ask the client
  for cores that the server has.
- soak: 8 users for `--soak-seconds`, told apart by time.

The exit code is 0 if all gates were passed, 1 if not, and 2 if nothing could be measured. Client
and server share the machine's cores. --write puts what was measured into docs/loadtest.md, and into
the README where it says <!-- loadtest -->.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
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

import numpy as np
from gates import pooled
from loadreport import Run, markdown, page, summary, text

import fastrank as fr
from fastrank.cores import usable_cores

ROOT = Path(__file__).resolve().parents[1]
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
EXPERIMENTS = ("article", "direct", "ramp", "open", "soak")
TEXTBOOK = "stochastic_plackett_luce"  # k passes a request: alone with others it is all one sees
TEMPERATURE = 0.25  # for scores of standard deviation 1
SETTLED = 60.0  # seconds for a server to be ready


class LoadTestError(Exception):
    """Nothing could be measured."""


# ---- The model ------------------------------------------------------------------------------


def build_model(directory: Path, n_items: int, dim: int, n_users: int) -> list[str]:
    """A model of normal vectors, made once; its users' ids."""
    if not (directory / "manifest.json").exists():
        rng = np.random.default_rng(5)
        vectors = rng.standard_normal((n_items, dim), dtype=np.float32)
        users = rng.standard_normal((n_users, dim), dtype=np.float32) / np.float32(np.sqrt(dim))
        directory.parent.mkdir(parents=True, exist_ok=True)
        catalog, policy = fr.Catalog(np.arange(n_items), vectors), fr.PlackettLuce(TEMPERATURE)
        fr.Model(catalog, np.arange(n_users), users, policy=policy).save(directory)
    return users_of(directory)


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
        try:
            line = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return None
        words = line.rsplit(")", 1)[1].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


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


def locust(server: Server, name: str, options: list[str], output: Path, seconds: float) -> Run:
    """One run; locust's own words go to a file."""
    results, log = output / f"{name}.json", output / f"{name}.log"
    results.unlink(missing_ok=True)
    command = [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"),
        *("--host", server.url, "--results", str(results)),
        *("--html", str(output / f"{name}-locust.html"), *options),
    ]
    before = server.cpu_seconds()
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
    after = server.cpu_seconds()
    if before is not None and after is not None and run.sent:
        run.server_cpu_us = 1e6 * (after - before) / run.sent
    return run


def experiments(
    arguments: argparse.Namespace, server: Server, front: Server | None, asked: list[str]
) -> list[Run]:
    """Those that were chosen, printed as they end; `front` is the gateway before the server."""
    output, seconds = arguments.output, arguments.seconds
    warm_up = min(1.0, seconds / 5.0)
    common = [*asked, "--warm-up", f"{warm_up:g}"]
    stages = f"{seconds:g}"
    limit = ["--gate-p99-ms", f"{arguments.p99_ms:g}"]
    without_textbook = ["--exclude-tags", TEXTBOOK]
    runs: list[Run] = []

    def take(name: str, options: list[str], lasts: float, through: Server | None = None) -> Run:
        target = "gateway" if through else arguments.target
        options = [*common, "--target", target, *options]
        runs.append(locust(through or server, name, options, output, lasts))
        sys.stdout.write(text(runs[-1]) + "\n\n")
        sys.stdout.flush()
        return runs[-1]

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


# ---- What is written ------------------------------------------------------------------------


def preface(arguments: argparse.Namespace) -> str:
    """Where and of what it was measured."""
    model = f"{arguments.items:,} items of {arguments.dim} numbers, float32"
    if arguments.url or arguments.model:
        model = f"the model of {arguments.url or arguments.model}"
    cores = usable_cores()
    load = os.getloadavg()[0]
    return (
        f"fastrank {fr.__version__} on {_cpu()}, {cores} cores, which client and server share;"
        f" load before: {load:.1f}. Served: {model}."
        f" Latencies are the client's, network stack and all. A percentile is left out where"
        f" fewer than ten answers lie above it; what failed has no latency, and is counted."
    )


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def write(runs: list[Run], words: str) -> None:
    """docs/loadtest.md, and the README's table where there is a place for it."""
    body = (
        f"# Load test\n\nWritten by `make loadtest LOADTEST=--write`, never by hand.\n\n{words}\n"
    )
    (ROOT / "docs" / "loadtest.md").write_text(f"{body}\n{markdown(runs)}", encoding="utf-8")
    readme = ROOT / "README.md"
    table = summary(runs)
    if table:
        old = readme.read_text(encoding="utf-8")
        new = re.sub(
            r"(<!-- loadtest\b[^>]*-->\n).*?(\n<!-- end -->)",
            lambda found: f"{found[1]}\n{table}\n{found[2]}",
            old,
            flags=re.DOTALL,
        )
        readme.write_text(new, encoding="utf-8")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--experiments", default="article,direct,ramp,open", help=f"Of {', '.join(EXPERIMENTS)}.")
    add("--seconds", type=float, default=10.0, help="Of each stage.")
    add("--soak-seconds", type=float, default=60.0)
    add("--quick", action="store_true", help="A small model and few seconds: does it work?")
    add("--items", type=int, default=100_000)
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
    add("--drift", type=float, default=1.5, help="Gate for a soak.")
    add("--output", type=Path, default=ROOT / "build" / "loadtest")
    add("--write", action="store_true", help="docs/loadtest.md and the README.")
    given = parser.parse_args(arguments)
    given.experiments = given.experiments.split(",")
    unknown = set(given.experiments) - set(EXPERIMENTS)
    if unknown:
        parser.error(f"--experiments: {', '.join(sorted(unknown))}: not one")
    if given.quick:
        given.items, given.dim = min(given.items, 2000), min(given.dim, 16)
        given.seconds, given.soak_seconds = min(given.seconds, 3.0), min(given.soak_seconds, 6.0)
    if given.ratio is None:
        # A small catalog's ranking is lost in the cost of HTTP, and its ratio says nothing.
        given.ratio = [] if given.quick else ["stochastic_gumbel_softmax_trick=1.05"]
    if given.seconds < 2.0:
        parser.error("--seconds: at least 2, because locust changes users once a second")
    if given.quick and given.write:
        parser.error("--write: not of a quick run")
    return given


def main(arguments: list[str]) -> int:
    given = parse(arguments)
    given.output.mkdir(parents=True, exist_ok=True)
    words = preface(given)
    try:
        if given.model is not None:
            model, ids = given.model, users_of(given.model)
        else:
            model = given.output / f"model-{given.items}x{given.dim}x{given.users}"
            ids = build_model(model, given.items, given.dim, given.users)
        users = given.output / "users.txt"
        users.write_text("\n".join(ids), encoding="utf-8")
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
    report = given.output / "report.md"
    report.write_text(f"# Load test\n\n{words}\n\n{markdown(runs)}", encoding="utf-8")
    (given.output / "report.html").write_text(page(runs, words), encoding="utf-8")
    if given.write:
        write(runs, words)
    passed = all(run.passed for run in runs)
    sys.stdout.write(
        f"{'All gates passed' if passed else 'A gate was not passed'};"
        f" {report}, {report.with_suffix('.html')}\n"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
