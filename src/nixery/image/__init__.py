"""Images as clients and definitions describe them. Past this package there are no raw names."""
