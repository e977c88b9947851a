"""Whether images from a binary cache are those of the local Nix store."""
