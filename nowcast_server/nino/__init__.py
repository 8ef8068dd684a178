"""NiNo: the graph network that forecasts weights, its per-parameter relative WNN, their graphs, features and checkpoints.

Source: Knyazev et al., "Accelerating Training with Neuron Interaction and Nowcasting Networks", ICLR 2025, arXiv 2409.04434.
`model.py` is the readable reference, built on PyTorch Geometric, which is imported only where it is used.
"""
