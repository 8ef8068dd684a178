"""Compare a job without and with nowcasts: runs, summary, picture."""
