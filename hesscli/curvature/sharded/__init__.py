"""A risk whose weights, vectors and rows are split over processes."""
