"""Storage of frames and latents under a memory budget."""
