"""The grader: decides whether an answer equals the gold answer. Pure: no verl, no config."""
