"""Prompt styles: the published strings character for character, and what training and evaluation share."""

import pytest

from prefopt.errors import ConfigError
from prefopt.records import Message
from prefopt.text.styles import Styled, find_style, style_names

Q = "What is {1} + \\frac{1}{2}?"
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\nWhat is {1} + \\frac{1}{2}?\n\n### Response:"
)
BOXED = "What is {1} + \\frac{1}{2}?\nPlease reason step by step, and put your final answer within \\boxed{}."
DEEPSEEK = f"User: {BOXED}\n\nAssistant:"
QWEN2 = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"{BOXED}<|im_end|>\n<|im_start|>assistant\n"
)
THINK = "Let's think step by step."
BLOCKS = (
    "<|system|><|text|>%s<|endofblock|><|endofmessage|><|user|><|text|>What is {1} + \\frac{1}{2}?"
    "<|endofblock|><|endofmessage|><|assistant|>"
)

PUBLISHED = {
    "alpaca-official": f"{ALPACA} {THINK}",
    "alpaca-cot-step": f"{ALPACA}\n{THINK}\nStep 1: ",
    "deepseek-math": DEEPSEEK,
    "deepseek-math-step": f"{DEEPSEEK} {THINK}\nStep 1: ",
    "qwen2-boxed": QWEN2,
    "qwen2-boxed-step": f"{QWEN2}{THINK}\nStep 1: ",
    "scdpo": BLOCKS % "",
    "scdpo-system": BLOCKS % "Below is a math problem. Please solve it step by step.",
}


def joined(styled: Styled) -> str:
    """What the model reads, for a style whose prompt is a text."""
    assert isinstance(styled.prompt, str)
    return styled.prompt + styled.prefix


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_evaluation_prompts(name):
    assert joined(find_style(name).ask(Q)) == PUBLISHED[name]


def test_alpaca_differs_from_the_published_evaluation_in_one_character():
    asked = joined(find_style("alpaca").ask(Q))
    assert asked == f"{ALPACA}\n{THINK}"
    trained = joined(find_style("alpaca").with_steps(Q, f"{THINK}\nStep 1:"))
    assert trained.startswith(asked)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("alpaca-cot-prefix", f"{ALPACA}\n{THINK}\nStep 1: a\nStep 2:"),
        ("qwen2-boxed-prefix", f"{QWEN2}{THINK}\nStep 1: a\nStep 2:"),
    ],
)
def test_prefix_styles_continue_a_solution_with_or_without_its_opening(name, expected):
    for prefix in ("Step 1: a\nStep 2:", f"{THINK}\nStep 1: a\nStep 2:"):
        assert joined(find_style(name).ask(Q, prefix)) == expected


@pytest.mark.parametrize(
    ("name", "frame", "join"),
    [("alpaca", ALPACA, "\n"), ("deepseek-math", DEEPSEEK, " "), ("qwen2-boxed", QWEN2, "")],
)
def test_training_contexts(name, frame, join):
    steps = f"{THINK}\nStep 1: a\nStep 2:"
    assert find_style(name).with_steps(Q, steps) == (frame, join + steps)
    assert find_style(name).with_steps(Q, "") == (frame, "")


@pytest.mark.parametrize(
    ("name", "content", "prefix"),
    [
        ("chat", Q, ""),
        ("chat-step", Q, f"{THINK}\nStep 1:"),
        ("chat-boxed", BOXED, ""),
        ("chat-boxed-step", BOXED, f"{THINK}\nStep 1:"),
    ],
)
def test_chat_styles_are_one_user_message(name, content, prefix):
    assert find_style(name).ask(Q) == ((Message("user", content),), prefix)


def test_a_question_that_quotes_placeholders_stays_as_it_is():
    odd = "Write {question} and {system} in braces"
    assert find_style("plain").ask(odd) == (odd, "")
    assert odd in find_style("scdpo").with_system("S {question}").ask(odd).prompt


def test_system_texts():
    prompt = find_style("scdpo").with_system("Solve.").ask("Q").prompt
    assert isinstance(prompt, str)
    assert prompt.startswith("<|system|><|text|>Solve.<|endofblock|>")
    with pytest.raises(ConfigError, match="style 'alpaca' has no system text"):
        find_style("alpaca").with_system("Solve.")


def test_every_style_is_found_by_its_name_and_says_what_it_is():
    assert len(style_names()) == len(set(style_names())) == 16
    for name in style_names():
        style = find_style(name)
        assert style.name == name and style.about and "{question}" in style.frame


@pytest.mark.parametrize(
    ("name", "prefix", "message"),
    [
        (
            "qwen2-boxed-prefix",
            "",
            "there is no prefix; add a column 'prefix', or use style 'qwen2-boxed'",
        ),
        ("alpaca-cot-prefix", "", "or use style 'alpaca'"),
        ("alpaca", "Step 1:", "style 'alpaca' has no place for an unfinished solution"),
    ],
)
def test_prefixes_that_do_not_fit_are_refused(name, prefix, message):
    with pytest.raises(ConfigError, match=message):
        find_style(name).ask(Q, prefix)


def test_unknown_styles_name_the_nearest():
    with pytest.raises(
        ConfigError, match="unknown prompt style 'qwen2-box': did you mean 'qwen2-boxed'"
    ):
        find_style("qwen2-box")
