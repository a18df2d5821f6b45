"""Mean lengths of a run's prompts and responses: measured if the data can be read."""

from dataclasses import dataclass, replace

from verl_prism.config import Data
from verl_prism.data.checks.rows import IMAGES, TEXT
from verl_prism.doctor.finding import Case
from verl_prism.response import View

CAPTION_SHARE = 0.2  # of a response, if only its whole length is known


@dataclass(frozen=True)
class Lengths:
    """Mean lengths in tokens. A demonstration of stage sft is all prompt."""

    prompt: float  # with its images
    images: float  # of the prompt
    perception: float
    reasoning: float

    @property
    def response(self) -> float:
        """Length of a response."""
        return self.perception + self.reasoning

    @property
    def sequence(self) -> float:
        """Length of a prompt with a response."""
        return self.prompt + self.response

    def with_response(self, tokens: float) -> "Lengths":
        """Return these lengths with responses of another length."""
        caption = CAPTION_SHARE * tokens
        return replace(self, perception=caption, reasoning=tokens - caption)

    def within(self, limits: Data) -> "Lengths":
        """Return these lengths, shortened to the limits of the run."""
        prompt = min(self.prompt, limits.max_prompt_tokens)
        images = self.images * prompt / self.prompt
        shortened = replace(self, prompt=prompt, images=images)
        if self.response > limits.max_response_tokens:
            return shortened.with_response(limits.max_response_tokens)
        return shortened


# An image of about 900 x 900 pixels with a question, and a response of about 1,500 words.
ASSUMED = Lengths(prompt=1000, images=800, perception=400, reasoning=1600)


def mean_lengths(case: Case) -> tuple[Lengths, str]:
    """Return mean lengths, and a text that says what they are and how they are known.

    The policy's responses are assumed to be as long as the teacher's, if the stage reads those.
    """
    means = _measured(case)
    lengths = ASSUMED
    prompts, responses = "assumed", "assumed"
    if TEXT in means:
        lengths = replace(lengths, prompt=means[TEXT], images=means[IMAGES])
        prompts = "measured"
    if TEXT in means and case.prism.stage == "sft":
        demonstrations = replace(lengths, perception=0.0, reasoning=0.0)
        return demonstrations, f"demonstrations of {lengths.prompt:,.0f} tokens (measured)"
    if View.PERCEPTION in means:
        perception, reasoning = means[View.PERCEPTION], means[View.REASONING]
        lengths = replace(lengths, perception=perception, reasoning=reasoning)
        responses = "the teacher's, measured"
    if case.response_tokens is not None:
        lengths = lengths.with_response(case.response_tokens)
        responses = "given"
    lengths = lengths.within(case.prism.data)
    return lengths, (
        f"prompts of {lengths.prompt:,.0f} tokens, {lengths.images:,.0f} of them of images "
        f"({prompts}), responses of {lengths.response:,.0f} ({responses})"
    )


def _measured(case: Case) -> dict[str, float]:
    """Return the mean tokens of the training rows, by what has them; none if it is not known."""
    if case.has_wrong_inputs or not case.inputs.train_rows:
        return {}
    split = case.inputs.splits["train"]
    return {name: tokens / split.rows for name, tokens in split.tokens.items()}
