"""Verifiable rewards: grading of answers (pure functions) and the score that verl's reward managers call."""
