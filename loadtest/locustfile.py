"""Rankings asked of a server, one named task for each inference type.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8080          # page on port 8089
    locust -f loadtest/locustfile.py --headless -u 8 -t 30s --gate-p99-ms 20 --host ...
    locust -f loadtest/locustfile.py --headless --shape ramp --stages 1,8,32,128 --host ...
    locust -f loadtest/locustfile.py --headless --loop open --rate 200 -t 30s --host ...
    locust -f loadtest/locustfile.py --headless --target sagemaker --endpoint NAME --region REGION

locust's own figures are whole milliseconds. Those of `--results`, of the text at the end and of
/fastrank on locust's page come from a histogram of our own, and so do the gates.

`--loop closed`: each user waits for an answer before it asks again, so that a server that hangs is
asked less, and its worst moments count least. `--loop open`: each user asks `--rate` times a second
whatever comes back, and a latency counts from when its request was due.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from pathlib import Path
from typing import Any

import gevent
from gates import BASE, Gates
from gevent.pool import Pool
from loadreport import Run, page, text
from locust import FastHttpUser, TaskSet, constant, events, tag
from locust.runners import WorkerRunner
from pacer import Pacer
from recorder import Recorder
from shapes import SETTLED, Ramp, Shape, Soak
from targets import TARGETS, Ask, Call, Container, Gateway, SageMaker, Target

from fastrank import INFERENCE_TYPES
from fastrank.ids import split_ids
from fastrank.policies import PARAMETERS

_LOG = logging.getLogger("fastrank.loadtest")
_TIMEOUT = 30.0  # seconds for an answer: API Gateway gives 29
_IN_FLIGHT = 512  # requests of a user of an open loop; further ones are sent late
_PING = "ping"

recorder = Recorder()
target: Target = Container()
user_ids: list[str] = ["0"]
asks: dict[str, Ask] = {}  # by the names that they have in tables
generators: set[str] = set()  # that have reported to this master


# ---- What is asked --------------------------------------------------------------------------


def _task(name: str) -> Any:
    """The task that asks for something by its name."""

    def ask(rounds: Rounds) -> None:
        rounds.user.ask(name)

    ask.__name__ = ask.__qualname__ = name
    return tag(name)(ask)


class Rounds(TaskSet):
    """Everything once, in an order drawn anew, and again: every inference type, or what --asks has.

    So they are asked equally often, at the same time, and none always follows the slow one.
    """

    tasks = [_task(name) for name in (*INFERENCE_TYPES, _PING)]  # noqa: RUF012  # locust types it

    def on_start(self) -> None:
        options = self.user.environment.parsed_options
        tasks = [_task(name) for name in (*asks, _PING)] if options.asks else self.tasks
        self._all = [each for each in tasks if options.floor or each.__name__ != _PING]
        self._left: list[Any] = []
        self.user.names = [each.__name__ for each in self._all]

    def get_next_task(self) -> Any:
        if not self._left:
            self._left = random.sample(self._all, len(self._all))
        return self._left.pop()

    def wait(self) -> None:
        """Let others run. locust's own wait lets a user be killed just after it has sent."""
        gevent.sleep(0)


class Visitor(FastHttpUser):
    """Asks for rankings of users picked at random."""

    host = "http://127.0.0.1:8080"
    tasks = [Rounds]  # noqa: RUF012  # locust types it
    wait_time = constant(0)
    connection_timeout = network_timeout = _TIMEOUT
    concurrency = _IN_FLIGHT  # connections, opened as they are needed
    insecure = False

    def on_start(self) -> None:
        options = self.environment.parsed_options
        self._gap = 1.0 / options.rate if options.loop == "open" else None
        self._due = time.perf_counter() + random.random() * (self._gap or 0.0)
        self._pacer = Pacer()
        self._sending = Pool(_IN_FLIGHT)
        self._waiting: set[tuple[str, float]] = set()
        self.names: list[str] = []  # of the tasks in a round

    def ask(self, name: str) -> None:
        """Send a request, in an open loop when it is due, and there without waiting for it."""
        if self._gap is None:
            self._send(name, time.perf_counter(), closed=True)
            return
        due = self._due
        self._due += self._gap
        self._pacer.wait_until(due)
        self._sending.spawn(self._send, name, due)  # waits where too many are

    def on_stop(self) -> None:
        """Send what is due and wait for what was sent, or the slowest would be missing."""
        stopped = time.perf_counter()
        end = stopped + _TIMEOUT
        if self._gap is not None:
            while self._due <= stopped and time.perf_counter() < end:
                self.ask(random.choice(self.names))
        self._sending.join(max(end - time.perf_counter(), 0.0))
        self._pacer.close()
        now = time.perf_counter()
        for name, due in self._waiting:
            recorder.record(name, due, now - due, error="no answer by the end")
        while self._gap is not None and self._due <= stopped:
            name = random.choice(self.names)
            recorder.record(name, self._due, now - self._due, error="not sent by the end")
            self._due += self._gap

    def _send(self, name: str, due: float, closed: bool = False) -> None:
        if name == _PING:
            call = Call("GET", "/ping", {}, None)
        else:
            ask = asks[name]
            call = target.call(random.choice(user_ids), ask.parameters)
            call = call._replace(path=ask.host + call.path)
        begun = time.perf_counter()
        if closed:
            due = begun  # the time to make a request is the client's own
        late = begun - due
        self._waiting.add((name, due))
        with self.client.request(
            call.method,
            call.path,
            name=name,
            data=call.body,
            headers=call.headers,
            catch_response=True,
            context={"fastrank_due": due, "fastrank_late": late},
        ) as response:
            # locust counts from the sending; what waited to be sent is part of an open loop.
            response.request_meta["response_time"] += 1e3 * late
            wrong = _wrong(response, name)
            if wrong is None:
                response.success()
            else:
                response.failure(wrong)
        self._waiting.discard((name, due))


