"""How each GraphQL field gets its value: what it means, which statements run."""
