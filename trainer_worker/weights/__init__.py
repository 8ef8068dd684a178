"""A model's weights as one vector: flat, split over ranks, copied as snapshots, averaged."""
