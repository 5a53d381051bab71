"""Who may call, and how much one client may take: keys, connections, requests under way."""
