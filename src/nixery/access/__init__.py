"""Who sends a request, and what they may do: identities, credentials, rules and quotas."""
