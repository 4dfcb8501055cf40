"""What is computed: the mathematics, on numpy arrays and plain values. Pure."""

from edgeai.learning.aggregation import Update, check_arrays, weighted_mean, weighted_mean_of, weighted_metrics

__all__ = ["Update", "check_arrays", "weighted_mean", "weighted_mean_of", "weighted_metrics"]
