"""The explorer: what it asks for, and the page itself in a browser without a window."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import numpy as np
import pytest
import uvicorn
from patience import PATIENCE

import fastrank as fr
from fastrank.eventlog import LogReader
from fastrank.policies import PARAMETERS, parameters_of
from fastrank.policies.spec import parse_stated
from fastrank_serving import app, explorer
from fastrank_serving.clients import FIELDS
from fastrank_serving.settings import Settings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ITEMS, USERS, DIM = 500, 300, 8
SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=alert(1)>"
FIRST_ITEM = 2**53  # ids that a double does not hold
SEED = "18446744073709551615"
GUMBEL = "stochastic_gumbel_softmax_trick"


FIRSTS = (
    "Quiet Salt Winter Paper Distant Borrowed Copper Last Northern Hollow Silver Patient Lost"
    " Crooked Early Glass Slow Hidden Amber Second Restless Narrow Green"
)
SECONDS = (
    "Harbour Letters Orchard Lighthouse Atlas River Clockmaker Garden Station Choir Map Bridge"
    " Season Archive Voyage Kitchen Island Mirror Neighbour Summer Ferry Weather"
)


def titles() -> list[str]:
    """Books that nobody wrote."""
    every = [f"The {first} {second}" for second in SECONDS.split() for first in FIRSTS.split()]
    return every[:ITEMS]


def model(hostile: bool = True) -> fr.Model:
    rng = np.random.default_rng(7)
    catalog = fr.Catalog(FIRST_ITEM + np.arange(ITEMS), rng.normal(size=(ITEMS, DIM)))
    names = [f"{name}-{j}" for j in range(USERS // 4) for name in ("ann", "bob", "chloé", "日本")]
    names[0], names[1] = "a/b?c&d=é #%", '"><script>\\u0041'
    shown = titles()
    vectors = rng.normal(size=(USERS, DIM))
    if hostile:  # the best of the user ann-1
        best = catalog.rank(vectors[names.index("ann-1")], 1, policy=fr.Deterministic())
        shown[int(best.item_ids[0]) - FIRST_ITEM] = SCRIPT
    return fr.Model(catalog, names, vectors, item_titles=shown)


@dataclass(frozen=True)
class Server:
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def get(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any, dict[str, str]]:
        connection = HTTPConnection(self.host, self.port, timeout=PATIENCE)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                headers = {"content-type": "application/json"}
                connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        headers = {name.lower(): value for name, value in response.getheaders()}
        if headers.get("content-type", "").startswith("application/json") and text:
            return response.status, json.loads(text), headers
        return response.status, text, headers


@contextmanager
def served(settings: Settings) -> Iterator[Server]:
    listening = socket.create_server(("127.0.0.1", 0))
    made = app.create_app(settings)
    config = uvicorn.Config(made, lifespan="on", log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        for _ in range(1000):
            if made.service.ready:
                break
            time.sleep(0.01)
        else:
            pytest.fail("the server did not become ready")
        yield Server("127.0.0.1", listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        listening.close()
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "model"
    model().save(path)
    return path


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[Server]:
    with served(Settings(model=directory, threads=1, max_k=200)) as found:
        yield found


# ---- What the page asks for -----------------------------------------------------------------


def test_the_page_comes_with_its_types_and_a_strict_policy(server: Server) -> None:
    for path, media_type in (
        ("/", "text/html; charset=utf-8"),
        ("/explorer/explorer.css", "text/css; charset=utf-8"),
        ("/explorer/explorer.js", "text/javascript; charset=utf-8"),
        ("/explorer/icon.svg", "image/svg+xml"),
    ):
        status, text, headers = server.get(path)
        assert status == 200
        assert text
        assert headers["content-type"] == media_type
        assert headers["x-content-type-options"] == "nosniff"
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        # Nothing is fetched from elsewhere, and nothing stands where the policy would refuse it.
        elsewhere = re.findall(r"https?://[^\s\"'<>)]+", text)
        assert set(elsewhere) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|\bstyle=|\son\w+=", text
        )


@pytest.mark.parametrize(
    "path",
    ["/explorer/", "/explorer/..%2fexplorer.py", "/explorer/static/index.html", "/index.html"],
)
def test_no_path_leads_to_another_file(server: Server, path: str) -> None:
    assert server.get(path)[0] == 404


def test_what_is_served_is_told(server: Server) -> None:
    status, about, _ = server.get("/explorer/about")
    assert status == 200
    assert about["n_items"] == ITEMS
    assert about["n_users"] == USERS
    assert about["has_titles"]
    assert about["max_k"] == 200
    assert [row["name"] for row in about["inference_types"]] == list(fr.INFERENCE_TYPES)
    words = {row["name"]: row["words"] for row in about["inference_types"]}
    assert "textbook" in words["stochastic_plackett_luce"]
    assert about["params"] == {"temperature": 1.0}


def test_the_page_knows_every_parameter() -> None:
    """Without an input a parameter is the server's."""
    static = Path(explorer.__file__).parent / "static"
    script, page = ((static / name).read_text() for name in ("explorer.js", "index.html"))
    inputs = set(re.findall(r'<input id="(\w+)"', page))
    state = script.partition("const state = {")[2].partition("};")[0]
    assert set(PARAMETERS) <= inputs
    assert set(PARAMETERS) <= set(re.findall(r"(\w+):", state))


