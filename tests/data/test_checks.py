"""Checks before a run: correct inputs pass, and a message names the file or row of each mistake."""

import io
import json
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from verl_prism.compose import compose_run
from verl_prism.config import Prism
from verl_prism.data.checks import (
    check_device,
    check_division,
    check_inputs,
    check_model_folder,
    notes,
)
from verl_prism.data.checks.rows import END_TOKENS
from verl_prism.errors import UserError

TEACHER = "<caption>Left a 3, right a 6.</caption><think>3 + 6 = 9.</think><answer>9</answer>"


def png() -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 8)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue()}


def question(
    teacher: str | None = TEACHER,
    images: list | None = None,
    text: str = "<image>\nWhat is the sum?",
) -> dict:
    return {
        "prompt": [{"role": "system", "content": "Reply."}, {"role": "user", "content": text}],
        "images": [png()] if images is None else images,
        "data_source": "digits",
        "reward_model": {"style": "rule", "ground_truth": "9"},
        "teacher_response": teacher,
    }


def write(path, rows: list[dict], without: str | None = None):
    table = pa.Table.from_pylist(rows)
    pq.write_table(table.drop_columns([without]) if without else table, path)
    return path


@pytest.fixture
def prism(dense_folder, tmp_path):
    """Stage align with correct inputs; policy and discriminator are copies of one base model."""
    for name in ("policy", "discriminator"):
        shutil.copytree(dense_folder, tmp_path / name)
    rows = [question(), question()]
    write(tmp_path / "train.parquet", rows)
    write(tmp_path / "heldout.parquet", rows, without="teacher_response")
    _, prism = compose_run(
        [
            "stage=align",
            f"prism.policy={tmp_path / 'policy'}",
            f"prism.discriminator.path={tmp_path / 'discriminator'}",
            f"prism.data.train={tmp_path / 'train.parquet'}",
            f"prism.data.heldout={tmp_path / 'heldout.parquet'}",
            "prism.rollout.prompts_per_step=1",
        ]
    )
    return prism


def refusal(prism: Prism) -> str:
    with pytest.raises(UserError) as caught:
        check_inputs(prism)
    return str(caught.value)


def test_correct_inputs_pass(prism):
    check_inputs(prism)


def test_a_missing_folder(prism):
    shutil.rmtree(prism.policy)
    assert refusal(prism).startswith(f"prism.policy={prism.policy}: no such folder")


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("config.json", "no config there (looked for config.json)"),
        (
            "model.safetensors",
            "no weights there (looked for model.safetensors or model.safetensors.index.json)",
        ),
        ("tokenizer.json", "no tokenizer there"),
        ("processor_config.json", "no image processor there"),
    ],
)
def test_an_incomplete_folder(prism, file, part):
    (prism.discriminator.path / file).unlink()
    assert f"prism.discriminator.path={prism.discriminator.path}: {part}" in refusal(prism)


def test_a_missing_shard(dense_folder, tmp_path):
    folder = shutil.copytree(dense_folder, tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError,
        match=r"model\.safetensors\.index\.json names model-1\.safetensors, which is missing",
    ):
        check_model_folder("prism.policy", folder)


def test_a_missing_file(prism):
    prism.data.heldout.unlink()
    assert refusal(prism) == f"prism.data.heldout={prism.data.heldout}: no such file"


def test_a_file_that_is_not_parquet(prism):
    prism.data.train.write_text("question,answer\n")
    assert "not a parquet file" in refusal(prism)


def test_a_file_without_rows(prism):
    pq.write_table(pq.read_table(prism.data.train).slice(0, 0), prism.data.train)
    assert refusal(prism) == f"prism.data.train={prism.data.train}: no rows"


def test_a_missing_teacher_column(prism):
    write(prism.data.train, [question()], without="teacher_response")
    assert (
        "no column teacher_response; it has prompt, images, data_source, reward_model; these are "
        "questions: python -m verl_prism.data distill adds a teacher's answers"
    ) in refusal(prism)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (None, "row 1: teacher_response is empty"),
        ("The sum is 9.", "row 1: teacher_response is not in the format"),
        (TEACHER.replace("</think>", ""), "tag inside a block"),
    ],
)
def test_a_teacher_response_in_the_wrong_format(prism, teacher, message):
    write(prism.data.train, [question(), question(teacher)])
    assert message in refusal(prism)


