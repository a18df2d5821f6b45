"""The data files that stages read: their columns, and the checks before a run starts."""
