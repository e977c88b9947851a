"""``make crash``: a server is killed at random moments of cold builds."""
