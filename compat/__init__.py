"""The old ways, behind the new interfaces."""
