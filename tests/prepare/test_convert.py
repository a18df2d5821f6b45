"""Every input form: equal content out, which the stages accept and verl loads."""

import base64
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_sources import JPEG, PNG, RESPONSE, WEBP, convert, write_lines, write_pictures

from verl_prism.compose import compose_run
from verl_prism.data.checks import check_inputs
from verl_prism.errors import UserError
from verl_prism.prepare.convert.settings import DEFAULT_SYSTEM_PROMPT

IMAGE_TOKENS = 8  # of a picture of 64 x 32 pixels, for the digits policy
TYPES = {PNG: "png", JPEG: "jpg", WEBP: "webp"}


@dataclass(frozen=True)
class Item:
    """A question as it should come out, in whatever form it goes in."""

    name: str
    question: str
    images: tuple[bytes, ...]
    gold: str
    response: str

    def paths(self) -> list[str]:
        return [
            f"pictures/{self.name}-{number}.{TYPES[image]}"
            for number, image in enumerate(self.images)
        ]

    def plain(self, images: list) -> dict:
        row = {"id": self.name, "question": self.question, "answer": self.gold, "images": images}
        return row | {"response": self.response}

    def chat(self, images: list, ask: str = "human", answer: str = "gpt") -> dict:
        text = "<image>" * len(self.images) + self.question
        names = ("from", "value") if ask == "human" else ("role", "content")
        turns = [(ask, text), (answer, self.response)]
        messages = [dict(zip(names, turn, strict=True)) for turn in turns]
        key = "conversations" if ask == "human" else "messages"
        return {"id": self.name, key: messages, "images": images, "answer": self.gold}

    def openai(self) -> dict:
        parts: list[dict] = [
            {"type": "image_url", "image_url": {"url": data_url(image)}} for image in self.images
        ]
        parts.append({"type": "text", "text": self.question})
        messages = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": self.response}]},
        ]
        return {"id": self.name, "messages": messages, "answer": self.gold}


ITEMS = [
    Item("a", "What is the sum?", (PNG,), "9", RESPONSE),
    Item("b", "Zähle: 字\u2028 \N{GRINNING FACE}", (JPEG, WEBP), "two words", RESPONSE),
    Item("c", 'Say "no" \\ or {[,]}', (), "no", RESPONSE),
    Item("d", "Which?", (WEBP,), "1/2", RESPONSE),
]


def data_url(image: bytes) -> str:
    return f"data:image/{TYPES[image]};base64,{base64.b64encode(image).decode()}"


def pictures(items: list[Item], folder: Path) -> None:
    (folder / "pictures").mkdir(exist_ok=True)
    for item in items:
        for path, image in zip(item.paths(), item.images, strict=True):
            (folder / path).write_bytes(image)


