"""`steerlift play` as a user meets it: the real command, the real page, a real Chromium."""

import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import torch
from browser import AVAILABLE, DOWN, ENTER, ESCAPE, RIGHT, TAB, chromium
from launched import environment, launch
from small_pipeline import TEXTS, Silent, problem_file, saved, tokenizer, trained, untrained

from steerlift.problems.prompt import encode_prompt
from steerlift.steering.models import hidden_size
from steerlift.steering.vectors import SteeringVectors
from steerlift.training.supervised import SupervisedOptions, supervised

HOSTILE = "<img src=x onerror=document.title=1><script>"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not AVAILABLE, reason="no Chromium here: apt-get install chromium chromium-driver"),
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(folder: Path, model, port: int, *flags: str) -> list[str]:
    SteeringVectors({1: 0.1 * torch.randn(hidden_size(model))}).save(folder / "vectors.safetensors")
    options = {
        "base_model_name": saved(folder / "base", model),
        "steering_vectors_path": folder / "vectors.safetensors",
        "problems": problem_file(folder),
        "sweep_completions": 2,
        "max_completion_length": 12,
        "seed": 1,
        "port": port,
    }
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return ["-m", "steerlift", "play", *given, "--no-open_browser", *flags]


@contextmanager
def playing(folder: Path, model, *flags: str):
    """The page's URL, while the command runs; Ctrl-C must end it as a user expects."""
    port = free_port()
    arguments = [sys.executable, *command(folder, model, port, *flags)]
    # NiceGUI would take itself for the part of a test that runs in it.
    variables = {name: value for name, value in environment().items() if not name.startswith("PYTEST")}
    with (folder / "stderr").open("w+") as said:
        process = subprocess.Popen(arguments, stdout=said, stderr=said, cwd=folder, env=variables)
        try:
            end = time.monotonic() + 60
            while f"playing at http://127.0.0.1:{port}" not in (text := (folder / "stderr").read_text()):
                assert process.poll() is None, text
                assert time.monotonic() < end, text
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 130
            text = (folder / "stderr").read_text()
            assert text.endswith("stopped\n"), text
            assert "Traceback" not in text
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def parrot(text):
    """A model that answers a text with the same text."""
    model = untrained()
    answer = [*tokenizer().encode(text, add_special_tokens=False), tokenizer().eos_token_id]
    batch = [(encode_prompt(tokenizer(), text), answer)]
    supervised(model, lambda _: batch, SupervisedOptions(100, 1e-2, warmup_steps=5), Silent())
    return model


def wait_until_ready(browser):
    browser.wait("document.querySelector('.page textarea') && window.socket && window.socket.connected")


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A page whose model knows the problems and ends its answers."""
    with playing(tmp_path_factory.mktemp("short"), trained("base")) as url:
        yield url


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A page whose model never ends, so that it has to be stopped."""
    model = untrained()
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer().eos_token_id] = 0  # never the likeliest
    flags = ("--temperature", "0", "--max_completion_length", "20000")
    with playing(tmp_path_factory.mktemp("endless"), model, *flags) as url:
        yield url


