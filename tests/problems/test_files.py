import gzip
import json

import pytest

from steerlift.problems.embedded import embedded_problems
from steerlift.problems.files import read_problems, write_problems
from steerlift.records.errors import InputError, MissingInputError
from steerlift.records.types import Problem

GOOD = {"problem": "What is 1+1?", "answer": "2"}
WHOLE = GOOD | {"solution": "1+1=2", "subject": "Algebra", "level": 3, "unique_id": "a/1"}


def lines(*records):
    return "".join((record if isinstance(record, str) else json.dumps(record)) + "\n" for record in records)


@pytest.fixture
def write(tmp_path):
    def write(content, name="mine.jsonl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write


def test_every_field_arrives(write):
    assert read_problems(write(lines(WHOLE))) == [Problem("What is 1+1?", "2", "1+1=2", "Algebra", 3, "a/1")]


def test_optional_fields_have_defaults_and_the_line_is_the_id(write):
    path = write(gzip.compress(lines(GOOD, "", GOOD).encode()), "mine.jsonl.gz")
    assert [problem.unique_id for problem in read_problems(path)] == ["mine:1", "mine:3"]
    assert read_problems(path)[0] == Problem("What is 1+1?", "2", "", "unknown", None, "mine:1")


def test_other_line_ends_and_a_byte_order_mark_are_no_trouble(write):
    text = json.dumps(GOOD | {"problem": "one\u2028two\x85three"}, ensure_ascii=False) + "\r\n"
    problems = read_problems(write(b"\xef\xbb\xbf" + text.encode() * 2))
    assert [problem.problem for problem in problems] == ["one\u2028two\x85three"] * 2


def test_the_problem_stays_as_it_is_and_the_answer_loses_white_space(write):
    (problem,) = read_problems(write(lines(GOOD | {"problem": " a \n", "answer": " \\frac{7}{15}\n"})))
    assert (problem.problem, problem.answer) == (" a \n", "\\frac{7}{15}")


@pytest.mark.parametrize(("level", "read"), [(None, None), (5, 5), ("Level 3", 3), ("3", 3), ("Level ?", None), (0, 0)])
def test_levels(write, level, read):
    assert read_problems(write(lines(GOOD | {"level": level})))[0].level == read


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            GOOD | {"type": "x"},
            "got the unknown field 'type'; expected only problem, answer, solution, subject, level, unique_id;"
            " rename or remove it",
        ),
        ({"problem": "a"}, "got no field 'answer'; expected problem and answer in every record; add it"),
        ({"answer": "a"}, "got no field 'problem'; expected problem and answer in every record; add it"),
        (GOOD | {"answer": " \n"}, "got an empty answer; expected some text; fill it in or remove the record"),
        (GOOD | {"problem": ""}, "got an empty problem; expected some text; fill it in or remove the record"),
        (GOOD | {"answer": 2}, "got answer = 2; expected a string; put it in quotes"),
        (GOOD | {"answer": None}, "got answer = null; expected a string; put it in quotes"),
        (GOOD | {"subject": ["x"]}, 'got subject = ["x"]; expected a string; put it in quotes'),
        (GOOD | {"solution": {}}, "got solution = {}; expected a string; put it in quotes"),
        (GOOD | {"level": "hard"}, 'got level = "hard"; expected a whole number, "Level 3" or null; correct it'),
        (GOOD | {"level": 2.5}, 'got level = 2.5; expected a whole number, "Level 3" or null; correct it'),
        (GOOD | {"level": True}, 'got level = true; expected a whole number, "Level 3" or null; correct it'),
        (GOOD | {"problem": "\ud800"}, "got half a surrogate pair in problem; expected Unicode text; repair it"),
        ("[1, 2]", "got [1, 2]; expected a JSON object with problem and answer"),
        ("5", "got 5; expected a JSON object with problem and answer"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_with_its_line(write, record, message):
    path = write(lines(GOOD, record))
    with pytest.raises(InputError) as error:
        read_problems(path)
    assert str(error.value) == f"{path} line 2: {message}"


@pytest.mark.parametrize("line", ['{"problem": "a"', "What is 1+1?", "[" * 100_000, "9" * 5_000])
def test_a_line_that_is_not_json(write, line):
    path = write(lines(GOOD, "", line))
    with pytest.raises(InputError) as error:
        read_problems(path)
    message = str(error.value)
    assert message.startswith(f"{path} line 3: got ")
    assert message.endswith("expected one JSON object")
    assert "\n" not in message
    assert len(message) < 400


def test_bytes_that_are_not_utf8(write):
    path = write(lines(GOOD).encode() + b'{"problem": "caf\xe9"}\n')
    with pytest.raises(InputError) as error:
        read_problems(path)
    assert str(error.value) == f"{path} line 2: got bytes that are not UTF-8; save the file as UTF-8"


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda _: b"plain", lambda data: data[:12] + b"x" * 20]
)
def test_a_damaged_gzip_file(write, damage):
    path = write(damage(gzip.compress(lines(*[WHOLE] * 50).encode())), "mine.jsonl.gz")
    with pytest.raises(InputError, match=r"is not a whole gzip file \(.*\); write it again or name it \.jsonl$"):
        read_problems(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_records(write, content):
    path = write(content)
    with pytest.raises(InputError) as error:
        read_problems(path)
    assert str(error.value) == (f"{path}: got a file without a record; expected one JSON object with a problem per line")


def test_a_missing_file(tmp_path):
    with pytest.raises(MissingInputError) as error:
        read_problems(tmp_path / "none.jsonl")
    assert str(error.value) == (f"{tmp_path}/none.jsonl: no such file; expected JSON lines of problems (.jsonl or .jsonl.gz)")


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.gz"])
def test_what_is_written_is_read_back_as_it_was(tmp_path, name):
    path = tmp_path / "new" / name
    problems = [
        Problem(" two lines\n\u2028é \\frac{1}{2}\x85\t", "7", "1+1", "Algebra", 3, "a/1"),
        Problem("without anything else", "\\frac12"),
        Problem("level 0", "x", level=0, unique_id="a/1"),
        *embedded_problems("dev", 5),
    ]
    write_problems(path, iter(problems))
    assert read_problems(path) == problems
    before = path.read_bytes()
    write_problems(path, read_problems(path))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "mine.jsonl"
    write_problems(path, [Problem("a", "1")])
    before = path.read_bytes()
    with pytest.raises(InputError, match="got no problem to write; expected at least one"):
        write_problems(path, [])
    with pytest.raises(InputError, match=f"cannot write {path}/b.jsonl: "):
        write_problems(path / "b.jsonl", [Problem("a", "1")])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
