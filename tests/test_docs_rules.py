"""docs/explanation/rules.md: what it shows on real data, where they are, and its figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import fastrank as fr

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "explanation" / "rules.md").read_text(encoding="utf-8")
ANIME = ROOT.parent / "shared" / "data" / "anime"
BLOCKS = re.findall(r"^```python anime\n(.*?)^```", PAGE, re.M | re.S)


def test_there_are_blocks() -> None:
    assert len(BLOCKS) == 3
    for each in BLOCKS:
        compile(each, "docs/explanation/rules.md", "exec")


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the page's names are, after its last block."""
    names: dict[str, Any] = {"np": np, "fr": fr, "folder": ANIME}
    for code in BLOCKS:
        exec(compile(code, "docs/explanation/rules.md", "exec"), names)
    return names


@pytest.mark.skipif(not ANIME.is_dir(), reason=f"the anime data are not at {ANIME}")
class TestAnime:
    def test_genres_and_types(self, names: dict[str, Any]) -> None:
        page, titles = names["page"], names["titles"]
        assert len(page) == 10
        rows = [titles["item_id"].index(each) for each in page.item_ids.tolist()]
        genres = [names["genres"][row] for row in rows]
        first = [each[0] for each in genres]
        assert max(map(first.count, first)) <= 2
        every = [genre for each in genres for genre in each]
        assert max(map(every.count, every)) <= 6
        types = [titles["type"][row] for row in rows]
        assert all(len(set(types[i : i + 3])) > 1 for i in range(8))
        assert all(titles["members"][row] >= 1000 for row in rows)
        assert "Hentai" not in every

    def test_recency(self, names: dict[str, Any]) -> None:
        recent = names["recent"].item_ids
        titles = names["titles"]["item_id"]
        assert sum(titles.index(each) >= 6900 for each in recent.tolist()) >= 3

    def test_the_formula_without_the_cap(self, names: dict[str, Any]) -> None:
        """The page's figures, to what 500 lists can say."""
        low, middle, high = np.exp(np.quantile(names["off"], [0.1, 0.5, 0.9]))
        assert 6_000 < middle < 25_000
        assert 50 < low < 400
        assert 5e6 < high < 4e8
        assert min(names["off"]) > -1e-6  # never too large
