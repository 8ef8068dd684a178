"""What can go wrong between a terminal and a cluster."""


class ClusterError(Exception):
    """The cluster cannot be reached, refuses, or has no such thing; the message says what to do."""
