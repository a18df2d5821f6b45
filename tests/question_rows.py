"""Questions about two digits, for tests of the data commands."""

import io
from collections.abc import Sequence

from PIL import Image

COLUMNS = (
    "id",
    "prompt",
    "images",
    "data_source",
    "reward_model",
    "teacher_response",
    "student_responses",
)


def respond(caption: str, think: str, answer: str) -> str:
    return f"<caption>{caption}</caption><think>{think}</think><answer>{answer}</answer>"


def question(number: int, gold: str, responses: Sequence[str] = ()) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), (number % 256, 0, 0)).save(buffer, "PNG")
    return {
        "id": f"q{number}",
        "prompt": [{"role": "user", "content": "<image>\nWhat is the sum?"}],
        "images": [{"bytes": buffer.getvalue()}],
        "data_source": "digits",
        "reward_model": {"style": "rule", "ground_truth": gold},
        "teacher_response": respond("A 3 and a 4.", "3 + 4 = 7.", gold),
        "student_responses": list(responses),
    }
