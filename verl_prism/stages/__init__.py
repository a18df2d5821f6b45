"""One module per kind of stage. Each runs in a child process (`run.py`) that `launch.py` starts, watches and clears up."""
