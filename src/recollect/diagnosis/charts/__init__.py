"""Pictures as inline SVG, drawn by hand so that they follow the page's colours and need no other file."""
