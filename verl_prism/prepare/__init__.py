"""Commands that make data sets: `python -m verl_prism.data COMMAND`.

Each command is a function of typed settings that returns a `Report`. They read and write the rows
of `verl_prism.data.schema`, one at a time, so that memory does not grow with the data.
"""
