"""A cell on one page, and one step of a model with its numbers."""
