"""NiNo (Knyazev et al., "Accelerating Training with Neuron Interaction and Nowcasting Networks", ICLR 2025, arXiv 2409.04434), its
per-parameter relative WNN, their features and checkpoints; `trainer_worker.metatrain.model` is the readable reference.
"""
