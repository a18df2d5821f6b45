"""One module per kind of stage; each runs in a child process (`run.py`) that `launch.py` starts and clears up."""