def array(folder: Path, rows: list[dict], name: str = "rows.json") -> Path:
    (folder / name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folder / name


def pretty(items: list[Item], folder: Path) -> Path:
    pictures(items, folder)
    rows = [item.plain(item.paths()) for item in items]
    (folder / "rows.json").write_text("\ufeff" + json.dumps(rows, indent=2), encoding="utf-8")
    return folder / "rows.json"


def lines(items: list[Item], folder: Path) -> Path:
    pictures(items, folder)
    return write_lines(folder / "rows.jsonl", *(item.plain(item.paths()) for item in items))


def base64_lines(items: list[Item], folder: Path) -> Path:
    def texts(item: Item) -> list[str]:
        return [base64.b64encode(image).decode() for image in item.images]

    return write_lines(folder / "rows.jsonl", *(item.plain(texts(item)) for item in items))


def data_urls(items: list[Item], folder: Path) -> Path:
    return array(folder, [item.plain([*map(data_url, item.images)]) for item in items])


def share_gpt(items: list[Item], folder: Path) -> Path:
    pictures(items, folder)
    return array(folder, [item.chat(item.paths()) for item in items])


def llama_factory(items: list[Item], folder: Path) -> Path:
    pictures(items, folder)
    rows = [item.chat(item.paths(), "user", "assistant") for item in items]
    return write_lines(folder / "rows.jsonl", *rows)


def openai(items: list[Item], folder: Path) -> Path:
    return write_lines(folder / "rows.jsonl", *(item.openai() for item in items))


def parquet(items: list[Item], folder: Path) -> Path:
    """As geometry3k."""
    images = [[{"bytes": image, "path": "x.png"} for image in item.images] for item in items]
    rows = [item.plain(found) for item, found in zip(items, images, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def parquet_of_bytes(items: list[Item], folder: Path) -> Path:
    rows = [item.plain(list(item.images)) for item in items]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def prompt_rows(items: list[Item], folder: Path) -> Path:
    """As the data set of the paper."""
    rows = []
    for item in items:
        text = "<image>" * len(item.images) + ("\n" if item.images else "") + item.question
        row = {
            "id": item.name,
            "prompt": [{"role": "user", "content": text}],
            "images": [{"bytes": image} for image in item.images],
            "reward_model": {"style": "rule", "ground_truth": item.gold},
            "teacher_response": item.response,
        }
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return folder / "rows.parquet"


def in_zip(items: list[Item], folder: Path) -> Path:
    source = lines(items, folder)
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(source, "top/rows.jsonl")
        for picture in sorted((folder / "pictures").iterdir()):
            archive.write(picture, f"top/pictures/{picture.name}")
    return folder / "all.zip"


def in_tar(items: list[Item], folder: Path, mode: str = "w", name: str = "all.tar") -> Path:
    source = parquet(items, folder) if mode == "w" else pretty(items, folder)
    with tarfile.open(folder / name, mode) as archive:
        archive.add(source, source.name)
        if (folder / "pictures").exists():
            archive.add(folder / "pictures", "pictures")
    return folder / name


def in_compressed_tar(items: list[Item], folder: Path) -> Path:
    return in_tar(items, folder, "w:gz", "all.tar.gz")


def saved(items: list[Item], folder: Path) -> Path:
    """As the library `datasets` saves it, with its own type of images."""
    from datasets import Dataset, Features, Image, List, Value

    texts = ("id", "question", "answer", "response")
    features = Features({name: Value("string") for name in texts} | {"images": List(Image())})
    images = [[{"bytes": image, "path": None} for image in item.images] for item in items]
    rows = [item.plain(found) for item, found in zip(items, images, strict=True)]
    Dataset.from_list(rows, features=features).save_to_disk(folder / "saved")
    return folder / "saved"


def loaded(items: list[Item], folder: Path) -> Path:
    """As the library `datasets` finds it in a folder: files for a split, in a folder below."""
    (folder / "set" / "data").mkdir(parents=True)
    source = parquet(items, folder)
    source.rename(folder / "set" / "data" / "train-00000-of-00001.parquet")
    return folder / "set"


FORMS: list[Callable[[list[Item], Path], Path]] = [
    *(pretty, lines, base64_lines, data_urls, share_gpt, llama_factory, openai, parquet),
    *(parquet_of_bytes, prompt_rows, in_zip, in_tar, in_compressed_tar, saved, loaded),
]
FAST_FORMS = [form for form in FORMS if form not in (saved, loaded)]


def content(row: dict) -> Item:
    """Return what a written row holds."""
    system, user = row["prompt"]
    assert system["content"] == DEFAULT_SYSTEM_PROMPT.read_text().strip()
    assert [*row["prompt"], {"role": "assistant", "content": row["teacher_response"]}] == (
        row["messages"]
    )
    images = tuple(image["bytes"] for image in row["images"])
    question = user["content"].removeprefix("<image>" * len(images))
    question = question.removeprefix("\n") if images else question
    gold = row["reward_model"]["ground_truth"]
    return Item(row["id"], question, images, gold, row["teacher_response"])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_equal_content_out(form, tmp_path):
    found = convert(form(ITEMS, tmp_path))
    assert [content(row) for row in found.rows] == ITEMS
    assert not found.rejects
    assert found.report.counts["rows read"] == found.report.counts["rows written"] == 4


TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0<"), min_size=1, max_size=30
).filter(lambda text: text.strip() and not text.startswith("\n"))
ITEM = st.builds(
    Item,
    st.just(""),
    TEXT,
    st.lists(st.sampled_from([PNG, JPEG, WEBP]), max_size=3).map(tuple),
    TEXT.filter(lambda text: not text.startswith("[")),
    st.just(RESPONSE),
)


@pytest.mark.parametrize("form", FAST_FORMS)
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(items=st.lists(ITEM, min_size=1, max_size=5))
def test_random_rows_come_out_as_they_went_in(form, tmp_path_factory, items):
    folder = tmp_path_factory.mktemp("random")
    named = [
        Item(f"n{number}", item.question, item.images, item.gold, item.response)
        for number, item in enumerate(items)
    ]
    found = convert(form(named, folder))
    assert [content(row) for row in found.rows] == named


@pytest.mark.parametrize("form", [lines, share_gpt, parquet, prompt_rows, saved])
def test_the_stages_accept_what_is_written(form, tmp_path, dense_folder):
    found = convert(form(ITEMS, tmp_path))
    for stage in ("sft", "warmup", "align", "rlvr", "eval"):
        check_inputs(composed(stage, found.output, dense_folder, tmp_path)[1])


@pytest.mark.parametrize("form", [lines, share_gpt, parquet])
def test_verl_loads_what_is_written(form, tmp_path, dense_folder):
    from verl.utils import hf_processor, hf_tokenizer

    from verl_prism.data.datasets import PrismRLDataset, PrismSFTDataset

    found = convert(form(ITEMS, tmp_path))
    tokenizer, processor = hf_tokenizer(str(dense_folder)), hf_processor(str(dense_folder))
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config = composed("sft", found.output, dense_folder, tmp_path)[0]
    demonstrations = PrismSFTDataset(config.data.train_files, tokenizer, config.data, processor)
    config = composed("rlvr", found.output, dense_folder, tmp_path)[0]
    questions = PrismRLDataset(config.data.train_files, tokenizer, config.data, processor)
    for index, item in enumerate(ITEMS):
        tokens = int((demonstrations[index]["input_ids"] == pad).sum())
        assert tokens == IMAGE_TOKENS * len(item.images)
        parts = questions[index]["raw_prompt"][-1]["content"]
        images = [part for part in parts if isinstance(part, dict) and part["type"] == "image"]
        assert len(images) == len(item.images)


def composed(stage: str, file: Path, model: Path, folder: Path):
    return compose_run(
        [
            f"stage={stage}",
            f"prism.root={folder}",
            f"prism.policy={model}",
            f"prism.discriminator.path={model}",
            f"prism.data.train={file}",
            f"prism.data.heldout={file}",
            f"prism.data.cache={folder}/cache",
            "prism.data.max_prompt_tokens=1000",
            "prism.hardware.max_tokens_per_device=4000",
            "prism.rollout.prompts_per_step=1",
            "prism.sft.examples_per_step=1",
            *(["prism.eval.max_questions=2"] if stage == "eval" else []),
        ]
    )


@pytest.fixture
def folder(tmp_path):
    write_pictures(tmp_path)
    return tmp_path


def only(found):
    (row,) = found.rows
    return row


PLAIN = {"question": "What?", "answer": "9", "image": "a.png"}


def test_options_are_appended_and_the_gold_has_both_forms(folder):
    rows = [
        PLAIN | {"choices": ["3", "9"], "answer": "B"},
        PLAIN | {"choices": ["A. 3", "B. 9"], "answer": "9"},
        PLAIN | {"choices": {"A": "3", "B": "9"}, "answer": "(B)"},
        PLAIN | {"choices": "['3', '9']", "answer": 1},
    ]
    rows = [row | {"id": str(number)} for number, row in enumerate(rows)]
    found = convert(write_lines(folder / "a.jsonl", *rows), "answer_index=0")
    for row in found.rows:
        assert row["prompt"][1]["content"] == "<image>\nWhat?\nOptions:\nA. 3\nB. 9"
    golds = [row["reward_model"]["ground_truth"] for row in found.rows]
    assert golds == ["B", "9", "(B)", "B"]
    equivalents = [row["extra_info"]["equivalent_answers"] for row in found.rows]
    assert equivalents == [["9"], ["B"], ["9"], ["9"]]


ANIMALS = ["cat", "dog", "bird"]
LETTERED = ["H", "C", "N", "O"]
NUMBERS = ["3", "1", "2"]


@pytest.mark.parametrize(
    ("options", "answer", "settings", "gold", "equivalents"),
    [
        (ANIMALS, "2", ["answer_index=1"], "B", ["dog"]),
        (ANIMALS, "0", ["answer_index=0"], "A", ["cat"]),
        (ANIMALS, "12", [], "12", None),
        (NUMBERS, "2", [], "2", ["C"]),
        (["1", "2"], "2", ["answer_index=1"], "2", ["B"]),
        (["1", "2", "3", "4"], "4", ["answer_index=0"], "4", ["D"]),
        (["0", "1"], "0", ["answer_index=1"], "0", ["A"]),
        ({"1": "cat", "2": "dog"}, "2", [], "2", None),
        (LETTERED, "N", [], "N", ["C"]),
        (LETTERED, "B", [], "B", None),  # its text is the letter of another option
        (["A", "B"], "B", [], "B", ["B"]),
    ],
)
def test_a_gold_answer_beside_options(options, answer, settings, gold, equivalents, folder):
    row = PLAIN | {"options": options, "answer": answer}
    found = only(convert(write_lines(folder / "a.jsonl", row), *settings))
    assert found["reward_model"]["ground_truth"] == gold
    assert found["extra_info"]["equivalent_answers"] == equivalents


@pytest.mark.parametrize(
    ("options", "answer", "settings", "reason"),
    [
        (LETTERED, "C", [], "gold answer is the letter of one option and the text of another: C"),
        (ANIMALS, "2", [], "gold answer is a number beside options: 2; set answer_index=0 or 1"),
        (
            ["2 cm", "3 cm"],
            "2",
            [],
            "gold answer is a number beside options: 2; set answer_index=0 or 1 if it counts the "
            "options; else give the full text of an option as the answer, or set "
            "columns.options=null",
        ),
        (ANIMALS, "3", ["answer_index=0"], "gold answer is not among the options: 3"),
        (NUMBERS, "2", ["answer_index=1"], "gold answer is the number of one option and the text"),
    ],
)
def test_an_ambiguous_gold_answer_is_left_out(options, answer, settings, reason, folder):
    row = PLAIN | {"id": "broken", "options": options, "answer": answer}
    good = PLAIN | {"id": "good", "options": ANIMALS, "answer": "dog"}
    source = write_lines(folder / "a.jsonl", good, row)
    (reject,) = convert(source, "max_rejects=0.5", *settings).rejects
    assert reject["reason"].startswith(reason)


def test_a_number_stays_as_it_is_written(folder):
    texts = [b"9", b'"0"', b"0.50", b"1e3", b'"<answer> 9 </answer>"', b'["9"]']
    rows = [
        b'{"question": "%b?", "answer": %b}' % (str(n).encode(), t) for n, t in enumerate(texts)
    ]
    found = convert(write_lines(folder / "a.jsonl", *rows))
    golds = [row["reward_model"]["ground_truth"] for row in found.rows]
    assert golds == ["9", "0", "0.50", "1E+3", "9", "9"]


def test_alpaca_columns_become_a_demonstration(folder):
    row = {"instruction": "Add.", "input": "3 and 6", "output": RESPONSE, "system": "Be brief."}
    found = only(convert(write_lines(folder / "a.jsonl", row)))
    assert found["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add.\n3 and 6"},
        {"role": "assistant", "content": RESPONSE},
    ]
    assert found["images"] == []


def test_caption_and_reasoning_become_a_demonstration(folder):
    row = PLAIN | {"caption": "A 3 and a 6.", "reasoning": "<think>3 + 6 = 9.</think>"}
    found = only(convert(write_lines(folder / "a.jsonl", row)))
    assert found["teacher_response"] == (
        "<caption>A 3 and a 6.</caption><think>3 + 6 = 9.</think><answer>9</answer>"
    )


def test_a_conversation_of_several_turns(folder):
    turns = [("human", "<image>What?"), ("gpt", "A 3."), ("human", "And?"), ("gpt", RESPONSE)]
    row = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    found = only(convert(write_lines(folder / "a.jsonl", row | {"image": "a.png"})))
    assert [message["role"] for message in found["prompt"]] == [
        *("system", "user", "assistant", "user")
    ]
    assert found["teacher_response"] == RESPONSE


def test_demonstrations_in_another_format_need_a_setting(folder):
    chat = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]
    source = write_lines(folder / "a.jsonl", {"conversations": chat})
    with pytest.raises(UserError, match="demonstration not in the response format"):
        convert(source)
    row = only(convert(source, "strict=false"))
    assert row["messages"][-1]["content"] == "Because."
    assert row["teacher_response"] is None


