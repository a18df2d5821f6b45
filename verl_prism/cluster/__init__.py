"""A stage on several hosts: Ray started on each of them by its own commands, the stage run, all of it ended again."""