def test_a_teacher_view_over_the_limit(prism):
    too_long = TEACHER.replace("3 + 6 = 9.", "3 + 6 = 9. " * 40)
    write(prism.data.train, [question(), question(too_long)])
    message = refusal(prism)
    assert "row 1: teacher_response: its reasoning is" in message
    assert "over prism.discriminator.max_reasoning_tokens=64" in message


def test_different_tokenizers(prism):
    file = prism.discriminator.path / "tokenizer.json"
    content = json.loads(file.read_text())
    last = max(content["added_tokens"], key=lambda token: token["id"])
    last["content"] = "<other>"
    content["model"]["vocab"] = {
        "<other>" if number == last["id"] else token: number
        for token, number in content["model"]["vocab"].items()
    }
    file.write_text(json.dumps(content))
    message = refusal(prism)
    assert "have different tokenizers" in message
    assert f"token {last['id']}" in message
    assert "no token" in message


def test_a_tokenizer_that_is_not_byte_level(prism):
    for folder in (prism.policy, prism.discriminator.path):
        content = json.loads((folder / "tokenizer.json").read_text())
        content["decoder"] = {"type": "Fuse"}
        (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "not a byte-level BPE" in refusal(prism)


def with_scoring(prism, scoring, imitation_coef=0.0):
    """The settings with this scoring, as in a preset `discriminator=`."""
    upcycle = prism.discriminator.upcycle.model_copy(update={"scoring": scoring})
    changes = {"upcycle": upcycle, "imitation_coef": imitation_coef}
    settings = prism.discriminator.model_copy(update=changes)
    return prism.model_copy(update={"discriminator": settings})


def test_the_scoring_is_given_in_both_stages(prism):
    """Else alignment would train a likelihood without its term of imitation."""
    folder = prism.discriminator.path
    likelihood = with_scoring(prism, "likelihood", imitation_coef=0.1)
    message = refusal(likelihood)
    assert f"prism.discriminator.path={folder}: its scoring is head" in message
    assert "discriminator=likelihood in both stages" in message
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scoring": "likelihood"}))
    check_inputs(likelihood)
    assert "its scoring is likelihood, but prism.discriminator.upcycle.scoring is head" in refusal(
        prism
    )


@pytest.mark.parametrize("stage", ["warmup", "align"])
def test_imitation_of_the_teacher_needs_a_likelihood(prism, stage):
    imitating = with_scoring(prism, "head", imitation_coef=0.1).model_copy(update={"stage": stage})
    message = refusal(imitating)
    assert "imitation_coef=0.1 needs likelihood" in message
    assert "discriminator=likelihood" in message


def with_lengths(prism, prompt, response, stage="align"):
    """The settings with these limits, and passes that hold them."""
    changes = {"max_prompt_tokens": prompt, "max_response_tokens": response}
    longest = {"max_tokens_per_device": prompt + response}
    return prism.model_copy(
        update={
            "stage": stage,
            "data": prism.data.model_copy(update=changes),
            "hardware": prism.hardware.model_copy(update=longest),
        }
    )


@pytest.mark.parametrize("stage", ["warmup", "align", "rlvr", "sample"])
def test_a_sequence_longer_than_the_model(prism, stage):
    message = refusal(with_lengths(prism, 64, 4033, stage))
    assert "are 4,097 tokens, but prism.policy=" in message
    assert "has 4,096 positions" in message
    check_inputs(with_lengths(prism, 64, 4032, stage))


@pytest.mark.parametrize("stage", ["align", "rlvr"])
def test_a_sequence_longer_than_a_pass(prism, stage):
    short = prism.hardware.model_copy(update={"max_tokens_per_device": 127})
    message = refusal(prism.model_copy(update={"stage": stage, "hardware": short}))
    assert "a pass holds 127 per device; set prism.hardware.max_tokens_per_device=128" in message


def test_a_host_without_a_gpu(prism, monkeypatch):
    monkeypatch.setattr("verl_prism.data.checks.host.GPU_FILES", ())
    hardware = prism.hardware.model_copy(update={"device": "cuda"})
    with pytest.raises(UserError, match="hardware=cuda, but this host has no GPU; hardware=cpu"):
        check_device(prism.model_copy(update={"hardware": hardware}))


def test_an_attention_kernel_that_is_not_installed(prism, monkeypatch):
    monkeypatch.setattr("verl_prism.data.checks.host.has_gpu", lambda: True)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    update = {"device": "cuda", "attention": "flash_attention_2"}
    hardware = prism.hardware.model_copy(update=update)
    with pytest.raises(UserError, match=r"set prism\.hardware\.attention=sdpa, or install it"):
        check_device(prism.model_copy(update={"hardware": hardware}))
    check_device(prism.model_copy(update={"hardware": hardware, "stage": "sample"}))


@pytest.mark.parametrize("stage", ["sft", "align"])
def test_several_nodes_need_a_running_ray(prism, stage):
    hardware = prism.hardware.model_copy(update={"nodes": 2})
    several = prism.model_copy(update={"stage": stage, "hardware": hardware})
    message = "prism.hardware.nodes=2 needs a Ray that runs on all of them: "
    assert refusal(several).startswith(message)


def test_other_stages_read_other_columns(prism):
    """Stage rlvr needs no teacher responses and no discriminator; stage sft needs messages."""
    write(prism.data.train, [question()], without="teacher_response")
    check_inputs(prism.model_copy(update={"stage": "rlvr"}))
    sft = refusal(prism.model_copy(update={"stage": "sft"}))
    assert "no column messages" in sft
    assert sft.endswith("python -m verl_prism.data distill adds a teacher's answers")
    write(prism.data.train, [question()], without="prompt")
    assert "verl_prism.data convert" in refusal(prism)
    write(prism.data.train, [question()])
    assert "data sample adds" in refusal(prism.model_copy(update={"stage": "dpo"}))


def on_devices(prism: Prism, stage: str, devices: int, **hardware: object) -> Prism:
    changed = prism.hardware.model_copy(update={"devices_per_node": devices, **hardware})
    return prism.model_copy(update={"stage": stage, "hardware": changed})


@pytest.mark.parametrize(
    ("stage", "devices", "message"),
    [
        (
            "sft",
            64,
            "a step has 16 examples (prism.sft.examples_per_step=16), which do not divide ",
        ),
        ("sft", 64, "among 64 devices; set prism.sft.examples_per_step to 64"),
        ("dpo", 3, "among 3 devices; set prism.dpo.pairs_per_step to 30 or 33"),
        ("align", 3, "a step has 8 responses (prism.rollout.prompts_per_step=1), which do not"),
        ("rlvr", 20, "among 20 devices; set prism.rollout.prompts_per_step to 5"),
    ],
)
def test_a_step_that_the_devices_cannot_share(prism, stage, devices, message):
    assert message in refusal(on_devices(prism, stage, devices))


@pytest.mark.parametrize(("stage", "devices"), [("sft", 8), ("dpo", 32), ("align", 4), ("eval", 3)])
def test_a_step_that_the_devices_can_share(prism, stage, devices):
    check_division(on_devices(prism, stage, devices))


@pytest.mark.parametrize(
    ("stage", "nodes", "owner"),
    [
        ("eval", 1, "4 devices of a node"),
        ("warmup", 2, "4 devices of a node"),
        ("rlvr", 1, "4 devices of the run"),
    ],
)
def test_engines_that_the_devices_cannot_share(prism, stage, nodes, owner):
    several = on_devices(prism, stage, 4, nodes=nodes, tensor_parallel_size=8)
    with pytest.raises(UserError, match=f"tensor_parallel_size=8 does not divide the {owner}"):
        check_division(several)


def test_stages_that_the_engines_do_not_concern(prism):
    """verl's engines can span nodes, and a warm-up on given responses has none."""
    check_division(on_devices(prism, "rlvr", 4, nodes=2, tensor_parallel_size=8))
    warmup = prism.warmup.model_copy(update={"responses": "file"})
    several = on_devices(prism, "warmup", 4, tensor_parallel_size=8)
    check_division(several.model_copy(update={"warmup": warmup}))


@pytest.fixture
def pairs(prism, tmp_path):
    """Return a function: the config of stage dpo for one pair, in passes of this many tokens."""

    def compose(student: str, max_tokens: int) -> Prism:
        row = question() | {"student_responses": [student, "not in a pair, and cut"]}
        file = write(tmp_path / "pairs.parquet", [row])
        _, found = compose_run(
            [
                "stage=dpo",
                f"prism.policy={prism.policy}",
                f"prism.output={tmp_path}/dpo",
                f"prism.data.train={file}",
                f"prism.hardware.max_tokens_per_device={max_tokens}",
                "prism.dpo.responses_per_prompt=1",
                "prism.dpo.pairs_per_step=1",
            ]
        )
        return found

    return compose


def test_both_texts_of_a_pair_count(prism, pairs, tokenizer):
    student = TEACHER.replace("3 + 6", "3 + 6 + 0")
    prompt = check_inputs(pairs(student, 1000)).splits["train"].longest
    texts = [len(tokenizer.encode(text)) + END_TOKENS for text in (TEACHER, student)]
    tokens = 2 * prompt + sum(texts)
    check_inputs(pairs(student, tokens))
    message = refusal(pairs(student, tokens - 1))
    assert f"row 0: a pair has {tokens} tokens, because both of its texts count" in message
    assert f"over prism.hardware.max_tokens_per_device={tokens - 1}" in message


def test_responses_that_were_cut_are_counted(pairs):
    for student, expected in ((TEACHER, []), (TEACHER.partition("</answer>")[0], ["in 1 of 1"])):
        prism = pairs(student, 1000)
        report = check_inputs(prism)
        assert report.splits["train"].unfinished == len(expected)
        found = [note for note in notes(prism, report) if "does not end with </answer>" in note]
        assert [note.partition(" pairs ")[0] for note in found] == [
            f"prism.data.train: {count}" for count in expected
        ]


@pytest.fixture
def distilled(prism, tmp_path):
    """White-box distillation from a teacher that is a copy of the policy."""
    teacher = shutil.copytree(prism.policy, tmp_path / "teacher")
    _, prism = compose_run(
        [
            "stage=rlvr",
            "algorithm=opd_whitebox",
            "prism.hardware.ray_gpus=2",
            f"prism.algorithm.distillation.teacher={teacher}",
            f"prism.policy={prism.policy}",
            f"prism.data.train={prism.data.train}",
            f"prism.data.heldout={prism.data.heldout}",
            "prism.rollout.prompts_per_step=1",
        ]
    )
    return prism


def test_a_whitebox_teacher_with_the_policys_tokens_passes(distilled):
    check_inputs(distilled)


def test_a_missing_whitebox_teacher(distilled):
    shutil.rmtree(distilled.algorithm.distillation.teacher)
    assert refusal(distilled).startswith("prism.algorithm.distillation.teacher=")


def test_a_whitebox_teacher_with_other_tokens(distilled):
    file = distilled.algorithm.distillation.teacher / "tokenizer.json"
    content = json.loads(file.read_text())
    first, second = list(content["model"]["vocab"])[-2:]
    vocabulary = content["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))
    message = refusal(distilled)
    assert "prism.algorithm.distillation.teacher=" in message
    assert "have different tokenizers" in message


def with_answers(holder: str, answers: object) -> dict:
    row = question()
    return row | {holder: row.get(holder, {}) | {"equivalent_answers": answers}}


def test_equivalent_answers_that_verl_does_not_pass_on(prism):
    rows = [with_answers("reward_model", None), with_answers("reward_model", ["nine"])]
    write(prism.data.train, rows)
    assert "row 1: equivalent_answers is in reward_model" in refusal(prism)
    assert refusal(prism).endswith("move it to extra_info")


@pytest.mark.parametrize("answers", ["nine", 9, [9]])
def test_equivalent_answers_are_a_list_of_texts(prism, answers):
    write(prism.data.train, [with_answers("extra_info", None), with_answers("extra_info", answers)])
    message = f"row 1: equivalent_answers={answers!r} in extra_info is not a list of texts"
    assert message in refusal(prism)


def test_equivalent_answers_in_extra_info_pass(prism):
    rows = [with_answers("extra_info", None), with_answers("extra_info", ["nine", "IX"])]
    write(prism.data.train, rows)
    check_inputs(prism)
