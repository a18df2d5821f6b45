"""Running verl, Ray and vLLM on a host with no accelerator. Nothing here is active where there is one."""
