"""Procedural images and videos of creatures, with labels, captions, masks, parts and keypoints."""
