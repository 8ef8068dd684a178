"""`nowcast-server selftest`: eight checks that say whether forecasts are right on this machine's device, and how fast."""
