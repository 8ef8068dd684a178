"""What is trained by configuration, and where data sets are found. Importing it is cheap: torch is loaded with a task."""

TASKS: dict[str, int] = {"fm-16": 16, "fm-32": 32}
"""Fashion-MNIST with the NiNo paper's convnets, by the width of their first layer: 14,378 and 56,394 parameters."""
