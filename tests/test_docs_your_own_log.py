"""docs/how-to/your-own-log.md: every block of it runs, in order, and says what the page says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("pandas")
pytest.importorskip("polars")
pytest.importorskip("pyarrow")
pytest.importorskip("scipy")
pytest.importorskip("click")
pytest.importorskip("rich")
from commands import run

from fastrank.eventlog.owncolumns import Columns

PAGES = Path(__file__).parents[1] / "docs" / "how-to"
PAGE = (PAGES / "your-own-log.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.M | re.S)


def test_blocks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    said: list[str] = []
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    for language, code in BLOCKS:
        if language == "python":
            exec(compile(code, "docs/how-to/your-own-log.md", "exec"), names)
            said.append(capsys.readouterr().out)
        else:
            program, *arguments = shlex.split(code.replace("\\\n", ""))
            result = run(*arguments)
            assert (program, result.exit_code) == ("fastrank", 0), result.output
            said.append(result.stdout)
    first, missing, _, command, lists, broken, obp, _, vw, _, _, _, joined, arrays = said
    assert first.startswith("ok new would earn")
    assert "more than the logging policy" in first
    assert "no column named 'banners'; did you mean 'banner'?" in missing
    # By one leading estimator or another, as the rows suggest.
    values = [
        float(found[1])
        for each in (first, command, lists, obp, joined)
        if (found := re.search(r"new\s+would\s+earn\s+(\S+)", each))
    ]
    assert values == pytest.approx([values[0]] * 5, abs=0.005)
    assert "'propensity not in (0, 1]': 1" in broken
    assert "'row': 4, 'detail': 'p: 0.0'" in broken
    assert "first" in vw
    assert "uniform" in vw
    assert float(arrays.split()[1]) == pytest.approx(values[0], abs=0.005)


def test_every_argument_is_explained() -> None:
    table = PAGE[PAGE.index("| argument |") :].split("\n\n")[0]
    explained = {
        name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    elsewhere = {"propensity_of", "columns"}
    assert explained | elsewhere == {*Columns.__dataclass_fields__}
    assert "propensity_of" in PAGE
