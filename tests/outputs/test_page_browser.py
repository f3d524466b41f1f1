"""The page in a real browser: it draws, leads to places, finds, and no name in a trace does harm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from counterpoint.commands.main import main
from outputs.browser import CHROMIUM, DRIVER, Browser
from writers.events import Event, FieldSpec
from writers.tracedat import Buffer, TraceFile

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
)

DATA = Path(__file__).parent.parent / "data" / "x86-busy"
LOADED = "document.documentElement.dataset.loaded"
RANGE = "return document.getElementById('tablenote').textContent"
HOSTILE = ["<script>hit()", "'\"><img src=x>", "\x1b[31mred", "a&lt;b</script>"[:15], "\u2028${hit()}"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with Browser.start(tmp_path_factory.mktemp("profile")) as started:
        started.size(1280, 900)
        started.requests()
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["view", str(DATA / "host.dat"), str(DATA / "guest.dat"), "-o", str(path), "--no-open"]) == 0
    return path


@pytest.fixture
def opened(browser, page) -> Browser:
    browser.log()
    browser.open(page.as_uri())
    browser.wait(LOADED)
    # jumps, no glides: what is looked at is the end
    browser.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    browser.run("document.getElementById('tablebox').open = true")
    return browser


def whole(browser: Browser) -> str:
    return browser.wait("document.getElementById('tablenote').textContent")


def changed(browser: Browser, before: str) -> str:
    browser.wait(f"document.getElementById('tablenote').textContent !== {before!r}", 10)
    return browser.run(RANGE)


def test_it_opens_draws_and_asks_for_nothing(opened, page):
    pixels = opened.run(
        "const c = document.getElementById('canvas');"
        "const d = c.getContext('2d').getImageData(200, 40, c.width - 210, c.height - 44).data;"
        "const s = new Set(); for (let i = 0; i < d.length; i += 4) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]);"
        "return s.size"
    )
    assert pixels > 8
    assert opened.log() == []
    asked = [url for url in opened.requests() if not url.startswith("chrome://")]
    assert set(asked) == {page.as_uri()}


def test_zoom_and_pan_by_mouse_wheel_and_keys(opened):
    seen = [whole(opened)]
    opened.run("document.getElementById('timeline').scrollIntoView()")
    x, y = opened.run(
        "const r = document.getElementById('canvas').getBoundingClientRect();"
        "return [Math.round(r.x + r.width / 2), Math.round(r.y + 60)]"
    )
    opened.run("document.getElementById('canvas').focus()")
    for act in (
        lambda: opened.key("+"),
        lambda: opened.wheel(x, y, -400),
        lambda: opened.drag(x, y, -120),
        lambda: opened.key("\ue014"),  # arrow right
        lambda: opened.run("document.getElementById('in').click()"),
        lambda: opened.run("document.getElementById('all').click()"),
    ):
        act()
        seen.append(changed(opened, seen[-1]))
    assert seen[-1] == seen[0] and len(set(seen)) == len(seen) - 1
    assert opened.log() == []


def test_the_worst_cases_and_the_witnesses_lead_to_their_places(opened):
    before = whole(opened)
    opened.run("document.querySelector('.case').open = true")
    opened.wait("document.querySelector('.case button.link')")
    opened.run("document.querySelector('.case button.link').click()")
    case = changed(opened, before)
    assert "at host stamp" in opened.run("return document.getElementById('where').textContent")
    opened.run("document.querySelector('#proof button.link').click()")
    witness = changed(opened, case)
    opened.run("document.querySelector('#proof svg a').dispatchEvent(new MouseEvent('click', {cancelable: true}))")
    changed(opened, witness)
    assert opened.log() == []


def test_search_finds_tasks_and_events(opened):
    for text in ("hosthog", "kvm_exit"):
        opened.run("document.getElementById('search').focus(); document.getElementById('search').value = ''")
        opened.key(*text)
        opened.wait("document.querySelectorAll('#found li').length > 0")
        opened.key("\ue007")
        opened.wait(f"document.getElementById('matches').textContent.includes('{text}')")
        assert "host stamp" in opened.wait("document.getElementById('where').textContent")
        opened.run("document.getElementById('clear').click()")
    assert opened.log() == []


def test_dark_light_and_reachable_by_keyboard(opened):
    before = opened.run("return getComputedStyle(document.body).backgroundColor")
    opened.run("const b = document.getElementById('theme'); b.click(); b.click()")
    assert opened.run("return getComputedStyle(document.body).backgroundColor") != before
    named = opened.run(
        "return [...document.querySelectorAll('button, input, canvas[tabindex], summary, [role=region], #proof svg a')]"
        ".filter(e => !(e.getAttribute('aria-label') || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert named == []
    assert opened.run("return document.querySelectorAll('#table tbody tr').length") > 0
    assert opened.run("return document.documentElement.scrollWidth <= innerWidth")


def test_hostile_names_do_no_harm(browser, tmp_path):
    char = FieldSpec("char", "next_comm", 16)
    switch = Event(
        24, "sched", "sched_switch",
        [FieldSpec("pid_t", "prev_pid"), FieldSpec("long", "prev_state"), FieldSpec("pid_t", "next_pid"), char],
    )  # fmt: skip
    file = TraceFile(events=[switch], clock="mono", cpu_count=1, cmdlines={8: "<b>\x1b[2J"})
    names = [*(name.encode() for name in HOSTILE), b"\xff\xfe<svg onload=h"]
    rows = [
        (1000 * n, file.payload(switch, n + 1, prev_pid=n + 1, next_pid=n + 2, next_comm=name))
        for n, name in enumerate(names * 20)
    ]
    buffer = Buffer()
    buffer.cpus[0] = file.stream(rows)
    file.buffers = [buffer]
    host = file.write(tmp_path / "<img src=x onerror=hit()>.dat")
    guest = file.write(tmp_path / "'\"><script>hit()<.dat")
    out = tmp_path / "page.html"
    assert main(["view", str(host), str(guest), "-o", str(out), "--no-open"]) == 1
    browser.log()
    browser.requests()
    browser.devtools("Page.addScriptToEvaluateOnNewDocument", source="window.hits = 0; window.hit = () => hits++")

    browser.open(out.as_uri())
    browser.wait(LOADED)
    browser.run("document.getElementById('tablebox').open = true; document.getElementById('search').value = '<'")
    browser.run("document.getElementById('search').dispatchEvent(new Event('input'))")
    browser.wait("document.querySelectorAll('#found li').length > 1")

    assert browser.run("return [hits, document.querySelectorAll('img, svg[onload], b[id]').length]") == [0, 0]
    assert browser.run("return document.getElementById('title').textContent").count("hit()") == 2
    assert "\x1b" not in browser.run("return document.documentElement.textContent")
    assert browser.log() == []
    assert [url for url in browser.requests() if not url.startswith("chrome://")] == [out.as_uri()]
