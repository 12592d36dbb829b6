import io
import sys

import pytest

from steerlift.records import progress as progress_module
from steerlift.records.progress import progress, say


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the test moves: a list of one number, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_every_ten_seconds_and_at_the_end(clock, capsys):
    with progress("training", 30) as bar:
        for step in range(30):
            clock[0] += 4.0
            bar.advance(1, f"loss {step}" if step % 2 else "")
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    # A line once 10 s have gone by: at every third step of 4 s; a note stays until the next one. Then the last line.
    assert lines[:3] == ["training: 3/30  12 s  loss 1", "training: 6/30  24 s  loss 5", "training: 9/30  36 s  loss 7"]
    assert len(lines) == 11
    assert lines[-1] == "training: 30/30  120 s  loss 29"
    assert not set(err) & {"\r", "\x1b"}


def test_quick_work_is_one_line(clock, capsys):
    with progress("grading", 3) as bar:
        bar.advance(2)
        clock[0] += 1.2
        bar.advance()
    assert capsys.readouterr().err == "grading: 3/3  1 s\n"


def test_work_that_fails_does_not_claim_to_be_done(capsys):
    with pytest.raises(ZeroDivisionError), progress("grading", 3) as bar:
        bar.advance(1 // 0)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_on_stderr(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("training", 2) as bar:
        bar.advance(1, "loss 0.5")
        bar.advance()
    shown = terminal.getvalue()
    assert "training" in shown
    assert "2/2" in shown
    assert "loss 0.5" in shown
    assert capsys.readouterr().out == ""


def test_what_is_said_goes_to_stderr(capsys):
    say("one line")
    assert capsys.readouterr() == ("", "one line\n")


def test_of_several_processes_the_first_speaks_and_others_of_themselves_alone(monkeypatch, capsys):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        say("seen by all")
        say("out of memory", of_one_process=True)
    assert capsys.readouterr().err.splitlines() == ["seen by all", "out of memory", "process 1: out of memory"]
