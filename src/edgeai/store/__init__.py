"""What is remembered.

`base` says what every store promises; `memory` and `nats` keep it; `layout` is how one document lies in a store;
`history` is the stream of facts; `files` writes files whole or not at all. Import the module you need: importing this
package loads no client of any broker.
"""

from edgeai.store.base import BlobStore, Change, Document, ResourceStore, Stored

__all__ = ["BlobStore", "Change", "Document", "ResourceStore", "Stored"]
