"""What goes on in a model while it trains."""
