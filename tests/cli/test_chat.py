"""`triform chat`: by a pipe, from Python, and at a pseudo-terminal."""

from __future__ import annotations

import codecs
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from generate.conftest import LINES, built, decoder_only, encoder_decoder

from triform import hub
from triform.cli import run
from triform.generate import Sampling
from triform.generate.chat import Chat
from triform.text import Tokenizer, train_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    special = ("[PAD]", "[UNK]", "[BOS]", "[EOS]", "<|im_start|>", "<|im_end|>")
    return train_tokenizer(LINES * 4, kind="byte-bpe", vocab_size=330, special_tokens=special)


@pytest.fixture(scope="module")
def chatty(tokenizer: Tokenizer) -> Tokenizer:
    again = Tokenizer(tokenizer.backend, tokenizer.roles)
    again.chat_template = TEMPLATE
    return again


@pytest.fixture(scope="module")
def folders(tokenizer: Tokenizer, chatty: Tokenizer, tmp_path_factory: Any) -> dict[str, str]:
    root: Path = tmp_path_factory.mktemp("models")
    hub.save(built(decoder_only(330)), chatty, root / "chat")
    hub.save(built(decoder_only(330)), tokenizer, root / "plain")
    hub.save(built(encoder_decoder(330)), tokenizer, root / "answers")
    return {name: str(root / name) for name in ("chat", "plain", "answers")}


def piped(monkeypatch: Any, capsys: Any, *lines: str, arguments: list[str]) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(line + "\n" for line in lines).encode())))
    code = run(["chat", *arguments, "--max-new-tokens", "12", "--temperature", "0"])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("kind", ["chat", "plain", "answers"])
