"""The speed of packing, compared with the bound and a pipe."""
