"""The journal of stage dpo: log-probabilities of all pairs under the policy that it starts from."""

from verl_prism.config import Prism
from verl_prism.data.rows import train_rows
from verl_prism.rollout.journal import Journal, data_settings
from verl_prism.run_folder import RunFolder
from verl_prism.weights import weights_digest


def reference_journal(prism: Prism, resume: bool) -> Journal:
    """Open the journal; without `resume`, start an empty one.

    The responses of pair i are `[teacher, policy]`.

    Raises:
        UserError: the journal to continue was written with other settings.
    """
    settings = {
        "the policy's weights": weights_digest(prism.policy),
        **data_settings("prism.data.train", prism.data.train, train_rows(prism)),
        "prism.image": prism.image.model_dump(),
        "prism.dpo.responses_per_prompt": prism.dpo.responses_per_prompt,
        "prism.hardware.dtype": prism.hardware.dtype,
    }
    return Journal(RunFolder(prism.output).reference, settings, resume)
