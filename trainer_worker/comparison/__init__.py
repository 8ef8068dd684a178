"""The same job without and with nowcasts: run, summed up, drawn."""
