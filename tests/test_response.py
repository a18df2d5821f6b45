import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_prism.response import FormatFault, View, ends_with_answer, parse_response

VALID = "<caption>A cat.</caption><think>1 + 1 = 2.</think><answer>2</answer>"
C, T, A = "<caption>c</caption>", "<think>t</think>", "<answer>a</answer>"


def test_valid_response_gives_contents_and_views():
    response = parse_response(VALID)
    assert response.valid
    assert response.fault is None
    assert (response.caption, response.think, response.answer) == ("A cat.", "1 + 1 = 2.", "2")
    assert response.view_text(View.PERCEPTION) == "<caption>A cat.</caption>"
    assert response.view_text(View.REASONING) == "<think>1 + 1 = 2.</think><answer>2</answer>"


def test_white_space_around_blocks_is_allowed_and_stays_in_the_view():
    text = f" \n{C}\n\n<think> t\n</think> \t{A}\n"
    response = parse_response(text)
    assert response.think == "t"
    assert response.view_text(View.REASONING) == f"<think> t\n</think> \t{A}"
    assert [text[slice(*response.span(view))] for view in View] == [
        response.view_text(view) for view in View
    ]


@pytest.mark.parametrize(
    "content",
    ["1 < 2 and 3 > 2", "a\nb", "é ∞ 😀", "<b>bold</b>", "<Caption>", "< answer >", "\\boxed{7}"],
)
def test_text_that_is_not_a_tag_is_content(content):
    assert parse_response(f"<caption>{content}</caption>{T}{A}").caption == content


@pytest.mark.parametrize("text", [VALID, f"{C}{T}{A}\n", "no block, but </answer>"])
def test_a_text_that_ends_with_an_answer(text):
    assert ends_with_answer(text)


@pytest.mark.parametrize("text", ["", "The answer is 7.", C + T, VALID[:-1], VALID + " Done"])
def test_a_text_that_a_limit_may_have_cut(text):
    assert not ends_with_answer(text)


FAULTS = [
    ("", FormatFault.MISSING),
    ("The answer is 7.", FormatFault.MISSING),
    (T + A, FormatFault.MISSING),
    (C + A, FormatFault.MISSING),
    (C + T, FormatFault.MISSING),
    (C + T + "<answ", FormatFault.MISSING),
    (C + "<think>cut off by the token limit", FormatFault.UNCLOSED),
    (C + T + "<answer>a</answer", FormatFault.UNCLOSED),
    (T + C + A, FormatFault.ORDER),
    (A + T + C, FormatFault.ORDER),
    ("Sure! " + C + T + A, FormatFault.STRAY_TEXT),
    (C + "so" + T + A, FormatFault.STRAY_TEXT),
    (C + T + A + " Done.", FormatFault.STRAY_TEXT),
    (C + T + A + "<|im_end|>", FormatFault.STRAY_TEXT),
    (C + T + A + "\u200b", FormatFault.STRAY_TEXT),
    ("</caption>" + C + T + A, FormatFault.UNOPENED),
    (C + T + A + "</answer>", FormatFault.UNOPENED),
    # the published code rewards all of these in full
    ("<caption></caption>" + T + A, FormatFault.EMPTY),
    ("<caption> \n\t</caption>" + T + A, FormatFault.EMPTY),
    ("<caption>\u200b\x00</caption>" + T + A, FormatFault.EMPTY),
    ("<caption>\u3164\u0301</caption>" + T + A, FormatFault.EMPTY),
    (C + "<think>...</think>" + A, FormatFault.EMPTY),
    (C + "<think></think>" + A, FormatFault.EMPTY),
    (C + T + "<answer> </answer>", FormatFault.EMPTY),
    (C + T + A + "<answer>b</answer>", FormatFault.DUPLICATE),
    (C + C + T + A, FormatFault.DUPLICATE),
    (C + T + A + C + T + A, FormatFault.DUPLICATE),
    (C + "<think>t <answer>7</answer></think>" + A, FormatFault.NESTED),
    (C + "<think>t </answer></think>" + A, FormatFault.NESTED),
    ("<caption>" + C + "</caption>" + T + A, FormatFault.NESTED),
    ("<caption>c<think>t</think><answer>a</answer>", FormatFault.NESTED),
    (C + "<think>t<|im_end|></think>" + A, FormatFault.SPECIAL_TOKEN),
    (C + "<think>" + 100 * "Let me think. " + "</think>" + A, FormatFault.REPETITIVE),
]


@pytest.mark.parametrize(("text", "fault"), FAULTS)
def test_faults(text: str, fault: FormatFault):
    response = parse_response(text)
    assert response.fault is fault
    assert not response.valid
    assert response.blocks == ()


@pytest.mark.parametrize("answer", ["∞", "-", "?", "�", "😀", "<", "1"])
def test_an_answer_may_be_one_character(answer):
    assert parse_response(f"{C}{T}<answer>{answer}</answer>").answer == answer


def test_prose_with_recurring_phrases_is_not_repetitive():
    steps = "".join(
        f"Row {row} has {row * 7 % 13} squares, so {row * 7 % 13} are added. " for row in range(200)
    )
    assert parse_response(f"{C}<think>{steps}</think>{A}").valid


def test_every_fault_has_an_example():
    assert {fault for _, fault in FAULTS} == set(FormatFault)


def test_reading_a_block_of_an_invalid_response_fails():
    with pytest.raises(AssertionError, match="block is missing"):
        _ = parse_response(C + T).answer


@pytest.mark.parametrize(
    "piece", ["<caption>", "</answer>", "<", "<caption>x</caption>", "<caption", " ", "\u200b"]
)
def test_time_is_linear_on_hostile_text(piece: str):
    text = "<caption>" + piece * 100_000
    start = time.perf_counter()
    assert not parse_response(text).valid
    assert time.perf_counter() - start < 1


TAGS = ["<caption>", "</caption>", "<think>", "</think>", "<answer>", "</answer>"]
pieces = st.lists(st.sampled_from([*TAGS, "x", " ", "\n", "<"]), max_size=12).map("".join)
blanks = st.text(alphabet=" \t\n", max_size=3)


def is_content(text: str) -> bool:
    has_tag = re.search("</?(caption|think|answer)>", text)
    return not has_tag and any(character.isalnum() for character in text)


contents = st.text(min_size=1).filter(is_content)


@given(st.one_of(pieces, st.text()))
def test_it_never_raises_and_agrees_with_the_grammar(text: str):
    """Oracle: the grammar as one regular expression that keeps tags out of the contents."""
    content = r"((?:(?!</?(?:caption|think|answer)>)[\s\S])*?)"
    blocks = [rf"<{name}>{content}</{name}>" for name in ("caption", "think", "answer")]
    grammar = r"\s*".join(["", *blocks, ""])
    match = re.fullmatch(grammar, text)
    visible = match and all(
        any(character.isprintable() and character != " " for character in group)
        for group in match.groups()
    )
    assert parse_response(text).valid == bool(visible)


@given(contents, contents, contents, blanks)
def test_contents_and_spans_are_recovered(caption: str, think: str, answer: str, blank: str):
    perception = f"<caption>{caption}</caption>"
    reasoning = f"<think>{think}</think>{blank}<answer>{answer}</answer>"
    response = parse_response(f"{blank}{perception}{blank}{reasoning}{blank}")
    assert response.caption == caption.strip()
    assert response.think == think.strip()
    assert response.answer == answer.strip()
    assert response.view_text(View.PERCEPTION) == perception
    assert response.view_text(View.REASONING) == reasoning
