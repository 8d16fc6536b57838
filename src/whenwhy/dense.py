"""Attribution of functions of dense inputs: `from whenwhy import dense`, then `dense.Explainer(forward, method=...)`."""

from whenwhy.attribution.dense import DenseQuestion, Explainer

__all__ = ["DenseQuestion", "Explainer"]
