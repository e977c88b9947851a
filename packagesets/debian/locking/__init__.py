"""From apt's package indexes to the lock: parse, resolve, group, write.

Everything in here but `apt`, `programs` and `writing` is pure. Nothing of it runs inside a Nix build.
"""
