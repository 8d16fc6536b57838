"""Networks that were trained elsewhere: their weights, their first layer as bags, and the proof that nothing changed."""
