"""A published store flows in, pages in a browser flow out."""

from whenwhy.server.serve import serve

__all__ = ["serve"]
