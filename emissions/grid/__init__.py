"""The world's electricity grids: zones and their carbon intensity."""
