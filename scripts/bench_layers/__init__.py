"""How many bytes a fleet pulls and a registry stores, by the rule that groups paths into layers."""
