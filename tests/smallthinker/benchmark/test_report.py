from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up_results import made_up

from smallthinker.benchmark.results import Results
from smallthinker.benchmark.summary import PART_NAMES, summarise
from smallthinker.benchmark.views.all_views import Views, check_folder, write_views
from smallthinker.benchmark.views.report import report_html
from smallthinker.benchmark.views.table import markdown
from smallthinker.errors import ResultsError


def fail(notice: str) -> None:
    raise AssertionError(notice)


def views(results: Results) -> Views:
    return write_views(results, fail)


HOSTILE = "</script></svg><img src=x onerror=alert(1)>&\"'\\1"


def with_names_of_markup(path: Path) -> Results:
    results = made_up(path)
    results.environment["model"]["name"] = results.environment["machine"]["cpu"] = HOSTILE
    results.environment["profiles"]["emmc"]["source"] = HOSTILE
    for row in results.of_kind("run"):
        row["profile"] = row["profile"].replace("emmc", HOSTILE)
    return results


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Views:
    """Once: figures take seconds."""
    return views(with_names_of_markup(tmp_path_factory.mktemp("drawn") / "results.jsonl"))


def test_everything_is_written_beside_the_results(drawn: Views) -> None:
    found, folder = drawn, drawn.files[0].parent
    names = ("decode-32", "time-32", "hits-32", "prefill-32", "experts-32")
    expected = {
        "report.html",
        "results.jsonl",
        "results.md",
        *(f"{n}.{kind}" for n in names for kind in ("png", "svg")),
    }
    assert {path.name for path in found.files} == expected == {path.name for path in folder.iterdir()}
    assert all(path.stat().st_size > 0 for path in found.files)
    check_folder(folder, [32], folder / "store", [], force=False)  # each is known again
    for path in (path for path in found.files if path.suffix != ".jsonl"):
        content = path.read_bytes()
        path.write_text("mine")
        with pytest.raises(ResultsError, match=re.escape(path.name)):
            check_folder(folder, [32], folder / "store", [], force=False)
        check_folder(folder, [32], folder / "store", [], force=True)
        path.write_bytes(content)
    assert len(found.summaries) == 3 * 2 * 2 and found.markdown.count("\n| ") == 1 + 3 * 2 * 2


def test_two_reports_of_the_same_results_are_the_same_bytes(drawn: Views, tmp_path: Path) -> None:
    second = views(with_names_of_markup(tmp_path / "results.jsonl"))
    for a, b in zip(drawn.files, second.files, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_nothing_of_the_results_becomes_markup(drawn: Views) -> None:
    page = drawn.files[0].read_text(encoding="utf-8")
    assert "<img" not in page and page.count("</script>") == 1
    assert "<img" not in (drawn.files[0].parent / "results.md").read_text(encoding="utf-8")


def test_the_page_refers_to_nothing_outside_itself(drawn: Views) -> None:
    page = drawn.files[0].read_text(encoding="utf-8")
    assert not re.search(r"<(img|link|iframe|object|embed|base)\b|<[^>]*\bsrc=|@import", page)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))


def test_without_matplotlib_the_table_is_written_and_one_line_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said: list[str] = []
    found = write_views(made_up(tmp_path / "results.jsonl"), said.append)
    assert [path.name for path in found.files] == ["results.jsonl", "results.md"]
    assert said == ["plots and the report need matplotlib: pip install 'smallthinker[bench]'"]


def test_results_without_a_single_run_say_why(tmp_path: Path) -> None:
    results = made_up(tmp_path / "results.jsonl")
    failed = {"kind": "failed", "memory_bytes": 1, "profile": "raw", "prompt_tokens": 32, "error": "below the floor"}
    results.rows = [failed]
    with pytest.raises(ResultsError, match="nothing could be measured: below the floor"):
        views(results)


def test_the_parts_of_a_token_add_up_to_its_time(tmp_path: Path) -> None:
    for summary in summarise(made_up(tmp_path / "results.jsonl", repeats=1)):
        assert tuple(summary.parts) == PART_NAMES
        assert sum(summary.parts.values()) == pytest.approx(1 / summary.decode.median + 0.001 / 16)


def test_a_browser_draws_the_charts_and_asks_for_nothing(drawn: Views) -> None:
    """Charts with shapes of some size, in light and dark; no request but the file itself; nothing on the console."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install '.[test]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs a Chromium on the PATH: apt-get install chromium")
    report = drawn.files[0].resolve().as_uri()
    requests: list[str] = []
    console: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"], timeout=0)
        context = browser.new_context(color_scheme="dark")
        context.set_default_timeout(0)  # clocks have no say: the machine may be busy
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: console.append(message.text))
        page.on("pageerror", lambda error: console.append(str(error)))
        page.goto(report)
        charts = page.eval_on_selector_all("figure svg", _MEASURE_CHARTS)
        surfaces = [page.evaluate(_SURFACE)]
        page.click("#theme")
        surfaces.append(page.evaluate(_SURFACE))
        cells = "[...document.querySelectorAll('table.figures tbody tr')].map(row => row.cells[1].textContent)"
        before = page.evaluate(cells)
        page.click("table.figures th:nth-child(2)")
        page.click("table.figures th:nth-child(2)")
        after = page.evaluate(cells)
        browser.close()
    assert requests == [report] and console == []
    assert len(charts) == 5
    for chart in charts:
        assert chart["width"] > 500 and chart["height"] > 100, chart
        assert chart["shapes"] > 20 and chart["tallest"] > 50 and chart["texts"] > 5 and chart["label"], chart
    assert surfaces[0] != surfaces[1]
    assert sorted(before) == sorted(after) and after == sorted(after, key=_mib, reverse=True)


_SURFACE = "getComputedStyle(document.querySelector('figure')).backgroundColor"
_MEASURE_CHARTS = """charts => charts.map(svg => {
  const box = svg.getBoundingClientRect();
  const shapes = [...svg.querySelectorAll('path, use')].map(shape => shape.getBoundingClientRect());
  const drawn = shapes.filter(shape => shape.width > 0 || shape.height > 0);
  return {width: box.width, height: box.height, shapes: drawn.length, texts: svg.querySelectorAll('text').length,
          tallest: Math.max(...drawn.map(shape => shape.height)), label: svg.getAttribute('aria-label')};
})"""


def _mib(text: Any) -> float:
    return float(text.split()[0])


def test_runs_on_a_busy_machine_are_told_of(tmp_path: Path) -> None:
    results = made_up(tmp_path / "results.jsonl")
    assert "busy" not in markdown(results, summarise(results))
    results.of_kind("run")[0]["others_cores"] = 1.25
    said = markdown(results, summarise(results))
    assert f"the machine was busy in 1 of {len(results.of_kind('run'))} runs: others took up to 1.2 of" in said


def test_the_cards_have_the_spread_of_their_runs(tmp_path: Path) -> None:
    results = made_up(tmp_path / "results.jsonl")
    page = report_html(results, summarise(results), [])
    assert len(re.findall(r'<p class="range">[\d.]+ to [\d.]+</p>', page)) == 3  # a share of a ceiling has none
