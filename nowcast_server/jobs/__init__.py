"""Jobs: their snapshots, limits, and the skill of their forecasts."""
