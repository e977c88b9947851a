"""What keeps a store in order beside all requests: deleting what nobody uses, finding what is broken."""
