"""Trajectories: the snapshots of training runs on disk, in one compact store, and the recording of what jobs stream."""
