"""One run of a model, kept: every step of every recurrent layer, and what came back to it."""
