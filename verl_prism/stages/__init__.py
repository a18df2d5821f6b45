"""One module per stage, and the process that runs one."""
