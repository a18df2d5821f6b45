"""Inputs that would fail in a run: each is refused before, with its place and the fix."""

import io
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from verl_prism.compose import compose_run
from verl_prism.data.checks import check_inputs
from verl_prism.errors import UserError

TEACHER = "<caption>Left a 3, right a 6.</caption><think>3 + 6 = 9.</think><answer>9</answer>"
PROMPT = [
    {"role": "system", "content": "Reply."},
    {"role": "user", "content": "<image>\nWhat is the sum?"},
]
ANSWER = {"role": "assistant", "content": TEACHER}


def encoded(form: str, width: int = 64, height: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((width, height), 60).convert("RGB").save(buffer, form)
    return buffer.getvalue()


PNG, JPEG, WEBP = encoded("PNG"), encoded("JPEG"), encoded("WEBP")
IMAGE = {"bytes": PNG}
QUESTION = {
    "prompt": PROMPT,
    "images": [IMAGE],
    "data_source": "digits",
    "reward_model": {"style": "rule", "ground_truth": "9"},
    "teacher_response": TEACHER,
    "messages": [*PROMPT, ANSWER],
}


@pytest.fixture(scope="module")
def runs(dense_folder, tmp_path_factory):
    """Each stage's config, with all files in one folder; a test writes its own files there."""
    root = tmp_path_factory.mktemp("broken")
    folders = (f"prism.policy={dense_folder}", f"prism.discriminator.path={dense_folder}")
    settings = (
        f"prism.root={root}",
        f"prism.data.train={root}/train.parquet",
        f"prism.data.heldout={root}/heldout.parquet",
        "prism.rollout.prompts_per_step=1",
        "prism.sft.examples_per_step=1",
    )
    stages = ("sft", "warmup", "align", "rlvr", "eval")
    return {stage: compose_run([f"stage={stage}", *folders, *settings])[1] for stage in stages}


@pytest.fixture
def refusal(runs):
    """Return a function that gives the message with which a stage refuses its rows."""

    def message(stage: str, *rows: dict, table: pa.Table | None = None) -> str:
        prism = runs[stage]
        table = pa.Table.from_pylist([*rows]) if table is None else table
        pq.write_table(table, prism.data.train)
        pq.write_table(table, prism.data.heldout)
        with pytest.raises(UserError) as caught:
            check_inputs(prism)
        return str(caught.value)

    return message


@pytest.fixture
def report(runs):
    """Return a function that checks a stage's rows and returns the report."""

    def check(stage: str, *rows: dict, **data: object):
        prism = runs[stage]
        prism = prism.model_copy(update={"data": prism.data.model_copy(update=data)})
        for file in (prism.data.train, prism.data.heldout):
            pq.write_table(pa.Table.from_pylist([*rows]), file)
        return check_inputs(prism)

    return check


def asked(*messages: dict) -> dict:
    return {"prompt": list(messages)}


def user(text: str | None) -> dict:
    return {"role": "user", "content": text}


def with_gold(gold: object) -> dict:
    return {"reward_model": {"style": "rule", "ground_truth": gold}}


BROKEN_ROWS = [
    ("rlvr", asked(), "prompt has no message"),
    ("rlvr", asked({"role": "human", "content": "<image>"}), "prompt[0] has role 'human'; use"),
    ("rlvr", asked(user("<image>"), ANSWER), "prompt ends with role assistant; it should end with"),
    ("rlvr", asked(user(None)), "prompt[0].content is None; it should be a string"),
    ("rlvr", asked(user("What?")), "0 <image> in prompt, but 1 in images"),
    ("rlvr", asked(user("<image><image>")), "2 <image> in prompt, but 1 in images"),
    ("rlvr", asked(user("<image><video>")), "prompt contains <video>; only <image> is supported"),
    ("rlvr", asked(user("<image><|image_pad|>")), "message 0 contains <|image_pad|>, a control"),
    (
        "eval",
        asked(user("<image>The<|im_end|>")),
        "message 0 contains <|im_end|>, a control",
    ),
    ("sft", {"messages": [*PROMPT, user("<|endoftext|>"), ANSWER]}, "message 2 contains <|endof"),
    ("sft", {"messages": PROMPT}, "messages ends with role user; it should end with assistant"),
    ("sft", {"messages": [user(None), ANSWER]}, "messages[0].content is None"),
    ("rlvr", {"images": None}, "1 <image> in prompt, but 0 in images"),
    ("rlvr", {"images": [{"bytes": b"no image"}]}, "images[0]: unreadable image"),
    ("rlvr", {"images": [{"bytes": b""}]}, "images[0]: unreadable image"),
    ("eval", {"images": [{"bytes": None}]}, "images[0] has no bytes; store the encoded file"),
    ("rlvr", {"images": [{"bytes": PNG[:-40]}]}, "images[0]: unreadable image"),
    ("rlvr", {"images": [{"bytes": JPEG[: len(JPEG) // 2]}]}, "images[0]: unreadable image"),
    ("rlvr", {"images": [{"bytes": WEBP[: len(WEBP) // 2]}]}, "images[0]: unreadable image"),
    (
        "warmup",
        {"images": [{"bytes": encoded("PNG", 2000, 4)}]},
        "the longer side is 500 times the shorter one",
    ),
    ("rlvr", with_gold(None), "reward_model.ground_truth is null"),
    ("eval", with_gold(None), "reward_model.ground_truth is null"),
    ("eval", {"reward_model": None}, "reward_model is null"),
    ("rlvr", {"data_source": None}, "data_source is None; it should be a string"),
    ("align", {"teacher_response": None}, "teacher_response is empty"),
    ("align", {"teacher_response": "9"}, "teacher_response is not in the format"),
]


@pytest.mark.parametrize(("stage", "change", "message"), BROKEN_ROWS)
def test_a_broken_row_is_refused_with_its_place(refusal, runs, stage, change, message):
    text = refusal(stage, QUESTION, QUESTION | change)
    file = runs[stage].data.heldout if stage == "eval" else runs[stage].data.train
    assert text.startswith(f"{file}, row 1: {message}") or (
        text.startswith(f"{file}, row 1: ") and message in text
    )


def only(**columns: object) -> pa.Table:
    """One row with these columns; a column that is None is left out."""
    row = {name: value for name, value in (QUESTION | columns).items() if value is not None}
    return pa.Table.from_pylist([row])


SHARE_GPT = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "9"}]
BROKEN_COLUMNS = [
    ("rlvr", only(prompt="What is the sum?"), "prompt is string; it should be a list of {role"),
    ("rlvr", only(prompt=[{"role": "user", "content": 3}]), "content is int64; it should be a str"),
    (
        "sft",
        only(messages=SHARE_GPT),
        "messages holds ShareGPT rows ({from, value}), not {role, content}; python -m verl_prism",
    ),
    ("sft", only(messages=None, conversations=SHARE_GPT), "-m verl_prism.data convert source="),
    ("rlvr", only(images=["a.png"]), "images holds paths; it should be a list of {bytes}"),
    ("rlvr", only(images=[PNG]), "images holds binary; it should be a list of {bytes}"),
    ("rlvr", only(images=IMAGE), "it should be a list of {bytes}, such as"),
    ("rlvr", only(reward_model="9"), "reward_model is string; it should be a struct"),
    (
        "eval",
        only(reward_model={"style": "rule", "ground_truth": 9}),
        "ground_truth is 9; write it",
    ),
    ("rlvr", only(extra_info="{}"), "extra_info is string; it should be a struct"),
    ("align", only(data_source=3), "data_source is int64; it should be a string"),
]


@pytest.mark.parametrize(("stage", "table", "message"), BROKEN_COLUMNS)
def test_a_column_of_another_type_is_refused(refusal, stage, table, message):
    text = refusal(stage, table=table)
    assert message in text
    assert "prism.data." in text or "row 0" in text


def test_text_that_is_not_utf8_names_its_row(refusal):
    good = pa.Table.from_pylist([QUESTION, QUESTION])
    latin = pa.array([b"digits", "Zähne".encode("latin-1")]).view(pa.string())
    index = good.schema.names.index("data_source")
    text = refusal("rlvr", table=good.set_column(index, "data_source", latin))
    assert "row 1: data_source is not UTF-8" in text


def test_a_damaged_page_names_the_file(runs):
    prism = runs["rlvr"]
    table = pa.Table.from_pylist([QUESTION] * 200)
    pq.write_table(table, prism.data.train, compression="zstd")
    content = bytearray(prism.data.train.read_bytes())
    content[200:600] = b"\xff" * 400
    prism.data.train.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.parquet: cannot be read from row 0 on"):
        check_inputs(prism)


def test_rows_without_images_pass(report):
    text_only = QUESTION | {
        "prompt": [user("What is 3 + 6?")],
        "messages": [user("What is 3 + 6?"), ANSWER],
    }
    for images in (None, []):
        for stage in ("sft", "warmup", "align", "rlvr", "eval"):
            assert report(stage, QUESTION, text_only | {"images": images}).splits


def test_a_file_without_the_column_images_has_text_only(report):
    text_only = {name: value for name, value in QUESTION.items() if name != "images"}
    text_only |= {"prompt": [user("What is 3 + 6?")]}
    assert report("rlvr", text_only, text_only).splits["train"].rows == 2


def long_question(words: int) -> dict:
    return {"prompt": [user("<image>\n" + "sum " * words)]}


def test_long_prompts_are_refused_with_count_and_first_rows(refusal):
    rows = [QUESTION, QUESTION | long_question(200), QUESTION, QUESTION | long_question(300)]
    text = refusal("rlvr", *rows)
    assert text.startswith("2 of 4 rows of prism.data.train are too long:\n")
    assert "train.parquet, row 1: prompt has " in text
    assert "8 of them for images, over prism.data.max_prompt_tokens=64" in text
    assert text.endswith("leave these rows out with prism.data.overlong=filter")


def test_a_large_image_is_too_long_by_its_size_alone(refusal):
    text = refusal("eval", QUESTION | {"images": [{"bytes": encoded("JPEG", 4000, 3000)}]})
    assert "1 of 1 rows of prism.data.heldout are too long" in text
    assert "for images, over prism.data.max_prompt_tokens=64" in text


def test_long_rows_are_filtered_and_counted(report):
    rows = [QUESTION, QUESTION | long_question(200), QUESTION]
    for stage in ("warmup", "align", "rlvr"):
        found = report(stage, *rows, overlong="filter").splits["train"]
        assert (found.rows, found.skipped) == (2, (1,))
        assert found.longest <= 64


def test_a_long_demonstration_is_refused(refusal, runs):
    long = {"role": "user", "content": "<image>" + "sum " * 3000}
    text = refusal("sft", QUESTION, QUESTION | {"messages": [long, ANSWER]})
    assert "row 1: messages has " in text
    assert f"over prism.hardware.max_tokens_per_device={1280}" in text


def test_fewer_rows_than_a_step(runs):
    prism = runs["rlvr"]
    pq.write_table(pa.Table.from_pylist([QUESTION]), prism.data.train)
    pq.write_table(pa.Table.from_pylist([QUESTION]), prism.data.heldout)
    rollout = prism.rollout.model_copy(update={"prompts_per_step": 4})
    message = r"1 rows, but a step needs 4 \(prism\.rollout\.prompts_per_step=4\)"
    with pytest.raises(UserError, match=message):
        check_inputs(prism.model_copy(update={"rollout": rollout}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b'{"model": 3', "tokenizer.json cannot be read"),
        ("config.json", b"{", "config.json cannot be read"),
        (
            "model.safetensors.index.json",
            b"[]",
            "model.safetensors.index.json is not a JSON object",
        ),
        ("model.safetensors", b"\x10", "model.safetensors is not a safetensors file"),
        ("model.safetensors", None, "bytes instead of"),
    ],
)
def test_a_damaged_model_folder(runs, dense_folder, tmp_path, name, content, message):
    folder = shutil.copytree(dense_folder, tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    prism = runs["rlvr"].model_copy(update={"policy": folder})
    pq.write_table(pa.Table.from_pylist([QUESTION]), prism.data.train)
    pq.write_table(pa.Table.from_pylist([QUESTION]), prism.data.heldout)
    with pytest.raises(UserError) as caught:
        check_inputs(prism)
    assert str(caught.value).startswith(f"prism.policy={folder}: ")
    assert message in str(caught.value)


def test_a_missing_folder_names_the_stage_that_writes_it(runs):
    prism = runs["align"]
    pq.write_table(pa.Table.from_pylist([QUESTION]), prism.data.train)
    pq.write_table(pa.Table.from_pylist([QUESTION]), prism.data.heldout)
    missing = prism.root / "sft" / "policy"
    with pytest.raises(UserError, match="no such folder; stage=sft writes it, so run python -m"):
        check_inputs(prism.model_copy(update={"policy": missing}))


def test_an_output_below_a_file(runs, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    prism = runs["rlvr"].model_copy(update={"output": file / "rlvr"})
    with pytest.raises(UserError, match=r"is a file, not a folder; set prism\.output"):
        check_inputs(prism)


def test_a_logger_that_is_not_installed(runs, monkeypatch):
    monkeypatch.setattr("verl_prism.data.checks.host.LOGGER_PACKAGES", {"wandb": "no_such"})
    prism = runs["warmup"].model_copy(update={"loggers": ["file", "wandb"]})
    with pytest.raises(UserError, match=r"prism\.loggers: wandb needs the package no_such"):
        check_inputs(prism)


def test_a_second_check_reads_no_row(report, runs, monkeypatch):
    first = report("rlvr", QUESTION, QUESTION)
    monkeypatch.setattr("verl_prism.data.checks.inputs.check_rows", None)
    assert check_inputs(runs["rlvr"]) == first


def test_a_changed_file_is_checked_again(refusal, report):
    report("rlvr", QUESTION)
    assert "row 0" in refusal("rlvr", QUESTION | with_gold(None))
