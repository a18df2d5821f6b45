"""What a person sees of a run: the console of a stage, tables of results, pictures of examples."""
