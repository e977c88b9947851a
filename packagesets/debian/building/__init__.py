"""From .debs to a store path: unpack, link, patch, wrap. Runs inside Nix builds with the machine's python3 and patchelf.

No program of a package is run, so packages of any architecture can be built. `build.py` calls the modules in order.
"""
