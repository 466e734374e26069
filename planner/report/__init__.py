"""The reports of a plan: terminal, Markdown, JSON, pictures."""