@pytest.mark.parametrize(
    ("prefix", "limit"),
    [
        *[("", 3), ("ann", 5), ("ann-1", 100), ("chloé-", 100), ("日", 1), ("a/b?c&d", 20)],
        *[('"><', 20), ("nobody", 20), ("\0", 20), ("ann\0", 20), ("é" * 256, 20), ("😀", 1)],
    ],
)
def test_users_are_suggested_by_the_start_of_their_ids(
    server: Server, prefix: str, limit: int
) -> None:
    known = sorted(user for user in model().user_ids.tolist() if user.startswith(prefix))
    query = urlencode({"prefix": prefix, "limit": limit})
    status, found, headers = server.get(f"/explorer/users?{query}")
    assert status == 200
    assert found == {"users": known[:limit], "more": len(known) > limit}
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        *[("limit=0", 422, "limit"), ("limit=101", 422, "limit"), ("limit=-1", 422, "limit")],
        *[("limit=x", 422, "limit"), ("limit=%D9%A1", 422, "limit"), ("limit=1e1", 422, "limit")],
        *[("limit=" + "9" * 5000, 422, "limit"), ("prefix=" + "a" * 1025, 422, "prefix")],
        *[("pre=a", 400, "pre"), ("prefix=a&prefix=b", 400, "prefix")],
    ],
)
def test_what_cannot_be_suggested_is_refused(
    server: Server, query: str, status: int, field: str | None
) -> None:
    code, found, _ = server.get(f"/explorer/users?{query}")
    assert code == status
    assert found["error"]["field"] == field
    assert len(found["error"]["message"]) < 400


def test_bytes_that_are_no_text_find_nobody(server: Server) -> None:
    assert server.get("/explorer/users?prefix=%ff%fe")[1] == {"users": [], "more": False}
    assert server.get("/explorer/users?prefix=%ed%a0%80")[1] == {"users": [], "more": False}


def test_titles_are_those_of_the_ids_in_their_order(server: Server) -> None:
    shown = model()
    ids = (FIRST_ITEM + np.array([3, 400, 3, 0])).tolist()
    odd = ["", "x", "-0", "007", "1_0", "\u0661", "9" * 30, "9" * 5000, "3\0", "null", "1.0"]
    query = urlencode([("id", item) for item in [*ids, *odd]])
    status, found, _ = server.get(f"/explorer/titles?{query}")
    assert status == 200
    assert found == {"titles": [*shown.titles(ids), *[""] * len(odd)]}
    assert server.get("/explorer/titles")[1] == {"titles": []}


def test_so_many_titles_at_once_and_no_more(server: Server) -> None:
    many = [("id", FIRST_ITEM)] * explorer.MAX_TITLES
    assert server.get(f"/explorer/titles?{urlencode(many)}")[0] == 200
    status, found, _ = server.get(f"/explorer/titles?{urlencode([*many, ('id', 1)])}")
    assert status == 422
    assert found["error"]["field"] == "id"
    assert server.get("/explorer/titles?ids=1")[0] == 400


