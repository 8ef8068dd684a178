"""Meta-training: collecting trajectories of many small training runs and fitting a forecaster to them."""
