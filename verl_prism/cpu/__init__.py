"""Patches that let verl, Ray and vLLM run without an accelerator. Elsewhere they are inactive."""