def test_text_ids_and_integer_users(tmp_path: Path) -> None:
    ids = ["a,b", "ü", "x" * 300]
    catalog = fr.Catalog(ids, np.eye(3))
    fr.Model(catalog, [-5, 1, 10, 117, 20], np.ones((5, 3)), item_titles=["A", "", "\u202eC"]).save(
        tmp_path / "model"
    )
    with served(Settings(model=tmp_path / "model", threads=1)) as server:
        query = urlencode([("id", item) for item in [*ids, "3\0", "\0", ""]])
        titles = server.get(f"/explorer/titles?{query}")[1]["titles"]
        assert titles == ["A", "", "\u202eC", "", "", ""]
        for prefix, users in (("", ["-5", "1", "10", "20", "117"]), ("1", ["1", "10", "117"])):
            assert server.get(f"/explorer/users?prefix={prefix}")[1]["users"] == users
        for prefix in ("01", "+1", "1.", quote("١")):
            assert server.get(f"/explorer/users?prefix={prefix}")[1]["users"] == []


def test_a_catalog_without_users_has_none_to_suggest(tmp_path: Path) -> None:
    fr.Catalog([1, 2], np.eye(2)).save(tmp_path / "catalog")
    with served(Settings(model=tmp_path / "catalog", threads=1)) as server:
        assert server.get("/explorer/users")[1] == {"users": [], "more": False}
        assert server.get("/explorer/titles?id=1")[1] == {"titles": [""]}
        assert server.get("/explorer/about")[1]["n_users"] == 0


def test_the_explorer_can_be_switched_off(directory: Path) -> None:
    with served(Settings(model=directory, threads=1, explorer=False)) as server:
        for path in ("/", "/explorer/about", "/explorer/users", "/explorer/titles"):
            assert server.get(path)[0] == 404
        for name in ("explorer.css", "explorer.js", "icon.svg"):
            assert server.get(f"/explorer/{name}")[0] == 404
        assert server.get("/ping")[0] == 200


# ---- The page -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium")
    arguments = [
        "--no-sandbox",  # which root cannot have
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=program, args=arguments)
        yield found
        found.close()


