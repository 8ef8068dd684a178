"""Training jobs on a Ray cluster: submit any script that uses `Nowcast`, follow it, stop it."""
