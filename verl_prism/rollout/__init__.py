"""Everything that runs vLLM: the offline sampler, plugins inside the engine, and seeded rollouts."""
