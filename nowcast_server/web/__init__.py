"""HTTP around the service: routes, errors, TLS, and how bodies come in."""
