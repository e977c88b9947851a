"""How fast layers are packed, beside the bound and a pipe."""