def _wrong(response: Any, name: str) -> str | None:
    """Why an answer does not count; looks for words in it, because parsing it costs the client."""
    if response.status_code == 0:
        return type(response.error).__name__
    content = response.content or b""
    if response.status_code != 200:
        try:
            code = str(json.loads(content)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            code = ""
        return f"{response.status_code} {code}".strip()
    if name != _PING:
        expected = ('"item_ids":[', *asks[name].expects)
        if any(each.encode() not in content for each in expected):
            return "200, but not that ranking"
    return None


# ---- locust's events ------------------------------------------------------------------------


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    add = parser.add_argument
    add("--target", choices=TARGETS, default="container")
    add("--stage-path", default="", metavar="PATH", help="Before /1/..., of a gateway: /prod")
    add("--endpoint", default="", help="Of SageMaker.")
    add("--region", default="", help="Of SageMaker.")
    add("--loop", choices=["closed", "open"], default="closed")
    add("--rate", type=float, default=100.0, help="Requests a second of each user, open loop.")
    add("--user-ids", default="0", metavar="IDS", help="a,b,c or @FILE with one a line.")
    add("--k", type=int, default=10)
    add("--temperature", type=float)
    add("--epsilon", type=float)
    add("--m", type=int)
    add("--factor", type=float)
    add(
        "--asks",
        default="",
        metavar="FILE",
        help="What to ask instead of every inference type, as run.py writes it.",
        include_in_web_ui=False,
    )
    add(
        "--base",
        default=BASE,
        metavar="NAME",
        help="Over whose p50 the others' ratios are.",
        include_in_web_ui=False,
    )
    add("--floor", action="store_true", help="GET /ping as well: what a request costs unranked.")
    add("--shape", choices=["none", "ramp", "soak"], default="none", include_in_web_ui=False)
    add("--stages", default="1,8,32,128", help="Users of each stage of a ramp.")
    add("--stage-seconds", type=float, default=10.0)
    add("--warm-up", type=float, default=1.0, help="Seconds of each stage that do not count.")
    add("--gate-p99-ms", type=float, help="Of each inference type, in each stage.")
    add("--gate-errors", type=float, default=0.0, help="Share of a stage's requests.")
    add(
        "--gate-ratio",
        action="append",
        default=[],
        metavar="NAME=LIMIT",
        help="p50 of an inference type, or of what else is asked, over that of --base.",
        include_in_web_ui=False,
    )
    add("--gate-drift", type=float, help="p50 of a soak's last stage over that of its first.")
    add("--gate-late-ms", type=float, default=100.0, help="p99 of how late an open loop sends.")
    add("--gate-requests", type=int, default=1, help="So many answers at least.")
    add("--title", default="")
    add("--results", default="", metavar="FILE", help="Write what was measured, as JSON.")


@events.init.add_listener
def _init(environment: Any, runner: Any, web_ui: Any, **_: Any) -> None:
    options = environment.parsed_options
    try:
        _choose_target(environment)
        _gates(options)
        shape = _shape(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"loadtest: {error}")
    # What is in flight at the end is answered: an answer that is cut off is a slow one left out.
    environment.stop_timeout = max(environment.stop_timeout, 2.0 * _TIMEOUT + 5.0)
    # gevent's clock stood still while modules were imported, and --run-time counts from there.
    gevent.get_hub().loop.update_now()
    if shape is not None and not isinstance(runner, WorkerRunner):
        shape.runner = runner
        environment.shape_class = shape
    if web_ui is not None:
        web_ui.app.add_url_rule(
            "/fastrank", "fastrank", web_ui.auth_required_if_enabled(lambda: page([_run(options)]))
        )


@events.test_start.add_listener
def _test_start(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    _choose_target(environment)  # a worker has its master's options only now
    recorder.warm_up = _warm_up(options)
    shape = _shape(options)
    users = options.num_users
    if not isinstance(environment.runner, WorkerRunner):  # which knows its own share only
        users = environment.runner.target_user_count or users
    name = str(users or 1)
    recorder.begin(
        time.perf_counter(), (lambda since: (name, since)) if shape is None else shape.stage_at
    )


@events.request.add_listener
def _request(
    name: str, response_time: float, exception: Any, context: dict[str, Any], **_: Any
) -> None:
    due = context.get("fastrank_due")
    if due is not None:
        error = None if exception is None else str(exception) or type(exception).__name__
        recorder.record(name, due, response_time / 1e3, context["fastrank_late"], error)


@events.report_to_master.add_listener
def _to_master(data: dict[str, Any], **_: Any) -> None:
    data["fastrank"] = recorder.take()


@events.worker_report.add_listener
def _from_worker(client_id: str, data: dict[str, Any], **_: Any) -> None:
    generators.add(client_id)
    if "fastrank" in data:
        recorder.add(data["fastrank"])


@events.quitting.add_listener
def _quitting(environment: Any, **_: Any) -> None:
    runner, options = environment.runner, environment.parsed_options
    if runner is None or isinstance(runner, WorkerRunner):
        return
    run = _run(options)
    sys.stdout.write("\n" + text(run.figures()) + "\n")
    sys.stdout.flush()
    if options.results:
        Path(options.results).write_text(json.dumps(run.to_dict()), encoding="utf-8")
    environment.process_exit_code = 0 if run.passed and not runner.exceptions else 1


# ---- From options ---------------------------------------------------------------------------


def _choose_target(environment: Any) -> None:
    global target, user_ids, asks
    options = environment.parsed_options
    asks = _asks(options)
    given = options.user_ids
    if given.startswith("@"):
        lines = Path(given[1:]).read_text(encoding="utf-8").split("\n")
        user_ids = [line for line in lines if line]
    else:
        user_ids = split_ids("--user-ids", given)
    if not user_ids:
        raise ValueError("--user-ids: none given")
    if options.loop == "open" and not options.rate > 0.0:
        raise ValueError(f"--rate: expected a number above 0, got {options.rate}")
    if options.target == "sagemaker":
        if not options.endpoint or not options.region:
            raise ValueError("--target sagemaker: --endpoint and --region are wanted")
        made = SageMaker(options.endpoint, options.region, environment.host or options.host)
        environment.host = made.host
        target = made
    elif options.target == "gateway":
        target = Gateway(options.stage_path)
    else:
        target = Container()


def _asks(options: Any) -> dict[str, Ask]:
    """Every inference type, with the parameters of the options; or what --asks has."""
    if options.asks:
        words = Path(options.asks).read_text(encoding="utf-8")
        try:
            return {name: Ask.from_dict(each) for name, each in json.loads(words).items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"--asks {options.asks}: not what run.py writes: {error!r}") from None
    return {
        name: Ask(
            {
                "k": options.k,
                "inference_type": name,
                **{key: value for key in takes if (value := _number(options, key)) is not None},
            },
            (f'"{name}"',),
        )
        for name, (_, _, takes) in INFERENCE_TYPES.items()
    }


def _shape(options: Any) -> Shape | None:
    if options.shape == "none":
        return None
    if not options.stage_seconds > _warm_up(options):
        raise ValueError(f"--stage-seconds: expected more than {_warm_up(options):g}, the warm-up")
    if options.shape == "soak":
        seconds = float(options.run_time or 0.0) - options.stage_seconds
        return Soak(options.num_users or 1, options.stage_seconds, seconds)
    try:
        users = [int(each) for each in options.stages.split(",")]
    except ValueError:
        users = []
    if not users or min(users) < 1 or len(set(users)) < len(users):
        raise ValueError(f"--stages: expected different numbers of users, got {options.stages!r}")
    return Ramp(users, options.stage_seconds)


def _number(options: Any, name: str) -> float | None:
    """An option that need not be given; from locust's page it comes as text, empty if it is not."""
    value = getattr(options, name)
    if value in (None, ""):
        return None
    is_integer = name in PARAMETERS and PARAMETERS[name].is_integer
    return int(value) if is_integer else float(value)


def _warm_up(options: Any) -> float:
    """Seconds of each stage that do not count."""
    return max(float(options.warm_up), SETTLED if options.shape == "ramp" else 0.0)


def _gates(options: Any) -> Gates:
    if options.base not in asks:
        raise ValueError(f"--base: {options.base}: expected one of {', '.join(asks)}")
    ratios = {}
    for each in options.gate_ratio:
        name, _, limit = each.partition("=")
        if name not in asks:
            raise ValueError(f"--gate-ratio: {name}: expected one of {', '.join(asks)}")
        ratios[name] = float(limit)
    return Gates(
        p99_ms=_number(options, "gate_p99_ms"),
        error_share=options.gate_errors,
        ratios=ratios,
        base=options.base,
        drift=_number(options, "gate_drift"),
        late_ms=options.gate_late_ms,
        requests=options.gate_requests,
    )


def _run(options: Any) -> Run:
    """What was measured so far, and what it is worth."""
    rate = options.rate if options.loop == "open" else None
    return Run(
        title=options.title or f"{options.loop} loop",
        loop=options.loop,
        target=options.target,
        shape=options.shape,
        rate=rate,
        k=options.k,
        temperature=_number(options, "temperature"),
        user_ids=len(user_ids),
        generators=max(1, len(generators)),
        warm_up=_warm_up(options),
        base=options.base,
        verdicts=_gates(options).judge(recorder, rate),
        stages=recorder.stages,
        left_out=recorder.left_out,
    )
