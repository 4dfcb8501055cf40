"""GlobalCoordinator: the service in the cloud that keeps the resources and coordinates tasks across nodes."""
