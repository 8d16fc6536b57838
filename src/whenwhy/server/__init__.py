"""A published store flows in, pages in a browser flow out, to those who may look."""

from whenwhy.server.entrance import Entrance
from whenwhy.server.serve import serve

__all__ = ["Entrance", "serve"]
