"""Whether two model folders have the same weights."""

import numpy as np
from safetensors.numpy import save_file

from verl_prism.weights import weights_digest


def test_the_digest_of_a_policy_follows_its_weights(tmp_path):
    weights = np.zeros(10_000, np.float32)
    save_file({"weights": weights}, tmp_path / "model.safetensors")
    before = weights_digest(tmp_path)
    assert weights_digest(tmp_path) == before
    save_file({"weights": weights + 1}, tmp_path / "model.safetensors")
    assert weights_digest(tmp_path) != before
