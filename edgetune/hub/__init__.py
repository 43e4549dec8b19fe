"""The models of a hub, fetched into the cache that the Hugging Face tools share: nothing else connects.

Files are named by what is in them (``blobs``), and a revision's names point to them (``snapshots``).
"""

from __future__ import annotations

from edgetune.hub.client import Hub, hub_of
from edgetune.hub.download import Progress, download, read_remote
from edgetune.hub.listing import Listing, RemoteFile, list_model

__all__ = [
    "Hub",
    "Listing",
    "Progress",
    "RemoteFile",
    "download",
    "hub_of",
    "list_model",
    "read_remote",
]
