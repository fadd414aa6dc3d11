"""What a gateway adds: a fast fake engine, a client that keeps time, and the comparison of both."""
