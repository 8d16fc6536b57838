"""Cells and rows flow in, a published version flows out; people ask it read-only."""

from whenwhy.store.open import Store, open_store
from whenwhy.store.publish import publish_store
from whenwhy.store.stop import Stop

__all__ = ["Stop", "Store", "open_store", "publish_store"]
