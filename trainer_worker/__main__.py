"""`python -m trainer_worker`."""

from trainer_worker.cli import main

main()
