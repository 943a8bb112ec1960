"""A step as data: operations, graphs, tracing and equations on paper."""
