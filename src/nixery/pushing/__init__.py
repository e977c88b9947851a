"""Images to another registry, as the distribution specification's section "Push" has it."""