class Visit:
    """A page, everything that it asked for, and everything that went wrong."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.addresses: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        page.on("request", self._note)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on(
            "console",
            lambda said: (
                self.complaints.append(said.text) if said.type in ("error", "warning") else None
            ),
        )

    def _note(self, request: Any) -> None:
        self.addresses.append(request.url)
        if request.url.endswith("/invocations"):
            self.asked.append(json.loads(request.post_data))

    def open(self, server: Server, **state: object) -> None:
        self.page.goto("about:blank")  # another hash alone is no other page, and a reload may
        self.page.goto(f"{server.url}/#{urlencode(state)}")  # cut a request that nobody noted
        self.wait()

    def wait(self, types: int = len(fr.INFERENCE_TYPES)) -> None:
        """Until every ranking is there and nothing is under way."""
        self.until(
            """types => {
                const boxes = [...document.querySelectorAll('.ranking')];
                return boxes.length === types && document.getElementById('status').textContent
                    && boxes.every(box => box.getAttribute('aria-busy') === 'false'
                                   && box.querySelector('li'));
            }""",
            types,
        )

    def until(self, condition: str, given: object = None) -> None:
        """Wait for a condition; the page's policy forbids Playwright's own way, an eval."""
        for _ in range(1000):
            if self.page.evaluate(condition, given):
                return
            self.page.wait_for_timeout(20)
        pytest.fail(f"it did not come to pass: {condition}")

    def says(self, text: str) -> None:
        """Wait for the line that tells what is shown."""
        self.until("text => document.getElementById('status').textContent.includes(text)", text)
        self.wait()

    def hash(self) -> dict[str, str]:
        return {
            name: values[0] for name, values in parse_qs(urlsplit(self.page.url).fragment).items()
        }

    def ids(self, inference_type: str) -> list[str]:
        return self.page.locator(f"#ranking-{inference_type} .title small").all_text_contents()


@pytest.fixture
def visit(browser: Browser, server: Server) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(20_000)
    found = Visit(context.new_page())
    yield found
    context.close()
    for address in found.addresses:
        assert urlsplit(address).hostname == "127.0.0.1", address


def test_a_user_is_picked_by_keyboard_and_every_ranking_appears(
    visit: Visit, server: Server
) -> None:
    visit.open(server)
    page = visit.page
    assert page.locator("#user").input_value() == min(model().user_ids.tolist())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "user"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineWidth") == "3px"
    page.keyboard.type("ann-1")
    page.wait_for_selector("#users:not([hidden]) [role=option]")
    assert page.locator("#user").get_attribute("aria-expanded") == "true"
    shown = page.locator("#users [role=option]").all_inner_texts()
    assert shown == sorted(user for user in model().user_ids.tolist() if user.startswith("ann-1"))
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    active = page.locator("#user").get_attribute("aria-activedescendant")
    assert page.locator(f"#{active}").inner_text() == shown[1]
    page.keyboard.press("Enter")
    visit.says(shown[1])
    assert visit.hash()["user"] == shown[1]
    assert page.locator("#user").get_attribute("aria-expanded") == "false"
    last = visit.asked[-len(fr.INFERENCE_TYPES) :]
    assert {row["inference_type"] for row in last} == set(fr.INFERENCE_TYPES)
    assert {row["user_id"] for row in last} == {shown[1]}
    # What the page shows is what the library draws.
    made, seed = model(), int(last[0]["seed"])
    names = dict(
        zip(made.catalog.item_ids.tolist(), made.titles(made.catalog.item_ids), strict=True)
    )
    for name, (_, _, params) in fr.INFERENCE_TYPES.items():
        values = {"temperature": 1.0, "epsilon": 0.1}
        given = {key: values[key] for key in params if key in values}
        ranking = made.recommend(shown[1], 10, policy=fr.policy(name, **given), seed=seed)
        assert visit.ids(name) == [str(item) for item in ranking.item_ids.tolist()]
        found = page.locator(f"#ranking-{name} .title").all_inner_texts()
        assert found == [names[item] for item in ranking.item_ids.tolist()]
        assert page.locator(f"#ranking-{name} .mark").count() == (
            0 if name == "deterministic" else changes(made, shown[1], ranking)
        )
        width = page.locator(f"#ranking-{name} .bar span").nth(0).evaluate("e => e.style.width")
        expected = 100 * float(np.exp(ranking.log_propensities[0]))
        assert float(width.removesuffix("%")) == pytest.approx(expected, rel=1e-3)
    assert page.locator(".ranking dl").nth(0).inner_text().split("\n")[-2] == "ms (median)"
    assert visit.complaints == []


def types_that_take(parameter: str) -> set[str]:
    return {name for name in fr.INFERENCE_TYPES if parameter in parameters_of(name)}


def changes(made: fr.Model, user: str, ranking: fr.Ranking) -> int:
    best = made.recommend(user, len(ranking.item_ids), policy=fr.Deterministic())
    return int((best.item_ids != ranking.item_ids).sum())


def test_every_control_is_reached_and_named(visit: Visit, server: Server) -> None:
    visit.open(server, user="bob-3")
    page = visit.page
    reached = []
    for _ in range(16):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    controls = ["user", "k", "temperature-slider", "temperature", "epsilon-slider", "epsilon"]
    controls += ["head", "m", "factor", "seed", "again", "bars", "ids", "score", "params"]
    controls += ["SUMMARY"]
    assert reached == controls
    for name, role in (("User", "combobox"), ("Temperature", "slider"), ("Seed", "textbox")):
        assert page.get_by_role(role, name=name, exact=True).count() == 1  # type: ignore[arg-type]
    for name in fr.INFERENCE_TYPES:
        assert page.get_by_role("region", name=name, exact=True).count() == 1
    assert "seed_source: caller" in page.locator(".note").inner_text()
    assert visit.complaints == []


@pytest.mark.slow
def test_a_head_is_shown_and_kept_in_the_address(visit: Visit, server: Server) -> None:
    visit.open(server, user="bob-3", seed=5)
    visit.page.fill("#head", "2")
    visit.until("location.hash.includes('head=2')")
    takers = types_that_take("head")
    visit.until(
        "types => [...document.querySelectorAll('dt')].filter(e => e.textContent === 'head').length"
        " === types",
        len(takers),
    )
    visit.wait()
    sent = [row for row in visit.asked if row.get("head") == 2]
    assert {row["inference_type"] for row in sent} == takers
    best = visit.page.locator("#ranking-deterministic li").all_inner_texts()[:2]
    for name in takers:
        assert visit.page.locator(f"#ranking-{name} li").all_inner_texts()[:2] == best
    assert visit.complaints == []


@pytest.mark.slow
def test_a_score_and_its_parameters_are_sent_and_kept_in_the_address(
    visit: Visit, server: Server
) -> None:
    visit.open(server, user="bob-3", seed=5, k=3, ids=1)
    best = visit.ids("deterministic")
    before = len(visit.asked)
    visit.page.fill("#params", 'w = -1, on = true, who = "4,2"')
    visit.page.fill("#score", "dot * w if on and who == '4,2' else 0")
    visit.until("location.hash.includes('params=w+%3D+-1%2C+on+%3D+true')")
    shown = "best => !document.getElementById('ranking-deterministic').textContent.includes(best)"
    visit.until(shown, best[0])
    # A flat tail takes no score.
    visit.until("document.getElementById('status').textContent.startsWith('7 rankings')")
    sent = visit.asked[before:][-1]
    assert sent["score"] == "dot * w if on and who == '4,2' else 0"
    assert sent["params"] == {"w": -1, "on": True, "who": "4,2"}
    assert (
        "cannot use the score"
        in visit.page.locator("#ranking-stochastic_flat_tail .refused").inner_text()
    )
    visit.page.fill("#score", "dot * w + v if on and who == '4,2' else 0")
    visit.page.wait_for_selector("#alert:not([hidden])")
    assert "'v' is neither a column" in visit.page.locator("#alert").inner_text()
    assert visit.page.locator("#score").get_attribute("aria-invalid") == "true"
    asked = len(visit.asked)
    visit.page.fill("#params", "w")
    visit.until("document.getElementById('alert').textContent.includes('name = value')")
    assert len(visit.asked) == asked


RULES = {
    "home": {
        "pin": {"3": FIRST_ITEM + 9},
        "pin_where": {"1": "seller == 'acme'"},
        "cap": {"seller": 3},
    },
    "fade": {"decay": {"seller": 0.5}},
    "shop": {"where": "seller == shop"},
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, fr.Model]]:
    """A server that has rules."""
    directory = tmp_path_factory.mktemp("shop")
    made = model(hostile=False)
    sellers = [["acme", "bob", "cat"][i % 3] for i in range(ITEMS)]
    made = made.with_features({"seller": sellers})
    made.save(directory / "model")
    (directory / "rules.json").write_text(json.dumps(RULES))
    settings = Settings(
        model=directory / "model", threads=1, rules=(str(directory / "rules.json"),)
    )
    with served(settings) as found:
        yield found, made


@pytest.mark.slow
def test_rules_are_chosen_and_what_they_pin_is_marked(
    visit: Visit, shop: tuple[Server, fr.Model]
) -> None:
    server, made = shop
    visit.open(server, user="bob-3", seed=5, k=6, ids=1)
    page = visit.page
    assert page.locator("#rules-control").is_visible()
    options = page.locator("#rules option").all_text_contents()
    assert options == ["none", "home", "fade", "shop (shop)"]
    assert page.locator(".ranking .mark.pinned").count() == 0
    plain = visit.ids(GUMBEL)
    page.select_option("#rules", "home")
    visit.until("location.hash.includes('rules=home')")
    visit.until("document.querySelectorAll('.ranking .mark.pinned').length === 14")
    visit.until("document.getElementById('status').textContent.startsWith('7 rankings')")
    assert visit.asked[-1]["rules"] == "home"
    assert visit.ids(GUMBEL) != plain
    rules = fr.Rules.from_dict(RULES["home"])
    for name, policy in ((GUMBEL, fr.PlackettLuce()), ("deterministic", fr.Deterministic())):
        expected = made.recommend("bob-3", 6, policy=policy, seed=5, rules=rules)
        assert visit.ids(name) == [str(item) for item in expected.item_ids.tolist()]
        rows = page.locator(f"#ranking-{name} li")
        pinned = [rows.nth(j).locator(".mark.pinned").count() for j in range(6)]
        assert pinned == [1, 0, 1, 0, 0, 0]
        mark = rows.nth(0).locator(".mark.pinned").get_attribute("title")
        assert mark == "rules require here: seller == 'acme'"
        for j, own in enumerate(np.exp(expected.log_propensities).tolist()):
            bar = rows.nth(j).locator(".bar span").evaluate("e => e.style.width")
            assert float(bar.removesuffix("%")) == pytest.approx(100 * own, rel=1e-3)
    assert (
        "FlatTail does not support pin_where"
        in page.locator("#ranking-stochastic_flat_tail .refused").inner_text()
    )
    # Where there is nothing deterministic to compare with, nothing is compared.
    page.select_option("#rules", "fade")
    visit.until("document.getElementById('status').textContent.startsWith('4 rankings')")
    assert page.locator(".ranking .mark").count() == 0
    assert "unchanged" not in page.locator(f"#ranking-{GUMBEL}").inner_text()
    page.select_option("#rules", "shop")
    visit.until("document.getElementById('status').textContent.startsWith('0 rankings')")
    page.fill("#params", "shop = cat")
    visit.until("document.getElementById('status').textContent.startsWith('8 rankings')")
    visit.wait()
    page.select_option("#rules", "")
    visit.until("!location.hash.includes('rules')")
    # Such refusals are 422s, which the browser notes.
    assert all("422" in said for said in visit.complaints), visit.complaints


@pytest.mark.slow
def test_a_server_without_rules_has_none_to_choose(visit: Visit, server: Server) -> None:
    visit.open(server, user="bob-3", seed=5)
    assert not visit.page.locator("#rules-control").is_visible()


@pytest.mark.slow
def test_the_slider_changes_the_temperature_that_is_sent(visit: Visit, server: Server) -> None:
    visit.open(server, user="bob-3", seed=5)
    before = len(visit.asked)
    visit.page.focus("#temperature-slider")
    visit.page.keyboard.press("ArrowLeft")
    visit.page.keyboard.press("ArrowLeft")
    visit.until("location.hash.includes('temperature=0.794')")
    visit.until(
        "types => [...document.querySelectorAll('dd')]"
        ".filter(e => e.textContent === '0.794').length === types",
        len(types_that_take("temperature")),
    )
    visit.wait()
    assert visit.page.locator("#temperature").input_value() == "0.794"
    assert visit.page.locator("#temperature-slider").get_attribute("aria-valuetext") == "0.794"
    sent = [row for row in visit.asked[before:] if "temperature" in row]
    assert sent[-1]["temperature"] == 0.794
    last = visit.asked[-len(fr.INFERENCE_TYPES) :]
    takers = {row["inference_type"] for row in last if "temperature" in row}
    assert takers == types_that_take("temperature")
    assert {row["seed"] for row in last} == {"5"}
    visit.page.fill("#epsilon", "0.75")
    visit.until("[...document.querySelectorAll('dd')].some(e => e.textContent === '0.75')")
    assert visit.page.locator("#epsilon-slider").input_value() == "0.75"
    assert visit.complaints == []


@pytest.mark.slow
def test_drawing_again_takes_another_seed_and_the_address_leads_back(
    visit: Visit, server: Server
) -> None:
    visit.open(server, user="chloé-9", seed=SEED, k=7, temperature=2)
    first = {name: visit.ids(name) for name in fr.INFERENCE_TYPES}
    there = visit.page.url
    assert visit.hash()["seed"] == SEED  # 64 bits, though a number here holds 53
    assert {row["seed"] for row in visit.asked} == {SEED}
    visit.page.click("#again")
    visit.until("seed => !location.hash.includes(seed)", SEED)
    seed = visit.hash()["seed"]
    visit.says(f"seed {seed}")
    assert {row["seed"] for row in visit.asked[-len(first) :]} == {seed}
    second = {name: visit.ids(name) for name in fr.INFERENCE_TYPES}
    assert second["deterministic"] == first["deterministic"]
    assert second["uniform"] != first["uniform"]
    visit.page.goto("about:blank")
    visit.page.goto(there)
    visit.wait()
    assert {name: visit.ids(name) for name in fr.INFERENCE_TYPES} == first
    visit.addresses = [url for url in visit.addresses if url != "about:blank"]
    assert visit.complaints == []


def test_titles_and_users_are_text_whatever_they_hold(visit: Visit, server: Server) -> None:
    visit.open(server, user="ann-1")
    page = visit.page
    assert page.locator("#ranking-deterministic .title").nth(0).inner_text() == SCRIPT
    assert page.title() == "fastrank explorer"
    assert page.locator("main img, main script").count() == 0
    for user in ('"><script>\\u0041', "a/b?c&d=é #%"):
        page.fill("#user", user[:4])
        page.wait_for_selector("#users:not([hidden]) [role=option]")
        assert page.locator("#users [role=option]").all_inner_texts() == [user]
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
        visit.says(user)
        assert visit.asked[-1]["user_id"] == user
        assert visit.hash()["user"] == user
    assert visit.complaints == []


def test_errors_of_the_server_are_shown_in_words(visit: Visit, server: Server) -> None:
    visit.open(server, user="bob-3")
    page = visit.page

    def alert() -> str:
        page.wait_for_selector("#alert:not([hidden])")
        return page.locator("#alert").inner_text()

    page.fill("#user", "nobody <b>")
    page.keyboard.press("Enter")
    assert "does not know 'nobody <b>'" in alert()
    assert page.locator("#user").get_attribute("aria-invalid") == "true"
    assert page.locator(".ranking li").count() == 0  # nothing of another user stays
    page.fill("#user", "bob-3")
    page.keyboard.press("Enter")
    visit.wait()
    page.wait_for_selector("#alert", state="hidden")
    page.fill("#k", "201")
    assert "k: expected 1 to 200, got 201" in alert()
    page.fill("#k", "3")
    page.wait_for_selector("#alert", state="hidden")
    page.fill("#temperature", "1e9")
    page.wait_for_selector(".refused:not([hidden])")
    words = page.locator("#ranking-stochastic_plackett_luce .refused").inner_text()
    assert "temperature: must lie in [1e-06, 1e+06]" in words
    assert page.locator("#ranking-uniform li").count() == 3  # which takes none
    visit.until("() => document.getElementById('status').textContent.startsWith('3 rankings')")
    asked = len(visit.asked)
    page.fill("#seed", "null")
    assert "seed: expected a whole number" in alert()
    page.wait_for_timeout(300)
    assert len(visit.asked) == asked  # or the server would choose one, and the draw would count


@pytest.mark.slow
def test_a_server_that_went_away_is_told_of(visit: Visit, directory: Path) -> None:
    with served(Settings(model=directory, threads=1)) as server:
        visit.open(server, user="bob-3")
    visit.page.click("#again")
    visit.page.wait_for_selector("#alert:not([hidden])")
    assert visit.page.locator("#alert").inner_text() == "The server cannot be reached."


@pytest.mark.slow
def test_the_page_waits_for_a_model_that_is_being_loaded(visit: Visit, server: Server) -> None:
    told = []

    def not_yet(route: Any) -> None:
        told.append(route.request.url)
        if len(told) > 1:
            route.continue_()
            return
        error = {"message": "the model is being loaded", "code": "not_ready", "retry_after_s": 1}
        route.fulfill(status=503, json={"error": error})

    visit.page.route("**/explorer/about", not_yet)
    visit.page.goto(server.url)
    visit.page.wait_for_selector("#alert:not([hidden])")
    words = visit.page.locator("#alert").inner_text()
    assert words == "the model is being loaded. Try again in 1 s."
    visit.wait()
    assert visit.page.locator("#alert").is_hidden()
    assert len(told) == 2


@pytest.mark.slow
def test_a_fallback_is_named(visit: Visit, directory: Path) -> None:
    with served(Settings(model=directory, threads=1, fallback=fr.Uniform())) as server:
        visit.open(server, user="nobody")
        facts = visit.page.locator("#ranking-deterministic dl").inner_text().split("\n")
        assert facts[-2:] == ["fallback", "uniform"]
    assert visit.complaints == []


@pytest.mark.slow
def test_of_many_changes_the_last_is_shown(visit: Visit, server: Server) -> None:
    visit.open(server, user="bob-3")
    visit.page.focus("#temperature-slider")
    for _ in range(20):
        visit.page.keyboard.press("ArrowRight")
        visit.page.wait_for_timeout(30)
    for _ in range(5):
        visit.page.click("#again")
    assert visit.page.locator("#temperature").input_value() == "10"
    visit.until("() => location.hash.includes('temperature=10&')")
    visit.says(f"seed {visit.page.locator('#seed').input_value()}")
    last = visit.asked[-len(fr.INFERENCE_TYPES) :]
    assert {row["seed"] for row in last} == {visit.hash()["seed"]}
    assert {row.get("temperature", 10) for row in last} == {10}
    assert visit.complaints == []


@pytest.mark.slow
def test_what_is_explored_is_left_out_of_evaluations(
    visit: Visit, directory: Path, tmp_path: Path
) -> None:
    settings = Settings(model=directory, threads=1, log_directory=tmp_path / "log")
    with served(settings) as server:
        visit.open(server, user="bob-3")
        visit.page.click("#again")
        visit.wait()
        explored = -1
        while explored != len(visit.asked):  # a busy machine begins late
            explored = len(visit.asked)
            visit.page.wait_for_timeout(1000)
            visit.wait()
        assert explored >= 2 * len(fr.INFERENCE_TYPES)
        assert all(re.fullmatch(r"\d+", row["seed"]) for row in visit.asked)
        for j in range(5):
            assert server.get("/invocations", {"user_id": f"ann-{j + 1}"})[0] == 200
    sources = [
        bool(own) for batch in LogReader(tmp_path / "log") for own in batch.caller_seed.tolist()
    ]
    assert sorted(sources) == [False] * 5 + [True] * explored


@pytest.mark.sampled
@pytest.mark.parametrize("width", [320, 700, 1280, 1900])
def test_nothing_is_wider_than_the_window(visit: Visit, server: Server, width: int) -> None:
    visit.page.set_viewport_size({"width": width, "height": 800})
    visit.open(server, user="ann-1", ids=1)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_the_picture(visit: Visit, tmp_path: Path) -> None:
    """FASTRANK_PICTURE=docs/images/explorer.png makes the one that the README shows."""
    model(hostile=False).save(tmp_path / "model")
    with served(Settings(model=tmp_path / "model", threads=1)) as server:
        visit.open(server, user="ann-7", seed=4, temperature=0.3, epsilon=0.2)
        picture = visit.page.screenshot()
    assert len(picture) > 20_000
    if "FASTRANK_PICTURE" in os.environ:
        image = pytest.importorskip("PIL.Image").open(io.BytesIO(picture))
        image.quantize(96).save(os.environ["FASTRANK_PICTURE"], optimize=True)
    assert visit.complaints == []


def test_what_clients_may_not_choose_is_not_there(visit: Visit, directory: Path) -> None:
    may = ("inference_type", "seed", "temperature")
    stated = tuple(map(parse_stated, ("deterministic", GUMBEL)))
    settings = Settings(model=directory, threads=1, clients_may=may, allow_policies=stated)
    with served(settings) as server:
        page = visit.page
        state = {"user": "bob-3", "seed": 5, "k": 3, "epsilon": 0.5, "score": "dot + 1"}
        page.goto(f"{server.url}/#{urlencode(state)}")
        visit.wait(2)
        assert page.locator("section.ranking").count() == 2
        hidden = {name: not page.locator(f"#{name}").is_visible() for name in PARAMETERS}
        assert hidden == {name: name != "temperature" for name in PARAMETERS}
        for name in ("k", "score", "params", "rules"):
            assert not page.locator(f"#{name}").is_visible()
        assert {name for row in visit.asked for name in row} == {"user_id", *may}
        assert page.locator(f"#ranking-{GUMBEL} li").count() == 10
        page.goto("about:blank")
    assert visit.complaints == []


@pytest.mark.sampled
@pytest.mark.parametrize("name", ["seed", "inference_type"])
def test_a_page_that_may_not_choose_what_it_needs_asks_for_nothing(
    visit: Visit, directory: Path, name: str
) -> None:
    may = tuple(each for each in FIELDS if each != name)
    with served(Settings(model=directory, threads=1, clients_may=may)) as server:
        visit.page.goto(server.url)
        visit.page.wait_for_selector("#alert:not([hidden])")
        assert f"does not let clients set {name} (" in visit.page.locator("#alert").inner_text()
        assert not visit.page.locator("#controls").is_visible()
        assert visit.asked == []
        visit.page.goto("about:blank")
    assert visit.complaints == []
