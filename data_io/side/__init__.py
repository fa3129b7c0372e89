"""Side tables: what the shop knows of its items and users."""
