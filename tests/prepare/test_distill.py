"""`python -m verl_prism.data distill` and `estimate` with a server on this host."""

import asyncio
import io
import json
import random
import sqlite3
import struct
from base64 import b64decode
from email.utils import formatdate
from pathlib import Path
from time import time

import pyarrow.parquet as pq
import pytest
from aiohttp import web
from broken_png import RGB, png_without_pixels
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from teacher_endpoint import RESPONSE, TeacherEndpoint, completion

from verl_prism.data.row_files import row_writer
from verl_prism.data.schema import schema
from verl_prism.errors import UserError
from verl_prism.prepare.command import main, run_command
from verl_prism.prepare.distill.journal import Journal
from verl_prism.prepare.distill.replies import Answer, read_completion
from verl_prism.prepare.distill.settings import prompt_text
from verl_prism.prepare.distill.teacher import retry_after
from verl_prism.prepare.report import Report

ROWS = 12
GOOD = "<caption>Text.</caption><think>It says so.</think><answer>{}</answer>"
USER = [{"role": "user", "content": "How many?"}]
KEY = "sk-test-0123456789abcdefghijkl"


def picture(kind: str = "PNG", size: tuple[int, int] = (64, 32)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind)
    return buffer.getvalue()


def question(number: int, **changes) -> dict:
    row = {
        "id": f"q{number}",
        "prompt": [
            {"role": "system", "content": "The policy's own."},
            {"role": "user", "content": f"<image>\nWhat is {number} + 1?"},
        ],
        "images": [{"bytes": picture()}],
        "data_source": "sums",
        "reward_model": {"style": "rule", "ground_truth": str(number + 1)},
    }
    return row | changes


def write_rows(file: Path, rows: list[dict]) -> Path:
    names = ["id", "prompt", "images", "data_source", "reward_model"]
    with row_writer(file, schema(names)) as writer:
        for row in rows:
            writer.write(row)
    return file


def right(key: str, body: dict) -> str:
    """Answer the question of `question`."""
    name, _, _ = key.partition("#")
    return GOOD.format(int(name.removeprefix("q")) + 1)


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr("verl_prism.prepare.distill.teacher.FIRST_DELAY_SECONDS", 0.01)
    with TeacherEndpoint() as started:
        started.reply = right
        yield started


@pytest.fixture
def source(tmp_path) -> Path:
    return write_rows(tmp_path / "source.parquet", [question(number) for number in range(ROWS)])


@pytest.fixture
def distill(endpoint, source, tmp_path):
    def run(*more: str, command: str = "distill") -> Report:
        settings = [f"source={source}", f"output={tmp_path / 'out.parquet'}", "teacher.model=m"]
        return run_command(command, [*settings, f"teacher.endpoint={endpoint.url}", *more])

    return run


def output_rows(tmp_path: Path) -> list[dict]:
    return pq.read_table(tmp_path / "out.parquet").to_pylist()


