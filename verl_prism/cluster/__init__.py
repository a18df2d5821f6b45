"""Run one stage on several hosts: start Ray on each, run the stage, and stop everything again."""
