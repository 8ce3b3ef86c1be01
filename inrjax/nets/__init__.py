"""Networks: a static spec, and pure functions over plain dict pytrees."""