def rejects(tmp_path: Path) -> list[dict]:
    lines = (tmp_path / "out.parquet.rejects.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_rows_are_answered_in_order_and_nothing_is_asked_twice(distill, endpoint, tmp_path):
    report = distill("prices.input=1", "prices.output=10")
    assert report.counts == {"rows read": ROWS, "rows written": ROWS, "answers": ROWS}
    assert report.figures["input tokens"] == 100 * ROWS
    assert report.figures["cost"] == pytest.approx(ROWS * (100 + 10 * 20) / 1e6)
    assert report.figures["currency"] == "USD"
    rows = output_rows(tmp_path)
    assert [row["id"] for row in rows] == [f"q{number}" for number in range(ROWS)]
    assert rows[3]["teacher_response"] == GOOD.format(4)
    assert rows[3]["messages"] == [
        *question(3)["prompt"],
        {"role": "assistant", "content": GOOD.format(4)},
    ]
    assert distill().counts == report.counts
    assert len(endpoint.requests) == ROWS


def test_the_teacher_sees_the_prompt_the_question_and_the_image(distill, endpoint):
    distill("limit=1", "teacher.extra_body={top_p: 0.5}", "teacher.max_tokens=7")
    (body,) = endpoint.requests
    system, user = body["messages"]
    assert system == {"role": "system", "content": prompt_text("plain")}
    image, text = user["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "\nWhat is 0 + 1?"}
    assert (body["top_p"], body["max_tokens"], body["temperature"]) == (0.5, 7, 1.0)


def test_the_gold_answer_enters_only_a_prompt_that_asks_for_it(distill, endpoint, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Known: {gold}. Keep {braces}.")
    distill("limit=1", f"prompt={file}")
    assert endpoint.requests[0]["messages"][0]["content"] == "Known: 1. Keep {braces}."
    assert "{gold}" not in prompt_text("plain")
    assert "{gold}" in prompt_text("gold")
    assert "not mention the given answer" in prompt_text("plain")


def test_a_large_image_is_shrunk(distill, endpoint, source):
    write_rows(source, [question(0, images=[{"bytes": picture("JPEG", (300, 200))}])])
    distill("max_image_pixels=600")
    url = endpoint.requests[0]["messages"][1]["content"][0]["image_url"]["url"]
    kind, _, data = url.partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Image.open(io.BytesIO(b64decode(data))).size == (30, 20)


def test_the_first_good_answer_is_kept_and_the_others_are_told(distill, endpoint, tmp_path):
    def reply(key, body):
        name, _, number = key.rpartition("#")
        texts = {
            "q0": ["no tags", completion(GOOD.format(1), "length"), GOOD.format(1)],
            "q1": [GOOD.format(3), completion(None), completion("no", "content_filter")],
        }
        return texts[name][int(number)] if name in texts else right(key, body)

    endpoint.reply = reply
    report = distill("tries=3")
    assert report.counts["answers"] == ROWS + 4
    assert report.rejects == {"refused by the endpoint": 1}
    assert output_rows(tmp_path)[0]["teacher_response"] == GOOD.format(1)
    (reject,) = rejects(tmp_path)
    assert (reject["id"], reject["row"]) == ("q1", 1)
    reasons = [attempt["reason"] for attempt in reject["tries"]]
    assert reasons == ["wrong answer", "empty answer", "refused by the endpoint"]
    with sqlite3.connect(tmp_path / "out.parquet.journal.sqlite") as journal:
        verdicts = journal.execute("SELECT verdict FROM answers WHERE id = 'q0' ORDER BY try")
        assert [verdict for (verdict,) in verdicts] == ["format: block is missing", "truncated", ""]


def test_an_answer_with_parts_of_characters_is_not_kept(distill, endpoint, tmp_path):
    def reply(key, body):
        answer = right(key, body)
        return answer.replace("Text.", "It\ufffd.") if key.endswith("#0") else answer

    endpoint.reply = reply
    assert distill("tries=2").counts["answers"] == 2 * ROWS
    assert "\ufffd" not in "".join(row["teacher_response"] for row in output_rows(tmp_path))


def test_ungraded_answers_need_only_the_format(distill, endpoint, source):
    write_rows(source, [question(0, reward_model=None), question(1)])
    endpoint.reply = lambda key, body: GOOD.format("anything")
    assert distill("tries=1").rejects == {"no usable gold answer": 1, "wrong answer": 1}
    assert distill("tries=1", "grade=false").counts["rows written"] == 2
    assert len(endpoint.requests) == 2


def test_a_source_without_gold_answers(distill, source):
    pq.write_table(pq.read_table(source).drop_columns(["reward_model"]), source)
    with pytest.raises(UserError, match=r"can only be kept ungraded: grade=false"):
        distill()


def test_rows_that_cannot_be_asked_are_left_out(distill, endpoint, source, tmp_path):
    rows = [
        question(0),
        question(1, images=[]),
        question(2, images=[{"bytes": b"no image"}]),
        question(3, id=None, images=[{"bytes": None}]),
        question(0),
    ]
    write_rows(source, rows)
    report = distill()
    assert report.rejects == {"unusable prompt": 1, "unusable image": 2, "id of an earlier row": 1}
    assert "2 <image>" not in rejects(tmp_path)[0]["detail"]
    assert len(endpoint.requests) == 1


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def test_an_image_that_is_cut_off_is_left_out(distill, endpoint, source):
    noise = io.BytesIO()
    Image.effect_noise((200, 200), 80).convert("RGB").save(noise, "JPEG")
    broken = question(1, images=[{"bytes": cut(noise.getvalue())}])
    write_rows(source, [question(0), broken, question(2)])
    report = distill("max_image_pixels=1000")
    assert report.rejects == {"unusable image": 1}
    assert report.counts["rows written"] == 2


def encoded(mode: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (200, 200)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded("F", "TIFF"), "mode F, which cannot be shrunk; scale it to 8 bits per channel"),
        (encoded("I", "TIFF"), "mode I, which cannot be shrunk"),
        (encoded("I;16B", "TIFF"), "mode I;16B, which cannot be shrunk"),
        (encoded("I;16", "PPM"), "mode I, which cannot be shrunk"),
        (png_without_pixels(200, 200, RGB), "image file is truncated"),
    ],
    ids=["F", "I", "I;16B", "PGM", "no pixels"],
)
def test_an_image_that_cannot_be_shrunk_is_left_out(distill, source, content, reason, tmp_path):
    write_rows(source, [question(0), question(1, images=[{"bytes": content}])])
    report = distill("max_image_pixels=1000")
    assert report.counts["rows written"] == 1
    assert report.problems == ()
    assert report.rejects == {"unusable image": 1}
    (reject,) = rejects(tmp_path)
    assert (reject["id"], reject["row"]) == ("q1", 1)
    assert f"images[0]: unreadable image ({reason}" in reject["detail"]
    other = f"output={tmp_path / 'batch.parquet'}"
    written = distill("max_image_pixels=1000", "batch=write", other)
    assert written.counts["requests written"] == 1
    given = write_results(written.outputs, 200, tmp_path / "results.jsonl")
    report = distill("max_image_pixels=1000", "batch=read", given, other)
    assert report.rejects == {"unusable image": 1}
    assert report.problems == ()


def premultiplied() -> bytes:
    """Return a TIFF of mode La: the value of its ExtraSamples (tag 338) is 1."""
    content = bytearray(encoded("LA", "TIFF"))
    tag = content.index(struct.pack("<HHI", 338, 3, 1))
    content[tag + 8] = 1
    return bytes(content)


def test_an_image_with_premultiplied_transparency_is_shrunk(distill, endpoint, source):
    content = premultiplied()
    assert Image.open(io.BytesIO(content)).mode == "La"
    write_rows(source, [question(0, images=[{"bytes": content}])])
    assert distill("max_image_pixels=400").counts["rows written"] == 1
    url = endpoint.requests[0]["messages"][1]["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(b64decode(url.partition(";base64,")[2])))
    assert (sent.format, sent.mode, sent.size) == ("PNG", "LA", (20, 20))


@pytest.mark.parametrize("mode", ["CMYK", "P", "LA", "LAB", "1", "YCbCr", "I;16"])
def test_images_of_any_mode_are_shrunk(distill, endpoint, source, mode):
    buffer = io.BytesIO()
    if mode == "LAB":
        image = Image.new(mode, (200, 200))
    else:
        image = Image.new("RGB", (200, 200), "red").convert(mode.replace("I;16", "L")).convert(mode)
    image.save(buffer, "TIFF")
    write_rows(source, [question(0, images=[{"bytes": buffer.getvalue()}])])
    assert distill("max_image_pixels=400").counts["rows written"] == 1
    url = endpoint.requests[0]["messages"][1]["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(b64decode(url.partition(";base64,")[2])))
    assert (sent.format, sent.size) == ("PNG", (20, 20))
    if mode in ("CMYK", "P", "YCbCr"):
        red, green, blue = sent.convert("RGB").getpixel((10, 10))
        assert red > 250
        assert max(green, blue) < 5


def test_another_question_by_the_same_id_is_refused(distill, source):
    distill()
    write_rows(source, [question(0, id="q5")])
    with pytest.raises(UserError, match=r"row 0: the journal has another question by the id q5"):
        distill()


def test_changed_settings_are_refused_if_answers_depend_on_them(distill, tmp_path):
    distill()
    file = tmp_path / "prompt.txt"
    file.write_text("Other.")
    with pytest.raises(UserError) as caught:
        distill("teacher.temperature=0.5", f"prompt={file}", "concurrency=3")
    assert "teacher.temperature was 1.0 and is 0.5" in str(caught.value)
    assert "the text of prompt was different" in str(caught.value)
    assert "concurrency" not in str(caught.value)


def test_a_changed_gold_answer_is_graded_again(distill, endpoint, source):
    distill()
    write_rows(source, [question(0, reward_model={"style": "rule", "ground_truth": "7"})])
    assert distill("tries=1").rejects == {"wrong answer": 1}
    assert len(endpoint.requests) == ROWS


def test_the_judge_reviews_what_the_rules_call_wrong(distill, endpoint, tmp_path):
    from openai_endpoint import Endpoint

    endpoint.reply = lambda key, body: GOOD.format("a kitten")
    with Endpoint() as judge:
        settings = [f"judge.endpoint={judge.url}", "judge.model=j", f"judge.cache={tmp_path}/j"]
        report = distill("tries=1", "limit=2", *settings)
    assert report.counts["rows written"] == 2


def test_passing_failures_are_survived(distill, endpoint):
    def broken(kind: int):
        match kind:
            case 0:
                return web.json_response({}, status=429, headers={"Retry-After": "0.05"})
            case 1:
                return 500
            case 2:
                return web.Response(text="<html>garbage", content_type="text/html")
            case 3:
                return {"choices": []}
            case 4:
                return web.json_response({}, status=503, headers={"Retry-After": formatdate(0)})
        half = web.Response(body=b'{"choi', headers={"Content-Length": "500"})
        half.force_close()
        return half

    def reply(key, body):
        seen = endpoint.arrived[key]
        return broken((seen + hash_of(key)) % 6) if seen <= 3 else right(key, body)

    endpoint.reply = reply
    report = distill()
    assert report.counts["rows written"] == ROWS
    assert report.counts["answers"] == ROWS
    assert report.problems == ()
    assert len(endpoint.requests) == 4 * ROWS


def hash_of(key: str) -> int:
    return sum(key.encode())


def test_a_timeout_is_retried_and_counted(distill, endpoint):
    def reply(key, body):
        endpoint.seconds = 0.0
        return right(key, body)

    endpoint.reply = reply
    endpoint.seconds = 2.0
    report = distill("limit=1", "teacher.timeout_seconds=0.5")
    assert report.counts["rows written"] == 1
    assert report.figures["sent and unanswered (timeout)"] >= 1


def test_retry_after_holds_back_everyone(distill, endpoint):
    def reply(key, body):
        if len(endpoint.times) == 1:
            return web.json_response({}, status=429, headers={"retry-after": "0.5"})
        return right(key, body)

    endpoint.reply = reply
    distill("concurrency=1")
    assert endpoint.times[1] - endpoint.times[0] >= 0.5


def test_a_refused_request_rejects_its_row(distill, endpoint, tmp_path):
    def reply(key, body):
        return 400 if key == "q3#0" else right(key, body)

    endpoint.reply = reply
    report = distill()
    assert report.rejects == {"refused by the endpoint": 1}
    assert rejects(tmp_path)[0]["tries"][0]["text"] == "status 400: status 400"
    distill()
    assert len(endpoint.requests) == ROWS


@pytest.mark.parametrize(
    ("status", "fix"),
    [(401, "teacher.api_key_env"), (403, "teacher.api_key_env"), (404, "teacher.model")],
)
def test_what_every_request_will_meet_ends_the_run(distill, endpoint, status, fix, tmp_path):
    endpoint.reply = lambda key, body: status
    with pytest.raises(UserError, match=rf"refuses every request: status {status}.*{fix}"):
        distill("concurrency=1")
    assert len(endpoint.requests) == 1
    endpoint.reply = right
    assert distill().figures.get("sent and unanswered when killed") is None


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("answered", [0, 2])
def test_refusals_in_a_row_end_the_run_and_are_not_kept(distill, endpoint, answered, concurrency):
    """As after the key expired, with an endpoint that then answers 400."""
    if answered:
        distill(f"limit={answered}")
    endpoint.reply = lambda key, body: 400
    with pytest.raises(UserError, match=r"refused 1\d requests in a row.*stop_if_refused=false"):
        distill(f"concurrency={concurrency}")
    endpoint.reply = right
    assert distill().counts == {"rows read": ROWS, "rows written": ROWS, "answers": ROWS}


def test_refusals_that_an_earlier_run_kept_stay(distill, endpoint):
    endpoint.reply = lambda key, body: 400
    distill("limit=2", "stop_if_refused=false")
    with pytest.raises(UserError, match=r"refused 10 requests in a row"):
        distill("concurrency=16")
    endpoint.reply = right
    report = distill()
    assert report.rejects == {"refused by the endpoint": 2}
    assert report.counts["rows written"] == ROWS - 2


def test_rows_that_are_rightly_refused_can_be_left_out(distill, endpoint):
    endpoint.reply = lambda key, body: 400
    with pytest.raises(UserError, match="requests in a row"):
        distill()
    report = distill("stop_if_refused=false")
    assert report.rejects == {"refused by the endpoint": ROWS}
    assert report.counts["rows written"] == 0


def test_an_endpoint_that_asks_for_no_pause_gets_one(distill, endpoint, monkeypatch):
    monkeypatch.setattr("verl_prism.prepare.distill.teacher.FIRST_DELAY_SECONDS", 0.4)

    def reply(key, body):
        if len(endpoint.times) == 1:
            return web.json_response({}, status=429, headers={"Retry-After": "0"})
        return right(key, body)

    endpoint.reply = reply
    distill("concurrency=1", "limit=1")
    assert endpoint.times[1] - endpoint.times[0] >= 0.2


def test_a_reason_with_half_a_surrogate_pair_is_kept(distill, endpoint, tmp_path):
    def reply(key, body):
        if key == "q3#0":
            return web.Response(text='{"error": {"message": "bad \\ud83d"}}', status=400)
        return right(key, body)

    endpoint.reply = reply
    assert distill().rejects == {"refused by the endpoint": 1}
    assert rejects(tmp_path)[0]["tries"][0]["text"] == "status 400: bad \\ud83d"


def test_an_answer_that_the_journal_cannot_hold_is_an_error(tmp_path):
    """And not a wait without end: the thread that writes goes on."""

    async def answer(text: str) -> None:
        await asyncio.wait_for(journal.answered("q", 0, Answer(text, "stop", 1, 1)), 5)

    with Journal(tmp_path / "journal.sqlite", {}) as journal:
        with pytest.raises(UserError, match=r"the journal cannot be read or written .*surrogates"):
            asyncio.run(answer("\ud83d"))
        asyncio.run(answer("good"))
        assert journal.tries("q")[0].answer.text == "good"


def test_an_endpoint_that_is_down_ends_the_run(distill, endpoint):
    endpoint.reply = lambda key, body: 503
    with pytest.raises(UserError, match="is down: 10 questions in a row got no answer"):
        distill("retries=1")


def test_a_question_without_an_answer_is_asked_again_by_the_next_run(distill, endpoint):
    endpoint.reply = lambda key, body: 500 if key == "q3#0" else right(key, body)
    report = distill("retries=1")
    assert report.rejects == {"no answer": 1}
    assert "1 questions got no answer" in report.problems[0]
    endpoint.reply = right
    assert distill().counts["rows written"] == ROWS
    assert len(endpoint.requests) == ROWS + 2


def test_the_key_is_written_nowhere(distill, endpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MY_TEACHER", KEY)

    def reply(key, body):
        text = json.dumps({"error": {"message": f"bad {KEY}"}})
        return web.Response(text=text, status=400) if key == "q3#0" else right(key, body)

    endpoint.reply = reply
    distill("teacher.api_key_env=MY_TEACHER")
    assert endpoint.keys == {f"Bearer {KEY}"}
    endpoint.reply = lambda key, body: web.Response(text=f"{KEY} is wrong", status=401)
    settings = [f"source={tmp_path / 'source.parquet'}", f"output={tmp_path / 'two.parquet'}"]
    settings += ["teacher.model=m", f"teacher.endpoint={endpoint.url}"]
    assert main(["distill", *settings, "teacher.api_key_env=MY_TEACHER"]) == 2
    shown = capsys.readouterr()
    assert "[redacted] is wrong" in shown.err
    assert KEY not in shown.out + shown.err
    for file in tmp_path.iterdir():
        assert KEY.encode() not in file.read_bytes()


def test_the_budget_is_not_passed_and_a_higher_one_continues(distill, endpoint, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Answer.")
    prices = ["prices.input=1000", "prices.output=1000", "teacher.max_tokens=20", f"prompt={file}"]
    report = distill(*prices, "budget=1", "prices.currency=EUR")
    assert report.figures["cost"] <= 1
    assert report.figures["cost"] >= 0.7
    assert "budget=1 leaves no room" in report.problems[0]
    asked = len(endpoint.requests)
    report = distill(*prices, "budget=10")
    assert report.counts["rows written"] == ROWS
    assert len(endpoint.requests) == ROWS
    assert asked < ROWS


def test_answers_without_a_count_of_tokens_are_estimated(distill, endpoint):
    endpoint.reply = lambda key, body: completion(right(key, body)) | {"usage": None}
    report = distill()
    assert report.figures["answers without a count of tokens (estimated)"] == ROWS
    assert report.figures["input tokens"] > 0


def test_two_commands_do_not_share_a_journal(distill, tmp_path):
    distill()
    with sqlite3.connect(tmp_path / "out.parquet.journal.sqlite") as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("INSERT INTO meta VALUES ('x', 'y')")
        with pytest.raises(UserError, match="another command is using it"):
            distill()
    other.close()


def results(requests: list[Path], reply) -> list[dict]:
    """Return what a batch API makes of request files, in another order."""
    lines = []
    for file in requests:
        for line in file.read_text().splitlines():
            request = json.loads(line)
            assert request["url"] == "/v1/chat/completions"
            lines.append({"custom_id": request["custom_id"], **reply(request)})
    random.Random(0).shuffle(lines)
    return lines


def test_batches(distill, endpoint, tmp_path):
    statuses = {"q4#0": 500, "q5#0": 400}
    texts = {"q3#0": "junk"}

    def reply(request: dict) -> dict:
        key, _, _ = request["custom_id"].rpartition("#")
        status = statuses.get(key, 200)
        body = completion(texts.get(key, right(key, request["body"])))
        return {
            "response": {"status_code": status, "body": body},
            "error": None if status == 200 else {"code": "x"},
        }

    def round_of(expected: int) -> Report:
        report = distill("batch=write", "batch_max_requests=5")
        assert report.counts["requests written"] == expected
        requests = [file for file in report.outputs if file.suffix == ".jsonl"]
        assert len(requests) == -(-expected // 5)
        lines = results(requests, reply)
        file = tmp_path / "results.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return distill("batch=read", f"batch_results={file}")

    first = round_of(ROWS)
    assert first.figures["batch results with an error"] == 1
    assert first.rejects == {"not asked": 2, "refused by the endpoint": 1}
    assert "2 questions need a further round" in first.problems[0]
    statuses.clear()
    second = round_of(2)
    assert second.rejects == {"refused by the endpoint": 1}
    assert second.counts["rows written"] == ROWS - 1
    assert endpoint.requests == []
    assert output_rows(tmp_path)[3]["teacher_response"] == GOOD.format(4)


def test_an_estimate_asks_a_sample_that_is_not_asked_again(distill, endpoint, source):
    write_rows(source, [question(number) for number in range(60)])
    report = distill(
        "prices.input=1", "prices.output=10", "requests_per_minute=6000", command="estimate"
    )
    assert len(endpoint.requests) == 20
    assert report.counts == {"rows": 60, "rows asked": 20, "rows kept of them": 20}
    assert report.figures["cost"] == pytest.approx(60 * 300 / 1e6)
    assert report.figures["cost, 90 % interval"] == "0.018 to 0.018 USD"
    assert report.figures["requests"] == 60
    distill()
    assert len(endpoint.requests) == 60


def test_an_estimate_that_nothing_was_answered_for_is_an_error(distill, endpoint):
    endpoint.reply = lambda key, body: 503
    with pytest.raises(UserError, match=r"no row of the sample was answered: .*503"):
        distill("sample=3", "retries=0", command="estimate")


def test_a_run_without_a_request_leaves_no_settings_behind(distill, endpoint):
    """As after a wrong address or key: the right settings may then be others."""
    with pytest.raises(UserError, match="no row of the sample was answered"):
        distill(
            "teacher.endpoint=http://127.0.0.1:9/v1", "sample=3", "retries=0", command="estimate"
        )
    assert distill("teacher.model=another").counts["rows written"] == ROWS
    with pytest.raises(UserError, match="its answers were made with other settings"):
        distill("teacher.model=a third")


def test_an_estimate_tells_the_uncertainty(distill, endpoint, source):
    write_rows(source, [question(number) for number in range(60)])

    def reply(key, body):
        number = int(key[1:].rpartition("#")[0])
        return completion(right(key, body), tokens=(100, 10 * (number % 9)))

    endpoint.reply = reply
    report = distill("prices.input=1", "prices.output=10", command="estimate")
    low, _, high, _ = report.figures["cost, 90 % interval"].split()
    true = sum(100 + 100 * (number % 9) for number in range(60)) / 1e6
    assert float(low) < true < float(high)


def test_a_request_file_is_not_a_result(distill, tmp_path):
    report = distill("batch=write")
    with pytest.raises(UserError, match=r"batch-000.jsonl, line 1: not a result"):
        distill("batch=read", f"batch_results={report.outputs[0]}")


def write_results(requests: tuple[Path, ...], status: int, file: Path) -> str:
    def reply(request: dict) -> dict:
        body = {"error": {"message": "Unsupported parameter: max_tokens"}}
        if status == 200:
            body = completion(right(request["custom_id"], request["body"]))
        return {"response": {"status_code": status, "body": body}}

    lines = results([path for path in requests if path.suffix == ".jsonl"], reply)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return f"batch_results={file}"


def test_a_batch_that_is_refused_as_a_whole_is_not_kept(distill, tmp_path):
    written = distill("batch=write", "limit=2")
    given = write_results(written.outputs, 400, tmp_path / "results.jsonl")
    with pytest.raises(UserError, match=r"all 2 requests were refused.*Unsupported parameter"):
        distill("batch=read", "limit=2", given)
    assert distill("batch=write", "limit=2").counts["requests written"] == 2
    report = distill("batch=read", "limit=2", given, "stop_if_refused=false")
    assert report.rejects == {"refused by the endpoint": 2}


def test_results_of_another_data_set_are_refused(distill, source, tmp_path):
    written = distill("batch=write")
    given = write_results(written.outputs, 200, tmp_path / "results.jsonl")
    other = tmp_path / "other.parquet"
    with pytest.raises(UserError, match=r"results\.jsonl, line 1: .* has no question by the id q"):
        distill("batch=read", given, f"output={other}")
    write_rows(source, [question(number, images=[]) | {"prompt": USER} for number in range(ROWS)])
    distill("batch=write", f"output={other}")
    with pytest.raises(UserError, match=r"results\.jsonl, line 1: .* has another question by the"):
        distill("batch=read", given, f"output={other}")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("teacher.temperature=0", "teacher.temperature=0 gives the same answer at every try"),
        ("budget=3", "budget needs prices.input and prices.output"),
        ("teacher.endpoint=api.openai.com", "teacher.endpoint: write a URL"),
        ("teacher.extra_body={n: 2}", "n is set by other settings"),
        ("prices.input=3", "input and output go together"),
        (
            "judge.endpoint=http://localhost; judge.model=j; grade=false",
            "judge.endpoint needs grade=true",
        ),
        (
            "budget=3; prices={input: 1, output: 1}; batch=write",
            "batch=write sends no requests, so budget cannot limit their costs",
        ),
        ("batch=read", "batch=read and batch_results=FILES go together"),
        ("teacher.api_key_env=NO_SUCH", "teacher.api_key_env=NO_SUCH: no such environment"),
        ("prompt=/nowhere.txt", "prompt=/nowhere.txt: cannot be read"),
        ("output=source.txt", "output: write a file name that ends with .parquet"),
    ],
)
def test_a_mistake_in_the_settings(distill, setting, message):
    with pytest.raises(UserError) as caught:
        distill(*setting.split("; "))
    assert message in str(caught.value)


def test_the_teacher_must_be_named(source):
    with pytest.raises(UserError, match=r"teacher\.endpoint is not set"):
        run_command("distill", [f"source={source}", "output=x.parquet"])


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "300", "retry-after": "9"}, 0.3),
        ({"retry-after": formatdate(0)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
    ],
)
def test_the_header_that_says_how_long_to_wait(headers, seconds):
    assert retry_after(headers) == seconds
    assert 50 < retry_after({"retry-after": formatdate(time() + 60, usegmt=True)}) <= 61


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "usage", "finish_reason", "x"]),
            inner,
        )
    ),
)


@given(JSON)
def test_any_reply_is_read_or_is_no_answer(body):
    answer = read_completion(body)
    assert answer is None or answer.text.encode() is not None


def test_the_reasoning_of_a_reasoning_model_is_ignored():
    body = completion(RESPONSE.format("a", "b"))
    body["choices"][0]["message"]["reasoning_content"] = "<think>secret</think>"
    assert read_completion(body).text == RESPONSE.format("a", "b")
