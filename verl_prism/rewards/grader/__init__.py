"""The grader: decides whether an answer equals the gold answer. It imports neither verl nor our configuration."""
