import itertools
import json
import os
import random
import re
import signal
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import full_disk

from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.runs import Journal, read_json, replacing, replacing_folder, write_json

# Line separators of Unicode, which str.splitlines would break at, and everything else that JSON must keep.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(["\u2028", "a\nb", "\r\n", "\x85"])
rows = st.lists(st.dictionaries(texts, texts | st.integers() | st.none(), max_size=3), max_size=6)


@pytest.fixture
def blocked(tmp_path):
    """A path that nobody can write, root included: its folder is a file."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "x.json"


def one_line(raised: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(raised.value)
    assert "\n" not in message
    return message


def fail_midway(path: Path) -> None:
    path.write_text("half")
    raise OSError("midway")


def test_a_file_appears_whole_with_the_ending_of_its_name_while_it_is_written(tmp_path):
    target = tmp_path / "new" / "folder" / "v.safetensors"
    with replacing(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".safetensors"
        temporary.write_text("content")
        assert not target.exists()
    assert target.read_text() == "content"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_permissions_are_those_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "x.json", 1)
        with replacing_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.json").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "x.json"
    write_json(target, {"old": 1})
    with pytest.raises(OSError, match="midway"), replacing(target) as temporary:
        fail_midway(temporary)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(target, {"new": object()})
    assert list(tmp_path.iterdir()) == [target]
    assert read_json(target) == {"old": 1}


def test_a_folder_is_replaced_whole_and_only_when_complete(tmp_path):
    target = tmp_path / "checkpoint"
    with replacing_folder(target) as temporary:
        (temporary / "old").write_text("1")
    with pytest.raises(OSError, match="midway"), replacing_folder(target) as temporary:
        fail_midway(temporary / "half")
    assert [path.name for path in target.iterdir()] == ["old"]
    with replacing_folder(target) as temporary:
        assert temporary.parent == tmp_path
        (temporary / "new").write_text("3")
        assert (target / "old").exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_place_that_cannot_be_written_is_one_line(blocked):
    with pytest.raises(InputError) as raised:
        write_json(blocked, {})
    assert re.fullmatch(f"cannot write {blocked}: .+; name a folder that you may write to", one_line(raised))
    with pytest.raises(InputError) as raised, replacing_folder(blocked):
        pytest.fail("the block ran")
    assert re.fullmatch(f"cannot write {blocked}: .+; name a folder that you may write to", one_line(raised))


def test_a_journal_that_cannot_be_written_is_one_line(blocked):
    assert Journal(blocked).read() == []
    with pytest.raises(InputError, match="cannot write") as raised:
        Journal(blocked).append([{"a": 1}])
    assert str(blocked) in one_line(raised)


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"old": 1})
    with full_disk(2000), pytest.raises(InputError) as raised:
        write_json(tmp_path / "x.json", ["new"] * 2000)
    assert one_line(raised) == f"cannot write {tmp_path / 'x.json'}: File too large; make room or name another place"
    assert list(tmp_path.iterdir()) == [tmp_path / "x.json"]
    assert read_json(tmp_path / "x.json") == {"old": 1}


def test_a_full_disk_cuts_a_journal_in_a_line_that_is_forgotten(tmp_path):
    journal = Journal(tmp_path / "rows.jsonl")
    journal.append([{"a": "0" * 500}])
    with full_disk(1000), pytest.raises(InputError) as raised:
        journal.append([{"b": "1" * 200}, {"c": "2" * 900}])
    assert one_line(raised) == f"cannot write {journal.path}: File too large; make room or name another place"
    assert journal.path.stat().st_size == 1000
    assert journal.read() == [{"a": "0" * 500}, {"b": "1" * 200}]
    journal.append([{"c": "2" * 900}])
    assert journal.read() == [{"a": "0" * 500}, {"b": "1" * 200}, {"c": "2" * 900}]


def test_a_journal_is_cut_before_the_first_row_that_is_not_wanted(tmp_path):
    journal = Journal(tmp_path / "rows.jsonl")
    journal.keep_while(lambda row: False)
    assert not journal.path.exists()
    journal.append({"step": step} for step in (1, 2, 2, 3, 1))
    with journal.path.open("a") as file:
        file.write('{"step": ')
    journal.keep_while(lambda row: row["step"] <= 2)
    assert journal.read() == [{"step": 1}, {"step": 2}, {"step": 2}]
    journal.keep_while(lambda row: True)
    assert list(journal.rows()) == [{"step": 1}, {"step": 2}, {"step": 2}]


def test_a_kill_leaves_no_half_of_a_folder(tmp_path):
    target, names = tmp_path / "checkpoint", [str(number) for number in range(30)]
    rng = random.Random(0)
    found = 0
    for _ in range(12):
        child = os.fork()
        if not child:
            try:
                for content in itertools.count():
                    with replacing_folder(target) as temporary:
                        for name in names:
                            (temporary / name).write_text(str(content))
            finally:
                os._exit(1)
        time.sleep(rng.uniform(0.01, 0.04))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        if target.exists():
            found += 1
            assert sorted(path.name for path in target.iterdir()) == sorted(names)
            assert len({(target / name).read_text() for name in names}) == 1
    assert found > 6


def test_a_folder_where_the_file_should_go_is_one_line(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(InputError, match="cannot write") as raised:
        write_json(tmp_path / "x.json", {})
    assert str(tmp_path / "x.json") in one_line(raised)
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_file_where_the_folder_should_go_is_one_line_and_stays(tmp_path):
    (tmp_path / "checkpoint").write_text("mine")
    with pytest.raises(InputError, match="cannot write") as raised, replacing_folder(tmp_path / "checkpoint"):
        pass
    assert str(tmp_path / "checkpoint") in one_line(raised)
    assert (tmp_path / "checkpoint").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_json_is_read_back_and_the_rest_is_named(tmp_path):
    write_json(tmp_path / "x.json", {"ü": [1, None, "\u2028"]})
    assert read_json(tmp_path / "x.json") == {"ü": [1, None, "\u2028"]}
    with pytest.raises(MissingInputError) as missing:
        read_json(tmp_path / "absent.json")
    assert one_line(missing) == f"{tmp_path / 'absent.json'}: no such file"
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(InputError) as broken:
        read_json(tmp_path / "half.json")
    assert one_line(broken).startswith(f"{tmp_path / 'half.json'} is not JSON: ")


def journal_in(tmp_path_factory: pytest.TempPathFactory) -> Journal:
    return Journal(tmp_path_factory.mktemp("journal") / "rows.jsonl")


@settings(max_examples=40, deadline=None)  # each example waits for the disk
@given(rows, rows)
def test_a_journal_gives_back_what_was_appended(tmp_path_factory, first, second):
    journal = journal_in(tmp_path_factory)
    assert journal.read() == []
    journal.append(first)
    journal.append(second)
    assert journal.read() == [*first, *second]
    assert journal.path.read_bytes().count(b"\n") == len(first) + len(second)


@settings(max_examples=40, deadline=None)
@given(rows.filter(bool), st.data())
def test_a_journal_cut_anywhere_goes_on_after_its_last_complete_line(tmp_path_factory, written, data):
    journal = journal_in(tmp_path_factory)
    journal.append(written)
    whole = journal.path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1), label="bytes kept")
    journal.path.write_bytes(whole[:cut])
    complete = whole[:cut].count(b"\n")
    assert journal.read() == written[:complete]
    journal.append(written[complete:])
    assert journal.path.read_bytes() == whole


def test_a_row_that_is_no_json_leaves_the_journal_as_it_was(tmp_path):
    journal = Journal(tmp_path / "rows.jsonl")
    journal.append([{"a": 1}])
    with pytest.raises(TypeError):
        journal.append([{"b": 2}, {"c": object()}])
    assert journal.read() == [{"a": 1}]


@pytest.mark.parametrize("damage", ["{ damaged }", "[1]", '"text"'])
def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_lost(tmp_path, damage):
    path: Path = tmp_path / "rows.jsonl"
    content = json.dumps({"a": 1}) + f"\n{damage}\n" + json.dumps({"b": 2}) + "\n"
    path.write_text(content)
    with pytest.raises(InputError, match="line 2") as raised:
        Journal(path).read()
    assert str(path) in one_line(raised)
    assert path.read_text() == content
