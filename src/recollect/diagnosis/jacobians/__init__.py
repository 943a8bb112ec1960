"""What the steps of a layer do to small changes of its state."""
