"""Whether the time of a refusal tells what exists."""
