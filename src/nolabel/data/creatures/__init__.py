"""The procedural world of drawn creatures: labels, captions, masks, parts, videos."""
