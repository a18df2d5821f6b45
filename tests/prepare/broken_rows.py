"""A good row, and many ways to break it."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, PngImagePlugin

MESSAGES = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "prompt": MESSAGES,
        "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        "data_source": pa.string(),
        "reward_model": pa.struct({"style": pa.string(), "ground_truth": pa.string()}),
        "extra_info": pa.struct(
            {"equivalent_answers": pa.list_(pa.string()), "difficulty": pa.float64()}
        ),
        "teacher_response": pa.string(),
        "messages": MESSAGES,
        "student_responses": pa.list_(pa.string()),
        "own": pa.binary(),  # a column that no stage knows
    }
)
RESPONSE = "<caption>Noise.</caption><think>I guess.</think><answer>9</answer>"

Row = dict[str, Any]
Change = Callable[[Row], dict[str, Any]]


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def noise(number: int, mode: str = "RGB", width: int = 40, height: int = 24) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def good_row(number: int) -> Row:
    """Return a row without a mistake. Different numbers have different images and questions."""
    form = ("PNG", "JPEG", "WEBP")[number % 3]
    prompt = [
        {"role": "system", "content": "Reply."},
        {"role": "user", "content": f"<image>\nWhat is in picture {number}?"},
    ]
    return {
        "id": f"row-{number}",
        "prompt": prompt,
        "images": [{"bytes": encoded(noise(number), form)}],
        "data_source": "noise",
        "reward_model": {"style": "rule", "ground_truth": "9"},
        "extra_info": {"equivalent_answers": ["nine"], "difficulty": number / 3},
        "teacher_response": RESPONSE,
        "messages": [*prompt, {"role": "assistant", "content": RESPONSE}],
        "student_responses": [RESPONSE],
        "own": bytes([number % 256]),
    }


def text_row(number: int) -> Row:
    """Return a row without a mistake and without an image."""
    prompt = [{"role": "user", "content": f"What is 9 + {number}?"}]
    answer = {"role": "assistant", "content": RESPONSE}
    return good_row(number) | {
        "prompt": prompt,
        "images": None,
        "messages": [*prompt, answer],
    }


def with_image(content: bytes) -> Change:
    return lambda row: {"images": [{"bytes": content}]}


def asked(*messages: dict[str, Any] | None) -> Change:
    return lambda row: {"prompt": list(messages)}


def user(text: str | None) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answered(text: str | None) -> Change:
    return lambda row: {"teacher_response": text}


def demonstrated(text: str | None) -> Change:
    return lambda row: {
        "messages": [*row["prompt"], {"role": "assistant", "content": text}],
    }


def gold(answer: str | None) -> Change:
    return lambda row: {"reward_model": {"style": "rule", "ground_truth": answer}}


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims to be of this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, data) for kind, data in chunks)


def png_with_text_bomb() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 5_000_000, zip=True)
    return encoded(noise(3), "PNG", pnginfo=text)


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 0xFF
    return bytes(changed)


def animated(form: str) -> bytes:
    frames = [noise(number) for number in (1, 2, 3)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


def gray(kind: type, form: str) -> bytes:
    return encoded(Image.fromarray(np.full((24, 24), 300, kind)), form)


PNG, JPEG, WEBP = (encoded(noise(7), form) for form in ("PNG", "JPEG", "WEBP"))
GIF = encoded(noise(7), "GIF")
IMAGE_KINDS: dict[str, tuple[Change, str]] = {
    "no image for a placeholder": (lambda row: {"images": None}, "placeholders"),
    "an empty list of images": (lambda row: {"images": []}, "placeholders"),
    "one image too many": (lambda row: {"images": row["images"] * 2}, "placeholders"),
    "a null image": (lambda row: {"images": [None]}, "image without bytes"),
    "an image without bytes": (lambda row: {"images": [{"bytes": None}]}, "image without bytes"),
    "a path instead of bytes": (
        lambda row: {"images": [{"bytes": None, "path": "a.png"}]},
        "image without bytes",
    ),
    "a path as bytes": (with_image(b"images/a.png"), "unreadable image"),
    "no bytes at all": (with_image(b""), "unreadable image"),
    "a web page": (with_image(b"<!doctype html><title>404</title>"), "unreadable image"),
    "an SVG": (with_image(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), "unreadable image"),
    "zeros": (with_image(bytes(2000)), "unreadable image"),
    "a truncated PNG": (with_image(PNG[:-40]), "unreadable image"),
    "a PNG without its end": (with_image(PNG[:-12]), "unreadable image"),
    "a truncated JPEG": (with_image(JPEG[: len(JPEG) // 2]), "unreadable image"),
    "a JPEG that lacks the last bytes": (with_image(JPEG[:-20]), "unreadable image"),
    "a truncated WebP": (with_image(WEBP[: len(WEBP) // 2]), "unreadable image"),
    "a truncated GIF": (with_image(GIF[: len(GIF) // 2]), "unreadable image"),
    "a changed byte in a PNG": (with_image(flipped(PNG, len(PNG) // 2)), "unreadable image"),
    "a broken header of a JPEG": (with_image(JPEG[:3] + JPEG[30:]), "unreadable image"),
    "an animated GIF": (with_image(animated("GIF")), "animated image"),
    "an animated WebP": (with_image(animated("WEBP")), "animated image"),
    "an animated PNG": (with_image(animated("PNG")), "animated image"),
    "a TIFF of several pages": (with_image(animated("TIFF")), "animated image"),
    "16 bits per channel": (with_image(gray(np.uint16, "PNG")), "more than 8 bits"),
    "32 bits per channel": (with_image(gray(np.float32, "TIFF")), "more than 8 bits"),
    "a bomb by its size": (with_image(png_of_size(30_000, 30_000)), "decompression bomb"),
    "a bomb in a comment": (with_image(png_with_text_bomb()), "unreadable image"),
    "a PNG with too few pixels": (with_image(png_of_size(300, 300)), "unreadable image"),
    "a very narrow image": (
        with_image(encoded(noise(7, "RGB", 2, 900), "PNG")),
        "too long and narrow",
    ),
}
TEXT_KINDS: dict[str, tuple[Change, str]] = {
    "no prompt": (lambda row: {"prompt": None}, "no messages"),
    "an empty prompt": (asked(), "no messages"),
    "a null message": (asked(user("<image>"), None), "message without a text"),
    "a null text": (asked(user(None)), "message without a text"),
    "a question of blanks": (
        lambda row: {"prompt": [user(" \n ")], "images": None, "messages": None},
        "no messages",
    ),
    "a blank question": (
        lambda row: text_row(5) | {"prompt": [user(" \n ")]},
        "question without a text",
    ),
    "a role of another format": (asked({"role": "human", "content": "<image>"}), "wrong role"),
    "a null role": (asked({"role": None, "content": "<image>"}), "wrong role"),
    "a prompt that ends with an answer": (
        lambda row: {"prompt": row["messages"]},
        "wrong role",
    ),
    "a demonstration without an answer": (
        lambda row: {"messages": row["prompt"]},
        "wrong role",
    ),
    "no placeholder": (asked(user("What?")), "placeholders"),
    "two placeholders": (asked(user("<image><image>What?")), "placeholders"),
    "a placeholder for a video": (asked(user("<image><video>What?")), "placeholders"),
    "a placeholder in the answer": (demonstrated(RESPONSE + "<image>"), "placeholders"),
    "the end of a message in the prompt": (asked(user("<image>The<|im_end|>")), "control token"),
    "an image token in the prompt": (asked(user("<image><|image_pad|>")), "control token"),
    "a control token in a demonstration": (
        lambda row: {"messages": [user("<image>A<|endoftext|>"), row["messages"][-1]]},
        "control token",
    ),
    "no response": (answered(None), "no response"),
    "an empty response": (answered(""), "no response"),
    "a response without blocks": (answered("9"), "block is missing"),
    "an unclosed tag": (answered(RESPONSE.replace("</answer>", "")), "block is not closed"),
    "a tag that is not opened": (answered("9</answer>"), "stray|text outside|closing tag"),
    "a nested tag": (answered(RESPONSE.replace("</think>", "")), "tag inside a block"),
    "two answers": (answered(RESPONSE + "<answer>8</answer>"), "block occurs twice"),
    "an empty caption": (answered(RESPONSE.replace("Noise.", " ")), "block without content"),
    "a missing caption": (answered(RESPONSE[len("<caption>Noise.</caption>") :]), "missing"),
    "blocks out of order": (
        answered("<think>a</think><caption>b</caption><answer>c</answer>"),
        "blocks out of order",
    ),
    "a text around the blocks": (answered("Sure! " + RESPONSE), "text outside the blocks"),
    "an endless repetition": (
        answered(RESPONSE.replace("I guess.", "I guess. " * 900)),
        "block that repeats itself",
    ),
    "a control token in a response": (
        answered(RESPONSE.replace("9", "9<|im_end|>")),
        "special token",
    ),
    "a demonstration out of the format": (demonstrated("It is 9."), "not in the format"),
    "a null student response": (lambda row: {"student_responses": [None]}, "student response"),
    "a UTF-16 text": (asked(user("<image>W\0h\0a\0t\0")), "decoded wrongly"),
    "a replacement character": (gold("Z\ufffdhne"), "decoded wrongly"),
    "Windows quotes read as Latin-1": (
        answered(RESPONSE.replace("I guess.", "I \x93guess\x94.")),
        "decoded wrongly",
    ),
    "no data source": (lambda row: {"data_source": None}, "data_source"),
    "no gold answer": (gold(None), "gold answer"),
    "an empty gold answer": (gold(" "), "gold answer"),
    "no reward model": (lambda row: {"reward_model": None}, "gold answer"),
    "a null among the equivalent answers": (
        lambda row: {"extra_info": {"equivalent_answers": ["9", None]}},
        "equivalent_answers",
    ),
    "a very long prompt": (asked(user("<image>" + "sum " * 900)), "over max_prompt_tokens"),
    "a very large image": (
        with_image(encoded(noise(7, "RGB", 3000, 2000), "JPEG")),
        "over max_prompt_tokens",
    ),
    "a very long response": (
        answered(RESPONSE.replace("I guess.", " ".join(map(str, range(900))))),
        "over max_response_tokens",
    ),
}
KINDS = IMAGE_KINDS | TEXT_KINDS


def broken_row(kind: str, number: int) -> Row:
    """Return a row that is broken in one way."""
    row = good_row(number)
    return row | KINDS[kind][0](row) | {"id": row["id"]}


def latin_1(table: pa.Table, column: str, row: int) -> pa.Table:
    """Return a table with a text that is not UTF-8."""
    texts = [text.encode() for text in table[column].to_pylist()]
    texts[row] = "Zähne".encode("latin-1")
    changed = pa.array(texts).view(pa.string())
    return table.set_column(table.schema.get_field_index(column), column, changed)
