"""What operators see: metrics, traces, and the identity of requests. Observers; nothing waits for them."""
