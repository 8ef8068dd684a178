"""Automatic wiring: run the module once and follow which neurons every tensor carries."""
