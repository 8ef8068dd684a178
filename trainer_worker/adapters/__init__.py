"""Adapters for training frameworks. Each module needs the framework it is named after, and no other."""
