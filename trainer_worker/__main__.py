"""`python -m trainer_worker`."""

from trainer_worker.cli import app

app(prog_name="nowcast")
