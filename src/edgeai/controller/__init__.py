"""LocalController: the service on every node that keeps the node's datasets, models and workers as desired."""