def test_the_system_prompt_is_a_text_a_file_or_none(folder):
    source = write_lines(folder / "a.jsonl", PLAIN)
    (folder / "prompt.txt").write_text("From a file.\n")
    long = "Describe the image, and then answer the question. " * 20  # too long for a path
    texts = (("Be brief.", "Be brief."), (long, long), (folder / "prompt.txt", "From a file."))
    for setting, text in texts:
        row = only(convert(source, f"system_prompt={setting}"))
        assert row["prompt"][0] == {"role": "system", "content": text}
    assert len(only(convert(source, "system_prompt=null"))["prompt"]) == 1
    with pytest.raises(UserError, match=r"system_prompt=nowhere\.txt: .*No such file"):
        convert(source, "system_prompt=nowhere.txt")


def test_a_rows_own_system_message_stays_unless_it_is_to_be_replaced(folder):
    chat = [{"role": "system", "content": "Own."}, {"role": "user", "content": "Why?"}]
    source = write_lines(folder / "a.jsonl", {"messages": chat})
    found = convert(source, "system_prompt=Other.")
    assert only(found)["prompt"][0]["content"] == "Own."
    assert found.report.counts["rows kept a system message of their own"] == 1
    row = only(convert(source, "system_prompt=Other.", "keep_system=false"))
    assert [message["content"] for message in row["prompt"]] == ["Other.", "Why?"]


