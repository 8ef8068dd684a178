"""Jumps on trial: how a run is doing, where it was heading, and the way back."""
