"""Several workers: what one forwards to another, and the process that starts them."""
