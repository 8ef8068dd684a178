"""Training runs from a configuration: the loop, with Ray or without, and what a run leaves behind."""
