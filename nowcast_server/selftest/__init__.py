"""`nowcast-server selftest`: ten checks that say whether forecasts are right on this machine's device, and how fast."""
