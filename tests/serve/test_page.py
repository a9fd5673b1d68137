"""The page in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, Page
from served import LABELS, Running, judge, random_writer, scripted_writer, serving, viewer

from triform import config

pytestmark = pytest.mark.slow
SAYS = "**分久必合**，合久必分。<img src=x onerror=alert(1)>\n\n1. one\n2. two"
LONG = "话说天下大势。" * 60


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def site() -> Iterator[Running]:
    models = (
        scripted_writer(lambda request: SAYS if request.sampling.seed != 7 else LONG, pause=0.004),
        random_writer("plain"),
        judge("judge", config.Classify(labels=3)),
        judge("vectors", config.Embed(pool="mean", normalize=True)),
        judge("filler", config.LanguageModel()),
        judge("tagger", config.ClassifyTokens(labels=3)),
        judge("reader", config.AnswerSpan()),
        viewer("seer", ["round", "square"]),
        viewer("chooser"),
    )
    models[1].tokenizer.chat_templates.clear()
    with serving(*models) as running:
        yield running


@pytest.fixture(params=["desktop", "phone"])
def page(request: pytest.FixtureRequest, chromium: Browser, site: Running) -> Iterator[Page]:
    phone = request.param == "phone"
    found = chromium.page(site.url, *((390, 844) if phone else (1280, 800)), phone=phone, dark=phone)
    found.run("(localStorage.clear(), sessionStorage.clear())")
    found.open(site.url)
    found.wait("document.querySelectorAll('#model option').length === 9")
    yield found
    assert found.errors == []
    assert [address for address in found.addresses if not address.startswith((site.url, "data:"))] == []


def choose(page: Page, model: str) -> None:
    page.run(f"(() => {{ const m = document.getElementById('model'); m.value = '{model}'; m.dispatchEvent(new Event('change')) }})()")


def ask(page: Page, text: str, answers: int = 1) -> None:
    page.click("#prompt")
    page.write(text)
    page.click("#go")
    page.wait(f"document.querySelectorAll('.theirs .figures').length === {answers}")


def test_a_conversation_streams_and_is_text(page: Page, site: Running) -> None:
    page.click("#prompt")
    page.write("话说")
    page.click("#go")
    page.wait("document.querySelector('.running .said')?.innerText.length > 2")
    page.wait("document.querySelector('.theirs .figures')")
    assert page.run("[...document.querySelectorAll('.theirs strong')].map(e => e.innerText)") == ["分久必合"]
    assert page.run("[...document.querySelectorAll('.theirs li')].map(e => e.innerText)") == ["one", "two"]
    assert "<img src=x onerror=alert(1)>" in page.text(".theirs .said")
    assert page.run("document.querySelectorAll('#log img').length") == 0
    ask(page, "又", 2)
    asked = site.models.by_name["scripted"].engine.asked[-1]  # type: ignore[union-attr]
    assert "分久必合" in site.models.by_name["scripted"].tokenizer.decode(asked.ids)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    page.open(site.url)
    page.wait("document.querySelectorAll('.theirs .figures').length === 2")  # a reload forgets nothing


def test_it_stops_and_tries_again(page: Page, site: Running) -> None:
    page.run("localStorage.setItem('triform.settings', JSON.stringify({seed: '7'}))")
    page.open(site.url)
    page.wait("document.querySelectorAll('#model option').length === 9")
    page.click("#prompt")
    page.write("a")
    page.click("#go")
    page.wait("document.querySelector('.running .said')?.innerText.length > 5")
    page.press("Escape") if page.run("innerWidth > 760") else page.click("#go")
    page.wait("document.querySelector('.stopped')")
    stopped = len(page.text(".theirs .said"))
    assert not site.models.by_name["scripted"].engine.live or page.run("new Promise(r => setTimeout(() => r(1), 200))")  # type: ignore[union-attr]
    assert not site.models.by_name["scripted"].engine.live  # type: ignore[union-attr]
    page.click(".theirs .icon.retry")
    page.wait(f"document.querySelector('.theirs .figures') && document.querySelector('.theirs .said').innerText.length > {stopped}", 40)
    assert not page.text(".stopped")


def test_tokens_tell_their_probabilities(page: Page) -> None:
    choose(page, "plain")
    ask(page, "话说天下")
    assert page.text(".theirs .said").startswith("话说天下")  # a text that goes on
    page.click(".theirs .icon.tokens")
    page.wait("document.querySelectorAll('.token').length > 3")
    page.run("document.querySelector('.token').focus()")
    page.wait("document.querySelectorAll('#tip .row').length >= 5 && !document.getElementById('tip').hidden")
    shares = page.run("[...document.querySelectorAll('#tip meter')].map(e => e.value)")
    assert shares == sorted(shares, reverse=True)
    page.press("ArrowRight")
    page.wait("document.activeElement === document.querySelectorAll('.token')[1]")


def test_it_speaks_both_languages_and_remembers(page: Page, site: Running) -> None:
    assert page.run("document.documentElement.lang") == "en"
    page.click("#language")
    assert page.run("document.documentElement.lang") == "zh-CN"
    assert "聊" in page.text("#hello")
    page.click("#theme-switch")
    theme = page.run("document.documentElement.dataset.theme")
    page.open(site.url)
    page.wait("document.querySelectorAll('#ideas button').length > 0")
    assert page.run("document.getElementById('prompt').placeholder") == "输入消息"
    assert page.run("document.documentElement.dataset.theme") == theme
    english, chinese = (page.run(f"import('/page/words.js').then(m => (m.speak('{name}'), 1))") for name in ("en", "zh"))
    assert english == chinese == 1


def test_models_that_judge(page: Page) -> None:
    choose(page, "filler")
    ask(page, "话说[MASK]下")
    assert page.run("document.querySelectorAll('.theirs .row').length") == 5
    assert page.run("document.querySelector('mark').innerText.length") >= 1
    choose(page, "judge")
    ask(page, "房间很干净")
    assert set(page.run("[...document.querySelectorAll('.theirs .row code')].map(e => e.innerText)")) == set(LABELS)
    choose(page, "vectors")
    ask(page, "分久必合")
    assert page.text(".wrong")
    page.run("document.getElementById('new-chat').click()")
    page.click("#prompt")
    page.write("分久必合\n合久必分")
    page.click("#go")
    page.wait("document.querySelectorAll('.theirs td').length === 4")
    assert page.run("document.querySelector('.theirs td').innerText") == "1.00"
    choose(page, "tagger")
    ask(page, "却说曹操引兵渡江")
    assert page.run("document.querySelector('.theirs .plain').innerText.replace(/ \\w+/g, '')").startswith("却说")
    choose(page, "reader")
    ask(page, "谁？\n却说曹操引兵渡江")
    assert page.run("document.querySelectorAll('.theirs .row').length") == 3


PICK = """(async () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 40, height: 30 });
  canvas.getContext("2d").fillRect(3, 4, 20, 10);
  const file = new File([await new Promise((done) => canvas.toBlob(done))], "square.png", { type: "image/png" });
  const chosen = new DataTransfer();
  chosen.items.add(file);
  const input = document.getElementById("file");
  input.files = chosen.files;
  input.dispatchEvent(new Event("change"));
})()"""


def test_pictures_are_judged(page: Page) -> None:
    choose(page, "seer")
    assert page.run("document.getElementById('prompt').hidden && !document.getElementById('pick').hidden")
    page.run(PICK)
    page.wait("document.querySelectorAll('.theirs .row').length === 2")
    assert page.run("document.querySelector('.mine img').naturalWidth") == 40
    assert "square.png" in page.text(".mine .said")
    choose(page, "chooser")
    page.click("#prompt")
    page.write("a square\na circle\na cat")
    page.run(PICK)
    page.wait("document.querySelectorAll('.theirs .row').length === 3")
    shares = page.run("[...document.querySelectorAll('.theirs meter')].map(e => e.value)")
    assert shares == sorted(shares, reverse=True)
    page.click(".theirs .icon.retry")
    page.wait("document.querySelectorAll('.theirs .row').length === 3 && document.querySelectorAll('.running').length === 0")
    choose(page, "plain")
    assert page.run("document.getElementById('pick').hidden && !document.getElementById('prompt').hidden")


def test_settings_reach_the_model(page: Page, site: Running) -> None:
    page.click("#open-settings")
    page.run(
        "(() => { const f = document.getElementById('settings-form').elements; f.temperature.value = 1.3; f.system.value = 'Be brief'; "
        "f.max_tokens.value = 9; f.temperature.dispatchEvent(new Event('input', {bubbles: true})) })()"
    )
    page.click("#close-settings")
    ask(page, "a")
    asked = site.models.by_name["scripted"].engine.asked[-1]  # type: ignore[union-attr]
    assert (asked.sampling.temperature, asked.sampling.max_new_tokens) == (1.3, 9)
    assert "Be brief" in site.models.by_name["scripted"].tokenizer.decode(asked.ids)


def test_the_api_is_shown(page: Page, site: Running) -> None:
    page.open(f"{site.url}/docs")
    page.wait("document.querySelectorAll('section').length > 10")
    assert "temperature" in page.text("#operations")


def test_a_key_is_asked_for(chromium: Browser) -> None:
    with serving(scripted_writer(SAYS), keys=("first-key",)) as server:
        page = chromium.page(server.url)
        page.wait("!document.getElementById('settings-panel').hidden")
        assert "API key" in page.text("#note")
        page.click("#key-form input")
        page.write("first-key")
        page.press("Enter")
        page.wait("document.querySelectorAll('#model option').length === 1")
        ask(page, "a")
