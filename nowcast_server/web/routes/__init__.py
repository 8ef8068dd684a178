"""The routes of HTTP API v1, by concept."""
