"""What can go wrong between a terminal and a cluster."""

from trainer_worker.errors import CommandFailed


class ClusterError(CommandFailed):
    """The cluster cannot be reached, refuses, or has no such thing; the message says what to do."""
