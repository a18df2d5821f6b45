"""The data files that stages read: their columns, and checks before a run starts."""