OWN = {"role": "system", "content": "Own."}
USER = {"role": "user", "content": "What?"}
ANSWER = {"role": "assistant", "content": RESPONSE}


@pytest.mark.parametrize("given", [[USER], [OWN, USER]])
@pytest.mark.parametrize(
    "settings", [(), ("keep_system=false",), ("system_prompt=null", "keep_system=false")]
)
def test_messages_of_rows_start_with_the_prompt(given, settings, folder):
    row = {"prompt": given, "messages": [*given, ANSWER], "images": ["a.png"]}
    found = only(convert(write_lines(folder / "a.jsonl", row), *settings))
    assert found["messages"] == [*found["prompt"], ANSWER]
    assert found["prompt"][-1]["content"] == "<image>\nWhat?"


@pytest.mark.parametrize(("first", "usable"), [([OWN], True), ([], False)])
def test_the_source_serves_as_it_is_unless_its_messages_change(first, usable, folder):
    row = {"prompt": [OWN, USER], "messages": [*first, USER, ANSWER], "images": []}
    pq.write_table(pa.Table.from_pylist([row]), folder / "a.parquet")
    figures = convert(folder / "a.parquet").report.figures
    assert ("stages that can also read the source as it is" in figures) == usable


def test_the_report_says_what_was_done(folder):
    rows = [PLAIN | {"topic": "sums"}, PLAIN | {"question": "<image>Where?", "topic": None}]
    found = convert(write_lines(folder / "a.jsonl", *rows))
    assert found.report.lines() == [
        "2 rows read",
        "2 rows written",
        "1 questions without <image> got one for each image, before the question",
        "columns of form question: images=image, question=question, answer=answer",
        "columns that are not used: topic",
        f"-> {found.output}",
    ]


