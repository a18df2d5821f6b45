"""Reports of a run: metrics and summary of a stage, tables of results, pictures of examples."""