def test_by_keyboard_alone_a_problem_is_typed_steered_and_graded(short):
    with chromium() as browser:
        browser.open(short)
        wait_until_ready(browser)
        browser.press(TAB, TAB)  # over the list of problems, into the text
        assert browser.ask("document.activeElement.tagName") == "TEXTAREA"
        browser.retype(TEXTS[0])
        browser.press(TAB)
        browser.retype("7")
        browser.press(TAB)
        assert browser.ask("document.activeElement.closest('[role=slider]').getAttribute('aria-label')") == "Steering weight"
        assert browser.ask("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        before = browser.text(".weight-label")
        browser.press(RIGHT, RIGHT)
        browser.wait_for("Steering weight 1.10", ".weight-label")
        assert before == "Steering weight 1.00"
        browser.press(ENTER)
        browser.wait_for("Steered, weight 1.10", ".answer.steered")
        browser.wait_for("Done.", ".status")
        for kind in ("base", "steered"):
            written, verdict = browser.text(f".answer.{kind} .text"), browser.text(f".answer.{kind} .verdict")
            assert "<answer>" in written
            assert verdict.startswith("right" if "7</answer>" in written else "wrong")
            shades = browser.ask(f"[...document.querySelectorAll('.answer.{kind} .token')].map(e => e.title)")
            assert all(re.fullmatch(r"\d+\.\d %", shade) for shade in shades)
        assert len(browser.text(".tried .row-tried").splitlines()) == 4
        assert browser.ask("document.querySelectorAll('.chart circle.base').length") == 1
        assert browser.complaints() == []


def test_a_picked_problem_and_a_sweep_on_a_phone_without_network(short):
    with chromium(375, 812) as browser:
        browser.open(short)
        wait_until_ready(browser)
        first = browser.ask("document.querySelector('textarea').value")
        browser.click(".q-select")
        browser.wait("document.querySelector('.q-menu .q-item')")
        browser.press(DOWN, ENTER)
        browser.wait(f"document.querySelector('textarea').value !== {first!r}")
        assert browser.ask("document.querySelector('textarea').value") in TEXTS
        browser.button("Sweep")
        browser.wait_for("Sweeping", ".status")
        browser.wait_for("Done.", ".status")
        assert browser.ask("document.querySelectorAll('.chart circle.steered:not(.lenient)').length") == 9
        assert browser.ask("innerWidth") == 375
        assert browser.ask("document.documentElement.scrollWidth") <= 375
        asked = browser.requests()
        assert short in asked
        assert all(url.startswith((short, short.replace("http:", "ws:"), "data:")) for url in asked), asked
        assert browser.complaints() == []


def test_answers_stream_and_escape_stops_them(endless):
    with chromium() as browser:
        browser.open(endless)
        wait_until_ready(browser)
        browser.button("Run")
        tokens = "document.querySelectorAll('.answer.steered .token').length"
        seen = browser.wait(tokens)
        assert browser.wait(f"{tokens} > {seen}")
        assert browser.ask("document.querySelectorAll('.answer.base .token').length") > 0
        assert browser.text(".answer.base .verdict") == ""
        browser.press(ESCAPE)
        browser.wait_for("Stopped.", ".status", seconds=5)
        stopped_at = browser.ask(tokens)
        time.sleep(0.5)
        assert browser.ask(tokens) == stopped_at
        assert browser.text(".tried") == ""  # half an answer is none


def test_two_tabs_take_turns_and_a_reload_begins_anew(endless):
    with chromium() as browser:
        browser.open(endless)
        wait_until_ready(browser)
        first = browser.current_tab()
        browser.button("Run")
        browser.wait("document.querySelectorAll('.answer.base .token').length > 3")
        second = browser.tab()
        browser.open(endless)
        wait_until_ready(browser)
        browser.button("Run")
        browser.wait_for("Waiting: the model is busy with another tab.", ".status")
        assert browser.text(".answer .text").strip() == ""
        browser.switch(first)
        browser.post("/refresh")  # its answer is given up, so the other tab's turn comes
        wait_until_ready(browser)
        assert browser.text(".answer .text").strip() == ""
        browser.switch(second)
        browser.wait("document.querySelectorAll('.answer.base .token').length > 3")
        browser.press(ESCAPE)
        browser.wait_for("Stopped.", ".status")


def test_what_a_model_writes_and_a_user_types_is_text(tmp_path):
    with (
        playing(tmp_path, parrot(HOSTILE), "--temperature", "0", "--max_completion_length", "200") as url,
        chromium() as browser,
    ):
        browser.open(url)
        wait_until_ready(browser)
        browser.click("textarea")
        browser.retype(HOSTILE)
        browser.button("Run")
        browser.wait_for("Done.", ".status")
        assert HOSTILE in browser.text(".answer.base .text")
        assert browser.ask("document.title") == "steerlift play"
        assert browser.ask("document.querySelectorAll('.page script, .page img').length") == 0
        assert HOSTILE in browser.text(".tried")


def test_a_page_of_another_site_gets_nothing(short):
    with httpx2.Client(trust_env=False) as client:
        assert client.get(short).status_code == 200
        assert client.get(short, headers={"Host": "evil.example"}).status_code == 403
        assert client.get(short, headers={"Origin": "http://evil.example"}).status_code == 403


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = launch(*command(tmp_path, trained("base"), port), cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == f"error: --port {port}: it cannot be used (Address already in use); name another\n"