AMBIGUOUS = [
    ({"a": "1", "b": 2}, "no known form; it has the columns a, b; set columns.question=NAME"),
    (PLAIN | {"problem": "How?"}, "has question and problem: set columns.question=question"),
    (PLAIN | {"solution": "3 + 6"}, "has answer and solution: set columns.answer=answer"),
    (PLAIN | {"images": ["b.jpg"]}, "has images and image: set columns.images=images"),
    (
        PLAIN | {"messages": [{"role": "user", "content": "?"}]},
        "has messages and question: set form=chat",
    ),
]


@pytest.mark.parametrize(("row", "message"), AMBIGUOUS)
def test_an_ambiguous_form_is_refused_with_the_key_to_set(row, message, folder):
    with pytest.raises(UserError) as refused:
        convert(write_lines(folder / "a.jsonl", row))
    assert message in str(refused.value)
    assert str(folder / "a.jsonl") in str(refused.value)


def test_columns_are_named_by_settings(folder):
    row = {"text": "What?", "meta": {"gold": "9"}, "left": "a.png", "right": "b.jpg", "answer": "8"}
    settings = ("columns.question=text", "columns.answer=meta.gold", "columns.images=[left,right]")
    found = convert(write_lines(folder / "a.jsonl", row), *settings)
    assert [image["bytes"] for image in only(found)["images"]] == [PNG, JPEG]
    assert only(found)["reward_model"]["ground_truth"] == "9"
    assert found.report.figures["columns that are not used"] == "answer"
    found = convert(write_lines(folder / "a.jsonl", PLAIN), "columns.answer=null")
    assert "reward_model" not in only(found)
    with pytest.raises(UserError, match=r"columns\.answer=gold: none of the 1 rows read has a"):
        convert(folder / "a.jsonl", "columns.answer=gold")


