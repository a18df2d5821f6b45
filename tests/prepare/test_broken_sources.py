"""Broken rows, files and archives: each is left out with its place and the reason."""

import base64
import json
import os
import stat
import sys
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from broken_png import GRAY, png_without_pixels
from raw_sources import JPEG, PNG, RESPONSE, WEBP, convert, encoded, write_lines, write_pictures

from verl_prism.errors import UserError
from verl_prism.prepare.command import main
from verl_prism.prepare.convert import archives, json_text

GOOD = {"id": "good", "question": "What is the sum?", "answer": "9", "image": "a.png"}
OPTIONS = ["A. 3", "B. 9"]


def plain(content: bytes) -> str:
    return base64.b64encode(content).decode()


def url(content: bytes) -> str:
    return f"data:image/png;base64,{plain(content)}"


BROKEN_ROWS = {
    "no question": ({"question": None}, "question is not a text: null"),
    "blank question": ({"question": "  "}, "question is empty"),
    "number as question": ({"question": 7}, "question is not a text: int"),
    "question as list": ({"question": ["a"]}, "question is not a text: list"),
    "half a surrogate pair": ({"question": "\ud800?"}, "text is not Unicode: surrogates"),
    "no answer": ({"answer": None}, "no gold answer"),
    "blank answer": ({"answer": " "}, "no gold answer"),
    "answer missing": ({"answer": ...}, "no gold answer"),
    "boolean answer": ({"answer": True}, "gold answer is not a text: True"),
    "several answers": ({"answer": ["9", "nine"]}, "gold answer is not a text: ["),
    "index without base": ({"answer": 1, "options": OPTIONS}, "gold answer is a number beside"),
    "options of lists": ({"options": [["A"]]}, "options are not a list of texts"),
    "options as prose": ({"options": "three or nine"}, "options are not a list of texts: three"),
    "many options": ({"options": [str(n) for n in range(30)]}, "too many options: 30, more"),
    "equivalents as text": ({"equivalent_answers": "nine"}, "equivalent answers are not a list"),
    "id of another type": ({"id": 1.5}, "id is neither a text nor a number"),
    "data source as number": ({"data_source": 3}, "data_source is not a text: int"),
    "two placeholders": ({"question": "<image><image>?"}, "wrong messages or placeholders: 2 <im"),
    "placeholder alone": ({"image": None, "question": "<image>?"}, "wrong messages or placeholder"),
    "video": ({"question": "<image><video>?"}, "wrong messages or placeholders: prompt contains"),
    "missing image": ({"image": "c.png"}, "image not found: images[0]: c.png"),
    "image list with null": ({"image": ["a.png", None]}, "image is null"),
    "image as number": ({"image": 5}, "image of another type: images[0] is int"),
    "image without content": ({"image": {"format": "png"}}, "image has neither bytes nor a path"),
    "path out of the folder": ({"image": "../secret.png"}, "image path leads out of its folder"),
    "absolute path": ({"image": "/etc/hostname"}, "image path leads out of its folder"),
    "link out of the folder": ({"image": "link.png"}, "image path leads out of its folder"),
    "linked folder": ({"image": "links/secret.png"}, "image path leads out of its folder"),
    "loop of links": ({"image": "loop.png"}, "image cannot be read: loop.png"),
    "folder as image": ({"image": "sub"}, "image is not a file: sub"),
    "pipe as image": ({"image": "pipe.png"}, "image is not a file: pipe.png"),
    "null byte in path": ({"image": "a\0.png"}, "image path is empty or not a path"),
    "long path": ({"image": "x" * 5000}, "image cannot be read: xxx"),
    "web address": ({"image": "https://example.com/a.png"}, "image is a web address: https://"),
    "file address": ({"image": "file:///etc/hostname"}, "image is a web address: file://"),
    "large image": ({"image": "large.png"}, "image too large: large.png has over 100,000 bytes"),
    "large base64": ({"image": url(bytes(300_000))}, "image too large: images[0] has over"),
    "broken base64": ({"image": "data:image/png;base64,@@@"}, "image is not base64: images[0]"),
    "data URL as text": ({"image": "data:image/svg+xml,<svg/>"}, "image is not base64: images[0]"),
    "cut base64": ({"image": plain(PNG)[:-3]}, "image is not base64: images[0]: "),
    "no image at all": ({"image": url(b"not an image")}, "unreadable image: images[0]: cannot"),
    "empty image": ({"image": "empty.png"}, "unreadable image: images[0]: cannot identify"),
    "cut PNG": ({"image": url(PNG[:-40])}, "unreadable image: images[0]"),
    "cut JPEG": ({"image": url(JPEG[: len(JPEG) // 2])}, "unreadable image: images[0]"),
    "cut WebP": ({"image": url(WEBP[: len(WEBP) // 2])}, "unreadable image: images[0]"),
    "corrupt PNG": ({"image": url(PNG[:900] + b"?" + PNG[901:])}, "unreadable image: images[0]"),
    "decompression bomb": (
        {"image": url(png_without_pixels(40_000, 40_000, GRAY))},
        "unreadable image: images[0]: Image size (16",
    ),
    "PostScript": ({"image": url(b"%!PS-Adobe-3.0 EPSF-3.0\n")}, "unreadable image: images[0]"),
    "long image": ({"image": url(encoded("PNG", width=900, height=4))}, "image too long and narro"),
}


@pytest.fixture
def folder(tmp_path):
    """Images, and what must not be read as one."""
    folder = tmp_path / "data"
    write_pictures(folder)
    (tmp_path / "secret.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "links").symlink_to(tmp_path)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "empty.png").touch()
    (folder / "large.png").write_bytes(PNG + bytes(200_000))
    return folder


@pytest.mark.parametrize(("change", "reason"), BROKEN_ROWS.values(), ids=BROKEN_ROWS)
def test_a_broken_row_is_left_out_with_its_id_and_the_reason(folder, change, reason):
    values = {"id": "broken", "data_source": None} | GOOD | {"id": "broken"} | change
    broken = {name: value for name, value in values.items() if value is not ...}
    good = [GOOD | {"data_source": "sums", "options": OPTIONS, "equivalent_answers": ["nine"]}]
    good += [GOOD | {"id": "later"}]
    lines = json.dumps(broken).encode()  # which spells out half a surrogate pair
    source = write_lines(folder / "rows.jsonl", good[0], lines, good[1])
    found = convert(source, "max_rejects=0.5", "max_image_bytes=100_000")
    assert [row["id"] for row in found.rows] == ["good", "later"]
    (reject,) = found.rejects
    assert reject["reason"].startswith(reason)
    expected = "broken" if isinstance(broken["id"], str) else None
    assert (reject["id"], reject["file"], reject["line"]) == (expected, str(source), 2)
    assert list(found.report.rejects.values()) == [1]
    assert reject["reason"].startswith(next(iter(found.report.rejects)))


BROKEN_LINES = {
    "no JSON": (b"nonsense", "not JSON: Expecting value"),
    "cut line": (b'{"id": "broken", "question": "What', "not JSON: Unterminated string"),
    "trailing garbage": (json.dumps(GOOD).encode() + b" }", "not JSON: Extra data"),
    "not an object": (b"[1, 2]", "not an object: the row is list"),
    "null": (b"null", "not an object: the row is NoneType"),
    "Latin-1": ('{"id": "Zähne"}'.encode("latin-1"), "not UTF-8: byte 9"),
    "deep nesting": (b'{"a":' * 100_000, "not JSON: nested too deeply"),
    "huge number": (b'{"id": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
    "control character": (b'{"id": "a\x01"}', "not JSON: Invalid control character"),
}


# In an array, the others cannot be told from the rows after them.
BALANCED = ("no JSON", "not an object", "null", "Latin-1", "huge number", "control character")
IN_FORMS = [(name, "lines") for name in BROKEN_LINES] + [(name, "array") for name in BALANCED]


@pytest.mark.parametrize(("name", "form"), IN_FORMS)
def test_broken_json_is_left_out_with_its_place(folder, name, form):
    line, reason = BROKEN_LINES[name]
    good = [json.dumps(GOOD | {"id": name}).encode() for name in ("good", "later")]
    if form == "lines":
        source = write_lines(folder / "rows.jsonl", good[0], line, good[1])
        place = ("line", 2)
    else:
        source = folder / "rows.json"
        source.write_bytes(b"[%b,\n%b,\n%b]" % (good[0], line, good[1]))
        place = ("row", 1)
    found = convert(source, "max_rejects=0.5")
    assert [row["id"] for row in found.rows] == ["good", "later"]
    (reject,) = found.rejects
    assert (reject["id"], reject[place[0]]) == (None, place[1])
    assert reject["reason"].startswith(reason)


BROKEN_ARRAYS = {
    "cut array": (b"[%b, %b", "JSON is cut off: the array is not closed", 1),
    "cut row": (b"[%b, %b, {", "JSON is cut off: the array is not closed", 2),
    "cut string": (b'[%b, %b, {"a": "', "JSON is cut off: the array is not closed", 2),
    "text behind": (b"[%b, %b] x", "text after the JSON array: b'x'", 2),
    "second array": (b"[%b, %b] []", "text after the JSON array: b'[]'", 2),
}


@pytest.mark.parametrize(("form", "reason", "rows"), BROKEN_ARRAYS.values(), ids=BROKEN_ARRAYS)
def test_an_array_that_cannot_be_read_to_its_end_is_a_problem(folder, form, reason, rows, capsys):
    good = [json.dumps(GOOD | {"id": name}).encode() for name in ("good", "later")]
    source = folder / "rows.json"
    source.write_bytes(form % tuple(good))
    found = convert(source, "max_rejects=0.5")
    assert len(found.rows) == rows
    (reject,) = found.rejects
    assert (reject["row"], reject["reason"][: len(reason)]) == (rows, reason)
    (problem,) = found.report.problems
    assert problem.startswith(f"{source}, row {rows}: {reason}")
    arguments = [f"source={source}", f"output={found.output}", "max_rejects=0.5"]
    assert main(["convert", *arguments]) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_row_that_is_too_large_is_left_out(folder, monkeypatch):
    monkeypatch.setattr(json_text, "MAX_ROW", 1000)
    large = GOOD | {"id": "broken", "note": "x" * 2000}
    source = write_lines(folder / "rows.jsonl", GOOD, large, GOOD | {"id": "later"})
    found = convert(source, "max_rejects=0.5")
    assert [row["id"] for row in found.rows] == ["good", "later"]
    assert found.rejects[0]["reason"] == "row too large: over 1,000 bytes"
    assert found.rejects[0]["line"] == 2


BROKEN_CHATS = {
    "unknown role": ([{"from": "narrator", "value": "?"}], "unknown role: message 0 has role 'na"),
    "role as list": ([{"role": [], "content": "?"}], "unknown role: message 0"),
    "text as number": ([{"from": "human", "value": 3}], "message without a text: message 0 is int"),
    "text missing": ([{"from": "human"}], "message without a text: message 0 is null"),
    "message as text": (["What?"], "wrong message: message 0 is str"),
    "no messages": ([], "no messages"),
    "messages as text": ("What?", "no messages: it is str"),
    "question alone": ([{"from": "human", "value": "?"}], "conversation ends in another role"),
    "sound": ([{"role": "user", "content": [{"type": "audio"}]}], "unknown part of a message"),
    "no tags": ("9", "demonstration not in the response format: block is missing"),
    "unclosed tag": (
        RESPONSE.replace("</think>", ""),
        "demonstration not in the response format: ",
    ),
    "nested tag": (RESPONSE.replace("3 +", "<think>3"), "demonstration not in the response format"),
    "empty block": (
        RESPONSE.replace(">9<", "><"),
        "demonstration not in the response format: bl",
    ),
    "special token": (RESPONSE.replace(">9<", "><|im_end|><"), "demonstration not in the response"),
    "placeholder inside": (
        RESPONSE.replace("Left", "<image>"),
        "wrong messages or placeholders: 2",
    ),
}


@pytest.mark.parametrize(("messages", "reason"), BROKEN_CHATS.values(), ids=BROKEN_CHATS)
def test_a_broken_conversation_is_left_out(folder, messages, reason):
    def conversation(response: str) -> list[dict]:
        return [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": response}]

    if isinstance(messages, str) and messages != "What?":
        messages = conversation(messages)
    good = {"id": "good", "conversations": conversation(RESPONSE), "images": ["a.png"]}
    broken = good | {"id": "broken", "conversations": messages}
    found = convert(write_lines(folder / "rows.jsonl", good, broken), "max_rejects=0.5")
    (reject,) = found.rejects
    assert (reject["id"], reject["line"]) == ("broken", 2)
    assert reject["reason"].startswith(reason)


PAIR = {
    "question": "What is the sum?",
    "image": "a.png",
    "teacher_caption": "A 3 and a 6.",
    "teacher_cot": "<think>3 + 6</think><answer>9</answer>",
    "student_caption": "<caption>A 3 and a 5.</caption>",
    "student_cot": "3 + 5 <answer>8</answer>",
}
BROKEN_PAIRS = {
    "no student": ({"student_caption": None, "student_cot": ""}, "pair lacks student_caption and"),
    "no teacher": ({"teacher_cot": None}, "pair lacks teacher_cot"),
    "text as number": ({"student_cot": 8}, "reasoning is not a text: int"),
    "no answer tag": ({"student_cot": "3 + 5 = 8"}, "answer tag is missing: the reasoning has no"),
    "open answer": ({"teacher_cot": "3<answer>9"}, "teacher's response not in the response format"),
    "stray tag": ({"student_caption": "<caption>A"}, "student's response not in the response form"),
    "missing image": ({"image": "c.png"}, "image not found: images[0]: c.png"),
}


@pytest.mark.parametrize(("change", "reason"), BROKEN_PAIRS.values(), ids=BROKEN_PAIRS)
def test_a_broken_pair_is_left_out(folder, change, reason):
    lines = [{"id": "good", **PAIR}, {"id": "broken", **PAIR} | change]
    found = convert(write_lines(folder / "rows.jsonl", *lines), "max_rejects=0.5")
    assert [row["id"] for row in found.rows] == ["good"]
    (reject,) = found.rejects
    assert (reject["id"], reject["line"]) == ("broken", 2)
    assert reject["reason"].startswith(reason)


def test_duplicate_ids_are_left_out_with_both_places(folder):
    first = write_lines(folder / "a.jsonl", GOOD, GOOD | {"id": "other"})
    second = write_lines(folder / "b.jsonl", GOOD | {"question": "Else?"})
    found = convert(folder, "max_rejects=0.5")
    assert [row["id"] for row in found.rows] == ["good", "other"]
    assert found.rejects == [
        {
            "id": "good",
            "file": str(second),
            "line": 1,
            "reason": f"duplicate id: good is also the id of {first}, line 1",
        }
    ]


def test_equal_rows_without_ids_are_duplicates(folder):
    nameless = {name: value for name, value in GOOD.items() if name != "id"}
    source = write_lines(folder / "a.jsonl", nameless, nameless | {"answer": "8"}, nameless)
    found = convert(source, "max_rejects=0.5")
    assert len({row["id"] for row in found.rows}) == 2
    assert found.rejects[0]["reason"].startswith("duplicate id: ")
    assert found.rejects[0]["reason"].endswith(f"{source}, line 1")


def test_parquet_text_that_is_not_utf8_leaves_out_its_row(folder):
    texts = [b"What?", "Zähne?".encode("latin-1"), b"Else?"]
    columns = {"question": pa.array(texts).view(pa.string()), "image": [PNG] * 3}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    found = convert(folder / "rows.parquet", "max_rejects=0.5")
    assert len(found.rows) == 2
    assert (found.rejects[0]["row"], found.rejects[0]["reason"][:9]) == (1, "not UTF-8")


def test_a_damaged_parquet_file_is_a_problem(folder):
    columns = {"question": [f"What {number}?" for number in range(1000)], "image": [PNG] * 1000}
    file = folder / "rows.parquet"
    pq.write_table(pa.table(columns), file, row_group_size=300, compression="none")
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = b"\xff" * 2000
    file.write_bytes(content)
    found = convert(file, "max_rejects=1")
    assert found.rejects
    assert found.report.problems or found.report.rejects


def zipped(folder, *members: tuple[str, bytes]):
    archive = folder / "data.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for name, content in members:
            target.writestr(name, content)
    return archive


def rows_for(*images: str) -> bytes:
    rows = [GOOD] + [GOOD | {"id": f"broken{n}", "image": path} for n, path in enumerate(images)]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_no_path_leads_out_of_a_zip(folder):
    images = ("../a.png", "/a.png", "x/../../a.png", "missing.png")
    members = [
        ("rows.jsonl", rows_for(*images)),
        ("a.png", PNG),
        ("../a.png", PNG),
        ("/a.png", PNG),
    ]
    archive = zipped(folder, *members)
    found = convert(archive, "max_rejects=0.9")
    assert [row["id"] for row in found.rows] == ["good"]
    reasons = [reject["reason"].partition(":")[0] for reject in found.rejects]
    assert reasons == ["image path leads out of its folder"] * 3 + ["image not found"]
    assert found.rejects[0]["file"] == f"{archive}:rows.jsonl"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["data", "secret.png"]


def test_members_that_are_too_large_or_damaged(folder, tmp_path):
    """A member with 50 MB of zeros, one with a wrong checksum, one that is there twice."""
    images = ("large.png", "damaged.png", "twice.png")
    archive = folder / "data.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("rows.jsonl", rows_for(*images))
        target.writestr("a.png", PNG)
        target.writestr("large.png", bytes(50_000_000))
        target.writestr("twice.png", PNG)
        with pytest.warns(UserWarning, match="Duplicate"):
            target.writestr("twice.png", JPEG)
        target.writestr("damaged.png", PNG[::-1], zipfile.ZIP_STORED)
    content = archive.read_bytes()
    archive.write_bytes(content.replace(PNG[::-1], b"\0" + PNG[::-1][1:]))
    found = convert(archive, "max_rejects=0.9", "max_image_bytes=1_000_000")
    assert [reject["id"] for reject in found.rejects] == ["broken0", "broken1", "broken2"]
    reasons = [reject["reason"] for reject in found.rejects]
    assert reasons[0] == "image too large: large.png has 50,000,000 bytes"
    assert reasons[1].startswith("archive member is damaged: damaged.png: Bad CRC-32")
    assert reasons[2].startswith("file occurs twice in its archive: twice.png")


def test_links_and_devices_in_a_tar_are_not_followed(folder):
    archive = folder / "data.tar"
    (folder / "rows.jsonl").write_bytes(rows_for("link.png", "hard.png", "pipe.png"))
    with tarfile.open(archive, "w") as target:
        target.add(folder / "rows.jsonl", "rows.jsonl")
        target.add(folder / "a.png", "a.png")
        target.add(folder / "link.png", "link.png")
        target.add(folder / "pipe.png", "pipe.png")
        hard = tarfile.TarInfo("hard.png")
        hard.type, hard.linkname = tarfile.LNKTYPE, "/etc/hostname"
        target.addfile(hard)
    found = convert(archive, "max_rejects=0.9")
    assert [row["id"] for row in found.rows] == ["good"]
    assert {reject["reason"].partition(":")[0] for reject in found.rejects} == {"image not found"}


def test_a_link_in_a_zip_is_no_image(folder):
    archive = folder / "data.zip"
    with zipfile.ZipFile(archive, "w") as target:
        target.writestr("rows.jsonl", rows_for("link.png"))
        target.writestr("a.png", PNG)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        target.writestr(link, "/etc/hostname")
    found = convert(archive, "max_rejects=0.9")
    assert found.rejects[0]["reason"].startswith("unreadable image: images[0]")


def test_an_archive_that_explodes_is_refused(folder, monkeypatch):
    monkeypatch.setattr(archives, "BOMB_BYTES", 1_000_000)
    monkeypatch.setattr(archives, "BOMB_RATIO", 1)
    (folder / "zeros.json").write_bytes(bytes(3_000_000))
    with tarfile.open(folder / "data.tar.gz", "w:gz") as target:
        target.add(folder / "zeros.json", "zeros.json")
    with pytest.raises(UserError, match=r"data\.tar\.gz: decompresses to over 1,000,000 bytes"):
        convert(folder / "data.tar.gz")


DAMAGED_FILES = {
    "rows.jsonl": (b"\xff\xfe{\x00}\x00", "rows.jsonl is UTF-16; rewrite it: iconv -f UTF-16"),
    "rows.json": (b'{\n  "rows": []\n}', "rows.json holds one object over several lines"),
    "empty.jsonl": (b"", "no rows; nothing was written"),
    "empty.json": (b"[]", "no rows; nothing was written"),
    "data.zip": (b"PK\x03\x04 damaged", "data.zip: a damaged archive"),
    "data.tar": (b"no tar", "data.tar: a damaged archive"),
    "data.tgz": (b"\x1f\x8b\x08\x00 damaged", "data.tgz: a damaged archive"),
    "rows.parquet": (b"PAR1 damaged", "1 of 1 rows cannot be used, more than max_rejects=0.1:"),
    "prose.jsonl": (
        b"no\nJSON\n",
        "2 of 2 rows cannot be used, more than max_rejects=0.1:\n  2 not",
    ),
    "rows.xlsx": (b"PK", "rows.xlsx: unknown kind of file; use .jsonl"),
    "rows.jsonl.gz": (b"\x1f\x8b\x08\x00 damaged", "1 of 1 rows cannot be used"),
}


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_a_file_that_cannot_be_read_is_refused(name, folder):
    content, message = DAMAGED_FILES[name]
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        convert(folder / name)
    assert message in str(refused.value)
    assert not (folder / "converted" / "rows.parquet").exists()


def test_a_file_without_a_readable_row_is_not_skipped_in_silence(folder, capsys):
    write_lines(folder / "a.jsonl", GOOD)
    (folder / "b.json").write_bytes(b'[{"id": "cut", "question": "What')
    write_lines(folder / "c.jsonl", b"no JSON", b"neither")
    found = convert(folder, "max_rejects=0.9")
    assert [row["id"] for row in found.rows] == ["good"]
    assert found.report.counts["rows read"] == 4
    places = [(reject["file"], reject.get("row", reject.get("line"))) for reject in found.rejects]
    assert places == [(str(folder / "b.json"), 0)] + [
        (str(folder / "c.jsonl"), line) for line in (1, 2)
    ]
    (problem,) = found.report.problems
    assert problem.startswith(f"{folder / 'b.json'}, row 0: JSON is cut off")
    arguments = [f"source={folder}", f"output={found.output}"]
    assert main(["convert", *arguments, "max_rejects=0.9"]) == 1
    assert main(["convert", *arguments]) == 2
    assert "3 of 4 rows cannot be used" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"no row can be used, see .*rejects\.jsonl; nothing was"):
        convert(folder / "c.jsonl", "max_rejects=1", output=found.output)


def test_a_file_that_starts_with_many_broken_rows(folder):
    source = write_lines(folder / "rows.jsonl", *[b"no JSON"] * 1000, GOOD)
    with pytest.raises(UserError, match="1,000 of 1,000 rows cannot be used"):
        convert(source, "columns.answer=answer")
    with pytest.raises(UserError, match="no row can be used"):
        convert(source, "max_rejects=1")
    last = source.with_name("converted") / "rows.parquet.rejects.jsonl"
    reason = json.loads(last.read_text().splitlines()[-1])["reason"]
    assert reason == "columns not known: the first 1,000 rows are unreadable"


@pytest.mark.skipif(sys.platform != "linux", reason="permissions")
def test_too_many_broken_rows_write_nothing(folder):
    broken = [GOOD | {"id": str(number), "image": "c.png"} for number in range(3)]
    source = write_lines(folder / "rows.jsonl", GOOD, *broken)
    with pytest.raises(UserError) as refused:
        convert(source)
    rejects = folder / "converted" / "rows.parquet.rejects.jsonl"
    assert str(refused.value) == (
        "3 of 4 rows cannot be used, more than max_rejects=0.1:\n  3 image not found\n"
        f"{rejects} has each one; nothing was written"
    )
    assert len(rejects.read_text().splitlines()) == 3
    assert not (folder / "converted" / "rows.parquet").exists()


def test_the_first_broken_row_can_end_the_command(folder):
    source = write_lines(folder / "rows.jsonl", GOOD, GOOD | {"id": "broken", "image": "c.png"})
    with pytest.raises(UserError) as refused:
        convert(source, "on_error=stop")
    start = f"{source}, line 2 (id broken): image not found: images[0]: c.png"
    assert str(refused.value).startswith(start)
