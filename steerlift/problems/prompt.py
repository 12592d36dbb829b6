"""Prompts: the system prompt, the chat messages of a problem and their token ids, for every kind of chat template."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

from steerlift.records.errors import InputError
from steerlift.records.types import Problem

SYSTEM_PROMPT = (
    "Solve the problem. First think step by step inside <think> and </think>, then give only the final answer inside"
    " <answer> and </answer>, in this order: <think>your reasoning</think><answer>your answer</answer>. Keep the reasoning"
    " short: it may be cut off before you reach the answer."
)

Message = dict[str, str]

# GSM8K marks its sums for a calculator (8 * 2 = <<8*2=16>>16) and ends in a line with the result (#### 16).
_CALCULATOR_MARK = re.compile(r"<<[^<>\n]*=[^<>\n]*>>")
_RESULT_LINE = re.compile(r"^####[^#\n]*\Z", re.MULTILINE)


class ChatTokenizer(Protocol):
    """What is needed of a tokenizer; every one of transformers has it."""

    @property
    def chat_template(self) -> Any:  # noqa: ANN401 - a string, several by name, or None
        """The chat template, if the model has one."""

    @property
    def bos_token(self) -> Any:  # noqa: ANN401 - a string or None
        """The token that begins every text, if the model has one."""

    def apply_chat_template(self, conversation: list[Message], *, tokenize: bool, add_generation_prompt: bool) -> Any:  # noqa: ANN401
        """The conversation as one text, where `tokenize` is false."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The text's token ids."""


def build_messages(problem: str, system_prompt: str = SYSTEM_PROMPT, few_shot: Sequence[Problem] = ()) -> list[Message]:
    """System message (left out when empty), a user and an assistant turn per worked example, then the problem.

    A worked example is shown in the format the system prompt asks for. Raises InputError for one without a solution.
    """
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for example in few_shot:
        messages.append({"role": "user", "content": example.problem})
        messages.append({"role": "assistant", "content": worked_example(example)})
    return [*messages, {"role": "user", "content": problem}]


def worked_example(example: Problem) -> str:
    """The solution and the answer inside the tags; a solution that already has them stays as it is."""
    solution = clean_solution(example)
    if not solution:
        raise InputError(
            f"few_shot: got {example.unique_id or example.problem!r} without a solution; expected a worked example;"
            " take another problem"
        )
    if "<think>" in solution and "</answer>" in solution:
        return solution
    return f"<think>{solution}</think><answer>{example.answer}</answer>"


def clean_solution(example: Problem) -> str:
    """The solution without what GSM8K adds for machines, calculator marks and the last line; empty where there is none."""
    return _RESULT_LINE.sub("", _CALCULATOR_MARK.sub("", example.solution).strip()).strip()


def render_prompt(
    tokenizer: ChatTokenizer, problem: str, system_prompt: str = SYSTEM_PROMPT, few_shot: Sequence[Problem] = ()
) -> str:
    """The text of a prompt as the model sees it, special tokens included, up to where the answer begins.

    The tokenizer's chat template is used once, with its generation prompt. Where it takes no system role (Gemma 2), the
    system prompt goes into the first user turn; where it cuts the reasoning out of worked examples (Qwen3), these go into
    the user turn as well. A template that says nothing of the system message at all is left to do so: the model was
    trained that way. A tokenizer without a template gets

        <bos>SYSTEM PROMPT\\n\\nProblem: ...\\n\\nSolution: <worked example>\\n\\nProblem: ...\\n\\nSolution:

    Raises InputError when the template takes none of these.
    """
    if not tokenizer.chat_template:
        return (tokenizer.bos_token or "") + _plain(problem, system_prompt, few_shot)
    from jinja2 import TemplateError

    refusal = "it cuts the worked examples"
    for layout in _layouts(problem, system_prompt, few_shot):
        try:
            text: str = tokenizer.apply_chat_template(layout, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            refusal = str(error)
            continue
        if all(worked_example(example) in text for example in few_shot):
            return text
    raise InputError(
        f"chat template: got a refusal of every message layout ({refusal}); expected one that takes a user message;"
        " use another checkpoint or repair its template"
    )


def encode_prompt(
    tokenizer: ChatTokenizer, problem: str, system_prompt: str = SYSTEM_PROMPT, few_shot: Sequence[Problem] = ()
) -> list[int]:
    """The token ids of `render_prompt`. The text holds its BOS already, so the tokenizer adds no special tokens."""
    return tokenizer.encode(render_prompt(tokenizer, problem, system_prompt, few_shot), add_special_tokens=False)


def few_shot_note(few_shot: Sequence[Problem]) -> str:
    """What a line about prompts goes on with: ` with 2 worked examples before each problem`; nothing where there are none."""
    count = len(few_shot)
    return f" with {count} worked example{'s' if count > 1 else ''} before each problem" if count else ""


def _layouts(problem: str, system_prompt: str, few_shot: Sequence[Problem]) -> list[list[Message]]:
    """The ways to say the same, the one that chat models are trained on first."""
    turns = build_messages(problem, system_prompt, few_shot)
    layouts = [turns, _system_folded(turns)]
    if few_shot:
        one_turn = build_messages(_plain(problem, "", few_shot), system_prompt)
        layouts += [one_turn, _system_folded(one_turn)]
    return layouts


def _system_folded(messages: list[Message]) -> list[Message]:
    """The messages with the system text at the head of the first user turn."""
    if messages[0]["role"] != "system":
        return messages
    system, first, *others = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *others]


def _plain(problem: str, system_prompt: str, few_shot: Sequence[Problem]) -> str:
    parts = [system_prompt] if system_prompt else []
    parts += [f"Problem: {example.problem}\n\nSolution: {worked_example(example)}" for example in few_shot]
    return "\n\n".join([*parts, f"Problem: {problem}\n\nSolution:"])
