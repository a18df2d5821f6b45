"""The parent of a stage: starts its processes, watches them, and explains how they ended."""
