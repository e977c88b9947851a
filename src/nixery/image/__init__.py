"""What a name and a tag ask for. Past this package there are no raw names."""
