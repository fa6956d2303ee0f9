"""From latents to symbols and bytes: integer distributions and the coding order."""
