"""trunkline beside other proxies: what each costs a call, and what becomes of what clients rely on."""