def test_piped_messages_are_answered(kind: str, folders: dict[str, str], monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    lines = ["话说天下", "", '"""', "The quick", 'brown fox"""', "one \\", "two", f"/save {file}", "/exit", "never said"]
    code, out, _ = piped(monkeypatch, capsys, *lines, arguments=[folders[kind]])
    assert code == 0
    said = json.loads(file.read_text("utf-8"))["messages"]
    assert [m["content"] for m in said[::2]] == ["话说天下", "The quick\nbrown fox", "one \ntwo"]
    assert [m["role"] for m in said] == ["user", "assistant"] * 3
    shown = "".join(m["content"] for m in said[1::2])
    assert [c for c in shown if c.isprintable()] == [c for c in out if c.isprintable()]


def test_the_history_is_read(chatty: Tokenizer) -> None:
    model = built(decoder_only(330))
    with Chat(model, chatty, Sampling(max_new_tokens=8), "分久必合") as talk:
        talk.ask("话说")
        second = talk.ask("天下").text
        read, forgotten = talk._ids()
    assert not forgotten
    expected = [{"role": "system", "content": "分久必合"}, *talk.messages]
    assert read == chatty.encode_chat(expected)
    with Chat(model, chatty, Sampling(max_new_tokens=8)) as other:
        assert other.ask("天下").text != second


def test_retry_undo_reset_and_settings(chatty: Tokenizer) -> None:
    with Chat(built(decoder_only(330)), chatty, Sampling(max_new_tokens=8, temperature=1.0, seed=1)) as talk:
        with pytest.raises(ValueError, match="nothing has been said yet"):
            talk.retry()
        first = talk.ask("话说").text
        assert talk.retry().text != first
        assert len(talk.messages) == 2
        talk.set("temperature=0")
        talk.set("stop=。")
        assert (talk.sampling.temperature, talk.sampling.stop) == (0, ("。",))
        wrongs = {"temperature=-1": "temperature: expected", "warmth=1": "expected one of max_new_tokens", "x": "got 'x'"}
        for wrong, message in wrongs.items():
            with pytest.raises(ValueError, match=message):
                talk.set(wrong)
        assert talk.undo() == "话说"
        talk.ask("天下")
        talk.reset()
        assert talk.messages == []


def test_what_no_longer_fits_is_left_out_and_what_never_fits_refused(chatty: Tokenizer) -> None:
    with Chat(built(decoder_only(330, learned=120)), chatty, Sampling(max_new_tokens=20)) as talk:
        forgotten = [talk.ask("话说天下大势").forgotten for _ in range(6)]
        assert forgotten[0] == 0
        assert forgotten[-1] > 0
        before = list(talk.messages)
        with pytest.raises(ValueError, match="there is room for"):
            talk.ask("话说天下大势" * 40)
        assert talk.messages == before


def test_conversations_are_loaded(folders: dict[str, str], monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    file.write_text(json.dumps({"system": "s", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
    arguments = [folders["chat"], "--load", str(file)]
    again = tmp_path / "again.json"
    code, _, _ = piped(monkeypatch, capsys, "c", f"/save {again}", arguments=arguments)
    assert code == 0
    saved = json.loads(again.read_text("utf-8"))
    assert saved["system"] == "s"
    assert [m["content"] for m in saved["messages"]][:3] == ["a", "b", "c"]
    for broken in ("[]", "{", '{"messages": [{"role": "user", "content": 1}]}', '{"messages": [{"role": "boss", "content": "x"}]}'):
        file.write_text(broken)
        code, _, err = piped(monkeypatch, capsys, "c", arguments=arguments)
        assert code == 2
        assert "expected a conversation that /save wrote" in err


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (["/what"], [], "no command is named /what; /help lists them"),
        (["/save"], [], "/save: expected a file's name"),
        (["hi"], ["--system", "x"], "system: expected a model with a chat template"),
        (["hi"], ["--top-p", "2"], "top_p: expected"),
    ],
)
def test_mistakes_get_one_line(
    lines: list[str], arguments: list[str], message: str, folders: dict[str, str], monkeypatch: Any, capsys: Any
) -> None:
    code, _, err = piped(monkeypatch, capsys, *lines, arguments=[folders["plain"], *arguments])
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_help_and_settings_are_shown(folders: dict[str, str], monkeypatch: Any, capsys: Any) -> None:
    _, out, _ = piped(monkeypatch, capsys, "/help", "/set", "/set top_k=5", "/set", arguments=[folders["plain"]])
    assert "/retry" in out
    assert "top_k=0\n" in out
    assert "top_k=5\n" in out


class Terminal:
    """A command at a pseudo-terminal."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        command = [sys.executable, "-c", "from triform.cli import main; main()", *arguments]
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=os.environ | {"TERM": "dumb"}, close_fds=True,
            preexec_fn=_own_terminal,
        )  # fmt: skip
        os.close(slave)
        self.seen = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may come in two parts

    def wait_for(self, text: str, seconds: float = 90) -> str:
        """What came, up to a text. Raises AssertionError when it does not come."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come; there was {self.seen[-2000:]!r}"
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.seen += self._decoder.decode(os.read(self.master, 65536))
                except OSError:
                    assert text in self.seen, self.seen[-2000:]
        before, self.seen = self.seen.split(text, 1)
        return before

    def wait_for_more(self, seconds: float = 90) -> None:
        """Wait until a character came after what was waited for, beside those that steer the terminal."""
        end = time.monotonic() + seconds
        while not re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]|\s", "", self.seen):
            assert time.monotonic() < end, "nothing came"
            if select.select([self.master], [], [], 1)[0]:
                self.seen += self._decoder.decode(os.read(self.master, 65536))

    def interrupt(self, text: str) -> None:
        """Ctrl-C until a text comes: one that arrives before the line editor waits for keys is heard with the next key only."""
        for seconds in (2, 5, 80):
            self.say("\x03")
            try:
                self.wait_for(text, seconds)
                return
            except AssertionError:
                if seconds == 80:
                    raise

    def say(self, text: str) -> None:
        os.write(self.master, text.encode())


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_terminal_where_an_answer_is_stopped_and_the_talk_goes_on(folders: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    terminal = Terminal("chat", folders["chat"], "--max-new-tokens", "100000", "--temperature", "0")
    try:
        terminal.wait_for("/help lists the commands")
        terminal.wait_for("› ")
        terminal.interrupt("/exit or Ctrl-D leaves")  # at the prompt it does not leave
        terminal.wait_for("› ")
        terminal.say("话说天下大势\n")
        terminal.wait_for("话说天下大势\r\n")
        terminal.wait_for_more()
        terminal.say("\x03")
        terminal.wait_for("(stopped)")
        terminal.wait_for("› ")
        terminal.say("/what\n")
        terminal.wait_for("no command is named /what")
        terminal.wait_for("› ")
        terminal.say("/set max_new_tokens=5\n")
        terminal.wait_for("› ")
        terminal.say("second\n")
        terminal.wait_for("(cut at 5 tokens")
        terminal.wait_for("› ")
        terminal.say(f"/save {file}\n")
        terminal.wait_for("4 messages written")
        terminal.wait_for("› ")
        terminal.say("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.master)
    said = json.loads(file.read_text("utf-8"))["messages"]
    assert [m["content"] for m in said[::2]] == ["话说天下大势", "second"]
