"""One file a method, registered by `@method`."""
