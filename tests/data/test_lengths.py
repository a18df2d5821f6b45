"""The lengths that the check counts equal what the model's own processor makes."""

import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from verl_prism.compose import compose_run
from verl_prism.data.checks.lengths import TokenCounter
from verl_prism.data.images import ImageSettings, image_tokens
from verl_prism.stages.warmup_data import encode_row

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60).filter(
    lambda text: "<image>" not in text and "<|" not in text
)
SIZES = st.lists(st.tuples(st.integers(8, 300), st.integers(8, 300)), max_size=2)


def jpeg(width: int, height: int) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "JPEG")
    return {"bytes": buffer.getvalue()}


@pytest.fixture(scope="module")
def processor(dense_folder):
    return AutoProcessor.from_pretrained(dense_folder)


@pytest.fixture(scope="module")
def counter(dense_folder):
    return TokenCounter("prism.policy", dense_folder)


@pytest.fixture(scope="module")
def sizes(dense_folder):
    _, prism = compose_run(["stage=rlvr"])
    return ImageSettings.of(prism.image, dense_folder)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(system=TEXT, question=TEXT, pictures=SIZES)
def test_a_prompt_has_as_many_tokens_as_the_processor_makes(
    processor, counter, sizes, system, question, pictures
):
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": "<image>" * len(pictures) + question},
    ]
    row = {"prompt": messages, "images": [jpeg(*size) for size in pictures]}
    tokens = [image_tokens(*size, sizes) for size in pictures]
    conversation = counter.conversation(messages, tokens, add_generation_prompt=True)
    assert counter.lengths([conversation]) == [len(encode_row(processor, row).input_ids)]


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(question=TEXT, answer=TEXT)
def test_a_demonstration_has_as_many_tokens_as_the_processor_makes(
    processor, counter, question, answer
):
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    conversation = counter.conversation(messages, [], add_generation_prompt=False)
    text = processor.apply_chat_template(messages, tokenize=False)
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert conversation.text == text
    assert counter.lengths([conversation]) == [len(ids)]
