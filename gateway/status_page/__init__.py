"""The status page: what a browser shows of a gateway, from `/api/events` alone."""
