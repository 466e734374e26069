"""What a person reads of a plan: terminal, Markdown, JSON, pictures."""
