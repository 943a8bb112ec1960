"""How far back an input still changes what a model says."""