def test_a_named_column_has_a_value_in_some_row(folder):
    rows = [PLAIN | {"id": str(number), "mate": None} for number in range(1500)]
    source = write_lines(folder / "a.jsonl", *rows)
    with pytest.raises(UserError, match=r"columns\.images=imagse: none of the 1,500 rows read has"):
        convert(source, "columns.images=imagse")
    with pytest.raises(UserError, match=r"columns\.answer=mate: none of the 1,000 rows read has"):
        convert(source, "columns.answer=mate")


def test_a_mistyped_column_of_a_parquet_file_is_refused_before_its_rows(folder):
    rows = [PLAIN | {"id": str(number), "mate": None} for number in range(30)]
    rows.append(PLAIN | {"id": "last", "mate": "b.jpg"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    with pytest.raises(UserError, match=r"columns\.images=imagse: source has no such column; it "):
        convert(folder / "a.parquet", "columns.images=imagse")
    found = convert(folder / "a.parquet", "columns.images=mate")
    assert [len(row["images"]) for row in found.rows] == [0] * 30 + [1]


def test_a_named_column_need_not_be_in_every_file(folder):
    first = write_lines(folder / "a.jsonl", *TEXT_ROWS, LATE)
    second = write_lines(folder / "b.jsonl", {"question": "Why?", "answer": "9"})
    settings = ("columns.images=image", "columns.options=options")
    found = convert(Path(f"[{first},{second}]"), *settings, output=folder / "c.parquet")
    assert not found.report.rejects
    assert len(found.rows) == len(TEXT_ROWS) + 2


TEXT_ROWS = [{"question": f"What is {number} + 1?", "answer": "9"} for number in range(25)]
LATE = PLAIN | {"options": ["3", "9"], "answer": "B"}


@pytest.mark.parametrize(
    ("late", "column", "what"),
    [
        (TEXT_ROWS[0] | {"options": ["3", "9"]}, "options", "options"),
        (PLAIN, "image", "images"),
        (TEXT_ROWS[0] | {"images": ["a.png"]}, "images", "images"),
        (TEXT_ROWS[0] | {"output": RESPONSE}, "output", "response"),
        (TEXT_ROWS[0] | {"id": "late"}, "id", "id"),
        (TEXT_ROWS[0] | {"caption": "A 3.", "cot": "3 + 6 = 9."}, "caption", "caption"),
    ],
)
def test_a_column_that_the_first_rows_lack_is_not_lost_in_silence(late, column, what, folder):
    found = convert(write_lines(folder / "a.jsonl", *TEXT_ROWS, late))
    assert len(found.rows) == len(TEXT_ROWS)
    (reason,) = found.report.rejects
    assert reason.startswith(f"column {column} is not read: it is empty, or a copy of another")
    assert f"set columns.{what}={column} to read it, or columns.{what}=null to" in reason


@pytest.mark.parametrize("late", [{"caption": "A 3."}, {"rationale": "3 + 6 = 9."}])
@pytest.mark.parametrize("response", [{}, {"response": RESPONSE}])
def test_a_late_column_that_nothing_would_read_leaves_no_row_out(response, late, folder):
    rows = [row | response for row in TEXT_ROWS]
    found = convert(write_lines(folder / "a.jsonl", *rows, rows[0] | {"question": "Why?"} | late))
    assert not found.report.rejects
    assert found.report.figures["columns that are not used"] == next(iter(late))


def test_a_response_needs_no_late_caption_and_reasoning(folder):
    rows = [row | {"response": RESPONSE} for row in TEXT_ROWS]
    late = rows[0] | {"question": "Why?", "caption": "A 3.", "reasoning": "3 + 6 = 9."}
    assert not convert(write_lines(folder / "a.jsonl", *rows, late)).report.rejects


def test_a_setting_names_a_column_that_the_first_rows_lack(folder):
    source = write_lines(folder / "a.jsonl", *TEXT_ROWS, LATE)
    found = convert(source, "columns.images=image", "columns.options=options")
    assert not found.report.rejects
    assert found.rows[0]["images"] == []
    assert found.rows[-1]["images"] == [{"bytes": PNG}]
    assert found.rows[-1]["prompt"][1]["content"] == "<image>\nWhat?\nOptions:\nA. 3\nB. 9"
    found = convert(source, "columns.images=null", "columns.options=null")
    assert not found.report.rejects
    assert found.rows[-1]["images"] == []


def test_a_second_column_of_a_kind_may_not_differ_later(folder):
    same = [PLAIN | {"question": f"{number}?", "solution": "9"} for number in range(25)]
    source = write_lines(folder / "a.jsonl", *same, PLAIN | {"solution": "3 + 6"})
    (reason,) = convert(source).report.rejects
    assert "set columns.answer=solution to read it, or columns.answer=answer to leave" in reason
    assert not convert(source, "columns.answer=answer").report.rejects


def test_images_are_found_in_folders_and_archives(folder):
    row = PLAIN | {"image": "/home/someone/set/a.png"}
    (folder / "elsewhere").mkdir()
    source = write_lines(folder / "elsewhere" / "a.jsonl", row)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        archive.write(folder / "a.png", "top/a.png")
    (folder / "other").mkdir()
    images = f"images=[{folder}/images.zip,{folder}/other]"
    prefixes = ("strip_prefix=/home/someone/set/", "add_prefix=top/")
    assert only(convert(source, images, *prefixes))["images"] == [{"bytes": PNG}]
    (folder / "other" / "top").mkdir()
    (folder / "other" / "top" / "a.png").write_bytes(PNG)
    with pytest.raises(UserError, match="image found twice"):
        convert(source, images, *prefixes)


def test_other_kinds_of_images_are_kept_as_they_are(folder):
    """CMYK, animated, and one with a palette."""
    from PIL import Image
    from raw_sources import encoded

    cmyk = encoded("JPEG", "CMYK")
    frames = [Image.new("RGB", (64, 32), color) for color in ("red", "blue")]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:])
    (folder / "cmyk.jpg").write_bytes(cmyk)
    palette = encoded("PNG", "P")
    (folder / "palette.png").write_bytes(palette)
    names = ("cmyk.jpg", "moving.gif", "palette.png")
    rows = [PLAIN | {"question": name, "image": name} for name in names]
    found = convert(write_lines(folder / "a.jsonl", *rows))
    images = [row["images"][0]["bytes"] for row in found.rows]
    assert images == [cmyk, (folder / "moving.gif").read_bytes(), palette]


