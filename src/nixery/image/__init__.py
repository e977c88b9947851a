"""Images as clients and definitions describe them. Other packages use parsed names only."""
