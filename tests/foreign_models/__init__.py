"""Networks as a stranger writes them, who knows nothing of whenwhy."""
