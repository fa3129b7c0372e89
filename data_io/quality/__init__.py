"""Quality of a log: what its rows hold, what its users do, what changed, and what stands out."""
