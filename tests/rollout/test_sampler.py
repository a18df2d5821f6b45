import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from verl_prism.compose import compose_run
from verl_prism.data.messages import chat_messages, row_images
from verl_prism.rollout.sampler import PolicySampler, Sampling

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
        images=row_images(row, processor.image_processor.patch_size),
        return_tensors="pt",
    )
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
    return tokens[0, inputs["input_ids"].shape[1] :].tolist()


def test_policy_sampler(dense_folder, rows, vllm_for_cpu):
    hardware = compose_run(["stage=eval"])[1].hardware
    set_num_threads = torch.set_num_threads
    answers = []
    progress = []
    for _ in range(2):  # a second policy in the same process
        with PolicySampler(dense_folder, hardware, seed=3) as sampler:
            sampled = sampler.sample(rows, RANDOM, lambda *done: progress.append(done))
            greedy = sampler.sample(rows, GREEDY)
        answers.append((sampled, greedy))

    assert [len(group) for group in sampled] == [4] * len(rows)
    assert [len(group) for group in greedy] == [1] * len(rows)
    flat = [sample for group in sampled for sample in group]
    assert all(sample.tokens == 12 for sample in flat if sample.truncated)
    assert max(sample.tokens for sample in flat) == 12
    assert len({sample.text for sample in flat}) > len(rows), "the samples of a question differ"
    assert answers[0] == answers[1], "one seed, the same responses"
    assert progress[-1] == (4 * len(rows), 4 * len(rows))

    tokenizer = AutoProcessor.from_pretrained(dense_folder).tokenizer
    for row, (only,) in zip(rows, greedy, strict=True):
        tokens = greedy_with_transformers(dense_folder, row, 12)
        expected = tokenizer.decode(tokens, skip_special_tokens=True)
        assert only.text == expected, "the same prompt and image as with transformers"

    assert torch.set_num_threads is set_num_threads
    assert not torch.distributed.is_initialized()
