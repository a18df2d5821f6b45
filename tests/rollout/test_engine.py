import pyarrow.parquet as pq
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from verl_prism.compose import compose_run
from verl_prism.data.images import MODEL_LIMITS, row_images
from verl_prism.data.messages import chat_messages
from verl_prism.rollout.engine import PolicyEngine
from verl_prism.rollout.sampling import Sampling, SamplingJob

RANDOM = Sampling(n=4, temperature=1.0, top_p=1.0, max_tokens=12)
GREEDY = Sampling(n=1, temperature=0.0, top_p=1.0, max_tokens=12)


def greedy_with_transformers(folder, row, max_tokens: int) -> list[int]:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    text = processor.apply_chat_template(
        chat_messages(row), add_generation_prompt=True, tokenize=False
    )
    inputs = processor(
        text=[text],
        images=row_images(row, processor.image_processor.patch_size, MODEL_LIMITS),
        return_tensors="pt",
    )
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    return tokens[0, inputs["input_ids"].shape[1] :].tolist()


def test_policy_engine(dense_folder, rows, vllm_for_cpu):
    hardware = compose_run(["stage=eval"])[1].hardware
    job = SamplingJob(dense_folder, (GREEDY, RANDOM), hardware, MODEL_LIMITS, 3, True, 128)
    set_num_threads = torch.set_num_threads
    first = list(enumerate(rows))[:4]
    others = list(enumerate(rows))[4:]

    engine = PolicyEngine(job)
    sampled = dict(engine.advance(first, keep=0))
    engine.close()

    engine = PolicyEngine(job)  # a second one in the same process
    done = engine.advance(others[:2], keep=1)
    done += engine.advance(others[2:], keep=0)
    again = dict(engine.advance(first, keep=0))
    later = dict(engine.advance([(100, rows[0])], keep=0))
    engine.close()

    assert sorted(dict(done)) == [number for number, _ in others]
    assert again == sampled, "the same responses, whatever the engine has done before"
    assert {len(responses) for responses in sampled.values()} == {5}
    flat = [response for responses in sampled.values() for response in responses]
    assert all(response.tokens == 12 for response in flat if response.truncated)
    assert max(response.tokens for response in flat) == 12
    assert len({response.text for response in flat}) > 2 * len(first), "samples of a row differ"
    assert later[100][1:] != sampled[0][1:], "a row's number is part of its seed"

    tokenizer = AutoProcessor.from_pretrained(dense_folder).tokenizer
    for number, row in first:
        tokens = greedy_with_transformers(dense_folder, row, 12)
        expected = tokenizer.decode(tokens, skip_special_tokens=True)
        assert sampled[number][0].text == expected, "the prompt and image of transformers"

    assert torch.set_num_threads is set_num_threads
    assert not torch.distributed.is_initialized()


def test_prompts_that_do_not_fit_into_one_step(dense_folder, digits_folder, vllm_for_cpu):
    """All rows together have more prompt tokens than vLLM computes in a step (4,096)."""
    table = pq.read_table(digits_folder / "data" / "train.parquet").slice(0, 120)
    hardware = compose_run(["stage=eval"])[1].hardware
    short = Sampling(n=1, temperature=1.0, top_p=1.0, max_tokens=2)
    job = SamplingJob(dense_folder, (short,), hardware, MODEL_LIMITS, 3, False, 128)
    engine = PolicyEngine(job)
    done = dict(engine.advance(list(enumerate(table.to_pylist())), keep=0))
    engine.close()
    assert sorted(done) == list(range(120))
