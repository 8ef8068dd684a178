"""The jobs a server knows: their snapshots, what they may cost, and how good their forecasts were."""
