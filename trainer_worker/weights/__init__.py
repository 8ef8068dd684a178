"""A model's trained weights as one vector: flat, split over ranks, pushed."""