def test_the_output_is_no_source(folder):
    convert(write_lines(folder / "a.jsonl", PLAIN), output=folder / "b.parquet")
    with pytest.raises(UserError, match="is a file of source; choose another name"):
        convert(folder, output=folder / "b.parquet")


def test_a_split_has_to_be_chosen(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"question": "What?", "answer": "9"}])
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "both")
    with pytest.raises(UserError, match="has several splits; set split= to one of train, test"):
        convert(tmp_path / "both")
    with pytest.raises(UserError, match=r"split=dev: .* has train, test"):
        convert(tmp_path / "both", "split=dev")
    assert only(convert(tmp_path / "both", "split=test"))["data_source"] == "both"


@pytest.mark.parametrize("revision", ["", "@v1"])
def test_a_data_set_on_the_hub_is_read_as_a_stream(revision, tmp_path):
    (tmp_path / "set").mkdir()
    parquet(ITEMS, tmp_path).rename(tmp_path / "set" / "train.parquet")
    source = f"source=org/tiny{revision}"
    with HubServer(tmp_path / "set") as server:
        variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-m", "verl_prism.data", "convert", source, "output=out.parquet"],
            cwd=tmp_path,
            env=os.environ | variables | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [content(row) for row in rows] == ITEMS
    assert {row["data_source"] for row in rows} == {"org/tiny"}


def test_limit_and_a_list_of_sources(folder):
    first = write_lines(folder / "a.jsonl", PLAIN | {"id": 1}, PLAIN | {"id": 2})
    second = write_lines(folder / "b.jsonl", PLAIN | {"id": 3}, PLAIN | {"id": 4})
    found = convert(Path(f"[{second},{first}]"), "limit=3", output=folder / "c.parquet")
    assert [row["id"] for row in found.rows] == ["3", "4", "1"]
    found = convert(folder / "?.jsonl", output=folder / "c.parquet")
    assert [row["id"] for row in found.rows] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("source", ["nowhere.jsonl", "no where/at all", "/nowhere"])
def test_a_source_that_is_not_there(source, tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        convert(Path(source), output=tmp_path / "a.parquet")
