import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from verl_prism.compose import compose_run
from verl_prism.data.messages import chat_messages, row_images
from verl_prism.rollout.sampler import PolicySampler


def hardware():
    return compose_run(["stage=eval"])[1].hardware


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


def test_policy_sampler(dense_folder, rows):
    set_num_threads, answers, progress = torch.set_num_threads, [], []
    for _ in range(2):  # a second policy in the same process
        with PolicySampler(dense_folder, hardware(), seed=3) as sampler:
            sampled = sampler.sample(rows, 4, 1.0, 1.0, 12, lambda *done: progress.append(done))
            greedy = sampler.sample(rows, 1, 0.0, 1.0, 12)
        answers.append((sampled, greedy))

    assert [len(group) for group in sampled] == [4] * len(rows) and [
        len(group) for group in greedy
    ] == [1] * len(rows)
    flat = [sample for group in sampled for sample in group]
    assert (
        all(sample.tokens == 12 for sample in flat if sample.truncated)
        and max(s.tokens for s in flat) == 12
    )
    assert len({sample.text for sample in flat}) > len(rows), "the samples of a question differ"
    assert answers[0] == answers[1], "one seed, the same responses"
    assert progress[-1] == (4 * len(rows), 4 * len(rows))

    tokenizer = AutoProcessor.from_pretrained(dense_folder).tokenizer
    for row, (only,) in zip(rows, greedy, strict=True):
        tokens = greedy_with_transformers(dense_folder, row, 12)
        assert only.text == tokenizer.decode(tokens, skip_special_tokens=True), (
            "the same prompt and picture as transformers"
        )

    assert torch.set_num_threads is set_num_threads
    assert not torch.distributed.is_initialized()
