import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_pipeline import graded_problem

from steerlift.records.errors import InputError
from steerlift.scoring.plugins import group_rewards, load_reward
from steerlift.scoring.rewards import math_reward, reward

MATH = "steerlift.scoring.rewards:math_reward"


@pytest.fixture(autouse=True)
def _modules_of_the_user(tmp_path, monkeypatch):
    """The working directory of a user, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def write(path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_default_is_the_reward_of_each_grade():
    graded = graded_problem(right=2, count=4, formatted=3)
    assert load_reward(MATH) is math_reward
    assert math_reward(graded) == [reward(grade) for grade in graded.grades] == [1.2, 1.2, 0.2, -0.5]
    assert group_rewards([(MATH, math_reward)], graded) == [1.2, 1.2, 0.2, -0.5]


def test_a_module_in_the_working_directory(tmp_path):
    write(tmp_path / "my_rewards.py", "def short(graded):\n    return [-len(c.text) for c in graded.completions]\n")
    graded = graded_problem(right=1, count=2)
    assert load_reward("my_rewards:short")(graded) == [-len(c.text) for c in graded.completions]


def test_a_module_in_a_package_of_the_working_directory(tmp_path):
    write(tmp_path / "mine" / "rewards" / "length.py", "def zero(graded): return [0] * len(graded.completions)\n")
    assert load_reward("mine.rewards.length:zero")(graded_problem(1, 3)) == [0, 0, 0]


def test_an_installed_module_is_not_hidden_by_a_file_of_the_same_name(tmp_path):
    write(tmp_path / "colorsys.py", "raise RuntimeError('the wrong one')\n")
    assert load_reward("colorsys:rgb_to_hls").__module__ == "colorsys"


def test_the_console_script_finds_the_working_directory_too(tmp_path):
    """It has the folder of the script on its path, not the working directory: as with python -P."""
    write(tmp_path / "my_rewards.py", "def one(graded): return [1.0]\n")
    script = "from steerlift.scoring.plugins import load_reward; print(load_reward('my_rewards:one')(None))"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[1.0]\n", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("length", "reward 'length': expected package.module:function, such as steerlift.scoring.rewards:math_reward"),
        (":length", "reward ':length': expected package.module:function, such as steerlift.scoring.rewards:math_reward"),
        ("rewards:", "reward 'rewards:': expected package.module:function, such as steerlift.scoring.rewards:math_reward"),
        (
            "absent.rewards:length",
            "reward absent.rewards:length: there is no module absent here or among the installed packages; "
            "expected package.module:function",
        ),
        (
            "steerlift.absent:length",
            "reward steerlift.absent:length: there is no module steerlift.absent here or among the installed packages; "
            "expected package.module:function",
        ),
        (
            "wants:length",
            "reward wants:length: importing wants raised ModuleNotFoundError: No module named 'nowhere'; "
            "expected package.module:function",
        ),
        (
            "broken:length",
            "reward broken:length: importing broken raised RuntimeError: first line; expected package.module:function",
        ),
        (
            "unwritten:length",
            "reward unwritten:length: importing unwritten raised SyntaxError: '(' was never closed (unwritten.py, line 1); "
            "expected package.module:function",
        ),
        (
            "steerlift.scoring.rewards:absent",
            "reward steerlift.scoring.rewards:absent: module steerlift.scoring.rewards has no "
            "absent; name one of its functions",
        ),
        (
            "steerlift.scoring.rewards:FORMAT_REWARD",
            "reward steerlift.scoring.rewards:FORMAT_REWARD: FORMAT_REWARD is of type float, expected a function",
        ),
    ],
)
def test_a_name_that_names_no_function_is_one_line(tmp_path, name, message):
    write(tmp_path / "wants.py", "import nowhere\n")
    write(tmp_path / "broken.py", "raise RuntimeError('first line\\nsecond line')\n")
    write(tmp_path / "unwritten.py", "def length(\n")
    with pytest.raises(InputError) as raised:
        load_reward(name)
    assert str(raised.value) == message


def test_rewards_of_several_functions_add_up():
    graded = graded_problem(right=1, count=3)
    functions = [(MATH, math_reward), ("a:b", lambda graded: (0.1, 0.1, 0.1)), ("a:c", lambda graded: [True, 0, -1])]
    assert group_rewards(functions, graded) == pytest.approx([2.3, 0.3, -0.7])


def test_tensors_and_arrays_are_numbers_too():
    graded = graded_problem(right=1, count=2)
    functions = [("a:b", lambda graded: np.array([0.5, 1.0])), ("a:c", lambda graded: torch.tensor([0.25, 0.5]))]
    rewards = group_rewards(functions, graded)
    assert rewards == [0.75, 1.5]
    assert all(type(value) is float for value in rewards)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 numbers, expected 2, one per completion"),
        ([1.0, 2.0, 3.0], "returned 3 numbers, expected 2, one per completion"),
        ([], "returned 0 numbers, expected 2, one per completion"),
        (None, "returned None, expected 2 numbers, one per completion"),
        (1.0, "returned 1.0, expected 2 numbers, one per completion"),
        ([1.0, None], "returned [1.0, None], expected 2 numbers, one per completion"),
        (["good", "bad"], "returned ['good', 'bad'], expected 2 numbers, one per completion"),
        ([1.0, float("nan")], "returned nan, expected finite numbers"),
        ([float("-inf"), 1.0], "returned -inf, expected finite numbers"),
    ],
)
def test_what_is_no_reward_names_the_function(returned, message):
    graded = graded_problem(right=1, count=2)
    with pytest.raises(InputError) as raised:
        group_rewards([(MATH, math_reward), ("mine:odd", lambda graded: returned)], graded)
    assert str(raised.value) == f"reward mine:odd {message}"


def test_a_function_sees_problem_prompt_completions_and_grades():
    graded = replace(graded_problem(right=1, count=2), prompt="Q")
    seen = []
    group_rewards([("a:b", lambda graded: seen.append(graded) or [0, 0])], graded)
    assert seen == [graded]
