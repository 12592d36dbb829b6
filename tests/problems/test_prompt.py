import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from steerlift.problems.embedded import embedded_problems
from steerlift.problems.prompt import (
    SYSTEM_PROMPT,
    build_messages,
    clean_solution,
    encode_prompt,
    few_shot_note,
    render_prompt,
    worked_example,
)
from steerlift.records.errors import InputError
from steerlift.records.types import Problem

SPECIAL = ["<s>", "</s>", "<|start|>", "<|end|>"]

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
NO_SYSTEM_ROLE = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<|start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>model\n{% endif %}"
)
CUTS_OLD_REASONING = (
    "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] if m.role == 'assistant' else m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
IGNORES_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n' }}{% endif %}"
)
# SmolLM2's own: a system message of its own where there is none.
SMOL = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|end|>\n' }}{% endif %}"
    "{{'<|start|>' + message['role'] + '\n' + message['content'] + '<|end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
REFUSES_ALL = "{{ raise_exception('only tools') }}"

SHOT = Problem("What is 1+1?", "2", "1+1=2")


def tokenizer(template, bos="<s>"):
    """A byte-level tokenizer that, like Llama's and Gemma's, puts a BOS before whatever it is told to encode fully."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(SPECIAL + alphabet)}, merges=[]))
    core.add_special_tokens(SPECIAL)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token="</s>", chat_template=template)


def test_messages():
    assert build_messages("Why?") == [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": "Why?"},
    ]
    assert build_messages("Why?", "", [SHOT]) == [
        {"role": "user", "content": "What is 1+1?"},
        {"role": "assistant", "content": "<think>1+1=2</think><answer>2</answer>"},
        {"role": "user", "content": "Why?"},
    ]


def test_the_system_prompt_asks_for_the_tags_in_order_and_warns_of_the_cut():
    places = [SYSTEM_PROMPT.index(part) for part in ("<think>", "</think>", "<answer>", "</answer>", "cut off")]
    assert places == sorted(places)


def test_a_solution_with_tags_is_not_tagged_again():
    assert worked_example(Problem("p", "2", " <think>a</think><answer>2</answer>\n")) == "<think>a</think><answer>2</answer>"


def test_gsm8k_is_shown_without_what_is_meant_for_machines():
    solution = "He has $40 / 10 = $<<40/10=4>>4.\nSo 4 + 1,076 = <<4+1076=1080>>1,080 are left.\n#### 1,080"
    assert worked_example(Problem("How much?", "1080", solution)) == (
        "<think>He has $40 / 10 = $4.\nSo 4 + 1,076 = 1,080 are left.</think><answer>1080</answer>"
    )


@pytest.mark.parametrize(
    "solution",
    [
        r"We get $\boxed{\frac{1}{2}}$.",
        "1 << 2 and 4 >> 3",
        "<<a, b>>",
        "#### First\nWe add.\n#### Then\nWe divide.",
        "Number #### 5",
    ],
)
def test_other_solutions_are_shown_as_they_are(solution):
    assert clean_solution(Problem("p", "5", f" {solution}\n")) == solution


@pytest.mark.parametrize("solution", [" ", "#### 2", "<<1+1=2>>\n#### 2\n"])
def test_a_worked_example_needs_work(solution):
    with pytest.raises(InputError) as error:
        build_messages("p", few_shot=[Problem("What?", "2", solution)])
    assert str(error.value) == ("few_shot: got 'What?' without a solution; expected a worked example; take another problem")


def test_the_template_is_used_once_with_its_generation_prompt():
    assert render_prompt(tokenizer(CHAT), "Why?", "Be short.", [SHOT]) == (
        "<s><|start|>system\nBe short.<|end|>\n"
        "<|start|>user\nWhat is 1+1?<|end|>\n"
        "<|start|>assistant\n<think>1+1=2</think><answer>2</answer><|end|>\n"
        "<|start|>user\nWhy?<|end|>\n"
        "<|start|>assistant\n"
    )


@pytest.mark.parametrize("template", [CHAT, NO_SYSTEM_ROLE, None])
def test_one_beginning_and_no_end(template):
    made = tokenizer(template)
    ids = encode_prompt(made, "What is $x$ if <|x|> = é?", few_shot=[SHOT])
    assert ids[0] == made.bos_token_id
    assert ids.count(made.bos_token_id) == 1
    assert made.eos_token_id not in ids
    assert made.decode(ids) == render_prompt(made, "What is $x$ if <|x|> = é?", few_shot=[SHOT])


@pytest.mark.parametrize("few_shot", [(), (SHOT, SHOT)])
def test_ids_are_those_of_the_tokenizers_own_way(few_shot):
    made = tokenizer(CHAT)
    own = made.apply_chat_template(build_messages("Why?", few_shot=few_shot), tokenize=True, add_generation_prompt=True)
    assert encode_prompt(made, "Why?", few_shot=few_shot) == own["input_ids"]


def test_no_system_role_puts_the_system_prompt_into_the_first_user_turn():
    assert render_prompt(tokenizer(NO_SYSTEM_ROLE), "Why?", "Be short.", [SHOT]) == (
        "<s><|start|>user\nBe short.\n\nWhat is 1+1?<|end|>\n"
        "<|start|>model\n<think>1+1=2</think><answer>2</answer><|end|>\n"
        "<|start|>user\nWhy?<|end|>\n"
        "<|start|>model\n"
    )


def test_reasoning_that_a_template_would_cut_goes_into_the_user_turn():
    assert render_prompt(tokenizer(CUTS_OLD_REASONING), "Why?", "Be short.", [SHOT]) == (
        "<|start|>system\nBe short.<|end|>\n"
        "<|start|>user\nProblem: What is 1+1?\n\nSolution: <think>1+1=2</think><answer>2</answer>\n\n"
        "Problem: Why?\n\nSolution:<|end|>\n"
        "<|start|>assistant\n"
    )
    assert render_prompt(tokenizer(CUTS_OLD_REASONING), "Why?", "") == "<|start|>user\nWhy?<|end|>\n<|start|>assistant\n"


def test_a_template_may_leave_the_system_message_out():
    assert render_prompt(tokenizer(IGNORES_SYSTEM), "Compute 5+7-3.") == "Compute 5+7-3.\n"


def test_no_template():
    assert render_prompt(tokenizer(None), "Why?", "Be short.", [SHOT]) == (
        "<s>Be short.\n\nProblem: What is 1+1?\n\nSolution: <think>1+1=2</think><answer>2</answer>\n\n"
        "Problem: Why?\n\nSolution:"
    )
    assert render_prompt(tokenizer(None, bos=None), "Why?", "") == "Problem: Why?\n\nSolution:"


def test_smollm2_gets_a_turn_for_every_worked_example():
    shots = [Problem("What is 2+2?", "4", "2+2=<<2+2=4>>4\n#### 4"), *embedded_problems("train", 1)]
    assert render_prompt(tokenizer(SMOL), "Why?", "Be short.", shots) == (
        "<|start|>system\nBe short.<|end|>\n"
        "<|start|>user\nWhat is 2+2?<|end|>\n"
        "<|start|>assistant\n<think>2+2=4</think><answer>4</answer><|end|>\n"
        f"<|start|>user\n{shots[1].problem}<|end|>\n"
        f"<|start|>assistant\n{shots[1].solution}<|end|>\n"
        "<|start|>user\nWhy?<|end|>\n"
        "<|start|>assistant\n"
    )


def test_the_note_counts_the_worked_examples():
    notes = [few_shot_note([SHOT] * count) for count in range(3)]
    assert notes == ["", " with 1 worked example before each problem", " with 2 worked examples before each problem"]


def test_a_template_that_takes_nothing():
    with pytest.raises(InputError) as error:
        render_prompt(tokenizer(REFUSES_ALL), "Why?")
    assert str(error.value) == (
        "chat template: got a refusal of every message layout (only tools); expected one that takes a user message; use"
        " another checkpoint or repair its template"
    )


def test_no_transformers_needed():
    code = "import sys, steerlift.problems.prompt; print({'torch', 'transformers', 'jinja2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
