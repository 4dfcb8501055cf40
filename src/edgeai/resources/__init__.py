"""What a user asks for: the kinds of resources, and the manifests they are written in.

Import from the modules (`resources.federated`, `resources.names`, ...): the names here would load all of them, and workers
that only need an address would pay for it.
"""
