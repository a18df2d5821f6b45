"""Everything that runs vLLM: the offline sampler, plugins inside vLLM, and seeded rollouts."""
